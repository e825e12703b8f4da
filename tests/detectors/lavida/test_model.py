"""Tests of the whole model: scores depend only on the clip and the categories."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.detectors.lavida.models import films, tiny
from vadcli.detectors.lavida import checkpoint
from vadcli.detectors.lavida.checkpoint import load_preset
from vadcli.detectors.lavida.model import Lavida, LavidaConfig, LavidaOutput
from vadcli.detectors.lavida.text import PromptOptions
from vadcli.detectors.mllm.compress import CompressionOptions

NAMES = ("fight", "fire")


def assert_equal(got: LavidaOutput, wanted: LavidaOutput, rows: slice = slice(None)) -> None:
    torch.testing.assert_close(got.object_logit, wanted.object_logit[rows], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.mask_logit, wanted.mask_logit[rows], atol=1e-4, rtol=1e-5)


def ungated(**changes: object) -> Lavida:
    """Return lavida-tiny without a mask gate, so that the masks of all frames can be compared."""
    return checkpoint.random_model(replace(load_preset("lavida-tiny"), mask_gate="off", **changes), seed=1)


@torch.no_grad()
def test_one_score_and_one_mask_a_frame() -> None:
    verdict = tiny()(films(2), tiny().questions(NAMES))
    side = tiny().masks.image_size // 4
    assert verdict.object_logit.shape == (2, 8)
    assert verdict.mask_logit.shape == (2, 8, side, side)
    assert torch.isfinite(verdict.object_logit).all()
    hidden = verdict.object_logit <= 0
    assert (verdict.mask_logit[hidden] == -1024).all()
    assert (verdict.mask_logit[~hidden] > -1024).all()


@pytest.mark.parametrize("batch", [1, 3, 8])
@torch.no_grad()
def test_scores_do_not_depend_on_the_batch(batch: int) -> None:
    model, frames = ungated(), films(8)
    questions = model.questions(NAMES)
    together = model(frames, questions)
    for start in range(0, 8, batch):
        assert_equal(model(frames[start : start + batch], questions), together, slice(start, start + batch))


@torch.no_grad()
def test_scores_depend_on_the_picture_and_on_the_words() -> None:
    model, frames = ungated(), films(2)
    verdict = model(frames, model.questions(NAMES))
    assert not torch.allclose(verdict.object_logit[0], verdict.object_logit[1], atol=1e-4)
    assert not torch.allclose(verdict.object_logit, model(frames, model.questions(["smoke"])).object_logit, atol=1e-4)


@torch.no_grad()
def test_a_long_list_is_the_highest_of_its_parts() -> None:
    model, frames = ungated(prompt=PromptOptions(max_categories=2)), films(2)
    names = ["fight", "fire", "smoke", "a falling person", "robbery"]
    questions = model.questions(names)
    assert [question.categories for question in questions] == [
        ("fight", "fire"),
        ("smoke",),
        ("a falling person", "robbery"),
    ] or [len(question.categories) for question in questions] == [2, 1, 2]
    whole = model(frames, questions)
    parts = [model(frames, [question]) for question in questions]
    highest = torch.stack([part.object_logit for part in parts]).amax(dim=0)
    torch.testing.assert_close(whole.object_logit, highest, atol=1e-5, rtol=1e-5)
    for clip in range(2):
        for frame in range(8):
            masks = [part.mask_logit[clip, frame] for part in parts]
            assert any(torch.allclose(whole.mask_logit[clip, frame], mask, atol=1e-4) for mask in masks)


@torch.no_grad()
def test_each_category_alone_equals_a_scan_for_it_alone() -> None:
    model, frames = ungated(), films(3)
    questions = [model.questions([name])[0] for name in ("fight", "a person lying on the ground", "fire")]
    for question, verdict in zip(questions, model.judge_each(model.encode(frames), questions), strict=True):
        assert_equal(verdict, model(frames, [question]))


@torch.no_grad()
def test_the_language_model_reaches_the_score() -> None:
    """With the hidden state of another clip, the same frames must get other scores."""
    model, frames = ungated(), films(2)
    (question,) = model.questions(NAMES)
    seen = model.encode(frames)
    hidden = model.mllm.hidden_at_seg(seen.visual, question.tokens)
    own, swapped = model.judge(seen, question, hidden), model.judge(seen, question, hidden.flip(0))
    assert not torch.allclose(own.object_logit, swapped.object_logit, atol=1e-5)


@pytest.mark.parametrize("kind", ["mlp", "qformer", "two_way"])
@torch.no_grad()
def test_every_projector_of_the_papers_table_runs(kind: str) -> None:
    preset = load_preset("lavida-tiny")
    model = checkpoint.random_model(replace(preset, projector=replace(preset.projector, kind=kind)), seed=2)  # type: ignore[arg-type]
    verdict = model(films(2), model.questions(NAMES))
    assert verdict.object_logit.shape == (2, 8)
    assert verdict.object_logit.std() > 0


@torch.no_grad()
def test_bf16_is_close_to_fp32() -> None:
    frames = films(2)
    whole = CompressionOptions(ratio=1.0)  # rounding may change the choice of tokens
    wide = ungated(compression=whole)
    narrow = ungated(compression=whole).to(torch.bfloat16)
    got, wanted = narrow(frames, narrow.questions(NAMES)), wide(frames, wide.questions(NAMES))
    assert got.object_logit.dtype is torch.float32
    spread = wanted.object_logit.abs().max()
    assert (got.object_logit - wanted.object_logit).abs().max() < 0.15 * spread


def test_config_survives_its_json() -> None:
    config = load_preset("lavida-7b")
    assert LavidaConfig.from_json(config.to_json()) == config


def test_config_names_what_it_does_not_know() -> None:
    document = load_preset("lavida-tiny").to_json()
    with pytest.raises(ValueError, match="projector has no key 'colour'"):
        LavidaConfig.from_json({**document, "projector": {"colour": 1}})
    with pytest.raises(ValueError, match="format_version 7"):
        LavidaConfig.from_json({**document, "format_version": 7})
    with pytest.raises(ValueError, match='mask_gate is "ajar"'):
        LavidaConfig.from_json({**document, "mask_gate": "ajar"})


@torch.no_grad()
def test_an_image_is_a_clip_of_one_frame() -> None:
    frames = films(2)[:, :1]
    seen = tiny().encode(frames)
    twice = tiny().encode(frames.expand(-1, 2, -1, -1, -1))
    assert seen.frames == len(seen.image) // 2 == 1
    for one, pair in zip(seen.visual, twice.visual, strict=True):
        torch.testing.assert_close(one.tokens, pair.tokens)
    assert tiny()(frames, tiny().questions(NAMES)).object_logit.shape == (2, 1)


@torch.no_grad()
def test_training_has_its_own_frame_areas() -> None:
    config = tiny().config
    pixels = replace(config.pixels, train_min_px=4 * 28 * 28, train_max_px=6 * 28 * 28)
    model = checkpoint.random_model(replace(config, pixels=pixels), seed=1)
    seen, training = model.encode(films(1)), model.encode(films(1), training=True)
    assert training.visual[0].length <= 4 * 6 < seen.visual[0].length


@torch.no_grad()
def test_lists_of_several_lengths_share_a_batch() -> None:
    model, frames = tiny(), films(2)
    seen = model.encode(frames)
    first, second = (model.questions(names)[0] for names in (("fight",), ("smoke", "fire", "car")))
    hidden = torch.cat(
        [model.mllm.hidden_at_seg(seen.visual, asked.tokens)[row : row + 1] for row, asked in enumerate((first, second))]
    )
    text = torch.zeros(2, 3, model.text.width)
    text[0, :1], text[1] = first.features, second.features
    counts = torch.tensor([[True, False, False], [True, True, True]])
    together = model.prompts(seen, hidden, text, counts).sparse
    for row, asked in enumerate((first, second)):
        alone = model.prompts(model.encode(frames[row : row + 1]), hidden[row : row + 1], asked.features)
        torch.testing.assert_close(together[row : row + 1], alone.sparse, atol=1e-5, rtol=1e-5)


def test_names_are_pooled_with_gradients_only_where_that_is_asked_for() -> None:
    text = tiny().text
    assert not text(NAMES).requires_grad
    pooled = text.pooled(NAMES)
    assert pooled.requires_grad
    assert torch.equal(pooled, text(NAMES))
