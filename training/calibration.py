"""Makes scores mean how often they are right: Platt scaling, folded into the network at no cost."""

import math
from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from model.detector import Detections
from model.network import CenterNet
from training.datasets.dataset import Dataset
from training.diagnosis import NOT_COUNTED, match, measure_calibration

_LEAST_SCORE = 0.05  # of what is learned from: below it there are a hundred false alarms for every hit
_LEAST_HITS = 10
_ITERATIONS = 50


class Evidence(NamedTuple):
    """Detections that count, over a data set: (N,) each."""

    scores: NDArray[np.float32]
    is_hit: NDArray[np.bool_]
    photos: NDArray[np.int64]  # the index of the photo that each is in

    @classmethod
    def collect(cls, dataset: Dataset, detections: Sequence[Detections]) -> Self:
        """Matches `detections`, one for each photo of `dataset` in its order, with the objects."""
        matches = [match(photo, found) for photo, found in zip(dataset.photos, detections, strict=True)]
        match_of, scores = np.concatenate(matches), np.concatenate([found.scores for found in detections])
        photos = np.repeat(np.arange(len(matches)), [len(each) for each in matches])
        counted = match_of != NOT_COUNTED
        return cls(scores[counted], match_of[counted] >= 0, photos[counted])

    def of_photos(self, remainder: int) -> "Evidence":
        """Returns that of every other photo, from the first (0) or the second (1) on."""
        chosen = self.photos % 2 == remainder
        return Evidence(self.scores[chosen], self.is_hit[chosen], self.photos[chosen])


class Scaling(NamedTuple):
    """What becomes of a logit: slope * logit + intercept. The order of scores stays, and AP with it."""

    slope: float
    intercept: float

    def scale(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scores (N,) as a network finds them → calibrated ones (N,), in the same order."""
        logits = self.slope * _logits(scores) + self.intercept
        return np.asarray(1 / (1 + np.exp(-logits)), np.float32)

    @torch.no_grad()
    def fold_into(self, network: CenterNet) -> None:
        """Changes the heatmap head's last convolution so that its logits come out scaled."""
        last = network.heatmap_head[-1]
        assert isinstance(last, torch.nn.Conv2d) and last.bias is not None
        last.weight *= self.slope
        last.bias.mul_(self.slope).add_(self.intercept)


def fit_scaling(evidence: Evidence) -> Scaling | None:
    """Finds the scaling under which the hits are likeliest; None where there are too few, or scores tell nothing.

    Source: Platt, "Probabilistic outputs for support vector machines", 1999, with its targets a little off 0 and 1, so
    that what is told apart without fault is not scaled to infinity.
    """
    asked = evidence.scores >= np.float32(_LEAST_SCORE)
    is_hit = evidence.is_hit[asked]
    hits, alarms = int(is_hit.sum()), int((~is_hit).sum())
    if min(hits, alarms) < _LEAST_HITS:
        return None
    targets = np.where(is_hit, (hits + 1) / (hits + 2), 1 / (alarms + 2))
    inputs = np.stack([_logits(evidence.scores[asked]), np.ones(len(targets))], axis=1)  # (N, 2)
    scaling = np.array([1.0, 0.0])
    for _ in range(_ITERATIONS):  # Newton's method
        p = 1 / (1 + np.exp(-inputs @ scaling))
        gradient = inputs.T @ (p - targets)
        hessian = (inputs * (p * (1 - p))[:, None]).T @ inputs
        step = np.linalg.solve(hessian + 1e-9 * np.eye(2), gradient)
        scaling -= step
        if np.abs(step).max() < 1e-9:
            break
    slope, intercept = scaling.tolist()
    return Scaling(slope, intercept) if slope > 0 and math.isfinite(slope + intercept) else None


def measure_gain(evidence: Evidence) -> tuple[float, float] | None:
    """Returns the expected calibration error before and after, each half of the photos scaled by what the other taught.

    None where a half is too little to learn from.
    """
    halves = evidence.of_photos(0), evidence.of_photos(1)
    scalings = fit_scaling(halves[1]), fit_scaling(halves[0])
    if scalings[0] is None or scalings[1] is None:
        return None
    scaled = [scaling.scale(half.scores) for scaling, half in zip(scalings, halves, strict=True) if scaling]
    before = measure_calibration(evidence.scores, evidence.is_hit).error
    after = measure_calibration(np.concatenate(scaled), np.concatenate([half.is_hit for half in halves])).error
    return None if before is None or after is None else (before, after)


def _logits(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    p = scores.astype(np.float64).clip(1e-7, 1 - 1e-7)
    return np.asarray(np.log(p / (1 - p)))
