"""The command `vadcli verify`: a model from another package, kill -9, exit codes, and the output of other commands."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands import vadcli
from tests.patience import PATIENCE_S
from tests.verify.planted import VIDEOS, make_archive, scanned

ENTRY_POINTS = "[vadcli.askers]\nplanted = tests.verify.planted:load_planted\nslow = tests.verify.planted:load_slowly\n"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make footage, its scan, and a package with two models."""
    folder = tmp_path_factory.mktemp("archive")
    scanned(make_archive(folder / "footage"), folder / "out")
    info = folder / "site" / "models-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: models\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return folder


@pytest.fixture
def work(archive: Path, tmp_path: Path) -> Path:
    """Make a working folder with a copy of the scan, and return it."""
    shutil.copytree(archive / "out", tmp_path / "out")
    (tmp_path / "site").symlink_to(archive / "site")
    return tmp_path


def path_of(work: Path) -> str:
    return os.pathsep.join([str(work / "site"), str(ROOT)])


def run(work: Path, *arguments: str) -> tuple[int, str, str]:
    done = vadcli(*arguments, cwd=work, PYTHONPATH=path_of(work))
    return done.returncode, done.stdout, done.stderr


def test_a_run_that_is_killed_continues(work: Path) -> None:
    """The next run does not ask again about clips whose answers are stored."""
    arguments = ("verify", "out", "--model", "slow", "--categories", "fight", "--checkpoint-every", "0s", "--share", "60%")
    command = [sys.executable, "-m", "vadcli", *arguments]
    process = subprocess.Popen(
        command, cwd=work, env={**os.environ, "PYTHONPATH": path_of(work)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    stored = work / "out" / "verify" / "yard" / "a.mp4.parquet"
    deadline = time.monotonic() + PATIENCE_S
    while not stored.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    asked = len((work / "asked.log").read_text().splitlines())
    assert asked > 0
    code, out, error = run(work, *arguments, "--json")
    assert code == 0, error
    summary = json.loads(out.splitlines()[-1])
    assert summary["asked"] > 0
    whole = len((work / "asked.log").read_text().splitlines())
    total = sum(json.loads(line)["answered"] for line in out.splitlines()[:-1])
    assert whole < asked + total  # the second run did not ask again about some clips
    assert total == whole - (asked - (total - summary["asked"]))
    again, out, _ = run(work, *arguments, "--json")
    assert again == 0
    assert json.loads(out.splitlines()[-1])["asked"] == 0


def test_what_other_commands_show(work: Path) -> None:
    code, _, error = run(work, "verify", "out", "--model", "planted", "--describe", "--fail-on-event")
    assert code == 10
    assert "1 event confirmed by planted, 1 rejected, 0 not asked about" in error
    assert "audit: the model confirmed 0 of" in error
    rows = run(work, "events", "out", "--format", "csv")[1].splitlines()
    assert rows[0].endswith("verification,verified_by,description")
    assert [row.split(",")[19] for row in rows[1:]] == ["confirmed", "rejected"]
    assert "confirmed by planted" in run(work, "events", "out", "--format", "vtt", "--include", "yard/b.mp4")[1]
    assert "verification" not in run(work, "events", "out", "--no-verify", "--json")[1]
    assert run(work, "events", "out", "--validate")[0] == 0
    text = run(work, "report", "out", "--format", "markdown")[1]
    assert "confirmed by planted" in text
    assert "rejected by planted" in text
    assert run(work, "report", "out", "--thumbnails", "0")[0] == 0
    record = json.loads((work / "out" / "verify.json").read_text())
    assert (record["model"], record["confirmed"], record["rejected"], record["not_asked"]) == ("planted", 1, 1, 0)
    assert (record["exit_code"], record["audit"]["confirmed"], record["command"][1:3]) == (10, 0, ["verify", "out"])
    assert record["start"] < record["end"]
    told = "1 event confirmed, 1 rejected, 0 not asked"
    assert told in text
    assert "of the footage that was not proposed: at most" in text
    digest = json.loads(run(work, "report", "out", "--format", "json")[1])
    assert digest["verification"]["audit"] == record["audit"]
    page = (work / "out" / "report.html").read_text()
    assert told in page
    assert "confirmed by planted" in page
    assert "planted says: " in page


def test_scan_and_verify_in_one_run(work: Path, archive: Path) -> None:
    shutil.rmtree(work / "out")
    video = archive / "footage" / "yard" / "b.mp4"
    code, _, error = run(work, "scan", str(video), "--detector", "motion", "--verify", "planted", "--out", "out")
    assert code == 0, error
    assert "confirmed by planted" in error
    assert len(list((work / "out" / "verify").rglob("*.parquet"))) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("verify", "nowhere"), 2, "does not exist"),
        (("verify", "out", "--share", "0%"), 2, "--share"),
        (("verify", "out", "--share", "much"), 2, "not a share"),
        (("verify", "out", "--compression", "2"), 2, "--compression"),
        (("verify", "out", "--limit", "0"), 2, "--limit"),
        (("verify", "out", "--model", "planted", "--categories", "@nothing"), 2, "@nothing"),
        (("verify", "out", "--model", "qwen2-vl-2b"), 4, "vadcli weights pull qwen2-vl-2b"),
        (("scan", ".", "--verify", "qwen2-vl-2b", "--allow-empty"), 4, "vadcli weights pull qwen2-vl-2b"),
    ],
)
def test_bad_input_is_one_line(work: Path, arguments: tuple[str, ...], code: int, told: str) -> None:
    (work / "empty.mp4").write_bytes(b"")
    found, _, error = run(work, *arguments)
    assert (found, told in error) == (code, True), error
    assert len(error.strip().splitlines()) <= 2
    assert "Traceback" not in error


def test_a_dry_run_says_how_long_it_takes(work: Path) -> None:
    code, out, _ = run(work, "verify", "out", "--model", "planted", "--dry-run")
    assert code == 0
    assert "clips to ask about; this takes about 0:00:0" in out
    assert not (work / "out" / "verify").exists()
    assert len(VIDEOS) == 3
