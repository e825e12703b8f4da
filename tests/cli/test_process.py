"""Commands as processes: exit codes, signals, kills, full disks, misbehaving decoders."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from tests.commands import vadcli
from tests.media import ffmpeg_exe, make_video, truncate
from tests.patience import PATIENCE_S

VADCLI = [sys.executable, "-m", "vadcli"]
WAIT_S = PATIENCE_S
LONG = 800  # frames of the video that is interrupted


def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*VADCLI, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def rows(out: Path, video: str) -> dict[str, np.ndarray]:
    table = pq.read_table(out / "scores" / f"{video}.parquet")
    return {name: table.column(name).to_numpy() for name in table.column_names if name != "video"}


def assert_same_rows(left: Path, right: Path, video: str) -> None:
    a, b = rows(left, video), rows(right, video)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def litter(out: Path) -> list[str]:
    """Return files that must not exist after a scan: temporary files, locks, checkpoints."""
    return [path.name for path in out.rglob("*") if path.name == ".tmp" or path.suffix in (".part", ".tmp")]


def named_memory(family: list[psutil.Process]) -> list[str]:
    """Return named shared memory of these processes, which would stay after they are killed."""
    maps = [item.path for process in family for item in getattr(process, "memory_maps", list)()]
    return [path for path in maps if path.startswith("/dev/shm/") and os.path.exists(path)]


@pytest.fixture(scope="session")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("footage")
    make_video(folder / "a.mp4", frames=20, fps=10)
    make_video(folder / "b.mp4", frames=30, fps=10)
    return folder


@pytest.fixture(scope="session")
def long_footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short video, and one that takes some seconds to scan."""
    folder = tmp_path_factory.mktemp("long")
    make_video(folder / "a.mp4", frames=20, fps=10)
    make_video(folder / "long.mp4", frames=LONG, fps=10, size=(320, 240))
    return folder


