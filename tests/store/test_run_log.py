"""The run record."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from vadcli.errors import DocumentError, UsageError
from vadcli.store import OutputLayout, run_log
from vadcli.store.atomic import Scratch
from vadcli.store.run_log import RunInfo, RunRecord, read_run, result_lines, result_of
from vadcli.types import Status, VideoResult

INFO = RunInfo(
    version="0.1.0",
    command=("vadcli", "scan", "caf\udce9"),
    config={"interval": 3, "categories": ["fight"]},
    detector={"name": "motion", "fingerprint": "ab"},
    weights={"model": "cd"},
    roots=("/archive/a", "/archive/b.mp4"),
    root="/archive",
    shard="1/4",
)
DONE = VideoResult("a/x.mp4", Status.DONE, "", "", "a", False, "decord", 100, 100, 1.25, 2)
BROKEN = VideoResult("a/y.mp4", Status.PARTIAL, "decode", "37 of 100 frames lost", "a", None, "ffmpeg", 100, 63, 2.0, 0)


@pytest.fixture
def layout(tmp_path):
    return OutputLayout(tmp_path)


@pytest.fixture
def scratch(layout):
    with Scratch(layout.scratch) as scratch:
        yield scratch


def test_a_record_reads_back_as_it_was(layout, scratch):
    before = datetime.now(UTC)
    with RunRecord(layout, scratch, INFO) as record:
        record.add(DONE)
        record.add(BROKEN)
        record.close(3)
    stored = read_run(record.path)
    assert stored.info == RunInfo(**{**INFO.__dict__, "command": ("vadcli", "scan", "caf%E9")})
    assert stored.files == (DONE, BROKEN)
    assert before - timedelta(seconds=1) <= stored.start <= stored.end
    assert stored.exit_code == 3
    assert stored.totals == {
        "videos": 2,
        "done": 1,
        "partial": 1,
        "failed": 0,
        "skipped": 0,
        "unfinished": 0,
        "running": 0,
        "lost": 1,
        "expected_frames": 200,
        "decoded_frames": 163,
        "events": 2,
        "new_events": 0,
        "seconds": 3.25,
    }
    assert record.path.name == f"{stored.start:%Y%m%dT%H%M%S.%fZ}-1of4.json"
    assert layout.run_json.read_bytes() == record.path.read_bytes()
    assert list(json.loads(record.path.read_text())["files"][0]) == [
        "video",
        "status",
        "stage",
        "reason",
        "camera",
        "moving_camera",
        "decoder",
        "expected_frames",
        "decoded_frames",
        "seconds",
        "events",
        "new_events",
        "note",
        "caveats",
    ]


def test_a_running_record_is_readable_from_the_start_and_says_that_it_runs(layout, scratch):
    record = RunRecord(layout, scratch, INFO, write_every_s=0.0)
    assert read_run(record.path).files == ()
    running = VideoResult("a/x.mp4", Status.RUNNING)
    record.add(running)
    record.flush(force=True)
    stored = read_run(record.path)
    assert (stored.files, stored.end, stored.exit_code) == ((running,), None, None)
    record.add(DONE)
    record.close(0)
    record.close(1)
    stored = read_run(record.path)
    assert stored.files == (DONE,)
    assert (stored.totals["videos"], stored.totals["done"], stored.totals["running"]) == (1, 1, 0)
    assert stored.exit_code == 0


@pytest.mark.parametrize(("problem", "code"), [(UsageError("x"), 2), (ZeroDivisionError(), 1), (KeyboardInterrupt(), 130)])
def test_a_run_that_fails_says_so(layout, scratch, problem, code):
    record = RunRecord(layout, scratch, INFO)

    def fail():
        with record:
            raise problem

    with pytest.raises(type(problem)):
        fail()
    assert read_run(record.path).exit_code == code


def test_appending_results_does_not_rewrite_the_record_each_time(layout, scratch, monkeypatch):
    clock = iter(range(10**9))
    monkeypatch.setattr(run_log.time, "monotonic", lambda: next(clock) / 1000)
    written = []
    replace = scratch.replace
    monkeypatch.setattr(scratch, "replace", lambda final: (written.append(final), replace(final))[1])
    record = RunRecord(layout, scratch, INFO, write_every_s=3.0)
    for number in range(10_000):
        record.add(VideoResult(f"{number}.mp4", Status.DONE))
    seconds = next(clock) / 1000
    assert 2 <= len(written) <= 2 * (seconds / 3 + 2)
    record.close(0)
    assert len(read_run(record.path).files) == 10_000


def test_a_second_result_of_a_video_replaces_the_first(layout, scratch):
    with RunRecord(layout, scratch, INFO) as record:
        record.add(VideoResult("a.mp4", Status.FAILED, reason="it broke", events=2))
        record.add(DONE)
        record.add(VideoResult("a.mp4", Status.DONE, events=3))
    stored = read_run(record.path)
    assert [(file.video, file.status, file.events) for file in stored.files] == [
        (DONE.video, Status.DONE, DONE.events),
        ("a.mp4", Status.DONE, 3),
    ]
    assert (stored.totals["videos"], stored.totals["failed"], stored.totals["lost"]) == (2, 0, 0)
    assert stored.totals["events"] == 3 + DONE.events


def test_many_videos_that_are_done_are_counted_and_not_listed(layout, scratch, monkeypatch):
    monkeypatch.setattr(run_log, "MOST_SKIPPED", 2)
    with RunRecord(layout, scratch, INFO) as record:
        for number in range(3):
            record.add(VideoResult(f"{number}.mp4", Status.SKIPPED, reason="done", events=1))
        record.add(VideoResult("lost.mp4", Status.SKIPPED, stage="decode", reason="failed in an earlier run"))
        record.add(DONE)
    stored = read_run(record.path)
    assert [file.video for file in stored.files] == ["lost.mp4", DONE.video]
    assert (stored.totals["videos"], stored.totals["skipped"], stored.totals["unlisted"]) == (5, 4, 3)
    assert stored.totals["events"] == 3 + DONE.events


def test_of_two_runs_at_once_the_newer_is_the_one_in_run_json(layout, scratch):
    older = RunRecord(layout, scratch, INFO, write_every_s=0.0)
    newer = RunRecord(layout, scratch, INFO, write_every_s=0.0)
    assert newer.path > older.path
    older.add(DONE)
    assert layout.run_json.read_bytes() == newer.path.read_bytes()
    older.close(0)
    newer.close(0)
    assert list(layout.iter_runs()) == [older.path, newer.path]
    assert layout.run_json.read_bytes() == newer.path.read_bytes()


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "not JSON"),
        (b"[]", "format version 1"),
        (b'{"format_version": 1}', "has no version"),
        (b'{"format_version": 9}', "format version 1"),
    ],
)
def test_a_damaged_record_is_named(tmp_path, data, what):
    path = tmp_path / "run.json"
    path.write_bytes(data)
    with pytest.raises(DocumentError) as caught:
        read_run(path)
    assert str(path) in caught.value.message
    assert what in caught.value.message
    with pytest.raises(DocumentError, match="can't be read"):
        read_run(tmp_path / "missing.json")


def test_results_are_read_one_at_a_time(tmp_path):
    path = tmp_path / "record.json"

    def read():
        return list(map(result_of, result_lines(path)))

    with Scratch(tmp_path / "out" / ".tmp") as scratch, RunRecord(OutputLayout(tmp_path / "out"), scratch, INFO) as record:
        path.write_bytes(record.path.read_bytes())
        assert read() == []
        for name in ("a [1].mp4", "b, }.mp4", "c.mp4"):
            record.add(VideoResult(name, Status.PARTIAL, "decode", "}", expected_frames=2, decoded_frames=1))
        record.close(3)
    text = record.path.read_text()
    path.write_text(text)
    found = read()
    assert found == list(read_run(path).files)
    assert len(found) == 3
    for other in (json.dumps(json.loads(text)), json.dumps(json.loads(text), indent=2), text.replace("\n", "\r\n")):
        path.write_text(other, newline="")
        assert read() == found
    path.write_text(text[: text.index("c.mp4") - 20])
    with pytest.raises(DocumentError, match="ends early"):
        list(result_lines(path))
