"""Scans with the motion detector: batch size, workers, stops and decoders do not change a score."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.engine.test_local import assert_same_rows, table
from tests.media import make_video
from tests.runs import local_scan
from vadcli.detectors.motion.detector import MotionDetector
from vadcli.engine.plan import make_plan
from vadcli.engine.runner import Stop
from vadcli.engine.stream import ClipsScored
from vadcli.options import ScanOptions
from vadcli.store import OutputLayout
from vadcli.store.events import read_events
from vadcli.store.masks import read_masks
from vadcli.types import ByteArray

VIDEOS = ("gate/0.mp4", "gate/1.mp4", "gate/2.mp4", "yard/0.mp4", "yard/1.mp4")
FRAMES, SIZE = 100, (160, 120)
CLIPS = 4  # per video
THREADS = 2


def walker(speed_px: float) -> Callable[[int, int, int], ByteArray]:
    """Write a video in which a striped bar crosses a pattern."""

    def draw(number: int, width: int, height: int) -> ByteArray:
        picture = (np.add.outer(np.arange(height) * 5 % 67, np.arange(width) * 3 % 61) + 40).astype(np.uint8)
        left = round(number * speed_px) % (width - 20)
        picture[50:90, left : left + 16] = np.arange(40)[:, None] * 37 % 200
        return picture

    return draw


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("footage")
    for number, video in enumerate(VIDEOS):
        (folder / video).parent.mkdir(exist_ok=True)
        make_video(folder / video, frames=FRAMES, fps=10, size=SIZE, draw=walker(0.8 + 0.7 * number))
    return folder


def scan(footage: Path, out: Path, *, stop_after: int | None = None, **options: object) -> int:
    """Scan until the end, or until `stop_after` clips have scores; returns the number of clips that were scored."""
    chosen, stop, detector, clips = ScanOptions(out=out, **options), Stop(), MotionDetector(), 0  # type: ignore[arg-type]
    detector.parallel = THREADS
    for update in local_scan(make_plan([footage], chosen, out=out), chosen, detector, stop=stop).run():
        clips += isinstance(update, ClipsScored)
        if stop_after is not None and clips >= stop_after:
            stop.set("test", 2)
    return clips


@pytest.fixture(scope="module")
def undisturbed(footage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    assert scan(footage, out, workers=1) == CLIPS * len(VIDEOS)
    return out


def assert_same_scores(left: Path, right: Path) -> None:
    for camera in ("gate", "yard"):
        assert OutputLayout(left).camera(camera).read_bytes() == OutputLayout(right).camera(camera).read_bytes()
    for video in VIDEOS:
        assert_same_rows(table(left, video), table(right, video))


@pytest.mark.parametrize("workers", [2, 4])
def test_the_number_of_workers_changes_no_score(footage: Path, undisturbed: Path, tmp_path: Path, workers: int) -> None:
    scan(footage, tmp_path, workers=workers)
    assert_same_scores(undisturbed, tmp_path)


@pytest.mark.parametrize("stop_after", [2, 6, 13])
def test_a_stop_is_heeded_at_once_and_changes_no_score(
    footage: Path, undisturbed: Path, tmp_path: Path, stop_after: int
) -> None:
    before = scan(footage, tmp_path, workers=1, stop_after=stop_after)
    # The detector ends the clips that it has: those that it scores, as many that wait, and one that was just submitted.
    assert before <= stop_after + 2 * THREADS + 1 < CLIPS * len(VIDEOS)
    assert before < scan(footage, tmp_path, workers=2) + before <= CLIPS * len(VIDEOS) + 2
    assert_same_scores(undisturbed, tmp_path)


def test_both_decoders_give_the_same_rows_and_nearly_the_same_scores(footage: Path, tmp_path: Path) -> None:
    """Their pixels differ by the rounding of colours, so scores are not the same to the bit."""
    for decoder in ("ffmpeg", "decord"):
        scan(footage, tmp_path / decoder, workers=1, decoder=decoder)
    for video in VIDEOS:
        left, right = table(tmp_path / "ffmpeg", video), table(tmp_path / "decord", video)
        for name in ("pts", "timestamp", "sampled", "decode_ok"):
            np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)
        assert left.score.max() > 0.04
        np.testing.assert_allclose(left.score, right.score, atol=0.004)


def test_a_damaged_mask_is_made_again_and_stops_no_other_video(footage: Path, tmp_path: Path, caplog) -> None:
    out = tmp_path / "out"
    scan(footage, out, masks="video")
    layout = OutputLayout(out)
    layout.mask_video(VIDEOS[1]).write_bytes(b"garbage")
    assert scan(footage, out, masks="video", threshold=0.05) == CLIPS
    assert f"{VIDEOS[1]}: scanned again, because its stored results are damaged: " in caplog.text
    assert {read_events(layout.events(video)).thresholds.high for video in VIDEOS} == {0.05}
    assert list(read_masks(layout.mask_video(VIDEOS[1])))
