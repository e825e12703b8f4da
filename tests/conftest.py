"""Fixtures that several suites share."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pytest
from hypothesis import HealthCheck, settings

from tests import decoder_forks

# Several tests run at the same time, and start processes. With more threads than cores, they would wait for one another. Each
# decoder process needs 0.3 s before it reads a frame.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["VADCLI_WORKERS"] = "1"
# The ffmpeg of a Linux distribution loads 200 libraries and starts five times as slowly. Only tests/video uses it.
os.environ["VADCLI_FFMPEG"] = imageio_ffmpeg.get_ffmpeg_exe()
# Let processes store compiled Python files, so that the next process does not have to compile them again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Examples have no time limit, because a busy machine can slow down any example.
settings.register_profile("vadcli", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("vadcli")


# Imports make millions of objects that are never freed. `gc.freeze` keeps the garbage collector from visiting them again.
gc.disable()


def pytest_collection_finish() -> None:
    """Freeze the objects of the imports, which are complete now."""
    gc.freeze()
    gc.enable()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of tests/gpu."""
    parser.addoption("--gpu", action="store_true", help="run tests/gpu, which fail without a CUDA device")
    parser.addoption("--gpu-rehearsal", action="store_true", help="run those tests of tests/gpu that can run on the CPU")


SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True, scope="session")
def decoders() -> None:
    """Let loaders get their decoder processes from a server.

    A test without this server deletes its environment variable.
    """
    os.environ[decoder_forks.SERVER] = decoder_forks.start_server()
    decoder_forks.install()


@pytest.fixture(autouse=True)
def own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Hide the user's configuration and VADCLI_ variables from the tests."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "no-config"))
    for name in ("VADCLI_OUT", "VADCLI_CATEGORIES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def ray_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of Python packages that the nodes of the Ray cluster can import."""
    return tmp_path_factory.mktemp("site")


NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
SOON = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 30_000,
    "worker_niceness": 0,
}
"""Ray detects a lost node after seconds, but does not declare a slow node lost. Workers have normal priority."""


@pytest.fixture(scope="session")
def ray_cluster(ray_site: Path) -> Iterator[Any]:
    """A Ray cluster of two simulated nodes with one core each."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'vadcli[ray]'")
    from vadcli.engine.ray_cluster import import_ray

    import_ray()
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ray_site), str(Path(__file__).parents[1])]))
        cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False, "_system_config": SOON})
        cluster.add_node(**NODE)
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="session")
def ray_address(ray_cluster: Any) -> str:
    """The address of the Ray cluster."""
    return str(ray_cluster.address)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real footage beside the checkout, for local use only."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no real footage in ../shared/data")
    return SHARED_DATA
