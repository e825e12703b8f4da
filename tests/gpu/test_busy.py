"""How busy a GPU is during a scan, and how much faster a scan is than a straightforward loop."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from vadcli.bench import Bench, BenchPlan, Bound, footage_of
from vadcli.detectors.lavida import LavidaOptions
from vadcli.detectors.lavida.detector import LavidaDetector

pytestmark = pytest.mark.cuda_only

BUSY = 0.9
SPEED = 3.0
"""Lowest speed of a scan at ratio 0.2, relative to a loop that scores one clip at a time and keeps every token."""


def test_the_gpu_is_busy_while_made_files_are_scanned_and_it_is_fast(
    device: torch.device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    free, _ = torch.cuda.mem_get_info(device)
    preset = "lavida-7b" if free > 40 * 2**30 else "lavida-2b"
    detector = LavidaDetector(LavidaOptions(model=preset, allow_untrained=True, device=str(device), batch_size=8))
    plan = BenchPlan(ratios=(0.2,), batch_sizes=(8,), bound=Bound(8.0), rounds=2)
    report = Bench(detector, footage_of([], tmp_path), plan).run()
    (stages,) = report.stages
    speed = report.settings[0].of(report.baseline)
    with capsys.disabled():
        print(f"\n{preset}: GPU busy {stages.busy}; {speed:.1f} x the straightforward loop")
    assert stages.busy is not None
    assert stages.busy >= BUSY
    assert speed >= SPEED
    assert all(value >= 0 for value in itertools.chain(stages.ms.values(), stages.added_bytes.values()))
