"""The status of a scan that is running, has ended or was killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.commands import vadcli
from tests.evaluate.outputs import write_scan
from tests.media import ffmpeg_exe, make_video
from tests.patience import PATIENCE_S
from vadcli.cli import app
from vadcli.errors import UsageError
from vadcli.options import ReportOptions
from vadcli.reporting import read_archive
from vadcli.reporting.archive import run_facts
from vadcli.status import SILENT_S, RunState, read_status
from vadcli.store import OutputLayout
from vadcli.store.atomic import Scratch
from vadcli.store.run_log import RunInfo, RunProgress, RunRecord, read_live
from vadcli.types import Status, VideoResult

INFO = RunInfo("0", ("vadcli", "scan", "x"), {}, {"name": "fake"})
SIZES = {"a.mp4": 1000, "b.mp4": 3000}


@pytest.fixture
def layout(tmp_path: Path) -> OutputLayout:
    return OutputLayout(tmp_path)


@pytest.fixture
def record(layout: OutputLayout) -> Iterator[RunRecord]:
    with Scratch(layout.scratch) as scratch:
        yield RunRecord(layout, scratch, INFO, progress=RunProgress(SIZES), write_every_s=0.0)


def work(record: RunRecord, video: str, frames: int, size: float) -> None:
    assert record.progress is not None
    record.progress.advance(video, frames=frames, video_s=frames / 10, size=size)
    record.flush(force=True)


def test_a_running_scan_tells_how_far_it_is(layout: OutputLayout, record: RunRecord) -> None:
    work(record, "a.mp4", 50, 1000)
    record.add(VideoResult("a.mp4", Status.DONE, decoded_frames=50, events=0))
    work(record, "b.mp4", 30, 1000)
    (status,) = read_status(layout, now=record.start + timedelta(seconds=8))
    told = status.to_json()
    assert (told["state"], told["planned_videos"], told["done"], told["frames"]) == ("running", 2, 1, 80)
    assert told["running"] == [{"video": "b.mp4", "frames": 30}]
    assert (told["frames_per_s"], told["times_real_time"]) == (10.0, 1.0)
    assert told["eta_s"] == pytest.approx(8.0, abs=1.0)  # approximate, because the time of the start is real


def test_the_nodes_of_a_cluster_are_counted(layout: OutputLayout, record: RunRecord) -> None:
    for video, node in (("a.mp4", "two"), ("b.mp4", "one"), ("c.mp4", "two")):
        record.add(VideoResult(video, Status.DONE, node=node))
    (status,) = read_status(layout)
    assert status.to_json()["nodes"] == {"one": 1, "two": 2}
    shown = CliRunner().invoke(app, ["status", str(layout.out)])
    assert "  nodes: one 1, two 2 videos" in shown.output.splitlines()
    record.close(0)
    archive = read_archive(layout.out, ReportOptions())
    assert ("Nodes", "one (1 video), two (2 videos)") in run_facts(archive)


def test_an_ended_scan_is_over(layout: OutputLayout, record: RunRecord) -> None:
    work(record, "a.mp4", 50, 1000)
    record.close(3)
    (status,) = read_status(layout)
    assert (status.state, status.eta_s, status.to_json()["running"]) == (RunState.ENDED, None, [])
    assert status.run.exit_code == 3


def test_a_video_that_a_stopped_scan_did_not_finish_is_not_counted_as_finished(layout: OutputLayout, record: RunRecord) -> None:
    work(record, "a.mp4", 50, 1000)
    record.add(VideoResult("a.mp4", Status.DONE))
    work(record, "b.mp4", 10, 300)
    record.add(VideoResult("b.mp4", Status.UNFINISHED, reason="not finished: SIGINT"))
    record.close(130)
    (status,) = read_status(layout)
    assert (status.finished, status.planned) == (1, 2)
    told = status.to_json()
    assert (told["done"], told["skipped"], told["unfinished"]) == (1, 0, 1)
    assert json.loads(record.path.read_text())["progress"]["done_bytes"] == 1300


def test_events_that_are_not_shown_are_counted(layout: OutputLayout, record: RunRecord) -> None:
    write_scan(layout.out, {"a.mp4": [0.1, 0.9, 0.1, 0.1] * 12})
    record.add(VideoResult("a.mp4", Status.DONE, events=12))
    record.close(0)
    shown = CliRunner().invoke(app, ["status", str(layout.out)]).output.splitlines()
    assert [line.partition(":")[0] for line in shown[2:]] == ["  event"] * 5 + ["  and 7 more events"]


def test_a_scan_whose_process_is_gone_has_died(layout: OutputLayout, record: RunRecord) -> None:
    document = json.loads(record.path.read_text())
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    document["progress"]["pid"] = int(gone.stdout)
    record.path.write_text(json.dumps(document))
    assert read_status(layout)[-1].state is RunState.DIED
    # A process that started later than the scan may have the same process id as the dead scan.
    document["progress"]["pid"] = os.getpid()
    document["start"] = "2001-01-01T00:00:00+00:00"
    record.path.write_text(json.dumps(document))
    assert read_status(layout)[-1].state is RunState.DIED


def test_another_machines_scan_lives_while_it_writes(layout: OutputLayout, record: RunRecord) -> None:
    document = json.loads(record.path.read_text())
    document["progress"]["host"] = f"not-{socket.gethostname()}"
    record.path.write_text(json.dumps(document))
    soon, late = (record.start + timedelta(seconds=SILENT_S * share) for share in (0.5, 2))
    assert read_status(layout, now=soon)[-1].state is RunState.RUNNING
    assert read_status(layout, now=late)[-1].state is RunState.DIED


def test_two_scans_at_once_are_both_told(layout: OutputLayout, record: RunRecord) -> None:
    with Scratch(layout.scratch) as scratch:
        newer = RunRecord(layout, scratch, INFO, progress=RunProgress(SIZES))
        assert [status.run.path for status in read_status(layout)] == [record.path, newer.path]
        record.close(0)
        assert [status.run.path for status in read_status(layout)] == [newer.path]


def test_what_a_run_says_is_told_before_its_long_record_is_rewritten(layout: OutputLayout) -> None:
    sizes = {f"{number:05}.mp4": 10 for number in range(3000)}
    with Scratch(layout.scratch) as scratch, RunRecord(layout, scratch, INFO, progress=RunProgress(sizes)) as record:
        before = record.path.read_bytes()
        for video in sizes:
            record.add(VideoResult(video, Status.DONE, decoded_frames=5, events=video == "00007.mp4"))
        assert record.progress is not None
        record.progress.fit("gate", frames=40)
        record.flush(force=True)
        record.path.write_bytes(before)
        (status,) = read_status(layout)
        assert status.to_json()["fitting"] == {"camera": "gate", "frames": 40}
        assert (status.finished, status.last_videos, status.run.files) == (3000, ("00007.mp4",), ())


def test_a_record_laid_out_otherwise_is_read_too(layout: OutputLayout, record: RunRecord) -> None:
    record.add(VideoResult("a.mp4", Status.FAILED, stage="open", reason='not a video,\n  "files": ['))
    record.close(3)
    before = read_status(layout)[-1].to_json()
    record.path.write_text(json.dumps(json.loads(record.path.read_text()), indent=1))
    after = read_status(layout)[-1].to_json()
    assert after == before
    assert after["failed"] == 1


def test_what_a_run_says_is_gone_with_it(layout: OutputLayout) -> None:
    with Scratch(layout.scratch) as scratch, RunRecord(layout, scratch, INFO, progress=RunProgress(SIZES)) as record:
        record.flush(force=True)
        assert set(read_live(layout)) == {record.path.name}
    assert not layout.scratch.exists()
    (layout.scratch / "1-a").mkdir(parents=True)
    for damaged in ("", "[]", '{"run": "a.json"}'):
        (layout.scratch / "1-a" / "live.json").write_text(damaged)
        assert read_live(layout) == {}
    assert read_status(layout)[-1].state is RunState.ENDED


def test_a_folder_without_a_record_is_refused(layout: OutputLayout) -> None:
    with pytest.raises(UsageError, match="no scan has run"):
        read_status(layout)


@given(st.lists(st.tuples(st.sampled_from(sorted(SIZES)), st.floats(0, 1)), max_size=20))
def test_all_is_done_when_every_video_is_over(pieces: list[tuple[str, float]]) -> None:
    progress = RunProgress(SIZES)
    for video, share in pieces:
        progress.advance(video, frames=1, video_s=0.1, size=share * SIZES[video] / 20)
    for video in SIZES:
        progress.finish(video)
    told = progress.to_json()
    assert told["done_bytes"] == told["planned_bytes"] == 4000
    assert told["running"] == []
    assert told["frames"] == len(pieces)


def test_the_time_left_does_not_take_learning_for_scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of three cameras has 1000 bytes. Fitting a camera takes 10 s, and scoring its video takes 20 s."""
    now = 0.0
    monkeypatch.setattr("vadcli.store.run_log.time.monotonic", lambda: now)
    progress = RunProgress(dict.fromkeys("abc", 1000), {"a": "gate", "b": "yard", "c": "hall"})
    now = 5.0  # seconds until the first camera is fitted
    progress.fit("gate", frames=100)
    assert (progress.eta_s(), progress.fitting) == (None, {"camera": "gate", "frames": 100})
    now = 15.0
    progress.advance("a", frames=1, video_s=1.0, size=0)
    now = 25.0
    progress.advance("a", frames=50, video_s=5.0, size=500)
    assert progress.fitting is None
    assert progress.eta_s() == pytest.approx(10 + 2 * (10 + 20))
    now = 35.0
    progress.advance("a", frames=50, video_s=5.0, size=500)
    progress.finish("a")
    progress.fit("yard", frames=100)
    now = 45.0
    progress.advance("b", frames=1, video_s=1.0, size=0)
    assert progress.eta_s() == pytest.approx(20 + 10 + 20)


