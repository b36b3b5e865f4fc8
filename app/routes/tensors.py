"""The tensors of the Open Inference Protocol v2, in JSON and in its binary extension."""

import binascii
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, FailFast, Field, ValidationError, model_validator
from pydantic_core import to_json

from app.pipeline import DetectionResult, check_count
from app.requests.body import check_value_count
from app.requests.parameters import suggest
from app.settings import Settings
from model.metadata import Metadata

Array = NDArray[Any]
Name = Annotated[str, Field(max_length=100)]

_MAX_LENGTH_DIGITS = 18
_MAX_JSON_VALUES = 2**20  # pixels of 590 x 590; larger images must be sent as files or as binary tensors
_MAX_TENSORS = 16  # per request, more than exist
_MAX_PARAMETERS = 100  # that are compared with the known ones, more than clients send


class InvalidTensor(Exception):
    """The request's tensors are malformed, or are not inputs of the model."""


def _wrap(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class TensorDescription(BaseModel):
    """An input or output tensor of the model; a dimension of -1 is variable."""

    name: str = Field(examples=["boxes"])
    datatype: str = Field(examples=["FP32"])
    shape: list[int] = Field(examples=[[-1, -1, 4]])


class Message(BaseModel):
    """A part of a request, in which null is the same as a missing field: KServe's and MLServer's models write it."""

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if value is not None}


class InputParameters(Message):
    """How an input is sent: as `binary_data_size` bytes after the JSON, or in the JSON if None."""

    binary_data_size: int | None = Field(None, ge=0)


class Input(Message):
    """An input tensor of the request."""

    name: Name = Field(examples=["image"])
    shape: Annotated[list[Annotated[int, Field(ge=1)]], FailFast()] = Field(max_length=4, examples=[[1]])
    datatype: Name = Field(examples=["BYTES"])
    parameters: InputParameters = InputParameters()
    data: list[Any] | None = Field(None, examples=[["/9j/4AAQSkZJRg…"]])


