"""Refined masks: the outlines that replace blobs, the frames that are refined, the files, and a second run."""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vadcli
from tests.commands import vadcli as command
from tests.fakes import DifferenceDetector
from tests.media import make_rotated, make_video
from tests.runs import local_scan
from vadcli.detectors.refining import MOST_BLOBS, Sam2Refiner, refine_mask
from vadcli.engine.plan import make_plan
from vadcli.engine.runner import Stop
from vadcli.engine.second_pass import rows_of, spans_of
from vadcli.errors import DeviceError
from vadcli.options import ScanOptions
from vadcli.store import OutputLayout
from vadcli.store.events import read_events
from vadcli.store.masks import read_mask_rle, read_masks, refined_spans
from vadcli.store.scores import read_scores
from vadcli.types import ClipBatch, ClipNeeds, ClipScores, FrameScores, PixelFormat, RawTrack, SizeRule, VideoResult

FPS, INTERVAL, FRAMES = 10, 4, 60
SIZE = (160, 96)
EVENT = range(16, 38)  # the rows in which the thing is bright


def thing(index: int, width: int, height: int) -> np.ndarray:
    """Return a picture with an ellipse that moves to the right. It is bright in EVENT, and grey in other rows."""
    y, x = np.mgrid[:height, :width]
    inside = ((x - width * (0.2 + 0.01 * index)) / (width * 0.09)) ** 2 + ((y - height * 0.4) / (height * 0.2)) ** 2 <= 1
    return np.where(inside, 240 if index in EVENT else 140, 60).astype(np.uint8)


class Coarse(DifferenceDetector):
    """Makes masks of 12 × 20 cells that are high at the thing and around it."""

    needs = ClipNeeds(frames=4, overlap=0, rate_hz=FPS / INTERVAL, size=SizeRule(96 * 64), pixel_format=PixelFormat.GRAY)

    def __init__(self) -> None:
        super().__init__(fits_camera=False)

    def score(self, batch: ClipBatch) -> ClipScores:
        frames = batch.frames[..., 0].astype(np.float32)
        bright = frames.max(axis=(2, 3))
        heat = np.stack([np.stack([self._heat(frame) for frame in clip]) for clip in frames])
        return ClipScores(np.stack([bright, bright], axis=-1), heat)

    def _heat(self, frame: np.ndarray) -> np.ndarray:
        rows = np.array_split(frame > 110, 12)
        cells = np.array([[cell.mean() for cell in np.array_split(row, 20, axis=1)] for row in rows])
        wide = np.pad(cells, 1)
        around = np.maximum.reduce([wide[y : y + 12, x : x + 20] for y in range(3) for x in range(3)])
        return np.where(cells > 0.9, 0.9, np.where(around > 0.1, 0.7, 0.05)).astype(np.float32)

    def finish(self, track: RawTrack) -> FrameScores:
        return FrameScores(np.where(track.raw[:, 0] > 200, 3, -3).astype(np.float32))


class Bright:
    """Returns the bright pixels of a frame as outlines, and notes the prompts."""

    max_area_px = 1 << 20

    def __init__(self, stop: Stop | None = None, after: int = 0) -> None:
        self.prompts: list[np.ndarray] = []
        self.stop, self.after = stop, after

    def prepare(self) -> None:
        """There is nothing to load."""

    def segment(self, frame: np.ndarray, prompts: np.ndarray, width: int, height: int) -> np.ndarray:
        self.prompts.append(prompts)
        if self.stop is not None and len(self.prompts) >= self.after:
            self.stop.set("test", 2)
        rows = ((np.arange(height) + 0.5) * frame.shape[0] / height).astype(int)
        columns = ((np.arange(width) + 0.5) * frame.shape[1] / width).astype(int)
        outline = frame[rows][:, columns].mean(axis=2) > 100
        return np.repeat(outline[None], len(prompts), axis=0)

    def fingerprint(self) -> dict[str, object]:
        return {"refiner": "bright"}


