"""Tests of masks that SAM2's memory propagates from known frames, with small random weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Sam2VideoInferenceSession

from tests.detectors.lavida.test_masks import SIZE, one_thread, random_transformers  # noqa: F401  one_thread is a fixture
from vadcli.detectors.lavida.masks import TransformersMasks, propagate

SIDE = SIZE // 4


@pytest.fixture(scope="module")
def model() -> TransformersMasks:
    """Return a model whose masks depend on the memory so much that errors are visible."""
    model = random_transformers(width=128, memory_channels=64)
    sam2, generator = model.sam2, torch.Generator().manual_seed(5)
    remembers = (sam2.memory_attention, sam2.memory_encoder, sam2.object_pointer_proj, sam2.mask_downsample)
    with torch.no_grad():
        for weight in [weight for part in remembers for weight in part.parameters() if weight.ndim > 1]:
            weight.normal_(std=1.0 / weight[0].numel() ** 0.5, generator=generator)
        sam2.memory_temporal_positional_encoding.normal_(std=2.0, generator=generator)
        sam2.no_object_pointer.normal_(std=2.0, generator=generator)
        sam2.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(1.0)  # without an object, every mask would be -1024
        sam2.memory_encoder.memory_fuser.layers[0].scale.fill_(0.5)
    return model


def film(count: int) -> Tensor:
    """Return frames of noise that moves to the right, so that neighbouring frames are similar."""
    still = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(4))
    return torch.cat([still.roll(4 * frame, dims=-1) for frame in range(count)])


def blob(place: int, side: int = SIDE) -> Tensor:
    mask = torch.full((side, side), -5.0)
    mask[side // 4 : side // 2, place : place + side // 4] = 5.0
    return mask


def test_known_frames_come_back_as_given(model: TransformersMasks) -> None:
    known = {0: blob(2), 3: blob(9), 4: torch.randn(SIDE, SIDE)}
    masks = propagate(model, film(7), known)
    assert (masks.shape, masks.dtype) == ((7, SIDE, SIDE), torch.float32)
    for frame, logit in known.items():
        assert torch.equal(masks[frame], logit)
    assert torch.isfinite(masks).all()


def test_where_all_is_known_nothing_is_computed(model: TransformersMasks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "encode", lambda *_: pytest.fail("encoded a frame"))
    known = {frame: torch.randn(SIDE, SIDE) for frame in range(5)}
    assert torch.equal(propagate(model, film(5), known), torch.stack(list(known.values())))


def test_the_mask_matters_and_so_does_the_picture(model: TransformersMasks) -> None:
    usual = propagate(model, film(4), {0: blob(2)})
    assert (usual[1:] - propagate(model, film(4), {0: blob(20)})[1:]).abs().amax((1, 2)).min() > 1e-4
    assert (usual[1:] - propagate(model, film(5)[1:], {0: blob(2)})[1:]).abs().amax((1, 2)).min() > 1e-4


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_a_stretch_is_independent_of_the_others(model: TransformersMasks, batch: int) -> None:
    pixels = film(12)
    known = {0: blob(2), 2: blob(4), 7: blob(6), 8: blob(8)}
    together = propagate(model, pixels, known, batch=batch)
    for start, end in ((0, 2), (2, 7), (7, 8), (8, 12)):
        alone = propagate(model, pixels[start:end], {0: known[start]})
        torch.testing.assert_close(together[start:end], alone, atol=1e-5, rtol=1e-5)
    assert torch.equal(together, propagate(model, pixels, known, batch=batch)), "not deterministic"


def test_memory_is_bounded(model: TransformersMasks, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    attend = model.sam2.memory_attention.forward

    def watched(*, memory: Tensor, **rest: Any) -> Tensor:
        lengths.append(len(memory))
        return attend(memory=memory, **rest)

    monkeypatch.setattr(model.sam2.memory_attention, "forward", watched)
    masks = propagate(model, film(40), {0: blob(2)})
    assert torch.isfinite(masks).all()
    grid, splits = (SIZE // 16) ** 2, model.width // 64
    assert lengths[0] == grid + splits
    assert max(lengths) == lengths[-1] == 7 * grid + 16 * splits
    assert lengths[20:] == [max(lengths)] * 19


@pytest.mark.parametrize("present", [True, False])
def test_tracks_as_transformers_does(model: TransformersMasks, monkeypatch: pytest.MonkeyPatch, present: bool) -> None:
    """Compare with a session of transformers in float64, over 20 frames, more than each memory keeps.

    transformers takes the pointer of a mask prompt from the best of three masks, and rounds memories. This test changes both,
    because Meta's code takes the pointer from the single mask, and this project's code does not round.
    """
    double = copy.deepcopy(model).to(torch.float64)
    frames, mask = film(20).double(), blob(5) if present else blob(5) - 10
    ours = propagate(double, frames, {0: mask})

    sam2 = double.sam2
    theirs_alone = sam2._single_frame_forward

    def single(**inputs: Any) -> Any:
        return theirs_alone(**({"multimask_output": False} if inputs.get("input_masks") is not None else {}) | inputs)

    monkeypatch.setattr(sam2, "_single_frame_forward", single)
    session = Sam2VideoInferenceSession(video=frames, video_height=SIZE, video_width=SIZE, dtype=torch.float64)
    full = torch.nn.functional.interpolate(mask[None, None], size=(SIZE, SIZE), mode="bilinear") > 0
    session.add_mask_inputs(session.obj_id_to_idx(1), 0, full.double())
    session.obj_with_new_inputs = [1]
    monkeypatch.setattr(torch, "bfloat16", torch.float64)  # the type to which transformers rounds memories
    theirs = [output.pred_masks[0, 0] for output in sam2.propagate_in_video_iterator(session, start_frame_idx=0)]
    torch.testing.assert_close(ours[1:], torch.stack(theirs[1:]).float(), atol=1e-5, rtol=1e-5)


def test_an_absent_object_is_carried_as_absent(model: TransformersMasks) -> None:
    head = model.sam2.mask_decoder.pred_obj_score_head.proj_out
    with torch.no_grad():
        head.bias.sub_(100)
        try:
            masks = propagate(model, film(3), {0: blob(2)})
        finally:
            head.bias.add_(100)
    assert (masks[1:] == -1024).all()


def test_masks_of_another_size_are_resized(model: TransformersMasks) -> None:
    masks = propagate(model, film(1), {0: blob(4, side=2 * SIDE)})
    assert masks.shape == (1, SIDE, SIDE)
    assert masks[0, SIDE // 4 + 2, 4] == 5.0


def test_half_precision(model: TransformersMasks) -> None:
    half = copy.deepcopy(model).to(torch.bfloat16)
    masks = propagate(half, film(4), {0: blob(2)})
    assert masks.dtype == torch.float32
    assert torch.isfinite(masks).all()


@pytest.mark.parametrize(
    ("known", "says"),
    [
        ({}, "the mask of frame 0 must be known"),
        ({2: blob(0)}, r"frames with known masks: \[2\]"),
        ({0: blob(0), 3: blob(0)}, "known has a mask for frame 3, but there are only 3 frames"),
        ({0: blob(0)[None]}, r"must be \(H, W\), not \(1, 32, 32\)"),
    ],
)
def test_what_cannot_be_propagated(model: TransformersMasks, known: dict[int, Tensor], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        propagate(model, film(3), known)


def test_memories_of_other_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="memory_channels is 16"):
        propagate(random_transformers(), film(1), {0: blob(0)})


def test_not_in_training(model: TransformersMasks) -> None:
    model.train()
    try:
        with pytest.raises(ValueError, match="eval"):
            propagate(model, film(1), {0: blob(0)})
    finally:
        model.eval()
