from typing import Any

import pytest
import torch

from model.network.cells import DenseMap
from model.network.codec import Targets, decode
from model.network.codec import encode as encode_all
from model.network.gaussian import IGNORED, gaussian_radius, published_radius
from model.network.heads import HeadMaps


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
    return HeadMaps(logits[None], DenseMap(targets.size[None]), DenseMap(targets.offset[None]))


@pytest.mark.parametrize(("iou", "radius"), [(0.3, 2.261), (0.7, 0.817)])
def test_radius_of_a_ten_by_ten_box(iou: float, radius: float) -> None:
    ten = torch.tensor([10.0])
    assert gaussian_radius(ten, ten, iou).item() == pytest.approx(radius, abs=1e-3)


def test_the_papers_code_has_a_larger_radius() -> None:
    ten = torch.tensor([10.0])
    assert published_radius(ten, ten, 0.7).item() == pytest.approx(2.733, abs=1e-3)
    boxes, one_class = torch.tensor([[20.0, 20.0, 60.0, 60.0]]), torch.zeros(1, dtype=torch.int64)
    heatmap = encode(boxes, one_class, 1, (20, 20), radius_iou=0.7, radius_of=published_radius).heatmap
    assert (heatmap > 0).sum() == 5 * 5


@pytest.mark.parametrize("iou", [0.3, 0.5, 0.7])
def test_corners_moved_by_the_radius_still_overlap_by_the_threshold(iou: float) -> None:
    width, height = torch.tensor([40.0]), torch.tensor([25.0])
    r = gaussian_radius(width, height, iou).item()
    inside = (40 - 2 * r) * (25 - 2 * r) / (40 * 25)
    outside = 40 * 25 / ((40 + 2 * r) * (25 + 2 * r))
    shared = (40 - r) * (25 - r)
    shifted = shared / (2 * 40 * 25 - shared)
    assert min(inside, outside, shifted) == pytest.approx(iou, abs=1e-5)


def test_decoding_the_targets_gives_the_boxes_back() -> None:
    boxes = torch.tensor([[10.0, 20.5, 100.3, 90.0], [200.0, 200.0, 240.7, 300.0], [3.0, 300.0, 17.0, 309.0]])
    labels = torch.tensor([3, 1, 0])
    found = decode(as_maps(encode(boxes, labels, 4, (80, 80))), limit=3)
    order = found.labels[0].argsort(descending=True)
    torch.testing.assert_close(found.boxes[0][order], boxes, atol=1e-4, rtol=0)
    assert found.labels[0][order].tolist() == [3, 1, 0]
    assert found.scores.min() > 0.99


def test_a_finer_grid_separates_two_objects_that_share_a_cell_of_the_coarse_one() -> None:
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


def test_on_a_finer_grid_a_large_object_is_found_once() -> None:
    heatmap = torch.full((1, 2, 40, 40), -10.0)
    heatmap[0, 0, 20, 20], heatmap[0, 0, 20, 23], heatmap[0, 1, 20, 23], heatmap[0, 0, 20, 38] = 5.0, 4.0, 3.0, 2.0
    maps = HeadMaps(heatmap, DenseMap(torch.full((1, 2, 40, 40), 20.0)), DenseMap(torch.zeros(1, 2, 40, 40)))
    fine = decode(maps, limit=4, stride=2)
    torch.testing.assert_close(fine.scores[0], torch.tensor([5.0, 3.0, 2.0, -torch.inf]).sigmoid())
    assert fine.labels[0, :3].tolist() == [0, 1, 0]
    assert fine.boxes[0, :3].tolist() == [[20, 20, 60, 60], [26, 20, 66, 60], [56, 20, 96, 60]]
    coarse = decode(maps, limit=4)
    torch.testing.assert_close(coarse.scores[0], torch.tensor([5.0, 4.0, 3.0, 2.0]).sigmoid())


