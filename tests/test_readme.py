"""The README in a new clone: its commands work one after the other, and a second `make demo` repeats no work."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    """Return the commands in order: the lines of shell blocks, and the lines after $ in blocks that also show output."""
    found = []
    for kind, block in re.findall(r"```(sh|console)\n(.*?)```", README, re.DOTALL):
        lines = [line for line in block.splitlines() if line.strip()]
        found += [line.removeprefix("$ ") for line in lines if kind == "sh" or line.startswith("$ ")]
    return [line.split("#")[0].strip() for line in found]


def test_vadcli_is_named_only_once_it_is_on_the_path() -> None:
    lines = commands()
    bare = next(place for place, line in enumerate(lines) if line.startswith("vadcli"))
    assert ". .venv/bin/activate" in lines[:bare]
    assert lines.index("make demo") < bare  # this command makes .venv and the footage
    assert len(README.split()) <= 700


@pytest.mark.skipif(not Path(sys.executable).with_name("activate").exists(), reason="needs a virtual environment")
def test_the_lines_of_the_readme_work(tmp_path: Path) -> None:
    archive = [sys.executable, ROOT / "examples" / "synthetic_archive.py", tmp_path / "demo" / "footage"]
    subprocess.run([*archive, "--seconds", "4", "--width", "160"], check=True, capture_output=True, timeout=PATIENCE_S)
    (tmp_path / ".venv").symlink_to(Path(sys.executable).parents[1])
    lines = [line for line in commands() if not line.startswith("make ")]
    assert len(lines) >= 4
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", "\n".join(lines)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "video,start_s,end_s,peak_score"
    assert "6 done" in done.stderr
    assert (tmp_path / "results" / "report.html").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_a_second_demo_draws_nothing_again(tmp_path: Path) -> None:
    def plan() -> str:
        command = ["make", "-n", "demo", "demo-lavida", f"DEMO={tmp_path}"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout

    first = plan()
    assert ("synthetic_archive.py" in first, "coloured_shapes.py" in first) == (True, True)
    for truth in ("footage/truth.csv", "shapes/ground_truth.csv"):
        (tmp_path / truth).parent.mkdir()
        (tmp_path / truth).touch()
    second = plan()
    assert ("synthetic_archive.py" in second, "coloured_shapes.py" in second, "vadcli scan" in second) == (False, False, True)
