"""Scans on a cluster: the order of the chunks, the nodes that take part, and workers that die."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from shutil import copyfile
from threading import Thread
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vadcli
from tests.conftest import NODE
from tests.media import make_video
from tests.patience import PATIENCE_S
from vadcli import __version__
from vadcli.engine.plan import Plan, WorkUnit
from vadcli.engine.ray_cluster import check_node
from vadcli.engine.ray_runner import Worklist
from vadcli.engine.runner import ScanSettings
from vadcli.errors import UsageError
from vadcli.options import ScanOptions
from vadcli.store import OutputLayout
from vadcli.store.atomic import Claim
from vadcli.store.run_log import read_run
from vadcli.store.scores import read_scores
from vadcli.types import Status, VideoResult

SIZES = st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(0, 10**9)), max_size=60)


def settings_of(videos: list[tuple[str, int]], only: frozenset[str] | None = None) -> ScanSettings:
    units = tuple(
        WorkUnit(f"{camera}/{number}.mp4", Path(f"{camera}/{number}.mp4"), camera, size, 0)
        for number, (camera, size) in enumerate(sorted(videos))
    )
    return ScanSettings(Plan(Path(), ("",), units), ScanOptions(), videos=only)


@settings(max_examples=80)
@given(SIZES, st.integers(1, 9), st.booleans(), st.randoms(use_true_random=False))
def test_each_video_is_handed_out_once(
    videos: list[tuple[str, int]], workers: int, by_cameras: bool, dice: random.Random
) -> None:
    wanted = settings_of(videos)
    only = frozenset(unit.video for unit in wanted.units if dice.random() < 0.7)
    mine = replace(wanted, videos=only).units
    work = Worklist(wanted.units, mine, by_cameras=by_cameras, workers=workers, decoders=dice.randint(1, 8))
    handed: list[str] = []
    unopened: set[str] = set()
    running = []
    while work or running:
        if work and (not running or dice.random() < 0.5):
            chunk = work.take()
            assert chunk.camera not in unopened  # one chunk at a time, until the camera has a model
            assert chunk.fits_camera == (
                by_cameras and chunk.camera not in {one.camera for one in handed_chunks(handed, wanted)}
            )
            unopened |= {chunk.camera} if chunk.fits_camera else set()
            running.append(chunk)
            continue
        chunk = running.pop(dice.randrange(len(running)))
        handed += chunk.left
        if chunk.fits_camera:
            unopened.discard(chunk.camera)
            work.open(chunk.camera)
    assert sorted(handed) == sorted(only)


def handed_chunks(handed: list[str], wanted: ScanSettings) -> list[WorkUnit]:
    return [unit for unit in wanted.units if unit.video in handed]


def test_a_camera_without_a_model_gets_one_chunk_after_the_other() -> None:
    units = settings_of([("a", 100)] * 10).units
    work = Worklist(units, units, by_cameras=True, workers=1)
    first = work.take()
    assert (first.fits_camera, len(first.units), bool(work)) == (True, 2, False)
    work.next_of("a")  # it ended, and the camera has no model yet
    second = work.take()
    assert (second.fits_camera, bool(work)) == (True, False)
    work.give_back("a", second.units)  # its worker died
    third = work.take()
    assert third.fits_camera
    work.open("a")
    rest = []
    while work:
        rest.append(work.take())
    assert not any(chunk.fits_camera for chunk in rest)
    assert {unit.video for chunk in (first, third, *rest) for unit in chunk.units} == {f"a/{n}.mp4" for n in range(10)}


def test_the_largest_videos_come_first_and_chunks_are_bounded() -> None:
    units = settings_of([("a", 1)] * 200 + [("a", 10**6)]).units
    work = Worklist(units, units, by_cameras=False, workers=4)
    chunks = []
    while work:
        chunks.append(work.take())
    assert chunks[0].units[-1].size == 10**6
    assert max(len(chunk.units) for chunk in chunks) <= 64


def test_a_node_says_why_it_cannot_take_part(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("word")
    assert check_node(token, "word", tmp_path, __version__) == ""
    assert "another folder" in check_node(token, "other", tmp_path, __version__)
    assert "does not see the output folder" in check_node(tmp_path / "none", "word", tmp_path, __version__)
    assert "does not see the footage" in check_node(token, "word", tmp_path / "none", __version__)
    assert check_node(token, "word", tmp_path, "9.9") == f"it has vadcli {__version__}, and this machine has 9.9"


def test_without_ray_the_command_to_install_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_video(tmp_path / "a.mp4", frames=4)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"Ray is not installed \(pip install 'vadcli\[ray\]'\)"):
        list(vadcli.scan(tmp_path, out=tmp_path / "out", detector="motion", runner="ray"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ray_cpus": 2}, "add --runner ray"),
        ({"runner": "ray", "ray_cpus": 0}, "--ray-cpus 0 must be at least 1"),
        ({"runner": "ray", "ray_gpus": -1.0}, "--ray-gpus -1 must be at least 0"),
        ({"runner": "slurm"}, "slurm"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        vadcli.scan(".", **options)


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("footage")
    for camera in ("gate", "yard"):
        (folder / camera).mkdir()
        for number in range(3):
            make_video(folder / camera / f"{number}.mp4", frames=90 + number, fps=10)
    return folder


def scan(footage: Path, out: Path, **options: object) -> dict[str, VideoResult]:
    found = vadcli.scan(footage, **{"out": out, "detector": "motion", **options})
    return {result.video: result for result in found}


def rows_of(out: Path) -> dict[str, bytes]:
    return {path.name: read_scores(path)[0].logit.tobytes() for path in sorted(OutputLayout(out).iter_scores())}


def workers_of_this_test() -> list[psutil.Process]:
    """The workers on the nodes that this process has started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            found += [process] if "ray::ChunkWorker" in " ".join(process.cmdline()) else []
    return found


