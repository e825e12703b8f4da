"""Tests of masks between sampled frames: with the detector alone, and in a whole scan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.detectors.lavida.models import films, tiny_folder
from tests.media import run_ffmpeg
from tests.patience import PATIENCE_S
from tests.runs import local_scan
from vadcli import detectors
from vadcli.detectors import Propagator
from vadcli.detectors.lavida import LavidaOptions
from vadcli.detectors.lavida.detector import LavidaDetector
from vadcli.detectors.lavida.sam2 import PackageMasks
from vadcli.detectors.running import MOST_SPANS
from vadcli.engine.plan import make_plan
from vadcli.engine.runner import Stop
from vadcli.errors import DeviceError
from vadcli.options import ScanOptions
from vadcli.store import OutputLayout
from vadcli.store.events import read_events
from vadcli.store.masks import read_mask_rle, read_masks, rle_threshold, upsample_mask
from vadcli.store.scores import read_scores
from vadcli.types import ClipBatch, MaskScale, VideoResult, mask_level
from vadcli.video.loader import ClipLoader, ClipReady, ClipRequest, LoaderOptions

PROPAGATE = "vadcli.detectors.lavida.model.propagate"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture(scope="module")
def detector(folder: Path) -> LavidaDetector:
    return detector_of(folder)


def detector_of(folder: Path) -> LavidaDetector:
    return LavidaDetector(
        LavidaOptions(categories="fire", model=str(folder), allow_untrained=True, device="cpu", mask_gate="off")
    )


def blob(side: int, left: int) -> np.ndarray:
    """Return a mask on MaskScale.LOGIT that shows a square."""
    mask = np.full((side, side), 0.1, np.float32)
    mask[side // 4 : side // 2, left : left + side // 4] = 0.9
    return mask


@pytest.fixture(scope="module")
def film() -> np.ndarray:
    return np.ascontiguousarray(films(1, frames=10)[0].numpy())


@pytest.fixture(scope="module")
def known(detector: LavidaDetector) -> dict[int, np.ndarray]:
    detector.prepare()
    side = int(detector.needs.size.max_area_px**0.5) // 4
    return {0: blob(side, 2), 4: blob(side, side // 2), 7: blob(side, 0)}


def test_known_masks_come_back_and_the_others_are_carried(
    detector: LavidaDetector, film: np.ndarray, known: dict[int, np.ndarray]
) -> None:
    assert isinstance(detector, Propagator)
    masks = detector.propagate(film, known)
    assert (masks.shape, masks.dtype) == ((10, *known[0].shape), np.float32)
    assert masks.min() >= 0
    assert masks.max() <= 1
    for number, mask in known.items():
        np.testing.assert_allclose(masks[number], mask, atol=1e-6)
    other = detector.propagate(film, known | {4: known[0]})
    np.testing.assert_allclose(other[:4], masks[:4], atol=1e-5)
    np.testing.assert_allclose(other[7:], masks[7:], atol=1e-5)


def test_a_stretch_is_the_same_alone(detector: LavidaDetector, film: np.ndarray, known: dict[int, np.ndarray]) -> None:
    masks = detector.propagate(film, known)
    for start, end in ((0, 4), (4, 7), (7, 10)):
        alone = detector.propagate(film[start:end], {0: known[start]})
        np.testing.assert_allclose(alone, masks[start:end], atol=1e-5)


def test_out_of_memory_halves_the_stretches_side_by_side(
    folder: Path, film: np.ndarray, known: dict[int, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vadcli.detectors.lavida import model as module

    whole, original, batches = detector_of(folder).propagate(film, known), module.propagate, []

    def small(*given: object, batch: int) -> torch.Tensor:
        batches.append(batch)
        if batch > 1:
            raise torch.OutOfMemoryError("out of memory")
        return original(*given, batch=batch)  # type: ignore[arg-type]

    monkeypatch.setattr(PROPAGATE, small)
    detector = detector_of(folder)
    np.testing.assert_allclose(detector.propagate(film, known), whole, atol=1e-5)
    detector.propagate(film, known)
    assert batches == [MOST_SPANS, 4, 2, 1, 1]


def test_where_not_even_one_fits_it_is_said(
    folder: Path, film: np.ndarray, known: dict[int, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*given: object, batch: int) -> torch.Tensor:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(PROPAGATE, none)
    with pytest.raises(DeviceError, match="does not fit into memory"):
        detector_of(folder).propagate(film, known)


def test_the_package_is_refused(detector: LavidaDetector, film: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    model = detector.load(torch.device("cpu"))
    model.masks = PackageMasks.__new__(PackageMasks)
    with pytest.raises(ValueError, match="use TransformersMasks"):
        model.propagate(torch.from_numpy(film), {}, batch=1)


def scan(footage: Path, out: Path, folder: Path, **options: object) -> dict[str, VideoResult]:
    given = ScanOptions(
        out=out,
        detector="lavida",
        model=str(folder),
        allow_untrained=True,
        device="cpu",
        mask_gate="off",
        categories="fire",
        masks="both",
        attribute=False,
        threshold=0.0,
        low=0.0,
        min_duration="0s",
        interval=3,
        **options,  # type: ignore[arg-type]
    )
    detector = detectors.load("lavida", given)
    run = local_scan(make_plan([footage], given, out=out), given, detector, stop=Stop(), command=["vadcli", "scan"])
    return {update.video: update for update in run.run() if isinstance(update, VideoResult)}


def test_a_scan_stores_what_the_memory_carries(folder: Path, detector: LavidaDetector, tmp_path: Path) -> None:
    footage, plain, layout = tmp_path / "footage", OutputLayout(tmp_path / "plain"), OutputLayout(tmp_path / "out")
    footage.mkdir()
    source = "testsrc=size=64x48:rate=15:duration=2"
    run_ffmpeg("-f", "lavfi", "-i", source, "-c:v", "libx264", "-preset", "ultrafast", str(footage / "a.mp4"))
    scan(footage, plain.out, folder)
    assert str(scan(footage, layout.out, folder, propagate_masks=True)["a.mp4"].status) == "done"
    table, metadata = read_scores(layout.scores("a.mp4"))
    assert str(metadata.masks) == "every row"
    np.testing.assert_array_equal(table.score, read_scores(plain.scores("a.mp4"))[0].score)
    masks = list(read_masks(layout.mask_video("a.mp4")))
    assert len(masks) == len(table) == 30
    sampled = list(read_masks(plain.mask_video("a.mp4")))
    np.testing.assert_array_equal(np.stack(masks)[table.sampled], np.stack(sampled))
    level = mask_level(rle_threshold(layout.mask_rle("a.mp4")))
    for row, mask in zip(read_mask_rle(layout.mask_rle("a.mp4")), masks, strict=True):
        np.testing.assert_array_equal(row.decode(), mask >= level)
    wanted = _propagated_by_hand(footage / "a.mp4", detector)
    difference = np.abs(np.stack(masks).astype(int) - wanted.astype(int))
    assert (difference > 1).mean() < 0.001
    held = np.repeat(np.stack(sampled), 3, axis=0)
    assert (np.stack(masks) != held)[~table.sampled].any(), "nothing was propagated"
    (event,) = read_events(layout.events("a.mp4")).events
    assert (event.start_frame, event.end_frame) == (0, 30)


def batch_of(frames: np.ndarray) -> ClipBatch:
    count = len(frames)
    times, valid = np.zeros((1, count)), np.ones((1, count), np.bool_)
    return ClipBatch(frames[None], times, valid, ("a",), (None,), np.ones(1, np.int64))


def _propagated_by_hand(path: Path, detector: LavidaDetector) -> np.ndarray:
    """Return pixel scores (30, H, W) uint8: every third frame is scored, and its mask is propagated."""
    needs = replace(detector.needs, frames=30, interval=1, overlap=0)
    with ClipLoader(needs, LoaderOptions(timeout_s=PATIENCE_S)) as loader:
        (clip,) = (item.clip.frames.copy() for item in loader.run([ClipRequest("a", path)]) if isinstance(item, ClipReady))
    stored: dict[int, np.ndarray] = {}
    for first in (0, 2):  # of ten sampled frames, the second clip of eight is moved back, and scores only the last two
        samples = range(first, first + 8)
        scores = detector.score(batch_of(clip[::3][samples]))
        assert scores.mask is not None
        for number, mask in zip(samples, np.rint(scores.mask[0] * 255).astype(np.uint8), strict=True):
            stored.setdefault(number, mask)
    rows = []
    for number in range(10):
        known = {0: stored[number].astype(np.float32) / 255}
        propagated = detector.propagate(clip[3 * number : 3 * number + 3], known)
        rows += [np.rint(mask * 255).astype(np.uint8) for mask in propagated]
    table = MaskScale.LOGIT.pixel_scores()
    return np.stack([table[upsample_mask(mask, 64, 48)] for mask in rows])
