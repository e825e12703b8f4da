"""Boxes and outlines are drawn at the threshold of the events, for every threshold and both formats of masks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vadcli
from tests.evaluate.outputs import SIZE, write_scan
from tests.fakes import DifferenceDetector
from tests.media import make_video, read_index
from tests.runs import local_scan
from vadcli.draw.overlay import Geometry, Overlay
from vadcli.engine.plan import make_plan
from vadcli.engine.runner import Stop
from vadcli.export import export
from vadcli.options import ScanOptions
from vadcli.reporting.pictures import outlined
from vadcli.store import OutputLayout
from vadcli.store.events import read_events
from vadcli.store.masks import MaskTrack, read_masks, rle_threshold
from vadcli.store.scores import read_scores
from vadcli.types import (
    Box,
    ClipBatch,
    ClipNeeds,
    ClipScores,
    FrameScores,
    MaskScale,
    PixelFormat,
    RawTrack,
    SizeRule,
    Thresholds,
    mask_level,
)

SCORES = st.floats(0, 1, width=32)


@given(SCORES, SCORES)
def test_the_stored_value_of_a_pixel_that_reaches_a_score_is_never_too_low(pixel: float, score: float) -> None:
    stored = int(np.rint(np.float32(pixel) * 255))
    low, high = sorted((stored, mask_level(score)))
    assert (stored >= mask_level(score)) or pixel < score or stored == 0
    if high - low > 1 and stored > 0:
        assert (stored > mask_level(score)) == (pixel > score)
    assert mask_level(0.5) == 128
    for scale in MaskScale:
        level = scale.lowest(mask_level(score))
        assert scale.pixel_scores()[level] >= mask_level(score) > (scale.pixel_scores()[level - 1] if level else 0)


def encloses(box: Box | None, marked: np.ndarray) -> bool:
    if not marked.any():
        return True
    assert box is not None
    outside = marked.copy()
    outside[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = False
    return not outside.any()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000), st.floats(0.02, 0.99), st.booleans())
def test_the_box_of_an_event_encloses_every_pixel_that_reaches_its_threshold(
    tmp_path: Path, seed: int, threshold: float, interval: bool
) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.random(12)
    step = 2 if interval else 1
    masks = rng.integers(0, rng.integers(2, 256), (12 // step, *SIZE), dtype=np.uint8) * (
        rng.random((12 // step, *SIZE)) < 0.02
    )
    out = write_scan(tmp_path / f"{seed}-{threshold}-{step}", {"a": scores}, masks={"a": masks}, interval=step)
    found = vadcli.events(out, threshold=threshold, low=threshold / 2, merge_gap="0s", min_duration="0s")
    assert found.problems == ()
    for event in found.documents[0].events:
        shown = masks[event.start_frame // step : (event.end_frame - 1) // step + 1].max(axis=0)
        assert encloses(event.bbox, shown / 255 >= threshold)
        peak = masks[event.peak_frame // step].max() / 255
        assert event.bbox is not None or peak < threshold


class Planted(DifferenceDetector):
    """A detector that gives frames 8 to 15 a score of 0.45, and a mask of 0.45 with a core of 0.9."""

    needs = ClipNeeds(frames=4, overlap=0, rate_hz=10, size=SizeRule(96 * 64), pixel_format=PixelFormat.GRAY)
    thresholds = Thresholds(high=0.4, low=0.3)

    def score(self, batch: ClipBatch) -> ClipScores:
        number = np.array([[read_index(frame[..., 0]) for frame in clip] for clip in batch.frames])
        inside = (number >= 8) & (number < 16)
        mask = np.zeros((*number.shape, 64, 96), np.float32)
        mask[inside, 10:40, 20:50] = 0.45
        mask[inside, 20:30, 30:40] = 0.9
        return ClipScores(np.stack([inside, inside], axis=-1).astype(np.float32), mask)

    def finish(self, track: RawTrack) -> FrameScores:
        score = np.where(track.raw[:, 0] > 0, 0.45, 0.1)
        return FrameScores(np.log(score / (1 - score)).astype(np.float32))


def scan(folder: Path, detector: Planted | None = None, *, frames: int = 24, **options: object) -> OutputLayout:
    (folder / "footage").mkdir(exist_ok=True)
    if not (folder / "footage" / "a.mkv").exists():
        make_video(folder / "footage" / "a.mkv", "ffv1", frames=frames, fps=10)
    given = ScanOptions(out=folder / "out", min_duration="0s", merge_gap="0s", **options)  # type: ignore[arg-type]
    plan = make_plan([folder / "footage"], given, out=given.out)
    detector = detector or Planted(fits_camera=False)
    list(local_scan(plan, given, detector, stop=detector.stop if isinstance(detector, Stopping) else Stop()).run())
    return OutputLayout(given.out)


WIDE, CORE = (20, 10, 30, 30), (30, 20, 10, 10)


def box_of(layout: OutputLayout, **options: object) -> list[Box | None]:
    if options:
        return [event.bbox for event in vadcli.events(layout.out, **options).documents[0].events]
    return [event.bbox for event in read_events(layout.events("a.mkv")).events]


@pytest.mark.parametrize("masks", ["none", "video", "rle", "both"])
def test_a_scan_and_its_recuts_use_the_threshold_of_the_events(masks: str, tmp_path: Path) -> None:
    layout = scan(tmp_path, masks=masks)
    assert box_of(layout) == [WIDE], "the event opens at 0.4, so its box starts there and not at 0.5"
    assert box_of(layout, threshold=0.42) == [WIDE]
    assert box_of(layout, threshold=0.2, low=0.2) == [WIDE]
    assert box_of(layout, threshold=0.7) == []
    if masks in ("rle", "both"):
        assert rle_threshold(layout.mask_rle("a.mkv")) == 0.4
    if masks in ("video", "both"):
        assert max(mask.max() for mask in read_masks(layout.mask_video("a.mkv"))) == 230


class Stopping(Planted):
    """A detector that ends the scan after the event."""

    stop = Stop()

    def score(self, batch: ClipBatch) -> ClipScores:
        if read_index(batch.frames[0, 0, ..., 0]) >= 16:
            self.stop.set("test", 2)
        return super().score(batch)


def test_an_interrupted_scan_does_not_continue_with_boxes_of_another_threshold(tmp_path: Path) -> None:
    detector = Stopping(fits_camera=False)
    layout = scan(tmp_path, detector, frames=200, threshold=0.95)
    assert not layout.scores("a.mkv").exists()
    assert layout.checkpoint("a.mkv").exists()
    scan(tmp_path, threshold=0.44)
    assert box_of(layout) == [WIDE]


def test_rendered_videos_thumbnails_and_cvat_outline_at_the_threshold_of_the_events(tmp_path: Path) -> None:
    layout = scan(tmp_path, masks="video")
    table, _ = read_scores(layout.scores("a.mkv"))
    document = read_events(layout.events("a.mkv"))
    masks = MaskTrack(table, layout)
    mask, grey = masks.at(10), np.full((64, 96, 3), 120, np.uint8)
    assert mask is not None
    edges = {}
    for high in (0.4, 0.5):
        cut = Thresholds(high=high, low=0.3)
        edges[high] = outlined(grey, mask, masks.level(cut))
        overlay = Overlay(table, replace(document, thresholds=cut), Geometry.of(96, 64), end_s=2.4)
        large = overlay.geometry.enlarge
        above_the_bar = overlay.draw(grey, 10, mask)[8 * large : 13 * large, 35 * large]
        assert (above_the_bar.max() > 200) == (high == 0.4)
    assert (edges[0.4][10, 20:50] != 120).all()
    assert (edges[0.5][10, 20:50] == 120).all()
    assert (edges[0.5][20, 30:40] != 120).all()
    export([document], "cvat", layout=layout, to=tmp_path / "cvat", file=None)  # type: ignore[arg-type]
    (file,) = (tmp_path / "cvat").rglob("*.xml")
    assert 'left="20" top="10" width="30" height="30"' in file.read_text()
