"""Metadata of exported models, stored in the ONNX file's `metadata_props`."""

import dataclasses
import json
from collections.abc import Mapping

from model.errors import UserError
from model.skeleton import NO_JOINTS, Skeleton

FORMAT_VERSION = 1
_KEY = "centernet"  # one JSON object under one key cannot collide with other tools' properties


class InvalidModel(UserError):
    """This service cannot run the model file; the message says why."""


@dataclasses.dataclass(frozen=True)
class Metadata:
    """Facts about a model that its ONNX file contains.

    `labels[i]` is the name of class i, and `label_ids[i]` its category id in the data set that the model was trained
    on. `input_height` and `input_width` are pixels. If `size_step` is a number, they are maxima, and the graph takes
    all heights and widths that are multiples of it. `stride` is input pixels per cell. `ap` and `ap50` are COCO's AP
    and AP50 in per cent on the photos that `export` was given, by default the validation split of `dataset`, or None if
    not measured; `keypoint_ap` is AP by object keypoint similarity for the joints of `skeleton`. `threshold` is the
    minimum score with the best F1 there. `recipe` contains the training settings that differ from the defaults.
    """

    name: str
    labels: tuple[str, ...]
    label_ids: tuple[int, ...]
    input_height: int
    input_width: int
    stride: int
    precision: str
    dataset: str
    ap: float | None
    ap50: float | None
    git_commit: str
    keypoint_ap: float | None = None
    skeleton: Skeleton = NO_JOINTS
    threshold: float | None = None
    size_step: int | None = None
    recipe: Mapping[str, object] = dataclasses.field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def to_properties(self) -> dict[str, str]:
        """Returns `metadata_props` that `from_properties` can read."""
        return {_KEY: json.dumps(dataclasses.asdict(self))}

    @classmethod
    def from_properties(cls, properties: Mapping[str, str]) -> "Metadata":
        """Reads an ONNX file's `metadata_props`; raises `InvalidModel` if missing, unreadable or of another version."""
        if _KEY not in properties:
            raise InvalidModel("it carries no metadata: export it with `python -m training export`")
        try:
            facts = json.loads(properties[_KEY])
            version = facts.get("format_version")
            if version != FORMAT_VERSION:
                raise InvalidModel(
                    f"its format_version is {version!r} and this release reads {FORMAT_VERSION}: export it anew"
                )
            lists = {"labels": tuple(facts["labels"]), "label_ids": tuple(facts["label_ids"])}
            metadata = cls(**facts | lists | {"skeleton": Skeleton.from_json(facts.get("skeleton", {}))})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InvalidModel(f"its metadata cannot be read ({error}): export it anew") from error
        if len(metadata.labels) != len(metadata.label_ids) or not metadata.labels:
            raise InvalidModel("its metadata names no labels, or not one id for each: export it anew")
        return metadata
