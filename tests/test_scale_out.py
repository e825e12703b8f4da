"""The scripts of docs/scale-out.md scan every video exactly once. Fake programs replace sbatch and parallel."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.media import make_video
from tests.patience import PATIENCE_S
from vadcli.store import OutputLayout
from vadcli.store.run_log import read_run

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "scale-out.md").read_text(encoding="utf-8")
SCRIPTS = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)

SBATCH = r"""#!/bin/bash
# Runs the tasks of an array one after the other: sbatch --export=ALL,NAME=VALUE,... SCRIPT
IFS=, read -ra pairs <<< "${1#--export=ALL,}"
export "${pairs[@]}"
first=$(sed -n 's/^#SBATCH --array=\([0-9]*\)-.*/\1/p' "$2")
last=$(sed -n 's/^#SBATCH --array=[0-9]*-\([0-9]*\)$/\1/p' "$2")
export SLURM_ARRAY_TASK_COUNT=$((last - first + 1)) SLURM_CPUS_PER_TASK=1
for SLURM_ARRAY_TASK_ID in $(seq "$first" "$last"); do
    export SLURM_ARRAY_TASK_ID
    bash "$2" || exit
done
"""
PARALLEL = r"""#!/bin/bash
# Runs a command once for each argument after ":::", on this machine.
while [[ $1 == --* ]]; do [[ $1 == --line-buffer ]] && shift || shift 2; done
command=()
while [[ $1 != ::: ]]; do command+=("$1"); shift; done
shift
for argument; do "${command[@]//\{\}/$argument}" || exit; done
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Make footage of three cameras and the fake programs, and return their folder."""
    for camera in ("gate", "lift 2", "yard"):
        (tmp_path / "archive" / camera).mkdir(parents=True)
        make_video(tmp_path / "archive" / camera / "a.mp4", frames=8, fps=10)
    (tmp_path / "bin").mkdir()
    for name, text in {"sbatch": SBATCH, "parallel": PARALLEL}.items():
        (tmp_path / "bin" / name).write_text(text)
    (tmp_path / "bin" / "vadcli").write_text(f'#!/bin/bash\nexec {sys.executable} -m vadcli "$@"\n')
    for path in (tmp_path / "bin").iterdir():
        path.chmod(0o755)
    return tmp_path


def run(place: Path, *command: str | Path) -> None:
    environment = {**os.environ, "PATH": f"{place / 'bin'}:{os.environ['PATH']}", "VADCLI_DETECTOR": "motion"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr


def assert_all_scanned_once(place: Path) -> None:
    layout = OutputLayout(place / "archive" / "vad")
    assert len(list(layout.iter_scores())) == 3
    finished = [file.video for path in layout.iter_runs() for file in read_run(path).files if file.status == "done"]
    assert sorted(finished) == ["gate/a.mp4", "lift 2/a.mp4", "yard/a.mp4"]


@pytest.mark.parametrize("number", [0, 1])
def test_a_job_array_scans_every_video_once(place: Path, number: int) -> None:
    script = re.sub(r"--array=1-\d+", "--array=1-3", SCRIPTS[number])
    assert "--array=1-3" in script
    (place / "scan.sbatch").write_text(script)
    line = next(line for line in PAGE.splitlines() if line.startswith("sbatch "))
    sbatch, export, _ = line.replace("/archive", str(place / "archive")).split()
    run(place, sbatch, export, place / "scan.sbatch")
    assert_all_scanned_once(place)


def test_workstations_scan_every_video_once(place: Path) -> None:
    run(place, "bash", "-c", SCRIPTS[2].replace("/archive", str(place / "archive")))
    assert_all_scanned_once(place)


def test_every_script_is_run() -> None:
    assert len(SCRIPTS) == 3
