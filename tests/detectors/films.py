"""Small synthetic films as arrays, and a scan of them without files: what the engine does, in a few lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from vadcli.detectors import Detector
from vadcli.types import CameraModel, CameraSample, Clip, ClipBatch, RawTrack, VideoInfo

HEIGHT_PX, WIDTH_PX, RATE_HZ = 120, 160, 10.0
RUN_PX = 5.0


def texture(seed: int, height: int = HEIGHT_PX, width: int = WIDTH_PX) -> np.ndarray:
    """A scene with detail at several sizes, gray levels 20-235, smooth enough for flow to follow."""
    rng = np.random.default_rng(seed)
    scene = np.zeros((height, width))
    for size in (6, 12, 24, 48):
        coarse = rng.normal(0, size**0.5, (height // size + 3, width // size + 3))
        y, x = np.linspace(0, height / size, height), np.linspace(0, width / size, width)
        rows = coarse[y.astype(int)] * (1 - y % 1)[:, None] + coarse[y.astype(int) + 1] * (y % 1)[:, None]
        scene += rows[:, x.astype(int)] * (1 - x % 1) + rows[:, x.astype(int) + 1] * (x % 1)
    return np.clip(120 + 6 * scene, 20, 235)


def put(picture: np.ndarray, *, x: float, y: int, seed: int, size: tuple[int, int] = (24, 12)) -> np.ndarray:
    """The picture with a patterned block in it, x to the whole pixel; what lies beyond the border is cut off."""
    height, width = size
    block = np.random.default_rng(seed).normal(60 if seed % 2 else 190, 30, (height // 4, width // 4)).repeat(4, 0).repeat(4, 1)
    left = round(x)
    first, last = max(0, left), min(picture.shape[1], left + width)
    out = picture.copy()
    if first < last:
        out[y : y + height, first:last] = block[:, first - left : last - left]
    return out


def film(pictures: Sequence[np.ndarray], *, noise: float = 2.0, seed: int = 0) -> np.ndarray:
    """(S, H, W) uint8 with sensor noise."""
    rng = np.random.default_rng(seed)
    return np.stack([np.clip(np.round(p + rng.normal(0, noise, p.shape)), 0, 255) for p in pictures]).astype(np.uint8)


def street(frames: int, *, seed: int = 0, runner: range = range(0), scene_seed: int = 0) -> np.ndarray:
    """People walk through at about 1 pixel a frame; in the frames of `runner` one runs at RUN_PX."""
    rng = np.random.default_rng(seed)
    walkers = [(float(rng.uniform(0, 180)), lane, rng.uniform(0.8, 1.2), k) for k, lane in enumerate((30, 45, 60, 75))]
    scene = texture(scene_seed)
    pictures = []
    for t in range(frames):
        picture = scene
        for start, y, speed, k in walkers:
            picture = put(picture, x=(start + speed * t) % 180 - 12, y=y, seed=100 + k)
        if t in runner:
            picture = put(picture, x=RUN_PX * (t - runner.start), y=60, seed=7)
        pictures.append(picture)
    return film(pictures, seed=seed)


@dataclass(frozen=True)
class Scanned:
    """score: (S,) after finish; mask: (S, h, w); raw: (S, K); moving: the camera flag."""

    score: np.ndarray
    mask: np.ndarray
    raw: np.ndarray
    moving: bool | None


def clips_of(frames: np.ndarray, *, length: int, overlap: int, video: str = "v.mp4", rate_hz: float = RATE_HZ) -> list[Clip]:
    """The clips that the loader would deliver of this film."""
    count, start, clips = len(frames), 0, []
    while True:
        end = min(count, start + length)
        index = np.minimum(np.arange(start, start + length), end - 1)
        valid = np.zeros(length, dtype=bool)
        valid[(overlap if start else 0) : end - start] = True
        clips.append(Clip(video, len(clips), frames[index][..., None], index, index / rate_hz, valid, 1))
        if end == count:
            return clips
        start = end - overlap


def fit(
    detector: Detector, films: Sequence[np.ndarray], *, rate_hz: float = RATE_HZ, start_s: float = 0.0
) -> CameraModel | None:
    """A model of a camera that saw these films, each from a video of its own, `start_s` after its beginning."""
    clips = []
    for number, frames in enumerate(films):
        made = clips_of(frames, length=detector.needs.frames, overlap=0, video=f"fit/{number}.mp4", rate_hz=rate_hz)
        clips += [replace(clip, timestamp=clip.timestamp + start_s) for clip in made]
    return detector.fit(CameraSample("fit", tuple(clips), seed=3))


def scan(
    detector: Detector, frames: np.ndarray, model: CameraModel | None, *, video: str = "v.mp4", rate_hz: float = RATE_HZ
) -> Scanned:
    """Score a film clip by clip and finish it."""
    raw, mask = [], []
    needs = detector.needs
    for clip in clips_of(frames, length=needs.frames, overlap=needs.overlap, video=video, rate_hz=rate_hz):
        batch = ClipBatch(clip.frames[None], clip.timestamp[None], clip.valid[None], (video,), (model,), np.array([1]))
        scores = detector.score(batch)
        assert scores.mask is not None
        raw.append(scores.raw[0][clip.valid])
        mask.append(scores.mask[0][clip.valid])
    count = len(frames)
    pts = np.round(np.arange(count) * 1000 / rate_hz).astype(np.int64)
    height, width = frames.shape[1:]
    info = VideoInfo(Path(video), "mov", "h264", 0, width, height, 0, Fraction(1, 1000), pts, rate_hz, count / rate_hz)
    track = RawTrack(info, np.arange(count) / rate_hz, np.concatenate(raw), model)
    finished = detector.finish(track)
    score = 1.0 / (1.0 + np.exp(-finished.logit.astype(np.float64)))
    return Scanned(score, np.concatenate(mask), track.raw, finished.moving_camera)
