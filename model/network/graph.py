"""ONNX export: one graph from pixels to boxes, saved with its `Metadata`."""

import logging
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxscript import opset19
from torch import Tensor, nn

from model.metadata import Metadata
from model.network.centernet import CenterNet
from model.network.codec import decode

_MIN_SIZE = 64  # pixels: smaller images may have fewer cells than the top-k returns


class DetectionGraph(nn.Module):
    """The network and its decoding as one module.

    Shapes: images (B, H, W, 3), uint8, RGB, H and W multiples of the network's `size_step` → boxes (B, K, 4), float32,
    xyxy, input pixels; scores (B, K), float32, descending; labels (B, K), int64; if the network predicts joints also
    keypoints (B, K, J, 3), float32, x and y in input pixels and a score.
    """

    def __init__(self, network: CenterNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images → boxes, scores, labels, and keypoints if there are any."""
        return tuple(each for each in decode(self.network(images), stride=self.network.stride) if each is not None)


def build_onnx(network: CenterNet) -> onnx.ModelProto:
    """Exports `network` to ONNX in fp32, for any batch size and image sides of 64 pixels or more."""
    # the exporter warns four times that it cannot export torchvision's operators, none of which are used here
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    graph = DetectionGraph(network).cpu().eval()
    step = network.size_step
    rows, columns = (step * torch.export.Dim(name, min=-(-_MIN_SIZE // step)) for name in ("rows", "columns"))
    size = 4 * _MIN_SIZE // step * step  # any multiple of the step works
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the exporter itself uses deprecated PyTorch functions
        program = torch.onnx.export(
            graph,
            (torch.zeros(2, size, size + step, 3, dtype=torch.uint8),),
            input_names=["images"],
            output_names=["boxes", "scores", "labels", *(["keypoints"] if network.joint_count else [])],
            dynamic_shapes=({0: torch.export.Dim("batch"), 1: rows, 2: columns},),
            dynamo=True,
            external_data=False,
            custom_translation_table={torch.ops.centernet.deform_conv.default: _translate_deform_conv},
            verbose=False,
        )
    assert program is not None
    program.model.producer_name = "centernet-service"
    proto = program.model_proto
    for part in (proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        part.ClearField("metadata_props")  # the exporter's debug notes contain local file names
    return proto


def _translate_deform_conv(x: Any, weight: Any, offset: Any, bias: Any, mask: Any) -> Any:
    return opset19.DeformConv(x, weight, offset, bias, mask, pads=[weight.shape[-1] // 2] * 4)


def save_onnx(proto: onnx.ModelProto, metadata: Metadata, path: Path) -> None:
    """Saves the graph with its metadata."""
    onnx.helper.set_model_props(proto, metadata.to_properties())
    onnx.save(proto, path)
