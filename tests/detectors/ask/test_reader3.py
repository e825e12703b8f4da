"""Qwen3-VL's answers, compared with transformers' own forward pass without a cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.detectors.ask.models import tiny_qwen_folder
from tests.detectors.lavida.models import films
from vadcli.detectors.ask import MAX_PX, MIN_PX, QwenAsker, questions_for
from vadcli.detectors.ask.reader import Qwen3Reader
from vadcli.detectors.mllm.qwen import VIDEO, qwen_patches
from vadcli.errors import UsageError

ASKED = questions_for("purple dragon, smoke: grey smoke, fire: flames")
HALF = (0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen_folder(tmp_path_factory.mktemp("ask") / "qwen3", family="qwen3_vl")


@pytest.fixture(scope="module")
def asker(folder: Path) -> QwenAsker:
    return QwenAsker(str(folder), device="cpu")


@torch.no_grad()
def test_log_odds_equal_transformers_own_forward_without_a_cache(asker: QwenAsker) -> None:
    reader, frames = asker.load(torch.device("cpu")), films(3)
    assert isinstance(reader, Qwen3Reader)
    patches, grid = qwen_patches(frames, min_px=MIN_PX, max_px=MAX_PX, patch_px=16, mean=HALF, std=HALF)
    video = "".join(
        f"<{time} seconds><|vision_start|>{VIDEO * (grid.tokens // 4)}<|vision_end|>" for time in ("0.5", "2.5", "4.5", "6.5")
    )
    found = asker.ask(frames.numpy(), ASKED)
    for place, one in enumerate(ASKED):
        text = (
            "<|im_start|>system\nYou watch the videos of cameras. Judge only what is visible.<|im_end|>\n"
            f"<|im_start|>user\n{video}{one.text} Answer with one word in lower case: yes or no.<|im_end|>\n"
            "<|im_start|>assistant\n"
        )
        ids = torch.tensor([reader.tokenizer(text)["input_ids"]] * 3)
        logits = reader.lm.qwen(
            input_ids=ids,
            mm_token_type_ids=(ids == reader.tokenizer.convert_tokens_to_ids(VIDEO)).int() * 2,
            pixel_values_videos=patches.flatten(0, 1),
            video_grid_thw=torch.tensor([[grid.pairs, grid.rows, grid.columns]] * 3),
            use_cache=False,
        ).logits[:, -1]
        yes, no = reader.answers
        np.testing.assert_allclose(found[:, place], (logits[:, yes] - logits[:, no]).numpy(), rtol=0, atol=1e-4)
    assert np.ptp(found, axis=0).min() > 1e-3, "the clips differ"
    assert np.ptp(found, axis=1).min() > 1e-3, "the questions differ"


def test_neither_order_nor_company_changes_an_answer(asker: QwenAsker) -> None:
    frames = films(4).numpy()
    whole = asker.ask(frames, ASKED)
    backwards = asker.ask(frames[::-1].copy(), ASKED[::-1])[::-1, ::-1]
    np.testing.assert_allclose(backwards, whole, rtol=0, atol=1e-5)
    parts = np.concatenate([asker.ask(frames[start : start + 3], ASKED[:1]) for start in (0, 3)])
    np.testing.assert_allclose(parts, whole[:, :1], rtol=0, atol=1e-5)


def test_it_describes_and_does_not_compress(asker: QwenAsker, folder: Path) -> None:
    (clip,) = films(1).numpy()
    assert asker.describe(clip) == asker.describe(clip)
    with pytest.raises(UsageError, match=r"--compression 0\.2: not possible with qwen3_vl"):
        QwenAsker(str(folder), compression=0.2)
