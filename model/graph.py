"""The one ONNX graph: pixels in, boxes out (see `Metadata` for what travels with it)."""

import logging
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxscript import opset19
from torch import Tensor, nn

from model.codec import decode
from model.metadata import Metadata
from model.network import CenterNet

_LEAST_SIZE = 64  # pixels: a smaller picture may have fewer cells than a photo has detections


class DetectionGraph(nn.Module):
    """The network and its decoding as one function.

    Shapes: images (B, H, W, 3), uint8, RGB, H and W multiples of the network's `size_step` → boxes (B, K, 4), float32,
    xyxy, input pixels; scores (B, K), float32, falling; labels (B, K), int64; where the network knows joints also
    keypoints (B, K, J, 3), float32, x and y in input pixels and a score.
    """

    def __init__(self, network: CenterNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Finds the objects."""
        return tuple(each for each in decode(self.network(images), stride=self.network.stride) if each is not None)


def build_onnx(network: CenterNet) -> onnx.ModelProto:
    """The ONNX graph of `network`, in single precision, for any batch of pictures of 64 pixels or more each way."""
    # the exporter says four times that torchvision's operators, of no use here, cannot be exported without torchvision
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    graph = DetectionGraph(network).cpu().eval()
    step = network.size_step
    rows, columns = (step * torch.export.Dim(name, min=-(-_LEAST_SIZE // step)) for name in ("rows", "columns"))
    size = 4 * _LEAST_SIZE // step * step  # any would do
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch's exporter uses what PyTorch deprecates
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
        part.ClearField("metadata_props")  # the exporter's notes: file names of the machine that exported
    return proto


def _translate_deform_conv(x: Any, weight: Any, offset: Any, bias: Any, mask: Any) -> Any:
    return opset19.DeformConv(x, weight, offset, bias, mask, pads=[weight.shape[-1] // 2] * 4)


def save_onnx(proto: onnx.ModelProto, metadata: Metadata, path: Path) -> None:
    """Writes the graph with what is to be known of it."""
    onnx.helper.set_model_props(proto, metadata.to_properties())
    onnx.save(proto, path)
