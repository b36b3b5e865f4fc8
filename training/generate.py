"""Generates a small data set of coloured shapes, for trying out training and for tests."""

import json
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from training.files import write_text

LABELS = ("circle", "square", "triangle")
_SIZE = 160  # pixels, both sides


def generate_dataset(folder: Path, count: int, seed: int = 0) -> None:
    """Writes `count` training images and a quarter as many for validation, in COCO format, if `folder` is empty."""
    if any(folder.glob("*")):
        return
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for split, image_count in (("val", max(1, count // 4)), ("train", count)):
        random = np.random.default_rng((seed, len(split)))
        images: list[dict[str, object]] = []
        annotations: list[dict[str, object]] = []
        for index in range(1, image_count + 1):
            image, objects = _draw_image(random)
            name = f"{split}_{index:05}.png"
            cv2.imwrite(str(folder / "images" / name), image)
            images.append({"id": index, "file_name": name, "width": _SIZE, "height": _SIZE})
            for label, box in objects:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": index,
                        "category_id": label + 1,
                        "bbox": box,
                        "area": box[2] * box[3],
                        "iscrowd": 0,
                    }
                )
        categories = [{"id": index, "name": name} for index, name in enumerate(LABELS, start=1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_text(folder / f"{split}.json", json.dumps(content))


def _draw_image(random: np.random.Generator) -> tuple[NDArray[np.uint8], list[tuple[int, list[float]]]]:
    """Returns a BGR image and its objects as (label, [x, y, width, height])."""
    coarse = random.integers(40, 200, (6, 6, 3), np.uint8)
    image = np.asarray(cv2.resize(coarse, (_SIZE, _SIZE), interpolation=cv2.INTER_CUBIC), np.uint8)
    objects: list[tuple[int, list[float]]] = []
    occupied = np.zeros((_SIZE, _SIZE), bool)
    for _ in range(random.integers(1, 5)):
        side = int(random.integers(20, 64))
        x, y = (int(v) for v in random.integers(0, _SIZE - side, 2))
        if occupied[y : y + side, x : x + side].any():
            continue  # shapes must not overlap
        occupied[y : y + side, x : x + side] = True
        label = int(random.integers(len(LABELS)))
        color = [int(v) for v in random.integers(0, 256, 3)]
        if LABELS[label] == "circle":
            cv2.circle(image, (x + side // 2, y + side // 2), side // 2, color, cv2.FILLED, cv2.LINE_AA)
        elif LABELS[label] == "square":
            cv2.rectangle(image, (x, y), (x + side - 1, y + side - 1), color, cv2.FILLED)
        else:
            corners = np.array([(x, y + side - 1), (x + side - 1, y + side - 1), (x + side // 2, y)], np.int32)
            cv2.fillPoly(image, [corners], color, cv2.LINE_AA)
        objects.append((label, [float(x), float(y), float(side), float(side)]))
    return image, objects
