"""A camera that was fitted on little footage is fitted again when there is more, and its videos are scored again."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.fakes import DifferenceDetector
from tests.media import make_video
from tests.runs import local_scan
from vadcli.engine.cameras import ENOUGH_S, estimated_footage, footage_caveats, is_outgrown, read_camera
from vadcli.engine.plan import WorkUnit, make_plan
from vadcli.options import ScanOptions
from vadcli.store import OutputLayout
from vadcli.store.events import read_events
from vadcli.store.run_log import read_run
from vadcli.store.scores import read_scores
from vadcli.types import CameraModel, Clip, Footage, VideoResult

CAMERA = "cameras/gate.json"


def scan(footage: Path, out: Path, **options: object) -> tuple[dict[str, str], DifferenceDetector]:
    """Scan; return the status of each video, and the detector, which notes its fits."""
    chosen, detector = ScanOptions(out=out, **options), DifferenceDetector()  # type: ignore[arg-type]
    run = local_scan(make_plan([footage], chosen, out=out), chosen, detector)
    return {one.video: str(one.status) for one in run.run() if isinstance(one, VideoResult)}, detector


@pytest.fixture
def footage(tmp_path: Path) -> Path:
    (tmp_path / "footage" / "gate").mkdir(parents=True)
    (tmp_path / "footage" / "yard").mkdir()
    make_video(tmp_path / "footage" / "gate" / "a.mp4", frames=15, fps=10)
    make_video(tmp_path / "footage" / "yard" / "y.mp4", frames=15, fps=10)
    return tmp_path / "footage"


def add_second_night(footage: Path) -> None:
    make_video(footage / "gate" / "b.mp4", frames=60, fps=10, options=("-vf", "eq=brightness=0.3"))


def assert_same(left: Path, right: Path, *videos: str) -> None:
    assert (left / CAMERA).read_bytes() == (right / CAMERA).read_bytes()
    for video in videos:
        (one, _), (two, _) = (read_scores(OutputLayout(out).scores(video)) for out in (left, right))
        np.testing.assert_array_equal(one.score, two.score)
        first, second = (read_events(OutputLayout(out).events(video)) for out in (left, right))
        assert first.scan is not None
        assert second.scan is not None
        assert (first.scan.fingerprint, first.caveats) == (second.scan.fingerprint, second.caveats)


def test_more_footage_gives_the_model_and_scores_of_a_scan_of_all(
    footage: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    scan(footage, out)
    add_second_night(footage)
    options = ScanOptions(out=out)
    with caplog.at_level(logging.INFO, "vadcli"):
        preview = dict(local_scan(make_plan([footage], options, out=out), options, DifferenceDetector()).preview())
    assert preview == {"gate/a.mp4": "scan", "gate/b.mp4": "scan", "yard/y.mp4": "done"}
    line = "camera gate: much more footage than at the last fit, so it is learned again and its videos are scanned again"
    assert line in caplog.messages
    with caplog.at_level(logging.INFO, "vadcli"):
        statuses, detector = scan(footage, out)
    assert statuses == {"gate/a.mp4": "done", "gate/b.mp4": "done", "yard/y.mp4": "skipped"}
    assert detector.fitted == ["gate"]
    line = "camera gate: learned again from 7.5 s of footage instead of 1.5 s; 1 earlier video is scored again"
    assert sum(message.startswith(line) for message in caplog.messages) == 1
    scan(footage, whole)
    assert_same(whole, out, "gate/a.mp4", "gate/b.mp4")
    again, detector = scan(footage, out)
    assert set(again.values()) == {"skipped"}
    assert detector.fitted == []


def test_shards_agree_on_the_new_model(footage: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    scan(footage, out)
    add_second_night(footage)
    for part in (2, 1):
        scan(footage, out, shard=f"{part}/2")
    scan(footage, tmp_path / "whole")
    assert_same(tmp_path / "whole", out, "gate/a.mp4", "gate/b.mp4")


@pytest.mark.parametrize("known", ["--no-refit", "an older version", "enough", "nearly as much"])
def test_a_model_stays(footage: Path, tmp_path: Path, known: str) -> None:
    out = tmp_path / "out"
    scan(footage, out)
    stored = json.loads((out / CAMERA).read_text())
    if known == "an older version":
        del stored["footage"]
    elif known == "enough":
        stored["footage"]["seconds"] = ENOUGH_S
    elif known == "nearly as much":
        stored["footage"]["bytes"] = 10**9
    (out / CAMERA).write_text(json.dumps(stored))
    before = (out / CAMERA).read_bytes()
    add_second_night(footage)
    statuses, detector = scan(footage, out, refit=False if known == "--no-refit" else None)
    assert statuses == {"gate/a.mp4": "skipped", "gate/b.mp4": "done", "yard/y.mp4": "skipped"}
    assert detector.fitted == []
    assert (out / CAMERA).read_bytes() == before


def test_a_model_of_the_version_before_is_learned_again_and_the_log_says_so(
    footage: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    scan(footage, out)
    current = (out / CAMERA).read_bytes()
    stored = json.loads(current)
    stored["version"] -= 1
    (out / CAMERA).write_text(json.dumps(stored))
    with caplog.at_level(logging.INFO, "vadcli"):
        statuses, detector = scan(footage, out)
    assert detector.fitted == ["gate"]
    assert statuses["yard/y.mp4"] == "skipped"
    line = "camera gate: fitted by another version of vadcli, so it is learned again and its videos are scanned again"
    assert caplog.messages.count(line) == 1
    assert (out / CAMERA).read_bytes() == current


def test_one_line_names_some_of_the_cameras_that_are_learned_again_also_in_a_dry_run(
    footage: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    for place in ("a.mp4", "hall/h.mp4", "park/p.mp4"):
        (footage / place).parent.mkdir(exist_ok=True)
        shutil.copy(footage / "yard" / "y.mp4", footage / place)
    scan(footage, out)
    models = list((out / "cameras").glob("*.json"))
    assert len(models) == 5
    before = [path.read_text() for path in models]

    def lines() -> list[str]:
        """Return what a dry run and a scan log, which must be the same."""
        options = ScanOptions(out=out)
        logged = []
        for dry_run in (True, False):
            caplog.clear()
            run = local_scan(make_plan([footage], options, out=out), options, DifferenceDetector())
            with caplog.at_level(logging.INFO, "vadcli"):
                list(run.preview() if dry_run else run.run())
            logged.append([message for message in caplog.messages if "learned again" in message])
        assert logged[0] == logged[1]
        return logged[0]

    assert lines() == []
    for path, text in zip(models, before, strict=True):
        path.write_text(json.dumps(json.loads(text) | {"version": 0}))
    why = "fitted by another version of vadcli"
    names = "cameras the root folder, gate, hall and 2 more"
    assert lines() == [f"{names}: {why}, so they are learned again and their videos are scanned again"]
    (out / "cameras" / "%2E.json").write_text(json.dumps(json.loads(before[0]) | {"version": 0}))
    assert lines() == [f"the camera of the root folder: {why}, so it is learned again and its videos are scanned again"]


def test_what_was_known_is_kept_if_less_of_it_is_left(footage: Path, tmp_path: Path) -> None:
    """The first video was deleted. The new video has many bytes, but it is short."""
    out = tmp_path / "out"
    scan(footage, out)
    before = read_camera(out / CAMERA)
    (footage / "gate" / "a.mp4").unlink()
    make_video(footage / "gate" / "b.mp4", frames=8, fps=10)
    with (footage / "gate" / "broken.mp4").open("wb") as file:
        file.truncate(10**6)
    statuses, detector = scan(footage, out)
    assert (statuses["gate/b.mp4"], statuses["gate/broken.mp4"]) == ("done", "failed")
    assert detector.fitted == []
    assert read_camera(out / CAMERA).sha256 == before.sha256
    assert set(scan(footage, out)[0].values()) == {"skipped"}


def test_a_video_that_was_away_for_a_moment_is_learned_when_it_is_back(footage: Path, tmp_path: Path) -> None:
    out, away = tmp_path / "out", footage / "gate" / "b.mp4"
    add_second_night(footage)

    def vanishing() -> dict[str, str]:
        options, detector = ScanOptions(out=out), DifferenceDetector()
        run = local_scan(make_plan([footage], options, out=out), options, detector)
        away.rename(tmp_path / "b.mp4")  # after the plan was made, as a share that goes away
        return {one.video: str(one.status) for one in run.run() if isinstance(one, VideoResult)}

    assert vanishing() == {"gate/a.mp4": "done", "gate/b.mp4": "failed", "yard/y.mp4": "done"}
    (tmp_path / "b.mp4").rename(away)
    statuses, detector = scan(footage, out)
    assert statuses == {"gate/a.mp4": "done", "gate/b.mp4": "done", "yard/y.mp4": "skipped"}
    assert detector.fitted == ["gate"]
    scan(footage, tmp_path / "whole")
    assert_same(tmp_path / "whole", out, "gate/a.mp4", "gate/b.mp4")


def test_what_users_are_told_stands_in_every_result(footage: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "out"
    with caplog.at_level(logging.INFO, "vadcli"):
        scan(footage, out)
    alone = (
        "The camera was learned from a single video of 1.5 s, so anything that lasts for the whole video is taken to be normal."
    )
    assert caplog.messages.count(f"gate: {alone}") == 1
    assert read_events(OutputLayout(out).events("gate/a.mp4")).caveats == (alone,)
    assert {result.caveats for result in read_run(out / "run.json").files} == {(alone,)}
    add_second_night(footage)
    scan(footage, out)
    (caveat,) = read_events(OutputLayout(out).events("gate/a.mp4")).caveats
    assert "learned on only 7.5 s of footage" in caveat


def test_when_a_model_has_seen_enough() -> None:
    def model(footage: Footage | None) -> CameraModel:
        return CameraModel("gate", "difference", 1, {}, {}, footage)

    little = model(Footage(1, ENOUGH_S - 1, 1000))
    assert (is_outgrown(little, 1999), is_outgrown(little, 2000)) == (False, True)
    assert not is_outgrown(model(Footage(1, ENOUGH_S, 1000)), 10**9)
    assert not is_outgrown(model(None), 10**9)
    assert footage_caveats(little)
    assert footage_caveats(model(Footage(1, ENOUGH_S, 1000))) == footage_caveats(model(None)) == footage_caveats(None) == ()
    assert little.sha256 == model(None).sha256, "the fingerprints of earlier scans stay"


def test_a_file_that_promises_an_hour_counts_by_what_it_gives() -> None:
    units = [WorkUnit(name, Path(name), "gate", size, 0) for name, size in (("a", 300), ("b", 100), ("c", 400))]
    wanted = {"a": (0.1, 0.3, 0.5, 0.7), "b": (0.2,)}
    read = [_clip("a"), _clip("b")]  # three of the four bursts of a could not be read
    found = estimated_footage(units, units[:2], wanted, {"a": 3600.0, "b": 50.0}, read)
    assert found == Footage(3, (900 + 50) * 2, 800)


def _clip(video: str) -> Clip:
    count = 2
    return Clip(
        video=video,
        index=0,
        frames=np.zeros((count, 4, 4, 1), np.uint8),
        timestamp=np.arange(count, dtype=np.float64),
        frame_index=np.arange(count, dtype=np.int64),
        valid=np.ones(count, np.bool_),
        interval=1,
    )
