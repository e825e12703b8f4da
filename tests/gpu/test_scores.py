"""Scores on a GPU equal those of the CPU, for any precision, batch and number of parallel calls."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.detectors.lavida.models import tiny_folder
from tests.gpu.models import CATEGORIES, batch_of, clips, converted, mid, tiny_detector, with_ratio
from vadcli.detectors.batching import ScoringPool
from vadcli.detectors.lavida.checkpoint import load_preset
from vadcli.detectors.lavida.model import LavidaConfig
from vadcli.detectors.mllm.compress import CompressionOptions, compress

HALF_TOLERANCE = 0.005
"""Largest difference of a frame's score between fp16 and fp32 if the same tokens are kept."""
HALF_MEDIAN = 0.02
"""Median difference if compression chooses the tokens: in fp16 it may choose another of two nearly equal tokens."""
ACROSS_DEVICES = 2e-4
"""Tolerance between devices: a GPU sums fp32 values in another order than a CPU."""
ACROSS_BATCHES = 1e-5
"""Tolerance in fp32 without TF32: how much a score may depend on the batch and on parallel calls."""

TINY = load_preset("lavida-tiny")


def scores_of(config: LavidaConfig, device: torch.device, dtype: torch.dtype, frames: np.ndarray) -> np.ndarray:
    """Return the frame scores (B, T)."""
    model = converted(config, device, dtype)
    with torch.inference_mode():
        verdict = model(torch.from_numpy(frames).to(device), model.questions(CATEGORIES))
    scores: np.ndarray = verdict.object_logit.sigmoid().double().cpu().numpy()
    return scores


def assert_same_scores(found: np.ndarray, wanted: np.ndarray) -> None:
    """Check that two arrays of object logits give the same scores."""
    mine, theirs = (1 / (1 + np.exp(-logits.astype(np.float64))) for logits in (found, wanted))
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=ACROSS_BATCHES)


@pytest.mark.parametrize("config", [pytest.param(TINY, id="tiny"), pytest.param(mid(), id="mid", marks=pytest.mark.cuda_only)])
@pytest.mark.parametrize("ratio", [1.0, 0.2])
def test_half_precision_gives_the_scores_of_single_precision(config: LavidaConfig, ratio: float, device: torch.device) -> None:
    frames = clips(3 if config.name == "lavida-tiny" and device.type == "cuda" else 1)
    single, half = (scores_of(with_ratio(config, ratio), device, dtype, frames) for dtype in (torch.float32, torch.float16))
    assert np.isfinite(half).all()
    difference = np.abs(single - half)
    if ratio == 1.0:
        assert difference.max() < HALF_TOLERANCE
    assert np.median(difference) < HALF_MEDIAN


def test_a_gpu_gives_the_scores_and_masks_of_a_cpu(device: torch.device, tmp_path: Path) -> None:
    given, model = batch_of(clips(4 if device.type == "cuda" else 1)), str(tiny_folder(tmp_path / "tiny"))
    here, there = (tiny_detector(where, precision="fp32", model=model).score(given) for where in (device, "cpu"))
    np.testing.assert_allclose(here.raw, there.raw, atol=ACROSS_DEVICES)
    assert here.mask is not None
    assert there.mask is not None
    np.testing.assert_allclose(here.mask, there.mask, atol=ACROSS_DEVICES)


def test_compression_keeps_the_same_tokens_as_on_a_cpu(device: torch.device) -> None:
    tokens = torch.randn(900, 256, generator=torch.Generator().manual_seed(0))
    for ratio in (0.5, 0.1):
        here, there = (compress(tokens.to(where), CompressionOptions(ratio)) for where in (device, torch.device("cpu")))
        assert here.kept.tolist() == there.kept.tolist()
        assert here.owner.tolist() == there.owner.tolist()
        torch.testing.assert_close(here.tokens.cpu(), there.tokens, atol=1e-5, rtol=1e-5)


def test_scores_do_not_depend_on_the_batch(device: torch.device) -> None:
    detector = tiny_detector(device, precision="fp32")
    count = 8 if device.type == "cuda" else 3
    frames = clips(count)
    whole = detector.score(batch_of(frames)).raw
    for size in (1, 3) if device.type == "cuda" else (2,):
        parts = [detector.score(batch_of(frames[start : start + size])).raw for start in range(0, count, size)]
        assert_same_scores(np.concatenate(parts), whole)


def test_calls_at_the_same_time_do_not_disturb_each_other(device: torch.device) -> None:
    """Copies run on a stream of their own while another call computes.

    So each call must wait for its own copies.
    """
    detector = tiny_detector(device, precision="fp32")
    detector.prepare()
    batches = [batch_of(clips(1 + number % 4, seed=number)) for number in range(24 if device.type == "cuda" else 2)]
    alone = [detector.score(each).raw for each in batches]
    with ThreadPoolExecutor(max(2, detector.parallel)) as threads:
        together = [found.raw for found in threads.map(detector.score, batches)]
    with ScoringPool[int](detector) as pool:
        pooled = dict(found for number, each in enumerate(batches) for found in pool.submit(number, each)) | dict(pool.drain())
    for number, wanted in enumerate(alone):
        assert_same_scores(together[number], wanted)
        found = pooled[number]
        assert not isinstance(found, Exception)
        assert_same_scores(found.raw, wanted)


@pytest.mark.cuda_only
def test_every_gpu_gives_the_same_scores(device: torch.device) -> None:
    """The detector makes two parallel calls per GPU."""
    detector = tiny_detector("cuda", precision="fp32")
    detector.prepare()
    assert detector.parallel == 2 * torch.cuda.device_count()
    batches = [batch_of(clips(2, seed=number)) for number in range(4 * detector.parallel)]
    one = tiny_detector(device, precision="fp32")
    with ThreadPoolExecutor(detector.parallel) as threads:
        together = [found.raw for found in threads.map(detector.score, batches)]
    for given, found in zip(batches, together, strict=True):
        assert_same_scores(found, one.score(given).raw)


@pytest.mark.cuda_only
def test_a_gpu_computes_in_fp16_unless_told_otherwise(device: torch.device) -> None:
    assert tiny_detector(device).load(device).dtype is torch.float16
    assert tiny_detector(device, precision="bf16").load(device).dtype is torch.bfloat16
