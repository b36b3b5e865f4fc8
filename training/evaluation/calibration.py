"""Score calibration by Platt scaling, folded into the last layer of the heatmap head."""

import math
from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from model.detector import Detections
from model.network.centernet import CenterNet
from training.datasets.dataset import Dataset
from training.evaluation.diagnosis import IGNORED_DETECTION, match_detections, measure_calibration

_MIN_SCORE = 0.05  # of detections to fit: below it there are a hundred false positives for each true positive
_MIN_COUNT = 10  # of true and of false positives


class ScoredDetections(NamedTuple):
    """Scores of a data set's detections and whether they are correct, without ignored detections: (N,) each."""

    scores: NDArray[np.float32]
    is_correct: NDArray[np.bool_]
    photos: NDArray[np.int64]  # index of the photo

    @classmethod
    def collect(cls, dataset: Dataset, detections: Sequence[Detections]) -> Self:
        """Matches `detections`, one per photo of `dataset`, in its order, with the objects."""
        matches = [match_detections(photo, found) for photo, found in zip(dataset.photos, detections, strict=True)]
        all_matches, scores = np.concatenate(matches), np.concatenate([found.scores for found in detections])
        photos = np.repeat(np.arange(len(matches)), [len(each) for each in matches])
        counted = all_matches != IGNORED_DETECTION
        return cls(scores[counted], all_matches[counted] >= 0, photos[counted])

    def half(self, index: int) -> "ScoredDetections":
        """Returns the detections of the photos with even (0) or odd (1) indices."""
        chosen = self.photos % 2 == index
        return ScoredDetections(self.scores[chosen], self.is_correct[chosen], self.photos[chosen])


class PlattScaling(NamedTuple):
    """Maps a logit to slope * logit + intercept. The slope is positive: the order of scores, and so AP, is kept."""

    slope: float
    intercept: float

    def apply(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns calibrated scores (N,) of a network's scores (N,)."""
        logits = torch.from_numpy(self.slope * _logits(scores) + self.intercept)
        return np.asarray(logits.sigmoid().numpy(), np.float32)

    @torch.no_grad()
    def fold_into(self, network: CenterNet) -> None:
        """Applies the scaling to weights and bias of the heatmap head's last convolution, in place."""
        last = network.heatmap_head[-1]
        assert isinstance(last, torch.nn.Conv2d) and last.bias is not None
        last.weight *= self.slope
        last.bias.mul_(self.slope).add_(self.intercept)


def fit_platt_scaling(detections: ScoredDetections) -> PlattScaling | None:
    """Fits the scaling by maximum likelihood; None if there are too few detections or scores do not rank them.

    Source: Platt, "Probabilistic outputs for support vector machines", 1999. Its smoothed targets keep the slope finite
    where the classes are separable.
    """
    used = detections.scores >= np.float32(_MIN_SCORE)
    is_correct = detections.is_correct[used]
    positives, negatives = int(is_correct.sum()), int((~is_correct).sum())
    if min(positives, negatives) < _MIN_COUNT:
        return None
    logits = torch.from_numpy(_logits(detections.scores[used]))
    targets = torch.from_numpy(np.where(is_correct, (positives + 1) / (positives + 2), 1 / (negatives + 2)))
    scaling = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [scaling], max_iter=100, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def compute_loss() -> Tensor:
        optimizer.zero_grad()
        loss = binary_cross_entropy_with_logits(scaling[0] * logits + scaling[1], targets)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(compute_loss)  # type: ignore[no-untyped-call]
    slope, intercept = scaling.tolist()
    return PlattScaling(slope, intercept) if slope > 0 and math.isfinite(slope + intercept) else None


def cross_validate(detections: ScoredDetections) -> tuple[float, float] | None:
    """Returns the expected calibration error before and after scaling, by two-fold cross-validation over photos.

    None if the scaling cannot be fitted to one of the halves.
    """
    halves = detections.half(0), detections.half(1)
    scalings = fit_platt_scaling(halves[1]), fit_platt_scaling(halves[0])
    if scalings[0] is None or scalings[1] is None:
        return None
    scaled = [scaling.apply(half.scores) for scaling, half in zip(scalings, halves, strict=True) if scaling]
    before = measure_calibration(detections.scores, detections.is_correct).error
    after = measure_calibration(np.concatenate(scaled), np.concatenate([half.is_correct for half in halves])).error
    return None if before is None or after is None else (before, after)


def _logits(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    p = scores.astype(np.float64).clip(1e-7, 1 - 1e-7)
    return np.asarray(np.log(p / (1 - p)))
