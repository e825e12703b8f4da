"""When `ask` is chosen, what is refused, and what happens if memory runs out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.commands import WITH_TORCH, vadcli
from tests.detectors.ask.models import tiny_qwen_folder
from tests.detectors.lavida.models import films
from tests.media import make_video
from tests.planted import PlantedAsker
from vadcli.detectors.ask import SEVERITY, AskDetector, QwenAsker
from vadcli.detectors.ask.reader import Reader
from vadcli.detectors.lavida import LavidaOptions
from vadcli.detectors.options import AskOptions
from vadcli.errors import DeviceError, UsageError, WeightsError
from vadcli.options import ScanOptions
from vadcli.weights import locate


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen_folder(tmp_path_factory.mktemp("ask") / "qwen")


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("VADCLI_WEIGHTS", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home"))


def test_the_default_model_is_that_of_the_detector() -> None:
    assert (AskOptions().ask_model, LavidaOptions().lavida_model) == ("qwen2-vl-2b", "lavida-7b")
    assert (AskOptions(model="x").ask_model, LavidaOptions(model="x").lavida_model) == ("x", "x")
    with pytest.raises(UsageError, match="lavida-7b: not a model that `ask` can use"):
        AskDetector(AskOptions(model="lavida-7b"))


@pytest.mark.usefixtures("no_weights")
def test_auto_chooses_ask_if_its_model_is_named_or_if_it_is_here_with_a_gpu(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model in (str(folder), "qwen2-vl-7b"):
        assert AskOptions(model=model).is_ready()
        assert not LavidaOptions(model=model).is_ready()
    assert not AskOptions(model="lavida-2b").is_ready()
    assert not AskOptions().is_ready(), "the model is not installed"
    monkeypatch.setattr("vadcli.weights.base_folder", lambda name: folder)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not AskOptions().is_ready(), "there is no GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert AskOptions().is_ready()
    assert not AskOptions(device="cpu").is_ready()


@pytest.mark.usefixtures("no_weights")
def test_a_base_model_is_no_lavida_folder_and_the_hint_names_ask() -> None:
    with pytest.raises(WeightsError, match="not a LAVIDA folder") as error:
        locate("qwen2-vl-2b")
    assert "--detector ask" in str(error.value.hint)


def test_a_scan_without_the_model_exits_4_and_names_the_command_and_the_size(tmp_path: Path) -> None:
    make_video(tmp_path / "a.mp4", frames=20, fps=10)
    home = {"VADCLI_WEIGHTS": str(tmp_path / "home"), "HF_HOME": str(tmp_path / "home")}
    done = vadcli("scan", "a.mp4", "--out", "out", "--detector", "ask", cwd=tmp_path, forks=WITH_TORCH, **home)
    assert done.returncode == 4
    assert "qwen2-vl-2b: not on this machine, or incomplete" in done.stderr
    assert "run `vadcli weights pull qwen2-vl-2b` (4.4 GB)" in done.stderr
    assert not (tmp_path / "out" / "scores").exists()


def test_without_categories_five_questions_are_asked() -> None:
    detector = AskDetector(AskOptions(), PlantedAsker())
    assert detector.categories == ("danger", "crime", "violence", "accident", "emergency")
    assert detector.questions == SEVERITY
    assert (detector.needs.frames, detector.needs.overlap, detector.needs.rate_hz) == (8, 4, 1.0)
    with pytest.raises(UsageError, match="contains no category"):
        AskDetector(AskOptions(categories=","), PlantedAsker())


@pytest.mark.parametrize("value", [0.0, 1.5, -1.0])
def test_a_compression_that_is_none_is_refused(value: float) -> None:
    for kind in (AskOptions, LavidaOptions, ScanOptions):
        with pytest.raises(UsageError, match="--compression"):
            kind(compression=value)


def test_batches_are_halved_if_memory_runs_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asker, frames = QwenAsker(str(folder), device="cpu", batch_size=8), films(5).numpy()
    whole = asker.ask(frames, SEVERITY)
    assert asker.batch_size == 8
    read, sizes, holds = Reader.read, [], 2

    def narrow(self: Reader, clips: torch.Tensor) -> object:
        sizes.append(len(clips))
        if len(clips) > holds:
            raise torch.OutOfMemoryError("out of memory")
        return read(self, clips)

    monkeypatch.setattr(Reader, "read", narrow)
    np.testing.assert_allclose(asker.ask(frames, SEVERITY), whole, rtol=0, atol=1e-5)
    assert sizes == [5, 2, 2, 1]
    holds = 0
    with pytest.raises(DeviceError, match="one clip does not fit into memory"):
        asker.ask(frames, SEVERITY)


def test_an_odd_number_of_frames_repeats_the_last_one(folder: Path) -> None:
    asker, frames = QwenAsker(str(folder), device="cpu"), films(2).numpy()
    even = np.concatenate([frames[:, :5], frames[:, 4:5]], axis=1)
    np.testing.assert_array_equal(asker.ask(frames[:, :5], SEVERITY), asker.ask(even, SEVERITY))
