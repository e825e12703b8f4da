"""Faults of the machine are not stored as faults of a video: the next run tries again."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image

import vadcli
from tests import commands
from tests.media import ffmpeg_exe, make_image_folder, make_video
from vadcli.errors import NotFinished, ToolError
from vadcli.store import OutputLayout
from vadcli.video.probe import probe
from vadcli.video.reader import FrameReader, ReadRequest
from vadcli.video.worker import check_machine

BROKEN = {
    "missing": "",
    "a library is missing": "echo 'error while loading shared libraries: libavdevice.so.60' >&2; exit 127",
    "not for this machine": "exit 126",
    "decodes nothing": 'case "$*" in *-version*) echo ffmpeg version 7.1 ;; *) exit 1 ;; esac',
    "killed": 'case "$*" in *-version*) echo ffmpeg version 7.1 ;; *) kill -9 $$ ;; esac',
}


def scan(folder: Path, out: Path, ffmpeg: Path | str) -> subprocess.CompletedProcess[str]:
    return commands.vadcli("scan", folder, "-o", out, "--detector", "motion", "--decoder", "ffmpeg", VADCLI_FFMPEG=str(ffmpeg))


def test_an_ffmpeg_that_does_not_run_ends_the_scan_and_costs_no_video(tmp_path: Path) -> None:
    folder, out, script = tmp_path / "footage", tmp_path / "out", tmp_path / "ffmpeg"
    folder.mkdir()
    make_video(folder / "a.mp4")
    make_video(folder / "b.mp4")
    for name, body in BROKEN.items():
        if body:
            script.write_text(f"#!/bin/sh\n{body}\n")
            script.chmod(0o755)
        done = scan(folder, out, script)
        assert done.returncode == (3 if name == "killed" else 4), (name, done.stderr)
        assert "Traceback" not in done.stderr
        assert "ffmpeg" in done.stderr
        assert ("libavdevice" in done.stderr) == (name == "a library is missing")
        assert ("not finished" in done.stderr) == (name == "killed")
        assert not list(OutputLayout(out).events("x").parent.glob("*.json")), name
        assert not list((out / "cameras").glob("*.json")), name
    done = scan(folder, out, ffmpeg_exe())
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "run.json").read_text())["totals"]["done"] == 2


def test_a_share_that_vanishes_and_returns_costs_no_video(tmp_path: Path) -> None:
    share, gone, out = tmp_path / "share", tmp_path / "gone", tmp_path / "out"
    share.mkdir()
    make_video(share / "old.mp4", frames=30)
    assert [result.status for result in vadcli.scan(share, out=out, detector="motion")] == ["done"]
    make_video(share / "new.mp4")
    (share / "old.mp4").touch()
    stored = OutputLayout(out).scores("old.mp4").read_bytes()
    run = vadcli.scan(share, out=out, detector="motion")
    share.rename(gone)
    results = {result.video: result for result in run}
    assert {result.status for result in results.values()} == {"failed"}
    assert all(result.reason.startswith("not finished: ") for result in results.values())
    assert not OutputLayout(out).events("new.mp4").exists()
    assert OutputLayout(out).scores("old.mp4").read_bytes() == stored
    gone.rename(share)
    assert {result.video: result.status for result in vadcli.scan(share, out=out, detector="motion")} == {
        "new.mp4": "done",
        "old.mp4": "skipped",
    }


def test_messages_of_decoders_are_believed_only_if_content_cannot_cause_them(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4")
    for number in (errno.ESTALE, errno.ENOTCONN, errno.EACCES, errno.ETIMEDOUT):
        with pytest.raises(NotFinished, match=os.strerror(number)):
            check_machine(path, f"[in#0] Error during demuxing: {os.strerror(number)}")
    for number in (errno.EIO, errno.ENOMEM, errno.EINVAL):
        check_machine(path, f"[in#0] Error during demuxing: {os.strerror(number)}")
    path.unlink()
    with pytest.raises(NotFinished, match="No such file"):
        check_machine(path, "")


def test_an_image_that_the_storage_does_not_deliver_is_no_lost_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = probe(make_image_folder(tmp_path / "frames"))

    def fail(path: Path) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(NotFinished, match="Stale"):
        list(FrameReader(info, ReadRequest(0, 1, 96, 64, pixel_format="gray")))  # type: ignore[arg-type]
    assert issubclass(ToolError, NotFinished)
