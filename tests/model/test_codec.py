from typing import Any

import pytest
import torch

from model.cells import WholeMap
from model.codec import Targets, decode
from model.codec import encode as encode_all
from model.gaussian import IGNORED, gaussian_radius, published_radius
from model.heads import HeadMaps


def encode(
    boxes: torch.Tensor,
    labels: torch.Tensor,
    class_count: int,
    grid: tuple[int, int],
    is_ignored: torch.Tensor | None = None,
    **grid_settings: Any,
) -> Targets:
    if is_ignored is None:
        is_ignored = torch.zeros(len(boxes), dtype=torch.bool)
    return encode_all(boxes, labels, is_ignored, torch.zeros(len(boxes), 0, 3), class_count, grid, **grid_settings)


def as_maps(targets: Targets) -> HeadMaps:
    logits = torch.logit(targets.heatmap.clamp(1e-6, 1 - 1e-6))
    return HeadMaps(logits[None], WholeMap(targets.size[None]), WholeMap(targets.offset[None]))


@pytest.mark.parametrize(("iou", "radius"), [(0.3, 2.261), (0.7, 0.817)])
def test_radius_of_a_ten_by_ten_box_is_the_published_one(iou: float, radius: float) -> None:
    ten = torch.tensor([10.0])
    assert gaussian_radius(ten, ten, iou).item() == pytest.approx(radius, abs=1e-3)


def test_radius_of_the_papers_code_is_larger() -> None:
    ten = torch.tensor([10.0])
    assert published_radius(ten, ten, 0.7).item() == pytest.approx(2.733, abs=1e-3)
    boxes, one_class = torch.tensor([[20.0, 20.0, 60.0, 60.0]]), torch.zeros(1, dtype=torch.int64)
    heatmap = encode(boxes, one_class, 1, (20, 20), radius_iou=0.7, radius_of=published_radius).heatmap
    assert (heatmap > 0).sum() == 5 * 5


@pytest.mark.parametrize("iou", [0.3, 0.5, 0.7])
def test_boxes_with_corners_moved_by_the_radius_reach_the_iou_threshold(iou: float) -> None:
    width, height = torch.tensor([40.0]), torch.tensor([25.0])
    r = gaussian_radius(width, height, iou).item()
    inside = (40 - 2 * r) * (25 - 2 * r) / (40 * 25)
    outside = 40 * 25 / ((40 + 2 * r) * (25 + 2 * r))
    shared = (40 - r) * (25 - r)
    shifted = shared / (2 * 40 * 25 - shared)
    assert min(inside, outside, shifted) == pytest.approx(iou, abs=1e-5)


def test_decoding_encoded_targets_returns_the_boxes() -> None:
    boxes = torch.tensor([[10.0, 20.5, 100.3, 90.0], [200.0, 200.0, 240.7, 300.0], [3.0, 300.0, 17.0, 309.0]])
    labels = torch.tensor([3, 1, 0])
    found = decode(as_maps(encode(boxes, labels, 4, (80, 80))), limit=3)
    order = found.labels[0].argsort(descending=True)
    torch.testing.assert_close(found.boxes[0][order], boxes, atol=1e-4, rtol=0)
    assert found.labels[0][order].tolist() == [3, 1, 0]
    assert found.scores.min() > 0.99


def test_stride_2_separates_objects_that_share_a_cell_at_stride_4() -> None:
    boxes = torch.tensor([[75.0, 75.0, 86.0, 86.0], [77.0, 77.0, 89.0, 89.0]])  # centres at 80.5 and 83
    labels = torch.zeros(2, dtype=torch.int64)
    coarse = decode(as_maps(encode(boxes, labels, 1, (40, 40))), limit=2)
    assert coarse.scores[0].tolist()[1] < 0.01
    fine = decode(
        as_maps(encode(boxes + torch.tensor([[0.0] * 4, [2.0] * 4]), labels, 1, (80, 80), stride=2)), 2, stride=2
    )
    assert fine.scores.min() > 0.99
    torch.testing.assert_close(
        fine.boxes[0].sort(0).values, boxes + torch.tensor([[0.0] * 4, [2.0] * 4]), atol=1e-4, rtol=0
    )


def test_stride_2_detects_a_large_object_once() -> None:
    heatmap = torch.full((1, 2, 40, 40), -10.0)
    heatmap[0, 0, 20, 20], heatmap[0, 0, 20, 23], heatmap[0, 1, 20, 23], heatmap[0, 0, 20, 38] = 5.0, 4.0, 3.0, 2.0
    maps = HeadMaps(heatmap, WholeMap(torch.full((1, 2, 40, 40), 20.0)), WholeMap(torch.zeros(1, 2, 40, 40)))
    fine = decode(maps, limit=4, stride=2)
    torch.testing.assert_close(fine.scores[0], torch.tensor([5.0, 3.0, 2.0, -torch.inf]).sigmoid())
    assert fine.labels[0, :3].tolist() == [0, 1, 0]
    assert fine.boxes[0, :3].tolist() == [[20, 20, 60, 60], [26, 20, 66, 60], [56, 20, 96, 60]]
    coarse = decode(maps, limit=4)
    torch.testing.assert_close(coarse.scores[0], torch.tensor([5.0, 4.0, 3.0, 2.0]).sigmoid())


