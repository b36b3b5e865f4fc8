"""What an exported model says of itself, kept in the ONNX file's `metadata_props`. Free of torch."""

import dataclasses
import json
from collections.abc import Mapping

from model.skeleton import NO_JOINTS, Skeleton

FORMAT_VERSION = 1
_KEY = "centernet"  # one JSON object under one key: other tools' properties stay out of its way


class InvalidModel(Exception):
    """The file is no model that this service can run; the message says why."""


@dataclasses.dataclass(frozen=True)
class Metadata:
    """Facts that travel with the weights.

    `labels[i]` names the class that the graph calls i, and `label_ids[i]` is its category id in the data set that it
    was trained on. `input_height` and `input_width` are pixels. Where `size_step` is a number they are the most that
    photos are scaled to, and the graph takes all heights and widths that are multiples of it. `stride` is input pixels
    per cell. `ap` and `ap50` are COCO's figures in per cent on the validation split of `dataset`, or None where none
    was measured; `keypoint_ap` is that of the joints that `skeleton` names, by object keypoint similarity. `threshold`
    is the least score that serves best there, by F1. `recipe` is what its training set otherwise than by default.
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
        """Returns what `from_properties` reads back."""
        return {_KEY: json.dumps(dataclasses.asdict(self))}

    @classmethod
    def from_properties(cls, properties: Mapping[str, str]) -> "Metadata":
        """Reads an ONNX file's `metadata_props`; raises `InvalidModel` where they are missing or of another version."""
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
