"""The GPU tests' own rules: skipped with a reason unless asked for, never passed by skipping, and rehearsed without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rs", *arguments]
    given = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=110, cwd=ROOT, env=given, check=False)


def test_they_are_skipped_and_say_so() -> None:
    done = run("tests/gpu")
    assert done.returncode == 0, done.stdout
    assert "asked for by --gpu" in done.stdout
    assert "passed" not in done.stdout


@pytest.mark.parametrize(("arguments", "environment"), [(("--gpu",), {}), ((), {"VADCLI_GPU_TESTS": "1"})])
def test_asked_for_without_a_gpu_they_fail(arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    done = run("tests/gpu/test_memory.py", *arguments, **environment)
    assert done.returncode == 1, done.stdout
    assert "sees no CUDA device" in done.stdout
    assert "passed" not in done.stdout
    assert "skipped" not in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="the real thing can run here: pytest tests/gpu --gpu")
def test_a_rehearsal_passes_on_the_cpu() -> None:
    done = run("tests/gpu", "--gpu-rehearsal")
    assert done.returncode == 0, done.stdout
    assert "no CUDA memory or kernels" in done.stdout
