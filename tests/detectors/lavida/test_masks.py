"""Tests of SAM2's encoder and mask decoder, the same for both implementations."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import Sam2VideoConfig, Sam2VideoModel

from vadcli.detectors.lavida.masks import ImageFeatures, MaskModel, MaskOutput, TransformersMasks, gate
from vadcli.detectors.lavida.sam2 import sam2_config
from vadcli.errors import WeightsError

WIDTH, SIZE = 32, 128
TINY: dict[str, Any] = {
    "image_size": SIZE,
    "embed_dim": 16,
    "blocks": [1, 1, 2, 1],
    "windows": [8, 4, 4, 2],
    "global_blocks": [3],
    "width": WIDTH,
    "decoder_heads": 2,
    "decoder_mlp": 64,
    "iou_hidden": 48,
    "memory_channels": 16,
    "memory_layers": 1,
    "memory_mlp": 64,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_transformers(**changes: Any) -> TransformersMasks:
    """Return a model without zero weights, so that each missing or misplaced weight changes the result."""
    torch.manual_seed(0)
    model = TransformersMasks(Sam2VideoModel(sam2_config(**{**TINY, **changes}))).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def transformers_masks() -> TransformersMasks:
    return random_transformers()


@pytest.fixture(scope="module", params=["transformers", "sam2"])
def masks(request: pytest.FixtureRequest, transformers_masks: TransformersMasks) -> MaskModel:
    return transformers_masks if request.param == "transformers" else package_twin(transformers_masks)


def package_twin(model: TransformersMasks) -> Any:
    """Return the sam2 package's model with the same weights, loaded over random weights."""
    pytest.importorskip("sam2", reason="the sam2 package is not installed")
    from vadcli.detectors.lavida.sam2 import PackageMasks

    twin = PackageMasks(model.sam2.config).eval()
    twin.load_transformers_state(model.sam2.state_dict())
    return twin


def frames(count: int, seed: int = 2) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def prompts(count: int, seed: int = 3) -> Tensor:
    return torch.randn(count, 1, WIDTH, generator=torch.Generator().manual_seed(seed))


def assert_same(one: MaskOutput, other: MaskOutput, tolerance: float = 1e-5) -> None:
    for name in ("object_logit", "mask_logit", "iou"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=tolerance, rtol=tolerance)


