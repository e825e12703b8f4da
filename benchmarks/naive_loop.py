"""A simple loop as a baseline: decodes a video, fits `motion` on it and scores it, in one process."""

from __future__ import annotations

import sys
from pathlib import Path

import av
import numpy as np
from PIL import Image

from vadcli import detectors
from vadcli.types import CameraSample, Clip, ClipBatch
from vadcli.video.probe import probe


def main(path: Path) -> None:
    """Decode the clips of a video into memory, fit the detector on some of them, and score all of them."""
    detector, info = detectors.load("motion"), probe(path)
    needs = detector.needs
    interval, size = needs.interval_for(info.fps), needs.size.apply(info.width, info.height)
    clips: list[Clip] = []
    frames: list[np.ndarray] = []
    times: list[float] = []
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            picture = frame.to_ndarray(format="gray")
            if number % interval:
                continue
            frames.append(np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))[..., None])
            times.append(float(frame.time or 0.0))
            if len(frames) == needs.frames:
                clips.append(_clip(str(path), len(clips), frames, times, interval))
                frames, times = frames[-needs.overlap :], times[-needs.overlap :]
    model = detector.fit(CameraSample(".", tuple(clips[:64])))
    for clip in clips:
        batch = ClipBatch(
            clip.frames[None], clip.timestamp[None], clip.valid[None], (clip.video,), (model,), np.array([interval], np.int64)
        )
        detector.score(batch)


def _clip(video: str, index: int, frames: list[np.ndarray], times: list[float], interval: int) -> Clip:
    rows = np.arange(len(frames), dtype=np.int64)
    return Clip(video, index, np.stack(frames), rows, np.array(times), np.ones(len(frames), np.bool_), interval)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
