"""Hidden pixels: nothing sees them, and models, scores and vectors are used only with their own regions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.engine import test_concept
from tests.fakes import DifferenceDetector
from tests.media import make_video
from tests.runs import local_scan
from vadcli.engine.cameras import read_camera
from vadcli.engine.plan import make_plan
from vadcli.options import ScanOptions
from vadcli.store import OutputLayout
from vadcli.store.masks import read_masks
from vadcli.types import (
    CameraModel,
    CameraSample,
    ClipBatch,
    ClipNeeds,
    ClipScores,
    FrameScores,
    PixelFormat,
    RawTrack,
    SizeRule,
    Status,
    VideoResult,
)

planted = test_concept.planted
LEFT_HALF = [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]


class Witness(DifferenceDetector):
    """Notes the change in the left half of the frames, and gives all pixels of every frame a high score."""

    needs = ClipNeeds(frames=4, overlap=1, rate_hz=5, size=SizeRule(96 * 64), pixel_format=PixelFormat.GRAY)
    uses_categories = True
    categories = ("one", "two")

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, float] = {}

    def watch(self, where: str, frames: np.ndarray) -> None:
        left = frames[..., : frames.shape[-2] // 2, :].astype(float)
        contrast = max(float(np.ptp(frame)) for frame in left.reshape(-1, *left.shape[-3:]))
        self.seen[where] = max(self.seen.get(where, 0.0), contrast)

    def fit(self, sample: CameraSample) -> CameraModel | None:
        for clip in sample.clips:
            self.watch("fit", clip.frames)
        return super().fit(sample)

    def score(self, batch: ClipBatch) -> ClipScores:
        self.watch("score", batch.frames)
        scores = super().score(batch)
        assert scores.mask is not None
        return ClipScores(scores.raw, np.ones_like(scores.mask))

    def finish(self, track: RawTrack) -> FrameScores:
        return FrameScores(np.full(len(track.timestamp), 4, np.float32))

    def attribute(self, batch: ClipBatch) -> np.ndarray:
        self.watch("attribute", batch.frames)
        return np.ones((*batch.frames.shape[:2], 2), np.float32)

    def propagate(self, frames: np.ndarray, known: Mapping[int, np.ndarray]) -> np.ndarray:
        self.watch("propagate", frames)
        return np.stack([known[min(known)]] * len(frames))


def scan(folder: Path, out: Path, **options: object) -> tuple[dict[str, str], Witness]:
    given, detector = ScanOptions(out=out, workers=1, **options), Witness()  # type: ignore[arg-type]
    run = local_scan(make_plan([folder], given, out=out), given, detector)
    return {one.video: str(one.status) for one in run.run() if isinstance(one, VideoResult)}, detector


@pytest.fixture
def regions(tmp_path: Path) -> Path:
    path = tmp_path / "regions.json"
    path.write_text(json.dumps({"format_version": 1, "cameras": {"*": {"ignore": [LEFT_HALF]}}}))
    return path


@pytest.mark.parametrize("decoder", ["decord", "ffmpeg"])
def test_everything_that_sees_frames_sees_them_hidden(tmp_path: Path, regions: Path, decoder: str) -> None:
    folder, out = tmp_path / "footage", tmp_path / "out"
    folder.mkdir()
    make_video(folder / "a.mp4", frames=24, fps=10)
    options = {"masks": "both", "propagate_masks": True, "decoder": decoder}
    _, bare = scan(folder, tmp_path / "bare", **options)
    assert set(bare.seen) == {"fit", "score", "attribute", "propagate"}
    assert min(bare.seen.values()) > 100
    statuses, detector = scan(folder, out, ignore=regions, **options)
    assert statuses == {"a.mp4": "done"}
    assert detector.seen == dict.fromkeys(bare.seen, 0.0)
    masks = np.stack(list(read_masks(OutputLayout(out).mask_video("a.mp4"))))
    assert masks[:, :, :48].max() == 0
    assert masks[:, :, 48:].min() == 255
    document = json.loads(OutputLayout(out).events("a.mp4").read_text())
    assert [event["bbox"] for event in document["events"]] == [[48, 0, 48, 64]]
    scan(folder, tmp_path / "plain", ignore=regions, decoder=decoder)
    plain = json.loads(OutputLayout(tmp_path / "plain").events("a.mp4").read_text())
    assert [event["bbox"] for event in plain["events"]] == [[48, 0, 48, 64]]  # also where no masks are kept


def test_a_model_belongs_to_its_regions(tmp_path: Path, regions: Path) -> None:
    folder, out = tmp_path / "footage", tmp_path / "out"
    folder.mkdir()
    make_video(folder / "a.mp4", frames=24, fps=10)
    layout = OutputLayout(out)
    scan(folder, out)
    assert "regions" not in json.loads(layout.camera(".").read_text())
    for refit in (None, False):  # also with --no-refit: a model of other pixels is of no use
        statuses, detector = scan(folder, out, ignore=regions, refit=refit)
        assert statuses == {"a.mp4": "done"}
        assert detector.fitted == ["."]
        assert read_camera(layout.camera(".")).regions
        assert scan(folder, out, ignore=regions)[0] == {"a.mp4": "skipped"}
        scan(folder, out)
    assert read_camera(layout.camera(".")).regions == ""


def test_vectors_belong_to_their_regions(tmp_path: Path, regions: Path) -> None:
    red, blue, out, shown = test_concept.RED, test_concept.BLUE, tmp_path / "out", tmp_path / "footage"
    shown.mkdir()
    test_concept.make(shown / "a-red.mp4", "red", seconds=10)
    assert test_concept.scan(shown, out, red, ignore=regions)["a-red.mp4"].status is Status.DONE
    stored = OutputLayout(out).embeddings("a-red.mp4")
    before = stored.read_bytes()
    test_concept.scan(shown, out, blue, ignore=regions)
    assert stored.read_bytes() == before  # scored again from the vectors
    document = json.loads(OutputLayout(out).events("a-red.mp4").read_text())
    assert document["categories"] == ["something blue"]
    assert document["regions"]["ignore"] == [LEFT_HALF]
    test_concept.scan(shown, out, blue)
    assert stored.read_bytes() != before
    assert json.loads(OutputLayout(out).events("a-red.mp4").read_text())["regions"] is None
