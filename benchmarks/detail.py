"""Measure what `--motion-detail` gains and costs on small fast objects in 1080p.

python benchmarks/detail.py

In generated footage, an object moves across still ground by 14 pixels per step of 0.1 s. The table shows which share of its
speed the detector measures. If the share is small, the object's score is not above that of other motion.
"""

from __future__ import annotations

import time

import cv2
import numpy as np

from vadcli.detectors.motion import MotionOptions
from vadcli.detectors.motion.detector import MotionDetector
from vadcli.types import ByteArray, CameraSample, Clip, ClipBatch

HEIGHT, WIDTH = 1080, 1920
STEP_PX = 14
THINGS = {"far: 14×36 pixels": (14, 36), "nearer: 24×60 pixels": (24, 60), "near: 40×110 pixels": (40, 110)}
DETAILS = (1.0, 2.0, 3.0)
FRAMES = 32


def film(size: tuple[int, int] | None) -> ByteArray:
    """Return frames (T, H, W) of ground, with a moving object of `size` (width, height) if given."""
    rng = np.random.default_rng(0)
    ground = 6 * cv2.GaussianBlur(rng.normal(0, 60, (HEIGHT, WIDTH)).astype(np.float32), (0, 0), 6) + 120
    look = 4 * cv2.GaussianBlur(rng.normal(0, 60, (200, 200)).astype(np.float32), (0, 0), 3) + 200
    shown = []
    for t in range(FRAMES):
        picture = ground + rng.normal(0, 2, ground.shape)
        if size:
            width, height = size
            left = 300 + STEP_PX * t
            picture[400 : 400 + height, left : left + width] = look[:height, :width]
        shown.append(np.clip(picture, 0, 255).astype(np.uint8))
    return np.stack(shown)


def clip(frames: ByteArray, detector: MotionDetector) -> Clip:
    """Return the frames as a clip, at the size that the detector needs."""
    size = detector.needs.size.apply(WIDTH, HEIGHT)
    small = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])[..., None]
    rows = np.arange(len(frames))
    return Clip("a.mp4", 0, small, rows, rows / 10, np.ones(len(frames), np.bool_), 1)


def main() -> None:
    """Print the table."""
    quiet = film(None)
    films = {name: film(size) for name, size in THINGS.items()}
    print(f"| `--motion-detail` | {' | '.join(THINGS)} | CPU ms per sampled frame |\n|{'---|' * (len(THINGS) + 2)}")
    for detail in DETAILS:
        detector = MotionDetector(MotionOptions(detail=detail))
        model = detector.fit(CameraSample("c", (clip(quiet, detector),)))
        shares, spent = [], 0.0
        for frames in films.values():
            batch = ClipBatch.of([clip(frames, detector)], [model])
            before = time.process_time()
            raw = detector.score(batch).raw[0, 4:-4, detector.channels.index("speed")]
            spent += time.process_time() - before
            true_px = STEP_PX * detector.needs.size.apply(WIDTH, HEIGHT)[0] / WIDTH / detail
            shares.append(f"{100 * raw.mean() / true_px:.0f} %")
        print(f"| {detail:g} | {' | '.join(shares)} | {1000 * spent / FRAMES / len(films):.0f} |", flush=True)


if __name__ == "__main__":
    main()
