"""The first layers of a graph that is to be int8: they read the picture's bytes as they are, four pixels at a time."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper
from onnx.numpy_helper import from_array, to_array

from training.trunk import drop_unread, find_normalisation


def share_normalisation(graph: onnx.GraphProto) -> tuple[str, float, int] | None:
    """Has all channels normalised alike, so that the bytes are the quantised pixels already: name, scale, zero point.

    The rest of what each channel needs goes into the first convolution's weights and biases. Where the means differ,
    what it pads with changes by as much: for ImageNet's means by at most a fifth of a standard deviation, seen by the
    picture's outermost cells. None where more than one convolution reads the pixels.
    """
    chain = find_normalisation(graph)
    constants = {each.name: each for each in graph.initializer}
    readers = [node for node in graph.node if chain and chain[-1].output[0] in node.input]
    if len(readers) != 1 or readers[0].op_type != "Conv" or len(readers[0].input) < 3:
        return None
    [first] = readers
    subtract, divide = chain[2:]
    mean, std = (to_array(constants[node.input[1]]).reshape(1, -1, 1, 1) for node in (subtract, divide))
    zero, shared = int(mean.mean().round()), float(std.mean())
    weight, bias = (constants[name] for name in first.input[1:])
    values = to_array(weight)  # (O, 3, k, k)
    _write(bias, to_array(bias) + (values * (zero - mean) / std).sum((1, 2, 3)))
    _write(weight, values * shared / std)
    _write(constants[subtract.input[1]], np.full_like(mean, zero))
    _write(constants[divide.input[1]], np.full_like(std, shared))
    _read_four_pixels(graph, first, weight)
    return first.input[0], 1 / shared, zero


def _read_four_pixels(graph: onnx.GraphProto, first: NodeProto, weight: TensorProto) -> None:
    """Has a convolution of stride 2 read 2 x 2 pixels as one of twelve channels, at stride 1: the same sums.

    An integer convolution gathers what each output sees, a pixel's channels at a time, and three are hardly worth it:
    without, ResNet's first layer is slower in int8 than in float32.
    """
    attributes = {each.name: helper.get_attribute_value(each) for each in first.attribute}
    values = to_array(weight)
    outputs, channels, size, _ = values.shape
    pad = size // 2
    if size % 2 == 0 or attributes["strides"] != [2, 2] or attributes["pads"] != [pad] * 4:
        return
    before = -(-pad // 2)  # cells of 2 x 2 pixels
    start = 2 * before - pad
    cells = -(-(start + size) // 2)
    whole = np.zeros((outputs, channels, 2 * cells, 2 * cells), np.float32)
    whole[:, :, start : start + size, start : start + size] = values
    whole = whole.reshape(outputs, channels, cells, 2, cells, 2).transpose(0, 3, 5, 1, 2, 4)
    whole = whole.reshape(outputs, 4 * channels, cells, cells)
    after = cells - 1 - before
    changed = {"strides": [1, 1], "kernel_shape": [cells] * 2, "pads": [before, before, after, after]}
    del first.attribute[:]
    first.attribute.extend(helper.make_attribute(key, value) for key, value in (attributes | changed).items())
    fours = f"{first.input[0]}_fours"
    place = list(graph.node).index(first)
    graph.node.insert(place, helper.make_node("SpaceToDepth", [first.input[0]], [fours], fours, blocksize=2))
    graph.initializer.append(from_array(whole, f"{weight.name}_fours"))
    first.input[:2] = [fours, f"{weight.name}_fours"]


def take_bytes(graph: onnx.GraphProto, pixels: str) -> None:
    """Reads the bytes themselves in place of the normalised pixels quantised anew: they are the same."""
    quantize = next((n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] == pixels), None)
    if quantize is None:  # what reads them stays in float32
        return
    transpose, *rest = find_normalisation(graph)
    planes, normalised = transpose.output[0], rest[-1].output[0]
    for node in (*rest, quantize):
        graph.node.remove(node)
    source = planes if pixels == normalised else pixels
    for node in graph.node:
        node.input[:] = [planes if name == normalised else name for name in node.input]
        node.output[:] = [quantize.output[0] if name == source else name for name in node.output]
    drop_unread(graph)


def _write(tensor: TensorProto, values: NDArray[Any]) -> None:
    tensor.CopyFrom(from_array(values.astype(np.float32), tensor.name))
