"""Compare PIMO curves and AUPIMO with the implementation of their authors in anomalib.

python benchmarks/pimo.py

anomalib is not a dependency of this project: install it in another environment that has vadcli, too. Only the modules below
`anomalib.metrics.pimo` are used. The values are compared for maps of bytes, like stored masks, and for maps with 65,536 levels.
"""

from __future__ import annotations

import argparse

import numpy as np

from vadcli.metrics.localization import PIMO_LIMITS, PixelAccumulator, aupimo
from vadcli.types import BoolArray, ByteArray, FloatArray

LEVELS = 256
RATES = (0.001, 0.01, 0.1)


def made_up(side: int, *, frames: int = 12, seed: int = 7) -> tuple[ByteArray, BoolArray]:
    """Return scores (F, side, side) from 0 to 255, and the true pixels, which have higher scores.

    Every second frame has true pixels.
    """
    draw = np.random.default_rng(seed)
    truth = np.zeros((frames, side, side), np.bool_)
    for frame in range(0, frames, 2):
        y, x = draw.integers(0, side // 2, 2)
        truth[frame, y : y + side // 4, x : x + side // 3] = True
    scores = np.clip(draw.normal(70.0, 35.0, truth.shape) + 110.0 * truth, 0.0, 254.0)
    # The reference spreads its thresholds over the scores of the normal frames. With 0 and 255 in one of these frames, the
    # thresholds are the 256 byte values.
    scores[1].flat[:2] = 0.0, 255.0
    return np.floor(scores).astype(np.uint8), truth


def ours(scores: np.ndarray, truth: BoolArray, limits: tuple[float, float], *, bins: int = LEVELS) -> tuple[float, FloatArray]:
    """Return this project's AUPIMO, and its mean PIMO curve (P, 2)."""
    accumulator = PixelAccumulator(bins=bins)
    accumulator.add("video", scores, truth)
    found = aupimo(accumulator.counts(), limits=limits)
    assert found.value is not None
    return found.value, np.array(found.curve)


def theirs(scores: np.ndarray, truth: BoolArray, limits: tuple[float, float], levels: int) -> tuple[float, FloatArray]:
    """Return the mean AUPIMO of the reference, and its mean PIMO curve (P, 2)."""
    import torch
    from anomalib.metrics.pimo import functional  # type: ignore[import-not-found]

    maps, masks = torch.from_numpy(scores.astype(np.float32)), torch.from_numpy(truth)
    _, rate, shares, classes, areas, _ = functional.aupimo_scores(maps, masks, levels, limits, force=True)
    curve = np.stack([rate.numpy(), shares[classes == 1].mean(dim=0).numpy()], axis=1)[::-1]
    return float(areas[classes == 1].mean()), np.asarray(curve, np.float64)


def at(curve: FloatArray, rates: tuple[float, ...]) -> list[float]:
    """Return the height of a curve at each rate: at the lowest threshold with at most this rate."""
    return [float(curve[curve[:, 0] <= rate + 1e-12, 1].max(initial=0.0)) for rate in rates]


def main() -> None:
    """Print the values of both implementations, and the largest distance between their curves."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    for side, limits in ((64, (1e-3, 1e-1)), (512, PIMO_LIMITS)):
        scores, truth = made_up(side)
        area, curve = ours(scores, truth, limits)
        reference, other = theirs(scores, truth, limits, LEVELS)
        rates = np.unique(np.concatenate([curve[:, 0], other[:, 0]]))
        apart = np.abs(np.array(at(curve, tuple(rates))) - np.array(at(other, tuple(rates)))).max()
        print(f"{side} px, bytes, rates {limits[0]:g} to {limits[1]:g}: AUPIMO {area:.6f}, reference {reference:.6f}")
        print(f"  largest distance of the curves: {apart:.1e}; the reference at the rates {RATES}: {at(other, RATES)}")
        fine = np.clip(scores / 255.0 + np.random.default_rng(1).uniform(0.0, 1 / 256, scores.shape), 0.0, 1.0)
        area, _ = ours(fine, truth, limits, bins=2**16)
        reference, _ = theirs(fine, truth, limits, 2**16)
        print(f"{side} px, 65,536 levels: AUPIMO {area:.6f}, reference {reference:.6f}")


if __name__ == "__main__":
    main()
