"""Tests of the LAVIDA detector: its interface, and whole scans on the CPU."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.detectors.lavida.models import films, tiny_folder
from tests.media import make_video
from tests.runs import local_scan
from vadcli import detectors
from vadcli.detectors import Attributor
from vadcli.detectors.lavida import LavidaOptions
from vadcli.detectors.lavida.detector import LavidaDetector
from vadcli.detectors.lavida.model import Lavida
from vadcli.engine.plan import make_plan
from vadcli.engine.runner import Stop
from vadcli.errors import UsageError, WeightsError
from vadcli.options import ScanOptions
from vadcli.store import OutputLayout
from vadcli.store.events import read_events
from vadcli.store.masks import read_boxes, read_masks
from vadcli.store.scores import read_metadata, read_scores
from vadcli.types import ClipBatch, MaskScale, VideoResult


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("weights") / "tiny")


def detector_of(folder: Path | str, **options: object) -> LavidaDetector:
    given = {"categories": "fight, fire", "model": str(folder), "allow_untrained": True, "device": "cpu", **options}
    return LavidaDetector(LavidaOptions(**given))  # type: ignore[arg-type]


def batch(count: int, *, seed: int = 0, size: tuple[int, int] = (48, 64)) -> ClipBatch:
    frames = films(count, size=size, seed=seed).numpy()
    shape = frames.shape[:2]
    return ClipBatch(
        frames,
        np.tile(np.arange(shape[1]) / 7.5, (count, 1)),
        np.ones(shape, np.bool_),
        tuple(f"{number}.mp4" for number in range(count)),
        (None,) * count,
        np.full(count, 4, np.int64),
    )


def test_scores_do_not_depend_on_the_batch_or_on_what_came_before(folder: Path) -> None:
    detector = detector_of(folder, mask_gate="off")
    whole = detector.score(batch(8))
    for size in (1, 3):
        for start in range(0, 8, size):
            part = replace_rows(batch(8), slice(start, start + size))
            scores = detector.score(part)
            np.testing.assert_allclose(scores.raw, whole.raw[start : start + size], atol=1e-5)
            assert scores.mask is not None
            assert whole.mask is not None
            np.testing.assert_allclose(scores.mask, whole.mask[start : start + size], atol=1e-5)


def replace_rows(given: ClipBatch, rows: slice) -> ClipBatch:
    return ClipBatch(
        given.frames[rows],
        given.timestamp[rows],
        given.valid[rows],
        given.videos[rows],
        given.models[rows],
        given.interval[rows],
    )


def test_masks_are_logits_on_their_scale(folder: Path) -> None:
    detector = detector_of(folder, mask_gate="off")
    given = batch(1)
    scores = detector.score(given)
    assert scores.mask is not None
    assert detector.mask_scale is MaskScale.LOGIT
    model = detector.load(torch.device("cpu"))
    with torch.no_grad():
        verdict = model(torch.from_numpy(given.frames), model.questions(detector.categories))
    wanted = 1 / (1 + np.exp(-np.clip(verdict.mask_logit.numpy(), -8, 8)))
    stored = np.rint(scores.mask * 255).astype(np.uint8)
    np.testing.assert_allclose(MaskScale.LOGIT.pixel_scores()[stored] / 255, wanted, atol=0.012)


def test_half_of_the_mask_scale_is_half_a_pixel_score() -> None:
    table = MaskScale.LOGIT.pixel_scores()
    assert (np.diff(table.astype(int)) >= 0).all()
    assert table[127] < 128 <= table[128]


def test_out_of_memory_costs_no_clip(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = detector_of(folder).score(batch(5))
    encode = Lavida.encode

    def small(self: Lavida, frames: torch.Tensor) -> object:
        if len(frames) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return encode(self, frames)

    monkeypatch.setattr(Lavida, "encode", small)
    np.testing.assert_allclose(detector_of(folder).score(batch(5)).raw, whole.raw, atol=1e-5)


def test_two_devices_score_as_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = detector_of(folder).score(batch(4))
    monkeypatch.setattr("vadcli.detectors.lavida.detector.devices_for", lambda name: [torch.device("cpu")] * 2)
    detector = detector_of(folder)
    detector.prepare()
    assert detector.parallel == 2
    with ThreadPoolExecutor(2) as threads:
        parts = list(threads.map(lambda row: detector.score(replace_rows(batch(4), slice(row, row + 1))), range(4)))
    np.testing.assert_allclose(np.concatenate([part.raw for part in parts]), whole.raw, atol=1e-5)


def test_attribution_asks_for_each_category_alone(folder: Path) -> None:
    detector = detector_of(folder)
    assert isinstance(detector, Attributor)
    scores = detector.attribute(batch(2))
    assert scores.shape == (2, 8, 2)
    for number, name in enumerate(detector.categories):
        alone = detector_of(folder, categories=name).score(batch(2)).raw[..., 0]
        np.testing.assert_allclose(scores[..., number], 1 / (1 + np.exp(-alone)), atol=1e-5)


def test_the_sam2_package_gives_the_same(folder: Path) -> None:
    pytest.importorskip("sam2", reason="the sam2 package is not installed")
    ours, theirs = (detector_of(folder, sam2=name, mask_gate="off").score(batch(2)) for name in ("transformers", "package"))
    np.testing.assert_allclose(theirs.raw, ours.raw, atol=1e-5)
    assert ours.mask is not None
    assert theirs.mask is not None
    np.testing.assert_allclose(theirs.mask, ours.mask, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [{"compression": 0.5}, {"mask_gate": "off"}, {"drop_static": True}, {"precision": "bf16"}],
    ids=lambda change: next(iter(change)),
)
def test_whatever_changes_scores_changes_the_fingerprint(folder: Path, change: dict[str, object]) -> None:
    plain, changed = detector_of(folder).fingerprint(), detector_of(folder, **change).fingerprint()
    assert json.dumps(plain, sort_keys=True) != json.dumps(changed, sort_keys=True)
    same = detector_of(folder, device="auto", batch_size=3, attribute=False).fingerprint()
    assert json.dumps(plain, sort_keys=True) == json.dumps(same, sort_keys=True)


def test_without_categories_a_general_list_is_looked_for(folder: Path) -> None:
    assert "fighting" in detector_of(folder, categories="").categories


@pytest.mark.parametrize("names", [",, ,", "fight, <SEG>", "a<|im_end|>b"])
def test_categories_that_are_none_are_refused(folder: Path, names: str) -> None:
    with pytest.raises(UsageError, match="--categories"):
        detector_of(folder, categories=names).prepare()


def test_precision_is_known_by_what_it_comes_to(folder: Path) -> None:
    """The fingerprint has the real precision.

    Two machines with `auto` may share one OUT, although one computes in fp16 and the other in fp32.
    """
    assert detector_of(folder).fingerprint()["precision"] == "torch.float32"
    assert detector_of(folder, precision="fp32").fingerprint() == detector_of(folder).fingerprint()


def test_a_preset_without_a_folder_is_drawn_whole_only_with_leave(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VADCLI_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsError):
        detector_of("preset:lavida-tiny", allow_untrained=False)
    with pytest.raises(UsageError, match="no preset is called 'lavida-huge'"):
        detector_of("preset:lavida-huge")
    first, second = (detector_of("preset:lavida-tiny").score(batch(1)).raw for _ in range(2))
    np.testing.assert_array_equal(first, second)


def scan(footage: Path, out: Path, folder: Path, **options: object) -> dict[str, VideoResult]:
    given = ScanOptions(
        out=out,
        detector="lavida",
        model=str(folder),
        allow_untrained=True,
        device="cpu",
        **{"categories": "fight, fire", **options},
    )  # type: ignore[arg-type]
    detector = detectors.load("lavida", given)
    run = local_scan(make_plan([footage], given, out=out), given, detector, stop=Stop(), command=["vadcli", "scan"])
    return {update.video: update for update in run.run() if isinstance(update, VideoResult)}


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of videos: long, short, shorter than a clip, and of another size."""
    found = tmp_path_factory.mktemp("films") / "footage"
    found.mkdir()
    make_video(found / "a.mp4", frames=70, fps=15)
    make_video(found / "b.mp4", frames=33, fps=15)
    make_video(found / "c.mp4", frames=5, fps=15)
    make_video(found / "d.mp4", frames=40, fps=15, size=(64, 96))
    return found


