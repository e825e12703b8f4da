"""Dataclasses are made from plain values, as the inverse of `asdict`; messages name the wrong field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vadcli.errors import DocumentError
from vadcli.types.text import FieldError, document_errors, read_document, structure


class Colour(StrEnum):
    """Two colours."""

    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Point:
    """A nested part."""

    x: float
    y: float = 0.0


@dataclass(frozen=True)
class Sample:
    """A dataclass with each kind of field that files have."""

    name: str
    count: int = 0
    share: float = 0.5
    on: bool = False
    colour: Colour = Colour.RED
    gate: Literal["hard", "soft"] = "hard"
    size: tuple[int, int] | None = None
    points: tuple[Point, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)


def plain(value: Sample) -> Any:
    """Return the value as it is after it was written to JSON and read again."""
    return json.loads(json.dumps(asdict(value)))


@given(
    st.builds(
        Sample,
        name=st.text(),
        count=st.integers(),
        share=st.floats(allow_nan=False, allow_infinity=False),
        on=st.booleans(),
        colour=st.sampled_from(Colour),
        gate=st.sampled_from(["hard", "soft"]),
        size=st.none() | st.tuples(st.integers(), st.integers()),
        points=st.lists(st.builds(Point, x=st.integers(-9, 9).map(float), y=st.just(1.0)), max_size=3).map(tuple),
        more=st.dictionaries(st.text(), st.integers() | st.text(), max_size=2),
    )
)
def test_a_dataclass_survives_json(value: Sample) -> None:
    assert structure(Sample, plain(value)) == value


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "the file has no name"),
        ({"name": "a", "cuont": 1}, "the file has no key 'cuont'"),
        ({"name": 1}, "name is 1, not a text"),
        ({"name": "a", "count": True}, "count is true, not a whole number"),
        ({"name": "a", "share": float("nan")}, "share is NaN, not a number"),
        ({"name": "a", "colour": "green"}, 'colour is "green", not a Colour'),
        ({"name": "a", "gate": "off"}, 'gate is "off", not one of hard, soft'),
        ({"name": "a", "size": [1]}, "size has 1 values, not 2"),
        ({"name": "a", "points": [{"x": "left"}]}, 'points.x is "left", not a number'),
        ({"name": "a", "more": 3}, "more is 3, not a table"),
        ([], "the file is [], not a table"),
    ],
)
def test_what_is_wrong_is_named(values: Any, words: str) -> None:
    with pytest.raises(FieldError) as caught:
        structure(Sample, values)
    assert words in str(caught.value)


def test_a_near_key_is_proposed_and_newer_keys_can_be_ignored() -> None:
    with pytest.raises(FieldError) as caught:
        structure(Sample, {"name": "a", "cuont": 1})
    assert caught.value.hint == "did you mean count?"
    assert structure(Sample, {"name": "a", "cuont": 1}, extra=True) == Sample("a")


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "not JSON"), ("[]", "not a list of things of format version 2"), ('{"format_version": 3}', "of format version 2")],
)
def test_a_document_of_another_version_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "file.json"
    with pytest.raises(DocumentError, match="can't be read"):
        read_document(path, version=2, what="a list of things")
    path.write_text(text)
    with pytest.raises(DocumentError, match=words) as caught:
        read_document(path, version=2, what="a list of things", hint="make it again")
    assert caught.value.hint == "make it again"
    path.write_text('{"format_version": 2, "a": 1}')
    assert read_document(path, version=2, what="a list of things") == {"format_version": 2, "a": 1}
    with pytest.raises(DocumentError, match=r"not a list of things: no 'b'"), document_errors(path, "a list of things"):
        {}["b"]
