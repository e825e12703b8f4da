"""Habits of scripts, cron and terminals: exit codes, new events, settings, the log, signals, the progress bar."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.commands import vadcli
from tests.media import make_video
from tests.patience import PATIENCE_S
from vadcli.store import OutputLayout

ROOT = Path(__file__).resolve().parents[2]
VADCLI = [sys.executable, "-m", "vadcli"]
ALL = ("--threshold", "0", "--low", "0", "-d", "motion")
"""Every video is one event from its beginning to its end."""
NONE = ("--threshold", "1", "-d", "motion")


def lines(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def footage(tmp_path: Path) -> Path:
    folder = tmp_path / "footage"
    folder.mkdir()
    for name in ("a.avi", "b.avi"):
        make_video(folder / name, "mpeg4", frames=10, fps=10)
    return folder


def test_a_broken_file_does_not_hide_events(footage: Path, tmp_path: Path) -> None:
    (footage / "broken.avi").write_text("not a video")
    out = tmp_path / "out"
    both = vadcli("scan", footage, "-o", out, *ALL, "--fail-on-event", "--json", "-q")
    assert both.returncode == 3
    wanted = {"type": "summary", "videos": 3, "done": 2, "failed": 1, "skipped": 0, "lost": 1, "events": 2, "exit_code": 3}
    assert wanted.items() <= lines(both)[-1].items()
    first = vadcli("scan", footage, "-o", out, *ALL, "--fail-on-event", "--events-first", "--json", "-q")
    assert first.returncode == 10
    assert {"skipped": 3, "lost": 1, "events": 2, "new_events": 0, "exit_code": 10}.items() <= lines(first)[-1].items()
    stored = json.loads((out / "run.json").read_text())
    assert (stored["exit_code"], stored["totals"]["lost"], stored["totals"]["events"]) == (10, 1, 2)
    for command in ("events", "report"):
        flags = ("--fail-on-event", "--events-first")
        assert [vadcli(command, out, *flags[:count]).returncode for count in (1, 2)] == [3, 10]


def test_the_loop_of_the_docs_names_the_camera_with_events(footage: Path, tmp_path: Path) -> None:
    (block,) = re.findall(r"```sh\n(for camera.*?)```", (ROOT / "docs" / "using.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "nvr" / "gate").mkdir(parents=True)
    (tmp_path / "nvr" / "yard").mkdir()
    (footage / "a.avi").rename(tmp_path / "nvr" / "gate" / "a.avi")
    (tmp_path / "nvr" / "gate" / "broken.avi").write_text("not a video")
    (footage / "b.avi").rename(tmp_path / "nvr" / "yard" / "b.avi")
    (tmp_path / "vadcli.toml").write_text(
        '[scan]\ndetector = "motion"\nthreshold = 0\nlow = 0\nexclude = ["b.*"]\nallow-empty = true\n'
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["/bin/sh", "-c", block.replace("/nvr", "nvr")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={**os.environ, "PATH": path},
        check=False,
    )
    assert re.findall(r"look at (\S+)", done.stdout) == ["nvr/gate/"], done.stderr


def test_a_command_runs_once_per_new_event(footage: Path, tmp_path: Path) -> None:
    out, told = tmp_path / "out", tmp_path / "told"
    hook = ("--on-event", f"cat >> '{told}'; echo said; echo said >&2")
    first = vadcli("scan", footage, "-o", out, *ALL, *hook, "--json")
    assert (first.returncode, first.stderr.count("said\n")) == (0, 4)
    found = [json.loads(line) for line in told.read_text().splitlines()]
    printed = [line for line in lines(first) if line["type"] == "event"]
    assert sorted(found, key=lambda line: line["video"]) == sorted(printed, key=lambda line: str(line["video"]))
    assert {(line["video"], line["start_s"], line["end_s"]) for line in found} == {("a.avi", 0.0, 1.0), ("b.avi", 0.0, 1.0)}
    assert found[0]["path"] == str(footage / found[0]["video"])
    # Not new: the next night, other thresholds, a scan from the beginning.
    for options in ((*ALL,), (*ALL, "--pad", "1s"), (*ALL, "--force")):
        again = vadcli("scan", footage, "-o", out, *options, *hook, "--json", "-q")
        assert (lines(again)[-1]["events"], lines(again)[-1]["new_events"]) == (2, 0)
    assert len(told.read_text().splitlines()) == 2
    # New: a file with other content, also under an old name.
    make_video(footage / "b.avi", "mpeg4", frames=14, fps=10)
    vadcli("scan", footage, "-o", out, *ALL, *hook, "-q")
    assert [json.loads(line)["end_s"] for line in told.read_text().splitlines()[2:]] == [1.4]


def test_events_of_another_threshold_and_old_events(footage: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert vadcli("scan", footage, "-o", out, *NONE, "-q").returncode == 0
    recut = vadcli("scan", footage, "-o", out, *ALL, "--json", "-q")
    assert {line["video"] for line in lines(recut) if line["type"] == "event"} == {"a.avi", "b.avi"}
    (out / "reported.jsonl").unlink()  # an output folder of an earlier version
    again = vadcli("scan", footage, "-o", out, *ALL, "--force", "--json", "-q")
    assert lines(again)[-1]["new_events"] == 0


def test_a_command_gets_the_environment_that_the_scan_was_started_with(footage: Path, tmp_path: Path) -> None:
    told = tmp_path / "told"
    scan = [*VADCLI, "scan", str(footage), "-o", str(tmp_path / "out"), *ALL, "--on-event", f"env > '{told}'", "-q"]
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    assert subprocess.run(scan, env=environment, timeout=PATIENCE_S, check=False).returncode == 0
    names = {line.partition("=")[0] for line in told.read_text().splitlines()}
    assert "PATH" in names
    assert "OPENBLAS_NUM_THREADS" not in names


def test_a_command_that_fails_is_logged_and_stops_nothing(footage: Path, tmp_path: Path) -> None:
    done = vadcli("scan", footage, "-o", tmp_path / "out", *ALL, "--on-event", "grep -q a.avi && exit 7; true", "-q")
    assert done.returncode == 0
    assert done.stderr == "--on-event: a.avi, event at 0:00:00: the command ended with exit status 7\n"


def test_a_command_that_hangs_is_killed_with_its_children_and_stops_nothing(footage: Path, tmp_path: Path) -> None:
    duration = f"600.{time.time_ns()}"  # no other process has this in its command line
    options = ("--on-event", f"sleep {duration} & wait", "--on-event-timeout", "200ms", "-q")
    done = vadcli("scan", footage, "-o", tmp_path / "out", *ALL, *options)
    assert done.returncode == 0
    assert sorted(done.stderr.splitlines()) == [
        f"--on-event: {name}.avi, event at 0:00:00: the command took longer than 0.2 s and was killed" for name in "ab"
    ]
    left = [process for process in psutil.process_iter(["cmdline"]) if duration in " ".join(process.info["cmdline"] or ())]
    assert psutil.wait_procs(left, timeout=PATIENCE_S)[1] == []


def test_an_old_file_that_cannot_be_removed_is_one_line(footage: Path, tmp_path: Path) -> None:
    """This is a fault of the machine and not of the video: nothing is stored, so that the next scan tries again."""
    (footage / "broken.avi").write_text("not a video")
    out = tmp_path / "out"
    layout = OutputLayout(out)
    kept = [layout.mask_video("a.avi"), layout.embeddings("b.avi"), layout.mask_video("broken.avi")]
    for path in kept:
        (path / "full").mkdir(parents=True)
    done = vadcli("scan", footage, "-o", out, *ALL, "--json", "-q")
    assert (done.returncode, "Traceback" in done.stderr) == (3, False)
    results = {line["video"]: line for line in lines(done) if line["type"] == "video"}
    assert {result["stage"] for result in results.values()} == {"write"}
    assert all(str(path) in str(results[path.name.rsplit(".", 1)[0]]["reason"]) for path in kept)
    assert not any(layout.events(video).exists() for video in results)


def test_a_stopped_scan_reports_the_remaining_events_later(footage: Path, tmp_path: Path) -> None:
    """The next scan reports only the events whose command had not started when the scan was killed."""
    for number in range(6):
        (footage / f"c{number}.avi").write_bytes((footage / "a.avi").read_bytes())
    told, out = tmp_path / "told", tmp_path / "out"
    command = f"cat >> '{told}'; while [ -e '{told}.hold' ]; do sleep 0.05; done"
    (tmp_path / "told.hold").touch()
    scan = [*VADCLI, "scan", str(footage), "-o", str(out), *ALL, "--on-event", command, "-q"]
    running = subprocess.Popen(scan, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE_S
    while len(list((out / "events").glob("*.json"))) < 8 or not told.exists() or len(told.read_text().splitlines()) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    running.kill()
    running.wait()
    (tmp_path / "told.hold").unlink()
    assert subprocess.run(scan, timeout=PATIENCE_S, check=False).returncode == 0
    videos = sorted(json.loads(line)["video"] for line in told.read_text().splitlines())
    assert videos == ["a.avi", "b.avi", *(f"c{number}.avi" for number in range(6))]


@pytest.mark.parametrize("way", ["environment", "file"])
def test_the_output_folder_is_set_once_for_every_command(footage: Path, tmp_path: Path, way: str) -> None:
    out = tmp_path / "elsewhere"
    environment: dict[str, Any] = {"VADCLI_OUT": str(out)} if way == "environment" else {}
    (tmp_path / "truth.csv").write_text("video,start_s,end_s\na.avi,0.2,0.4\nb.avi,,\n")
    if way == "file":
        (tmp_path / "vadcli.toml").write_text(f'[scan]\nout = "{out}"\n[report]\ntitle = "Night"\n')
    for command in (
        ("scan", "footage", *ALL, "-q"),
        ("status",),
        ("events", "--validate"),
        ("report", "-q"),
        ("render", "footage", "--include", "a.avi"),
        ("eval", "--root", "truth.csv", "--bootstrap", "0"),
    ):
        done = vadcli(*command, cwd=tmp_path, **environment)
        assert done.returncode == 0, (command, done.stderr)
    assert not (tmp_path / "vadcli-out").exists()
    assert (out / "report.html").is_file()
    assert (out / "rendered" / "a.avi.mp4").is_file()
    search = vadcli("search", "a red car", cwd=tmp_path, **environment)
    assert f"{out}: contains no stored vectors" in search.stderr
    other = vadcli("events", "nowhere", cwd=tmp_path, **environment)
    assert "nowhere: the folder does not exist" in other.stderr


def test_the_log_file_gets_all_lines_with_quiet_and_an_empty_list_is_no_error(footage: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    night = ("scan", "--files-from", "-", "-o", tmp_path / "out", *ALL, "--quiet", "--log-file", log, "--json")
    first = vadcli(*night, stdin=f"{footage}/a.avi\n")
    assert (first.returncode, first.stderr) == (0, "")
    said = log.read_text()
    assert "INFO a.avi: 10 frames, 1 event" in said
    assert "INFO 1 done; 1 event" in said
    for nothing_new in ("", "\n"):
        quiet = vadcli(*night, stdin=nothing_new)
        assert (quiet.returncode, quiet.stderr) == (0, "")
        assert {"type": "summary", "videos": 0, "done": 0, "failed": 0, "exit_code": 0}.items() <= lines(quiet)[-1].items()
    wrong = vadcli("scan", tmp_path / "none", *night[3:])
    assert wrong.returncode == 2
    assert f"ERROR {tmp_path / 'none'}: the file or folder does not exist" in log.read_text()


def test_an_interrupted_scan_prints_one_line_about_all_videos_not_finished(tmp_path: Path) -> None:
    footage = tmp_path / "footage"
    footage.mkdir()
    make_video(footage / "a.avi", "mpeg4", frames=1200, fps=10, size=(320, 240))
    for number in range(20):
        (footage / f"b{number}.avi").write_bytes((footage / "a.avi").read_bytes())
    scan = [*VADCLI, "scan", str(footage), "-o", str(tmp_path / "out"), "-d", "motion", "--json", "--workers", "1"]
    running = subprocess.Popen(scan, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + PATIENCE_S
    while not list((tmp_path / "out").glob("scores/.*.part")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGINT)  # as Ctrl-C does: the decoders get it too
    stdout, stderr = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 130
    *_, last = stderr.splitlines()
    assert stderr.count("SIGINT: finishing the current clips") == 1
    assert re.match(r"stopped \(SIGINT\): (\d+ done, )?\d+ not finished; ", last), last
    assert stderr.count("not finished") == 1
    summary = json.loads(stdout.splitlines()[-1])
    assert (summary["exit_code"], summary["stopped"]) == (130, "SIGINT")
    assert summary["unfinished"] + summary["done"] == 21
    totals = json.loads((tmp_path / "out" / "run.json").read_text())["totals"]
    assert {name: totals[name] for name in ("done", "skipped", "unfinished")} == {
        "done": summary["done"],
        "skipped": 0,
        "unfinished": summary["unfinished"],
    }
    told = vadcli("status", tmp_path / "out").stdout
    assert f"  {totals['done']}/21 videos: {totals['done']} done, {totals['unfinished']} not finished; " in told


def test_the_progress_bar_says_that_a_camera_is_learned(footage: Path, tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 120))
    scan = [*VADCLI, "scan", str(footage), "-o", str(tmp_path / "out"), "-d", "motion"]
    running = subprocess.Popen(scan, stderr=follower)
    os.close(follower)
    shown = b""
    while True:
        try:
            shown += os.read(leader, 4096)
        except OSError:  # the other end is closed
            break
    assert running.wait(timeout=PATIENCE_S) == 0
    os.close(leader)
    assert re.search(rb"0/2 videos, fitting the camera of the root folder \(\d+ frames read\), ETA \?", shown)
    assert b"2 done" in shown
