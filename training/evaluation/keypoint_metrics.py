"""COCO keypoint AP, by object keypoint similarity (OKS; cocodataset.org/#keypoints-eval)."""

import dataclasses

from faster_coco_eval import COCO, COCOeval_faster

from model.detector import Detections
from training.datasets.dataset import Dataset
from training.evaluation.coco_content import to_coco

# COCO's standard deviations of annotators' clicks, in units of the square root of the object's area
_SIGMAS = {
    "nose": 0.026,
    "eye": 0.025,
    "ear": 0.035,
    "shoulder": 0.079,
    "elbow": 0.072,
    "wrist": 0.062,
    "hip": 0.107,
    "knee": 0.087,
    "ankle": 0.089,
}
_OTHER_SIGMA = 0.05


@dataclasses.dataclass(frozen=True)
class KeypointMetrics:
    """COCO keypoint AP, in per cent."""

    ap: float  # mean over OKS .50 to .95
    ap50: float
    ap75: float


def measure_keypoints(dataset: Dataset, detections: list[Detections]) -> KeypointMetrics:
    """Computes keypoint AP of `detections`, one per photo of `dataset`, in its order; at most 20 count per photo.

    Objects without annotated keypoints do not count. Keypoints with COCO's names use COCO's sigmas, others 0.05.
    """
    rows = [
        {
            "image_id": photo.id,
            "category_id": dataset.label_ids[label],
            "keypoints": keypoints.astype(float).ravel().tolist(),
            "score": float(score),
        }
        for photo, found in zip(dataset.photos, detections, strict=True)
        if found.keypoints is not None
        for keypoints, score, label in zip(found.keypoints, found.scores, found.labels.tolist(), strict=True)
        if label in dataset.labels_with_keypoints  # other classes have nothing to compare with
    ]
    if not rows:
        return KeypointMetrics(0.0, 0.0, 0.0)
    ground_truth = COCO(to_coco(dataset))
    sigmas = [choose_sigma(joint) for joint in dataset.skeleton.joints]
    evaluation = COCOeval_faster(
        ground_truth, ground_truth.loadRes(rows), "keypoints", print_function=lambda *_: None, kpt_oks_sigmas=sigmas
    )
    evaluation.run()
    ap, ap50, ap75 = (max(0.0, float(value)) * 100 for value in evaluation.stats[:3])
    return KeypointMetrics(ap, ap50, ap75)


def choose_sigma(joint: str) -> float:
    """Returns the OKS sigma of a keypoint, in units of the square root of the object's area."""
    return _SIGMAS.get(joint.lower().removeprefix("left_").removeprefix("right_"), _OTHER_SIGMA)
