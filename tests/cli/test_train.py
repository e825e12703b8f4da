"""`vadcli train` as a shell sees it; the training itself is tested in tests/train."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def vadcli(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vadcli", "train", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def test_a_dry_run_says_what_would_be_trained(tmp_path: Path) -> None:
    done = vadcli("--config", ROOT / "recipes" / "lavida-tiny.toml", "--out", tmp_path / "out", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "projector" in done.stdout
    assert not (tmp_path / "out").exists()


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
