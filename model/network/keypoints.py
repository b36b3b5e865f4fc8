"""Joints → keypoint targets (`encode_keypoints`), maps → joints (`decode_keypoints`): arXiv 1904.07850, section 4.2."""

from typing import NamedTuple

import torch
from torch import Tensor

from model.network.cells import Cells, grid_corners, unravel_cells
from model.network.gaussian import draw_gaussians, mark_ignored
from model.network.heads import KeypointMaps
from model.network.peaks import keep_peaks

_MAX_PEAKS = 100  # of each joint in an image
_MIN_SCORE = 0.1  # of a peak that a joint may snap to
_REACH = 0.3  # how far it may be from the peak, as a fraction of the longer side of its object's box


class KeypointTargets(NamedTuple):
    """Targets for the keypoint maps of one image, or of a batch with a leading batch dimension."""

    places: Tensor  # (2 * J, h, w), from the cell's corner to the joints (x, y) of its object, in output pixels
    is_known: Tensor  # (J, h, w), bool, whether that joint of the cell's object has a position
    heatmap: Tensor  # (J, h, w), 1 at joints, Gaussians around them; `IGNORED` at cells without a loss
    offset: Tensor  # (2, h, w), from the corner of a joint's cell to the joint, in output pixels
    mask: Tensor  # (h, w), bool, true at joints' cells


def encode_keypoints(keypoints: Tensor, radius: Tensor, owner: Tensor, unannotated_xyxy: Tensor) -> KeypointTargets:
    """Builds the keypoint targets of one image.

    Shapes: keypoints (N, J, 3), x and y in output pixels and a visibility: above 0 if the joint has a position; radius
    (N,), of each object's Gaussian and of its joints'; owner (h, w), int64, index of the object that a cell belongs to,
    -1 for none; unannotated_xyxy (M, 4), boxes in output pixels that may contain joints without annotations: their
    cells that no Gaussian reaches are `IGNORED`.
    """
    height, width = owner.shape
    if not len(keypoints):  # add a dummy object, which owns no cell, so that `owner` can index
        keypoints = torch.zeros(1, *keypoints.shape[1:])
    cells = keypoints[..., :2].floor()  # (N, J, 2)
    inside = ((cells >= 0) & (cells < torch.tensor([width, height]))).all(-1)
    has_position = (keypoints[..., 2] > 0) & inside  # (N, J)

    heatmap = torch.zeros(keypoints.shape[1], height, width)
    offset = torch.zeros(2, height, width)
    mask = torch.zeros(height, width, dtype=torch.bool)
    objects, joints = has_position.nonzero(as_tuple=True)
    at = cells[objects, joints]
    draw_gaussians(heatmap, joints, at, radius[objects])
    x, y = at.long().unbind(1)
    offset[:, y, x] = (keypoints[objects, joints, :2] - at).T
    mask[y, x] = True
    for plane in heatmap:
        mark_ignored(plane, unannotated_xyxy)

    index = owner.clamp(min=0)
    is_known = (has_position[index] & (owner >= 0)[..., None]).permute(2, 0, 1)
    places = (keypoints[index][..., :2] - grid_corners((height, width))[:, :, None]).flatten(2).permute(2, 0, 1)
    places = places * is_known.repeat_interleave(2, dim=0)
    return KeypointTargets(places, is_known, heatmap, offset, mask)


def decode_keypoints(maps: KeypointMaps, cells: Cells, boxes: Tensor) -> Tensor:
    """Decodes the joints of objects at cells (B, K) with boxes (B, K, 4), xyxy, output pixels.

    Each joint is at the position regressed from its object's cell, or snaps to the nearest peak of the joint's heatmap
    if there is one near enough and inside the box. Returns (B, K, J, 3): x and y in output pixels, and the heatmap's
    score there, 0 to 1.
    """
    height, width = maps.heatmap.shape[2:]
    places = maps.places.at(cells).view(*cells.row.shape, -1, 2) + cells.corner[..., None, :]  # (B, K, J, 2)
    x, y = places.unbind(-1)
    indices = x.floor().clamp(0, width - 1).long() + width * y.floor().clamp(0, height - 1).long()
    scores = maps.heatmap.flatten(2).gather(2, indices.transpose(1, 2)).transpose(1, 2).sigmoid()

    logits, peaks = keep_peaks(maps.heatmap).flatten(2).topk(min(_MAX_PEAKS, height * width))
    peak_scores = logits.sigmoid()  # (B, J, P)
    peak_cells = unravel_cells(peaks, width)
    peak_x, peak_y = (peak_cells.corner + maps.offset.at(peak_cells)).unbind(-1)

    all_x, all_y = peak_x[:, None], peak_y[:, None]  # (B, 1, J, P), to broadcast with (B, K, J, 1)
    distance = ((x[..., None] - all_x) ** 2 + (y[..., None] - all_y) ** 2).sqrt()
    left, top, right, bottom = boxes[..., None, None].unbind(2)  # (B, K, 1, 1)
    in_box = (all_x >= left) & (all_x <= right) & (all_y >= top) & (all_y <= bottom)
    reach = _REACH * torch.maximum(right - left, bottom - top)
    eligible = in_box & (peak_scores[:, None] > _MIN_SCORE) & (distance <= reach)
    nearest = distance.masked_fill(~eligible, torch.inf).argmin(-1)  # (B, K, J)
    snaps = eligible.gather(3, nearest[..., None]).squeeze(3)
    by_joint = nearest.transpose(1, 2)  # (B, J, K), to index peaks (B, J, P)
    snapped = (each.gather(2, by_joint).transpose(1, 2) for each in (peak_x, peak_y, peak_scores))
    regressed = (x, y, scores)
    return torch.stack([torch.where(snaps, *pair) for pair in zip(snapped, regressed, strict=True)], dim=-1)
