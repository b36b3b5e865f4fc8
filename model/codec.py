"""Boxes → head maps (`encode`) and back (`decode`): each other's inverse (arXiv 1904.07850, sections 3 and 4)."""

from typing import NamedTuple

import torch
from torch import Tensor

from model.cells import boxes_at, corners_of, divide, find_cells
from model.gaussian import Radius, draw_gaussians, gaussian_radius, ignore
from model.heads import STRIDE, HeadMaps
from model.keypoints import KeypointTargets, decode_keypoints, encode_keypoints
from model.peaks import drop_repeats, keep_peaks

RADIUS_IOU = 0.3


class Targets(NamedTuple):
    """What the head maps should be; a leading batch dimension may be stacked in front."""

    heatmap: Tensor  # (C, h, w), 1 at centres, Gaussians around them; `IGNORED` where nothing is to be learned
    size: Tensor  # (2, h, w), width and height in output pixels of the object that the cell belongs to
    offset: Tensor  # (2, h, w), from the cell's corner to that object's centre, in output pixels
    mask: Tensor  # (h, w), bool, true at centre cells
    weight: Tensor  # (h, w), the Gaussian of the object that the cell belongs to, scaled to a sum of 1 per object
    keypoints: KeypointTargets  # of no joints where only boxes are learned

    def to(self, device: torch.device) -> "Targets":
        """Moves all to `device`, without waiting for it."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        boxes = (move(self.heatmap), move(self.size), move(self.offset), move(self.mask), move(self.weight))
        return Targets(*boxes, KeypointTargets(*map(move, self.keypoints)))


class Detections(NamedTuple):
    """The best K peaks of every image, by falling score."""

    boxes: Tensor  # (B, K, 4), xyxy, input pixels
    scores: Tensor  # (B, K), 0..1
    labels: Tensor  # (B, K), int64
    keypoints: Tensor | None  # (B, K, J, 3), x and y in input pixels and a score, where the network knows joints


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
    """Turns one image's boxes into targets on a `grid` of (height, width) cells of `stride` input pixels.

    Shapes: boxes_xyxy (N, 4), input pixels, centres inside the image; labels (N,), int64; is_ignored (N,), bool;
    keypoints (N, J, 3), x and y in input pixels and a visibility: 1 or 2 where the joint has a place, 0 where it has
    none, all -1 for an object whose joints nobody annotated. A cell that several objects' Gaussians reach belongs to
    the one whose Gaussian is highest there, at a tie to the smallest. What is ignored is no object, and nothing is
    learned about its class in its cells that no object reaches.
    """
    height, width = grid
    to_output = torch.tensor([stride, stride, 1.0])
    regions, regions_labels = boxes_xyxy[is_ignored] / stride, labels[is_ignored]
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
        belongs = highest > 0
        share = torch.zeros(len(boxes)).index_add_(0, nearest.flatten(), highest.flatten())
        weight = highest / share[nearest].clamp(min=1e-6)
        size = sizes[nearest].permute(2, 0, 1) * belongs
        offset = (centres[nearest] - corners_of(grid)).permute(2, 0, 1) * belongs
        mask[cells[:, 1].long(), cells[:, 0].long()] = True
        owner = nearest.masked_fill(~belongs, -1)
    for region, label in zip(regions, regions_labels.tolist(), strict=True):
        ignore(heatmap[label], region[None])
    unknown = torch.cat([regions, boxes[(keypoints[..., 2] < 0).any(1)]])
    joints = encode_keypoints(keypoints, radius, owner, unknown)
    return Targets(heatmap, size, offset, mask, weight, joints)


def decode(maps: HeadMaps, limit: int = 100, stride: int = STRIDE) -> Detections:
    """Takes the cells that are the highest of their 3x3 neighbourhood, and of these the best `limit` of all classes.

    Cells are `stride` input pixels wide and high. Where they are finer than the paper's, 3x3 of them are too few for a
    large object to have one peak alone: of boxes that are mostly the same, the best is taken.
    """
    height, width = maps.heatmap.shape[2:]
    # peaks and order are the same in logits, so that the sigmoid need only see the winners
    scores, indices = keep_peaks(maps.heatmap).flatten(1).topk(limit)  # (B, K)
    labels, in_each = divide(indices, height * width)
    cells = find_cells(in_each, width)
    boxes = boxes_at(cells, maps.size.at(cells).clamp(min=0), maps.offset.at(cells))
    if stride < STRIDE:
        scores, order = drop_repeats(boxes, scores, labels).topk(limit)
        labels, boxes = labels.gather(1, order), boxes.gather(1, order[..., None].expand(-1, -1, 4))
        cells = cells._replace(row=cells.row.gather(1, order), column=cells.column.gather(1, order))
    keypoints = None
    if maps.keypoints is not None:
        joints = decode_keypoints(maps.keypoints, cells, boxes)
        keypoints = torch.cat([joints[..., :2] * stride, joints[..., 2:]], dim=-1)
    return Detections(boxes * stride, scores.sigmoid(), labels, keypoints)
