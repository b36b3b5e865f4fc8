"""The one ONNX graph: pixels in, boxes out (see `Metadata` for what travels with it)."""

from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from model.codec import decode
from model.metadata import Metadata
from model.network import CenterNet


class DetectionGraph(nn.Module):
    """The network and its decoding as one function.

    Shapes: images (B, H, W, 3), uint8, RGB → boxes (B, K, 4), float32, xyxy, input pixels; scores (B, K), float32,
    falling; labels (B, K), int64.
    """

    def __init__(self, network: CenterNet, limit: int = 100) -> None:
        super().__init__()
        self.network = network
        self.limit = limit

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        boxes, scores, labels = decode(self.network(images), self.limit)
        return boxes, scores, labels


def save_onnx(network: CenterNet, metadata: Metadata, path: Path) -> None:
    """Writes the network as an ONNX file with a dynamic batch, single precision."""
    graph = DetectionGraph(network.eval()).to("cpu", memory_format=torch.contiguous_format)
    example = torch.zeros(2, metadata.input_height, metadata.input_width, 3, dtype=torch.uint8)
    program = torch.onnx.export(
        graph,
        (example,),
        input_names=["images"],
        output_names=["boxes", "scores", "labels"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    for key, value in metadata.to_properties().items():
        proto.metadata_props.add(key=key, value=value)
    proto.producer_name = "centernet-service"
    onnx.save(proto, path)
