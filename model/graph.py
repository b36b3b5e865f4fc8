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


class DetectionGraph(nn.Module):
    """The network and its decoding as one function.

    Shapes: images (B, H, W, 3), uint8, RGB → boxes (B, K, 4), float32, xyxy, input pixels; scores (B, K), float32,
    falling; labels (B, K), int64; where the network knows joints also keypoints (B, K, J, 3), float32, x and y in input
    pixels and a score.
    """

    def __init__(self, network: CenterNet, limit: int = 100) -> None:
        super().__init__()
        self.network = network
        self.limit = limit

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Finds the objects."""
        return tuple(each for each in decode(self.network(images), self.limit, self.network.stride) if each is not None)


def build_onnx(network: CenterNet, height: int, width: int) -> onnx.ModelProto:
    """The ONNX graph of `network` for inputs of `height` x `width` pixels and any batch, in single precision."""
    # the exporter says four times that torchvision's operators, of no use here, cannot be exported without torchvision
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    graph = DetectionGraph(network).cpu().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch's exporter uses what PyTorch deprecates
        program = torch.onnx.export(
            graph,
            (torch.zeros(2, height, width, 3, dtype=torch.uint8),),
            input_names=["images"],
            output_names=["boxes", "scores", "labels", *(["keypoints"] if network.joint_count else [])],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
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