def scan(footage: Path, out: Path, refiner: Bright | None, *, stop: Stop | None = None, **options: object) -> list[VideoResult]:
    given = ScanOptions(out=out, workers=1, **{"masks": "both", "min_duration": "0s", **options})  # type: ignore[arg-type]
    run = local_scan(make_plan([footage], given, out=out), given, Coarse(), stop=stop, command=["vadcli", "scan"])
    run.runner.refiner = refiner  # type: ignore[attr-defined]
    return [update for update in run.run() if isinstance(update, VideoResult)]


MAKERS: dict[str, Callable[[Path], Path]] = {
    "plain": partial(make_video, frames=FRAMES, fps=FPS, size=SIZE, draw=thing),
    "wide pixels": partial(make_video, frames=FRAMES, fps=FPS, size=SIZE, draw=thing, options=("-vf", "setsar=2")),
    "turned": partial(make_rotated, degrees_clockwise=90, frames=FRAMES, fps=FPS, size=SIZE, draw=thing),
    "no index": lambda path: make_video(path.with_suffix(".ts"), "mpegts", frames=FRAMES, fps=FPS, size=SIZE, draw=thing),
}


def overlap(one: np.ndarray, two: np.ndarray) -> float:
    return float((one & two).sum() / max(1, (one | two).sum()))


@pytest.mark.parametrize("kind", MAKERS)
def test_outlines_replace_the_blobs_of_events_and_lie_where_the_thing_is(tmp_path: Path, kind: str) -> None:
    (tmp_path / "footage").mkdir()
    video = MAKERS[kind](tmp_path / "footage" / "a.mp4").name
    for name, refiner in (("plain", None), ("refined", Bright())):
        assert [str(result.status) for result in scan(tmp_path / "footage", tmp_path / name, refiner)] == ["done"]
    plain, refined = (OutputLayout(tmp_path / name) for name in ("plain", "refined"))
    table, metadata = read_scores(refined.scores(video))
    width, height = metadata.video["width"], metadata.video["height"]
    assert (width, height) == ((2 * SIZE[0], SIZE[1]) if kind == "wide pixels" else SIZE)
    document = read_events(refined.events(video))
    (event,) = document.events
    level, rows = document.thresholds.mask_level, np.flatnonzero(table.sampled)
    shown = [row for row in rows.tolist() if row + INTERVAL > event.start_frame and row < event.end_frame]
    assert {min(shown), max(shown)} == {16, 36}, "the first and the last frame of the event are among them"
    coarse, crisp = (list(read_masks(layout.mask_video(video))) for layout in (plain, refined))
    runs = list(read_mask_rle(refined.mask_rle(video)))
    for row, before, after, marked in zip(rows.tolist(), coarse, crisp, runs, strict=True):
        assert after.shape == (height, width)
        if row not in shown:
            np.testing.assert_array_equal(after, before)
            continue
        truth = thing(row, width, height) > 100
        assert overlap(before >= level, truth) < 0.75
        assert overlap(after >= level, truth) > 0.9
        np.testing.assert_array_equal(marked.decode() > 0, after >= level)
        assert set(np.unique(after[after >= level])) == {before.max()}
    whole = np.logical_or.reduce([mask >= level for row, mask in zip(rows.tolist(), crisp, strict=True) if row in shown])
    assert event.bbox is not None
    left, top, wide, high = event.bbox
    assert whole[top : top + high, left : left + wide].sum() == whole.sum()
    assert whole[:, left].any()
    assert whole[top].any()
    np.testing.assert_array_equal(read_scores(plain.scores(video))[0].score, table.score)


@pytest.fixture
def footage(tmp_path: Path) -> Path:
    folder = tmp_path / "footage"
    folder.mkdir()
    make_video(folder / "a.mp4", frames=FRAMES, fps=FPS, size=SIZE, draw=thing)
    return folder


