"""Draws detections over a photo, legible on a thumbnail and on a photo of many megapixels. Free of torch."""

import colorsys
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from model import image
from model.detector import Detections
from model.skeleton import NO_JOINTS, Skeleton

_GOLDEN_RATIO = 0.618034  # steps of it around the colour wheel keep classes of near indices far apart
_LEAST_JOINT_SCORE = 0.2  # below it a joint is more likely hidden than where it is said to be
_LONGEST_JPEG = 65_500  # pixels that a side may have, by libjpeg
_WEIGHT = 500  # of the font, a little heavier than regular: it is light or dark on a strong colour

Colour = tuple[int, int, int]
Spot = tuple[int, int, int, int]  # left, top, right, bottom


def draw_detections(
    photo: NDArray[np.uint8],
    found: Detections,
    labels: Sequence[str],
    skeleton: Skeleton = NO_JOINTS,
) -> NDArray[np.uint8]:
    """Returns a copy of a photo (h, w, 3), RGB, with each box, its label and score in per cent, and its joints.

    A class has the same colour in every photo. Labels keep off each other where there is room.
    """
    indices, scores = found.labels.tolist(), found.scores.tolist()
    tags = [f"{labels[index]} {score:.0%}" for index, score in zip(indices, scores, strict=True)]
    colours = [choose_colour(index) for index in indices]
    return draw_boxes(photo, found.boxes_xyxy, tags, colours, found.keypoints, skeleton)


def draw_boxes(
    photo: NDArray[np.uint8],
    boxes_xyxy: NDArray[np.float32],
    tags: Sequence[str],
    colours: Sequence[Colour],
    keypoints: NDArray[np.float32] | None = None,
    skeleton: Skeleton = NO_JOINTS,
) -> NDArray[np.uint8]:
    """Returns a copy of a photo (h, w, 3), RGB, with boxes (N, 4) and their joints (N, J, 3), the first on top.

    Tags keep off each other where there is room; "" is none.
    """
    picture = photo.copy()
    scale = (picture.shape[0] * picture.shape[1]) ** 0.5
    line, letter = max(1, round(scale / 300)), max(10, round(scale / 38))
    boxes: list[list[int]] = boxes_xyxy.round().astype(int).tolist()
    for row in reversed(range(len(boxes))):
        left, top, right, bottom = boxes[row]
        rim = 2 * max(1, line // 3)
        # the rim shows the box where the photo has its colour
        inks: list[tuple[int, Colour]] = [(line + 2 * (line // 3), _contrast(colours[row])), (line, colours[row])]
        for thickness, ink in inks:
            cv2.rectangle(picture, (left, top), (right - 1, bottom - 1), ink, thickness)
        if keypoints is not None:
            _draw_joints(picture, keypoints[row], skeleton, colours[row], line, rim)

    font = cv2.FontFace("sans")
    taken: list[Spot] = []
    for box, colour, text in zip(boxes, colours, tags, strict=True):
        if not text:
            continue
        tag = _write(text, font, letter, colour)
        box[0] -= line // 2  # flush with the outer edge of the box's line
        spot = _find_spot(box, tag.shape[1], tag.shape[0], picture.shape[1], picture.shape[0], taken)
        taken.append(spot)
        under = picture[spot[1] : spot[3], spot[0] : spot[2]]
        under[:] = tag[: under.shape[0], : under.shape[1]]
    return picture


def draw_file(
    data: bytes,
    found: Detections,
    labels: Sequence[str],
    kind: str,
    max_pixels: int,
    skeleton: Skeleton = NO_JOINTS,
) -> bytes:
    """Draws over an image file at its full size, upright; returns a file of `kind` jpeg or png.

    Raises `InvalidImage`.
    """
    header = image.read_header(data, max_pixels)
    if kind == "jpeg" and max(header.width, header.height) > _LONGEST_JPEG:
        raise image.TooManyPixels(f"no side of a JPEG has more than {_LONGEST_JPEG} pixels: ask for a PNG")
    photo = image.decode(data, header)
    picture = draw_detections(photo, found, labels, skeleton)
    return image.encode(picture, kind, [cv2.IMWRITE_JPEG_QUALITY, 90] if kind == "jpeg" else [])


def _draw_joints(
    picture: NDArray[np.uint8], joints: NDArray[np.float32], skeleton: Skeleton, colour: Colour, line: int, rim: int
) -> None:
    """Draws the joints (J, 3) that are sure enough, and the lines between them."""
    places = [(round(x), round(y)) for x, y, _ in joints.tolist()]
    is_sure = (joints[:, 2] >= _LEAST_JOINT_SCORE).tolist()
    edges = [edge for edge in skeleton.edges if is_sure[edge[0]] and is_sure[edge[1]]]
    for thickness, ink in ((line + rim, _contrast(colour)), (line, colour)):
        for one, other in edges:
            cv2.line(picture, places[one], places[other], ink, thickness, cv2.LINE_AA)
    for place in (place for place, sure in zip(places, is_sure, strict=True) if sure):
        cv2.circle(picture, place, line + rim, _contrast(colour), cv2.FILLED, cv2.LINE_AA)
        cv2.circle(picture, place, line + rim // 2, colour, cv2.FILLED, cv2.LINE_AA)


def choose_colour(index: int) -> Colour:
    """Returns the RGB colour of class `index`, 0 to 255."""
    red, green, blue = colorsys.hsv_to_rgb((0.02 + index * _GOLDEN_RATIO) % 1, (0.85, 0.65)[index // 8 % 2], 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def _contrast(colour: Colour) -> Colour:
    """Returns near-black or white, whichever is further from `colour` in luma (ITU-R BT.601)."""
    luma = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    return (20, 20, 20) if luma > 127 else (255, 255, 255)


def _write(text: str, font: Any, letter: int, colour: Colour) -> NDArray[np.uint8]:
    """Returns a tag (h, w, 3) with `text`, all of it: on the photo itself OpenCV would wrap it at the edge."""
    _, _, width, _ = cv2.getTextSize((2**15, 2**15), text, (0, 0), font, letter, _WEIGHT)
    margin = max(2, letter // 3)
    wide = np.full((round(letter * 1.4), width + 2 * margin + letter, 3), colour, np.uint8)
    cv2.putText(wide, text, (margin, round(letter * 1.02)), _contrast(colour), font, letter, _WEIGHT)
    return wide[:, :-letter]


def _find_spot(
    box: Sequence[int], width: int, height: int, photo_width: int, photo_height: int, taken: Sequence[Spot]
) -> Spot:
    """Returns where a tag goes: above its box, in its top, below it, or in its bottom, the first that is free."""
    left = max(0, min(box[0], photo_width - width))
    spots = [(left, top, left + width, top + height) for top in (box[1] - height, box[1], box[3], box[3] - height)]
    inside = [spot for spot in spots if spot[1] >= 0 and spot[3] <= photo_height] or [(left, 0, left + width, height)]
    free = (spot for spot in inside if not any(_overlap(spot, other) for other in taken))
    return next(free, inside[0])


def _overlap(one: Spot, other: Spot) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
