"""Average precision of joints by object keypoint similarity (Lin et al., COCO; cocodataset.org/#keypoints-eval)."""

import dataclasses

from faster_coco_eval import COCO, COCOeval_faster

from model.detector import Detections
from training.coco_content import to_coco
from training.datasets.dataset import Dataset

# COCO's spread of annotators' clicks, in square roots of the object's area
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
    """COCO's figures of the joints in per cent."""

    ap: float  # mean over similarities of .50 to .95
    ap50: float
    ap75: float


def measure_keypoints(dataset: Dataset, detections: list[Detections]) -> KeypointMetrics:
    """Scores the joints of `detections`, one for each photo of `dataset` in its order, at most 20 a photo as COCO.

    An object without an annotated joint counts neither found nor missed. Joints whose names are COCO's have COCO's
    tolerance, others one of 0.05 times the square root of the object's area.
    """
    with_joints = {
        label for p in dataset.photos for label in p.labels[(p.keypoints[..., 2] > 0).any(1)].tolist()
    }  # of other classes nothing is known
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
        if label in with_joints
    ]
    if not rows:
        return KeypointMetrics(0.0, 0.0, 0.0)
    truth = COCO(to_coco(dataset))
    sigmas = [choose_sigma(joint) for joint in dataset.skeleton.joints]
    evaluation = COCOeval_faster(
        truth, truth.loadRes(rows), "keypoints", print_function=lambda *_: None, kpt_oks_sigmas=sigmas
    )
    evaluation.params.catIds = [dataset.label_ids[label] for label in sorted(with_joints)]
    evaluation.run()
    ap, ap50, ap75 = (max(0.0, float(value)) * 100 for value in evaluation.stats[:3])
    return KeypointMetrics(ap, ap50, ap75)


def choose_sigma(joint: str) -> float:
    """Returns a joint's tolerance, in square roots of its object's area."""
    return _SIGMAS.get(joint.lower().removeprefix("left_").removeprefix("right_"), _OTHER_SIGMA)
