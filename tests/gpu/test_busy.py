"""How busy a GPU is while files are scanned."""

from __future__ import annotations

import itertools

import pytest
import torch

from vadcli.bench import Bench, BenchPlan, Bound, footage_of
from vadcli.detectors.lavida.detector import LavidaDetector
from vadcli.options import DetectorOptions

pytestmark = pytest.mark.cuda_only

BUSY = 0.9


@pytest.mark.timeout(240)
def test_the_gpu_is_busy_while_made_files_are_scanned(device: torch.device, capsys: pytest.CaptureFixture[str]) -> None:
    free, _ = torch.cuda.mem_get_info(device)
    preset = "lavida-7b" if free > 40 * 2**30 else "lavida-2b"
    detector = LavidaDetector(DetectorOptions(model=preset, allow_untrained=True, device=str(device), batch_size=8))
    plan = BenchPlan(ratios=(0.2,), batch_sizes=(8,), bound=Bound(4.0), rounds=1)
    with footage_of([]) as footage:
        report = Bench(detector, footage, plan).run()
    (stages,) = report.stages
    with capsys.disabled():
        print(f"\n{preset}: GPU busy {stages.busy}; {report.settings[0].of(report.baseline):.1f} x the straightforward loop")
    assert stages.busy is not None
    assert stages.busy >= BUSY
    assert all(value >= 0 for value in itertools.chain(stages.ms.values(), stages.added_bytes.values()))
