"""Tests of the command that trains on the synthetic world: exit codes and output."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.commands import WITH_TORCH

ROOT = Path(__file__).resolve().parents[2]


def tiny_world(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    call, words = f"{__name__}:run", ["tiny_world", *map(str, arguments)]
    return WITH_TORCH.start(call, words, cwd=ROOT, environment=os.environ, stdin=None).wait()


def run() -> None:
    """Run the command; this function runs in the new process."""
    from tools.tiny_world.__main__ import main

    sys.exit(main())


def test_a_dry_run_says_what_would_be_trained(tmp_path: Path) -> None:
    small = tmp_path / "small.toml"
    small.write_text(
        """
name = "small"
[model]
preset = "lavida-tiny-scratch"
train = ["projector"]
masks = 1
[[data]]
name = "synthetic"
[schedule]
batch = 1
[[stage]]
task = "pictures"
[[stage]]
task = "exposure"
"""
    )
    done = tiny_world("--recipe", small, "--out", tmp_path / "out", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "small, pictures: 16,000 steps of 2 samples" in done.stdout
    assert "small, exposure: 16,000 steps of 2 samples" in done.stdout
    for word in ("projector", "memory:", "s per step here"):
        assert done.stdout.count(word) == 2, word
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_is_none_is_one_line(tmp_path: Path) -> None:
    missing = tiny_world("--recipe", tmp_path / "none.toml")
    assert missing.returncode in (1, 2)
    assert str(tmp_path / "none.toml") in missing.stderr
    assert "Traceback" not in missing.stderr
