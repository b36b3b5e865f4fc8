"""Converts a float32 graph to fp16 for GPUs; normalisation and box decoding stay in float32."""

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper
from onnx.numpy_helper import from_array, to_array

from training.export.trunk import drop_unused_constants, find_full_precision_nodes, find_normalisation, fold_constants

_FLOAT_INPUTS = {"Resize": (1, 2)}  # roi and scales, which ONNX requires in float32
_FP16_MAX = float(np.finfo(np.float16).max)


def convert_to_fp16(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the graph with its trunk in fp16; `images` stay uint8, and boxes, scores and keypoints float32.

    Everything after the trunk stays in float32: fp16 logits would tie, and at 300 pixels fp16 coordinates have steps of
    a quarter. ONNX Runtime's own converter rounds to fp16 even between nodes that are to stay in float32.
    """
    converted = fold_constants(proto)
    graph = converted.graph
    float32_nodes = {node.name for node in [*find_normalisation(graph), *find_full_precision_nodes(graph)]}
    # in fp16, sampling positions in a map of 128 cells have steps of a sixteenth
    float32_nodes |= {node.name for node in graph.node if node.op_type == "DeformConv"}
    constants = {each.name: each for each in graph.initializer if each.data_type == TensorProto.FLOAT}
    is_half: dict[str, bool] = dict.fromkeys(constants, False)
    casts: dict[tuple[str, bool], str] = {}
    nodes: list[NodeProto] = []

    def cast(name: str, to_half: bool) -> str:
        """Returns the name of the tensor in the other precision, adding the conversion on first use."""
        if (name, to_half) not in casts:
            casts[name, to_half] = other = f"{name}_{'half' if to_half else 'single'}"
            if name in constants:
                values = to_array(constants[name]).clip(-_FP16_MAX, _FP16_MAX).astype(np.float16)
                graph.initializer.append(from_array(values, other))
            else:
                kind = TensorProto.FLOAT16 if to_half else TensorProto.FLOAT
                nodes.append(helper.make_node("Cast", [name], [other], f"{other}_cast", to=kind))
        return casts[name, to_half]

    types = {each.name: each.type.tensor_type.elem_type for each in graph.value_info}
    for node in graph.node:
        wants_half = node.name not in float32_nodes
        for index, name in enumerate(node.input):
            allows_half = index not in _FLOAT_INPUTS.get(node.op_type, ())
            if name in is_half and is_half[name] != (wants_half and allows_half):
                node.input[index] = cast(name, wants_half)
        nodes.append(node)
        is_half |= {name: wants_half for name in node.output if types.get(name) == TensorProto.FLOAT}
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    drop_unused_constants(graph)
    return converted