def test_decoding_works_for_batches_and_images_that_are_not_square() -> None:
    boxes = torch.tensor([[8.0, 8.0, 40.0, 24.0]])
    one = encode(boxes, torch.tensor([1]), 2, (16, 24))
    other = encode(boxes + 12, torch.tensor([0]), 2, (16, 24))
    heatmap, size, offset = (torch.stack(pair) for pair in zip(one[:3], other[:3], strict=True))
    found = decode(HeadMaps(torch.logit(heatmap, eps=1e-6), DenseMap(size), DenseMap(offset)), limit=1)
    torch.testing.assert_close(found.boxes[:, 0], torch.cat([boxes, boxes + 12]), atol=1e-4, rtol=0)
    assert found.labels[:, 0].tolist() == [1, 0]


def test_every_cell_inside_a_gaussian_has_the_targets_of_its_object() -> None:
    boxes = torch.tensor([[16.0, 16.0, 80.0, 80.0]])
    targets = encode(boxes, torch.tensor([0]), 1, (32, 32))
    rows, columns = targets.weight.nonzero(as_tuple=True)
    assert len(rows) > 9
    centres = torch.stack([columns, rows], 1) + targets.offset[:, rows, columns].T
    torch.testing.assert_close(centres, torch.full_like(centres, 12.0))
    assert (targets.size[:, rows, columns] == 16).all()
    assert targets.mask.nonzero().tolist() == [[12, 12]]


def test_weights_of_each_object_add_up_to_one() -> None:
    boxes = torch.tensor([[0.0, 0.0, 60.0, 60.0], [80.0, 80.0, 100.0, 90.0]])
    targets = encode(boxes, torch.tensor([0, 0]), 1, (32, 32))
    assert targets.weight[:16, :16].sum().item() == pytest.approx(1)
    assert targets.weight[16:, 16:].sum().item() == pytest.approx(1)


def test_heatmaps_of_one_class_merge_by_maximum_and_classes_stay_apart() -> None:
    boxes = torch.tensor([[0.0, 0.0, 64.0, 64.0], [8.0, 8.0, 72.0, 72.0], [8.0, 8.0, 72.0, 72.0]])
    both = encode(boxes[:2], torch.tensor([0, 0]), 2, (20, 20)).heatmap
    apart = encode(boxes[[0, 2]], torch.tensor([0, 1]), 2, (20, 20)).heatmap
    torch.testing.assert_close(both[0], apart.amax(0))
    assert (both == 1).nonzero().tolist() == [[0, 8, 8], [0, 10, 10]]


def test_the_smaller_of_two_objects_owns_a_shared_cell() -> None:
    boxes = torch.tensor([[0.0, 0.0, 80.0, 80.0], [36.0, 36.0, 44.0, 44.0]])
    targets = encode(boxes, torch.tensor([0, 0]), 1, (20, 20))
    assert targets.size[:, 10, 10].tolist() == [2.0, 2.0]


def test_an_image_without_objects_has_empty_targets() -> None:
    targets = encode(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 3, (8, 8))
    assert targets.heatmap.shape == (3, 8, 8)
    assert not targets.mask.any()
    assert targets.heatmap.sum() == targets.weight.sum() == 0


@pytest.mark.parametrize("objects", [0, 1])
def test_ignored_regions_are_marked_where_no_object_reaches(objects: int) -> None:
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


def test_neighbours_of_a_peak_are_not_detected() -> None:
    heatmap = torch.full((1, 1, 8, 8), -10.0)
    heatmap[0, 0, 4, 4], heatmap[0, 0, 4, 5], heatmap[0, 0, 4, 7] = 5.0, 4.0, 3.0
    zeros = DenseMap(torch.zeros(1, 2, 8, 8))
    found = decode(HeadMaps(heatmap, zeros, zeros), limit=2)
    torch.testing.assert_close(found.scores[0], torch.tensor([5.0, 3.0]).sigmoid())
    assert found.boxes[0].tolist() == [[16, 16, 16, 16], [28, 16, 28, 16]]


def test_a_negative_size_gives_an_empty_box() -> None:
    heatmap = torch.full((1, 1, 8, 8), -10.0)
    heatmap[0, 0, 4, 4] = 5.0
    size = DenseMap(torch.tensor([-3.0, 2.0])[None, :, None, None].expand(1, 2, 8, 8))
    found = decode(HeadMaps(heatmap, size, DenseMap(torch.zeros(1, 2, 8, 8))), limit=1)
    assert found.boxes[0].tolist() == [[16, 12, 16, 20]]
