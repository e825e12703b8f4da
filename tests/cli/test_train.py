"""`vadcli train`: options and messages. tests/train tests the training."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests import commands

ROOT = Path(__file__).resolve().parents[2]


def vadcli(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return commands.vadcli("train", *arguments, forks=commands.WITH_TORCH)


def test_a_dry_run_of_the_papers_recipe_prints_parts_memory_and_time(tmp_path: Path) -> None:
    text = (ROOT / "recipes" / "lavida-7b.toml").read_text()
    paper = tmp_path / "paper.toml"
    paper.write_text(text.replace('folder = "weights/lavida-7b"', 'preset = "lavida-7b"'))
    done = vadcli("--recipe", paper, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "lavida-7b, exposure" in done.stdout
    assert "operations per step and process" in done.stdout


def test_a_file_that_is_no_recipe_is_one_line(tmp_path: Path) -> None:
    missing = vadcli("--config", tmp_path / "none.toml")
    assert missing.returncode in (1, 2)
    assert str(tmp_path / "none.toml") in missing.stderr
    assert "Traceback" not in missing.stderr
    (tmp_path / "odd.toml").write_text('name = "x"\ncolour = 3\n')
    odd = vadcli("--recipe", tmp_path / "odd.toml")
    assert odd.returncode in (1, 2)
    assert "colour" in odd.stderr
    assert "Traceback" not in odd.stderr


def test_a_missing_recipe_is_one_line() -> None:
    done = vadcli("--dry-run")
    assert done.returncode == 2
    assert "--recipe" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_old_name_of_the_option_works_and_is_not_in_the_help() -> None:
    assert "--config" not in vadcli("--help").stdout
    done = vadcli("--config", ROOT / "recipes" / "none.toml")
    assert "none.toml" in done.stderr


def test_a_recipe_of_the_synthetic_world_names_the_command_that_trains_it() -> None:
    done = vadcli("--recipe", ROOT / "recipes" / "lavida-tiny.toml", "--dry-run")
    assert done.returncode == 2
    assert "python -m tools.tiny_world --recipe" in done.stderr
    assert "Traceback" not in done.stderr
