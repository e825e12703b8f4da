"""docs/output-format.md describes every column, key and field that the code writes, and its examples work."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.store.documents import DOCUMENT
from tests.store.test_masks import frames_of
from tests.store.test_scores import METADATA, table_of
from vadcli.export import CSV_COLUMNS
from vadcli.store import OutputLayout, scores, verification
from vadcli.store import masks as mask_rle
from vadcli.store.atomic import Scratch
from vadcli.store.events import schema, validate, write_events
from vadcli.store.masks import MaskRleWriter, MaskVideoWriter
from vadcli.store.run_log import RunInfo, RunRecord
from vadcli.store.scores import write_scores
from vadcli.store.verification import Audit, VerificationRun, read_verification, write_verification
from vadcli.types import CameraModel, Status, VideoResult

PAGE = (Path(__file__).parents[2] / "docs" / "output-format.md").read_text(encoding="utf-8")
SECTIONS = {part.split("\n", 1)[0]: part for part in PAGE.split("\n## ")[1:]}


def named(section):
    return set(re.findall(r"`([^`\n]+)`", SECTIONS[section]))


def table_rows(section):
    """Return the first cell -> the second cell of every table row."""
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in SECTIONS[section].splitlines()
        if line.startswith("| `")
    ]
    return {row[0].strip("` "): row[1] for row in rows}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize(
    ("section", "arrow"), [("Scores", scores.SCHEMA), ("Verify", verification.SCHEMA), ("Masks", mask_rle.SCHEMA)]
)
def test_every_column_is_documented_with_its_type(section, arrow):
    words = {
        "dictionary<values=string": "dictionary&lt;string&gt;",
        "double": "float64",
        "float": "float32",
        "struct": "struct",
    }
    words |= {"fixed_size_list<item: int32": "list&lt;int32&gt;"}
    rows = table_rows(section)
    for field in arrow:
        kind = re.split(r",|>\[|<size", str(field.type))[0]
        assert rows[field.name] == words.get(kind, kind)
    assert [name for name in rows if not re.search(r"\.|^time_base$|^score:", name)] == arrow.names


def test_every_metadata_key_is_documented():
    assert {key for key in table_rows("Scores") if key.startswith("vadcli.") or key == "time_base"} == set(METADATA.to_keys())
    assert set(METADATA.calibration) < named("Scores")


def fields_of(part, definitions, prefix=""):
    """Yield the name of every field, with dots between the levels; [] marks a list."""
    if "$ref" in part:
        part = definitions[part["$ref"].split("/")[-1]]
    for name, value in part.get("properties", {}).items():
        yield prefix + name
        if name == "scan_events":  # their fields are those of `events`
            continue
        yield from fields_of(value, definitions, f"{prefix}{name}.")
        if isinstance(value.get("items"), dict):
            yield from fields_of(value["items"], definitions, f"{prefix}{name}[].")


def test_every_field_of_the_schema_is_documented_and_described():
    document = schema()
    fields = set(fields_of(document, document["$defs"]))
    assert {"events[].bbox", "video.fps", "threshold.pad_s", "scan.source", "failure.error"} < fields
    assert fields - named("Events") == set()
    documented = {name for name in named("Events") if re.fullmatch(r"(video|threshold|failure|scan|events\[\])\.[\w.]+", name)}
    assert documented - fields == set()


def test_every_csv_column_is_documented():
    row = next(line for line in SECTIONS["Events"].splitlines() if line.startswith("| csv"))
    # The last column exists only if a head judged events.
    assert tuple(re.findall(r"`(\w+)`", row)) == (*CSV_COLUMNS, "head_score")


def test_every_field_of_a_run_and_a_result_is_documented(tmp_path):
    layout = OutputLayout(tmp_path)
    with Scratch(layout.scratch) as scratch, RunRecord(layout, scratch, RunInfo("0", (), {}, {})) as record:
        record.add(VideoResult("a", Status.DONE))
    document = json.loads(layout.run_json.read_text())
    fields = {*document, *document["totals"], *document["files"][0]}
    assert fields - named("Runs") == set()
    assert set(map(str, Status)) < named("Runs")


def test_every_field_of_the_record_of_a_verification_is_documented(tmp_path):
    run = VerificationRun("0", ("vadcli", "verify"), {"share": "15%"}, "m", "2026-11-29", audit=Audit(1, 0, 0.0, 0.9, 1.0, 0.0))
    layout = OutputLayout(tmp_path)
    with Scratch(layout.scratch) as scratch:
        write_verification(layout, scratch, run)
    assert read_verification(layout) == run
    document = json.loads(layout.verification.read_text())
    assert {*document, *document["audit"]} - named("Verify") == set()


def test_every_field_of_a_camera_is_documented():
    document = CameraModel("a", "motion", 1, {"x": np.zeros(3)}, {}).to_json()
    assert {*document, *document["arrays"]["x"]} - named("Cameras") == set()


def test_the_example_document_is_valid():
    (text,) = blocks("json")
    assert validate(json.loads(text), "example") == []
    assert set(json.loads(text)) == set(DOCUMENT.to_json())


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """Return an output folder for the examples of the page."""
    layout, video = OutputLayout(tmp_path / "vadcli-out"), "cam1/a.mp4"
    for path in (layout.scores(video), layout.events(video), layout.mask_video(video)):
        path.parent.mkdir(parents=True)
    table = table_of(90, video)
    write_scores(layout.scores(video), table, METADATA)
    write_events(layout.events(video), replace(DOCUMENT, events=()))
    frames = frames_of(int(table.sampled.sum()), 36, 64)
    with (
        MaskVideoWriter(layout.mask_video(video), 64, 36) as masks,
        MaskRleWriter(layout.mask_rle(video), video, 64, 36) as runs,
    ):
        for row, frame in zip(np.flatnonzero(table.sampled), frames, strict=True):
            masks.write(frame, float(table.timestamp[row]))
            runs.write(frame, int(row), int(table.pts[row]))
    monkeypatch.chdir(tmp_path)
    return table, frames


@pytest.mark.parametrize("number", range(3))
def test_the_python_examples_run(stored, number, capsys):
    table, frames = stored
    found = {}
    exec(blocks("python")[number], found)
    if number == 0:
        assert f"{table.score.max():.6f}"[:6] in capsys.readouterr().out
    elif number == 1:
        np.testing.assert_array_equal(found["mask"], frames[-1])
        assert found["pts"] == table.pts[table.sampled][-1]
    else:
        np.testing.assert_array_equal(found["mask"], frames[-1] >= 128)


def test_the_tree_shows_every_path():
    layout = OutputLayout(Path("OUT"))
    tree = blocks("")[0]
    shown = {line.split()[0] for line in tree.splitlines() if line.startswith("  ")}
    video = "<video>"
    made = [layout.run_json, layout.camera("<camera>"), layout.scores(video), layout.events(video), layout.mask_video(video)]
    made += [layout.mask_rle(video), layout.rendered(video), layout.embeddings(video), layout.answers(video)]
    made += [layout.choices, layout.reported, layout.verification]
    assert {str(path.relative_to("OUT")) for path in made} | {"runs/<start>[-<shard>].json"} == shown
