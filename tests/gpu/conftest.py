"""Options of the tests that need a CUDA device.

With --gpu, these tests fail without a device; they are not skipped.

pytest tests/gpu                  skips the tests
pytest tests/gpu --gpu            runs the tests; they fail if torch finds no GPU (also with VADCLI_GPU_TESTS=1)
pytest tests/gpu --gpu-rehearsal  runs those tests that can run on the CPU, to check the tests themselves
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

HERE = os.path.dirname(__file__)
WITHOUT = "GPU tests need --gpu or VADCLI_GPU_TESTS=1"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = config.getoption("--gpu") or os.environ.get("VADCLI_GPU_TESTS") == "1"
    rehearsal = config.getoption("--gpu-rehearsal")
    for item in items:
        if not str(item.path).startswith(HERE):
            continue
        item.add_marker(pytest.mark.gpu)
        if not wanted and not rehearsal:
            item.add_marker(pytest.mark.skip(reason=WITHOUT))
        elif not wanted and item.get_closest_marker("cuda_only"):
            item.add_marker(pytest.mark.skip(reason="a rehearsal on the CPU has no CUDA memory or kernels"))


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device of the tests."""
    if request.config.getoption("--gpu-rehearsal"):
        torch.set_num_threads(1)
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.fail(f"the GPU tests need a CUDA device, but torch {torch.__version__} finds none")
    return torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def tidy(device: torch.device) -> Iterator[None]:
    """Reset memory and limits between tests, and compute in full fp32, as a scan does."""
    torch.backends.cudnn.allow_tf32 = False
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    yield
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        torch.cuda.empty_cache()
