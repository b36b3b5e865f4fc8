"""Input of int8 graphs: uint8 pixels without normalisation or quantisation, and space-to-depth for the first layer."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper
from onnx.numpy_helper import from_array, to_array

from training.export.trunk import drop_unused_constants, find_normalisation


def unify_normalisation(graph: onnx.GraphProto) -> tuple[str, float, int] | None:
    """Makes all channels share one mean and std, so that the uint8 pixels are already the quantised input.

    Returns the input's name, scale and zero point, or None if more than one convolution reads the pixels. The remaining
    per-channel normalisation is folded into the first convolution. Its zero padding then stands for the shared mean,
    which shifts the outermost cells: with ImageNet's means by at most a fifth of a standard deviation.
    """
    chain = find_normalisation(graph)
    constants = {each.name: each for each in graph.initializer}
    readers = [node for node in graph.node if chain and chain[-1].output[0] in node.input]
    if len(readers) != 1 or readers[0].op_type != "Conv" or len(readers[0].input) < 3:
        return None
    [first] = readers
    subtract, divide = chain[2:]
    mean, std = (to_array(constants[node.input[1]]).reshape(1, -1, 1, 1) for node in (subtract, divide))
    zero_point, shared_std = int(mean.mean().round()), float(std.mean())
    weight, bias = (constants[name] for name in first.input[1:])
    values = to_array(weight)  # (O, 3, k, k)
    _write(bias, to_array(bias) + (values * (zero_point - mean) / std).sum((1, 2, 3)))
    _write(weight, values * shared_std / std)
    _write(constants[subtract.input[1]], np.full_like(mean, zero_point))
    _write(constants[divide.input[1]], np.full_like(std, shared_std))
    _apply_space_to_depth(graph, first, weight)
    return first.input[0], 1 / shared_std, zero_point


def _apply_space_to_depth(graph: onnx.GraphProto, first: NodeProto, weight: TensorProto) -> None:
    """Rewrites a stride-2 convolution over RGB as the equivalent stride-1 one over 2 x 2 pixel blocks.

    Integer convolutions gather patches (im2col) one pixel's channels at a time, which is inefficient for 3 channels:
    without this, ResNet's first layer is slower in int8 than in float32.
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
    kernel = np.zeros((outputs, channels, 2 * cells, 2 * cells), np.float32)
    kernel[:, :, start : start + size, start : start + size] = values
    kernel = kernel.reshape(outputs, channels, cells, 2, cells, 2).transpose(0, 3, 5, 1, 2, 4)
    kernel = kernel.reshape(outputs, 4 * channels, cells, cells)
    after = cells - 1 - before
    changed = {"strides": [1, 1], "kernel_shape": [cells] * 2, "pads": [before, before, after, after]}
    del first.attribute[:]
    first.attribute.extend(helper.make_attribute(key, value) for key, value in (attributes | changed).items())
    blocks = f"{first.input[0]}_blocks"
    position = list(graph.node).index(first)
    graph.node.insert(position, helper.make_node("SpaceToDepth", [first.input[0]], [blocks], blocks, blocksize=2))
    graph.initializer.append(from_array(kernel, f"{weight.name}_blocks"))
    first.input[:2] = [blocks, f"{weight.name}_blocks"]


def remove_input_quantisation(graph: onnx.GraphProto, pixels: str) -> None:
    """Feeds the uint8 pixels to the first layer, skipping the normalisation and quantisation that reproduce them."""
    quantize = next((n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] == pixels), None)
    if quantize is None:  # the first layer stays in float32
        return
    transpose, *rest = find_normalisation(graph)
    channels_first, normalised = transpose.output[0], rest[-1].output[0]
    for node in (*rest, quantize):
        graph.node.remove(node)
    source = channels_first if pixels == normalised else pixels
    for node in graph.node:
        node.input[:] = [channels_first if name == normalised else name for name in node.input]
        node.output[:] = [quantize.output[0] if name == source else name for name in node.output]
    drop_unused_constants(graph)


def _write(tensor: TensorProto, values: NDArray[Any]) -> None:
    tensor.CopyFrom(from_array(values.astype(np.float32), tensor.name))