def status(out: Path) -> dict[str, object] | None:
    done = vadcli("status", out, "--json")
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


@pytest.mark.slow
def test_beside_a_real_scan_until_it_is_killed(tmp_path: Path) -> None:
    (tmp_path / "footage").mkdir()
    make_video(tmp_path / "footage" / "a.mp4", frames=30)
    scan_it = ("scan", tmp_path / "footage", "--out", tmp_path / "out", "--quiet")
    assert vadcli(*scan_it).returncode == 0
    over = status(tmp_path / "out")
    assert over is not None
    assert (over["state"], over["done"], over["frames"]) == ("ended", 1, 30)
    make_video(tmp_path / "footage" / "b.mp4", frames=30)
    waits = tmp_path / "ffmpeg"  # a decoder that hangs at b.mp4
    waits.write_text(f'#!/bin/sh\ncase "$*" in *b.mp4*) exec sleep 600 ;; *) exec "{ffmpeg_exe()}" "$@" ;; esac\n')
    waits.chmod(0o700)
    environment = {**os.environ, "VADCLI_FFMPEG": str(waits)}
    command = [sys.executable, "-m", "vadcli", *map(str, scan_it), "--force", "--decoder", "ffmpeg"]
    scan = subprocess.Popen(command, start_new_session=True, env=environment)
    try:
        until = time.monotonic() + PATIENCE_S
        while (told := status(tmp_path / "out")) is None or told["state"] != "running":
            assert time.monotonic() < until
            assert scan.poll() is None
        assert told["planned_videos"] == 2
    finally:
        os.killpg(scan.pid, signal.SIGKILL)
        scan.wait()
    told = status(tmp_path / "out")
    assert told is not None
    assert told["state"] == "died"
