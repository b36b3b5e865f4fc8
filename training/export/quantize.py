"""Static int8 quantisation for CPUs: 8-bit activations, calibrated on photos, and 8-bit weights per channel.

ONNX Runtime's quantiser inserts pairs of QuantizeLinear and DequantizeLinear (QDQ), which ONNX Runtime fuses into
integer kernels when it loads the model.
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
from training.export.stem import remove_input_quantisation, unify_normalisation
from training.export.trunk import find_full_precision_nodes, find_logit_layers, fold_constants

# operators with an integer kernel on the CPU. Without the activation functions a convolution's output would be
# quantised over its whole range, most of which ReLU6 clips (measured: 4 AP50)
_ACTIVATIONS = ["Clip", "Relu"]
_OPERATORS = ["Conv", "Add", "MaxPool", "Resize", "Slice", "Concat", *_ACTIVATIONS]
UNQUANTIZED_LAYERS = ("ConvTranspose", "DeformConv")  # operators of layers without such a kernel
_RANKING_PHOTOS = 8

Array = NDArray[Any]


class Quantizer:
    """Builds int8 graphs of `proto`, a float32 one, calibrated on `canvases` (n, H, W, 3), uint8, RGB.

    `layers` are the names of the convolutions that can be quantised. The heatmaps' last layers and everything after
    them always stay in float32.
    """

    def __init__(self, proto: onnx.ModelProto, canvases: Sequence[NDArray[np.uint8]]) -> None:
        self._float = fold_constants(proto)
        self._canvases = canvases
        graph = self._float.graph
        self._bytes = unify_normalisation(graph)
        self._overrides = _limit_weight_ranges(graph)
        if self._bytes:
            pixels, scale, zero = self._bytes
            parameters = {"scale": np.array(scale, np.float32), "zero_point": np.array(zero, np.uint8)}
            self._overrides[pixels] = [parameters]
        exact = {node.name for node in find_full_precision_nodes(graph)}
        # integer tensors hold shapes
        integers = {each.name for each in graph.value_info if each.type.tensor_type.elem_type != TensorProto.FLOAT}
        self._not_feature_maps = {each.name for each in graph.initializer} | integers | {""}
        self._nodes = [
            node
            for node in graph.node
            if node.op_type in _OPERATORS and node.output[0] not in integers and node.name not in exact
        ]
        self._convolutions = {node.name: node for node in self._nodes if node.op_type == "Conv"}
        self.layers = list(self._convolutions)
        self._ranges, self._means = self._calibrate()

    def build(self, float_layers: Collection[str] = ()) -> onnx.ModelProto:
        """Builds the int8 graph; `float_layers`, and operators that only these consume, stay in float32."""
        convolutions = {name: node for name, node in self._convolutions.items() if name not in float_layers}
        outputs = {name for node in convolutions.values() for name in node.output}
        chosen: list[NodeProto] = []
        for node in reversed(self._nodes):
            is_read = any(set(node.output) & set(reader.input) for reader in chosen)
            is_fused = node.op_type in _ACTIVATIONS and node.input[0] in outputs
            if node.name in convolutions or (node.name not in self._convolutions and (is_read or is_fused)):
                chosen.append(node)
        return self._quantize([node.name for node in chosen])

    def rank_layers(self) -> list[str]:
        """Returns `layers` by falling error of the heatmap logits when that layer alone is int8.

        Boxes and heatmaps share a feature map, so this error indicates the error of the boxes too.
        """
        logits = [node.output[0] for node in find_logit_layers(self._float.graph)]
        canvases = self._canvases[:_RANKING_PHOTOS]
        expected = capture_tensors(self._float, logits, canvases)
        errors = {}
        for layer, node in self._convolutions.items():
            activations = [
                each.name for each in self._nodes if each.op_type in _ACTIVATIONS and node.output[0] in each.input
            ]
            found = capture_tensors(self._quantize([layer, *activations]), logits, canvases)
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
        """Measures the range of each tensor, and the mean of each input channel of each convolution: (C,)."""
        model = onnx.ModelProto()
        model.CopyFrom(self._float)
        graph = model.graph
        names = sorted({name for node in self._nodes for name in (*node.input, *node.output)} - self._not_feature_maps)
        inputs = sorted({node.input[0] for node in self._convolutions.values()})
        graph.initializer.append(from_array(np.array([0, 2, 3]), "all_but_channels"))
        for name in names:
            graph.node.append(helper.make_node("ReduceMin", [name], [f"{name}_lowest"], keepdims=0))
            graph.node.append(helper.make_node("ReduceMax", [name], [f"{name}_highest"], keepdims=0))
        for name in inputs:
            node = helper.make_node("ReduceMean", [name, "all_but_channels"], [f"{name}_mean"], keepdims=0)
            graph.node.append(node)
        ranges_of = [f"{name}_{bound}" for bound in ("lowest", "highest") for name in names]
        found = capture_tensors(model, [*ranges_of, *(f"{name}_mean" for name in inputs)], self._canvases)
        lowest, highest, means = found[: len(names)], found[len(names) : 2 * len(names)], found[2 * len(names) :]
        ranges = {name: (np.min(low), np.max(high)) for name, low, high in zip(names, lowest, highest, strict=True)}
        means_of = {name: np.mean(mean, axis=0) for name, mean in zip(inputs, means, strict=True)}
        return TensorsData(CalibrationMethod.MinMax, ranges), means_of

    def _correct_biases(self, graph: onnx.GraphProto) -> None:
        """Subtracts from each bias the shift of the channel's mean by weight rounding (arXiv 1906.04721, 4.2)."""
        constants = {each.name: each for each in graph.initializer}
        floats = {each.name: each for each in self._float.graph.initializer}
        producers = {name: node for node in graph.node for name in node.output}
        for node in graph.node:
            is_quantized = node.name in self._convolutions and len(node.input) == 3 and node.input[1] in producers
            if not is_quantized:
                continue
            weight, weight_scale, _ = (to_array(constants[name]) for name in producers[node.input[1]].input)
            stored, bias_scale = (constants[name] for name in producers[node.input[2]].input[:2])
            exact_weight = to_array(floats[self._convolutions[node.name].input[1]])  # (O, I / groups, k, k)
            error = (weight * weight_scale.reshape(-1, 1, 1, 1) - exact_weight).sum((2, 3))  # (O, I / groups)
            mean = self._means[self._convolutions[node.name].input[0]]  # (I,)
            groups = len(mean) // error.shape[1]
            group_mean = np.repeat(mean.reshape(groups, -1), len(error) // groups, axis=0)  # (O, I / groups)
            shift = (error * group_mean).sum(1) / to_array(bias_scale)
            bias = (to_array(stored) - np.round(shift)).astype(np.int32)
            stored.CopyFrom(from_array(bias, stored.name))


def _limit_weight_ranges(graph: onnx.GraphProto) -> dict[str, list[dict[str, Any]]]:
    """Returns per-channel weight ranges that avoid overflow on every CPU, by the names of the weights.

    Without VNNI an x86 CPU adds the products of two neighbouring weights in 16 bits: with activations up to 255 the
    weights may add up to at most 128. Depthwise convolutions use other kernels.
    """
    constants = {each.name: each for each in graph.initializer}
    limits = {}
    for node in graph.node:
        weight = to_array(constants[node.input[1]]) if node.op_type == "Conv" and node.input[1] in constants else None
        if weight is None or weight.shape[1] == 1:
            continue
        row = weight.transpose(0, 2, 3, 1).reshape(len(weight), -1)  # (O, k * k * I), in the order of the CPU kernels
        pairs = np.abs(row[:, 1:] + row[:, :-1]).max(1, initial=0)
        widest = np.maximum(np.abs(row).max(1), pairs).astype(np.float32)
        limits[node.input[1]] = [{"axis": 0, "rmin": -each, "rmax": each} for each in widest]
    return limits


def capture_tensors(
    model: onnx.ModelProto, names: Sequence[str], canvases: Sequence[NDArray[np.uint8]]
) -> list[tuple[Array, ...]]:
    """Runs `model` on each canvas and returns, for each name, the tensors of all canvases."""
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    known = {each.name for each in extended.graph.output}
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name not in known]
    extended.graph.output.extend(outputs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "extended.onnx")
        onnx.save(extended, path)
        session = open_session(path)
        rows = [session.run(list(names), {"images": canvas[None]}) for canvas in canvases]
    return list(zip(*rows, strict=True))
