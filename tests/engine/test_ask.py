"""The detector `ask` with a planted model: it finds a category where it is planted, and nowhere else."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vadcli
from tests.engine.test_concept import RED_S, make
from tests.planted import PlantedAsker
from tests.runs import local_scan
from vadcli.detectors import ask
from vadcli.detectors.ask import AskDetector, interpolate_scores
from vadcli.detectors.options import AskOptions
from vadcli.engine.plan import make_plan
from vadcli.engine.runner import Stop, choose_detector
from vadcli.engine.stream import ClipsScored
from vadcli.errors import UsageError
from vadcli.options import ScanOptions
from vadcli.options.categories import Category
from vadcli.store import OutputLayout
from vadcli.store.events import read_events
from vadcli.store.scores import read_scores
from vadcli.types import Status, VideoResult

RED = "something red: a red thing"
BLUE = "something blue: a blue thing"


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("footage")
    for camera, name, kind in (("a", "red.mp4", "red"), ("a", "still.mp4", "quiet"), ("b", "still.mp4", "quiet")):
        (folder / camera).mkdir(exist_ok=True)
        make(folder / camera / name, kind, seconds=120 if kind == "red" else 60)
    return folder


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> PlantedAsker:
    asker = PlantedAsker()
    monkeypatch.setattr(ask, "QwenAsker", lambda model, **_: asker)
    return asker


def scan(footage: Path, out: Path, categories: str = f"{RED}, {BLUE}", **options: object) -> dict[str, VideoResult]:
    given = {"out": out, "detector": "ask", "categories": categories, "workers": 1, **options}
    return {result.video: result for result in vadcli.scan(footage, **given)}


VIDEOS = ("a/red.mp4", "a/still.mp4", "b/still.mp4")


@pytest.fixture(scope="module")
def whole(footage: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The output folder of a scan, and the number of clips that the model was asked about."""
    out, asker = tmp_path_factory.mktemp("whole") / "out", PlantedAsker()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ask, "QwenAsker", lambda model, **_: asker)
        assert {result.status for result in scan(footage, out).values()} == {Status.DONE}
    return out, asker.asked


def same_scores(one: Path, two: Path) -> None:
    for video in VIDEOS:
        first, second = (read_scores(OutputLayout(out).scores(video))[0] for out in (one, two))
        np.testing.assert_array_equal(first.logit, second.logit)


def test_what_is_asked_about_is_found_and_named(whole: tuple[Path, int]) -> None:
    layout = OutputLayout(whole[0])
    document = read_events(layout.events("a/red.mp4"))
    assert document.own_categories == (
        Category("something red", ("a red thing",)),
        Category("something blue", ("a blue thing",)),
    )
    (event,) = document.events
    assert event.category == "something red"
    # Clips of 8 s every 4 s: the edges are known to about half a clip.
    assert event.start_s == pytest.approx(RED_S[0], abs=5.0)
    assert event.end_s == pytest.approx(RED_S[1], abs=5.0)
    for video in ("a/still.mp4", "b/still.mp4"):
        assert read_events(layout.events(video)).events == ()
    rows, _ = read_scores(layout.scores("a/red.mp4"))
    sampled = rows.timestamp[rows.sampled]
    np.testing.assert_allclose(np.diff(sampled), 1.0, atol=0.01)


def test_batches_and_workers_change_nothing(footage: Path, tmp_path: Path, whole: tuple[Path, int]) -> None:
    scan(footage, tmp_path / "out", batch_size=5, workers=2)  # `whole` has batches of one clip
    same_scores(whole[0], tmp_path / "out")


def test_a_stopped_scan_continues_where_it_was(
    footage: Path, tmp_path: Path, planted: PlantedAsker, whole: tuple[Path, int]
) -> None:
    out, clips = whole
    options = ScanOptions(out=tmp_path / "out", detector="ask", categories=f"{RED}, {BLUE}", workers=1)  # type: ignore[call-arg]
    stop, reports, planted.asked = Stop(), 0, 0
    stopped = local_scan(
        make_plan([footage], options, out=tmp_path / "out"), options, choose_detector(options), stop=stop, command=["vadcli"]
    )
    for update in stopped.run():
        reports += isinstance(update, ClipsScored)
        if reports == 6:
            stop.set("test", 2)
    assert 0 < planted.asked < clips
    results = scan(footage, tmp_path / "out")
    assert {result.status for result in results.values()} <= {Status.DONE, Status.SKIPPED}
    assert planted.asked < clips + 40
    same_scores(out, tmp_path / "out")


