"""float32 graph → int8 for CPUs, calibrated on photos: 8-bit activations, 8-bit weights with a scale for each channel.

Static quantisation by ONNX Runtime's own tool, as pairs of QuantizeLinear and DequantizeLinear (QDQ), which become
integer kernels when a model is opened.
"""

import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper
from onnx.numpy_helper import from_array, to_array
from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, TensorsData

from model.session import open_session
from training.stem import remove_input_quantisation, unify_normalisation
from training.trunk import find_full_precision_nodes, find_logit_layers, fold_constants

# what has an integer kernel on the CPU; activations among them: one that is not named keeps its input's whole range,
# of which ReLU6 throws most away (measured: 4 AP50)
_ACTIVATIONS = ["Clip", "Relu"]
_OPERATORS = ["Conv", "Add", "MaxPool", "Resize", "Slice", "Concat", *_ACTIVATIONS]
_RANKED_BY = 8  # photos

Array = NDArray[Any]


class Quantizer:
    """Makes int8 graphs of `proto`, a float32 one; `canvases` (n, H, W, 3), uint8, RGB, are what it will see.

    `layers` are the names of the convolutions that it can quantise. The heatmaps' last layers and all behind them
    stay in float32 in any case.
    """

    def __init__(self, proto: onnx.ModelProto, canvases: Sequence[NDArray[np.uint8]]) -> None:
        self._float = fold_constants(proto)
        self._canvases = canvases
        graph = self._float.graph
        self._bytes = unify_normalisation(graph)
        self._overrides = _limit_weights(graph)
        if self._bytes:
            pixels, scale, zero = self._bytes
            parameters = {"scale": np.array(scale, np.float32), "zero_point": np.array(zero, np.uint8)}
            self._overrides[pixels] = [parameters]
        exact = {node.name for node in find_full_precision_nodes(graph)}
        # sizes are computed too, in integers
        sizes = {each.name for each in graph.value_info if each.type.tensor_type.elem_type != TensorProto.FLOAT}
        self._no_maps = {each.name for each in graph.initializer} | sizes | {""}
        self._nodes = [
            node
            for node in graph.node
            if node.op_type in _OPERATORS and node.output[0] not in sizes and node.name not in exact
        ]
        self._convolutions = {node.name: node for node in self._nodes if node.op_type == "Conv"}
        self.layers = list(self._convolutions)
        self._ranges, self._means = self._calibrate()

    def build(self, float_layers: Collection[str] = ()) -> onnx.ModelProto:
        """The graph in int8, but for those of `layers` that `float_layers` names, and what they alone read."""
        convolutions = {name: node for name, node in self._convolutions.items() if name not in float_layers}
        made = {name for node in convolutions.values() for name in node.output}
        chosen: list[NodeProto] = []
        for node in reversed(self._nodes):
            is_read = any(set(node.output) & set(reader.input) for reader in chosen)
            is_part = node.op_type in _ACTIVATIONS and node.input[0] in made
            if node.name in convolutions or (node.name not in self._convolutions and (is_read or is_part)):
                chosen.append(node)
        return self._quantize([node.name for node in chosen])

    def rank_layers(self) -> list[str]:
        """`layers`, first the one that by being int8 alone gives the heatmaps the largest error.

        Boxes are read off the map that the heatmaps are computed from, so that what harms those shows here too.
        """
        maps = [node.output[0] for node in find_logit_layers(self._float.graph)]
        canvases = self._canvases[:_RANKED_BY]
        expected = watch(self._float, maps, canvases)
        errors = {}
        for layer, node in self._convolutions.items():
            behind = [
                each.name for each in self._nodes if each.op_type in _ACTIVATIONS and node.output[0] in each.input
            ]
            found = watch(self._quantize([layer, *behind]), maps, canvases)
            errors[layer] = sum(
                float(((one - other) ** 2).mean() / (other.var() + 1e-12))
                for ones, others in zip(found, expected, strict=True)
                for one, other in zip(ones, others, strict=True)
            )
        return sorted(errors, key=errors.__getitem__, reverse=True)

    def _quantize(self, nodes: Sequence[str]) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(self._float)
        quantizer = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=self._ranges,
            nodes_to_quantize=nodes,
            nodes_to_exclude=[],
            op_types_to_quantize=_OPERATORS,
            extra_options={"TensorQuantOverrides": self._overrides},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        quantized: onnx.ModelProto = quantizer.model.model
        self._correct_biases(quantized.graph)
        if self._bytes:
            remove_input_quantisation(quantized.graph, self._bytes[0])
        return quantized

    def _calibrate(self) -> tuple[TensorsData, dict[str, Array]]:
        """The range of each tensor, and the mean of each channel of what each convolution reads: (C,)."""
        model = onnx.ModelProto()
        model.CopyFrom(self._float)
        graph = model.graph
        names = sorted({name for node in self._nodes for name in (*node.input, *node.output)} - self._no_maps)
        inputs = sorted({node.input[0] for node in self._convolutions.values()})
        graph.initializer.append(from_array(np.array([0, 2, 3]), "all_but_channels"))
        for name in names:
            graph.node.append(helper.make_node("ReduceMin", [name], [f"{name}_lowest"], keepdims=0))
            graph.node.append(helper.make_node("ReduceMax", [name], [f"{name}_highest"], keepdims=0))
        for name in inputs:
            node = helper.make_node("ReduceMean", [name, "all_but_channels"], [f"{name}_mean"], keepdims=0)
            graph.node.append(node)
        watched = [f"{name}_{what}" for what in ("lowest", "highest") for name in names]
        found = watch(model, [*watched, *(f"{name}_mean" for name in inputs)], self._canvases)
        lowest, highest, means = found[: len(names)], found[len(names) : 2 * len(names)], found[2 * len(names) :]
        ranges = {name: (np.min(low), np.max(high)) for name, low, high in zip(names, lowest, highest, strict=True)}
        means_of = {name: np.mean(mean, axis=0) for name, mean in zip(inputs, means, strict=True)}
        return TensorsData(CalibrationMethod.MinMax, ranges), means_of

    def _correct_biases(self, graph: onnx.GraphProto) -> None:
        """Takes from each bias what the rounding of the weights adds to the channel's mean (arXiv 1906.04721, 4.2)."""
        constants = {each.name: each for each in graph.initializer}
        floats = {each.name: each for each in self._float.graph.initializer}
        makers = {name: node for node in graph.node for name in node.output}
        for node in graph.node:
            is_quantized = node.name in self._convolutions and len(node.input) == 3 and node.input[1] in makers
            if not is_quantized:
                continue
            weight, weight_scale, _ = (to_array(constants[name]) for name in makers[node.input[1]].input)
            stored, bias_scale = (constants[name] for name in makers[node.input[2]].input[:2])
            whole = to_array(floats[self._convolutions[node.name].input[1]])  # (O, I / groups, k, k)
            gain = (weight * weight_scale.reshape(-1, 1, 1, 1) - whole).sum((2, 3))  # (O, I / groups)
            mean = self._means[self._convolutions[node.name].input[0]]  # (I,)
            groups = len(mean) // gain.shape[1]
            of_group = np.repeat(mean.reshape(groups, -1), len(gain) // groups, axis=0)  # (O, I / groups)
            shift = (gain * of_group).sum(1) / to_array(bias_scale)
            bias = (to_array(stored) - np.round(shift)).astype(np.int32)
            stored.CopyFrom(from_array(bias, stored.name))


def _limit_weights(graph: onnx.GraphProto) -> dict[str, list[dict[str, Any]]]:
    """Ranges of each channel's weights that no CPU overflows with, by the weights' names.

    Without VNNI an x86 CPU adds the products of two neighbours in 16 bits: with activations up to 255 their weights may
    together be 128 at most. Depthwise convolutions are computed otherwise.
    """
    constants = {each.name: each for each in graph.initializer}
    limits = {}
    for node in graph.node:
        weight = to_array(constants[node.input[1]]) if node.op_type == "Conv" and node.input[1] in constants else None
        if weight is None or weight.shape[1] == 1:
            continue
        row = weight.transpose(0, 2, 3, 1).reshape(len(weight), -1)  # (O, k * k * I), in the kernels' order
        pairs = np.abs(row[:, 1:] + row[:, :-1]).max(1, initial=0)
        widest = np.maximum(np.abs(row).max(1), pairs).astype(np.float32)
        limits[node.input[1]] = [{"axis": 0, "rmin": -each, "rmax": each} for each in widest]
    return limits


def watch(
    model: onnx.ModelProto, names: Sequence[str], canvases: Sequence[NDArray[np.uint8]]
) -> list[tuple[Array, ...]]:
    """The tensors of these names, each for every canvas in turn."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    known = {each.name for each in watched.graph.output}
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name not in known]
    watched.graph.output.extend(outputs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "watched.onnx")
        onnx.save(watched, path)
        session = open_session(path)
        rows = [session.run(list(names), {"images": canvas[None]}) for canvas in canvases]
    return list(zip(*rows, strict=True))
