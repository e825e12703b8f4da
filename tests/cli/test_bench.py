"""`vadcli bench` in new processes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from tests import decoder_forks
from tests.cli.test_process import wait_until
from tests.commands import WITH_TORCH, vadcli
from tests.media import make_video
from vadcli import bench
from vadcli.__main__ import entry
from vadcli.cli import app
from vadcli.errors import DeviceError

RANDOM = ("--model", "lavida-tiny", "--random-weights")
TINY = (*RANDOM, "--device", "cpu", "--ratios", "0.5", "--batch-sizes", "2", "--workers", "1")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Environment variables with a home folder without weights, and with a temporary folder that the tests check."""
    for name in ("home", "tmp"):
        (tmp_path / name).mkdir()
    home = {"VADCLI_WEIGHTS": str(tmp_path / "home"), "HF_HOME": str(tmp_path / "home")}
    return {**home, "TMPDIR": str(tmp_path / "tmp"), "OMP_NUM_THREADS": "1"}


def test_figures_are_data_and_nothing_is_left(tmp_path: Path, environment: dict[str, str]) -> None:
    video = make_video(tmp_path / "a.mp4", frames=40, fps=10)
    done = vadcli(
        "bench", video, *TINY, "--clips", "2", "--rounds", "1", "--json", cwd=tmp_path, forks=WITH_TORCH, **environment
    )
    assert done.returncode == 0, done.stderr
    baseline, setting, stages, summary = map(json.loads, done.stdout.splitlines())
    assert (baseline["baseline"], setting["baseline"]) == (True, False)
    assert (setting["ratio"], setting["batch_size"], setting["rounds"][0]["clips"]) == (0.5, 2, 2)
    assert setting["clips_per_s"]["median"] == pytest.approx(2 / setting["rounds"][0]["seconds"])
    assert stages["kept_tokens"] == round(stages["tokens"] / 2)
    assert summary["type"] == "summary"
    assert "never trained" in done.stderr
    assert list((tmp_path / "tmp").glob("vadcli-*")) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "home", "tmp"]


def test_detectors_are_compared_and_one_without_weights_does_not_stop_the_others(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    video = make_video(tmp_path / "a.mp4", frames=40, fps=10)
    chosen = ("--detectors", "motion, ask", "--clips", "1", "--rounds", "1", "--workers", "1", "--json")
    done = vadcli("bench", video, *chosen, cwd=tmp_path, forks=WITH_TORCH, **environment)
    assert done.returncode == 0, done.stderr
    motion, ask = map(json.loads, done.stdout.splitlines())
    assert (motion["detector"], motion["clips"], motion["weights"], motion["trouble"]) == ("motion", 1, [], None)
    assert motion["machine_s_per_hour"] == pytest.approx(3600 / motion["real_time"])
    assert motion["host_bytes"] > 2**20
    assert (ask["detector"], ask["real_time"]) == ("ask", None)
    assert ask["trouble"].startswith("qwen2-vl-2b: not on this machine")
    assert ask["trouble"].endswith("run `vadcli weights pull qwen2-vl-2b` (4.4 GB)")
    assert list((tmp_path / "tmp").glob("vadcli-*")) == []


def test_without_weights_it_names_the_option_for_random_weights(tmp_path: Path, environment: dict[str, str]) -> None:
    done = vadcli("bench", "--model", "lavida-2b", cwd=tmp_path, forks=WITH_TORCH, **environment)
    assert done.returncode == 4
    assert done.stdout == ""
    first, second = done.stderr.strip().splitlines()
    assert first.startswith("vadcli: error: ")
    assert "--random-weights" in second


def test_weights_that_do_not_fit_are_refused_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    """The command runs in this process, so that the test can change the free memory."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("vadcli.bench.measuring.free_bytes", lambda device: 10**6)
    monkeypatch.setattr("vadcli.bench.footage_of", lambda *given: pytest.fail("footage was made"))
    done = CliRunner().invoke(app, ["bench", *TINY])
    assert isinstance(done.exception, DeviceError)
    assert "lavida-tiny: its weights take 9 MB in float32, and cpu has 1 MB free" in str(done.exception)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("missing",), "missing: the file or folder does not exist"),
        (("--ratios", "2"), "--ratios 2"),
        (("--detectors", "motion,smell"), "--detectors: no detector is called 'smell'"),
        (("--device", "tpu"), "--device 'tpu'"),
        (("home",), "no video below"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, environment: dict[str, str], arguments: tuple[str, ...], words: str) -> None:
    done = vadcli("bench", *RANDOM, *arguments, cwd=tmp_path, forks=WITH_TORCH, **environment)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2


@pytest.mark.parametrize(("number", "code", "made"), [(signal.SIGTERM, 143, True), (signal.SIGINT, 130, False)])
def test_an_interrupted_measurement_leaves_no_footage_and_no_decoders(
    tmp_path: Path, environment: dict[str, str], number: signal.Signals, code: int, made: bool
) -> None:
    named = [] if made else [make_video(tmp_path / "a.mp4", frames=40, fps=10)]
    arguments = ["vadcli", "bench", *map(str, named), *TINY, "--seconds", "60"]
    given = {**os.environ, **environment}
    del given[decoder_forks.SERVER]  # so that the decoders are children of the process
    process = WITH_TORCH.start(f"{__name__}:with_short_footage", arguments, cwd=tmp_path, environment=given, stdin=None)
    children: list[psutil.Process] = []
    ready: Callable[[], bool] = lambda: bool(_measuring(tmp_path, process.pid, children))  # noqa: E731
    wait_until(ready)
    os.kill(process.pid, number)
    done = process.wait()
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert list((tmp_path / "tmp").glob("vadcli-*")) == []
    wait_until(lambda: not any(child.is_running() for child in children))


def with_short_footage() -> None:
    """Run `vadcli bench` in this process with shorter generated videos."""
    bench.footage_of = partial(bench.footage_of, seconds=1)
    entry()


def _measuring(folder: Path, pid: int, children: list[psutil.Process]) -> list[psutil.Process]:
    """Return the decoder processes; empty if no score has been stored yet."""
    if not list(folder.glob("tmp/*/scores.arrows")):
        return []
    children[:] = psutil.Process(pid).children(recursive=True)
    return children