def test_decoding_handles_batches_and_rectangular_images() -> None:
    boxes = torch.tensor([[8.0, 8.0, 40.0, 24.0]])
    one = encode(boxes, torch.tensor([1]), 2, (16, 24))
    other = encode(boxes + 12, torch.tensor([0]), 2, (16, 24))
    heatmap, size, offset = (torch.stack(pair) for pair in zip(one[:3], other[:3], strict=True))
    found = decode(HeadMaps(torch.logit(heatmap, eps=1e-6), WholeMap(size), WholeMap(offset)), limit=1)
    torch.testing.assert_close(found.boxes[:, 0], torch.cat([boxes, boxes + 12]), atol=1e-4, rtol=0)
    assert found.labels[:, 0].tolist() == [1, 0]


def test_every_cell_under_a_gaussian_has_its_objects_offset_and_size() -> None:
    boxes = torch.tensor([[16.0, 16.0, 80.0, 80.0]])
    targets = encode(boxes, torch.tensor([0]), 1, (32, 32))
    rows, columns = targets.weight.nonzero(as_tuple=True)
    assert len(rows) > 9
    centres = torch.stack([columns, rows], 1) + targets.offset[:, rows, columns].T
    torch.testing.assert_close(centres, torch.full_like(centres, 12.0))
    assert (targets.size[:, rows, columns] == 16).all()
    assert targets.mask.nonzero().tolist() == [[12, 12]]


def test_weights_of_each_object_sum_to_one() -> None:
    boxes = torch.tensor([[0.0, 0.0, 60.0, 60.0], [80.0, 80.0, 100.0, 90.0]])
    targets = encode(boxes, torch.tensor([0, 0]), 1, (32, 32))
    assert targets.weight[:16, :16].sum().item() == pytest.approx(1)
    assert targets.weight[16:, 16:].sum().item() == pytest.approx(1)


def test_gaussians_of_one_class_merge_by_maximum_and_classes_are_separate() -> None:
    boxes = torch.tensor([[0.0, 0.0, 64.0, 64.0], [8.0, 8.0, 72.0, 72.0], [8.0, 8.0, 72.0, 72.0]])
    both = encode(boxes[:2], torch.tensor([0, 0]), 2, (20, 20)).heatmap
    apart = encode(boxes[[0, 2]], torch.tensor([0, 1]), 2, (20, 20)).heatmap
    torch.testing.assert_close(both[0], apart.amax(0))
    assert (both == 1).nonzero().tolist() == [[0, 8, 8], [0, 10, 10]]


def test_cell_shared_by_two_objects_has_the_targets_of_the_smaller() -> None:
    boxes = torch.tensor([[0.0, 0.0, 80.0, 80.0], [36.0, 36.0, 44.0, 44.0]])
    targets = encode(boxes, torch.tensor([0, 0]), 1, (20, 20))
    assert targets.size[:, 10, 10].tolist() == [2.0, 2.0]


def test_an_image_without_objects_has_empty_targets() -> None:
    targets = encode(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 3, (8, 8))
    assert targets.heatmap.shape == (3, 8, 8)
    assert not targets.mask.any()
    assert targets.heatmap.sum() == targets.weight.sum() == 0


@pytest.mark.parametrize("objects", [0, 1])
def test_ignored_regions_are_marked_outside_of_gaussians(objects: int) -> None:
    boxes = torch.tensor([[8.0, 8.0, 33.0, 24.0], [0.0, 0.0, 40.0, 40.0]])
    is_ignored = torch.tensor([True, False])
    chosen = slice(0, 1 + objects)
    targets = encode(boxes[chosen], torch.tensor([1, 0])[chosen], 2, (16, 16), is_ignored[chosen])
    marked = (targets.heatmap[1] == IGNORED).nonzero()
    assert marked.amin(0).tolist() == [2, 2]
    assert marked.amax(0).tolist() == [5, 8]
    assert len(marked) == 4 * 7
    assert (targets.heatmap[0] >= 0).all()
    assert targets.mask.sum() == objects

    same_class = encode(boxes, torch.zeros(2, dtype=torch.int64), 1, (16, 16), is_ignored).heatmap[0]
    alone = encode(boxes[1:], torch.zeros(1, dtype=torch.int64), 1, (16, 16)).heatmap[0]
    torch.testing.assert_close(same_class.clamp(min=0), alone)


def test_neighbours_of_a_peak_are_suppressed() -> None:
    heatmap = torch.full((1, 1, 8, 8), -10.0)
    heatmap[0, 0, 4, 4], heatmap[0, 0, 4, 5], heatmap[0, 0, 4, 7] = 5.0, 4.0, 3.0
    zeros = WholeMap(torch.zeros(1, 2, 8, 8))
    found = decode(HeadMaps(heatmap, zeros, zeros), limit=2)
    torch.testing.assert_close(found.scores[0], torch.tensor([5.0, 3.0]).sigmoid())
    assert found.boxes[0].tolist() == [[16, 16, 16, 16], [28, 16, 28, 16]]
