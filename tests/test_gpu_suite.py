"""Rules of the GPU tests: skipped by default, never skipped with --gpu, rehearsed on the CPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.commands import WITH_TORCH
from vadcli.bench import BenchReport
from vadcli.bench.measuring import Round
from vadcli.bench.report import Setting, Stages, Throughput

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["pytest", "-p", "no:cacheprovider", "-q", "-rs", *arguments]
    given = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment}
    return WITH_TORCH.start(f"{__name__}:run_tests", command, cwd=ROOT, environment=given, stdin=None).wait()


def run_tests() -> None:
    """Run pytest in the new process."""
    sys.exit(pytest.main(sys.argv[1:]))


def test_they_are_skipped_and_say_so() -> None:
    done = run("tests/gpu")
    assert done.returncode == 0, done.stdout
    assert "GPU tests need --gpu" in done.stdout
    assert "passed" not in done.stdout


@pytest.mark.parametrize(("arguments", "environment"), [(("--gpu",), {}), ((), {"VADCLI_GPU_TESTS": "1"})])
def test_asked_for_without_a_gpu_they_fail(arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    done = run("tests/gpu/test_memory.py", *arguments, **environment)
    assert done.returncode == 1, done.stdout
    assert "need a CUDA device" in done.stdout
    assert "passed" not in done.stdout
    assert "skipped" not in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU: pytest tests/gpu --gpu")
def test_a_rehearsal_passes_on_the_cpu() -> None:
    done = run("tests/gpu", "--gpu-rehearsal")
    assert done.returncode == 0, done.stdout
    assert "no CUDA memory or kernels" in done.stdout


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    """The script benchmarks/gpu.py as a module."""
    spec = importlib.util.spec_from_file_location("benchmarks_gpu", ROOT / "benchmarks" / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def measured(*, speed: float = 3.5, busy: float | None = 0.95, memory: float = 0.5) -> BenchReport:
    """Return a report as `vadcli bench` might write it on a GPU."""

    def throughput(setting: Setting, rate: float) -> Throughput:
        return Throughput(setting, [Round(clips=10, rows=320, video_s=10.0, seconds=10 / rate)], 2**30, 2**30, 1)

    stages = [
        Stages(ratio, 8, 700, 700 * ratio, {"decode": 1.0}, {"llm": round(2**30 * share)}, busy)
        for ratio, share in ((1.0, 1.0), (0.2, memory))
    ]
    baseline, setting = throughput(Setting(1.0, 1, is_baseline=True), 1.0), throughput(Setting(0.2, 8), speed)
    return BenchReport("lavida-7b", "a machine", "a video", "one frame in 4", 2**34, 8, baseline, [setting], stages)


@pytest.mark.parametrize(
    ("report", "missed"),
    [
        (measured(), []),
        (measured(speed=2.9), ["scan at ratio 0.2 against the loop"]),
        (measured(busy=0.89), ["GPU busy while files are scanned"]),
        (measured(busy=None), ["GPU busy while files are scanned"]),
        (measured(memory=0.61), ["prefill's memory, ratio 0.2 of ratio 1"]),
    ],
)
def test_a_missed_claim_fails_the_script_and_is_named(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: BenchReport, missed: list[str]
) -> None:
    said = "\n".join(json.dumps(line) for line in report.json_lines())
    monkeypatch.setattr(gpu, "run", lambda command, limit_s: (said, "", 1.0))
    monkeypatch.setattr(gpu, "tests", lambda page, chosen, *, rehearse, limit_s: None)
    monkeypatch.setattr(gpu, "comparison", lambda page, *, rehearse, limit_s: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--models", "lavida-7b", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == bool(missed)
    text = (tmp_path / "a-gpu.md").read_text()
    assert [line.split("|")[1].strip() for line in text.splitlines() if "**missed**" in line] == missed
    assert ("**missed: " in text) is bool(missed)
    assert all(name in text.rpartition("**missed: ")[2] for name in missed)
    page = gpu.Page(tmp_path / "rehearsal.md")
    gpu.bench(page, "lavida-tiny", options="", rehearse=True, limit_s=1.0)
    assert not page.failed
