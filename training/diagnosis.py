"""Where a detector errs: matches, curves, the best threshold, confusions and calibration, all at an IoU of 0.5."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from model.detector import Detections
from training.datasets.dataset import Dataset, Photo
from training.overlap import box_coverage, box_iou

LEAST_OVERLAP = 0.5
FALSE_ALARM, NOT_COUNTED = -1, -2  # what a detection is that hits no object
THRESHOLDS = np.arange(1, 100).astype(np.float32) / 100  # as a user would write them
CALIBRATED_FROM = 0.1  # lower scores are asked for by nobody, and would outnumber the others a hundredfold
_CALIBRATION_EDGES = np.arange(1, 11) / 10
_RECALLS = np.linspace(0, 1, 101)  # COCO's


@dataclasses.dataclass(frozen=True)
class Sweep:
    """All classes together at each of `THRESHOLDS`: (99,), 0 to 1."""

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]

    @property
    def best(self) -> int:
        """Where F1 is highest; where it is so more than once, the middle one, furthest from where it falls."""
        best = np.flatnonzero(self.f1 == self.f1.max())
        return int(best[len(best) // 2])


@dataclasses.dataclass(frozen=True)
class ClassFigures:
    """One class: its objects in the data, and how it fares at the threshold."""

    label: str
    objects: int
    hits: int
    false_alarms: int
    precision: NDArray[np.float64] | None  # (101,), the best at a recall of 0, .01 ... 1 or more; None without objects


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Detections in bins of a tenth by score, from `CALIBRATED_FROM` on: (9,); where a bin is empty, its means are 0.

    A detection is right where it hits an object of its class. `error` is the expected calibration error, the mean
    distance of a bin's score from its share of right ones, weighted by its detections (Guo et al., arXiv 1706.04599,
    equation 3); None without detections.
    """

    counts: NDArray[np.int64]
    mean_score: NDArray[np.float64]
    share_right: NDArray[np.float64]
    error: float | None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One photo at the threshold."""

    found: Detections  # without what is not counted
    objects: NDArray[np.int64]  # (N,), for each detection the index of the object that it hits, or `FALSE_ALARM`
    is_missed: NDArray[np.bool_]  # (M,), for each object of the photo

    @property
    def hits(self) -> int:
        """How many detections hit an object."""
        return int((self.objects >= 0).sum())

    @property
    def false_alarms(self) -> int:
        """How many hit none."""
        return len(self.objects) - self.hits

    @property
    def misses(self) -> int:
        """How many objects none hits."""
        return int(self.is_missed.sum())

    @property
    def f1(self) -> float | None:
        """The photo's own F1; None where nothing is and nothing was found."""
        total = 2 * self.hits + self.false_alarms + self.misses
        return 2 * self.hits / total if total else None


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """A detector over a data set; `outcomes` in the order of its photos."""

    sweep: Sweep
    threshold: float  # that of the best F1
    classes: tuple[ClassFigures, ...]  # in the order of the labels
    calibration: Calibration
    confusion: NDArray[np.int64]  # (C + 1, C + 1): rows are objects, then none; columns what was found, then nothing
    outcomes: tuple[Outcome, ...]

    def rank_photos(self) -> list[int]:
        """Photos by falling F1, of equals the one with more objects first where it is above 0.5, last where below.

        So the head is what goes well at its richest, and the tail what goes wrong. Photos without F1 are left out.
        """
        keys = {}
        for index, outcome in enumerate(self.outcomes):
            if outcome.f1 is not None:
                events = outcome.hits + outcome.false_alarms + outcome.misses
                keys[index] = (outcome.f1, events if outcome.f1 > 0.5 else -events)
        return sorted(keys, key=lambda index: keys[index], reverse=True)


def diagnose(dataset: Dataset, detections: list[Detections]) -> Diagnosis:
    """Matches `detections`, one for each photo of `dataset` in its order, with its objects, and sums them up."""
    matches = [match(photo, found) for photo, found in zip(dataset.photos, detections, strict=True)]
    scores = np.concatenate([found.scores for found in detections])
    labels = np.concatenate([found.labels for found in detections])
    match_of = np.concatenate(matches)
    counted = match_of != NOT_COUNTED
    scores, labels, is_hit = scores[counted], labels[counted], match_of[counted] >= 0

    truth = np.concatenate([photo.labels[~photo.is_ignored] for photo in dataset.photos])
    objects = np.bincount(truth, minlength=len(dataset.labels))
    sweep = _sweep(scores, is_hit, int(objects.sum()))
    threshold = THRESHOLDS[sweep.best]
    outcomes = tuple(
        _judge(photo, found, of_photo, threshold)
        for photo, found, of_photo in zip(dataset.photos, detections, matches, strict=True)
    )
    classes = []
    for index, label in enumerate(dataset.labels):
        own = labels == index
        hits = int(is_hit[own & (scores >= threshold)].sum())
        alarms = int((own & (scores >= threshold)).sum()) - hits
        curve = trace_precision(scores[own], is_hit[own], int(objects[index])) if objects[index] else None
        classes.append(ClassFigures(label, int(objects[index]), hits, alarms, curve))
    return Diagnosis(
        sweep=sweep,
        threshold=round(float(threshold), 2),
        classes=tuple(classes),
        calibration=measure_calibration(scores, is_hit),
        confusion=count_confusions(dataset, outcomes),
        outcomes=outcomes,
    )


