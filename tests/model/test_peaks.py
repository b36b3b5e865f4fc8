import pytest
import torch
import torch.nn.functional as F

from model.network.peaks import fast_nms, keep_peaks


@pytest.mark.parametrize("steps", [1.0, 0.5, 1e-3])
def test_peaks_keep_their_logits_and_other_scores_are_zero(steps: float) -> None:
    """Coarse steps make ties: adjacent cells with equal logits are all peaks."""
    logits = (torch.randn(2, 3, 9, 14, generator=torch.Generator().manual_seed(0)) * 4 / steps).round() * steps
    is_peak = logits == F.max_pool2d(logits, 3, stride=1, padding=1)
    kept = keep_peaks(logits)
    assert (kept[is_peak] == logits[is_peak]).all()
    assert (kept[~is_peak].sigmoid() == 0).all()
    assert 0 < is_peak.sum() < logits.numel()


def test_the_smallest_difference_makes_a_peak() -> None:
    logits = torch.full((1, 1, 5, 5), -4.6)
    logits[0, 0, 2, 2] = torch.nextafter(torch.tensor(-4.6), torch.tensor(0.0))
    scores, cells = keep_peaks(logits).flatten().topk(2)
    assert (cells[0], scores[0]) == (12, logits[0, 0, 2, 2])
    around = keep_peaks(logits)[0, 0, 1:4, 1:4].sigmoid() > 0
    assert around.sum() == 1


@pytest.mark.parametrize(
    ("other", "label", "is_kept"),
    [
        ((0, 0, 10, 5.9), 0, True),
        ((0, 0, 10, 6.1), 0, False),
        ((0, 0, 10, 6.1), 1, True),
        ((100, 100, 110, 110), 0, True),  # beside and below
    ],
)
def test_a_box_is_suppressed_if_it_overlaps_a_better_one_of_its_class_by_more_than_the_threshold(
    other: tuple[float, ...], label: int, is_kept: bool
) -> None:
    boxes = torch.tensor([[[0, 0, 10, 10], other]])
    scores = fast_nms(boxes, torch.tensor([[2.0, 1.0]]), torch.tensor([[0, label]])).sigmoid()
    torch.testing.assert_close(scores, torch.tensor([[2.0, 1.0 if is_kept else -torch.inf]]).sigmoid())
