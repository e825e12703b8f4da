"""Decoding as one writes it first: in this process, every frame in turn, one clip at a time. The baseline's reader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from vadcli.errors import DecodeError
from vadcli.types import ByteArray, Clip, ClipNeeds

NAIVE_FPS = 25.0
"""Of files that don't say."""


def naive_clips(video: str, path: Path, needs: ClipNeeds) -> Iterator[tuple[Clip, float]]:
    """The clips of a video without overlap, the last one filled up with its last frame, and the video's frame rate.

    Sampled frames alone are converted and scaled, by the decoder's own library, which is kinder than most such loops are.

    Raises:
        DecodeError: it can't be read.
    """
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            fps = float(stream.average_rate or NAIVE_FPS)
            interval = needs.interval_for(fps)
            frames: list[ByteArray] = []
            number = 0
            for index, frame in enumerate(container.decode(stream)):
                if index % interval:
                    continue
                width, height = needs.size.apply(frame.width, frame.height)
                picture = frame.reformat(width=width, height=height, format="rgb24").to_ndarray()
                frames.append(picture.astype(np.uint8, copy=False))
                if len(frames) == needs.frames:
                    yield _clip(video, number, frames, interval, fps), fps
                    frames, number = [], number + 1
            if frames:
                yield _clip(video, number, frames + frames[-1:] * (needs.frames - len(frames)), interval, fps), fps
    except (av.FFmpegError, IndexError) as error:
        raise DecodeError(f"{path}: {error}", hint="name other footage") from error


def _clip(video: str, number: int, frames: list[ByteArray], interval: int, fps: float) -> Clip:
    count = len(frames)
    index = np.arange(number * count, (number + 1) * count, dtype=np.int64) * interval
    return Clip(video, number, np.stack(frames), index, index / fps, np.ones(count, np.bool_), interval)
