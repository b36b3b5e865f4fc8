"""The part of an exported graph that may be computed less exactly: from the pixels to the heads."""

import tempfile
from collections import defaultdict
from pathlib import Path

import onnx
from onnx import NodeProto
from onnxruntime.quantization import quant_pre_process

_LAYERS = ("Conv", "ConvTranspose", "DeformConv")


def fold_constants(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with its constants folded, batch norms into convolutions too, and shapes inferred."""
    with tempfile.TemporaryDirectory() as folder:
        given, prepared = Path(folder, "given.onnx"), Path(folder, "prepared.onnx")
        onnx.save(proto, given)  # given the graph itself, the library loses its large tensors
        quant_pre_process(given, prepared, skip_symbolic_shape=True)
        folded = onnx.load(prepared)
    used = {node.domain for node in folded.graph.node}
    domains = [each for each in folded.opset_import if each.domain in used]  # the library names all that it knows
    del folded.opset_import[:]
    folded.opset_import.extend(domains)
    return folded


def find_last_layers(graph: onnx.GraphProto) -> list[NodeProto]:
    """The convolutions that no other one reads from: those of the heatmaps, whose outputs are logits."""
    return [node for node in find_exact_nodes(graph) if node.op_type in _LAYERS]


def find_exact_nodes(graph: onnx.GraphProto) -> list[NodeProto]:
    """The heatmaps' last layers and all behind them: peaks, top k, and the heads that are read at the peaks alone.

    Eight bits of a box as wide as the picture are steps of a pixel and more, and equal logits are peaks side by side.
    """
    readers = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    is_trunk: dict[str, bool] = {}
    for node in reversed(graph.node):  # in topological order, so that readers are known before what they read
        behind = [reader for name in node.output for reader in readers[name]]
        is_trunk[node.name] = any(reader.op_type in _LAYERS or is_trunk[reader.name] for reader in behind)
    return [node for node in graph.node if not is_trunk[node.name]]


def find_normalisation(graph: onnx.GraphProto) -> list[NodeProto]:
    """The nodes from the bytes of `images` to the normalised pixels, in order; none where the graph has others."""
    chain: list[NodeProto] = []
    name = "images"
    for op_type in ("Transpose", "Cast", "Sub", "Div"):
        readers = [node for node in graph.node if name in node.input and node.op_type != "Shape"]
        if [node.op_type for node in readers] != [op_type]:
            return []
        chain += readers
        name = readers[0].output[0]
    return chain


def drop_unread(graph: onnx.GraphProto) -> None:
    """Takes away the constants that no node reads."""
    read = {name for node in graph.node for name in node.input}
    kept = [each for each in graph.initializer if each.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