@torch.no_grad()
def test_shapes(masks: MaskModel) -> None:
    features = masks.encode(frames(2))
    assert (masks.image_size, masks.width, len(features)) == (SIZE, WIDTH, 2)
    assert features.embedding.shape == (2, WIDTH, 8, 8)
    assert features.position.shape == (1, WIDTH, 8, 8)
    assert [tuple(high.shape) for high in features.high] == [(2, WIDTH // 8, 32, 32), (2, WIDTH // 4, 16, 16)]
    one, three = masks.decode(features, prompts(2)), masks.decode(features, prompts(2), multimask=True)
    assert (one.mask_logit.shape, three.mask_logit.shape) == ((2, 1, 32, 32), (2, 3, 32, 32))
    assert (one.iou.shape, three.iou.shape, one.object_logit.shape) == ((2, 1), (2, 3), (2,))
    assert {t.dtype for t in (one.mask_logit, one.iou, one.object_logit)} == {torch.float32}


@torch.no_grad()
def test_the_chunk_changes_nothing(masks: MaskModel) -> None:
    whole, parts = masks.encode(frames(5)), masks.encode(frames(5), chunk=2)
    for one, other in zip((whole.embedding, *whole.high), (parts.embedding, *parts.high), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("multimask", [False, True])
def test_neighbours_in_the_batch_change_nothing(masks: MaskModel, multimask: bool) -> None:
    together = masks.decode(masks.encode(frames(4)), prompts(4), multimask=multimask)
    for row in range(4):
        alone = masks.decode(masks.encode(frames(4)[row : row + 1]), prompts(4)[row : row + 1], multimask=multimask)
        mine = MaskOutput(*(t[row : row + 1] for t in (together.object_logit, together.mask_logit, together.iou)))
        assert_same(alone, mine)


@torch.no_grad()
@pytest.mark.parametrize("rows", [slice(1, 3), torch.tensor([3, 0]), torch.tensor([True, False, False, True])])
def test_rows_of_features_decode_to_rows(masks: MaskModel, rows: slice | Tensor) -> None:
    features = masks.encode(frames(4))
    whole = masks.decode(features, prompts(4))
    assert_same(
        masks.decode(features[rows], prompts(4)[rows]),
        MaskOutput(whole.object_logit[rows], whole.mask_logit[rows], whole.iou[rows]),
    )


@torch.no_grad()
def test_the_single_mask_is_chosen_for_stability_in_training_too(masks: MaskModel) -> None:
    features = masks.encode(frames(8))
    one, three = masks.decode(features, prompts(8)), masks.decode(features, prompts(8), multimask=True)
    best = three.mask_logit[torch.arange(8), three.iou.argmax(1)]
    is_best = (one.mask_logit[:, 0] - best).abs().amax((1, 2)) < 1e-5
    assert is_best.any(), "no mask was replaced: the test's weights don't exercise the choice"
    masks.train()  # type: ignore[attr-defined]
    try:
        assert_same(masks.decode(features, prompts(8)), one)
    finally:
        masks.eval()  # type: ignore[attr-defined]


@torch.no_grad()
@pytest.mark.parametrize("multimask", [False, True])
def test_both_backends_give_the_same_masks(transformers_masks: TransformersMasks, multimask: bool) -> None:
    twin = package_twin(transformers_masks)
    ours, theirs = transformers_masks.encode(frames(6)), twin.encode(frames(6))
    for one, other in zip(
        (ours.embedding, ours.position, *ours.high), (theirs.embedding, theirs.position, *theirs.high), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert_same(
        transformers_masks.decode(ours, prompts(6), multimask=multimask), twin.decode(theirs, prompts(6), multimask=multimask)
    )


@torch.no_grad()
def test_both_backends_agree_in_bfloat16(transformers_masks: TransformersMasks) -> None:
    ours, theirs = (model.to(torch.bfloat16) for model in (copy.deepcopy(transformers_masks), package_twin(transformers_masks)))
    one, other = (model.decode(model.encode(frames(2)), prompts(2), multimask=True) for model in (ours, theirs))
    assert_same(one, other, tolerance=0.05)
    assert torch.equal(ours.encode(frames(1)).position, theirs.encode(frames(1)).position)


def test_a_missing_package_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from vadcli.detectors.lavida.sam2 import PackageMasks

    monkeypatch.setitem(sys.modules, "sam2", None)
    for name in [name for name in sys.modules if name.startswith("sam2.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(WeightsError, match="sam2 package can't be used"):
        PackageMasks(sam2_config(**TINY))


@torch.no_grad()
def test_no_memory_embedding_goes_to_the_decoder_alone(transformers_masks: TransformersMasks) -> None:
    """With the padding point as prompt, the result is that of transformers for a frame without prompt."""
    sam2 = transformers_masks.sam2
    raw = sam2.vision_encoder(frames(1)).fpn_hidden_states[-1]
    features = transformers_masks.encode(frames(1))
    torch.testing.assert_close(features.embedding, raw)

    padding = sam2.prompt_encoder.not_a_point_embed.weight.view(1, 1, WIDTH)
    points = torch.zeros(1, 1, 2, 2), -torch.ones(1, 1, 2, dtype=torch.int32)  # both are embedded as the padding point
    sam2.prompt_encoder._embed_points = _unpadded(sam2.prompt_encoder._embed_points)
    try:
        theirs = sam2._single_frame_forward(
            pixel_values=frames(1), input_points=points[0], input_labels=points[1], multimask_output=True
        )
    finally:
        del sam2.prompt_encoder._embed_points
    ours = transformers_masks.decode(features, padding, multimask=True)
    torch.testing.assert_close(ours.iou, theirs.iou_scores[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.object_logit, theirs.object_score_logits[:, 0, 0], atol=1e-5, rtol=1e-5)
    best = gate(ours, "hard")[0, ours.iou[0].argmax()]
    torch.testing.assert_close(best, theirs.pred_masks[0, 0], atol=1e-5, rtol=1e-5)


def _unpadded(embed: Any) -> Any:
    return lambda points, labels, pad: embed(points, labels, pad=False)


def test_gradients_reach_the_projections_past_a_frozen_encoder() -> None:
    model = random_transformers()
    model.sam2.vision_encoder.requires_grad_(False)
    output = model.decode(model.encode(frames(2), chunk=1), prompts(2).requires_grad_(), multimask=True)
    (output.mask_logit.mean() + output.iou.sum() + output.object_logit.sum()).backward()
    decoder = model.sam2.mask_decoder
    assert all(float(conv.weight.grad.abs().sum()) > 0 for conv in (decoder.conv_s0, decoder.conv_s1))
    assert all(weight.grad is None for weight in model.sam2.vision_encoder.parameters())


@torch.no_grad()
def test_positions_are_exact_in_half_precision() -> None:
    model = random_transformers()
    exact = model.encode(frames(1)).position, model.image_position(torch.zeros(1, WIDTH, 8, 8))
    half = model.to(torch.float16)
    position = half.encode(frames(1)).position
    image = half.image_position(torch.zeros(1, WIDTH, 8, 8, dtype=torch.float16))
    assert position.dtype == image.dtype == torch.float16
    assert torch.equal(position, exact[0].half())
    assert torch.equal(image, exact[1].half())
    assert half.decode(half.encode(frames(1)), prompts(1)).mask_logit.dtype == torch.float32


@torch.no_grad()
def test_positions_are_those_of_transformers(transformers_masks: TransformersMasks) -> None:
    features = transformers_masks.encode(frames(1))
    from transformers.models.sam2.modeling_sam2 import Sam2SinePositionEmbedding

    theirs = Sam2SinePositionEmbedding(WIDTH // 2, normalize=True)(features.embedding.shape, torch.device("cpu"), torch.float32)
    torch.testing.assert_close(features.position, theirs)
    image = transformers_masks.sam2.get_image_wide_positional_embeddings()
    torch.testing.assert_close(transformers_masks.image_position(features.embedding), image)


def output_of(mask: list[float], score: float) -> MaskOutput:
    return MaskOutput(torch.tensor([score]), torch.tensor(mask).view(1, 1, 1, -1), torch.ones(1, 1))


logits = st.floats(-30, 30, width=32)


@given(st.lists(logits, min_size=1, max_size=5), logits)
def test_soft_gate_multiplies_probabilities(mask: list[float], score: float) -> None:
    got = gate(output_of(mask, score), "soft").flatten().double().numpy()
    m, s = np.array(mask, dtype=np.longdouble), np.longdouble(score)
    probability = 1 / ((1 + np.exp(-m)) * (1 + np.exp(-s)))
    complement = (np.exp(-m) + np.exp(-s) + np.exp(-m - s)) * probability
    np.testing.assert_allclose(got, np.log(probability / complement).astype(float), atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(1 / (1 + np.exp(-got)), probability.astype(float), rtol=1e-4)


@given(st.lists(logits, min_size=1, max_size=5), logits)
def test_hard_gate_and_none(mask: list[float], score: float) -> None:
    output = output_of(mask, score)
    assert torch.equal(gate(output, "off"), output.mask_logit)
    expected = output.mask_logit if score > 0 else torch.full_like(output.mask_logit, -1024.0)
    assert torch.equal(gate(output, "hard"), expected)


def test_soft_gate_is_finite_at_the_ends() -> None:
    assert torch.isfinite(gate(output_of([-1024.0, 1024.0, 0.0], -1024.0), "soft")).all()


def test_published_sizes() -> None:
    tiny = sam2_config(blocks=(1, 2, 7, 2), global_blocks=(5, 7, 9))
    assert tiny.to_dict() == Sam2VideoConfig().to_dict(), "transformers' default is SAM2.1 hiera-tiny"
    small = sam2_config().vision_config.backbone_config
    assert (small.blocks_per_stage, small.global_attention_blocks) == ([1, 2, 11, 2], [7, 10, 13])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image_size": 100}, "image_size 100"),
        ({"windows": [12, 4, 4, 2]}, "first window, 12"),
        ({"global_blocks": [2]}, "block 2 is the first of a stage"),
        ({"global_blocks": [5]}, "must be below 5, the number of blocks"),
        ({"windows": [8, 4, 7, 7]}, "7 must be even"),
        ({"blocks": [1, 1, 2]}, "4 each"),
        ({"width": 20}, "width 20"),
        ({"width": 40, "decoder_heads": 8}, "decoder_heads 8"),
        ({"memory_channels": 24}, "memory_channels 24"),
        ({"num_heads": 0}, "num_heads 0"),
        ({"embed_dim": 16, "num_heads": 3}, "num_heads 3"),
    ],
)
def test_impossible_sizes_are_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        sam2_config(**{**TINY, **changes})


@torch.no_grad()
@pytest.mark.parametrize("size", [32, 64, 256])
def test_other_image_sizes(size: int) -> None:
    model = random_transformers(image_size=size)
    features = model.encode(torch.zeros(1, 3, size, size))
    assert isinstance(features, ImageFeatures)
    assert model.decode(features, prompts(1)).mask_logit.shape == (1, 1, size // 4, size // 4)
