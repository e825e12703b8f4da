"""Small synthetic videos as arrays, and a function that scans them without files or the engine."""

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
    """Return a background with grey levels 20 to 235, smooth enough for optical flow."""
    rng = np.random.default_rng(seed)
    scene = np.zeros((height, width))
    for size in (6, 12, 24, 48):
        coarse = rng.normal(0, size**0.5, (height // size + 3, width // size + 3))
        y, x = np.linspace(0, height / size, height), np.linspace(0, width / size, width)
        rows = coarse[y.astype(int)] * (1 - y % 1)[:, None] + coarse[y.astype(int) + 1] * (y % 1)[:, None]
        scene += rows[:, x.astype(int)] * (1 - x % 1) + rows[:, x.astype(int) + 1] * (x % 1)
    return np.clip(120 + 6 * scene, 20, 235)


def put(picture: np.ndarray, *, x: float, y: int, seed: int, size: tuple[int, int] = (24, 12)) -> np.ndarray:
    """Return the picture with a patterned block in it.

    `x` is rounded; parts beyond the border are cut off.
    """
    height, width = size
    block = np.random.default_rng(seed).normal(60 if seed % 2 else 190, 30, (height // 4, width // 4)).repeat(4, 0).repeat(4, 1)
    left = round(x)
    first, last = max(0, left), min(picture.shape[1], left + width)
    out = picture.copy()
    if first < last:
        out[y : y + height, first:last] = block[:, first - left : last - left]
    return out


def film(pictures: Sequence[np.ndarray], *, noise: float = 2.0, seed: int = 0) -> np.ndarray:
    """Return the pictures as frames (S, H, W) uint8 with sensor noise."""
    rng = np.random.default_rng(seed)
    return np.stack([np.clip(np.round(p + rng.normal(0, noise, p.shape)), 0, 255) for p in pictures]).astype(np.uint8)


def street(frames: int, *, seed: int = 0, runner: range = range(0), scene_seed: int = 0) -> np.ndarray:
    """Return a video of walkers (1 pixel per frame); in the frames `runner`, a person runs at RUN_PX."""
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
    """The results of a scan.

    Attributes:
        score: (S,) frame scores after `finish`.
        mask: (S, h, w).
        raw: (S, K) raw scores.
        moving: True if the camera moves; None if not known.
    """

    score: np.ndarray
    mask: np.ndarray
    raw: np.ndarray
    moving: bool | None


def clips_of(frames: np.ndarray, *, length: int, overlap: int, video: str = "v.mp4", rate_hz: float = RATE_HZ) -> list[Clip]:
    """Return the clips that the loader would make from this video."""
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
    """Return a camera model that is fitted on these videos; each starts at the time `start_s`."""
    clips = []
    for number, frames in enumerate(films):
        made = clips_of(frames, length=detector.needs.frames, overlap=0, video=f"fit/{number}.mp4", rate_hz=rate_hz)
        clips += [replace(clip, timestamp=clip.timestamp + start_s) for clip in made]
    return detector.fit(CameraSample("fit", tuple(clips), seed=3))


def scan(
    detector: Detector, frames: np.ndarray, model: CameraModel | None, *, video: str = "v.mp4", rate_hz: float = RATE_HZ
) -> Scanned:
    """Score a video clip by clip, and return the finished scores."""
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
