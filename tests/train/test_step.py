"""Tests of one training step: which weights are trained, and from which losses."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.train.small import WHOLE, sample, small_model
from vadcli.detectors.lavida.text import build_prompt
from vadcli.errors import UsageError
from vadcli.train import PAPER_PARTS, LossWeights
from vadcli.train import state as parts
from vadcli.train.step import LOSS_NAMES, ExposureStep, Losses, decoder_masks


def made(trained: Collection[str] = WHOLE, *, masks: int = 1, seed: int = 0) -> ExposureStep:
    torch.manual_seed(seed)
    model = small_model(seed=seed)
    parts.set_up(model, trained, masks=masks)
    return ExposureStep(model, masks=masks).train()


def moved(step: ExposureStep) -> dict[str, bool]:
    """Return for each parameter whether its gradient is not zero."""
    return {name: value.grad is not None and bool(value.grad.abs().sum() > 0) for name, value in step.model.named_parameters()}


def test_the_papers_training_reaches_what_it_should_and_nothing_else() -> None:
    step = made(PAPER_PARTS, masks=3)
    before = {name: value.detach().clone() for name, value in step.model.named_parameters()}
    losses = step([sample(), sample("smoke", "fire", "a car", anomalous=False, seed=1)])
    losses["total"].backward()
    got = moved(step)
    reached = {parts.part_of(name) for name, yes in got.items() if yes}
    # In this model, lm_head and the token embeddings are the same tensor.
    assert reached == {*PAPER_PARTS} - {"lm_head"}
    for name, value in step.model.named_parameters():
        part = parts.part_of(name)
        assert value.requires_grad == (part in PAPER_PARTS), name
        assert (value.grad is not None) == value.requires_grad, f"{name}: what is trained takes part in every step"
    # A B matrix starts at zero, so the A matrix gets no gradient in the first step.
    assert all(yes for name, yes in got.items() if "lora_B" in name)
    assert any(yes for name, yes in got.items() if "mask_decoder.conv_s0" in name)
    torch.optim.SGD([value for _, value in parts.trained_parameters(step)], lr=0.1).step()
    for name, value in step.model.named_parameters():
        if parts.part_of(name) not in PAPER_PARTS:
            assert torch.equal(value, before[name]), name


def test_a_model_made_from_nothing_trains_whole() -> None:
    step = made()
    step([sample(), sample("smoke", anomalous=False, seed=1)])["total"].backward()
    got = moved(step)
    for part in set(WHOLE) - {"lm_head"}:
        assert any(yes for name, yes in got.items() if parts.part_of(name) == part), part
    assert not any(yes for name, yes in got.items() if parts.part_of(name) == parts.REST)


def test_adapters_go_where_the_config_says() -> None:
    names = [name for name, _ in parts.trained_parameters(made(["lora"]).model)]
    assert len(names) == 2 * 2 * 2  # two layers, each with q and v, each with A and B
    assert all("language_model" in name and (".q_proj." in name or ".v_proj." in name) for name in names)


@pytest.mark.parametrize("trained", [["legs"], ["lora", "language_model"]])
def test_what_can_not_be_trained_is_named(trained: list[str]) -> None:
    with pytest.raises(UsageError, match=trained[0]):
        parts.set_up(small_model(), trained, masks=3)


def test_a_module_within_a_trained_part_can_stay_as_it_is() -> None:
    model = small_model()
    parts.set_up(model, ["projector"], masks=1, freeze=["projector.frame_semantics"])
    step = ExposureStep(model, masks=1).train()
    step([sample()])["total"].backward()
    got = moved(step)
    assert any(yes for name, yes in got.items() if name.startswith("projector."))
    assert not any(yes for name, yes in got.items() if name.startswith("projector.frame_semantics."))
    with pytest.raises(UsageError, match="legs"):
        parts.set_up(model, ["projector"], masks=1, freeze=["legs"])


def test_two_samples_are_learned_by_heart() -> None:
    step = made()
    optimiser = torch.optim.AdamW([value for _, value in parts.trained_parameters(step)], lr=3e-3)
    both = [sample("red block", "dog"), sample("dog", "smoke", anomalous=False, seed=1)]
    seen = []
    for _ in range(30):
        losses = step(both)
        optimiser.zero_grad()
        losses["total"].backward()
        optimiser.step()
        seen.append({name: float(value.detach()) for name, value in losses.items()})
    for name in ("focal", "dice", "score", "lm", "total"):
        assert seen[-1][name] < 0.5 * seen[0][name], f"{name}: {seen[0][name]} -> {seen[-1][name]}"
    verdict = step.eval().judge(both)
    assert verdict.object_logit[0].min() > 0 > verdict.object_logit[1].max()


def test_each_sample_has_its_own_list_and_size() -> None:
    step = made().eval()
    batch = [
        sample("red block"),
        sample("dog", "a red car on the wrong side", "smoke", seed=1, size=(64, 40)),
        sample("fire", "dog", anomalous=False, seed=2),
    ]
    together = step.judge(batch)
    for row, one in enumerate(batch):
        alone = step.judge([one])
        torch.testing.assert_close(together.object_logit[row], alone.object_logit[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(together.mask_logit[row], alone.mask_logit[0], atol=1e-4, rtol=1e-4)


def test_equal_parts_of_a_batch_add_up_to_it() -> None:
    step = made().eval()
    batch = [sample(seed=number, anomalous=number % 2 == 0, size=(48, 48 + 16 * number)) for number in range(4)]
    with torch.no_grad():
        whole = step(batch)
        halves = [step(batch[:2]), step(batch[2:])]
    for name in LOSS_NAMES:
        torch.testing.assert_close(whole[name], (halves[0][name] + halves[1][name]) / 2, atol=1e-5, rtol=1e-4)


def test_an_image_is_a_sample() -> None:
    losses = made()([sample(frames=1), sample(frames=1, anomalous=False, seed=1)])
    assert all(torch.isfinite(value) for value in losses.values())


def test_clips_of_different_lengths_share_no_batch() -> None:
    with pytest.raises(ValueError, match=r"not \[1, 2\]"):
        made()([sample(frames=1), sample(frames=2)])


def test_the_language_model_is_trained_at_the_answer_alone() -> None:
    step = made().eval()
    ids = step.answer
    assert step.model.tokenizer.decode(ids) == step.model.config.prompt.answer
    with torch.no_grad():
        losses = step([sample()])
        seen = step.model.encode(torch.from_numpy(sample().frames)[None], training=True)
        prompt = build_prompt(step.model.tokenizer, sample().categories, step.model.config.prompt)
        logits = step.model.mllm.answers(seen.visual, [prompt], len(ids)).logits
    wanted = torch.stack([-logits[0, place].log_softmax(0)[token] for place, token in enumerate(ids)]).mean()
    torch.testing.assert_close(losses["lm"], wanted, atol=1e-5, rtol=1e-5)


def test_losses_are_named_as_they_are() -> None:
    assert tuple(item.name for item in fields(Losses)) == LOSS_NAMES
    weights = LossWeights(focal=0, dice=0, iou=0, score=0, lm=3)
    step = made().eval()
    step.weights = weights
    with torch.no_grad():
        losses = step([sample()])
    torch.testing.assert_close(losses["total"], 3 * losses["lm"])


@pytest.mark.parametrize("precision", [torch.bfloat16])
def test_frozen_parts_are_kept_narrow_and_what_is_trained_wide(precision: torch.dtype) -> None:
    step = made(PAPER_PARTS, masks=3)
    parts.set_precision(step.model, precision)
    with torch.autocast("cpu", precision):
        losses = step([sample(), sample("smoke", anomalous=False, seed=1)])
    losses["total"].backward()
    for name, value in step.model.named_parameters():
        if value.requires_grad:
            assert value.dtype == value.grad.dtype == torch.float32
            assert torch.isfinite(value.grad).all(), name
        elif parts.part_of(name) != parts.REST:
            assert value.dtype == precision
    exact = made(PAPER_PARTS, masks=3)([sample(), sample("smoke", anomalous=False, seed=1)])
    torch.testing.assert_close(losses["total"], exact["total"], rtol=0.1, atol=0.1)


def test_activations_computed_again_give_the_same_gradients() -> None:
    found: list[dict[str, torch.Tensor | None]] = []
    calls: list[int] = []
    for again in (False, True):
        step = made(PAPER_PARTS, masks=3)
        if again:
            parts.checkpoint_activations(step.model)
        torch.manual_seed(3)
        calls.append(0)

        def count(*_: object) -> None:
            calls[-1] += 1

        step.model.mllm.qwen.model.language_model.layers[0].input_layernorm.register_forward_hook(count)
        step([sample()])["total"].backward()
        found.append({name: value.grad for name, value in parts.trained_parameters(step)})
    assert calls == [1, 2]
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], atol=1e-6, rtol=1e-5)


def test_a_cell_is_in_the_mask_where_half_of_it_is() -> None:
    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[0, :4, :4] = True
    masks[1, :4, 0] = True  # covers a quarter of each of two cells, so no cell is half covered
    found = decoder_masks(masks, (4, 4))
    assert found.dtype == torch.bool
    assert found[0, :2, :2].all()
    assert found[0].sum() == 4
    assert found[1, :2, 0].all()
    assert found[1].sum() == 2
    assert not found[2].any()


def test_the_smallest_object_keeps_a_cell() -> None:
    masks = torch.zeros(1, 100, 100, dtype=torch.bool)
    masks[0, 57, 33] = True
    assert decoder_masks(masks, (8, 8))[0].nonzero().tolist() == [[4, 2]]


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**16))
def test_a_labelled_frame_never_goes_without_a_target(height: int, width: int, side: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = torch.from_numpy(rng.random((4, height, width)) < rng.random((4, 1, 1)) ** 3)
    found = decoder_masks(masks, (side, side))
    assert torch.equal(found.any(dim=(1, 2)), masks.any(dim=(1, 2)))
    assert not found[masks.flatten(1).sum(1) == 0].any()
    assert found[masks.flatten(1).all(1)].all()
