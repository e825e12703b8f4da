"""Folders and files that commands find: permissions, suffixes, lists, dates, odd names, and the root of the names."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests import commands
from tests.media import make_image_folder, make_video
from tests.patience import PATIENCE_S

VADCLI = [sys.executable, "-m", "vadcli"]
NO_POWER = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]  # root without the right to read everything


def vadcli(*arguments: object, before: Iterable[str] = (), stdin: bytes | None = None) -> subprocess.CompletedProcess[str]:
    if not before:
        return commands.vadcli(*arguments, stdin=None if stdin is None else os.fsdecode(stdin))
    command = [*before, *VADCLI, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def planned(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line.partition("\t")[2] for line in done.stdout.splitlines() if line.startswith("scan\t")]


def record(out: Path) -> dict[str, object]:
    document: dict[str, object] = json.loads((out / "run.json").read_text())
    return document


def failures(out: Path) -> dict[str, str]:
    """Return the reason of each failed video or folder, of which `vadcli report` and `vadcli events` must have the same."""
    report = vadcli("report", out, "--json")
    reasons = {entry["video"]: entry["reason"] for entry in json.loads(report.stdout)["failures"]}
    events = vadcli("events", out)
    lines = [line for line in events.stderr.splitlines() if ": failed, so it has no events: " in line]
    assert sorted(lines) == sorted(f"{video}: failed, so it has no events: {reason}" for video, reason in reasons.items())
    assert report.returncode == events.returncode == (3 if reasons else 0)
    return reasons


def cameras(out: Path) -> list[str]:
    return sorted({json.loads(path.read_text())["video"]["camera"] for path in (out / "events").rglob("*.json")})


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("video") / "a.mp4", frames=10, fps=10)


@pytest.fixture
def site(tmp_path: Path, video: Path) -> Path:
    for camera in ("gate", "yard"):
        (tmp_path / "site" / camera).mkdir(parents=True)
        shutil.copy(video, tmp_path / "site" / camera / "a.mp4")
    return tmp_path / "site"


def test_unreadable_files_are_reported_and_the_rest_is_scanned(site: Path, tmp_path: Path) -> None:
    before: list[str] = []
    if os.geteuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("root reads everything")
        before = NO_POWER
    make_image_folder(site / "frames", frames=3)
    closed = {name: site / name for name in ("lost+found", "no-search", "frames/in")}
    modes = {"lost+found": 0, "no-search": 0o444, "frames/in": 0}
    for name, folder in closed.items():
        folder.mkdir()
        shutil.copy(site / "gate" / "a.mp4", folder / "b.mp4")
        folder.chmod(modes[name])
        if before:
            os.chown(folder, 65534, 65534)
    inside = site / "lost+found" / "b.mp4"
    (tmp_path / "list").write_text(f"{inside}\n{site}/gate/a.mp4\n")
    try:
        found = vadcli("scan", site, "--frames-as-video", "--out", tmp_path / "out", before=before)
        alone = vadcli("scan", site / "lost+found", "--out", tmp_path / "alone", before=before)
        listed = vadcli("scan", "--files-from", tmp_path / "list", "--out", tmp_path / "listed", before=before)
    finally:
        for folder in closed.values():
            folder.chmod(0o755)
    assert found.returncode == 3, found.stderr
    for name in closed:
        assert f"{name}: failed: the folder can't be read: Permission denied\n" in found.stderr
    assert failures(tmp_path / "out") == dict.fromkeys(closed, "the folder can't be read: Permission denied")
    assert failures(tmp_path / "listed") == {"lost+found/b.mp4": "can't be read: Permission denied"}
    for name in ("frames: 3 frames", "gate/a.mp4: 10 frames", "yard/a.mp4: 10 frames"):
        assert f"\n{name}, " in found.stderr
    assert cameras(tmp_path / "out") == [".", "gate", "yard"]
    assert alone.returncode == 3
    assert f"{site}/lost+found: failed: the folder can't be read: Permission denied\n" in alone.stderr
    assert listed.returncode == 3
    assert "lost+found/b.mp4: failed: can't be read: Permission denied\n" in listed.stderr
    assert cameras(tmp_path / "listed") == ["gate"]
    assert vadcli("scan", site, "--out", tmp_path / "out").returncode == 0
    assert failures(tmp_path / "out") == {}  # the folders can be read again


def test_suffixes_that_are_not_scanned_are_counted(site: Path, tmp_path: Path) -> None:
    for name in ("v.m2t", "v.INSV", "v.dvr-ms", "v.xyz", "w.xyz", "v.webp", "noname", "notes.txt", "shot.jpg", "v.srt"):
        shutil.copy(site / "gate" / "a.mp4", site / "yard" / name)
    done = vadcli("scan", site / "yard", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    line = "4 files with unknown suffixes were passed over (.xyz 2, none 1, .webp 1; --include to add them)"
    assert line in done.stderr.splitlines()
    assert record(tmp_path / "out")["passed_over"] == {".xyz": 2, "": 1, ".webp": 1}
    assert len(list((tmp_path / "out" / "scores").glob("*.parquet"))) == 4
    (tmp_path / "other").mkdir()
    shutil.copy(site / "gate" / "a.mp4", tmp_path / "other" / "v.xyz")
    none = vadcli("scan", tmp_path / "other", "--out", tmp_path / "none")
    assert none.returncode == 2
    assert f"no video below {tmp_path}/other; 1 file with an unknown suffix was passed over (.xyz 1;" in none.stderr


def test_a_video_from_the_future_is_scanned_and_named(site: Path, tmp_path: Path) -> None:
    os.utime(site / "gate" / "a.mp4", (2_200_000_000, 2_200_000_000))  # 2039
    done = vadcli("scan", site, "--out", tmp_path / "out", "--min-age", "10m", "--dry-run")
    assert planned(done) == ["gate/a.mp4"]  # the other one was made just now
    assert "gate/a.mp4 is dated in the future" in done.stderr


def test_a_list_never_walks_everything(site: Path, tmp_path: Path) -> None:
    paths = f"{site}/gate/a.mp4\r\n{site}/yard/a.mp4\r\n"
    for data in (paths.encode("utf-16"), paths.encode("utf-8-sig"), paths.encode("utf-16-be")):
        done = vadcli("scan", "--files-from", "-", "--out", tmp_path / "out", "--dry-run", stdin=data)
        assert planned(done) == ["gate/a.mp4", "yard/a.mp4"]
    done = vadcli(
        "scan", "--files-from", "-", "--out", tmp_path / "out", "--dry-run", stdin=b"/\n%s/gate/a.mp4\n" % bytes(site)
    )
    assert (planned(done), "failed\t/" in done.stdout.splitlines()) == (["a.mp4"], True)
    empty = vadcli("scan", "--files-from", "-", "--out", tmp_path / "out", stdin=b"")
    assert (empty.returncode, "no video" in empty.stderr) == (0, True)  # a quiet night


def test_streams_are_not_read(site: Path, tmp_path: Path) -> None:
    for url in ("rtsp://camera.lan/1", "https://example.org/a.mp4"):
        done = vadcli("scan", url, "--out", tmp_path / "out")
        assert (done.returncode, f"error: {url}: this is a URL, and streams are not read\n" in done.stderr) == (2, True)
        assert "record the stream into files, and scan their folder" in done.stderr
    done = vadcli("scan", f"file://{site}", "--out", tmp_path / "out")
    assert (done.returncode, f"error: file://{site}: this is a URL" in done.stderr) == (2, True)
    assert "give the path without file://" in done.stderr
    listed = f"rtsp://camera.lan/1\n{site}/gate/a.mp4\n".encode()
    done = vadcli("scan", "--files-from", "-", "--out", tmp_path / "out", stdin=listed)
    assert (done.returncode, "\nrtsp://camera.lan/1: failed: this is a URL" in done.stderr) == (3, True)
    assert cameras(tmp_path / "out") == ["."]


def test_the_root_of_the_first_scan_stays(site: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = vadcli("scan", site / "gate", "--root", site, "--out", out)
    assert first.returncode == 0, first.stderr
    second = vadcli("scan", site / "yard", "--out", out)
    assert second.returncode == 0, second.stderr
    assert cameras(out) == ["gate", "yard"]
    assert record(out)["root"] == str(site)
    (tmp_path / "link").symlink_to(site)
    again = vadcli("scan", tmp_path / "link", "--out", out, "--json")
    assert [json.loads(line)["skipped"] for line in again.stdout.splitlines()[-1:]] == [2]
    other = vadcli("scan", site / "yard", "--root", site / "yard", "--out", out)
    assert other.returncode == 2
    assert f"--root {site}/yard: the names in {out} are relative to another root, {site}" in other.stderr
    outside = vadcli("scan", tmp_path / "list.mp4", "--out", out)
    assert "the file or folder does not exist" in outside.stderr


def test_without_a_root_the_first_scan_chooses_it(site: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = vadcli("scan", site / "gate", "--out", out)
    assert f"names of videos and cameras are relative to {site}/gate (--root)\n" in first.stderr
    second = vadcli("scan", site / "yard", "--out", out)
    assert second.returncode == 2
    assert second.stderr.count("\n") == 2  # the error and its hint
    assert f"{site}/yard: not below {site}/gate" in second.stderr
    assert f"--root {site}\n" in second.stderr
    assert cameras(out) == ["."]
    drawn = vadcli("render", site / "yard", "--out", out)
    assert (drawn.returncode, f"not below {site}/gate" in drawn.stderr) == (2, True)
    site.rename(tmp_path / "moved")
    moved = vadcli("scan", tmp_path / "moved" / "gate", "--out", out)
    assert (moved.returncode, "with --root" in moved.stderr) == (2, True)
    mended = vadcli("scan", tmp_path / "moved" / "gate", "--root", tmp_path / "moved" / "gate", "--out", out, "--json")
    assert json.loads(mended.stdout.splitlines()[-1])["skipped"] == 1


def test_the_root_of_a_running_scan_is_used_but_not_that_of_a_scan_without_results(site: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.mp4").write_bytes(b"")
    assert vadcli("scan", tmp_path / "empty", "--out", out).returncode == 3
    shutil.rmtree(out / "events")  # as if the scan had been stopped before its first video
    assert vadcli("scan", site / "gate", "--out", out, "--dry-run").returncode == 0
    path = next((out / "runs").iterdir())
    path.write_text(json.dumps({**json.loads(path.read_text()), "end": None, "exit_code": None}))
    assert vadcli("scan", site / "gate", "--out", out, "--dry-run").returncode == 2


def test_an_older_output_folder_with_two_roots_works_as_before(site: Path, tmp_path: Path) -> None:
    """In older versions, the root was the common ancestor of each scan's paths."""
    out = tmp_path / "out"
    assert vadcli("scan", site / "gate", "--out", out).returncode == 0
    newest = record(out)
    later = {
        **newest,
        "start": "2100-01-01T00:00:00+00:00",
        "root": str(site / "yard"),
        "roots": [str(site / "yard")],
        "files": [],
    }
    del later["passed_over"]
    for path in (out / "run.json", out / "runs" / "21000101T000000.000000Z.json"):
        path.write_text(json.dumps(later))
    done = vadcli("scan", site / "gate", "--out", out, "--json")
    assert json.loads(done.stdout.splitlines()[-1])["skipped"] == 1


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
