"""Train a small LAVIDA on the synthetic world.

Example: python -m tools.tiny_world --recipe recipes/lavida-tiny.toml --out training
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from tools.tiny_world.recipe import read_tiny_recipes
from tools.tiny_world.training import TinyTraining, train
from vadcli.errors import VadcliError


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.tiny_world", description=__doc__)
    parser.add_argument("--recipe", type=Path, required=True, help="a TOML file, such as recipes/lavida-tiny.toml")
    parser.add_argument("--out", type=Path, default=Path("training"), help="folder for the log, the checkpoints and the model")
    parser.add_argument("--device", default="auto", help="auto or cpu")
    parser.add_argument("--dry-run", action="store_true", help="print what would be trained and stop")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        recipes = read_tiny_recipes(options.recipe)
        if options.dry_run:
            from vadcli.train.trainer import plan_of, plan_text, time_text

            for recipe in recipes:
                plan = plan_of(recipe, TinyTraining())
                print(plan_text(plan) + time_text(plan, TinyTraining()), end="")
            return 0
        folder = train(recipes, options.out, device=None if options.device == "auto" else options.device)
    except VadcliError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