def test_a_scan_writes_every_file_of_the_contract(footage: Path, folder: Path, tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path / "out")
    results = scan(footage, layout.out, folder, masks="both", threshold=0.0, low=0.0, min_duration="0s")
    assert {video: str(result.status) for video, result in results.items()} == dict.fromkeys(
        ("a.mp4", "b.mp4", "c.mp4", "d.mp4"), "done"
    )
    for video, frames, size in (("a.mp4", 70, (64, 96)), ("c.mp4", 5, (64, 96)), ("d.mp4", 40, (96, 64))):
        table, metadata = read_scores(layout.scores(video))
        assert len(table) == frames
        assert list(np.flatnonzero(table.sampled)) == list(range(0, frames, 2))
        assert metadata.categories == ("fight", "fire")
        masks = list(read_masks(layout.mask_video(video)))
        assert len(masks) == int(table.sampled.sum())
        assert {mask.shape for mask in masks} == {size}
        rows, _ = read_boxes(layout.mask_rle(video))
        assert list(rows) == list(np.flatnonzero(table.sampled))
        (event,) = read_events(layout.events(video)).events
        assert (event.start_frame, event.end_frame) == (0, frames)
        assert set(event.category_scores) == {"fight", "fire"}
        assert event.category == max(event.category_scores, key=event.category_scores.__getitem__)
    assert read_metadata(layout.scores("a.mp4")) is not None


@pytest.fixture(scope="module")
def alone(footage: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> OutputLayout:
    """Return scans of one video each; the last video is scanned first."""
    layout = OutputLayout(tmp_path_factory.mktemp("alone") / "out")
    for path in sorted(footage.iterdir(), reverse=True):
        scan(path, layout.out, folder, attribute=False)
    return layout


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 3, "workers": 1}, {"batch_size": 8, "workers": 2}])
def test_rows_are_the_same_for_any_batch_and_any_order(
    footage: Path, folder: Path, alone: OutputLayout, tmp_path: Path, options: dict[str, int]
) -> None:
    together = OutputLayout(tmp_path / "together")
    scan(footage, together.out, folder, attribute=False, **options)
    for path in footage.iterdir():
        one, other = (read_scores(layout.scores(path.name))[0] for layout in (alone, together))
        np.testing.assert_allclose(one.logit, other.logit, atol=1e-5)
