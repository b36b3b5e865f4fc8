"""Boxes → training targets (`encode`), head maps → boxes (`decode`): inverses (arXiv 1904.07850, sections 3 and 4)."""

from typing import NamedTuple

import torch
from torch import Tensor

from model.network.cells import boxes_at, div_mod, grid_corners, unravel_cells
from model.network.gaussian import Radius, draw_gaussians, gaussian_radius, mark_ignored
from model.network.heads import STRIDE, HeadMaps
from model.network.keypoints import KeypointTargets, decode_keypoints, encode_keypoints
from model.network.peaks import fast_nms, keep_peaks

RADIUS_IOU = 0.3


class Targets(NamedTuple):
    """Targets for the head maps of one image, or of a batch with a leading batch dimension."""

    heatmap: Tensor  # (C, h, w), 1 at centres, Gaussians around them; `IGNORED` at cells without a loss
    size: Tensor  # (2, h, w), width and height in output pixels of the object that the cell belongs to
    offset: Tensor  # (2, h, w), from the cell's corner to that object's centre, in output pixels
    mask: Tensor  # (h, w), bool, true at centre cells
    weight: Tensor  # (h, w), the Gaussian of the object that the cell belongs to, scaled to a sum of 1 per object
    keypoints: KeypointTargets  # J = 0 if only boxes are learned

    def to(self, device: torch.device) -> "Targets":
        """Copies all tensors to `device` asynchronously."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        boxes = (move(self.heatmap), move(self.size), move(self.offset), move(self.mask), move(self.weight))
        return Targets(*boxes, KeypointTargets(*map(move, self.keypoints)))


class DecodedBatch(NamedTuple):
    """The best K peaks of every image, in descending order of score."""

    boxes: Tensor  # (B, K, 4), xyxy, input pixels
    scores: Tensor  # (B, K), 0..1
    labels: Tensor  # (B, K), int64
    keypoints: Tensor | None  # (B, K, J, 3), x and y in input pixels and a score, if the network predicts joints


def encode(
    boxes_xyxy: Tensor,
    labels: Tensor,
    is_ignored: Tensor,
    keypoints: Tensor,
    class_count: int,
    grid: tuple[int, int],
    radius_iou: float = RADIUS_IOU,
    radius_of: Radius = gaussian_radius,
    stride: int = STRIDE,
) -> Targets:
    """Builds one image's targets on a `grid` of (height, width) cells of `stride` input pixels.

    Shapes: boxes_xyxy (N, 4), input pixels, centres inside the image; labels (N,), int64; is_ignored (N,), bool;
    keypoints (N, J, 3), x and y in input pixels and a visibility: 1 or 2 for a joint with a position, 0 without one,
    -1 for all joints of an object that has no joint annotations. A cell inside several objects' Gaussians belongs to
    the object whose Gaussian is highest there, and to the smallest of these at a tie. An ignored box is not an object;
    its cells that no object reaches are `IGNORED` in its class's heatmap.
    """
    height, width = grid
    to_output = torch.tensor([stride, stride, 1.0])
    ignored_boxes, ignored_labels = boxes_xyxy[is_ignored] / stride, labels[is_ignored]
    boxes, labels, keypoints = boxes_xyxy[~is_ignored] / stride, labels[~is_ignored], keypoints[~is_ignored] / to_output
    by_area = (boxes[:, 2:] - boxes[:, :2]).prod(1).argsort()
    boxes, labels, keypoints = boxes[by_area], labels[by_area], keypoints[by_area]
    sizes = boxes[:, 2:] - boxes[:, :2]  # (N, 2)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    cells = centres.floor().clamp(min=torch.zeros(2), max=torch.tensor([width - 1.0, height - 1.0]))
    radius = radius_of(sizes[:, 0], sizes[:, 1], radius_iou).floor()

    heatmap, weight = torch.zeros(class_count, height, width), torch.zeros(grid)
    size, offset, mask = torch.zeros(2, height, width), torch.zeros(2, height, width), torch.zeros(grid).bool()
    owner = torch.full(grid, -1)
    if len(boxes):
        highest, nearest = draw_gaussians(heatmap, labels, cells, radius).max(0)  # (h, w)
        has_owner = highest > 0
        total = torch.zeros(len(boxes)).index_add_(0, nearest.flatten(), highest.flatten())
        weight = highest / total[nearest].clamp(min=1e-6)
        size = sizes[nearest].permute(2, 0, 1) * has_owner
        offset = (centres[nearest] - grid_corners(grid)).permute(2, 0, 1) * has_owner
        mask[cells[:, 1].long(), cells[:, 0].long()] = True
        owner = nearest.masked_fill(~has_owner, -1)
    for box, label in zip(ignored_boxes, ignored_labels.tolist(), strict=True):
        mark_ignored(heatmap[label], box[None])
    unannotated = torch.cat([ignored_boxes, boxes[(keypoints[..., 2] < 0).any(1)]])
    joints = encode_keypoints(keypoints, radius, owner, unannotated)
    return Targets(heatmap, size, offset, mask, weight, joints)


def decode(maps: HeadMaps, limit: int = 100, stride: int = STRIDE) -> DecodedBatch:
    """Returns the boxes of the `limit` best peaks of each image, over all classes; a peak is the maximum of 3x3 cells.

    Cells are `stride` input pixels wide and high. At a finer stride than the paper's, a large object may have several
    peaks: then NMS removes boxes that overlap a better one.
    """
    height, width = maps.heatmap.shape[2:]
    # sigmoid is monotonic: logits have the same peaks and order, so only the K best need it
    scores, indices = keep_peaks(maps.heatmap).flatten(1).topk(limit)  # (B, K)
    labels, cell_indices = div_mod(indices, height * width)
    cells = unravel_cells(cell_indices, width)
    boxes = boxes_at(cells, maps.size.at(cells).clamp(min=0), maps.offset.at(cells))
    if stride < STRIDE:
        scores, order = fast_nms(boxes, scores, labels).topk(limit)
        labels, boxes = labels.gather(1, order), boxes.gather(1, order[..., None].expand(-1, -1, 4))
        cells = cells._replace(row=cells.row.gather(1, order), column=cells.column.gather(1, order))
    keypoints = None
    if maps.keypoints is not None:
        joints = decode_keypoints(maps.keypoints, cells, boxes)
        keypoints = torch.cat([joints[..., :2] * stride, joints[..., 2:]], dim=-1)
    return DecodedBatch(boxes * stride, scores.sigmoid(), labels, keypoints)