def match(photo: Photo, found: Detections) -> NDArray[np.int64]:
    """For each detection the index of the object that it hits, or `FALSE_ALARM` or `NOT_COUNTED`: (N,).

    As COCO matches: by falling score, each takes the object of its class that it overlaps most among those still free.
    One that gets none and lies at least by half in what is ignored of its class is not counted.
    """
    same_class = found.labels[:, None] == photo.labels
    overlaps = np.where(same_class & ~photo.is_ignored, box_iou(found.boxes_xyxy, photo.boxes_xyxy), 0.0)
    coverage = np.where(same_class & photo.is_ignored, box_coverage(found.boxes_xyxy, photo.boxes_xyxy), 0.0)
    matches = np.where((coverage >= LEAST_OVERLAP).any(1), NOT_COUNTED, FALSE_ALARM)
    _take_free(overlaps, found.scores, matches)
    return matches


def count_confusions(dataset: Dataset, outcomes: tuple[Outcome, ...]) -> NDArray[np.int64]:
    """Counts the objects of each class (rows) by what they were found as (columns): (C + 1, C + 1).

    Hits are the diagonal. Then each false alarm, by falling score, takes the missed object that it overlaps most, of
    whatever class. What is left over are objects that were missed, in the last column, and false alarms where there is
    nothing or where the object has been found already, in the last row.
    """
    none = len(dataset.labels)
    confusion = np.zeros((none + 1, none + 1), np.int64)
    for photo, outcome in zip(dataset.photos, outcomes, strict=True):
        taken = outcome.objects.copy()
        overlaps = box_iou(outcome.found.boxes_xyxy, photo.boxes_xyxy)
        overlaps[outcome.objects >= 0] = 0
        overlaps[:, ~outcome.is_missed] = 0
        _take_free(overlaps, outcome.found.scores, taken)
        true_labels = np.append(photo.labels, none)[np.where(taken >= 0, taken, len(photo.labels))]
        np.add.at(confusion, (true_labels, outcome.found.labels), 1)
        is_left = outcome.is_missed.copy()
        is_left[taken[taken >= 0]] = False
        confusion[:none, none] += np.bincount(photo.labels[is_left], minlength=none)
    return confusion


def trace_precision(scores: NDArray[np.float32], is_hit: NDArray[np.bool_], objects: int) -> NDArray[np.float64]:
    """One class's best precision at a recall of 0, .01 ... 1 or more, 0 where none is reached: (101,), COCO's points.

    Their mean is COCO's AP at this IoU.
    """
    recall, precision = precision_by_recall(scores, is_hit, objects)
    curve: NDArray[np.float64] = np.append(precision, 0.0)[np.searchsorted(recall, _RECALLS)]
    return curve


def precision_by_recall(
    scores: NDArray[np.float32], is_hit: NDArray[np.bool_], objects: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Recall with each further detection by falling score, and the best precision there or further on: (N,), (N,)."""
    hits = is_hit[np.argsort(-scores, kind="stable")].cumsum()
    precision = hits / np.arange(1, len(hits) + 1)
    return hits / objects, np.maximum.accumulate(precision[::-1])[::-1]


def measure_calibration(scores: NDArray[np.float32], is_hit: NDArray[np.bool_]) -> Calibration:
    """Compares scores (N,) with how often they are right, from `is_hit` (N,), in bins of a tenth."""
    asked = scores >= np.float32(CALIBRATED_FROM)
    size = len(_CALIBRATION_EDGES) - 1
    bins = (np.digitize(scores[asked], _CALIBRATION_EDGES.astype(np.float32)) - 1).clip(max=size - 1)
    counts = np.bincount(bins, minlength=size)
    mean_score = np.bincount(bins, scores[asked], size) / counts.clip(min=1)
    share_right = np.bincount(bins, is_hit[asked], size) / counts.clip(min=1)
    distance = counts * np.abs(mean_score - share_right)
    error = float(distance.sum() / counts.sum()) if counts.any() else None
    return Calibration(counts, mean_score, share_right, error)


def _take_free(overlaps: NDArray[np.float64], scores: NDArray[np.float32], matches: NDArray[np.int64]) -> None:
    """Writes into `matches` (N,) which of M objects each detection takes, by falling score; overlaps are (N, M)."""
    order = np.argsort(-scores, kind="stable")
    for row in order[overlaps[order].max(1, initial=0) >= LEAST_OVERLAP]:
        best = int(overlaps[row].argmax())
        if overlaps[row, best] >= LEAST_OVERLAP:
            matches[row] = best
            overlaps[:, best] = 0


def _sweep(scores: NDArray[np.float32], is_hit: NDArray[np.bool_], objects: int) -> Sweep:
    found = np.array([(scores >= threshold).sum() for threshold in THRESHOLDS])
    hits = np.array([is_hit[scores >= threshold].sum() for threshold in THRESHOLDS])
    f1 = 2 * hits / np.maximum(1, found + objects)
    return Sweep(hits / found.clip(min=1), hits / max(1, objects), f1)


def _judge(photo: Photo, found: Detections, matches: NDArray[np.int64], threshold: np.float32) -> Outcome:
    keep = (found.scores >= threshold) & (matches != NOT_COUNTED)
    is_missed = ~photo.is_ignored
    is_missed[matches[keep & (matches >= 0)]] = False
    return Outcome(found.select(keep), matches[keep], is_missed)
