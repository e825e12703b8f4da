"""Tests of the three projectors: shapes, sizes, and which inputs change the result."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vadcli.detectors.lavida.projector import ODDS, Attention, ProjectorOptions, TwoWayBlock, anywhere, build_projector

KINDS = ("two_way", "qformer", "mlp")
LLM, TEXT, IMAGE = 20, 10, 12
CLIPS, FRAMES, CATEGORIES, SIDE = 3, 4, 5, 6


def small(kind: Any) -> nn.Module:
    torch.manual_seed(0)
    options = ProjectorOptions(kind=kind, width=32, queries=6, blocks=2, heads=4, mlp=24, category_heads=2)
    return build_projector(options, llm_width=LLM, text_width=TEXT, image_width=IMAGE).eval()


def inputs(seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "seg": random(CLIPS, LLM),
        "text": random(CATEGORIES, TEXT),
        "image": random(CLIPS, FRAMES, IMAGE, SIDE, SIDE),
        "position": random(1, IMAGE, SIDE, SIDE),
    }


@pytest.fixture(params=KINDS)
def projector(request: pytest.FixtureRequest) -> nn.Module:
    return small(request.param)


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-6, rtol=0)


def test_one_prompt_a_frame(projector: nn.Module) -> None:
    given = inputs()
    prompt = projector(**given).sparse
    assert prompt.shape == (CLIPS, FRAMES, 1, IMAGE)
    assert prompt.isfinite().all()
    own_text = given["text"].expand(CLIPS, -1, -1)
    assert close(projector(**{**given, "text": own_text}).sparse, prompt)


def test_clips_and_frames_do_not_see_their_neighbours(projector: nn.Module) -> None:
    given = inputs()
    prompt = projector(**given).sparse
    for clip in range(CLIPS):
        alone = projector(given["seg"][[clip]], given["text"], given["image"][[clip]], given["position"]).sparse
        assert close(alone[0], prompt[clip])
        frame = projector(given["seg"][[clip]], given["text"], given["image"][[clip], 2:3], given["position"]).sparse
        assert close(frame[0, 0], prompt[clip, 2])


def test_masked_categories_have_no_influence(projector: nn.Module) -> None:
    given = inputs()
    mask = torch.ones(CLIPS, CATEGORIES, dtype=torch.bool)
    mask[0, 3:] = False
    mask[1, [0, 2]] = False
    text = given["text"].repeat(CLIPS, 1, 1)
    prompt = projector(**{**given, "text": text}, text_mask=mask).sparse
    spoiled = text.clone()
    spoiled[0, 3] = 1e4
    spoiled[0, 4] = math.nan
    spoiled[1, [0, 2]] = math.inf
    assert torch.equal(projector(**{**given, "text": spoiled}, text_mask=mask).sparse, prompt)
    for clip in range(CLIPS):  # and the result is the same without the unused categories
        alone = projector(given["seg"][[clip]], text[clip, mask[clip]], given["image"][[clip]], given["position"]).sparse
        assert close(alone[0], prompt[clip])


def test_nothing_masked_is_no_mask(projector: nn.Module) -> None:
    given = inputs()
    everything = torch.ones(CLIPS, CATEGORIES, dtype=torch.bool)
    assert close(projector(**given, text_mask=everything).sparse, projector(**given).sparse)


def test_order_of_categories_does_not_matter(projector: nn.Module) -> None:
    given = inputs()
    shuffled = given["text"][torch.tensor([3, 0, 4, 2, 1])]
    assert close(projector(**{**given, "text": shuffled}).sparse, projector(**given).sparse)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["seg", "text", "image", "position"])
def test_what_the_prompt_depends_on(kind: str, name: str) -> None:
    given, other = inputs(1), inputs(2)
    projector = small(kind)
    changed = projector(**{**given, name: other[name]}).sparse
    depends = name == "seg" or kind != "mlp"
    assert close(changed, projector(**given).sparse) != depends


@pytest.mark.parametrize("kind", ["two_way", "qformer"])
def test_each_frame_has_its_own_prompt(kind: str) -> None:
    given = inputs()
    prompt = small(kind)(**given).sparse
    assert not close(prompt[:, 0], prompt[:, 1])
    first, second = (small("mlp")(**given).sparse[:, frame] for frame in (0, 1))
    assert close(first, second)


def test_gradients_reach_every_parameter(projector: nn.Module) -> None:
    given = inputs()
    projector(**given).sparse.square().sum().backward()
    for name, parameter in projector.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if not name.endswith(".k.bias"):  # adds the same number to all logits of a query, which does not change the softmax
            assert parameter.grad.abs().max() > 1e-9, name


def test_half_precision_in_and_out(projector: nn.Module) -> None:
    given = inputs()
    wanted = projector(**given).sparse
    half = {name: value.bfloat16() for name, value in given.items()}
    half["position"] = given["position"]  # the encoding of the first block
    prompt = projector.bfloat16()(**half).sparse
    assert prompt.dtype == torch.bfloat16
    assert (prompt.float() - wanted).abs().max() < 0.1 * wanted.abs().max()


# Comparison of the parts with their formulas


def slow_attention(attention: Attention, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Compute attention head by head in float64."""
    q, k, v = (
        part.double().reshape(*part.shape[:2], attention.heads, -1)
        for part in (attention.q(queries), attention.k(keys), attention.v(values))
    )
    scores = torch.einsum("nqhc,nkhc->nhqk", q, k) / math.sqrt(q.shape[-1])
    mixed = torch.einsum("nhqk,nkhc->nqhc", scores.softmax(-1), v)
    return attention.out(mixed.flatten(2).float())