@pytest.fixture(scope="session")
def undisturbed(long_footage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    done = vadcli("scan", long_footage, "-o", out, "--masks", "video")
    assert done.returncode == 0, done.stderr
    return out


def test_a_scan_talks_to_stderr_and_keeps_stdout_for_data(footage: Path, tmp_path: Path) -> None:
    plain = vadcli("scan", footage, "-o", tmp_path / "one")
    assert (plain.returncode, plain.stdout) == (0, "")
    assert "a.mp4: 20 frames" in plain.stderr
    data = vadcli("scan", footage, "-o", tmp_path / "two", "--json", "--quiet")
    lines = [json.loads(line) for line in data.stdout.splitlines()]
    assert data.stderr == ""
    assert [line["type"] for line in lines] == ["video", "video", "summary"]
    assert {line["video"]: line["decoded_frames"] for line in lines[:-1]} == {"a.mp4": 20, "b.mp4": 30}
    assert lines[-1]["done"] == 2


def test_a_scan_continues_when_nobody_reads_stdout(footage: Path, tmp_path: Path) -> None:
    command = " ".join([*VADCLI, "scan", str(footage), "-o", str(tmp_path / "out"), "--json"])
    shell = subprocess.run(
        ["bash", "-c", f"{command} | true; exit ${{PIPESTATUS[0]}}"], capture_output=True, timeout=WAIT_S, check=False
    )
    assert shell.returncode == 0, shell.stderr
    assert len(list((tmp_path / "out" / "scores").glob("*.parquet"))) == 2
    closed = subprocess.run(["bash", "-c", f"{command} --force >&- 2>&-"], timeout=WAIT_S, check=False)
    assert closed.returncode == 0


def test_a_command_ends_quietly_when_the_reader_of_its_output_has_stopped(tmp_path: Path) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for number in range(3000):  # more than a pipe holds
        (many / f"a long name of a video {number}.mp4").touch()
    command = " ".join([*VADCLI, "scan", str(many), "--dry-run", "-o", str(tmp_path / "out")])
    shell = subprocess.run(
        ["bash", "-c", f"{command} | head -1; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert (shell.returncode, shell.stdout.count("\n")) == (0, 1)
    assert "pipe" not in shell.stderr.lower()
    assert shell.stderr.count("\n") == 1  # the root of the names


def test_one_line_says_that_categories_are_ignored(footage: Path, tmp_path: Path) -> None:
    done = vadcli("scan", footage, "-o", tmp_path / "out", "--categories", "fight,@ucf-crime")
    assert len([line for line in done.stderr.splitlines() if "categories" in line and "ignores" in line]) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["scan"], 2, "no PATHS"),
        (["scan", "{tmp}/nowhere"], 2, "the file or folder does not exist"),
        (["scan", "{tmp}/empty"], 2, "no video below"),
        (["scan", "{tmp}/empty", "--allow-empty"], 0, "no video found"),
        (["scan", "{footage}", "--no-such-option"], 2, "no-such-option"),
        (["scan", "{footage}", "--masks", "all"], 2, "not one of none, video, rle, both"),
        (["scan", "{footage}", "--categories", "@nothing"], 2, "lists: general"),
        (["scan", "{footage}", "--detector", "oracle"], 2, "not one of"),
        (["scan", "{footage}", "--device", "abacus"], 2, "is not a device"),
        (["scan", "{footage}", "--device", "cuda:99"], 4, "CUDA devices"),
        (["scan", "{footage}", "--out", "/proc/vadcli-out"], 1, "/proc/vadcli-out"),
        (["scan", "{footage}", "--out", "{tmp}/out", "--threshold", "0", "--low", "0", "--fail-on-event"], 10, "event"),
        (["scan", "{tmp}/broken", "--out", "{tmp}/out"], 3, "bad.mp4: failed"),
        (["scan", "{tmp}/broken", "--out", "{tmp}/out", "--threshold", "0", "--low", "0", "--fail-on-event"], 3, "bad.mp4"),
        (["scan", "{footage}", "--out", "{tmp}/file"], 1, "{tmp}/file: is a file, but must be a folder"),
        (["events", "{tmp}/nowhere"], 2, "the folder does not exist"),
        (["report", "{tmp}/file"], 2, "{tmp}/file: is a file, but must be a folder"),
        (["status", "{tmp}/file"], 2, "{tmp}/file: is a file, but must be a folder"),
        (["render", "{footage}", "--out", "{tmp}/nowhere"], 2, "scan first"),
    ],
)
def test_exit_codes(footage: Path, tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "bad.mp4").write_text("no video")
    (tmp_path / "broken" / "good.mp4").write_bytes((footage / "a.mp4").read_bytes())
    done = vadcli(*(text.format(tmp=tmp_path, footage=footage) for text in arguments), cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert words.format(tmp=tmp_path) in done.stderr
    assert "Traceback" not in done.stderr


def test_dry_run_writes_nothing(footage: Path, tmp_path: Path) -> None:
    done = vadcli("scan", footage, "-o", tmp_path / "out", "--dry-run")
    assert done.stdout.splitlines() == ["scan\ta.mp4", "scan\tb.mp4"]
    assert not (tmp_path / "out").exists()
    vadcli("scan", footage, "-o", tmp_path / "out")
    assert vadcli("scan", footage, "-o", tmp_path / "out", "--dry-run").stdout.splitlines() == ["done\ta.mp4", "done\tb.mp4"]


def test_dry_run_counts_the_partial_videos(tmp_path: Path) -> None:
    scan = ("scan", tmp_path / "videos", "-o", tmp_path / "out")
    (tmp_path / "videos").mkdir()
    whole = make_video(tmp_path / "videos" / "a.avi", "mpeg4", frames=80, fps=10)
    truncate(whole, tmp_path / "videos" / "cut.avi", 0.5)
    assert vadcli(*scan).returncode == 3
    make_video(tmp_path / "videos" / "new.avi", "mpeg4", frames=20, fps=10)
    done = vadcli(*scan, "--dry-run", "--no-refit")
    assert done.stdout.splitlines() == ["done\ta.avi", "partial\tcut.avi", "scan\tnew.avi"]
    assert done.stderr.splitlines()[-1] == "1 done, 1 partial, 1 scan; nothing was scanned (--dry-run)"


def test_a_list_on_stdin_and_the_environment(footage: Path, tmp_path: Path) -> None:
    listed = f"{footage / 'a.mp4'}\n"
    done = vadcli("scan", "--files-from", "-", "--json", stdin=listed, cwd=tmp_path, VADCLI_OUT="elsewhere")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "elsewhere" / "scores" / "a.mp4.parquet").exists()


