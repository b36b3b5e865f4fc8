"""Draws detections on photos, legible on thumbnails and on photos of many megapixels."""

import colorsys
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from model import image
from model.detector import Detections
from model.skeleton import NO_JOINTS, Skeleton

_GOLDEN_RATIO = 0.618034  # steps around the colour wheel that give neighbouring classes distinct hues
_MIN_JOINT_SCORE = 0.2  # below it a joint is more likely hidden than at the predicted position
_MAX_JPEG_SIDE = 65_500  # pixels, libjpeg's limit
_FONT_WEIGHT = 500  # a little heavier than regular, for contrast on a saturated background

Colour = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]  # left, top, right, bottom


def draw_detections(
    photo: NDArray[np.uint8],
    found: Detections,
    labels: Sequence[str],
    skeleton: Skeleton = NO_JOINTS,
) -> NDArray[np.uint8]:
    """Returns a copy of a photo (h, w, 3), RGB, with each object's box, joints, label and score in per cent.

    A class has the same colour in every photo. Labels avoid each other if there is room.
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
    """Returns a copy of a photo (h, w, 3), RGB, with boxes (N, 4), joints (N, J, 3) and text tags, the first on top.

    Tags avoid each other if there is room; "" draws none.
    """
    picture = photo.copy()
    scale = (picture.shape[0] * picture.shape[1]) ** 0.5
    line, font_size = max(1, round(scale / 300)), max(10, round(scale / 38))
    boxes: list[list[int]] = boxes_xyxy.round().astype(int).tolist()
    for row in reversed(range(len(boxes))):
        left, top, right, bottom = boxes[row]
        outline = 2 * max(1, line // 3)
        # a contrasting outline keeps the box visible on a photo of the same colour; thin lines need only 1 more for it,
        # since OpenCV draws rectangles of width 2 and 3 with 3 and 5 pixels
        edge = line + max(1, 2 * (line // 3))
        for thickness, colour in ((edge, _contrast(colours[row])), (line, colours[row])):
            cv2.rectangle(picture, (left, top), (right - 1, bottom - 1), colour, thickness)
        if keypoints is not None:
            _draw_joints(picture, keypoints[row], skeleton, colours[row], line, outline)

    font = cv2.FontFace("sans")
    occupied: list[Rectangle] = []
    pasted: list[tuple[Rectangle, NDArray[np.uint8]]] = []
    for box, colour, text in zip(boxes, colours, tags, strict=True):
        if not text:
            continue
        tag = _render_tag(text, font, font_size, colour)
        box[0] -= line // 2  # flush with the outer edge of the box's line
        place = _place_tag(box, tag.shape[1], tag.shape[0], picture.shape[1], picture.shape[0], occupied)
        occupied.append(place)
        pasted.append((place, tag))
    for place, tag in reversed(pasted):
        region = picture[place[1] : place[3], place[0] : place[2]]
        region[:] = tag[: region.shape[0], : region.shape[1]]
    return picture


def draw_file(
    data: bytes,
    found: Detections,
    labels: Sequence[str],
    kind: str,
    max_pixels: int,
    skeleton: Skeleton = NO_JOINTS,
) -> bytes:
    """Draws detections on an image file at full size, upright; returns a file of `kind` "jpeg" or "png".

    Raises `InvalidImage`.
    """
    header = image.read_header(data, max_pixels)
    if kind == "jpeg" and max(header.width, header.height) > _MAX_JPEG_SIDE:
        raise image.TooManyPixels(f"no side of a JPEG has more than {_MAX_JPEG_SIDE} pixels: ask for a PNG")
    photo = image.decode(data, header)
    picture = draw_detections(photo, found, labels, skeleton)
    return image.encode(picture, kind, [cv2.IMWRITE_JPEG_QUALITY, 90] if kind == "jpeg" else [])


def _draw_joints(
    picture: NDArray[np.uint8], joints: NDArray[np.float32], skeleton: Skeleton, colour: Colour, line: int, outline: int
) -> None:
    """Draws the joints (J, 3) whose score is high enough, and the skeleton's edges between them."""
    points = [(round(x), round(y)) for x, y, _ in joints.tolist()]
    is_visible = (joints[:, 2] >= _MIN_JOINT_SCORE).tolist()
    edges = [edge for edge in skeleton.edges if is_visible[edge[0]] and is_visible[edge[1]]]
    for thickness, stroke_colour in ((line + outline, _contrast(colour)), (line, colour)):
        for one, other in edges:
            cv2.line(picture, points[one], points[other], stroke_colour, thickness, cv2.LINE_AA)
    for point in (point for point, visible in zip(points, is_visible, strict=True) if visible):
        cv2.circle(picture, point, line + outline, _contrast(colour), cv2.FILLED, cv2.LINE_AA)
        cv2.circle(picture, point, line + outline // 2, colour, cv2.FILLED, cv2.LINE_AA)


def choose_colour(index: int) -> Colour:
    """Returns the RGB colour of class `index`, 0 to 255."""
    red, green, blue = colorsys.hsv_to_rgb((0.02 + index * _GOLDEN_RATIO) % 1, (0.85, 0.65)[index // 8 % 2], 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def _contrast(colour: Colour) -> Colour:
    """Returns near-black or white, whichever is further from `colour` in luma (ITU-R BT.601)."""
    luma = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    return (20, 20, 20) if luma > 127 else (255, 255, 255)


def _render_tag(text: str, font: Any, font_size: int, colour: Colour) -> NDArray[np.uint8]:
    """Renders `text` as an image (h, w, 3): on the photo itself OpenCV would wrap it at the edge."""
    _, _, width, _ = cv2.getTextSize((2**15, 2**15), text, (0, 0), font, font_size, _FONT_WEIGHT)
    margin = max(2, font_size // 3)
    wide = np.full((round(font_size * 1.4), width + 2 * margin + font_size, 3), colour, np.uint8)
    cv2.putText(wide, text, (margin, round(font_size * 1.02)), _contrast(colour), font, font_size, _FONT_WEIGHT)
    return wide[:, :-font_size]


def _place_tag(
    box: Sequence[int], width: int, height: int, photo_width: int, photo_height: int, occupied: Sequence[Rectangle]
) -> Rectangle:
    """Returns the first free place for a tag: above its box, inside at the top, below, or inside at the bottom."""
    left = max(0, min(box[0], photo_width - width))
    places = [(left, top, left + width, top + height) for top in (box[1] - height, box[1], box[3], box[3] - height)]
    inside = [each for each in places if each[1] >= 0 and each[3] <= photo_height] or [(left, 0, left + width, height)]
    free = (each for each in inside if not any(_overlap(each, other) for other in occupied))
    return next(free, inside[0])


def _overlap(one: Rectangle, other: Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
