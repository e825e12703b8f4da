"""Events documents: they are read as they were written, fit the published schema, and get clear errors."""

import copy
import json
import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import jsonschema_rs
import numpy as np
import pytest

from tests.store.documents import DOCUMENT, FIGHT, PLAIN
from vadcli.errors import DocumentError
from vadcli.store.events import (
    EventsDocument,
    Failure,
    ScanState,
    describe_video,
    load,
    read_events,
    schema,
    validate,
    write_events,
)
from vadcli.types import Answer, Description, Status, Thresholds, Verification, VideoInfo

FAILED = EventsDocument(
    video=describe_video("b.mp4", "."),
    detector="motion",
    categories=(),
    thresholds=Thresholds(),
    failure=Failure("probe", "b.mp4: moov atom not found"),
    scan=ScanState(Status.FAILED, "cd" * 32, {}),
)


CONFIRMED = replace(
    FIGHT,
    verification=Verification("qwen2-vl-2b", Answer.CONFIRMED, 3.5),
    description=Description("qwen2-vl-2b", "Two people push each other."),
)
VERIFIED = replace(
    DOCUMENT,
    events=(CONFIRMED, replace(PLAIN, verification=Verification("qwen2-vl-2b", Answer.NOT_ASKED))),
    scan_events=(FIGHT, PLAIN),
)


@pytest.mark.parametrize("document", [DOCUMENT, FAILED, replace(DOCUMENT, events=(), scan=None), VERIFIED])
def test_a_document_is_valid_and_reads_back_as_it_was(tmp_path, document):
    path = tmp_path / "a.json"
    write_events(path, document)
    assert validate(json.loads(path.read_text()), "a.json") == []
    assert read_events(path) == document
    assert list(json.loads(path.read_text())) == [
        "format_version",
        "generator",
        "video",
        "detector",
        "categories",
        "threshold",
        "failure",
        "scan",
        "caveats",
        "regions",
        "events",
        *(["scan_events"] if document.scan_events is not None else []),
    ]


def test_the_schema_itself_is_a_schema_and_closed():
    jsonschema_rs.meta.validate(schema())
    objects = [schema(), *schema()["$defs"].values()]
    closed = [part for part in objects if "properties" in part]
    assert len(closed) == 11
    assert all(part["additionalProperties"] is False for part in closed)


def test_a_video_is_described_by_its_probe():
    pts = np.arange(10, dtype=np.int64) * 40
    info = VideoInfo(Path("a.mp4"), "mov", "h264", 0, 360, 640, 90, Fraction(1, 1000), pts, 25.0, 0.4)
    described = describe_video("a.mp4", "cam", info, moving_camera=True)
    assert described == {
        "path": "a.mp4",
        "camera": "cam",
        "width": 360,
        "height": 640,
        "rotation": 90,
        "fps": 25.0,
        "duration_s": 0.4,
        "frames": 10,
        "moving_camera": True,
    }
    assert describe_video("a.mp4", "cam", info, frames=8)["frames"] == 8


def changed(*path_and_value):
    *path, name, value = path_and_value
    document = copy.deepcopy(DOCUMENT.to_json())
    target = document
    for part in path:
        target = target[part]
    if value is KeyError:
        del target[name]
    else:
        target[name] = value
    return document