class OutputParameters(Message):
    """Whether an output is to be returned as binary data; None for the request's default."""

    binary_data: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_classification(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and fields.get("classification"):
            raise ValueError("classification is not available; the output names has the classes")
        return fields


class Output(Message):
    """An output tensor that the client requests."""

    name: Name = Field(examples=["boxes"])
    parameters: OutputParameters = OutputParameters()


class RequestParameters(Message):
    """Filters as in the query of `/detect`, and whether outputs are binary by default.

    Other parameters are ignored, as clients send those of other servers, unless they look like misspelt ones.
    """

    threshold: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    limit: int | None = Field(None, ge=1)
    labels: Annotated[list[str] | None, FailFast(), BeforeValidator(_wrap), Field(min_length=1)] = None
    binary_data_output: bool = False

    @model_validator(mode="before")
    @classmethod
    def _refuse_misspelt(cls, fields: Any) -> Any:
        for name in itertools.islice(fields, _MAX_PARAMETERS) if isinstance(fields, dict) else ():
            if name not in cls.model_fields and (hint := suggest(name, cls.model_fields)):
                raise ValueError(f"there is no parameter {name}; {hint}")
        return fields


class Inference(Message):
    """An inference request; without `outputs` all are returned."""

    id: str | None = None
    inputs: Annotated[list[Input], FailFast()] = Field(max_length=_MAX_TENSORS)
    outputs: Annotated[list[Output], FailFast()] = Field([], max_length=_MAX_TENSORS)
    parameters: RequestParameters = RequestParameters()


def describe_outputs(metadata: Metadata) -> dict[str, TensorDescription]:
    """Returns a model's output tensors by name."""
    outputs = [
        TensorDescription(name="boxes", datatype="FP32", shape=[-1, -1, 4]),
        TensorDescription(name="scores", datatype="FP32", shape=[-1, -1]),
        TensorDescription(name="labels", datatype="INT64", shape=[-1, -1]),
        TensorDescription(name="names", datatype="BYTES", shape=[-1, -1]),
    ]
    if joints := metadata.skeleton.joints:
        outputs.append(TensorDescription(name="keypoints", datatype="FP32", shape=[-1, -1, len(joints), 3]))
    return {output.name: output for output in outputs}


def read_inference(
    body: bytes, header_length: str | None, metadata: Metadata, settings: Settings
) -> tuple[Inference, list[bytes | NDArray[np.uint8]]]:
    """Returns the request and its images, files or RGB pixels (h, w, 3).

    The JSON is the whole body, or its first `header_length` bytes if a binary tensor follows.
    Raises `InvalidTensor`, `TooManyImages`, and `InvalidJson` if the JSON has too many values.
    """
    end = len(body) if header_length is None else _read_length(header_length, len(body))
    text = body[:end]
    check_value_count(text, _MAX_JSON_VALUES, "send the image as a file (BYTES) or as a binary tensor")
    try:
        inference = Inference.model_validate_json(text)
    except ValidationError as error:
        usage = "send JSON; binary tensors after it need Inference-Header-Content-Length"
        problems = (
            f"{'.'.join(map(str, each['loc'])) or usage}: {each['msg'].removeprefix('Value error, ')}"
            for each in error.errors()
        )
        raise InvalidTensor("; ".join(problems)) from error
    known = describe_outputs(metadata)
    unknown = [output.name for output in inference.outputs if output.name not in known]
    if unknown:
        raise InvalidTensor(f"there is no output {', '.join(unknown)}; there is {', '.join(known)}")
    if len({output.name for output in inference.outputs}) < len(inference.outputs):
        raise InvalidTensor("an output is requested twice")
    if len(inference.inputs) != 1:
        raise InvalidTensor("send one input, `image` or `pixels`")
    [tensor] = inference.inputs
    if tensor.datatype == "BYTES" and tensor.shape[1:] == [1]:  # as of MLServer's codecs, or with Triton's batch axis
        tensor.shape = tensor.shape[:1]
    check_count(tensor.shape[0] if len(tensor.shape) in (1, 4) else 1, settings)
    return inference, _read_images(tensor, body[end:])


def _read_length(text: str, maximum: int) -> int:
    if not text.isdecimal() or len(text) > _MAX_LENGTH_DIGITS or int(text) > maximum:
        raise InvalidTensor("Inference-Header-Content-Length is not a length within the body")
    return int(text)


def write_inference(
    inference: Inference, results: Sequence[DetectionResult], metadata: Metadata
) -> tuple[bytes, int | None]:
    """Returns the response's body, and the length of its JSON if binary tensors follow, else None.

    Images with fewer detections than others are padded with rows of score 0, label -1 and an empty name.
    """
    arrays, known = _stack(results, metadata), describe_outputs(metadata)
    binary = inference.parameters.binary_data_output
    outputs: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for wanted in inference.outputs or [Output(name=name) for name in arrays]:
        array = arrays[wanted.name]
        output: dict[str, Any] = {
            "name": wanted.name,
            "datatype": known[wanted.name].datatype,
            "shape": list(array.shape),
        }
        if binary if wanted.parameters.binary_data is None else wanted.parameters.binary_data:
            tail.append(_to_bytes(array))
            output["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            output["data"] = array.ravel().tolist()
        outputs.append(output)
    response: Mapping[str, Any] = {"model_name": metadata.name, "outputs": outputs}
    head = to_json(response if inference.id is None else {"id": inference.id, **response})
    return b"".join([head, *tail]), len(head) if tail else None


def _read_images(tensor: Input, tail: bytes) -> list[bytes | NDArray[np.uint8]]:
    size = tensor.parameters.binary_data_size
    if len(tail) != (size or 0) or (size is None) == (tensor.data is None):
        raise InvalidTensor(f"{tensor.name} needs data in the JSON, or binary_data_size bytes after it")
    if (tensor.name, tensor.datatype, len(tensor.shape)) == ("image", "BYTES", 1):
        files = _split(tail, tensor.shape[0]) if tensor.data is None else _decode_base64(tensor.data)
        if len(files) != tensor.shape[0]:
            raise InvalidTensor(f"image does not hold {tensor.shape[0]} elements, as its shape says")
        return list(files)
    if (tensor.name, tensor.datatype, tensor.shape[-1:]) == ("pixels", "UINT8", [3]) and len(tensor.shape) in (3, 4):
        pixels = np.frombuffer(tail, np.uint8) if tensor.data is None else _to_pixels(tensor.data)
        if pixels.size != math.prod(tensor.shape):
            raise InvalidTensor(f"pixels holds {pixels.size} values, not {math.prod(tensor.shape)}")
        return list(pixels.reshape(-1, *tensor.shape[-3:]))
    raise InvalidTensor("send `image`, BYTES of shape [n] or [n, 1], or `pixels`, UINT8 of shape [n, height, width, 3]")


def _split(tail: bytes, maximum: int) -> list[bytes]:
    """Splits elements that are each prefixed by their length (uint32, little-endian); stops at `maximum` + 1."""
    elements: list[bytes] = []
    at = 0
    while at < len(tail) and len(elements) <= maximum:
        end = at + 4 + int.from_bytes(tail[at : at + 4], "little")
        if at + 4 > len(tail) or end > len(tail):
            raise InvalidTensor("an element of image is longer than the body")
        elements.append(tail[at + 4 : end])
        at = end
    return elements


def _decode_base64(data: Sequence[Any]) -> list[bytes]:
    try:
        return [binascii.a2b_base64(element, strict_mode=True) for element in data]
    except (ValueError, TypeError) as error:
        raise InvalidTensor(f"in JSON, elements of image must be base64: {error}") from error


def _to_pixels(data: Sequence[Any]) -> NDArray[np.uint8]:
    try:
        values = np.asarray(data)
    except ValueError as error:
        raise InvalidTensor(f"the values of pixels do not form a rectangular array: {error}") from error
    if values.dtype.kind != "i" or values.min() < 0 or values.max() > 255:
        raise InvalidTensor("the values of pixels must be whole numbers from 0 to 255")
    return values.astype(np.uint8)


def _stack(results: Sequence[DetectionResult], metadata: Metadata) -> dict[str, Array]:
    images, rows = len(results), max(len(result.detections.scores) for result in results)
    boxes = np.zeros((images, rows, 4), "<f4")
    scores = np.zeros((images, rows), "<f4")
    indices = np.full((images, rows), -1, "<i8")
    keypoints = np.zeros((images, rows, len(metadata.skeleton.joints), 3), "<f4")
    for image, result in enumerate(results):
        found = result.detections
        count = len(found.scores)
        boxes[image, :count], scores[image, :count] = found.boxes_xyxy, found.scores
        indices[image, :count] = found.labels
        if found.keypoints is not None:
            keypoints[image, :count] = found.keypoints
    # index -1, of padding, selects the last element
    ids, names = np.array([*metadata.label_ids, -1], "<i8")[indices], np.array([*metadata.labels, ""], object)[indices]
    arrays = {"boxes": boxes, "scores": scores, "labels": ids, "names": names}
    return arrays | ({"keypoints": keypoints} if metadata.skeleton.joints else {})


def _to_bytes(array: Array) -> bytes:
    if array.dtype != object:
        return array.tobytes()
    elements = [name.encode() for name in array.ravel()]
    return b"".join(len(element).to_bytes(4, "little") + element for element in elements)
