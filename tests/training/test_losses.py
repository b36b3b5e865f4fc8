import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.data import default_collate

from model.network.cells import Cells, DenseMap
from model.network.codec import Targets, encode
from model.network.gaussian import IGNORED
from model.network.heads import HeadMaps, KeypointMaps
from tests.training.configs import small_config
from training.config import Config
from training.losses import (
    HEATMAP_LOSSES,
    Counts,
    count_targets,
    detection_losses,
    focal_loss,
    generalized_iou,
    quality_focal_loss,
)


def test_focal_loss_of_one_centre_and_one_neighbour() -> None:
    logits = torch.tensor([[[[0.0, 0.0, 0.0]]]])
    target = torch.tensor([[[[1.0, 0.5, 0.0]]]])
    # p = 0.5 everywhere: (1 - p)² log p at the centre, (1 - t)⁴ p² log(1 - p) elsewhere
    expected = math.log(2) * 0.25 * (1 + 0.5**4 + 1)
    assert focal_loss(logits, target).item() == pytest.approx(expected)


def test_quality_focal_loss_is_zero_if_probabilities_equal_targets() -> None:
    target = torch.tensor([[[[1.0, 0.75, 0.0]]]])
    exact = torch.logit(target.clamp(1e-6, 1 - 1e-6))
    assert quality_focal_loss(exact, target).item() == pytest.approx(0, abs=1e-5)
    zeros = torch.zeros_like(target)
    expected = math.log(2) * (0.5**2 + 0.25**2 + 0.5**2)
    assert quality_focal_loss(zeros, target).item() == pytest.approx(expected)


@pytest.mark.parametrize("heatmap_loss", HEATMAP_LOSSES.values(), ids=HEATMAP_LOSSES)
@pytest.mark.parametrize("logit", [-200.0, 200.0])
def test_heatmap_losses_stay_finite_for_any_logit(
    logit: float, heatmap_loss: Callable[[Tensor, Tensor], Tensor]
) -> None:
    logits = torch.full((1, 1, 2, 2), logit, requires_grad=True)
    target = torch.eye(2)[None, None]
    loss = heatmap_loss(logits, target)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None and logits.grad.isfinite().all()


@pytest.mark.parametrize("heatmap_loss", HEATMAP_LOSSES.values(), ids=HEATMAP_LOSSES)
def test_ignored_cells_have_no_gradient(heatmap_loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    logits = torch.tensor([[[[0.0, 3.0, -2.0]]]], requires_grad=True)
    heatmap_loss(logits, torch.tensor([[[[IGNORED, 1.0, IGNORED]]]])).backward()
    assert logits.grad is not None
    assert (logits.grad != 0).flatten().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ([0.0, 0.0, 2.0, 2.0], 1.0),
        ([1.0, 0.0, 3.0, 2.0], 2 / 6),
        ([4.0, 0.0, 6.0, 2.0], 0 - (12 - 8) / 12),
        ([2.0, 2.0, 0.0, 0.0], -(4 - 4) / 4),
    ],
)
def test_generalized_iou(other: list[float], expected: float) -> None:
    box = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    assert generalized_iou(box, torch.tensor([other])).item() == pytest.approx(expected, abs=1e-5)


def batch_of(boxes: Tensor, grid: int = 16) -> Targets:
    labels, is_ignored = (torch.zeros(len(boxes), dtype=dtype) for dtype in (torch.int64, torch.bool))
    return default_collate([encode(boxes, labels, is_ignored, torch.zeros(len(boxes), 0, 3), 1, (grid, grid))])  # type: ignore[no-any-return]


def head_maps(logits: Tensor, size: Tensor, offset: Tensor, keypoints: KeypointMaps | None = None) -> HeadMaps:
    return HeadMaps(logits, DenseMap(size), DenseMap(offset), keypoints)


def losses_of(maps: HeadMaps, targets: Targets, config: Config) -> dict[str, Tensor]:
    return detection_losses(maps, targets, config, Counts(*count_targets(targets, config).clamp(min=1)))


def test_dense_giou_loss_weights_objects_equally_and_is_zero_for_exact_boxes(shapes, tmp_path) -> None:  # type: ignore[no-untyped-def]
    targets = batch_of(torch.tensor([[0.0, 0.0, 8.0, 8.0], [16.0, 16.0, 60.0, 60.0]]))
    logits, config = torch.zeros(1, 1, 16, 16), small_config(shapes, tmp_path, giou_weight=1.0)
    assert losses_of(head_maps(logits, targets.size, targets.offset), targets, config)["giou"].item() == pytest.approx(
        0, abs=1e-4
    )
    # twice as wide and high around the same centre: IoU 1/4, and the enclosing box has no empty area
    doubled = head_maps(logits, targets.size * 2, targets.offset)
    assert losses_of(doubled, targets, config)["giou"].item() == pytest.approx(0.75, abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "is_dense"), [({}, True), ({"dense_boxes": False}, False), ({"giou_weight": 0.0}, False)]
)
def test_size_and_offset_losses_are_weighted_l1_at_positive_cells(settings, is_dense, shapes, tmp_path) -> None:  # type: ignore[no-untyped-def]
    targets = batch_of(torch.tensor([[0.0, 0.0, 8.0, 8.0], [16.0, 16.0, 60.0, 60.0]]))
    is_centre = targets.mask[:, None]
    size, offset = (each + torch.where(is_centre, off, 50.0) for each, off in ((targets.size, 3), (targets.offset, 1)))
    config = small_config(shapes, tmp_path, size_weight=1.0, offset_weight=1.0, **settings)
    terms = losses_of(head_maps(torch.zeros(1, 1, 16, 16), size, offset), targets, config)
    share = (targets.weight * targets.mask).sum().item() / 2 if is_dense else 1.0  # of an object's weight at its centre
    assert (share < 1) == is_dense
    # sum over two axes, mean over objects
    expected = [2 * (share * at_centre + (1 - share) * 50) for at_centre in (3, 1)]
    assert (terms["size"].item(), terms["offset"].item()) == pytest.approx(expected)