@pytest.mark.parametrize(
    ("document", "where", "what"),
    [
        (changed("format_version", 2), "format_version", "1 was expected"),
        (changed("note", "x"), "document", "'note' was unexpected"),
        (changed("detector", KeyError), "document", '"detector" is a required property'),
        (changed("video", "codec", "h264"), "video", "'codec' was unexpected"),
        (changed("video", "rotation", 45), "video.rotation", "45 is not one of"),
        (changed("video", "fps", 0), "video.fps", "less than or equal to the minimum"),
        (changed("threshold", "high", 1.5), "threshold.high", "greater than the maximum"),
        (changed("threshold", "low", 0.6), "threshold", "low (0.6) is above high (0.5)"),
        (changed("failure", {"stage": "probe"}), "failure", '"error" is a required property'),
        (changed("failure", {"stage": "probe", "error": "x"}), "events", "a failed video has no events"),
        (changed("scan", "status", "running"), "scan.status", '"running" is not one of'),
        (changed("events", 0, "start_frame", -1), "events[0].start_frame", "less than the minimum"),
        (changed("events", 0, "start_frame", 1.5), "events[0].start_frame", 'not of type "integer"'),
        (changed("events", 0, "peak_score", 1.01), "events[0].peak_score", "greater than the maximum"),
        (changed("events", 0, "bbox", [1, 2, 3]), "events[0].bbox", "less than 4 items"),
        (changed("events", 0, "bbox", [1, 2, 3, 4, 5]), "events[0].bbox", "more than 4 items"),
        (changed("events", 0, "bbox", [1, 2, 0, 4]), "events[0].bbox[2]", "less than the minimum"),
        (changed("events", 0, "bbox", [600, 0, 41, 4]), "events[0]", "bbox reaches 641, 4 in a video of 640 x 360"),
        (changed("events", 1, "id", 3), "events[1].id", "3 instead of 2"),
        (changed("events", 1, "start_frame", 49), "events[1]", "starts before the previous event ends"),
        (changed("events", 0, "peak_frame", 50), "events[0]", "start, peak and end are not in order: 25, 50, 50"),
        (changed("events", 0, "peak_s", 2.5), "events[0]", "start, peak and end are not in order: 1.0, 2.5, 2.0"),
        (changed("events", 0, "mean_score", 0.9), "events[0]", "mean_score (0.9) is above peak_score (0.875)"),
        (changed("events", 1, "end_frame", 301), "events[1]", "ends at row 301 of 300"),
        (changed("regions", {"ignore": [[[0, 0], [1, 1.5], [0, 1]]], "only": []}), "regions.ignore[0]", "not valid under any"),
        (changed("regions", {"ignore": [], "only": [{"size": [9, 9], "bits": "eA=="}]}), "regions", "not a mask image"),
        (
            changed("events", 0, "verification", {"model": "m", "answer": "yes", "log_odds": 1}),
            "events[0].verification.answer",
            '"yes" is',
        ),
        (
            changed("events", 0, "description", {"model": "m", "text": ""}),
            "events[0].description.text",
            "shorter than 1 character",
        ),
        (changed("scan_events", [{**PLAIN.to_json(), "id": 2}]), "scan_events[0].id", "2 instead of 1"),
        ([], "document", 'is not of type "object"'),
    ],
)
def test_each_error_is_one_line_that_says_file_where_and_what(document, where, what):
    errors = validate(document, "out/a.json")
    assert len(errors) == 1
    assert errors[0].startswith(f"out/a.json: {where}: ")
    assert what in errors[0]
    assert "\n" not in errors[0]
    assert len(errors[0]) < 250


def test_every_error_is_told_in_order():
    document = changed("video", "fps", -1)
    document["events"][1]["id"] = 0
    document["extra"] = 1
    assert [error.split(": ")[1] for error in validate(document, "a")] == ["document", "events[1].id", "video.fps"]


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "not JSON"),
        (b'{"format_version": 1', "not JSON"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"{}", "is a required property (and 7 more)"),
    ],
)
def test_a_damaged_document_is_named(tmp_path, data, what):
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(DocumentError) as caught:
        read_events(path)
    assert str(path) in caught.value.message
    assert what in caught.value.message
    assert "--force" in caught.value.hint


def test_a_missing_document_is_named(tmp_path):
    with pytest.raises(DocumentError, match=r"a\.json: can't be read: No such file"):
        load(tmp_path / "a.json")


def test_a_failed_video_has_no_events_and_a_stored_scan_is_over():
    with pytest.raises(ValueError, match="no events"):
        replace(FAILED, events=(FIGHT,))
    with pytest.raises(ValueError, match="running"):
        ScanState(Status.RUNNING, "", {})
    with pytest.raises(ValueError, match="video needs the fields"):
        replace(DOCUMENT, video={"path": "a.mp4"})


def test_a_raw_path_in_an_error_is_written_as_utf8(tmp_path: Path):
    raw = os.fsdecode(b"caf\xe9.mp4")
    write_events(tmp_path / "a.json", replace(FAILED, failure=Failure("open", f"{raw}: vanished")))
    assert "caf%E9.mp4: vanished" in (tmp_path / "a.json").read_text("utf-8")
