"""A real ONNX model with exactly known results: it detects pure red, green and blue areas."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image

from model.metadata import Metadata
from model.skeleton import Skeleton

WIDTH, HEIGHT = 96, 64
SCORES = {"red": 0.9, "green": 0.6, "blue": 0.2}
RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128)
Rectangle = tuple[tuple[int, int, int], tuple[int, int, int, int]]


def describe(**changes: Any) -> Metadata:
    """Returns the model's metadata with `changes`."""
    facts: dict[str, Any] = {
        "name": "colours",
        "labels": tuple(SCORES),
        "label_ids": (10, 20, 30),
        "input_height": HEIGHT,
        "input_width": WIDTH,
        "stride": 4,
        "precision": "fp32",
        "dataset": "rectangles",
        "ap": 12.5,
        "ap50": None,
        "git_commit": "0" * 40,
    }
    return Metadata(**facts | changes)


CORNERS = Skeleton(("upper_left", "lower_right"), ((0, 1),))


def save_model(
    path: Path,
    properties: dict[str, str] | None = None,
    batch: int | str = "batch",
    with_corners: bool = False,
    size: Sequence[int | str] = (HEIGHT, WIDTH),
) -> Path:
    """Writes the model for inputs of `size`, (height, width), where a name stands for any length.

    With `with_corners` it also finds keypoints: two corners of each box, with the box's score.
    """
    constants: list[onnx.TensorProto] = []

    def constant(name: str, values: Any, kind: type) -> str:
        constants.append(onnx.numpy_helper.from_array(np.asarray(values, kind), name))
        return name

    nodes = [
        helper.make_node("Transpose", ["images"], ["planes"], perm=[0, 3, 1, 2]),  # (B, 3, H, W)
        helper.make_node("Cast", ["planes"], ["values"], to=TensorProto.FLOAT),
        # a channel is pure where it exceeds the sum of the other two by more than 127
        helper.make_node("ReduceSum", ["values", constant("channel", [1], np.int64)], ["sum"], keepdims=1),
        helper.make_node("Mul", ["values", constant("two", 2, np.float32)], ["twice"]),
        helper.make_node("Sub", ["twice", "sum"], ["purity"]),
        helper.make_node("Greater", ["purity", constant("least", 127, np.float32)], ["pure"]),
        helper.make_node("Cast", ["pure"], ["mask"], to=TensorProto.FLOAT),
    ]
    for axis, reduced in (("x", 2), ("y", 3)):
        nodes.append(
            helper.make_node("ReduceMax", ["mask", constant(f"over_{axis}", [reduced], np.int64)], [axis], keepdims=0)
        )
        for edge, last in ((f"{axis}_min", 0), (f"{axis}_max", 1)):
            nodes += [
                helper.make_node("ArgMax", [axis], [f"{edge}_at"], axis=2, keepdims=1, select_last_index=last),
                helper.make_node("Cast", [f"{edge}_at"], [f"{edge}_cell"], to=TensorProto.FLOAT),
                helper.make_node("Add", [f"{edge}_cell", constant(f"{edge}_plus", last, np.float32)], [edge]),
            ]
    nodes += [
        helper.make_node("Concat", ["x_min", "y_min", "x_max", "y_max"], ["unsorted"], axis=2),  # (B, 3, 4)
        helper.make_node("ReduceMax", ["x", constant("columns", [2], np.int64)], ["present"], keepdims=0),  # (B, 3)
        helper.make_node("Mul", ["present", constant("sure", list(SCORES.values()), np.float32)], ["unsorted_scores"]),
        helper.make_node("TopK", ["unsorted_scores", constant("k", [3], np.int64)], ["scores", "labels"], axis=1),
        helper.make_node("Unsqueeze", ["labels", constant("last", [2], np.int64)], ["order_one"]),
        helper.make_node("Expand", ["order_one", constant("four", [1, 1, 4], np.int64)], ["order"]),
        helper.make_node("GatherElements", ["unsorted", "order"], ["boxes"], axis=1),
    ]
    outputs = [
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [batch, 3, 4]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 3]),
        helper.make_tensor_value_info("labels", TensorProto.INT64, [batch, 3]),
    ]
    if with_corners:
        nodes += [
            helper.make_node("Reshape", ["boxes", constant("two_corners", [0, 3, 2, 2], np.int64)], ["corners"]),
            helper.make_node("Unsqueeze", ["scores", constant("behind", [2, 3], np.int64)], ["of_box"]),
            helper.make_node("Expand", ["of_box", constant("of_both", [1, 1, 2, 1], np.int64)], ["of_corners"]),
            helper.make_node("Concat", ["corners", "of_corners"], ["keypoints"], axis=3),
        ]
        outputs.append(helper.make_tensor_value_info("keypoints", TensorProto.FLOAT, [batch, 3, 2, 3]))
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, [batch, *size, 3])],
        outputs,
        constants,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    own = describe(skeleton=CORNERS, keypoint_ap=7.5) if with_corners else describe()
    helper.set_model_props(proto, own.to_properties() if properties is None else properties)
    onnx.save(proto, path)
    return path


def save_rectangular_model(path: Path, **facts: Any) -> Path:
    """Writes the model for images scaled to fit 96 x 96 pixels, in shapes whose sides are multiples of 16."""
    own = describe(**{"input_height": WIDTH, "size_step": 16} | facts)
    return save_model(path, own.to_properties(), size=("rows", "columns"))


def paint(width: int, height: int, *rectangles: Rectangle) -> NDArray[np.uint8]:
    """Returns a grey image (height, width, 3) with filled rectangles, each (colour, (x_min, y_min, x_max, y_max))."""
    picture = np.full((height, width, 3), GREY, np.uint8)
    for colour, (x_min, y_min, x_max, y_max) in rectangles:
        picture[y_min:y_max, x_min:x_max] = colour
    return picture


def encode(picture: NDArray[np.uint8] | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(file, kind, **options)
    return file.getvalue()


# twice the input size, with every edge on a whole input pixel, so that boxes are exact
PHOTO = paint(2 * WIDTH, 2 * HEIGHT, (RED, (32, 16, 96, 64)), (GREEN, (112, 80, 176, 112)), (BLUE, (16, 96, 48, 112)))
PHOTO_PNG = encode(PHOTO)


def box(x_min: float, y_min: float, x_max: float, y_max: float) -> dict[str, float]:
    return {"x_min": x_min, "y_min": y_min, "x_max": x_max, "y_max": y_max}


RED_FOUND = {"label": "red", "label_id": 10, "score": 0.9, "box": box(32, 16, 96, 64)}
GREEN_FOUND = {"label": "green", "label_id": 20, "score": 0.6, "box": box(112, 80, 176, 112)}
BLUE_FOUND = {"label": "blue", "label_id": 30, "score": 0.2, "box": box(16, 96, 48, 112)}
