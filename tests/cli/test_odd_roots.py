"""Footage below a folder whose name is not UTF-8: found again by what works on a scan's results."""

from __future__ import annotations

import os
from pathlib import Path

from tests.commands import vadcli
from tests.media import make_video


def test_report_and_render_find_the_footage_of_the_scan(tmp_path: Path) -> None:
    root, out = tmp_path / os.fsdecode(b"caf\xe9"), tmp_path / "out"
    (root / "cam1").mkdir(parents=True)
    make_video(root / "cam1" / "a.mp4", frames=40, fps=10)
    make_video(root / "cam2.mp4", frames=10, fps=10)
    scanned = vadcli("scan", root, "--out", out, "--threshold", "0")
    assert scanned.returncode == 0, scanned.stderr
    made = vadcli("report", out)
    assert made.returncode == 0, made.stderr
    assert "footage of" not in made.stderr  # "can't be found"
    assert "data:image/webp" in (out / "report.html").read_text()
    drawn = vadcli("render", root / "cam1", "--out", out)
    assert drawn.returncode == 0, drawn.stderr
    assert [path.suffix for path in (out / "rendered" / "cam1").iterdir()] == [".mp4"]


def test_a_folder_with_control_characters_stays_one_line_of_the_log(tmp_path: Path) -> None:
    root = tmp_path / "a\nb\x1b[31m"
    root.mkdir()
    make_video(root / "a.mp4", frames=10, fps=10)
    scanned = vadcli("scan", root, "--out", tmp_path / "out", "--log-file", tmp_path / "log")
    assert scanned.returncode == 0, scanned.stderr
    first = scanned.stderr.splitlines()[0]
    assert first.endswith("a%0Ab%1B[31m (--root)")
    assert b"\x1b" not in (tmp_path / "log").read_bytes()


def test_a_folder_with_control_characters_stays_one_line_of_an_error(tmp_path: Path) -> None:
    failed = vadcli("report", tmp_path / "a\nb\x1b[31m")
    assert failed.returncode == 2
    assert failed.stderr.splitlines()[0] == f"vadcli: error: {tmp_path}/a%0Ab%1B[31m: the folder does not exist"
