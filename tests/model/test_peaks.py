import pytest
import torch
import torch.nn.functional as F

from model.network.peaks import keep_peaks


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
