"""`vadcli prune`: the results that it removes, and those that it keeps because a share may not be mounted."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from tests.commands import vadcli
from tests.media import make_video
from vadcli.store import OutputLayout


def results(out: Path) -> set[str]:
    """Return the files of results, without the run records."""
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    return {name for name in files if not name.startswith("run")}


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three cameras; one video has a date in its name, one is broken."""
    folder = tmp_path_factory.mktemp("prune")
    nvr = folder / "nvr"
    for camera in ("gate", "yard/2024-11-29", "hall"):
        (nvr / camera).mkdir(parents=True)
    one = make_video(nvr / "gate" / "a.mp4", frames=10, fps=10)
    for name in ("gate/b.mp4", "yard/2024-11-29/20241129_142345.mp4", "hall/c.mp4"):
        shutil.copyfile(one, nvr / name)
    (nvr / "hall" / "broken.mp4").write_bytes(b"no video")
    done = vadcli("scan", nvr, "-o", folder / "out", "--masks", "both")
    assert done.returncode == 3, done.stderr
    assert vadcli("render", nvr / "gate", "-o", folder / "out").returncode == 0
    return folder


@pytest.fixture
def nvr(scanned: Path) -> Path:
    """The footage, which is restored after each test."""
    kept = scanned / "kept"
    if not kept.exists():
        shutil.copytree(scanned / "nvr", kept, copy_function=shutil.copy2)
        shutil.copytree(scanned / "out", scanned / "kept-out", copy_function=shutil.copy2)
    for name, source in (("nvr", kept), ("out", scanned / "kept-out")):
        shutil.rmtree(scanned / name, ignore_errors=True)
        shutil.copytree(source, scanned / name, copy_function=shutil.copy2)
    return scanned / "nvr"


def test_results_of_missing_videos_are_removed(nvr: Path) -> None:
    out = nvr.parent / "out"
    before = results(out)
    nothing = vadcli("prune", out)
    assert (nothing.returncode, nothing.stdout, results(out)) == (0, "", before)
    (nvr / "gate" / "a.mp4").unlink()
    (nvr / "yard").rename(nvr / "court")  # a renamed camera
    (nvr / "hall" / "broken.mp4").unlink()
    (out / "masks" / "old.mp4.mkv").write_bytes(bytes(1000))
    (out / "scores" / "gate" / ".gone.mp4.parquet.part").write_bytes(bytes(500))
    (out / "scores" / "gate" / ".b.mp4.parquet.part").write_bytes(bytes(500))
    before = results(out)

    listed = vadcli("prune", out, "--dry-run", "--json")
    assert (listed.returncode, results(out)) == (0, before)
    *rows, total = map(json.loads, listed.stdout.splitlines())
    gone = {"gate/a.mp4", "yard/2024-11-29/20241129_142345.mp4", "hall/broken.mp4"}
    files = {"masks/old.mp4.mkv", "scores/gate/.gone.mp4.parquet.part", "cameras/yard/2024-11-29.json"}
    assert {row["name"] for row in rows} == gone | files
    assert total["bytes"] == sum(row["bytes"] for row in rows) > 1500

    done = vadcli("prune", out)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 6
    assert "gate/a.mp4: no longer exists, 5 files, " in done.stdout
    assert "6 removed, " in done.stderr
    left = results(out)
    removed = before - left
    assert sum(name.startswith("rendered/") for name in removed) == 1
    assert not {name for name in removed if "b.mp4" in name or "c.mp4" in name}
    assert not [name for name in left if "a.mp4" in name or "yard" in name or "broken" in name or "old" in name]
    assert not (out / "scores" / "yard").exists()
    assert not (out / ".tmp").exists()
    status = vadcli("scan", nvr, "-o", out, "--json", "--no-refit").stdout
    seen = {line["video"]: line["status"] for line in map(json.loads, status.splitlines()) if line["type"] == "video"}
    assert seen == {"court/2024-11-29/20241129_142345.mp4": "done", "gate/b.mp4": "skipped", "hall/c.mp4": "skipped"}
    assert vadcli("report", out, "--format", "json").returncode == 0


def test_results_of_a_share_that_is_not_mounted_stay(nvr: Path) -> None:
    out, before = nvr.parent / "out", results(nvr.parent / "out")
    hall = nvr.parent / "hall"
    (nvr / "hall").rename(hall)
    (nvr / "hall").mkdir()  # the mount point of one camera's share
    (nvr / "gate" / "a.mp4").unlink()
    one = vadcli("prune", out, "--dry-run")
    assert one.returncode == 3
    assert one.stdout.startswith("gate/a.mp4: ")
    assert one.stdout.count("\n") == 1
    assert "the results of 2 videos are kept" in one.stderr
    assert "hall/broken.mp4" in one.stderr

    away = nvr.parent / "away"
    nvr.rename(away)
    # no folder, an empty folder, another disk
    for new in (None, nvr, nvr / "lost+found"):
        if new is not None:
            new.mkdir()
        refused = vadcli("prune", out)
        assert (refused.returncode, refused.stdout, results(out)) == (2, "", before)
        assert "nothing is removed" in refused.stderr
        assert str(nvr) in refused.stderr
    aged = vadcli("prune", out, "--no-missing", "--older-than", "3650d")
    assert (aged.returncode, aged.stdout, results(out)) == (0, "", before)
    moved = vadcli("prune", out, "--footage", away, "--dry-run")
    assert moved.stdout == one.stdout


def test_old_results_are_removed_and_those_of_a_running_scan_stay(nvr: Path) -> None:
    out = nvr.parent / "out"
    old = time.time() - 10 * 86400
    for name in ("gate/a.mp4", "gate/b.mp4", "hall/c.mp4"):  # their start is the time of their last change
        path = out / "events" / f"{name}.json"
        document = json.loads(path.read_text())
        start = {"start_time": None, "time_source": None, "time_zone": None}
        document["video"].update(start)
        for event in document["events"]:
            event.update(start_time=None, end_time=None)
        document["scan"]["source"].pop("mtime_ns")
        path.write_text(json.dumps(document))
    for name in ("gate/a.mp4", "gate/b.mp4"):  # scanned ten days ago
        os.utime(out / "scores" / f"{name}.parquet", (old, old))
    with OutputLayout(out).checkpoint("gate/b.mp4").open("wb") as claimed:
        fcntl.flock(claimed, fcntl.LOCK_EX)
        done = vadcli("prune", out, "--older-than", "7d")
    assert done.returncode == 0, done.stderr
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == [
        "gate/a.mp4",
        "yard/2024-11-29/20241129_142345.mp4",
    ]
    assert "gate/b.mp4: a scan works on this video" in done.stderr
    assert (out / "events" / "gate" / "b.mp4.json").exists()
    assert (out / "cameras" / "gate.json").exists()
    assert vadcli("prune", out, "--older-than", "7d", "--quiet").stdout == ""
    assert not (out / "events" / "gate").exists()
    assert (out / "cameras" / "gate.json").exists()  # the camera still records
    assert vadcli("prune", nvr).returncode == 2
