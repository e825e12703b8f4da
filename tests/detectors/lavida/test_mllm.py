"""Tests of Qwen2-VL as LAVIDA uses it: comparison with the forward pass of transformers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.detectors.lavida.models import PRESET, films, tiny
from vadcli.detectors.lavida.checkpoint import load_preset, random_model
from vadcli.detectors.lavida.text import build_prompt
from vadcli.detectors.mllm.compress import CompressionOptions
from vadcli.detectors.mllm.qwen import VIDEO, MultimodalLM, PatchGrid, PromptTokens, VisualTokens, qwen_patches

WHOLE = CompressionOptions(ratio=1.0)
FIFTH = CompressionOptions(ratio=0.2)
PX = 28 * 28


def lm() -> MultimodalLM:
    return tiny().mllm


def patches_of(frames: Tensor) -> tuple[Tensor, PatchGrid]:
    return qwen_patches(frames, min_px=12 * PX, max_px=20 * PX)


def prompt(*names: str) -> PromptTokens:
    return build_prompt(tiny().tokenizer, names or ("fight", "fire"), tiny().config.prompt)


@torch.no_grad()
def visual(frames: Tensor, options: CompressionOptions, static: float | None = None) -> list[VisualTokens]:
    patches, grid = patches_of(frames)
    return [lm().compressed(clip, grid, options) for clip in lm().encode_patches(patches, grid, static)]


@torch.no_grad()
def test_the_tower_equals_transformers() -> None:
    frames = films(3)
    patches, grid = patches_of(frames)
    got = lm().encode_patches(patches, grid)
    thw = torch.tensor([[grid.pairs, grid.rows, grid.columns]] * 3)
    wanted = lm().qwen.model.visual(patches.flatten(0, 1), grid_thw=thw).pooler_output.view(3, grid.tokens, -1)
    for clip, (tokens, index) in enumerate(got):
        torch.testing.assert_close(tokens, wanted[clip], atol=1e-5, rtol=1e-5)
        assert index.tolist() == list(range(grid.tokens))


@torch.no_grad()
def test_without_compression_the_hidden_state_equals_transformers_own_forward() -> None:
    frames, asked = films(2), prompt()
    patches, grid = patches_of(frames)
    got = lm().hidden_at_seg(visual(frames, WHOLE), asked)
    qwen, video = lm().qwen, tiny().tokenizer.convert_tokens_to_ids(VIDEO)
    ids = torch.tensor([[*asked.before, *[video] * grid.tokens, *asked.after]] * 2)
    output = qwen.model(
        input_ids=ids,
        mm_token_type_ids=(ids == video).int() * 2,
        pixel_values_videos=patches.flatten(0, 1),
        video_grid_thw=torch.tensor([[grid.pairs, grid.rows, grid.columns]] * 2),
    )
    wanted = output.last_hidden_state[:, len(asked.before) + grid.tokens + asked.seg]
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_kept_tokens_keep_their_place_in_time_and_picture() -> None:
    frames = films(1)
    _, grid = patches_of(frames)
    (whole,), (some,) = visual(frames, WHOLE), visual(frames, FIFTH)
    columns = grid.columns // 2
    everything = {tuple(place) for place in whole.positions.T.tolist()}
    assert len(everything) == grid.tokens
    assert whole.positions[:, columns + 1].tolist() == [0, 1, 1]
    kept = [tuple(place) for place in some.positions.T.tolist()]
    assert len(kept) == int(grid.tokens * 0.2)
    assert set(kept) <= everything
    assert kept == sorted(kept)
    assert some.extent == max(grid.rows, grid.columns) // 2
    (plain,) = visual(frames, CompressionOptions(ratio=0.2, positions="sequential"))
    assert plain.positions.tolist() == [list(range(len(kept)))] * 3
    assert plain.extent == len(kept)


@torch.no_grad()
def test_several_prompts_on_one_reading_equal_one_reading_each() -> None:
    clips = visual(films(3), FIFTH)
    prompts = [prompt("fight"), prompt("a person lying on the ground"), prompt("fire", "smoke", "explosion")]
    prefixes = lm().prefixes(clips, prompts[0])
    for asked in (*prompts, prompts[0]):
        torch.testing.assert_close(lm().hidden_after(prefixes, asked), lm().hidden_at_seg(clips, asked), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_words_after_seg_change_nothing_and_words_before_do() -> None:
    clips, asked = visual(films(1), FIFTH), prompt()
    longer = PromptTokens(asked.before, (*asked.after, 300, 301), asked.seg)
    assert torch.equal(lm().hidden_at_seg(clips, asked), lm().hidden_at_seg(clips, longer))
    assert not torch.allclose(lm().hidden_at_seg(clips, asked), lm().hidden_at_seg(clips, prompt("smoke", "fire")), atol=1e-4)


@torch.no_grad()
def test_a_clip_does_not_depend_on_its_neighbours() -> None:
    frames = films(4)
    together = lm().hidden_at_seg(visual(frames, FIFTH), prompt())
    for clip in range(4):
        alone = lm().hidden_at_seg(visual(frames[clip : clip + 1], FIFTH), prompt())
        torch.testing.assert_close(together[clip : clip + 1], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_static_patches_leave_the_sequence_at_their_own_places() -> None:
    frames = films(2)
    frames[:, :, 24:] = frames[:, :1, 24:]  # the lower half does not move
    patches, grid = patches_of(frames)
    looked = lm().encode_patches(patches, grid, 0.01)
    per_pair = grid.tokens // grid.pairs
    for tokens, index in looked:
        assert len(tokens) == len(index) < grid.tokens
        assert index[:per_pair].tolist() == list(range(per_pair)), "the first pair of frames is always kept"
        assert torch.all(index.diff() > 0)
    # The blocks get only the kept patches. If no patch is static, the tokens equal those of the whole tower.
    everything = lm().encode_patches(patches, grid, 0.0)
    for (some, index), (whole, _) in zip(everything, lm().encode_patches(patches, grid), strict=True):
        torch.testing.assert_close(some, whole[index], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_clips_of_which_different_shares_are_static_share_a_batch() -> None:
    frames = films(2)
    frames[0, :] = frames[0, :1]
    clips = visual(frames, FIFTH, static=0.01)
    assert len(clips[0].tokens) < len(clips[1].tokens)
    together = lm().hidden_at_seg(clips, prompt())
    for row, clip in enumerate(clips):
        torch.testing.assert_close(together[row : row + 1], lm().hidden_at_seg([clip], prompt()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.2, 0.1, 0.05])
@torch.no_grad()
def test_the_number_of_tokens_is_exact(ratio: float) -> None:
    frames = films(1)
    _, grid = patches_of(frames)
    (clip,) = visual(frames, CompressionOptions(ratio=ratio))
    assert len(clip.tokens) == max(1, int(grid.tokens * ratio + 1e-9))
    assert clip.length == grid.tokens


def test_rotary_frequencies_keep_their_precision_when_weights_are_narrowed() -> None:
    config = load_preset(PRESET)
    exact, narrow = (random_model(config, seed=1, dtype=dtype).mllm for dtype in (torch.float32, torch.bfloat16))
    assert {weight.dtype for weight in narrow.parameters()} == {torch.bfloat16}
    frequencies = dict(exact.named_buffers())
    assert any("inv_freq" in name for name in frequencies)
    for name, buffer in narrow.named_buffers():
        torch.testing.assert_close(buffer, frequencies[name], rtol=0, atol=0)


@torch.no_grad()
def test_training_reads_the_same_hidden_state_of_a_batch_of_different_prompts() -> None:
    clips = visual(films(3), FIFTH)
    asked = [prompt("fight"), prompt("fight", "fire", "a red car on the wrong side"), prompt("smoke", "fire")]
    length = 4
    read = lm().answers(clips, asked, length)
    hidden, logits = read.seg, read.logits
    assert read.names == []
    assert logits.shape[:2] == (3, length + 1)
    for row, (clip, one) in enumerate(zip(clips, asked, strict=True)):
        torch.testing.assert_close(hidden[row], lm().hidden_at_seg([clip], one)[0], atol=1e-5, rtol=1e-5)
        # The hidden state at <SEG> is after the final norm, so its projection is the logits of the next token.
        behind = len(one.after) - 1 - one.seg
        wanted = lm().qwen.lm_head(hidden[row])
        torch.testing.assert_close(logits[row, length - behind], wanted, atol=1e-4, rtol=1e-4)
