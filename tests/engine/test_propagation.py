"""Masks of every row: propagated in events, repeated elsewhere, stored, and made again after an interruption."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import DifferenceDetector
from tests.media import BITS, make_image_folder, make_vfr, make_video, read_index
from tests.patience import PATIENCE_S
from tests.runs import local_scan
from tests.video import fake_decoders
from vadcli.cutting import EventBoxes
from vadcli.engine.plan import make_plan
from vadcli.engine.recut import recut, stored_boxes
from vadcli.engine.runner import Stop
from vadcli.engine.second_pass import Interrupted, MaskSpans, Propagation
from vadcli.errors import UsageError
from vadcli.options import ScanOptions
from vadcli.rendering import RenderSettings, render_video
from vadcli.store import OutputLayout
from vadcli.store.atomic import Scratch
from vadcli.store.events import read_events
from vadcli.store.masks import MaskTrack, mask_box, read_mask_rle, read_masks
from vadcli.store.scores import read_metadata, read_scores
from vadcli.types import (
    ClipBatch,
    ClipNeeds,
    ClipScores,
    Event,
    FrameScores,
    MaskRows,
    PixelFormat,
    RawTrack,
    SizeRule,
    VideoResult,
)
from vadcli.video.loader import ClipLoader, ClipRequest, LoaderOptions

SIDE = 16
INTERVAL = 4


def mask_of(number: int, source: int = 0) -> np.ndarray:
    """Return a mask (SIDE, SIDE) in [0, 1] with the bits of two numbers: of its frame above, and of its source frame below."""
    mask = np.zeros((SIDE, SIDE), np.float32)
    for bit in range(BITS):
        columns = slice(bit * SIDE // BITS, (bit + 1) * SIDE // BITS)
        mask[: SIDE // 2, columns] = number >> bit & 1
        mask[SIDE // 2 :, columns] = source >> bit & 1
    return mask


def read_mask(mask: np.ndarray) -> tuple[int, int]:
    """Return the two numbers of a mask of any size."""
    height, width = mask.shape
    columns = ((np.arange(BITS) + 0.5) * width / BITS).astype(int)
    weights = 1 << np.arange(BITS)
    above, below = (mask[int(height * part), columns] >= 128 for part in (0.25, 0.75))
    return int(weights[above].sum()), int(weights[below].sum())


class Carrier(DifferenceDetector):
    """Makes masks that contain the number of their frame and of the frame from which they were propagated."""

    needs = ClipNeeds(frames=4, overlap=0, rate_hz=10 / INTERVAL, size=SizeRule(96 * 64), pixel_format=PixelFormat.GRAY)

    def __init__(self, events: tuple[range, ...] = (range(22, 37),)) -> None:
        super().__init__(fits_camera=False)
        self.events = events
        self.calls: list[int] = []
        self.stop: Stop | None = None

    def score(self, batch: ClipBatch) -> ClipScores:
        number = np.array([[read_index(frame[..., 0]) for frame in clip] for clip in batch.frames])
        mask = np.stack([np.stack([mask_of(one) for one in clip]) for clip in number.tolist()])
        return ClipScores(np.stack([number, number], axis=-1).astype(np.float32), mask)

    def finish(self, track: RawTrack) -> FrameScores:
        inside = [any(number in rows for rows in self.events) for number in track.raw[:, 0].astype(int).tolist()]
        return FrameScores(np.where(inside, 4, -4).astype(np.float32))

    def propagate(self, frames: np.ndarray, known: Mapping[int, np.ndarray]) -> np.ndarray:
        self.calls.append(len(frames))
        masks, source = [], 0
        for place, frame in enumerate(frames):
            if place in known:
                source = read_mask(known[place] * 255)[0]
            masks.append(mask_of(read_index(frame[..., 0]), source))
        if self.stop is not None:
            self.stop.set("test", 2)
        return np.stack(masks)


def scan(footage: Path, out: Path, detector: DifferenceDetector | None = None, **options: object) -> dict[str, VideoResult]:
    given = ScanOptions(out=out, **{"masks": "both", "propagate_masks": True, "min_duration": "0s", **options})  # type: ignore[arg-type]
    detector = detector or Carrier()
    stop = Stop()
    if isinstance(detector, Carrier) and detector.stop is not None:
        detector.stop = stop
    run = local_scan(make_plan([footage], given, out=out), given, detector, stop=stop, command=["vadcli", "scan"])
    return {update.video: update for update in run.run() if isinstance(update, VideoResult)}


def footage_of(tmp_path: Path, frames: int = 60) -> Path:
    folder = tmp_path / "footage"
    folder.mkdir()
    make_video(folder / "a.mp4", frames=frames, fps=10)
    return folder


def expected(rows: int, touched: tuple[range, ...]) -> list[tuple[int, int]]:
    """Return the numbers that the mask of each row must contain, if the given rows are in events."""
    mask_spans = {row // INTERVAL for event in touched for row in event}
    held = [(row // INTERVAL * INTERVAL, 0) for row in range(rows)]
    return [
        (row, start) if start != row and row // INTERVAL in mask_spans else (start, 0) for row, (start, _) in enumerate(held)
    ]


@pytest.mark.parametrize(
    ("frames", "sampled_events", "touched"),
    [
        (60, (range(22, 37),), (range(24, 40),)),
        (60, (range(5),), (range(8),)),
        (58, (range(50, 58),), (range(52, 58),)),
        (61, (range(61),), (range(61),)),
        (60, (range(4, 9), range(40, 41)), (range(4, 12), range(40, 44))),
        (40, (), ()),
        (3, (range(3),), (range(3),)),
    ],
    ids=["middle", "start", "end", "whole", "two", "none", "shorter than a clip"],
)
def test_events_have_masks_of_their_own_in_every_row(
    tmp_path: Path, frames: int, sampled_events: tuple[range, ...], touched: tuple[range, ...]
) -> None:
    footage, layout = footage_of(tmp_path, frames), OutputLayout(tmp_path / "out")
    scan(footage, layout.out, Carrier(sampled_events), merge_gap="0s")
    table, metadata = read_scores(layout.scores("a.mp4"))
    events = read_events(layout.events("a.mp4")).events
    assert [(event.start_frame, event.end_frame) for event in events] == [(rows.start, rows.stop) for rows in touched]
    masks = list(read_masks(layout.mask_video("a.mp4")))
    assert [read_mask(mask) for mask in masks] == expected(frames, touched)
    runs = list(read_mask_rle(layout.mask_rle("a.mp4")))
    assert [(row.frame_index, row.pts) for row in runs] == list(enumerate(table.pts.tolist()))
    assert [read_mask(row.decode() * 255) for row in runs] == expected(frames, touched)
    assert metadata.masks is MaskRows.EVERY
    track = MaskTrack(table, layout)
    shown = [track.at(row) for row in range(frames)]
    assert [read_mask(mask) for mask in shown if mask is not None] == expected(frames, touched)
    assert track.problems == []


def test_boxes_are_around_the_masks_of_all_rows(tmp_path: Path) -> None:
    footage, layout = footage_of(tmp_path), OutputLayout(tmp_path / "out")
    scan(footage, layout.out, Carrier((range(16, 24),)))
    (event,) = read_events(layout.events("a.mp4")).events
    masks = list(read_masks(layout.mask_video("a.mp4")))[event.start_frame : event.end_frame]
    assert event.bbox == mask_box(np.max(masks, axis=0), 128)
    sampled = np.max(masks[::INTERVAL], axis=0)
    assert event.bbox != mask_box(sampled, 128), "a box that the sampled rows alone would have had shows nothing"
    table, _ = read_scores(layout.scores("a.mp4"))
    for path in (layout.mask_rle("a.mp4"), layout.mask_video("a.mp4")):
        document = read_events(layout.events("a.mp4"))
        boxes = stored_boxes(layout, "a.mp4", table, document.thresholds)
        assert isinstance(boxes, EventBoxes)
        assert boxes.rows.tolist() == list(range(60))
        assert recut(layout, None, "a.mp4", document.thresholds).events[0].bbox == event.bbox
        path.unlink()


def test_without_the_option_nothing_is_carried(tmp_path: Path) -> None:
    footage, layout = footage_of(tmp_path), OutputLayout(tmp_path / "out")
    detector = Carrier()
    scan(footage, layout.out, detector, propagate_masks=False)
    assert detector.calls == []
    metadata = read_metadata(layout.scores("a.mp4"))
    assert metadata is not None
    assert metadata.masks is MaskRows.SAMPLED
    assert [read_mask(mask)[0] for mask in read_masks(layout.mask_video("a.mp4"))] == list(range(0, 60, INTERVAL))


def kinds(layout: OutputLayout) -> list[object]:
    metadata = read_scores(layout.scores("a.mp4"))[1]
    masks = len(list(read_masks(layout.mask_video("a.mp4")))) if layout.mask_video("a.mp4").exists() else 0
    rows = len(list(read_mask_rle(layout.mask_rle("a.mp4")))) if layout.mask_rle("a.mp4").exists() else 0
    return [str(metadata.masks), masks, rows]


def test_a_second_run_makes_the_masks_that_are_asked_for(tmp_path: Path) -> None:
    footage, layout = footage_of(tmp_path), OutputLayout(tmp_path / "out")
    first = scan(footage, layout.out, propagate_masks=False)["a.mp4"]
    assert kinds(layout) == ["sampled", 15, 15]
    statuses = [str(first.status)]
    for propagate, masks in ((True, "both"), (True, "both"), (True, "video"), (False, "none"), (False, "both"), (False, "rle")):
        result = scan(footage, layout.out, masks=masks, propagate_masks=propagate)["a.mp4"]
        statuses.append(str(result.status))
        assert kinds(layout) == (
            ["sampled", 15, 15] if (propagate, masks) in ((False, "both"), (False, "rle")) else ["every row", 60, 60]
        )
    assert statuses == ["done", "done", "skipped", "skipped", "skipped", "done", "skipped"]


def test_mask_files_that_a_scan_does_not_write_do_not_stay(tmp_path: Path) -> None:
    footage, layout = footage_of(tmp_path), OutputLayout(tmp_path / "out")
    scan(footage, layout.out)
    scan(footage, layout.out, masks="rle", propagate_masks=False)
    assert kinds(layout) == ["sampled", 0, 15]
    scan(footage, layout.out, masks="video")
    assert kinds(layout) == ["every row", 60, 0]
    scan(footage, layout.out, masks="none", propagate_masks=False, force=True)
    assert kinds(layout) == ["sampled", 0, 0]


def test_an_interruption_costs_nothing_that_was_scored(tmp_path: Path) -> None:
    footage, whole, layout = footage_of(tmp_path, 120), OutputLayout(tmp_path / "whole"), OutputLayout(tmp_path / "out")
    undisturbed = Carrier((range(120),))
    scan(footage, whole.out, undisturbed)
    assert len(undisturbed.calls) > 2
    stopping = Carrier((range(120),))
    stopping.stop = Stop()
    result = scan(footage, layout.out, stopping)["a.mp4"]
    assert (str(result.status), len(stopping.calls)) == ("unfinished", 1)
    assert not layout.scores("a.mp4").exists()
    assert not layout.mask_video("a.mp4").exists()
    resumed = Carrier((range(120),))
    assert str(scan(footage, layout.out, resumed)["a.mp4"].status) == "done"
    for path in (layout.mask_video, layout.mask_rle):
        assert path("a.mp4").read_bytes() == getattr(whole, path.__name__)("a.mp4").read_bytes()
    assert [event.bbox for event in read_events(layout.events("a.mp4")).events] == [
        event.bbox for event in read_events(whole.events("a.mp4")).events
    ]
    assert not list(layout.out.rglob("*.part"))


def test_a_variable_frame_rate_moves_no_row(tmp_path: Path) -> None:
    footage, layout = tmp_path / "footage", OutputLayout(tmp_path / "out")
    footage.mkdir()
    make_vfr(footage / "a.mp4", frames=48)
    scan(footage, layout.out, Carrier((range(9, 30),)), interval=INTERVAL)
    table, _ = read_scores(layout.scores("a.mp4"))
    (event,) = read_events(layout.events("a.mp4")).events
    assert (event.start_frame, event.end_frame) == (12, 32)
    assert [read_mask(mask) for mask in read_masks(layout.mask_video("a.mp4"))] == expected(48, (range(12, 32),))
    assert len(table) == 48


def test_a_folder_of_images(tmp_path: Path) -> None:
    footage, layout = tmp_path / "footage", OutputLayout(tmp_path / "out")
    make_image_folder(footage / "clip", 20)
    scan(footage, layout.out, Carrier((range(8, 9),)), frames_as_video=True, interval=INTERVAL)
    masks = list(read_masks(layout.mask_video("clip")))
    assert [read_mask(mask) for mask in masks] == expected(20, (range(8, 12),))


def test_rendering_shows_each_row_its_own_mask(tmp_path: Path) -> None:
    import av

    footage, layout = tmp_path / "footage", OutputLayout(tmp_path / "out")
    footage.mkdir()
    make_video(footage / "a.mp4", frames=24, fps=10, size=(320, 176))
    scan(footage, layout.out, Carrier((range(8, 14),)), masks="video")
    settings = RenderSettings(decode=LoaderOptions(timeout_s=PATIENCE_S, threads=1), preset="ultrafast")
    with Scratch(layout.scratch) as scratch:
        result = render_video(footage / "a.mp4", video="a.mp4", layout=layout, settings=settings, scratch=scratch)
    assert result.problems == ()
    with av.open(str(layout.rendered("a.mp4"))) as container:
        pictures = [frame.to_ndarray(format="rgb24").astype(int)[:176] for frame in container.decode(video=0)]
    seen = []
    for picture in pictures:
        redness = (picture[..., 0] - picture[..., 2])[60:80]
        warm = [redness[:, 40 * bit + 12 : 40 * bit + 28].mean() > 25 for bit in range(BITS)]
        seen.append(sum(1 << bit for bit, one in enumerate(warm) if one))
    assert seen == [number for number, _ in expected(24, (range(8, 16),))]


class Recorder:
    """Makes masks with the value of the picture, and notes its calls."""

    def __init__(self) -> None:
        self.sources: dict[int, int] = {}
        self.most = 0

    def propagate(self, frames: np.ndarray, known: Mapping[int, np.ndarray]) -> np.ndarray:
        assert 0 in known
        self.most = max(self.most, len(frames))
        source = 0
        for place, frame in enumerate(frames):
            source = round(float(known[place][0, 0]) * 255) if place in known else source
            self.sources.setdefault(int(frame[0, 0, 0]) - 1, source)
        return np.broadcast_to(frames[:, :1, :1, 0] / np.float32(255), (len(frames), 2, 2)).copy()


@pytest.fixture(scope="module")
def loaders() -> Iterator[dict[int, ClipLoader]]:
    options = LoaderOptions(timeout_s=PATIENCE_S, prober=fake_decoders.PROBER, reader=fake_decoders.READER)
    needs = {length: ClipNeeds(length, 0, 5.0, SizeRule(1000), PixelFormat.GRAY, interval=1) for length in (1, 4, 7)}
    made = {length: ClipLoader(need, options) for length, need in needs.items()}
    yield made
    for loader in made.values():
        loader.close()


def event(start: int, end: int) -> Event:
    return Event(1, start, end, start / 10, end / 10, start, start / 10, 0.9, 0.8)


def carried(
    loader: ClipLoader, path: Path, sampled: np.ndarray, events: list[Event], *, most: int
) -> tuple[list[tuple[int, int]], Recorder]:
    """Return every row with the value of its mask. The mask of the k-th sampled row has the value 200 + k."""
    detector = Recorder()
    mask_spans = MaskSpans.of(sampled, events)
    known = (np.full((2, 2), 200 + number, np.uint8) for number in range(len(mask_spans.starts)))
    rows = Propagation(detector, loader, most_frames=most).every_row(mask_spans, known, ClipRequest("a", path))
    return [(row, int(mask[0, 0])) for row, mask in rows], detector


@pytest.mark.parametrize("most", [4, 6, 9, 200])
@pytest.mark.parametrize("length", [1, 4, 7])
def test_neither_the_call_nor_the_clip_decides_a_mask(
    loaders: dict[int, ClipLoader], tmp_path: Path, most: int, length: int
) -> None:
    path = fake_decoders.write(tmp_path / "a", rows=90, fps=10)
    sampled = np.arange(90) % 4 == 0
    rows, detector = carried(loaders[length], path, sampled, [event(10, 51), event(70, 71), event(85, 90)], most=most)
    inside = {row for first, last in ((8, 52), (68, 72), (84, 90)) for row in range(first, last)}
    wanted = [(row, row + 1 if row in inside and row % 4 else 200 + row // 4) for row in range(90)]
    assert rows == wanted
    assert detector.most <= most
    assert all(source == 200 + row // 4 for row, source in detector.sources.items() if row % 4)


def test_a_long_stretch_goes_on_from_the_mask_carried_last(loaders: dict[int, ClipLoader], tmp_path: Path) -> None:
    path = fake_decoders.write(tmp_path / "a", rows=40, fps=10)
    sampled = np.isin(np.arange(40), (0, 4, 30))
    rows, detector = carried(loaders[4], path, sampled, [event(5, 33)], most=8)
    assert rows == [
        (row, row + 1 if row >= 4 else 200) if row not in (4, 30) else (row, 201 + (row == 30)) for row in range(40)
    ]
    assert detector.most <= 9
    assert [detector.sources[row] for row in (5, 11, 12, 19, 20, 29, 31)] == [201, 201, 12, 12, 20, 28, 202]


@pytest.mark.parametrize("most", [4, 8, 64])
def test_a_lost_frame_holds_the_mask_before(loaders: dict[int, ClipLoader], tmp_path: Path, most: int) -> None:
    lost = [9, 12, 17, 18, 19, 20, 21, 22, 23]
    path = fake_decoders.write(tmp_path / "a", rows=32, fps=10, lost=lost)
    rows, _ = carried(loaders[4], path, np.arange(32) % 4 == 0, [event(8, 27)], most=most)
    values = dict(rows)
    assert [values[row] for row in range(8, 12)] == [202, 202, 11, 12]
    assert [values[row] for row in range(12, 16)] == [203] * 4, "there was no picture to start from"
    assert [values[row] for row in range(16, 28)] == [204] * 4 + [205] * 4 + [206, 26, 27, 28]
    assert [row for row, _ in rows] == list(range(32))


def test_a_video_that_ends_early_holds_the_last_mask(
    loaders: dict[int, ClipLoader], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = fake_decoders.write(tmp_path / "a", rows=24, fps=10, at=14, do="raise a decode error")
    rows, _ = carried(loaders[4], path, np.arange(24) % 4 == 0, [event(8, 24)], most=8)
    assert [value for _, value in rows[8:]] == [202, 10, 11, 12, 203, 14, 14, 14, *[204] * 4, *[205] * 4]
    assert "repeated, not propagated" in caplog.text


def test_it_ends_when_it_is_to_end(tmp_path: Path) -> None:
    path = fake_decoders.write(tmp_path / "a", rows=200, fps=10)
    options = LoaderOptions(timeout_s=PATIENCE_S, prober=fake_decoders.PROBER, reader=fake_decoders.READER)
    seen: list[int] = []
    with ClipLoader(ClipNeeds(4, 0, 5.0, SizeRule(1000), PixelFormat.GRAY, interval=1), options) as loader:
        propagation = Propagation(Recorder(), loader, stopped=lambda: len(seen) > 20)
        mask_spans = MaskSpans.of(np.arange(200) % 4 == 0, [event(0, 200)])
        masks = [np.zeros((2, 2), np.uint8)] * 50
        rows = propagation.every_row(mask_spans, masks, ClipRequest("a", path))
        with pytest.raises(Interrupted):
            seen.extend(row for row, _ in rows if not seen.append(row))
    assert 20 < len(seen) < 120


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.lists(st.integers(0, 39), max_size=6, unique=True))
def test_spans_hold_the_stretches_that_events_touch(flags: list[bool], edges: list[int]) -> None:
    sampled = np.array(flags)
    edges = sorted(edge for edge in edges if edge < len(flags))
    events = [event(start, end) for start, end in zip(edges[::2], edges[1::2], strict=False)]
    mask_spans = MaskSpans.of(sampled, events)
    read = {row for first, last in mask_spans.spans() for row in range(first, last)}
    inside = {row for one in events for row in range(one.start_frame, one.end_frame)}
    for start, end in zip(mask_spans.starts.tolist(), mask_spans.ends.tolist(), strict=True):
        rows = set(range(start, end))
        assert sampled[start]
        assert not sampled[start + 1 : end].any()
        assert (rows <= read) if len(rows) > 1 and rows & inside else not rows & read
    assert mask_spans.starts.tolist() == np.flatnonzero(sampled).tolist()


@pytest.mark.parametrize(
    ("options", "words"), [({"masks": "none"}, "no masks are written"), ({"sam2": "package"}, "sam2 package")]
)
def test_options_that_contradict_it(tmp_path: Path, options: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ScanOptions(**{"masks": "video", "propagate_masks": True, **options})  # type: ignore[arg-type]


def test_a_detector_that_cannot(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the difference detector can't propagate masks"):
        scan(footage_of(tmp_path, 8), tmp_path / "out", DifferenceDetector())
    assert not (tmp_path / "out").exists()