def test_plain_and_refined_masks_are_not_confused(footage: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    layout = OutputLayout(out)
    for number, refiner in enumerate((Bright(), Bright(), None, None, Bright())):
        (result,) = scan(footage, out, refiner)
        assert str(result.status) == ("skipped" if number in (1, 3) else "done")
        assert refined_spans(layout, "a.mp4") == (((16, 40),) if number in (0, 1, 4) else ())
    (result,) = scan(footage, out, None, masks="none")
    assert str(result.status) == "skipped"


def test_a_scan_that_is_stopped_while_it_refines_continues(footage: Path, tmp_path: Path) -> None:
    whole, stopped = OutputLayout(tmp_path / "whole"), OutputLayout(tmp_path / "stopped")
    scan(footage, whole.out, Bright())
    stop = Stop()
    scan(footage, stopped.out, Bright(stop, after=3), stop=stop)
    assert not stopped.mask_video("a.mp4").exists()
    assert not stopped.scores("a.mp4").exists()
    (result,) = scan(footage, stopped.out, Bright())
    assert str(result.status) == "done"
    for path in (OutputLayout.mask_video, OutputLayout.mask_rle):
        assert path(whole, "a.mp4").read_bytes() == path(stopped, "a.mp4").read_bytes()


KILLED = """
import sys, time
from pathlib import Path
from tests.engine.test_refining import Bright, scan

class Slow(Bright):
    def segment(self, *given, **named):
        print("refined", flush=True)
        time.sleep(0.2)
        return super().segment(*given, **named)

scan(Path(sys.argv[1]), Path(sys.argv[2]), Slow())
"""


def test_a_scan_that_is_killed_while_it_refines_continues(footage: Path, tmp_path: Path) -> None:
    whole, killed = OutputLayout(tmp_path / "whole"), OutputLayout(tmp_path / "killed")
    scan(footage, whole.out, Bright())
    command = [sys.executable, "-c", KILLED, str(footage), str(killed.out)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert running.stdout is not None
    assert [running.stdout.readline() for _ in range(3)] == 3 * ["refined\n"]
    running.kill()
    running.communicate()
    assert not killed.mask_video("a.mp4").exists()
    (result,) = scan(footage, killed.out, Bright())
    assert str(result.status) == "done"
    for path in (OutputLayout.mask_video, OutputLayout.mask_rle):
        assert path(whole, "a.mp4").read_bytes() == path(killed, "a.mp4").read_bytes()


class Faulty(Bright):
    """Raises an error for the first frame that it gets."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def segment(self, frame: np.ndarray, prompts: np.ndarray, width: int, height: int) -> np.ndarray:
        if not self.prompts:
            self.prompts.append(prompts)
            raise self.error
        return super().segment(frame, prompts, width, height)


def test_if_the_model_fails_in_one_video_the_others_are_refined(footage: Path, tmp_path: Path) -> None:
    shutil.copy(footage / "a.mp4", footage / "b.mp4")
    first, second = scan(footage, tmp_path / "out", Faulty(RuntimeError("a kernel\nfailed")))
    assert (str(first.status), str(second.status)) == ("failed", "done"), second.reason
    assert first.reason.startswith(f"{first.video}: RuntimeError: a kernel failed")
    assert refined_spans(OutputLayout(tmp_path / "out"), second.video)
    again = {result.video: str(result.status) for result in scan(footage, tmp_path / "out", Bright(), retry_failed=True)}
    assert again == {first.video: "done", second.video: "skipped"}


def test_if_the_model_cannot_run_at_all_the_scan_ends_and_the_next_one_continues(footage: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="does not fit"):
        scan(footage, tmp_path / "out", Faulty(DeviceError("one clip does not fit into memory")))
    (result,) = scan(footage, tmp_path / "out", Bright())
    assert str(result.status) == "done"


def test_the_reports_thumbnails_show_refined_outlines(footage: Path, tmp_path: Path) -> None:
    """The footage is grey, so what has a colour is the outline of the mask."""
    thing_px = np.array([0.09 * SIZE[0], 0.2 * SIZE[1]]) * 2  # width and height
    for name, refiner in (("plain", None), ("refined", Bright())):
        scan(footage, tmp_path / name, refiner)
        page = vadcli.report(tmp_path / name).file.read_text()
        pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in re.findall(WEBP, page)]
        outlines = [np.argwhere(np.ptp(picture, axis=2) > 60) for picture in pictures]
        sizes = [(np.ptp(outline, axis=0) + 1)[::-1] for outline in outlines if len(outline)]
        assert sizes, "each event has a strip of thumbnails"
        wider = np.array(sizes) - thing_px
        assert (np.abs(wider) <= 3).all() if name == "refined" else (wider > 8).all(), wider


WEBP = r"data:image/webp;base64,([A-Za-z0-9+/=]+)"


def test_rendered_videos_show_refined_masks(footage: Path, tmp_path: Path) -> None:
    """The fill covers the thing and not the rest of the blob."""
    import av

    pictures = {}
    for name, refiner in (("plain", None), ("refined", Bright())):
        out = tmp_path / name
        scan(footage, out, refiner)
        (rendered,) = vadcli.render(footage, out=out)
        with av.open(str(rendered.files[0])) as container:
            pictures[name] = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][20].astype(int)
    scale = pictures["plain"].shape[1] // SIZE[0]
    height, width = scale * SIZE[1], scale * SIZE[0]
    different = np.abs(pictures["plain"] - pictures["refined"]).max(axis=2)[:height] > 30
    y, x = np.argwhere(np.kron(thing(20, *SIZE) > 100, np.ones((scale, scale)))).mean(axis=0).astype(int)
    assert not different[y - 5 : y + 6, x - 5 : x + 6].any(), "both cover the middle of the thing"
    assert 0.01 * width * height < different.sum() < 0.2 * width * height, "only the plain one covers more"


# One mask


def blobs() -> np.ndarray:
    pixels = np.full((40, 60), 20, np.uint8)
    pixels[5:15, 5:20] = 150
    pixels[8:11, 6:9] = 200
    pixels[25:35, 30:50] = 180
    return pixels


def test_prompts_are_the_peak_and_the_box_of_each_blob_and_high_blobs_come_first() -> None:
    asked: list[np.ndarray] = []

    def nothing(prompts: np.ndarray) -> np.ndarray:
        asked.append(prompts)
        return np.zeros((len(prompts), 40, 60), np.bool_)

    np.testing.assert_array_equal(refine_mask(blobs(), 128, nothing), blobs())
    (prompts,) = asked
    np.testing.assert_array_equal(prompts[0], [[7, 9], [5, 5], [19, 14]])
    np.testing.assert_array_equal(prompts[1][1:], [[30, 25], [49, 34]])
    assert np.abs(prompts[1][0] - [39.5, 29.5]).max() <= 0.5
    assert refine_mask(blobs(), 201, nothing) is not None
    assert len(asked) == 1, "nothing reaches the level, so nothing is asked"


def test_a_blob_becomes_its_outline_and_one_that_is_missed_stays() -> None:
    def outlines(prompts: np.ndarray) -> np.ndarray:
        masks = np.zeros((2, 40, 60), np.bool_)
        masks[0, 0:8, 0:8] = True  # touches the first blob
        masks[1, 0:2, 50:60] = True  # does not touch the second one
        return masks

    refined = refine_mask(blobs(), 128, outlines)
    expected = blobs()
    expected[5:15, 5:20] = 127
    expected[0:8, 0:8] = 200
    np.testing.assert_array_equal(refined, expected)


def test_of_many_blobs_the_highest_are_refined() -> None:
    pixels = np.zeros((3, 60), np.uint8)
    pixels[1, ::2] = 130 + np.arange(30)
    asked: list[np.ndarray] = []

    def own(prompts: np.ndarray) -> np.ndarray:
        asked.append(prompts)
        return np.ones((len(prompts), 3, 60), np.bool_)

    refine_mask(pixels, 128, own)
    np.testing.assert_array_equal(asked[0][:, 0, 0], 58 - 2 * np.arange(MOST_BLOBS))


def test_the_frames_that_show_a_mask_of_an_event() -> None:
    masked = np.array([0, 4, 8, 12, 16])
    assert rows_of(masked, ((5, 9),), 20).tolist() == [4, 8]
    assert rows_of(masked, ((0, 1), (18, 20)), 20).tolist() == [0, 16]
    assert rows_of(masked, (), 20).tolist() == []
    assert rows_of(masked[:0], ((0, 20),), 20).tolist() == []
    rows, spans = np.array([0, 4, 12, 16]), ((0, 6), (13, 20))
    assert spans_of(rows, spans, may_seek=True) == ((0, 5), (12, 17))
    assert spans_of(rows, spans, may_seek=False) == ((0, 17),)


# SAM2


@pytest.fixture(scope="module")
def random_sam2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SAM2 in the size of the small checkpoint, with random weights."""
    from tests.test_weights_check import save_random_sam2

    return save_random_sam2(tmp_path_factory.mktemp("sam2"))


def test_random_sam2_gives_masks_of_the_right_shape_whatever_the_batch(random_sam2: Path) -> None:
    refiner = Sam2Refiner(str(random_sam2), device="cpu")
    draw = np.random.default_rng(0)
    frame = draw.integers(0, 256, (70, 130, 3), np.uint8)
    prompts = draw.uniform(0, 90, (5, 3, 2)).astype(np.float32)
    masks = refiner.segment(frame, prompts, 260, 140)
    assert masks.shape == (5, 140, 260)
    assert masks.dtype == np.bool_
    assert 0 < masks.mean() < 1
    one_by_one = np.concatenate([refiner.segment(frame, prompt[None], 260, 140) for prompt in prompts])
    assert (masks == one_by_one).mean() > 0.999
    half = Sam2Refiner(str(random_sam2), device="cpu", precision="fp16")
    assert (half.segment(frame, prompts, 260, 140) == masks).mean() > 0.95  # as on a GPU
    _, _, runner = refiner._load()
    runner.limit = 2
    assert (refiner.segment(frame, prompts, 260, 140) == masks).mean() > 0.999


def test_a_scan_with_random_sam2(footage: Path, tmp_path: Path, random_sam2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vadcli.detectors.refining.REFINER_MODEL", str(random_sam2))
    given = ScanOptions(out=tmp_path / "out", masks="video", refine_masks=True, device="cpu", min_duration="0s")
    run = local_scan(make_plan([footage], given, out=given.out), given, Coarse(), command=["vadcli"])
    (result,) = [update for update in run.run() if isinstance(update, VideoResult)]
    assert str(result.status) == "done"
    layout = OutputLayout(given.out)
    assert {mask.shape for mask in read_masks(layout.mask_video("a.mp4"))} == {(SIZE[1], SIZE[0])}
    assert refined_spans(layout, "a.mp4")
    assert read_scores(layout.scores("a.mp4"))[1].extra["refined"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--refine-masks",), 2, "--refine-masks: no masks are written\n  add --masks video, rle or both"),
        (("--refine-masks", "--masks", "video"), 4, "run `vadcli weights pull sam2.1-hiera-small` (0.2 GB)"),
    ],
)
def test_what_is_missing_is_said(footage: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, words: str) -> None:
    out = tmp_path / "out"
    done = command("scan", footage, "--out", out, "--detector", "motion", *arguments)
    assert done.returncode == code
    assert words in done.stderr
    assert not out.exists()