def test_boxes_are_read_at_a_constant_number_of_cells(shapes, tmp_path) -> None:  # type: ignore[no-untyped-def]
    # so that kernels and memory are reused by the next step
    cell_counts = []

    class CountingMap(DenseMap):
        def at(self, cells: Cells) -> Tensor:
            cell_counts.append(cells.row.numel())
            return super().at(cells)

    config, side = small_config(shapes, tmp_path), 64
    for boxes in ([[0.0, 0.0, 8.0, 8.0]], [[16.0, 16.0, 90.0, 90.0], [0.0, 0.0, 30.0, 50.0]]):
        targets = batch_of(torch.tensor(boxes), side)
        maps = HeadMaps(torch.zeros(1, 1, side, side), CountingMap(targets.size), CountingMap(targets.offset))
        assert losses_of(maps, targets, config)["giou"].item() == pytest.approx(0, abs=1e-4)
    assert len(cell_counts) == 4 and len(set(cell_counts)) == 1
    assert cell_counts[0] < side * side / 2


def test_images_without_objects_have_only_a_heatmap_loss(shapes, tmp_path) -> None:  # type: ignore[no-untyped-def]
    targets = batch_of(torch.zeros(0, 4))
    maps = head_maps(torch.zeros(1, 1, 16, 16), torch.zeros(1, 2, 16, 16), torch.zeros(1, 2, 16, 16))
    terms = losses_of(maps, targets, small_config(shapes, tmp_path))
    assert terms["heatmap"].item() == pytest.approx(256 * 0.25 * math.log(2))
    assert terms["size"] == terms["offset"] == terms["giou"] == 0


def test_giou_weight_of_zero_removes_the_giou_loss(shapes, tmp_path) -> None:  # type: ignore[no-untyped-def]
    targets = batch_of(torch.tensor([[0.0, 0.0, 8.0, 8.0]]))
    maps = head_maps(torch.zeros(1, 1, 16, 16), targets.size + 1, targets.offset)
    terms = losses_of(maps, targets, small_config(shapes, tmp_path, giou_weight=0.0))
    assert set(terms) == {"heatmap", "offset", "size"}
    assert terms["size"].item() == pytest.approx(0.2)


def test_losses_of_stacks_are_averaged(shapes, tmp_path) -> None:  # type: ignore[no-untyped-def]
    targets = batch_of(torch.tensor([[0.0, 0.0, 8.0, 8.0], [16.0, 16.0, 60.0, 60.0]]))
    config = small_config(shapes, tmp_path)
    one = head_maps(torch.zeros(1, 1, 16, 16), targets.size + 1, targets.offset)
    other = head_maps(torch.full((1, 1, 16, 16), -2.0), targets.size + 3, targets.offset + 1)
    first, last = (losses_of(maps, targets, config) for maps in (one, other))
    both = losses_of(other._replace(earlier=(one,)), targets, config)
    assert both.keys() == first.keys()
    for name, term in both.items():
        assert first[name] != last[name]
        assert term.item() == pytest.approx((first[name].item() + last[name].item()) / 2)


def test_keypoint_losses_are_means_over_keypoints_with_a_position(shapes, tmp_path) -> None:  # type: ignore[no-untyped-def]
    boxes = torch.tensor([[0.0, 0.0, 24.0, 24.0], [32.0, 32.0, 60.0, 60.0]])
    joints = torch.tensor([[[5.0, 5.0, 2], [20.0, 21.0, 1]], [[40.0, 41.0, 2], [0.0, 0.0, 0]]])
    labels, is_ignored = torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.bool)
    targets = default_collate([encode(boxes, labels, is_ignored, joints, 1, (16, 16))])
    wanted = targets.keypoints
    for dense in (True, False):
        config = small_config(shapes, tmp_path, keypoint_weight=1.0, dense_boxes=dense)
        assert count_targets(targets, config).tolist() == pytest.approx([2, 3, 3, 3])
        off = KeypointMaps(
            DenseMap(wanted.places + 3.0), torch.zeros_like(wanted.heatmap), DenseMap(wanted.offset + 0.25)
        )
        maps = head_maps(torch.zeros(1, 1, 16, 16), targets.size, targets.offset, off)
        terms = losses_of(maps, targets, config)
        assert terms["keypoint_places"].item() == pytest.approx(3.0, rel=1e-5)
        assert terms["keypoint_offset"].item() == pytest.approx(0.5)
        expected = focal_loss(off.heatmap, wanted.heatmap) / 3
        assert terms["keypoint_heatmap"].item() == pytest.approx(expected.item())
