import dataclasses
import json

import pytest

from model.metadata import InvalidModel, Metadata

METADATA = Metadata("tiny", ("cat", "dog"), (8, 12), 320, 416, 4, "fp32", "two photos", 31.5, None, "0123abc")


def test_metadata_survives_the_round_trip() -> None:
    assert Metadata.from_properties(METADATA.to_properties()) == METADATA


@pytest.mark.parametrize("version", [None, 0, 2, "1"])
def test_another_format_version_is_refused(version: object) -> None:
    facts = dataclasses.asdict(METADATA) | {"format_version": version}
    with pytest.raises(InvalidModel, match="format_version"):
        Metadata.from_properties({"centernet": json.dumps(facts)})


def test_a_file_without_metadata_is_refused() -> None:
    with pytest.raises(InvalidModel, match="carries no metadata"):
        Metadata.from_properties({"author": "somebody"})


@pytest.mark.parametrize("text", ["{", "[]", '{"format_version": 1}', '{"format_version": 1, "labels": 3}'])
def test_unreadable_metadata_is_refused(text: str) -> None:
    with pytest.raises(InvalidModel, match="export it anew"):
        Metadata.from_properties({"centernet": text})


def test_labels_without_ids_are_refused() -> None:
    with pytest.raises(InvalidModel, match="one id for each"):
        Metadata.from_properties(dataclasses.replace(METADATA, label_ids=(8,)).to_properties())
    with pytest.raises(InvalidModel, match="no labels"):
        Metadata.from_properties(dataclasses.replace(METADATA, labels=(), label_ids=()).to_properties())
