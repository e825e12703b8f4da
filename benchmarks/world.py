"""Measure how many clips with frames, masks and facts the synthetic world makes per CPU second.

python benchmarks/world.py --clips 300
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from _measure import machine

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout: tools/ is not part of the wheel
from tools.tiny_world import SyntheticWorld, WorldOptions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    rates = [rate(seed, chosen.clips) for seed in range(chosen.rounds)]
    print(f"{machine()}; clips per CPU second, one figure per round: {', '.join(f'{found:.0f}' for found in rates)}")


def rate(seed: int, clips: int) -> float:
    """Return the clips per CPU second of a world that is not stored in a folder."""
    world = SyntheticWorld(WorldOptions(), seed=seed, split="train", length=clips)
    began = time.process_time()
    for index in range(clips):
        world.frames(index), world.masks(index), world.facts(index)
    return clips / (time.process_time() - began)


if __name__ == "__main__":
    main()
