"""SAM2's video memory: carry masks from the sampled frames to the frames between them.

A stretch is a known frame and the frames up to the next known one. Its known mask is a mask prompt, which gives the first
memory; the following frames are tracked one after the other, each from that memory and the latest tracked ones. Stretches know
nothing of one another, so they run side by side, and a mask depends neither on the batch nor on frames outside its stretch.
The steps are those of transformers' Sam2VideoModel, which does one object and one stretch at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vadcli.detectors.lavida.masks import NO_OBJECT_LOGIT, ImageFeatures, TransformersMasks, with_padding_point
from vadcli.detectors.lavida.sam2_sizes import MEMORY_CHANNELS
from vadcli.errors import WeightsError


@dataclass(frozen=True)
class Memory:
    """What is kept of one frame of B stretches.

    Attributes:
        features: (h·w, B, C_mem).
        position: their position encoding, (h·w, B, C_mem).
        pointer: the object in one vector, (B, 256).
    """

    features: Tensor
    position: Tensor
    pointer: Tensor

    def first(self, count: int) -> Memory:
        """The first `count` stretches."""
        return Memory(self.features[:, :count], self.position[:, :count], self.pointer[:count])


class MemoryBank:
    """A stretch's known frame, which stays, and the latest tracked ones, as far back as SAM2 reads anything of them."""

    def __init__(self, known: Memory, *, pointers: int) -> None:
        self.known = known
        self.tracked: deque[Memory] = deque(maxlen=pointers - 1)  # the latest last; pointers reach farther back than features
        self.frames = 1

    def add(self, memory: Memory) -> None:
        """Remember the next frame."""
        self.tracked.append(memory)
        self.frames += 1

    def narrow(self, count: int) -> None:
        """Forget all stretches but the first `count`; the others have ended."""
        self.known = self.known.first(count)
        self.tracked = deque((memory.first(count) for memory in self.tracked), maxlen=self.tracked.maxlen)


@torch.no_grad()
def propagate(model: TransformersMasks, pixels: Tensor, known: Mapping[int, Tensor], *, batch: int = 8) -> Tensor:
    """Mask logits of every frame, from those of some.

    Args:
        model: in evaluation mode, as SAM2's memory has dropout.
        pixels: (N, 3, S, S) normalised, in order of time.
        known: frame number -> mask logits (H, W) of any size; frame 0 must be among them. Where they are above 0 is the object.
        batch: stretches side by side; the result doesn't depend on it, memory does.

    Returns:
        (N, 4h, 4w) float32. Known frames have their own logits, resized where their size differs; the others have what the
        decoder says, -1024 throughout where the object is gone.

    Raises:
        WeightsError: the checkpoint came without a video memory.
        ValueError: frame 0 isn't known, a number is out of range, a mask isn't (H, W), or the model can't remember: it is in
            training mode, or has memories of other than 64 channels.
    """
    _check(model, len(pixels), known)
    side = model.image_size // 4
    masks = torch.empty(len(pixels), side, side, device=pixels.device)
    for frame, logit in known.items():
        masks[frame] = _resize(logit.to(pixels.device)[None, None], side)[0, 0]
    starts = sorted(known)
    lengths = {start: end - start for start, end in zip(starts, [*starts[1:], len(pixels)], strict=True)}
    stretches = sorted(
        (start for start in starts if lengths[start] > 1), key=lambda start: -lengths[start]
    )  # the longest first
    for first in range(0, len(stretches), batch):
        side_by_side = stretches[first : first + batch]
        _track(model, pixels, masks, [range(start, start + lengths[start]) for start in side_by_side], known)
    return masks


def _track(
    model: TransformersMasks, pixels: Tensor, masks: Tensor, stretches: list[range], known: Mapping[int, Tensor]
) -> None:
    """Write the masks of the frames behind each stretch's first; stretches come by falling length."""
    starts = [stretch.start for stretch in stretches]
    prompts = torch.cat([_resize(known[start].to(pixels.device)[None, None], model.image_size) for start in starts]) > 0
    memory = _remember_known(model, model.encode(pixels[starts]), prompts)
    bank = MemoryBank(memory, pointers=int(model.sam2.config.max_object_pointers_in_encoder))
    for step in range(1, len(stretches[0])):
        frames = [stretch[step] for stretch in stretches if len(stretch) > step]
        bank.narrow(len(frames))
        features = model.encode(pixels[frames])
        masks[frames], memory = _track_frame(model, features, bank)
        bank.add(memory)


def _remember_known(model: TransformersMasks, features: ImageFeatures, masks: Tensor) -> Memory:
    """Boolean masks (B, 1, S, S) as prompts -> their memory.

    The object pointer comes from the token of the single mask, as in Meta's code; transformers takes the best of the three.
    """
    binary = masks.to(features.embedding.dtype)
    sparse = _no_points(model, len(features))
    dense = model.sam2.prompt_encoder.mask_embed(model.sam2.mask_downsample(binary))  # (B, 256, h, w)
    _, _, tokens, object_logit = model.heads(features.embedding, features.high, sparse, dense, multimask=False)
    present = masks.flatten(1).any(dim=1)
    pointer = _pointer(model, tokens[:, 0], present & (object_logit > 0))
    return _remember(model, features, binary, present, pointer)


