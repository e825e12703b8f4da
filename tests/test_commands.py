"""Tests run commands in forks; these forks behave like new processes."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from tests.commands import LIGHT, PYTHON, Fork, vadcli


def about_itself() -> None:
    """Print facts about the process; this runs in a fork."""
    if "sleep" in sys.argv:
        time.sleep(1e6)
    heavy = sorted({"torch", "transformers", "huggingface_hub"} & set(sys.modules))
    print(json.dumps({"arguments": sys.argv, "cwd": os.getcwd(), "own": os.environ.get("OWN"), "heavy": heavy}))
    print(input(), os.environ.get("TZ"), time.localtime(0).tm_hour, file=sys.stderr)
    if "wrong" in sys.argv:
        raise ValueError("wrong")
    sys.exit(7)


def fork(*arguments: str, folder: Path, **environment: str) -> Fork:
    call = f"{__name__}:about_itself"
    return LIGHT.start(call, list(arguments), cwd=folder, environment={**os.environ, **environment}, stdin="grüezi\n")


def test_a_fork_has_its_own_streams_environment_folder_and_end(tmp_path: Path) -> None:
    hung = fork("sleep", folder=tmp_path)
    done = fork("a", "b c", folder=tmp_path, OWN="1", TZ="Etc/GMT-5").wait()
    assert not hung.ended()
    hung.kill()
    assert hung.wait().returncode == -9
    assert (done.returncode, done.stderr) == (7, "grüezi Etc/GMT-5 5\n")
    assert json.loads(done.stdout) == {"arguments": ["a", "b c"], "cwd": str(tmp_path), "own": "1", "heavy": []}
    failed = fork("wrong", folder=tmp_path).wait()
    assert failed.returncode == 1
    assert failed.stderr.endswith("ValueError: wrong\n")
    assert json.loads(failed.stdout)["own"] is None


def test_variables_that_python_reads_at_its_start_need_a_new_process(tmp_path: Path) -> None:
    assert LIGHT.fits({**os.environ, "VADCLI_OUT": "x"})
    for name in PYTHON:
        assert not LIGHT.fits({**os.environ, f"{name}X": "x"})
    for environment in ({}, {"LC_X": "x"}):
        done = vadcli("--version", cwd=tmp_path, **environment)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("vadcli ")
