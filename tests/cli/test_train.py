"""`vadcli train` as a shell sees it; the training itself is tested in tests/train."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]


def vadcli(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vadcli", "train", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


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
    done = vadcli("--config", small, "--out", tmp_path / "out", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "small, pictures: 16,000 steps of 2 samples" in done.stdout
    assert "small, exposure: 16,000 steps of 2 samples" in done.stdout
    for word in ("projector", "memory:", "s a step here"):
        assert done.stdout.count(word) == 2, word
    assert not (tmp_path / "out").exists()


def test_a_dry_run_of_the_papers_recipe_counts_what_it_takes(tmp_path: Path) -> None:
    text = (ROOT / "recipes" / "lavida-7b.toml").read_text()
    paper = tmp_path / "paper.toml"
    paper.write_text(text.replace('folder = "weights/lavida-7b"', 'preset = "lavida-7b"'))
    done = vadcli("--config", paper, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "lavida-7b, exposure" in done.stdout
    assert "operations a step and process" in done.stdout


def test_a_recipe_that_is_none_is_one_line(tmp_path: Path) -> None:
    missing = vadcli("--config", tmp_path / "none.toml")
    assert missing.returncode in (1, 2)
    assert str(tmp_path / "none.toml") in missing.stderr
    assert "Traceback" not in missing.stderr
    (tmp_path / "odd.toml").write_text('name = "x"\ncolour = 3\n')
    odd = vadcli("--config", tmp_path / "odd.toml")
    assert odd.returncode in (1, 2)
    assert "colour" in odd.stderr
    assert "Traceback" not in odd.stderr