def killer(dice: random.Random, *, times: int, killed: list[int], done: list[bool]) -> None:
    """Kill a worker at a random moment of its life, several times."""
    end = time.monotonic() + PATIENCE_S
    while len(killed) < times and not done and time.monotonic() < end:
        if there := workers_of_this_test():
            time.sleep(dice.uniform(0.0, 2.0))
            chosen = dice.choice(there)
            with suppress(psutil.NoSuchProcess):
                chosen.kill()
                killed.append(chosen.pid)
        time.sleep(0.05)


@pytest.fixture(scope="module")
def reference(footage: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The rows of a scan without a cluster."""
    out = tmp_path_factory.mktemp("reference") / "out"
    scan(footage, out)
    return rows_of(out)


@pytest.mark.parametrize("seed", range(int(os.environ.get("VADCLI_TEST_SEEDS", "1"))))
def test_killed_workers_lose_nothing(
    footage: Path, tmp_path: Path, ray_address: str, reference: dict[str, bytes], caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    done: list[bool] = []
    killed: list[int] = []
    thread = Thread(target=killer, args=(random.Random(seed),), kwargs={"times": 2, "killed": killed, "done": done})
    thread.start()
    try:
        found = scan(footage, tmp_path / "out", runner="ray", ray_address=ray_address, ray_cpus=1, checkpoint_every="0s")
    finally:
        done.append(True)
        thread.join()
    print(f"{len(killed)} workers killed, {caplog.text.count('a worker died')} of them with a chunk")
    assert {result.status for result in found.values()} == {Status.DONE}
    assert len(found) == 6
    assert rows_of(tmp_path / "out") == reference
    record = read_run(tmp_path / "out" / "run.json")
    assert record.exit_code == 0
    assert all(file.node for file in record.files)
    assert record.progress is not None
    assert sum(record.progress["nodes"].values()) == 6
    assert not workers_of_this_test()
    assert not list((tmp_path / "out").rglob("*.part"))
    assert not (tmp_path / "out" / ".tmp").exists()


def test_a_lost_node_costs_no_video(
    footage: Path, tmp_path: Path, ray_cluster: Any, reference: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    node = ray_cluster.add_node(**NODE)
    ray_cluster.wait_for_nodes()

    def lose() -> None:
        end = time.monotonic() + PATIENCE_S
        while len(workers_of_this_test()) < 3 and time.monotonic() < end:
            time.sleep(0.05)
        ray_cluster.remove_node(node, allow_graceful=False)

    thread = Thread(target=lose)
    thread.start()
    try:
        found = scan(footage, tmp_path / "out", runner="ray", ray_address=ray_cluster.address, ray_cpus=1)
    finally:
        thread.join()
    assert {result.status for result in found.values()} == {Status.DONE}
    assert rows_of(tmp_path / "out") == reference
    assert "is gone" in caplog.text


DEADLY = """
import os

from tests.planted import PlantedEncoder
from vadcli.detectors.motion.detector import MotionDetector
from vadcli.errors import DeviceError


class Deadly(MotionDetector):
    name = "deadly"

    def score(self, batch):
        if any("deadly" in video for video in batch.videos):
            os._exit(1)
        return super().score(batch)


class Broken(MotionDetector):
    name = "broken"

    def prepare(self):
        raise DeviceError("the GPU is broken", hint="replace it")


class Encoder(PlantedEncoder):
    def encode_images(self, frames):
        open("encoded.log", "a").close()
        return super().encode_images(frames)


def make_encoder(name, folder, **_):
    return Encoder()


def make_deadly(options):
    return Deadly()


def make_broken(options):
    return Broken()
"""


@pytest.fixture(scope="module")
def plugin(ray_site: Path) -> str:
    """PYTHONPATH of the nodes: a detector that kills its process, one that can't be loaded, and an encoder."""
    info = ray_site / "deadly-1.0.dist-info"
    info.mkdir()
    (ray_site / "deadly.py").write_text(DEADLY)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: deadly\nVersion: 1.0\n")
    entries = "[vadcli.detectors]\ndeadly = deadly:make_deadly\nbroken = deadly:make_broken\n"
    (info / "entry_points.txt").write_text(f"{entries}[vadcli.encoders]\nplanted = deadly:make_encoder\n")
    return os.pathsep.join([str(ray_site), str(Path(__file__).parents[2])])


def test_nodes_that_cannot_load_the_detector_are_left_out(footage: Path, tmp_path: Path, ray_address: str, plugin: str) -> None:
    done = run_vadcli(
        *("scan", footage, "--out", tmp_path / "out", "--detector", "broken"),
        *("--runner", "ray", "--ray-address", ray_address, "--ray-cpus", "1"),
        PYTHONPATH=plugin,
    )
    assert done.returncode == 4, done.stderr
    assert done.stderr.count("takes no more videos: the GPU is broken") == 2  # one line per node
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out").rglob("*.part"))


def test_a_video_that_kills_its_workers_fails_alone(footage: Path, tmp_path: Path, ray_address: str, plugin: str) -> None:
    (tmp_path / "footage").mkdir()
    for name in ("a.mp4", "deadly.mp4", "z.mp4"):
        copyfile(footage / "gate" / "0.mp4", tmp_path / "footage" / name)
    done = run_vadcli(
        *("scan", tmp_path / "footage", "--out", tmp_path / "out", "--detector", "deadly", "--json"),
        *("--runner", "ray", "--ray-address", ray_address, "--ray-cpus", "1"),
        PYTHONPATH=plugin,
    )
    assert done.returncode == 3, done.stderr
    found = {line["video"]: line for line in map(json.loads, done.stdout.splitlines()) if "status" in line}
    assert {video: line["status"] for video, line in found.items()} == {
        "a.mp4": "done",
        "deadly.mp4": "failed",
        "z.mp4": "done",
    }
    assert found["deadly.mp4"]["reason"].startswith("2 workers died while they scanned this video, the last one on node ")
    assert "a worker died" in done.stderr
    again = run_vadcli("scan", tmp_path / "footage", "--out", tmp_path / "out", "--detector", "motion")
    assert again.returncode == 0, again.stderr


def test_other_categories_are_scored_on_the_nodes_without_decoding(tmp_path: Path, ray_address: str, plugin: str) -> None:
    """OUT is relative, because the workers run in the driver's folder."""
    (tmp_path / "footage").mkdir()
    for name in ("a.mp4", "b.mp4"):
        make_video(tmp_path / "footage" / name, frames=40, fps=10)
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "config.json").write_text('{"model_type": "planted", "vision_config": {"image_size": 32}}')
    (tmp_path / "encoder" / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    red, blue = "red: a red thing", "blue: a blue thing"

    def scan_for(categories: str, out: str, *more: str) -> None:
        command = ("scan", "footage", "--out", out, "--detector", "concept", "--encoder", "encoder")
        done = run_vadcli(*command, "--categories", categories, *more, folder=tmp_path, PYTHONPATH=plugin)
        assert done.returncode == 0, done.stderr

    scan_for(f"{red}, {blue}", "whole")
    scan_for(red, "again")
    (tmp_path / "encoded.log").unlink()
    scan_for(f"{red}, {blue}", "again", "--runner", "ray", "--ray-address", ray_address, "--ray-cpus", "1")
    assert not (tmp_path / "encoded.log").exists()
    assert [file.status for file in read_run(tmp_path / "again" / "run.json").files] == [Status.DONE] * 2
    assert all(file.node for file in read_run(tmp_path / "again" / "run.json").files)
    assert rows_of(tmp_path / "again") == rows_of(tmp_path / "whole")


MARK = "VADCLI_TEST_LEFT_BEHIND"


def processes_of(run: Path) -> list[int]:
    """Return the processes that a marked run and its Ray have started."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == str(run) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def test_no_end_leaves_anything_behind(footage: Path, tmp_path: Path) -> None:
    """One OUT has a run that is killed with -9, a run that gets SIGTERM, and a run that ends by itself.

    Ray starts on this machine. TMPDIR is too long for its sockets.
    """
    pytest.importorskip("ray")
    command = [sys.executable, "-m", "vadcli", "scan", footage, "--out", tmp_path / "out", "--detector", "motion"]
    command += ["--runner", "ray", "--ray-cpus", "1", "--checkpoint-every", "0s"]
    environment = {**os.environ, MARK: str(tmp_path), "TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    pids = []
    for end, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 143), (None, 0)):
        process = subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE, text=True)
        pids.append(process.pid)
        done = len(list(OutputLayout(tmp_path / "out").iter_scores()))
        deadline = time.monotonic() + PATIENCE_S
        while end and process.poll() is None and len(list(OutputLayout(tmp_path / "out").iter_scores())) == done:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        if end:
            process.send_signal(end)
        _, error = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == code, error
        while processes_of(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not processes_of(tmp_path)
        if end is not signal.SIGKILL:  # the next run removes the files of a killed one
            assert not [path for pid in pids for path in Path("/tmp").glob(f"vadcli-ray-{pid}-*")]
            assert not list((tmp_path / "out").rglob(".tmp"))
    assert not list((tmp_path / "out").rglob("*.part"))
    assert len(list(OutputLayout(tmp_path / "out").iter_scores())) == 6


def test_a_cluster_is_left_clean_by_a_driver_that_is_killed(footage: Path, tmp_path: Path, ray_address: str) -> None:
    command = ["scan", footage, "--out", tmp_path / "out", "--runner", "ray", "--ray-address", ray_address, "--ray-cpus", "1"]
    process = subprocess.Popen([sys.executable, "-m", "vadcli", *map(str, command)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE_S
    while not workers_of_this_test() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    while workers_of_this_test() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not workers_of_this_test()
    for path in (tmp_path / "out").rglob("*.part"):
        claim = Claim.acquire(path)
        assert claim is not None
        claim.release(delete=False)


def test_an_address_without_a_cluster_is_one_line(footage: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    done = run_vadcli("scan", footage, "--out", tmp_path / "out", "--runner", "ray", "--ray-address", "127.0.0.1:1")
    assert done.returncode == 2
    assert "--ray-address 127.0.0.1:1: no Ray cluster answers" in done.stderr
    assert "Traceback" not in done.stderr


def run_vadcli(*arguments: object, folder: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vadcli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        cwd=folder,
        env={**os.environ, **environment},
    )
