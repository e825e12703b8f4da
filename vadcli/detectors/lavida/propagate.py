"""Propagates masks from the sampled frames to the frames between them with SAM2's video memory.

A span is a known frame and all frames before the next known one. SAM2 gets the known mask as a mask prompt and makes the first
memory from it. The following frames are tracked one by one, each from that memory and those of the latest tracked frames.
Spans run in parallel: a mask depends neither on the batch nor on frames outside its span. The steps are those of
Sam2VideoModel in transformers, which processes one object and one span at a time.
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
    """The memory of one frame in each of B spans.

    Attributes:
        features: (h·w, B, C_mem).
        position: position encoding of the features, (h·w, B, C_mem).
        pointer: SAM2's object pointer, one vector per object, (B, 256).
    """

    features: Tensor
    position: Tensor
    pointer: Tensor

    def first(self, count: int) -> Memory:
        """Return the memory of the first `count` spans."""
        return Memory(self.features[:, :count], self.position[:, :count], self.pointer[:count])


class MemoryBank:
    """The memories of the known frame and of the latest tracked frames, as many as SAM2 uses."""

    def __init__(self, known: Memory, *, pointers: int) -> None:
        self.known = known
        # The latest memory is last. SAM2 uses the object pointers of many frames, but the features of a few frames only.
        self.tracked: deque[Memory] = deque(maxlen=pointers - 1)
        self.frames = 1

    def add(self, memory: Memory) -> None:
        """Add the memory of the next frame."""
        self.tracked.append(memory)
        self.frames += 1

    def narrow(self, count: int) -> None:
        """Keep only the first `count` spans; the others have ended."""
        self.known = self.known.first(count)
        self.tracked = deque((memory.first(count) for memory in self.tracked), maxlen=self.tracked.maxlen)


@torch.no_grad()
def propagate(model: TransformersMasks, pixels: Tensor, known: Mapping[int, Tensor], *, batch: int = 8) -> Tensor:
    """Return the mask logits of every frame, from those of some frames.

    Args:
        model: must be in evaluation mode, because SAM2's memory has dropout.
        pixels: (N, 3, S, S) normalised, in order of time.
        known: the known mask logits (H, W) of any size, by frame number. Logits are above 0 on the
            object. It must contain frame 0.
        batch: spans processed in parallel; it changes memory use, not the result.

    Returns:
        (N, 4h, 4w) float32. Known frames keep their logits, resized if necessary; the others get
        the decoder's logits, which are all -1024 if the object is not in the frame.

    Raises:
        WeightsError: the checkpoint has no video memory.
        ValueError: frame 0 is not known, a frame number is out of range, a mask is not (H, W), the
            model is in training mode, or its memories do not have 64 channels.
    """
    if not model.has_memory:
        hint = "scan without --propagate-masks, or build the folder from a SAM2.1 checkpoint for video"
        raise WeightsError("the sam2 part is a checkpoint for images: it has no memory to propagate masks", hint=hint)
    if model.training:
        raise ValueError("masks can be propagated only in evaluation mode: call eval() on the model first")
    if int(model.sam2.mem_dim) != MEMORY_CHANNELS:
        raise ValueError(f"memory_channels is {int(model.sam2.mem_dim)}; SAM2's memory attention needs {MEMORY_CHANNELS}")
    if 0 not in known:
        raise ValueError(f"frame 0 must be known, so that there is a mask to propagate; known: {sorted(known)}")
    for frame, logit in known.items():
        if not 0 <= frame < len(pixels):
            raise ValueError(f"frame {frame} is known, but there are only {len(pixels)} frames")
        if logit.ndim != 2:
            raise ValueError(f"the mask of frame {frame} must be (H, W), not {tuple(logit.shape)}")
    side = model.image_size // 4
    masks = torch.empty(len(pixels), side, side, device=pixels.device)
    for frame, logit in known.items():
        masks[frame] = _resize(logit.to(pixels.device)[None, None], side)[0, 0]
    starts = sorted(known)
    lengths = {start: end - start for start, end in zip(starts, [*starts[1:], len(pixels)], strict=True)}
    spans = sorted((start for start in starts if lengths[start] > 1), key=lambda start: -lengths[start])  # longest first
    for first in range(0, len(spans), batch):
        together = [range(start, start + lengths[start]) for start in spans[first : first + batch]]
        _track(model, pixels, masks, together, known)
    return masks


def _track(model: TransformersMasks, pixels: Tensor, masks: Tensor, spans: list[range], known: Mapping[int, Tensor]) -> None:
    """Write the masks of all frames after the first of each span; the longest span comes first."""
    starts = [span.start for span in spans]
    prompts = torch.cat([_resize(known[start].to(pixels.device)[None, None], model.image_size) for start in starts]) > 0
    features = model.encode(pixels[starts])
    binary = prompts.to(features.embedding.dtype)  # (B, 1, S, S)
    dense = model.sam2.prompt_encoder.mask_embed(model.sam2.mask_downsample(binary))  # (B, 256, h, w)
    no_points = _no_points(model, len(starts))
    _, _, tokens, object_logit = model.heads(features.embedding, features.high, no_points, dense, multimask=False)
    present = prompts.flatten(1).any(dim=1)
    # As in Meta's code, the object pointer comes from the token of the single mask. transformers uses the best of three masks.
    pointer = _pointer(model, tokens[:, 0], present & (object_logit > 0))
    memory = _remember(model, features, binary, present, pointer)
    bank = MemoryBank(memory, pointers=int(model.sam2.config.max_object_pointers_in_encoder))
    for step in range(1, len(spans[0])):
        frames = [span[step] for span in spans if len(span) > step]
        bank.narrow(len(frames))
        features = model.encode(pixels[frames])
        masks[frames], memory = _track_frame(model, features, bank)
        bank.add(memory)


def _track_frame(model: TransformersMasks, features: ImageFeatures, bank: MemoryBank) -> tuple[Tensor, Memory]:
    """Return the mask logits (B, 4h, 4w) float32 and the memory of the next frame of B spans."""
    mask_logit, iou, tokens, object_logit = model.heads(
        _conditioned(model, features, bank),
        features.high,
        _no_points(model, len(features)),
        model.sam2.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1),
        multimask=bool(model.sam2._use_multimask(False, None)),
    )
    row, best, present = torch.arange(len(iou), device=iou.device), iou.argmax(dim=1), object_logit > 0
    # (B, 4h, 4w)
    chosen = mask_logit[row, best].float().masked_fill(~present[:, None, None], NO_OBJECT_LOGIT)
    pointer = _pointer(model, tokens[row, best], present)
    soft = _resize(chosen[:, None], model.image_size).to(features.embedding.dtype).sigmoid()
    return chosen, _remember(model, features, soft, present, pointer)


def _conditioned(model: TransformersMasks, features: ImageFeatures, bank: MemoryBank) -> Tensor:
    """Return F after attention to the memories, (B, 256, h, w)."""
    sam2 = model.sam2
    frames, channels, height, width = features.embedding.shape
    time = sam2.memory_temporal_positional_encoding  # (7, 1, 1, C_mem); the last one is for the known frame
    ages = range(min(len(bank.tracked), int(sam2.num_maskmem) - 1), 0, -1)  # oldest first
    recent = [(bank.tracked[-age], time[age - 1]) for age in ages]
    spatial = [(bank.known, time[-1]), *recent]
    pointer_ages = [bank.frames, *range(1, len(bank.tracked) + 1)]
    pointers = [bank.known.pointer, *(memory.pointer for memory in reversed(bank.tracked))]
    most = int(sam2.config.max_object_pointers_in_encoder)
    vectors, vector_position = sam2._process_object_pointers(
        pointer_ages, pointers, most, frames, model.width, bank.known.pointer.device
    )
    attended: Tensor = sam2.memory_attention(
        current_vision_features=_tokens(features.embedding),
        current_vision_position_embeddings=_tokens(features.position),
        memory=torch.cat([*(memory.features for memory, _ in spatial), vectors]),  # (L, B, C_mem)
        # this is how transformers spells the name
        memory_posision_embeddings=torch.cat([*(memory.position + when for memory, when in spatial), vector_position]),
        num_object_pointer_tokens=len(vectors),
    )  # (1, B, h·w, 256)
    return attended.reshape(frames, height * width, channels).transpose(1, 2).reshape(frames, channels, height, width)


def _remember(model: TransformersMasks, features: ImageFeatures, mask: Tensor, present: Tensor, pointer: Tensor) -> Memory:
    """Return the memory of frames whose masks are (B, 1, S, S), 0 to 1."""
    # SAM2 rounds memories to bfloat16; this code does not. The last bit of a sum depends on the batch size, and rounding would
    # turn this into visible changes in the masks of later frames.
    sam2 = model.sam2
    scaled = mask * sam2.config.sigmoid_scale_for_mem_enc + sam2.config.sigmoid_bias_for_mem_enc
    encoded, position = sam2.memory_encoder(features.embedding, scaled)  # (B, C_mem, h, w) each
    if sam2.occlusion_spatial_embedding_parameter is not None:
        absent = (~present).to(encoded.dtype).view(-1, 1, 1, 1)
        encoded = encoded + absent * sam2.occlusion_spatial_embedding_parameter.view(1, -1, 1, 1)
    return Memory(_tokens(encoded), _tokens(position), pointer)


def _pointer(model: TransformersMasks, token: Tensor, present: Tensor) -> Tensor:
    """Return object pointers (B, 256) of mask tokens (B, 256), or SAM2's "no object" pointer."""
    pointer: Tensor = torch.where(present[:, None], model.sam2.object_pointer_proj(token), model.sam2.no_object_pointer)
    return pointer


def _no_points(model: TransformersMasks, frames: int) -> Tensor:
    """Return the prompt tokens of frames without point prompts: two padding points (B, 2, 256)."""
    padding = model.sam2.prompt_encoder.not_a_point_embed.weight
    return with_padding_point(padding.expand(frames, 1, -1), padding)


def _tokens(image: Tensor) -> Tensor:
    """Make one token per pixel: (B, C, h, w) -> (h·w, B, C)."""
    return image.flatten(2).permute(2, 0, 1)


def _resize(masks: Tensor, side: int) -> Tensor:
    """Resize logits (B, 1, H, W) to (B, 1, side, side) float32 if they have another size."""
    masks = masks.float()
    if masks.shape[-2:] == (side, side):
        return masks
    return functional.interpolate(masks, size=(side, side), mode="bilinear", align_corners=False)
