"""Attribution: the categories of events, the peaks that are read again, and peaks that can't be read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import DifferenceDetector
from tests.media import make_video
from tests.runs import local_scan
from vadcli.cutting import cut_events
from vadcli.engine.plan import make_plan
from vadcli.engine.runner import Stop
from vadcli.engine.second_pass import PEAK_CLIPS, peak_clips
from vadcli.options import ScanOptions
from vadcli.store import OutputLayout
from vadcli.store.events import read_events
from vadcli.store.scores import read_scores
from vadcli.types import ClipBatch, ClipNeeds, FrameScores, PixelFormat, RawTrack, ScoreTable, SizeRule, Thresholds
from vadcli.video.sampling import SamplingPlan


class Brightness(DifferenceDetector):
    """Scores bright frames high, has the categories dark and bright, and notes the frames of `attribute`."""

    needs = ClipNeeds(frames=4, overlap=0, rate_hz=10, size=SizeRule(4096), pixel_format=PixelFormat.GRAY)
    uses_categories = True

    def __init__(self, categories: tuple[str, ...] = ("dark", "bright")) -> None:
        super().__init__(fits_camera=False)
        self.categories = categories
        self.looked_at: list[np.ndarray] = []

    def finish(self, track: RawTrack) -> FrameScores:
        return FrameScores(((track.raw[:, 1] - 128) / 16).astype(np.float32))

    def attribute(self, batch: ClipBatch) -> np.ndarray:
        self.looked_at.extend(batch.timestamp)
        mean = batch.frames.mean(axis=(2, 3, 4)) / 255
        return np.stack([1 - mean, mean], axis=-1).astype(np.float32)[..., : len(self.categories)]


def flash_film(path: Path, *, frames: int = 60, bright: range = range(22, 37), options: Sequence[str] = ()) -> Path:
    """Write a dark video with some bright frames."""

    def draw(number: int, width: int, height: int) -> np.ndarray:
        return np.full((height, width), 230 if number in bright else 20, np.uint8)

    return make_video(path, frames=frames, fps=10, draw=draw, options=options)


def scan(footage: Path, out: Path, detector: DifferenceDetector, **options: object) -> None:
    given = ScanOptions(out=out, **options)  # type: ignore[arg-type]
    run = local_scan(make_plan([footage], given, out=out), given, detector, stop=Stop(), command=["vadcli", "scan"])
    list(run.run())


def test_an_event_gets_the_category_that_its_peak_shows(tmp_path: Path) -> None:
    footage, out = tmp_path / "footage", tmp_path / "out"
    footage.mkdir()
    flash_film(footage / "a.mp4")
    detector = Brightness()
    scan(footage, out, detector)
    (event,) = read_events(OutputLayout(out).events("a.mp4")).events
    assert event.category == "bright"
    assert event.category_scores["bright"] > 0.8
    assert event.category_scores["dark"] < 0.2
    assert 1 <= len(detector.looked_at) <= PEAK_CLIPS
    starts = sorted(float(times[0]) for times in detector.looked_at)
    assert all(event.start_s - 0.4 < start < event.end_s for start in starts)
    assert all(abs(start / 0.4 - round(start / 0.4)) < 1e-6 for start in starts), "not the clips of the first pass"


def test_a_cut_file_is_looked_at_where_its_events_are(tmp_path: Path) -> None:
    """The container declares more rows than are left. The clips that are read again must still be those of the first pass."""
    footage, out = tmp_path / "footage", tmp_path / "out"
    footage.mkdir()
    whole = flash_film(tmp_path / "whole.mp4", frames=120, bright=range(22, 37), options=("-movflags", "+faststart"))
    data = whole.read_bytes()
    (footage / "cut.mp4").write_bytes(data[: int(len(data) * 0.7)])
    detector = Brightness()
    scan(footage, out, detector)
    layout = OutputLayout(out)
    table, metadata = read_scores(layout.scores("cut.mp4"))
    assert len(table) < metadata.video["frames"] == 120
    (event,) = read_events(layout.events("cut.mp4")).events
    assert event.category == "bright"
    starts = [float(times[0]) for times in detector.looked_at]
    assert starts
    assert all(event.start_s - 0.4 < start < event.end_s for start in starts)


def test_a_peak_that_can_not_be_read_again_leaves_the_category_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    footage, out = tmp_path / "footage", tmp_path / "out"
    footage.mkdir()
    flash_film(footage / "a.mp4")
    monkeypatch.setattr("vadcli.engine.second_pass.Attribution._batches", lambda self, request: iter(()))
    scan(footage, out, Brightness())
    (event,) = read_events(OutputLayout(out).events("a.mp4")).events
    assert event.category is None
    assert "can't be read again" in caplog.text


def test_no_attribute_leaves_the_category_open(tmp_path: Path) -> None:
    footage, out = tmp_path / "footage", tmp_path / "out"
    footage.mkdir()
    flash_film(footage / "a.mp4")
    detector = Brightness()
    scan(footage, out, detector, attribute=False)
    (event,) = read_events(OutputLayout(out).events("a.mp4")).events
    assert event.category is None
    assert event.category_scores == {}
    assert detector.looked_at == []


def test_a_single_category_needs_no_second_look(tmp_path: Path) -> None:
    footage, out = tmp_path / "footage", tmp_path / "out"
    footage.mkdir()
    flash_film(footage / "a.mp4")
    detector = Brightness(("bright",))
    scan(footage, out, detector)
    (event,) = read_events(OutputLayout(out).events("a.mp4")).events
    assert event.category == "bright"
    assert event.category_scores["bright"] == pytest.approx(event.peak_score, abs=1e-5)
    assert detector.looked_at == []


def test_an_event_in_the_last_clip_is_looked_at_where_that_clip_was_moved_to(tmp_path: Path) -> None:
    footage, out = tmp_path / "footage", tmp_path / "out"
    footage.mkdir()
    flash_film(footage / "a.mp4", frames=18, bright=range(16, 18))
    detector = Brightness()
    scan(footage, out, detector, min_duration="0s")
    (event,) = read_events(OutputLayout(out).events("a.mp4")).events
    assert event.category == "bright"
    assert [float(times[0]) for times in detector.looked_at] == pytest.approx([1.4])


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60), st.integers(1, 4), st.integers(1, 5))
def test_peak_clips_are_the_highest_of_the_event(scores: list[float], interval: int, length: int) -> None:
    count = len(scores)
    rows = np.arange(count, dtype=np.int64)
    sampled = rows % interval == 0
    held = np.array(scores, np.float32)[rows // interval * interval]
    score = np.clip(held, 0.01, 0.99)
    table = ScoreTable("v", rows, rows, rows / 10.0, score, np.log(score / (1 - score)), sampled, np.ones(count, np.bool_))
    plan = SamplingPlan(length, 0, interval)
    for event in cut_events(table, Thresholds(0.5, 0.4, 0, 0), duration_s=count / 10):
        clips = peak_clips(event, table, plan)
        assert 1 <= len(clips) <= PEAK_CLIPS
        assert len(set(clips)) == len(clips)
        of_row = rows // interval // length
        inside = range(event.start_frame, event.end_frame)
        highest = max(float(score[row]) for row in inside)
        assert max(float(score[row]) for row in inside if of_row[row] == clips[0]) == highest
