"""The contract of runners: all give the same rows, events, masks, run record and exit code."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from shutil import copyfile

import numpy as np
import pytest

from tests.media import damage, make_video
from tests.runs import FreshProcessRunner
from vadcli.engine.local import LocalRunner
from vadcli.engine.plan import make_plan
from vadcli.engine.ray_runner import RayRunner
from vadcli.engine.runner import Scan, ScanSettings, Stop, choose_detector
from vadcli.options import ScanOptions, effective
from vadcli.store import OutputLayout
from vadcli.store.events import read_events
from vadcli.store.run_log import read_run
from vadcli.store.scores import read_scores
from vadcli.types import Status, VideoResult

RUNNERS = {"local": LocalRunner, "fresh": FreshProcessRunner, "ray": RayRunner}
CLUSTER: dict[str, object] = {"runner": "ray", "ray_cpus": 1}
VIDEOS = ["gate/a.mp4", "gate/b.mp4", "gate/broken.mp4", "yard/c.mp4"]


@pytest.fixture(params=RUNNERS)
def name(request: pytest.FixtureRequest) -> str:
    """The name of a runner. For "ray", a cluster is started if there is none."""
    if request.param == "ray":
        CLUSTER["ray_address"] = request.getfixturevalue("ray_address")
    return str(request.param)


def moving_bar(index: int, width: int, height: int) -> np.ndarray:
    """Write a video of a still picture. From frame 30 on, a bar crosses it."""
    shown = np.full((height, width), 90, np.uint8)
    if index >= 30:
        left = 6 * (index - 30) % width
        shown[10:40, left : left + 12] = 230
    return shown


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("footage")
    (folder / "gate").mkdir()
    whole = make_video(folder / "gate" / "a.mp4", frames=60, fps=10, draw=moving_bar)
    (folder / "yard").mkdir()
    copyfile(whole, folder / "yard" / "c.mp4")
    damage(whole, folder / "gate" / "b.mp4")
    (folder / "gate" / "broken.mp4").write_bytes(b"not a video")
    return folder


def opened(name: str, footage: Path, out: Path, **options: object) -> Scan:
    given = {"threshold": 0.016, **(CLUSTER if name == "ray" else {}), **options}
    chosen = ScanOptions(out=out, detector="motion", **given)  # type: ignore[arg-type]
    stop, detector = Stop(), choose_detector(chosen)
    settings = ScanSettings(make_plan([footage], chosen, out=out), chosen, ("vadcli", "scan"))
    return Scan(settings, detector, RUNNERS[name](settings, detector, stop=stop), stop=stop)


def results(scan: Scan) -> dict[str, VideoResult]:
    return {update.video: update for update in scan.run() if isinstance(update, VideoResult)}


@pytest.fixture(scope="module")
def reference(footage: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, VideoResult], Scan]:
    out = tmp_path_factory.mktemp("reference")
    scan = opened("local", footage, out, masks="both")
    return out, results(scan), scan


def assert_same_outputs(left: Path, right: Path) -> None:
    """Compare rows, events, masks and camera models. Other parts of the files may depend on the run."""
    first, second = OutputLayout(left), OutputLayout(right)
    for video in VIDEOS:
        wanted, got = read_events(first.events(video)), read_events(second.events(video))
        assert got.events == wanted.events
        assert got.failure == wanted.failure
        assert got.scan is not None
        assert wanted.scan is not None
        assert got.scan.fingerprint == wanted.scan.fingerprint
        if wanted.failure is None:
            (expected, _), (found, _) = read_scores(first.scores(video)), read_scores(second.scores(video))
            for name in ("pts", "timestamp", "score", "logit", "sampled", "decode_ok"):
                np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=f"{video}: {name}")
    for folder in ("masks", "cameras"):
        files = {path.relative_to(left): path.read_bytes() for path in (left / folder).rglob("*") if path.is_file()}
        assert files
        assert files == {path.relative_to(right): path.read_bytes() for path in (right / folder).rglob("*") if path.is_file()}


def test_rows_events_masks_and_record_are_the_same(
    name: str, footage: Path, tmp_path: Path, reference: tuple[Path, dict[str, VideoResult], Scan]
) -> None:
    wanted_out, wanted, wanted_scan = reference
    scan = opened(name, footage, tmp_path / "out", masks="both")
    got = results(scan)
    assert {video: result.status for video, result in got.items()} == {video: result.status for video, result in wanted.items()}
    assert {result.status for result in got.values()} == {Status.DONE, Status.PARTIAL, Status.FAILED}
    assert sum(result.events for result in got.values()) == sum(result.events for result in wanted.values()) > 0
    assert_same_outputs(wanted_out, tmp_path / "out")
    record, wanted_record = read_run(tmp_path / "out" / "run.json"), read_run(wanted_out / "run.json")
    timeless = {"seconds"}
    assert {k: v for k, v in record.totals.items() if k not in timeless} == {
        k: v for k, v in wanted_record.totals.items() if k not in timeless
    }
    assert {file.video for file in record.files} == set(VIDEOS)
    assert record.exit_code == scan.exit_code == 3
    assert (scan.totals.by_status, scan.totals.events, scan.totals.frames) == (
        wanted_scan.totals.by_status,
        wanted_scan.totals.events,
        wanted_scan.totals.frames,
    )
    assert scan.progress.finished == scan.progress.planned == len(VIDEOS)


def test_what_is_done_is_skipped_and_cut_again(name: str, footage: Path, tmp_path: Path) -> None:
    first = results(opened("local", footage, tmp_path / "out"))
    recut = results(opened(name, footage, tmp_path / "out", threshold=1.0))
    assert {result.status for result in recut.values()} == {Status.SKIPPED}
    assert sum(result.events for result in first.values()) > sum(result.events for result in recut.values()) == 0
    assert dict(opened(name, footage, tmp_path / "out", threshold=1.0).preview()) == {
        "gate/broken.mp4": "failed",
        "gate/a.mp4": "done",
        "gate/b.mp4": "partial",
        "yard/c.mp4": "done",
    }


def test_a_stopped_run_is_continued(
    name: str, footage: Path, tmp_path: Path, reference: tuple[Path, dict[str, VideoResult], Scan]
) -> None:
    scan = opened(name, footage, tmp_path / "out", masks="both", workers=1)
    got: dict[str, VideoResult] = {}
    for update in scan.run():
        if isinstance(update, VideoResult):
            got[update.video] = update
            scan.stop.set("test", 15)
    assert set(got) == set(VIDEOS)
    assert any(result.reason == "not finished: test" for result in got.values())
    assert read_run(tmp_path / "out" / "run.json").exit_code == 128 + 15
    assert set(results(opened(name, footage, tmp_path / "out", masks="both"))) == set(VIDEOS)
    assert_same_outputs(reference[0], tmp_path / "out")
    assert not list((tmp_path / "out").rglob(".tmp/*"))


def test_shards_make_the_whole(
    name: str, footage: Path, tmp_path: Path, reference: tuple[Path, dict[str, VideoResult], Scan]
) -> None:
    parts = [results(opened(name, footage, tmp_path / "out", masks="both", shard=f"{part}/2")) for part in (1, 2)]
    assert sorted([*parts[0], *parts[1]]) == VIDEOS
    assert_same_outputs(reference[0], tmp_path / "out")


def test_settings_survive_pickling(footage: Path, tmp_path: Path) -> None:
    options = ScanOptions(out=tmp_path / "out", detector="motion", shard="1/2", include=("*.mp4",))
    settings = ScanSettings(make_plan([footage], options, out=tmp_path / "out"), options, ("vadcli", "scan"))
    again = pickle.loads(pickle.dumps(settings))
    assert again == settings
    assert effective(again.options) == effective(options)
    one = replace(again, videos=frozenset([again.units[0].video]))
    assert one.units == settings.units[:1]