def test_after_kill_9_the_scan_resumes_from_its_checkpoint(long_footage: Path, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    running = start("scan", long_footage, "-o", out, "--masks", "video")
    checkpoint = out / "scores" / ".long.mp4.parquet.part"
    wait_until(lambda: (checkpoint.exists() and checkpoint.stat().st_size > 15_000) or running.poll() is not None)
    family = psutil.Process(running.pid).children(recursive=True)
    assert named_memory(family) == []
    running.kill()
    running.communicate()
    assert family
    assert psutil.wait_procs(family, timeout=PATIENCE_S)[1] == []
    assert checkpoint.exists()
    finished = list((out / "scores").glob("*.parquet"))
    before = {path: path.stat().st_mtime_ns for path in finished}
    held = pq_rows_of(checkpoint)
    assert held > 0

    done = vadcli("scan", long_footage, "-o", out, "--masks", "video", "--json")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[-1]["frames"] <= LONG + 20 - held
    assert {path: path.stat().st_mtime_ns for path in finished} == before
    for video in ("a.mp4", "long.mp4"):
        assert_same_rows(undisturbed, out, video)
        name = f"masks/{video}.mkv"
        assert (undisturbed / name).read_bytes() == (out / name).read_bytes()
    assert litter(out) == []


def pq_rows_of(checkpoint: Path) -> int:
    from vadcli.store.checkpoint import read_checkpoint

    stored = read_checkpoint(checkpoint)
    return stored.rows if stored else 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_resumable_state(
    long_footage: Path, undisturbed: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "out"
    running = start("scan", long_footage, "-o", out, "--masks", "video")
    checkpoint = out / "scores" / ".long.mp4.parquet.part"
    wait_until(lambda: (checkpoint.exists() and checkpoint.stat().st_size > 15_000) or running.poll() is not None)
    family = psutil.Process(running.pid).children(recursive=True)
    running.send_signal(number)
    _, said = running.communicate(timeout=WAIT_S)
    assert running.returncode == code, said
    assert "the next run continues" in said
    assert psutil.wait_procs(family, timeout=PATIENCE_S)[1] == []
    assert json.loads((out / "run.json").read_text())["exit_code"] == code
    assert litter(out) == [".long.mp4.parquet.part"]
    assert vadcli("scan", long_footage, "-o", out, "--masks", "video").returncode == 0
    assert_same_rows(undisturbed, out, "long.mp4")
    assert litter(out) == []


def test_a_second_ctrl_c_is_stored_as_exit_code_130(long_footage: Path, tmp_path: Path) -> None:
    running = start("scan", long_footage, "-o", tmp_path / "out")
    # The scan must have begun: until then, a signal may interrupt the code that begins the run record.
    wait_until(lambda: list((tmp_path / "out").glob("scores/.*.part")) or running.poll() is not None)
    running.send_signal(signal.SIGINT)
    assert running.stderr
    while "SIGINT: finishing" not in (line := running.stderr.readline()):
        assert line, "the scan ended before the signal"
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=WAIT_S)
    assert running.returncode == 130, said
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (record["exit_code"], record["end"] is None) == (130, False)


def test_two_scans_share_one_output_folder(tmp_path: Path) -> None:
    folder, out = tmp_path / "many", tmp_path / "out"
    folder.mkdir()
    for number in range(8):
        make_video(folder / f"{number}.mp4", frames=20 + number, fps=10)
    pair = [start("scan", folder, "-o", out, "--json") for _ in range(2)]
    said = [running.communicate(timeout=WAIT_S) for running in pair]
    assert [running.returncode for running in pair] == [0, 0], said
    done = [line["video"] for text, _ in said for line in map(json.loads, text.splitlines()) if line.get("status") == "done"]
    assert sorted(done) == [f"{number}.mp4" for number in range(8)]
    assert vadcli("scan", folder, "-o", tmp_path / "alone").returncode == 0
    for number in range(8):
        assert_same_rows(tmp_path / "alone", out, f"{number}.mp4")
    assert len(list((out / "runs").glob("*.json"))) == 2
    assert litter(out) == []


FAKE_FFMPEG = """#!/bin/sh
case "$*" in
  *-version*) exec "{real}" "$@" ;;
  *bad.mp4*) {misbehave} ;;
  *) exec "{real}" "$@" ;;
esac
"""


@pytest.mark.parametrize(
    ("misbehave", "words"),
    [
        ("sleep 600", "made no progress"),
        ("kill -SEGV $$", ""),
        ('"{real}" "$@" 2>&2 | head -c 20000', "lost"),
        ("exit 0", ""),
    ],
    ids=["hangs", "segfaults", "returns short", "returns nothing"],
)
def test_a_misbehaving_decoder_fails_only_its_file(footage: Path, tmp_path: Path, misbehave: str, words: str) -> None:
    real = ffmpeg_exe()
    fake = tmp_path / "ffmpeg"
    fake.write_text(FAKE_FFMPEG.format(real=real, misbehave=misbehave.format(real=real)))
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    folder, out = tmp_path / "footage", tmp_path / "out"
    folder.mkdir()
    for name in ("a.mp4", "bad.mp4", "c.mp4"):
        (folder / name).write_bytes((footage / "b.mp4").read_bytes())
    timeout = "3s" if misbehave.startswith("sleep") else f"{PATIENCE_S}s"
    arguments = ("scan", folder, "-o", out, "--decoder", "ffmpeg", "--decode-timeout", timeout, "--json")
    done = vadcli(*arguments, VADCLI_FFMPEG=str(fake))
    assert done.returncode == 3, done.stderr
    results = {line["video"]: line for line in map(json.loads, done.stdout.splitlines()) if line["type"] == "video"}
    assert {video: line["status"] for video, line in results.items() if video != "bad.mp4"} == {
        "a.mp4": "done",
        "c.mp4": "done",
    }
    assert results["bad.mp4"]["status"] in ("failed", "partial")
    assert words in results["bad.mp4"]["reason"]
    assert len(rows(out, "a.mp4")["pts"]) == len(rows(out, "c.mp4")["pts"]) == 30
    assert litter(out) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB, if this user may make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("this user can't mount a small disk")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_is_one_line_per_file_and_no_file_is_incomplete(long_footage: Path, small_disk: Path) -> None:
    out = small_disk / "out"
    done = vadcli("scan", long_footage, "-o", out, "--masks", "video")
    assert done.returncode in (1, 3), done.stderr
    assert "no space left on the device" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (out / "scores" / "long.mp4.parquet").exists()
    assert not (out / "masks" / "long.mp4.mkv").exists()
    for path in out.rglob("*.json"):
        json.loads(path.read_text())
    subprocess.run(["mount", "-o", "remount,size=60m", str(small_disk)], check=True)
    assert vadcli("scan", long_footage, "-o", out, "--masks", "video").returncode == 0
    assert litter(out) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_output_is_one_line(footage: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o555)
    done = vadcli("scan", footage, "-o", tmp_path / "out" / "deep")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://127.0.0.1:{port}/a.ts\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile 'bait.mp4'\n",
        "http://127.0.0.1:{port}/a.mp4\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
        '<AdaptationSet mimeType="video/mp4">'
        "<Representation id='1' bandwidth='1'><BaseURL>http://127.0.0.1:{port}/a.mp4</BaseURL></Representation>"
        "</AdaptationSet></Period></MPD>",
    ],
    ids=["hls", "concat", "url", "dash"],
)
def test_a_playlist_with_the_name_of_a_video_opens_no_other_file(footage: Path, tmp_path: Path, text: str) -> None:
    folder = tmp_path / "footage"
    folder.mkdir()
    (folder / "bait.mp4").write_bytes((footage / "a.mp4").read_bytes())
    with socket.create_server(("127.0.0.1", 0)) as server:
        (folder / "dressed.mp4").write_text(text.format(port=server.getsockname()[1]))
        done = vadcli("scan", folder / "dressed.mp4", "-o", tmp_path / "out")
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.accept()
    assert done.returncode == 3
    assert "dressed.mp4: failed" in done.stderr
    assert not (tmp_path / "out" / "scores" / "dressed.mp4.parquet").exists()


