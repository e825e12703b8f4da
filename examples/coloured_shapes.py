"""Draw videos of coloured shapes, which lavida-tiny can recognise, and write their ground truth.

    python examples/coloured_shapes.py demo/shapes --categories "red star, something falling"
    vadcli scan demo/shapes --detector lavida --model lavida-tiny --categories "red star, something falling"

A category has a colour and a shape ("blue ring"), only a colour ("something red"), only a shape ("ring"), or a size and a shape
("large star"). Each of these can have a motion ("red star circling", "something moving left"). The same seed makes the same
files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vadcli.errors import VadcliError

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout: tools/ is not part of the wheel
from tools.tiny_world import SyntheticWorld, WorldOptions
from tools.tiny_world.videos import VideoOptions, write_videos

CATEGORIES = "red star, blue ring, something falling"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write videos and ground_truth.csv to")
    parser.add_argument("--categories", default=CATEGORIES, help="names, separated by commas (default: %(default)s)")
    parser.add_argument("--videos", type=int, default=6, help="number of videos (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=12.0, help="length of each video (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=7, help="another seed makes other videos (default: %(default)s)")
    options = parser.parse_args(arguments)
    categories = [name.strip() for name in options.categories.split(",") if name.strip()]
    if options.videos < 1:
        parser.error(f"--videos {options.videos}: give 1 or more")
    try:
        world = SyntheticWorld(WorldOptions(), seed=options.seed, split="test", length=options.videos)
        video_options = VideoOptions(seconds=options.seconds)
        truth = write_videos(options.out, world, range(options.videos), categories=categories, options=video_options)
    except VadcliError as error:
        sys.exit(f"{parser.prog}: {error}")
    print(f"{options.videos} videos in {options.out}; ground truth: {truth}")


if __name__ == "__main__":
    main()