def _track_frame(model: TransformersMasks, features: ImageFeatures, bank: MemoryBank) -> tuple[Tensor, Memory]:
    """The next frame of B stretches -> its mask logits (B, 4h, 4w) float32, its memory."""
    multimask = bool(model.sam2._use_multimask(False, None))
    mask_logit, iou, tokens, object_logit = model.heads(
        _conditioned(model, features, bank),
        features.high,
        _no_points(model, len(features)),
        model.sam2.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1),
        multimask=multimask,
    )
    row, best, present = torch.arange(len(iou), device=iou.device), iou.argmax(dim=1), object_logit > 0
    chosen = mask_logit[row, best].float().masked_fill(~present[:, None, None], NO_OBJECT_LOGIT)  # (B, 4h, 4w)
    pointer = _pointer(model, tokens[row, best], present)
    soft = _resize(chosen[:, None], model.image_size).to(features.embedding.dtype).sigmoid()
    return chosen, _remember(model, features, soft, present, pointer)


def _conditioned(model: TransformersMasks, features: ImageFeatures, bank: MemoryBank) -> Tensor:
    """F with the memory attended to, (B, 256, h, w)."""
    frames, channels, height, width = features.embedding.shape
    memory, position, pointers = _memory_tokens(model, bank, frames)
    attended: Tensor = model.sam2.memory_attention(
        current_vision_features=_tokens(features.embedding),
        current_vision_position_embeddings=_tokens(features.position),
        memory=memory,
        memory_posision_embeddings=position,  # so spelt in transformers
        num_object_pointer_tokens=pointers,
    )  # (1, B, h·w, 256)
    return attended.reshape(frames, height * width, channels).transpose(1, 2).reshape(frames, channels, height, width)


def _memory_tokens(model: TransformersMasks, bank: MemoryBank, stretches: int) -> tuple[Tensor, Tensor, int]:
    """What the attention reads: memories and their positions (L, B, C_mem), the last so many of which are object pointers."""
    sam2 = model.sam2
    time = sam2.memory_temporal_positional_encoding  # (7, 1, 1, C_mem), the last for the known frame
    ages = range(min(len(bank.tracked), int(sam2.num_maskmem) - 1), 0, -1)  # in frames, the oldest first
    recent = [(bank.tracked[-age], time[age - 1]) for age in ages]
    spatial = [(bank.known, time[-1]), *recent]
    pointer_ages = [bank.frames, *range(1, len(bank.tracked) + 1)]
    pointers = [bank.known.pointer, *(memory.pointer for memory in reversed(bank.tracked))]
    most = int(sam2.config.max_object_pointers_in_encoder)
    vectors, vector_position = sam2._process_object_pointers(
        pointer_ages, pointers, most, stretches, model.width, bank.known.pointer.device
    )
    memory = torch.cat([*(memory.features for memory, _ in spatial), vectors])
    position = torch.cat([*(memory.position + when for memory, when in spatial), vector_position])
    return memory, position, len(vectors)


def _remember(model: TransformersMasks, features: ImageFeatures, mask: Tensor, present: Tensor, pointer: Tensor) -> Memory:
    """A frame and its mask (B, 1, S, S), 0 to 1 -> its memory.

    SAM2 rounds memories to bfloat16. Here they stay as they are: a rounding makes the last bit of a sum, which changes with the
    batch, visible in the masks of the frames that follow.
    """
    sam2 = model.sam2
    scaled = mask * sam2.config.sigmoid_scale_for_mem_enc + sam2.config.sigmoid_bias_for_mem_enc
    encoded, position = sam2.memory_encoder(features.embedding, scaled)  # (B, C_mem, h, w) each
    if sam2.occlusion_spatial_embedding_parameter is not None:
        absent = (~present).to(encoded.dtype).view(-1, 1, 1, 1)
        encoded = encoded + absent * sam2.occlusion_spatial_embedding_parameter.view(1, -1, 1, 1)
    return Memory(_tokens(encoded), _tokens(position), pointer)


def _pointer(model: TransformersMasks, token: Tensor, present: Tensor) -> Tensor:
    """Mask tokens (B, 256) -> object pointers (B, 256), the one for "no object" where there is none."""
    pointer: Tensor = torch.where(present[:, None], model.sam2.object_pointer_proj(token), model.sam2.no_object_pointer)
    return pointer


def _no_points(model: TransformersMasks, frames: int) -> Tensor:
    """The prompt tokens of a frame that nobody points at: the padding point, padded, (B, 2, 256)."""
    padding = model.sam2.prompt_encoder.not_a_point_embed.weight
    return with_padding_point(padding.expand(frames, 1, -1), padding)


def _tokens(image: Tensor) -> Tensor:
    """(B, C, h, w) -> (h·w, B, C)."""
    return image.flatten(2).permute(2, 0, 1)


def _resize(masks: Tensor, side: int) -> Tensor:
    """(B, 1, H, W) logits -> (B, 1, side, side) float32; those of that size stay as they are."""
    masks = masks.float()
    if masks.shape[-2:] == (side, side):
        return masks
    return functional.interpolate(masks, size=(side, side), mode="bilinear", align_corners=False)


def _check(model: TransformersMasks, frames: int, known: Mapping[int, Tensor]) -> None:
    if not model.has_memory:
        hint = "scan without --propagate-masks, or build the folder from a SAM2.1 checkpoint for video"
        raise WeightsError("the sam2 part is a checkpoint for images: it has no memory to propagate masks by", hint=hint)
    if model.training:
        raise ValueError("masks are propagated in evaluation mode: call eval() on the model first")
    channels = int(model.sam2.mem_dim)
    if channels != MEMORY_CHANNELS:
        raise ValueError(
            f"memory_channels {channels}: SAM2's memory attention reads memories of {MEMORY_CHANNELS} channels alone"
        )
    if 0 not in known:
        raise ValueError(f"frame 0 must be known, so that there is a mask to carry; known are {sorted(known)}")
    for frame, logit in known.items():
        if not 0 <= frame < frames:
            raise ValueError(f"frame {frame} is known, but there are {frames} frames")
        if logit.ndim != 2:
            raise ValueError(f"the mask of frame {frame} must be (H, W), not {tuple(logit.shape)}")