@pytest.mark.parametrize("downsample", [1, 2])
def test_attention_equals_its_formula(downsample: int) -> None:
    torch.manual_seed(3)
    attention = Attention(32, 4, downsample=downsample)
    queries, keys, values = torch.randn(2, 5, 32), torch.randn(2, 7, 32), torch.randn(2, 7, 32)
    assert torch.allclose(attention(queries, keys, values), slow_attention(attention, queries, keys, values), atol=1e-6)


def test_two_way_projector_equals_its_formulas() -> None:
    """Compute paper 3.7 step by step for one frame of one clip, in the order of SAM's transformer."""
    p, given = small("two_way"), inputs()
    text, image = given["text"], given["image"][0, 0]
    f, attend = p.frame_semantics, slow_attention
    v = f.image((image + given["position"][0]).reshape(IMAGE, -1).T)[None]
    q = f.text(text)[None]
    e = f.out(f.norm(q + attend(f.attention, q, v, v)))
    keys = torch.cat([p.clip_semantics(given["seg"][:1])[None], e], dim=1)
    queries, first_keys = p.queries[None], keys
    for index, b in enumerate(p.blocks):
        qp = queries + p.queries
        queries = b.norm1(queries + attend(b.self_attention, qp, qp, queries))
        queries = b.norm2(queries + attend(b.queries_to_keys, queries + p.queries, keys + first_keys, keys))
        queries = b.norm3(queries + b.mlp(queries))
        if index < len(p.blocks) - 1:
            keys = b.norm4(keys + attend(b.keys_to_queries, keys + first_keys, queries + p.queries, queries))
    wanted = p.prompt(queries.flatten())
    assert torch.allclose(p(**given).sparse[0, 0, 0], wanted, atol=1e-5)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def linear(inside: int, outside: int) -> int:
    return inside * outside + outside