def test_a_second_scan_asks_nothing_again_and_other_questions_ask(
    footage: Path, tmp_path: Path, planted: PlantedAsker, whole: tuple[Path, int]
) -> None:
    shutil.copytree(whole[0], tmp_path / "out")
    assert {result.status for result in scan(footage, tmp_path / "out").values()} == {Status.SKIPPED}
    assert planted.asked == 0
    scan(footage, tmp_path / "out", BLUE)
    assert planted.asked > 0
    camera = json.loads((tmp_path / "out" / "cameras" / "a.json").read_text())
    assert camera["version"] == AskDetector(AskOptions(categories=BLUE)).model_version


def test_shards_give_what_one_scan_gives(footage: Path, tmp_path: Path, whole: tuple[Path, int]) -> None:
    parts = [scan(footage, tmp_path / "out", shard=f"{part}/2") for part in (1, 2)]
    assert all(parts)
    assert sorted([*parts[0], *parts[1]]) == list(VIDEOS)
    assert {result.status for part in parts for result in part.values()} == {Status.DONE}
    same_scores(whole[0], tmp_path / "out")


KILLED = """
import sys, time
import vadcli
from tests.planted import PlantedAsker
from vadcli.detectors import ask

class Slow(PlantedAsker):
    def ask(self, frames, questions):
        print("asked", flush=True)
        time.sleep(0.05)
        return super().ask(frames, questions)

ask.QwenAsker = lambda model, **_: Slow()
footage, out, categories = sys.argv[1:]
list(vadcli.scan(footage, out=out, detector="ask", categories=categories, workers=1, checkpoint_every="0s"))
"""


def test_a_killed_scan_continues_and_asks_little_again(
    footage: Path, tmp_path: Path, planted: PlantedAsker, whole: tuple[Path, int]
) -> None:
    out, clips = whole
    command = [sys.executable, "-c", KILLED, str(footage), str(tmp_path / "out"), f"{RED}, {BLUE}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert running.stdout is not None
    asked = sum(1 for _ in itertools.islice(running.stdout, clips * 2 // 3))
    running.kill()  # in the middle of the videos
    running.wait()
    assert asked == clips * 2 // 3
    results = scan(footage, tmp_path / "out")
    assert {result.status for result in results.values()} <= {Status.DONE, Status.SKIPPED}
    assert planted.asked < clips - 10, "what was stored is not asked again"
    same_scores(out, tmp_path / "out")


def test_masks_are_refused_before_the_scan(footage: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the ask detector makes no masks"):
        scan(footage, tmp_path / "out", masks="video")
    assert not (tmp_path / "out").exists()


class LeansToYes(PlantedAsker):
    """Gives the answers of `PlantedAsker`, all higher by the same number."""

    def ask(self, frames, questions):  # type: ignore[no-untyped-def]
        """See `PlantedAsker`."""
        return super().ask(frames, questions) + np.float32(4.0)


def test_a_model_that_leans_to_yes_gives_the_same_scores(
    footage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[Path, int]
) -> None:
    monkeypatch.setattr(ask, "QwenAsker", lambda model, **_: LeansToYes())
    scan(footage, tmp_path / "yes")
    for video in ("a/red.mp4", "b/still.mp4"):
        first, second = (read_scores(OutputLayout(out).scores(video))[0] for out in (whole[0], tmp_path / "yes"))
        np.testing.assert_allclose(first.score, second.score, rtol=0, atol=1e-4)


def test_log_odds_are_linear_in_time_between_the_middles_of_clips() -> None:
    timestamp = np.arange(16, dtype=np.float64)
    answers = np.repeat([0.0, 8.0, 4.0], [8, 4, 4])
    middle = np.repeat([3.5, 7.5, 11.5], [8, 4, 4])
    raw = np.stack([answers, -answers, middle - timestamp], axis=1).astype(np.float32)
    found = interpolate_scores(raw, timestamp)
    wanted = np.interp(timestamp, [3.5, 7.5, 11.5], [0.0, 8.0, 4.0])
    np.testing.assert_allclose(found, np.stack([wanted, -wanted], axis=1), atol=1e-5)
    assert found[3, 0] == 0.0
    assert found[5, 0] == pytest.approx(3.0)
    assert found[15, 0] == 4.0
