"""GPU memory: how much compression saves, what happens if it runs out, and how many clips fit."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.gpu.models import CATEGORIES, built, clips, mid
from vadcli.detectors.lavida.checkpoint import load_preset
from vadcli.detectors.lavida.model import Lavida, LavidaConfig
from vadcli.detectors.lavida.text import build_prompt
from vadcli.detectors.mllm.compress import kept_count
from vadcli.detectors.mllm.qwen import PatchGrid, VisualTokens
from vadcli.detectors.running import MOST_CLIPS, DeviceRunner

pytestmark = pytest.mark.cuda_only

GIB = 2**30
MOST_OF_WHOLE = 0.6
"""Share of ratio 1.0's memory over the weights that ratio 0.2 may take (paper: 54.1 % overall)."""
CLIPS = 8


def step_of(model: Lavida) -> Any:
    questions = model.questions(CATEGORIES)

    def step(frames: torch.Tensor) -> tuple[torch.Tensor, ...]:
        verdict = model(frames, questions)
        return verdict.object_logit, verdict.mask_logit

    return step


def peak_of(runner: DeviceRunner, step: Any, frames: np.ndarray) -> int:
    """Return the most bytes in use while a batch is scored, including the weights."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(runner.device)
    runner.run(step, frames)
    return torch.cuda.max_memory_allocated(runner.device)


def test_out_of_memory_loses_no_clip(device: torch.device) -> None:
    model = built(mid(), device)
    runner, step, frames = DeviceRunner(device), step_of(model), clips(16)
    few, many = (peak_of(runner, step, frames[:count]) for count in (4, 16))
    assert runner.limit == MOST_CLIPS
    wanted = runner.run(step, frames)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction((few + 0.4 * (many - few)) / total, device)
    got = runner.run(step, frames)
    assert runner.limit < 16, "the limit was to force a smaller batch"
    for mine, whole in zip(got, wanted, strict=True):
        assert len(mine) == 16
        np.testing.assert_allclose(mine, whole, atol=5e-3)


def test_the_batch_size_that_is_found_fits(device: torch.device) -> None:
    model = built(mid(), device, torch.float16)
    runner, step = DeviceRunner(device), step_of(model)
    clip = clips(1)[0]
    peak = peak_of(runner, step, np.stack([clip] * 6)) - torch.cuda.memory_allocated(device)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    ballast = torch.empty(max(0, free - 2 * peak), dtype=torch.uint8, device=device)
    found = runner.find_batch_size(step, clip)
    assert 1 <= found < MOST_CLIPS, "the ballast should leave memory for only a few clips"
    runner.run(step, np.stack([clip] * found))
    assert runner.limit == MOST_CLIPS, f"{found} clips ran out of memory"
    del ballast


def seven_billion(device: torch.device) -> LavidaConfig:
    """Return lavida-7b with its language model in real size, and with a small vision tower and SAM2.

    The prefill does not use the small parts. With less than 24 GiB of free memory, the language model has 4 of its 28 layers.
    This hardly changes the memory of a prefill, because each layer frees its memory before the next layer.
    """
    config = load_preset("lavida-7b")
    tiny = load_preset("lavida-tiny")
    free, _ = torch.cuda.mem_get_info(device)
    mllm = dict(config.parts.mllm)
    if free < 24 * GIB:
        mllm["text_config"] = {**mllm["text_config"], "num_hidden_layers": 4}
    mllm["vision_config"] = {**mllm["vision_config"], "depth": 1}
    return replace(config, parts=replace(config.parts, mllm=mllm, sam2=tiny.parts.sam2))


def prefill_adds(model: Lavida, ratio: float, device: torch.device) -> tuple[int, int]:
    """Return the bytes of one prefill of CLIPS clips with visual tokens, and the tokens per clip."""
    mllm, config = model.mllm, model.config
    grid = PatchGrid(pairs=4, rows=2 * 12, columns=2 * 16, merge=2)  # 192 tokens per pair, the most for a frame of the preset
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    found: list[VisualTokens] = []
    for seed in range(CLIPS):
        generator = torch.Generator(device).manual_seed(seed)
        tokens = torch.randn(grid.tokens, mllm.width, device=device, generator=generator).to(model.dtype)
        index = torch.arange(grid.tokens, device=device)
        found.append(mllm.compressed((tokens, index), grid, replace(config.compression, ratio=ratio)))
    del tokens
    prompt = build_prompt(model.tokenizer, CATEGORIES, config.prompt)
    torch.cuda.reset_peak_memory_stats(device)
    hidden = mllm.hidden_at_seg(found, prompt)
    torch.cuda.synchronize(device)
    assert torch.isfinite(hidden).all()
    return torch.cuda.max_memory_allocated(device) - before, len(found[0].tokens)


@torch.inference_mode()
def test_a_prefill_of_the_7b_model_takes_less_memory_at_a_fifth_of_the_tokens(
    device: torch.device, record_property: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model = built(seven_billion(device), device, torch.float16)
    prefill_adds(model, 1.0, device)  # the first call allocates workspaces, which stay
    whole, tokens = prefill_adds(model, 1.0, device)
    fifth, kept = prefill_adds(model, 0.2, device)
    layers = len(model.mllm.qwen.model.language_model.layers)
    words = (
        f"prefill of {CLIPS} clips, {layers} layers of lavida-7b in fp16: ratio 1.0 ({tokens} tokens) adds "
        f"{whole / 2**20:.0f} MiB over the weights, ratio 0.2 ({kept} tokens) {fifth / 2**20:.0f} MiB: {fifth / whole:.2f}"
    )
    record_property("prefill", words)
    with capsys.disabled():
        print(f"\n{words}")
    assert kept == kept_count(tokens, 0.2)
    assert fifth <= MOST_OF_WHOLE * whole
