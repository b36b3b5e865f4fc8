"""Builds responses: the JSON of detections, and model descriptions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from app.inference.models import Models
from app.inference.served_model import ServedModel
from app.pipeline import DetectionResult
from app.schemas import Label, ModelDescription, ModelList, Refusal, Size
from model.detector import Detections
from model.metadata import Metadata


def list_models(models: Models) -> ModelList:
    """Returns the response of `/models`."""
    refused = [Refusal(file=path.name, reason=reason) for path, reason in models.faults.items()]
    return ModelList(models=[describe_model(model) for model in models], refused=refused)


def describe_model(model: ServedModel) -> ModelDescription:
    """Returns the description of one model in `/models`."""
    metadata = model.detector.metadata
    return ModelDescription(
        name=metadata.name,
        provider=model.detector.provider,
        precision=metadata.precision,
        input=Size(width=metadata.input_width, height=metadata.input_height),
        shapes=[Size(width=width, height=height) for height, width in model.detector.shapes],
        dataset=metadata.dataset,
        threshold=model.threshold,
        max_detections=model.detector.max_detections,
        ap=metadata.ap,
        ap50=metadata.ap50,
        keypoint_ap=metadata.keypoint_ap,
        git_commit=metadata.git_commit,
        labels=[
            Label(label=label, label_id=label_id)
            for label, label_id in zip(metadata.labels, metadata.label_ids, strict=True)
        ],
        skeleton=metadata.skeleton,
        arrangement=model.arrangement,
    )


def describe_detections(metadata: Metadata, found: Detections) -> list[dict[str, Any]]:
    """Returns detections as plain values, with the fields of `schemas.Detection`."""
    detections: list[dict[str, Any]] = [
        {
            "label": metadata.labels[index],
            "label_id": metadata.label_ids[index],
            "score": score,
            "box": {"x_min": x1, "y_min": y1, "x_max": x2, "y_max": y2},
        }
        for (x1, y1, x2, y2), score, index in zip(
            _round(found.boxes_xyxy, 2), _round(found.scores, 4), found.labels.tolist(), strict=True
        )
    ]
    if found.keypoints is not None:
        keypoints = zip(_round(found.keypoints[..., :2], 2), _round(found.keypoints[..., 2], 4), strict=True)
        for detection, (points, scores) in zip(detections, keypoints, strict=True):
            detection["keypoints"] = [
                {"name": name, "x": x, "y": y, "score": score}
                for name, (x, y), score in zip(metadata.skeleton.joints, points, scores, strict=True)
            ]
    return detections


def _round(values: NDArray[np.float32], digits: int) -> list[Any]:
    rounded: list[Any] = values.astype(np.float64).round(digits).tolist()  # float32 would not print as short decimals
    return rounded


def encode_answer(metadata: Metadata, found: DetectionResult, total_seconds: float) -> bytes:
    """Returns an `Answer` as JSON, from plain values: pydantic models would cost more than the rest of the request."""
    timings = {
        "decode": found.decode_seconds,
        "queue": found.queue_seconds,
        "inference": found.inference_seconds,
        "total": total_seconds,
    }
    return to_json(
        {
            "model": metadata.name,
            "image": {"width": found.letterbox.photo_width, "height": found.letterbox.photo_height},
            "detections": describe_detections(metadata, found.detections),
            "timings_ms": {stage: round(seconds * 1000, 3) for stage, seconds in timings.items()},
        }
    )


def encode_answers(results: Sequence[bytes]) -> bytes:
    """Returns `Answers` as JSON, from results that are already JSON."""
    return b'{"results":[' + b",".join(results) + b"]}"