def test_sizes_of_the_base_preset() -> None:
    d, half, hidden = 768, 384, 2048
    full_attention = 4 * linear(d, d)
    half_attention = 3 * linear(d, half) + linear(half, d)
    mlp = linear(d, hidden) + linear(hidden, d)
    semantics = linear(256, d) + linear(512, d) + half_attention + 2 * d + linear(d, d)
    around = semantics + linear(3584, d) + 48 * d + linear(48 * d, 256)
    reading = full_attention + half_attention + mlp + 3 * 2 * d  # a block without the update of its keys
    writing = half_attention + 2 * d
    with torch.device("meta"):
        by_kind = {
            kind: count(build_projector(ProjectorOptions(kind=kind), llm_width=3584, text_width=512, image_width=256))
            for kind in KINDS
        }
        two_way = build_projector(ProjectorOptions(), llm_width=3584, text_width=512, image_width=256)
    assert by_kind["two_way"] == around + 5 * reading + 4 * writing == 52_810_496
    assert by_kind["qformer"] == around + 5 * (2 * full_attention + mlp + 3 * 2 * d)
    assert by_kind["mlp"] == linear(3584, 3584) + linear(3584, 256)
    assert [isinstance(block, TwoWayBlock) for block in two_way.blocks] == [True] * 5
    assert (two_way.blocks[0].queries_to_keys.q.out_features, two_way.blocks[0].self_attention.q.out_features) == (half, d)
    assert two_way.frame_semantics.attention.q.out_features == half
    assert (two_way.frame_semantics.attention.heads, two_way.blocks[0].queries_to_keys.heads) == (8, 12)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "three_way"}, "kind is 'three_way'; give one of two_way, qformer, mlp"),
        ({"queries": 0}, "queries is 0; give 1 or more"),
        ({"width": 100}, "width is 100; give a multiple of downsample · heads = 24"),
        ({"category_heads": 7}, "downsample · category_heads = 14"),
    ],
)
def test_options_check_themselves(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProjectorOptions(**wrong)


# Parts that are not in the paper


def added(**more: Any) -> nn.Module:
    torch.manual_seed(5)
    options = ProjectorOptions(width=32, queries=4, blocks=2, heads=2, mlp=48, category_heads=2, null_key=True, **more)
    return build_projector(options, llm_width=LLM, text_width=TEXT, image_width=IMAGE).eval()


def test_additions_are_off_unless_asked_for() -> None:
    prompts = small("two_way")(**inputs())
    assert prompts.presence is None
    assert prompts.dense is None


@torch.no_grad()
def test_presence_and_mask_prompt_follow_the_likeliest_category() -> None:
    projector, given = added(presence=True, mask_prompt=True), inputs()
    projector.mask_prompt.fill_(2.0)
    clips, frames = given["image"].shape[:2]
    prompts = projector(**given)
    text = given["text"].expand(clips, -1, -1)
    where = projector.frame_semantics.where(text, given["image"], given["position"])  # (N, C, h · w + 1)
    odds = (where[..., :-1] - where[..., -1:]).clamp(-ODDS, ODDS)
    wanted = 2 * odds.amax(dim=1).view(clips, frames, 1, *given["image"].shape[-2:]) / ODDS
    assert close(prompts.dense, wanted.expand_as(prompts.dense))
    strongest = anywhere(where).clamp(-ODDS, ODDS).amax(dim=1).view(clips, frames)
    without = projector.odds_scale.clone()
    projector.odds_scale.zero_()
    assert close(prompts.presence - projector(**given).presence, without * strongest)


@torch.no_grad()
def test_categories_that_do_not_count_change_nothing_of_the_additions() -> None:
    projector, given = added(presence=True, mask_prompt=True), inputs()
    projector.mask_prompt.normal_()
    clips = len(given["image"])
    text = given["text"].expand(clips, -1, -1)
    longer = torch.cat([text, torch.full_like(text[:, :2], 9.0)], dim=1)
    mask = torch.tensor([[True] * text.shape[1] + [False] * 2] * clips)
    alone, masked = projector(**{**given, "text": text}), projector(**{**given, "text": longer}, text_mask=mask)
    for one, other in ((alone.sparse, masked.sparse), (alone.presence, masked.presence), (alone.dense, masked.dense)):
        assert close(one, other)


@torch.no_grad()
def test_a_mask_prompt_begins_without_effect() -> None:
    assert not added(mask_prompt=True)(**inputs()).dense.any()
