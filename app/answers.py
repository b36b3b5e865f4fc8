"""What the server sends: the shapes that its documentation shows, and a detection's JSON."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from pydantic_core import to_json

from app.arrangement import Arrangement
from app.models import Models
from app.pipeline import Found
from app.served_model import ServedModel
from model.detector import Detections
from model.metadata import Metadata
from model.skeleton import Skeleton


class Size(BaseModel):
    """A picture's size in pixels, upright."""

    width: int = Field(examples=[640])
    height: int = Field(examples=[480])


class Box(BaseModel):
    """Edges in the picture's own pixels, from its upper left corner."""

    x_min: float = Field(examples=[131.25])
    y_min: float = Field(examples=[220.4])
    x_max: float = Field(examples=[310.07])
    y_max: float = Field(examples=[466.9])


class Keypoint(BaseModel):
    """One joint of an object, in the picture's own pixels; a low score says that it may be hidden or elsewhere."""

    name: str = Field(examples=["left_shoulder"])
    x: float = Field(examples=[201.5])
    y: float = Field(examples=[251.12])
    score: float = Field(ge=0, le=1, examples=[0.8012])


class Detection(BaseModel):
    """One object."""

    label: str = Field(examples=["dog"])
    label_id: int = Field(description="the label's id in the data set", examples=[18])
    score: float = Field(ge=0, le=1, examples=[0.9123])
    box: Box
    keypoints: list[Keypoint] | None = Field(
        None, description="its joints in the model's order; not there where the model knows none"
    )


class Timings(BaseModel):
    """Where the time went, in milliseconds."""

    decode: float = Field(examples=[3.412])
    queue: float = Field(examples=[0.208])
    inference: float = Field(examples=[21.07])
    total: float = Field(description="from the request's head to this answer", examples=[25.931])


class Answer(BaseModel):
    """What was found in one picture, the surest first."""

    model: str = Field(examples=["resnet18-coco-512"])
    image: Size
    detections: list[Detection]
    timings_ms: Timings


class Label(BaseModel):
    """One class that the model knows."""

    label: str = Field(examples=["dog"])
    label_id: int = Field(examples=[18])


class ModelDescription(BaseModel):
    """The model, as its file describes it, and where it runs. `ap`, `ap50` and `keypoint_ap` are COCO's."""

    name: str = Field(examples=["resnet18-coco-512"])
    provider: str = Field(examples=["cpu"])
    precision: str = Field(examples=["fp32"])
    input: Size = Field(description="what a photo is scaled to fit into")
    shapes: list[Size] = Field(description="what photos are computed in: the smallest that holds the scaled photo")
    dataset: str = Field(examples=["COCO 2017"])
    threshold: float = Field(description="least score of what is answered, unless a request says otherwise")
    ap: float | None
    ap50: float | None
    keypoint_ap: float | None
    git_commit: str
    labels: list[Label]
    skeleton: Skeleton = Field(description="the joints that it finds, and the pairs of them that a line connects")
    arrangement: Arrangement | None = Field(None, description="how it is run; not there while it is warmed up")


class Refusal(BaseModel):
    """A model file that could not be loaded."""

    file: str = Field(examples=["new.onnx"])
    reason: str


class ModelList(BaseModel):
    """Everything that is served; the first is used where a request names none. And what could not be loaded."""

    models: list[ModelDescription]
    refused: list[Refusal]


class Health(BaseModel):
    """How the server is."""

    status: str = Field(examples=["ready"])


class Problem(BaseModel):
    """Why a request was refused (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str = Field("", description="as in the header X-Request-ID; empty where there was no request")


class Refused(Exception):
    """A picture or a request was refused: `problem` says why, `reason` in one word."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.title}: {problem.detail}")
        self.problem = problem
        self.reason = problem.type.rpartition("#")[2]


class Answers(BaseModel):
    """What was found in each of several pictures, in their order, or why one was refused."""

    results: list[Answer | Problem]


def list_models(models: Models) -> ModelList:
    """Returns what `/models` says."""
    refused = [Refusal(file=path.name, reason=reason) for path, reason in models.faults.items()]
    return ModelList(models=[describe_model(model) for model in models], refused=refused)


def describe_model(model: ServedModel) -> ModelDescription:
    """Returns what `/models` says of one."""
    metadata = model.detector.metadata
    return ModelDescription(
        name=metadata.name,
        provider=model.detector.provider,
        precision=metadata.precision,
        input=Size(width=metadata.input_width, height=metadata.input_height),
        shapes=[Size(width=width, height=height) for height, width in model.detector.shapes],
        dataset=metadata.dataset,
        threshold=model.threshold,
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
    """Returns what a `Detection` holds, as plain values."""
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
        every = zip(_round(found.keypoints[..., :2], 2), _round(found.keypoints[..., 2], 4), strict=True)
        for detection, (points, scores) in zip(detections, every, strict=True):
            detection["keypoints"] = [
                {"name": name, "x": x, "y": y, "score": score}
                for name, (x, y), score in zip(metadata.skeleton.joints, points, scores, strict=True)
            ]
    return detections


def _round(values: NDArray[np.float32], digits: int) -> list[Any]:
    rounded: list[Any] = values.astype(np.float64).round(digits).tolist()  # of float32, decimals would be long again
    return rounded


def encode_answer(metadata: Metadata, found: Found, total_seconds: float) -> bytes:
    """Returns an `Answer` as JSON; built of plain values, since models would cost more than the rest of the request."""
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
    """Returns `Answers` as JSON, of results that are JSON already."""
    return b'{"results":[' + b",".join(results) + b"]}"