def test_a_file_that_vanishes_is_reported(footage: Path, tmp_path: Path) -> None:
    folder = tmp_path / "footage"
    folder.mkdir()
    (folder / "a.mp4").write_bytes((footage / "a.mp4").read_bytes())
    (folder / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    done = vadcli("scan", folder, "-o", tmp_path / "out")
    assert done.returncode == 3
    assert "gone.mp4: failed" in done.stderr
    assert len(rows(tmp_path / "out", "a.mp4")["pts"]) == 20


def test_events_are_made_again_exported_and_checked(footage: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    vadcli("scan", footage, "-o", out)
    cut = vadcli("events", out, "--threshold", "0", "--low", "0", "--format", "csv")
    assert cut.returncode == 0
    assert [line.split(",")[0] for line in cut.stdout.splitlines()] == ["video", "a.mp4", "b.mp4"]
    stored = json.loads((out / "events" / "a.mp4.json").read_text())
    assert stored["threshold"]["high"] > 0
    vadcli("events", out, "--threshold", "0", "--low", "0", "--write")
    assert json.loads((out / "events" / "a.mp4.json").read_text())["threshold"]["high"] == 0
    assert vadcli("events", out, "--validate").returncode == 0
    written = vadcli("events", out, "--format", "vtt", "--to", tmp_path / "cues")
    assert written.stderr == f"{tmp_path}/cues: 2 events of 2 videos\n"
    assert (tmp_path / "cues" / "a.mp4.vtt").read_text().startswith("WEBVTT")
    assert vadcli("events", out, "--format", "edl").returncode == 2
    (out / "events" / "a.mp4.json").write_text('{"format_version": 1}')
    broken = vadcli("events", out, "--validate")
    assert broken.returncode == 3
    assert "a.mp4.json" in broken.stderr


def test_exports_for_other_tools_are_written_completely_or_not_at_all(footage: Path, tmp_path: Path) -> None:
    out, to = tmp_path / "out", tmp_path / "exported"
    vadcli("scan", footage, "-o", out, "--masks", "rle")
    everything = ("events", out, "--threshold", "0", "--low", "0", "--format")
    for name in ("fiftyone", "label-studio", "otio", "cvat"):
        done = vadcli(*everything, name, "--to", to)
        assert done.returncode == 0, done.stderr
    names = {path.relative_to(to).as_posix() for path in to.rglob("*")}
    assert names == {
        "labels.json",
        "label-studio.json",
        "label-studio.xml",
        *(f"{video}.mp4.{suffix}" for video in "ab" for suffix in ("otio", "cvat.xml")),
    }
    assert set(json.loads((to / "labels.json").read_text())["labels"]) == {"a", "b"}
    assert len(json.loads((to / "label-studio.json").read_text())) == 2
    assert "<name>a.mp4</name>" in (to / "a.mp4.cvat.xml").read_text()
    one = vadcli(*everything, "cvat", "--include", "a.mp4")
    assert one.stdout == (to / "a.mp4.cvat.xml").read_text()
    assert vadcli(*everything, "cvat").returncode == 2
    (to / "labels.json").write_text("as it was")
    (out / "events" / "a.avi.json").write_text((out / "events" / "a.mp4.json").read_text().replace("a.mp4", "a.avi"))
    (out / "scores" / "a.avi.parquet").write_bytes((out / "scores" / "a.mp4.parquet").read_bytes())
    told = vadcli(*everything, "fiftyone", "--to", to)
    assert told.returncode == 2
    assert "a.avi" in told.stderr
    assert (to / "labels.json").read_text() == "as it was"
    assert not (to / ".tmp").exists()


def test_render_after_scan(footage: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    vadcli("scan", footage, "-o", out, "--masks", "video")
    done = vadcli("render", footage / "a.mp4", "--out", out)
    assert done.returncode == 0, done.stderr
    assert (out / "rendered" / "a.mp4.mp4").stat().st_size > 1000
    assert litter(out) == []


def test_the_log_file_gets_the_lines_that_quiet_hides(footage: Path, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "night.log"
    done = vadcli("scan", footage, "-o", tmp_path / "out", "--log-file", log)
    assert done.returncode == 0
    assert "INFO a.mp4: 20 frames" in log.read_text()


def test_doctor_reports_each_part(tmp_path: Path) -> None:
    done = vadcli("doctor", "--json", "--out", tmp_path)
    checks = {check["name"]: check for check in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 0
    assert {"python", "ffmpeg", "decord", "torch", "device", "weights", "disk"} <= set(checks)
    assert checks["ffmpeg"]["ok"]
    without = vadcli("doctor", VADCLI_FFMPEG="/no/such/ffmpeg")
    assert without.returncode == 1
    assert "MISSING ffmpeg" in without.stdout
