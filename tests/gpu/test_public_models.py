"""Public models on a GPU, with random weights: the results of a CPU, and memory for real sizes."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks._real_sizes import real_size_folder
from tests.detectors.ask.models import tiny_qwen_folder
from tests.detectors.encoders import pictures, tiny_encoder_folder
from tests.gpu.models import clips
from tests.test_weights_check import save_random_sam2
from vadcli.detectors.ask import Question, QwenAsker
from vadcli.detectors.encoders import load_encoder
from vadcli.detectors.refining import Sam2Refiner

ASKED = tuple(Question(name, f"Does this video clip show {name}?") for name in ("fight", "fire", "a dog"))
ACROSS_DEVICES = 1e-3
"""Tolerance of log-odds and vectors between devices in fp32: a GPU sums in another order than a CPU."""
ACROSS_BATCHES = 1e-4
HALF_TOLERANCE = 0.1
"""Largest difference of log-odds between fp16 and fp32 of the small model, whose log-odds spread over about 1."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_qwen_folder(tmp_path_factory.mktemp("ask") / "qwen"))


def test_a_gpu_answers_as_a_cpu(device: torch.device, folder: str) -> None:
    frames = clips(3 if device.type == "cuda" else 1)
    here, there = (QwenAsker(folder, device=str(where), precision="fp32").ask(frames, ASKED) for where in (device, "cpu"))
    np.testing.assert_allclose(here, there, rtol=0, atol=ACROSS_DEVICES)


def test_half_precision_answers_as_single_precision(device: torch.device, folder: str) -> None:
    frames = clips(3 if device.type == "cuda" else 1)
    half = "fp16" if device.type == "cuda" else "bf16"
    found, wanted = (QwenAsker(folder, device=str(device), precision=each).ask(frames, ASKED) for each in (half, "fp32"))
    assert np.isfinite(found).all()
    assert np.abs(found - wanted).max() < HALF_TOLERANCE * (1 if half == "fp16" else 8)


@pytest.mark.parametrize("compression", [1.0, 0.2])
def test_answers_depend_neither_on_the_batch_nor_on_calls_at_the_same_time(
    device: torch.device, folder: str, compression: float
) -> None:
    asker = QwenAsker(folder, device=str(device), precision="fp32", compression=compression)
    count = 6 if device.type == "cuda" else 3
    frames = clips(count)
    whole = asker.ask(frames, ASKED)
    parts = np.concatenate([asker.ask(part, ASKED) for part in (frames[: count - 2], frames[count - 2 :])])
    np.testing.assert_allclose(parts, whole, rtol=0, atol=ACROSS_BATCHES)
    with ThreadPoolExecutor(max(2, asker.parallel)) as threads:
        together = list(threads.map(lambda row: asker.ask(frames[row : row + 1], ASKED), range(count)))
    np.testing.assert_allclose(np.concatenate(together), whole, rtol=0, atol=ACROSS_BATCHES)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_gpu_encodes_as_a_cpu(device: torch.device, tmp_path: Path, family: str) -> None:
    encoder = str(tiny_encoder_folder(tmp_path / family, family))
    shown = pictures(5)
    here, there = (load_encoder(encoder, device=str(where), precision="fp32") for where in (device, "cpu"))
    np.testing.assert_allclose(here.encode_images(shown), there.encode_images(shown), rtol=0, atol=ACROSS_DEVICES)
    np.testing.assert_allclose(here.patch_map(shown), there.patch_map(shown), rtol=0, atol=ACROSS_DEVICES)
    half = load_encoder(encoder, device=str(device), precision="auto").encode_images(shown)
    assert (half * there.encode_images(shown)).sum(axis=1).min() > 0.999


def test_a_gpu_refines_masks_as_a_cpu(device: torch.device, tmp_path: Path) -> None:
    """The small SAM2 has its real size.

    A few pixels may differ, because random masks have many pixels near the threshold.
    """
    folder = str(save_random_sam2(tmp_path))
    (frame,), draw = pictures(1), np.random.default_rng(0)
    prompts = draw.uniform(0, 90, (5, 3, 2)).astype(np.float32)
    here, there, half = (
        Sam2Refiner(folder, device=str(where), precision=precision).segment(frame, prompts, 260, 140)
        for where, precision in ((device, "fp32"), ("cpu", "fp32"), (device, "fp16"))
    )
    assert 0 < there.mean() < 1
    assert (here == there).mean() > 0.999
    assert (half == there).mean() > 0.95
    refiner = Sam2Refiner(folder, device=str(device), precision="fp32")
    one_by_one = np.concatenate([refiner.segment(frame, prompt[None], 260, 140) for prompt in prompts])
    assert (one_by_one == here).mean() > 0.999


@pytest.mark.cuda_only
def test_the_real_size_of_qwen2_vl_2b_fits_and_backs_off(
    device: torch.device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asker = QwenAsker(str(real_size_folder(tmp_path / "qwen", "qwen2-vl-2b")), device=str(device))
    asker.prepare()
    frames = clips(asker.batch_size, size=(378, 672))
    asker.ask(frames[:1], ASKED)  # warm-up
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    whole = asker.ask(frames, ASKED)
    seconds, peak = time.perf_counter() - began, torch.cuda.max_memory_allocated(device) / 2**30
    with capsys.disabled():
        print(f"\nqwen2-vl-2b: {len(frames)} clips, 3 questions: {len(frames) / seconds:.1f} clips/s, peak {peak:.1f} GiB")
    assert np.isfinite(whole).all()
    total = torch.cuda.get_device_properties(device).total_memory
    held = torch.cuda.memory_allocated(device)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (held + 0.5 * (peak * 2**30 - held)) / total), device)
    fewer = asker.ask(frames, ASKED)
    assert asker.devices == (device,)
    np.testing.assert_allclose(fewer, whole, rtol=0, atol=HALF_TOLERANCE)


@pytest.mark.cuda_only
def test_the_real_size_of_siglip2_fits(device: torch.device, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = load_encoder(str(real_size_folder(tmp_path / "siglip2", "siglip2-b32")), device=str(device))
    shown = pictures(256, size=(256, 456))
    encoder.encode_images(shown)  # warm-up
    began = time.perf_counter()
    vectors = encoder.encode_images(shown)
    with capsys.disabled():
        print(f"\nsiglip2-b32: {len(shown) / (time.perf_counter() - began):.0f} pictures/s")
    assert np.isfinite(vectors).all()
