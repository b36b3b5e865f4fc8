"""Finds the parts of an exported ONNX graph that may and may not be computed in reduced precision."""

import tempfile
from collections import defaultdict
from pathlib import Path

import onnx
from onnx import NodeProto
from onnxruntime.quantization import quant_pre_process

_LAYERS = ("Conv", "ConvTranspose", "DeformConv")


def fold_constants(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the graph with constants and batch norms folded and shapes inferred."""
    with tempfile.TemporaryDirectory() as folder:
        source, prepared = Path(folder, "source.onnx"), Path(folder, "prepared.onnx")
        onnx.save(proto, source)  # given a ModelProto, quant_pre_process loses its large tensors
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        folded = onnx.load(prepared)
    used = {node.domain for node in folded.graph.node}
    domains = [each for each in folded.opset_import if each.domain in used]  # quant_pre_process adds all that it knows
    del folded.opset_import[:]
    folded.opset_import.extend(domains)
    return folded


def find_logit_layers(graph: onnx.GraphProto) -> list[NodeProto]:
    """Returns the heatmap heads' last convolutions, whose outputs are the logits."""
    return [node for node in find_full_precision_nodes(graph) if node.op_type in _LAYERS]


def find_full_precision_nodes(graph: onnx.GraphProto) -> list[NodeProto]:
    """Returns the logit layers and all nodes after them: peaks, top-k, and the heads evaluated only at the peaks.

    In 8 bits, a box as wide as the image would have steps of a pixel or more, and tied logits would be adjacent peaks.
    """
    readers = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    is_trunk: dict[str, bool] = {}
    for node in reversed(graph.node):  # reverse topological order: readers come first
        consumers = [reader for name in node.output for reader in readers[name]]
        is_trunk[node.name] = any(reader.op_type in _LAYERS or is_trunk[reader.name] for reader in consumers)
    return [node for node in graph.node if not is_trunk[node.name]]


def find_normalisation(graph: onnx.GraphProto) -> list[NodeProto]:
    """Returns the nodes from `images` (uint8) to the normalised pixels, in order; [] if the graph has other ones."""
    chain: list[NodeProto] = []
    name = "images"
    for op_type in ("Transpose", "Cast", "Sub", "Div"):
        readers = [node for node in graph.node if name in node.input and node.op_type != "Shape"]
        if [node.op_type for node in readers] != [op_type]:
            return []
        chain += readers
        name = readers[0].output[0]
    return chain


def drop_unused_constants(graph: onnx.GraphProto) -> None:
    """Removes the initialisers that no node reads."""
    used = {name for node in graph.node for name in node.input}
    kept = [each for each in graph.initializer if each.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
