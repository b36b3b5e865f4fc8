"""float32 graph → fp16 for GPUs: the trunk in half precision, the inputs' normalisation and the boxes in single."""

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper
from onnx.numpy_helper import from_array, to_array

from training.trunk import drop_unread, find_exact_nodes, find_normalisation, fold_constants

_FLOAT_INPUTS = {"Resize": (1, 2)}  # by ONNX's own rules: region and scales
_LARGEST = float(np.finfo(np.float16).max)


def halve(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph in half precision; `images` stay bytes, and boxes, scores and keypoints float32.

    What is behind the trunk is in single precision too: half's logits would tie, and its box of 300 pixels has steps of
    a quarter. Not by ONNX Runtime's own converter: that rounds to half between nodes that are to stay in single.
    """
    halved = fold_constants(proto)
    graph = halved.graph
    exact = {node.name for node in [*find_normalisation(graph), *find_exact_nodes(graph)]}
    # a place in a map of 128 cells has steps of a sixteenth in half precision
    exact |= {node.name for node in graph.node if node.op_type == "DeformConv"}
    constants = {each.name: each for each in graph.initializer if each.data_type == TensorProto.FLOAT}
    is_half: dict[str, bool] = dict.fromkeys(constants, False)
    converted: dict[tuple[str, bool], str] = {}
    nodes: list[NodeProto] = []

    def convert(name: str, to_half: bool) -> str:
        """The name of the same tensor in the other precision, which is made where nobody has asked for it before."""
        if (name, to_half) not in converted:
            converted[name, to_half] = other = f"{name}_{'half' if to_half else 'single'}"
            if name in constants:
                values = to_array(constants[name]).clip(-_LARGEST, _LARGEST).astype(np.float16)
                graph.initializer.append(from_array(values, other))
            else:
                kind = TensorProto.FLOAT16 if to_half else TensorProto.FLOAT
                nodes.append(helper.make_node("Cast", [name], [other], f"{other}_cast", to=kind))
        return converted[name, to_half]

    types = {each.name: each.type.tensor_type.elem_type for each in graph.value_info}
    for node in graph.node:
        wants_half = node.name not in exact
        for index, name in enumerate(node.input):
            is_free = index not in _FLOAT_INPUTS.get(node.op_type, ())
            if name in is_half and is_half[name] != (wants_half and is_free):
                node.input[index] = convert(name, wants_half)
        nodes.append(node)
        is_half |= {name: wants_half for name in node.output if types.get(name) == TensorProto.FLOAT}
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    drop_unread(graph)
    return halved
