"""Error analysis of a detector at IoU 0.5: matching, precision-recall curves, threshold, confusions, calibration."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from model.detector import Detections
from training.datasets.dataset import Dataset, Photo
from training.evaluation.overlap import box_coverage, box_iou

MIN_OVERLAP = 0.5
FALSE_POSITIVE, IGNORED_DETECTION = -1, -2  # in place of an object's index, for detections that match no object
THRESHOLDS = np.arange(1, 100).astype(np.float32) / 100  # two decimals, as a user would write them
CALIBRATION_MIN_SCORE = 0.1  # lower scores are rarely used and would outnumber the others a hundredfold
_CALIBRATION_EDGES = np.arange(1, 11) / 10
_RECALLS = np.linspace(0, 1, 101)  # COCO's recall points


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Precision, recall and F1 over all classes at each of `THRESHOLDS`: (99,), 0 to 1."""

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]

    @property
    def best(self) -> int:
        """Index of the highest F1; the middle one of several equal maxima."""
        best = np.flatnonzero(self.f1 == self.f1.max())
        return int(best[len(best) // 2])


@dataclasses.dataclass(frozen=True)
class ClassDiagnosis:
    """One class: its number of objects, its results at the threshold, and its precision-recall curve."""

    label: str
    objects: int
    true_positives: int
    false_positives: int
    precision: NDArray[np.float64] | None  # (101,), interpolated at recalls 0, .01 ... 1; None without objects


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Detections in score bins of width 0.1 from `CALIBRATION_MIN_SCORE` up: (9,); the means of an empty bin are 0.

    A detection is correct if it matches an object of its class. `error` is the expected calibration error: the mean
    difference between a bin's score and its precision, weighted by its detections (Guo et al., arXiv 1706.04599,
    equation 3); None without detections.
    """

    counts: NDArray[np.int64]
    mean_score: NDArray[np.float64]
    precision: NDArray[np.float64]
    error: float | None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Matching result of one photo at the threshold."""

    detections: Detections  # N, without ignored ones
    matches: NDArray[np.int64]  # (N,), for each detection the index of the object it matches, or `FALSE_POSITIVE`
    is_missed: NDArray[np.bool_]  # (M,), for each object of the photo

    @property
    def true_positives(self) -> int:
        """Number of detections that match an object."""
        return int((self.matches >= 0).sum())

    @property
    def false_positives(self) -> int:
        """Number of detections that match no object."""
        return len(self.matches) - self.true_positives

    @property
    def false_negatives(self) -> int:
        """Number of objects without a detection."""
        return int(self.is_missed.sum())

    @property
    def f1(self) -> float | None:
        """F1 of this photo alone; None if it has neither objects nor detections."""
        total = 2 * self.true_positives + self.false_positives + self.false_negatives
        return 2 * self.true_positives / total if total else None


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Error analysis of a detector on a data set; `outcomes` are in the order of its photos."""

    sweep: Sweep
    threshold: float  # with the best F1
    classes: tuple[ClassDiagnosis, ...]  # in the order of the labels
    calibration: Calibration
    confusion: NDArray[np.int64]  # (C + 1, C + 1): true classes, then background x predicted classes, then missed
    outcomes: tuple[Outcome, ...]

    def rank_photos(self) -> list[int]:
        """Photo indices by falling F1; ties by number of objects and detections, falling above F1 0.5, else rising.

        So the head shows the fullest good photos and the tail the fullest bad ones. Photos without F1 are left out.
        """
        keys = {}
        for index, outcome in enumerate(self.outcomes):
            if outcome.f1 is not None:
                events = outcome.true_positives + outcome.false_positives + outcome.false_negatives
                keys[index] = (outcome.f1, events if outcome.f1 > 0.5 else -events)
        return sorted(keys, key=lambda index: keys[index], reverse=True)


def diagnose(dataset: Dataset, detections: list[Detections]) -> Diagnosis:
    """Analyses the errors of `detections`, one per photo of `dataset`, in its order."""
    matches = [match_detections(photo, found) for photo, found in zip(dataset.photos, detections, strict=True)]
    scores = np.concatenate([found.scores for found in detections])
    labels = np.concatenate([found.labels for found in detections])
    all_matches = np.concatenate(matches)
    counted = all_matches != IGNORED_DETECTION
    scores, labels, is_correct = scores[counted], labels[counted], all_matches[counted] >= 0

    true_labels = np.concatenate([photo.labels[~photo.is_ignored] for photo in dataset.photos])
    objects = np.bincount(true_labels, minlength=len(dataset.labels))
    sweep = _sweep(scores, is_correct, int(objects.sum()))
    threshold = THRESHOLDS[sweep.best]
    outcomes = tuple(
        _apply_threshold(photo, found, photo_matches, threshold)
        for photo, found, photo_matches in zip(dataset.photos, detections, matches, strict=True)
    )
    classes = []
    for index, label in enumerate(dataset.labels):
        of_class = labels == index
        positives = int((of_class & (scores >= threshold)).sum())
        true_positives = int(is_correct[of_class & (scores >= threshold)].sum())
        curve = None
        if objects[index]:
            curve = interpolate_precision(scores[of_class], is_correct[of_class], int(objects[index]))
        classes.append(
            ClassDiagnosis(label, int(objects[index]), true_positives, positives - true_positives, precision=curve)
        )
    return Diagnosis(
        sweep=sweep,
        threshold=round(float(threshold), 2),
        classes=tuple(classes),
        calibration=measure_calibration(scores, is_correct),
        confusion=build_confusion_matrix(dataset, outcomes),
        outcomes=outcomes,
    )


def match_detections(photo: Photo, detections: Detections) -> NDArray[np.int64]:
    """Returns for each detection the index of the object it matches, or `FALSE_POSITIVE` or `IGNORED_DETECTION`: (N,).

    As in COCO, detections are matched greedily by falling score, each with the unmatched object of its class that it
    overlaps most. An unmatched detection is ignored if at least half of it lies in an ignored region of its class.
    """
    same_class = detections.labels[:, None] == photo.labels
    overlaps = np.where(same_class & ~photo.is_ignored, box_iou(detections.boxes_xyxy, photo.boxes_xyxy), 0.0)
    coverage = np.where(same_class & photo.is_ignored, box_coverage(detections.boxes_xyxy, photo.boxes_xyxy), 0.0)
    matches = np.where((coverage >= MIN_OVERLAP).any(1), IGNORED_DETECTION, FALSE_POSITIVE)
    _match_greedily(overlaps, detections.scores, matches)
    return matches


def build_confusion_matrix(dataset: Dataset, outcomes: tuple[Outcome, ...]) -> NDArray[np.int64]:
    """Counts the objects of each class (rows) by the class predicted for them (columns): (C + 1, C + 1).

    The diagonal holds the true positives. Each false positive, by falling score, is then matched with the missed object
    of any class that it overlaps most. The last column counts objects that are still missed; the last row counts
    detections of background and duplicates.
    """
    background = len(dataset.labels)
    confusion = np.zeros((background + 1, background + 1), np.int64)
    for photo, outcome in zip(dataset.photos, outcomes, strict=True):
        matches = outcome.matches.copy()
        overlaps = box_iou(outcome.detections.boxes_xyxy, photo.boxes_xyxy)
        overlaps[outcome.matches >= 0] = 0
        overlaps[:, ~outcome.is_missed] = 0
        _match_greedily(overlaps, outcome.detections.scores, matches)
        true_labels = np.append(photo.labels, background)[np.where(matches >= 0, matches, len(photo.labels))]
        np.add.at(confusion, (true_labels, outcome.detections.labels), 1)
        is_missed = outcome.is_missed.copy()
        is_missed[matches[matches >= 0]] = False
        confusion[:background, background] += np.bincount(photo.labels[is_missed], minlength=background)
    return confusion


def interpolate_precision(
    scores: NDArray[np.float32], is_correct: NDArray[np.bool_], objects: int
) -> NDArray[np.float64]:
    """Returns one class's interpolated precision at COCO's recalls 0, .01 ... 1: (101,).

    It is 0 at recalls that are not reached. The mean is COCO's AP at this IoU.
    """
    recall, precision = precision_recall_curve(scores, is_correct, objects)
    curve: NDArray[np.float64] = np.append(precision, 0.0)[np.searchsorted(recall, _RECALLS)]
    return curve


def precision_recall_curve(
    scores: NDArray[np.float32], is_correct: NDArray[np.bool_], objects: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns recall (N,) after each detection by falling score, and interpolated precision (N,)."""
    true_positives = is_correct[np.argsort(-scores, kind="stable")].cumsum()
    precision = true_positives / np.arange(1, len(true_positives) + 1)
    return true_positives / objects, np.maximum.accumulate(precision[::-1])[::-1]


def measure_calibration(scores: NDArray[np.float32], is_correct: NDArray[np.bool_]) -> Calibration:
    """Compares scores (N,) with precision in score bins of width 0.1."""
    used = scores >= np.float32(CALIBRATION_MIN_SCORE)
    size = len(_CALIBRATION_EDGES) - 1
    bins = (np.digitize(scores[used], _CALIBRATION_EDGES.astype(np.float32)) - 1).clip(max=size - 1)
    counts = np.bincount(bins, minlength=size)
    mean_score = np.bincount(bins, scores[used], size) / counts.clip(min=1)
    precision = np.bincount(bins, is_correct[used], size) / counts.clip(min=1)
    difference = counts * np.abs(mean_score - precision)
    error = float(difference.sum() / counts.sum()) if counts.any() else None
    return Calibration(counts, mean_score, precision, error)


def _match_greedily(overlaps: NDArray[np.float64], scores: NDArray[np.float32], matches: NDArray[np.int64]) -> None:
    """Writes the object that each detection matches into `matches` (N,), by falling score.

    `overlaps` (N, M) is changed: an object's column becomes 0 once the object is matched.
    """
    order = np.argsort(-scores, kind="stable")
    for row in order[overlaps[order].max(1, initial=0) >= MIN_OVERLAP]:
        best = int(overlaps[row].argmax())
        if overlaps[row, best] >= MIN_OVERLAP:
            matches[row] = best
            overlaps[:, best] = 0


def _sweep(scores: NDArray[np.float32], is_correct: NDArray[np.bool_], objects: int) -> Sweep:
    positives = np.array([(scores >= threshold).sum() for threshold in THRESHOLDS])
    true_positives = np.array([is_correct[scores >= threshold].sum() for threshold in THRESHOLDS])
    f1 = 2 * true_positives / np.maximum(1, positives + objects)
    return Sweep(true_positives / positives.clip(min=1), true_positives / max(1, objects), f1)


def _apply_threshold(
    photo: Photo, detections: Detections, matches: NDArray[np.int64], threshold: np.float32
) -> Outcome:
    keep = (detections.scores >= threshold) & (matches != IGNORED_DETECTION)
    is_missed = ~photo.is_ignored
    is_missed[matches[keep & (matches >= 0)]] = False
    return Outcome(detections.select(keep), matches[keep], is_missed)
