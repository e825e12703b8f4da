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

# The tests run beside one another and in processes of their own: more threads than cores would wait for one another, and each
# decoder process costs 0.3 s before it reads a frame.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["VADCLI_WORKERS"] = "1"
# A distribution's ffmpeg loads 200 libraries at each start and takes five times as long. tests/video uses the machine's.
os.environ["VADCLI_FFMPEG"] = imageio_ffmpeg.get_ffmpeg_exe()
# What one process has compiled, the next one need not compile again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# On a busy machine, the time that an example takes says nothing about the test.
settings.register_profile("vadcli", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("vadcli")


# What the tests import are millions of objects that stay: the garbage collector need not look at them again and again.
gc.disable()


def pytest_collection_finish() -> None:
    """Everything is imported."""
    gc.freeze()
    gc.enable()


def pytest_addoption(parser: pytest.Parser) -> None:
    """What tests/gpu reads."""
    parser.addoption("--gpu", action="store_true", help="run tests/gpu; without a CUDA device they fail")
    parser.addoption("--gpu-rehearsal", action="store_true", help="run on the CPU what of tests/gpu can run there")


SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True, scope="session")
def decoders() -> None:
    """Loaders get their decoder processes from a server. Take away its variable to let them start processes of their own."""
    os.environ[decoder_forks.SERVER] = decoder_forks.start_server()
    decoder_forks.install()


@pytest.fixture(autouse=True)
def own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test sees this machine's settings: no user configuration and no VADCLI_ variables but those above."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "no-config"))
    for name in ("VADCLI_OUT", "VADCLI_CATEGORIES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def ray_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of Python packages that the nodes of the Ray cluster see."""
    return tmp_path_factory.mktemp("site")


NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
SOON = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 30_000,
    "worker_niceness": 0,
}
"""A lost node is noticed after seconds, and one that is only slow is not taken for lost. Workers are as fast as other tests."""


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
    """The address of that cluster."""
    return str(ray_cluster.address)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real footage beside the checkout, for local use only."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no real footage in ../shared/data")
    return SHARED_DATA
