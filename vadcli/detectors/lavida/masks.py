"""SAM2's image encoder, mask decoder (section 3.8 of the paper) and video memory.

`TransformersMasks` processes all frames of a batch in one call, without the memory. From normalised pixels and one prompt per
frame, it makes one object score and one mask per frame. SAM2 treats each frame as the first frame of a video, so one frame does
not influence another. `sam2.PackageMasks` does the same with Meta's package.

`propagate` uses the video memory to propagate masks from the sampled frames to the frames between them. A known frame is a
frame whose mask is known. A span is a known frame and all frames before the next known frame. SAM2 gets the known mask as a
mask prompt, and makes a first memory from this mask. Then SAM2 tracks the following frames one by one, with the first memory
and the memories of the latest tracked frames. Several spans are processed in parallel: a mask depends neither on the batch nor
on frames outside its span. The steps are the same as in Sam2VideoModel of the library `transformers`, which processes one
object and one span at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from vadcli.detectors.mllm.qwen import ExactBuffers, normalise, resize
from vadcli.errors import WeightsError

MaskGate = Literal["hard", "soft", "off"]
STRIDE_PX = 16  # stride of the embedding F; masks have a quarter of this stride
MEMORY_CHANNELS = 64  # the library `transformers` always needs 64 channels here, whatever the config says
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
NO_OBJECT_LOGIT = -1024.0  # SAM2 writes this into the mask of an absent object

# Levels of the feature pyramid network (FPN): (N, 256, 4h, 4w), (N, 256, 2h, 2w), (N, 256, h, w)
Pyramid = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class ImageFeatures:
    """The output of the image encoder for N frames; h = w = image size / 16.

    Attributes:
        embedding: F, (N, 256, h, w), without SAM2's embedding for "no memory". The projector needs F in this form; `decode`
            adds the embedding.
        position: sine position encoding of F, (1, 256, h, w).
        high: F_s0 (N, 32, 4h, 4w) and F_s1 (N, 64, 2h, 2w), finer features for the mask decoder.
    """

    embedding: Tensor
    position: Tensor
    high: tuple[Tensor, Tensor]

    def __len__(self) -> int:
        return len(self.embedding)

    def __getitem__(self, rows: slice | Tensor) -> ImageFeatures:
        """Return the features of some frames. `rows` is a slice, indices (K,) or flags (N,)."""
        return ImageFeatures(self.embedding[rows], self.position, (self.high[0][rows], self.high[1][rows]))

    @staticmethod
    def cat(parts: list[ImageFeatures]) -> ImageFeatures:
        """Join the frames of all parts, in order. If there is only one part, it is returned without a copy."""
        if len(parts) == 1:
            return parts[0]
        high = (torch.cat([p.high[0] for p in parts]), torch.cat([p.high[1] for p in parts]))
        return ImageFeatures(torch.cat([p.embedding for p in parts]), parts[0].position, high)


@dataclass(frozen=True)
class MaskOutput:
    """The output of the mask decoder for N frames, in float32.

    Each frame has M masks: 1, or 3 with `multimask`.

    Attributes:
        object_logit: (N,), above 0 if the frame shows something to segment.
        mask_logit: (N, M, 4h, 4w), before `gate` changes the logits.
        iou: (N, M), the decoder's estimate of the quality of each mask, from 0 (bad) to 1 (exact).
    """

    object_logit: Tensor
    mask_logit: Tensor
    iou: Tensor


class MaskModel(Protocol):
    """An image encoder with a mask decoder.

    Attributes:
        image_size: S, the side of the input square in pixels.
        width: number of channels of F and of a prompt.
    """

    image_size: int
    width: int

    def encode(self, pixels: Tensor, *, chunk: int | None = None) -> ImageFeatures:
        """Encode (N, 3, S, S) normalised pixels, `chunk` frames at a time, or all at once if `chunk` is None."""

    def decode(
        self, features: ImageFeatures, prompt: Tensor, *, multimask: bool = False, dense: Tensor | None = None
    ) -> MaskOutput:
        """Decode one mask per frame, or three masks per frame with `multimask`.

        Args:
            features: the features of N frames.
            prompt: one prompt per frame, (N, 1, width).
            multimask: True for three masks per frame.
            dense: (N, width, h, w), numbers to add to SAM2's embedding for "no mask"; None to add nothing.
        """


def sam_pixels(frames: Tensor, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return frames as normalised squares for SAM2. The aspect ratio of the frames is not kept.

    Args:
        frames: (N, H, W, 3) uint8.
        size: side of the square in pixels.
        dtype: dtype of the result.

    Returns:
        (N, 3, size, size).
    """
    pixels = resize(frames, size, size, mode="bilinear")
    return normalise(pixels, IMAGENET_MEAN, IMAGENET_STD).to(dtype)


class TransformersMasks(ExactBuffers):
    """SAM2 of the library `transformers`.

    Parameters have the names of Sam2VideoModel and the prefix `sam2.`.

    Everything runs in the dtype of the wrapped model, except position encodings, which are computed
    in float32 and then cast. This class never switches gradients off. If you freeze the image encoder
    (`sam2.vision_encoder`), the two layers that `features` applies to the encoder's output can still be trained.

    Args:
        sam2: the Sam2VideoModel to wrap. The model is changed in place: it computes position encodings with `SinePosition`,
            and its prompt encoder gets the position matrix of `shared_image_embedding`.

    Attributes:
        has_memory: False if the weights have no video memory, so that masks cannot be propagated.
    """

    def __init__(self, sam2: Any) -> None:
        super().__init__()
        self.sam2: Any = sam2
        self.has_memory = bool(getattr(sam2, "has_memory", True))
        self.image_size = int(sam2.config.image_size)
        self.width = int(sam2.config.vision_config.fpn_hidden_size)
        grid = self.image_size // STRIDE_PX
        sam2.vision_encoder.neck.position_encoding = SinePosition(self.width, finest=grid)
        sam2.memory_encoder.position_encoding = SinePosition(int(sam2.config.memory_encoder_output_channels), finest=grid)
        with torch.no_grad():
            sam2.prompt_encoder.shared_embedding.positional_embedding.copy_(sam2.shared_image_embedding.positional_embedding)
        self.train(self.training)

    def train(self, mode: bool = True) -> TransformersMasks:
        """Set the mode as usual, but keep the mask decoder in evaluation mode.

        In training mode, the decoder would not replace unstable masks (see `decode`). This is the only difference between the
        modes.
        """
        super().train(mode)
        self.sam2.mask_decoder.training = False
        return self

    def encode(self, pixels: Tensor, *, chunk: int | None = None) -> ImageFeatures:
        """See MaskModel.encode."""
        return ImageFeatures.cat(
            [self.features(self.pyramid(part)) for part in torch.split(pixels, chunk or max(1, len(pixels)))]
        )

    def pyramid(self, pixels: Tensor) -> Pyramid:
        """Turn (N, 3, S, S) normalised pixels into FPN levels at strides 4, 8 and 16, not yet projected."""
        fine, middle, embedding = self.sam2.vision_encoder(pixels, return_dict=True).fpn_hidden_states
        return fine, middle, embedding

    def features(self, levels: Pyramid) -> ImageFeatures:
        """Turn FPN levels into the features that the decoder and the projector read.

        The two convolutions that this method applies are layers of the decoder, and are trained with the decoder.
        """
        fine, middle, embedding = levels
        high = (self.sam2.mask_decoder.conv_s0(fine), self.sam2.mask_decoder.conv_s1(middle))
        position = self.sam2.vision_encoder.neck.position_encoding(embedding[:1].shape, embedding.device, embedding.dtype)
        return ImageFeatures(embedding, position, high)

    def decode(
        self, features: ImageFeatures, prompt: Tensor, *, multimask: bool = False, dense: Tensor | None = None
    ) -> MaskOutput:
        """See MaskModel.decode.

        Without `multimask`, SAM2 replaces an unstable mask with the best of its three masks. A mask is unstable if a small
        change of the threshold changes its area a lot.
        """
        embedding = features.embedding + self.sam2.no_memory_embedding.view(1, -1, 1, 1)
        sparse = with_padding_point(prompt.to(embedding.dtype), self.sam2.prompt_encoder.not_a_point_embed.weight)
        no_mask = self.sam2.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1)
        mask_prompt = no_mask if dense is None else no_mask + dense.to(embedding.dtype)
        mask_logit, iou, _, object_logit = self.heads(embedding, features.high, sparse, mask_prompt, multimask=multimask)
        return MaskOutput(object_logit.float(), mask_logit.float(), iou.float())

    def heads(
        self, embedding: Tensor, high: tuple[Tensor, Tensor], sparse: Tensor, dense: Tensor, *, multimask: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Run the decoder alone, in the model's dtype.

        Args:
            embedding: F (N, 256, h, w), to which the caller has added the embedding for "no memory" or applied the attention
                to memories.
            high: the finer features F_s0 and F_s1.
            sparse: (N, P, 256), P prompt tokens per frame.
            dense: (N or 1, 256, h or 1, w or 1), the mask prompt.
            multimask: True for three masks per frame instead of one.

        Returns:
            Mask logits (N, M, 4h, 4w), IoU estimates (N, M), mask tokens (N, M, 256) and object
            logits (N,).
        """
        mask_logit, iou, tokens, object_logit = self.sam2.mask_decoder(
            image_embeddings=embedding,
            image_positional_embeddings=self.image_position(embedding),
            sparse_prompt_embeddings=sparse.unsqueeze(1),  # (N, 1, P, 256): one prompt per frame
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
            high_resolution_features=list(high),
        )
        return mask_logit[:, 0], iou[:, 0], tokens[:, 0], object_logit[:, 0, 0]

    def image_position(self, embedding: Tensor) -> Tensor:
        """Return the decoder's position encoding (1, 256, h, w) for F (N, 256, h, w)."""
        height, width = embedding.shape[-2:]
        device = embedding.device
        y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
        x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
        # (h, w, 2)
        grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1)
        position: Tensor = self.sam2.shared_image_embedding(grid)  # (h, w, 256) float32
        return position.permute(2, 0, 1).unsqueeze(0).to(embedding.dtype)


class SinePosition(nn.Module):
    """SAM2's sine position encoding, computed in float32 for one frame and then cast.

    The library `transformers` computes the encoding in the model's dtype, and again for every frame and level.

    Args:
        width: channels of the encoding.
        finest: height of the largest grid whose encoding is used. The result for larger grids is not used, so all its values
            are 0, which saves memory.
    """

    def __init__(self, width: int, *, finest: int) -> None:
        super().__init__()
        self.width = width
        self.finest = finest

    def forward(self, shape: torch.Size, device: torch.device, dtype: torch.dtype, mask: None = None) -> Tensor:
        """Return the encoding (N, width, h, w) for features of `shape` (N, C, h, w).

        The library `transformers` also passes `mask`, which is ignored here.
        """
        frames, _, height, width = shape
        if height > self.finest:
            return torch.zeros(1, dtype=dtype, device=device).expand(frames, self.width, height, width)
        channel = torch.arange(self.width // 2, device=device, dtype=torch.float32)
        period = 10000 ** (2 * torch.div(channel, 2, rounding_mode="floor") / (self.width // 2))
        rows = self._encode(height, period)[:, None].expand(height, width, -1)
        columns = self._encode(width, period)[None].expand(height, width, -1)
        position = torch.cat([rows, columns], dim=-1).permute(2, 0, 1)  # (width, h, w)
        return position.to(dtype).expand(frames, -1, -1, -1)

    @staticmethod
    def _encode(length: int, period: Tensor) -> Tensor:
        place = torch.arange(1, length + 1, device=period.device, dtype=torch.float32)
        angle = (place / (length + 1e-6) * 2 * torch.pi)[:, None] / period  # (length, width / 2)
        return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=-1).flatten(1)


def with_padding_point(prompt: Tensor, padding: Tensor) -> Tensor:
    """Put SAM2's "not a point" token (1, 256) before each prompt (N, 1, 256). Return (N, 2, 256)."""
    return torch.cat([padding.unsqueeze(0).expand(len(prompt), -1, -1), prompt], dim=1)


def gate(output: MaskOutput, rule: MaskGate) -> Tensor:
    """Return the mask logits (N, M, H, W), lowered in frames that probably show no object.

    Args:
        output: the decoder's output.
        rule: with `hard` (SAM2's rule), all mask logits of a frame become -1024 if its object logit is 0 or less. `soft`
            multiplies the probability of each pixel by the probability of an object in the frame. `off` changes nothing.
    """
    masks, score = output.mask_logit, output.object_logit.view(-1, 1, 1, 1)
    if rule == "off":
        return masks
    if rule == "hard":
        return masks.masked_fill(score <= 0, NO_OBJECT_LOGIT)
    # With mask logit m and object logit o, the probability of a pixel is p = σ(m)σ(o). The result is the logit of p:
    # logit(p) = -ln((1 - p) / p), and (1 - p) / p = e^-m + e^-o + e^-(m + o)
    score = score.expand_as(masks)
    return -torch.logsumexp(torch.stack([-masks, -score, -masks - score]), dim=0)


@dataclass(frozen=True)
class Memory:
    """What SAM2 remembers of B frames, one frame of each of B spans.

    Attributes:
        features: (h·w, B, C_mem), a vector per cell of the feature grid.
        position: (h·w, B, C_mem), the position encoding of the features.
        pointer: (B, 256), SAM2's object pointer: one vector per frame that describes the object.
    """

    features: Tensor
    position: Tensor
    pointer: Tensor

    def first(self, count: int) -> Memory:
        """Return the memory of the first spans; `count` is the number of these spans."""
        return Memory(self.features[:, :count], self.position[:, :count], self.pointer[:count])


class MemoryBank:
    """The memories that SAM2 uses for the next frame of each span.

    These are the memory of the known frame (the frame whose mask is given), and the memories of the latest tracked frames.
    """

    def __init__(self, known: Memory, *, pointers: int) -> None:
        self.known = known
        # The latest memory is at the end. At most `pointers` memories are kept, including the memory of the known frame. SAM2
        # uses the object pointers of all these memories, but the features of only some.
        self.tracked: deque[Memory] = deque(maxlen=pointers - 1)
        self.frames = 1

    def add(self, memory: Memory) -> None:
        """Add the memory of the next frame."""
        self.tracked.append(memory)
        self.frames += 1

    def narrow(self, count: int) -> None:
        """Keep only the first spans, because all other spans have ended.

        `count` is the number of spans to keep.
        """
        self.known = self.known.first(count)
        self.tracked = deque((memory.first(count) for memory in self.tracked), maxlen=self.tracked.maxlen)


@torch.no_grad()
def propagate(model: TransformersMasks, pixels: Tensor, known: Mapping[int, Tensor], *, batch: int = 8) -> Tensor:
    """Return the mask logits of every frame, propagated from the known mask logits of some frames.

    Args:
        model: the model. It must be in evaluation mode, because SAM2's memory has dropout.
        pixels: (N, 3, S, S) normalised, in order of time.
        known: the known mask logits (H, W) of any size, by frame number. Logits are above 0 on the object. The mask of
            frame 0 must be known.
        batch: number of spans that are processed in parallel. The number changes the memory use, but not the result.

    Returns:
        (N, 4h, 4w) float32. Known frames keep their logits, which are resized if necessary. All other frames get logits from
        the decoder. If the object is not in the frame, these logits are all -1024.

    Raises:
        WeightsError: the checkpoint has no video memory.
        ValueError: `known` can't be used, or the model is in training mode or does not have 64 memory channels.
    """
    if not model.has_memory:
        hint = "scan without --propagate-masks, or build the folder from a SAM2.1 checkpoint for video"
        raise WeightsError("the sam2 part is a checkpoint for images: it has no memory to propagate masks", hint=hint)
    if model.training:
        raise ValueError("masks can be propagated only in evaluation mode: call eval() on the model first")
    if int(model.sam2.mem_dim) != MEMORY_CHANNELS:
        raise ValueError(f"memory_channels is {int(model.sam2.mem_dim)}; SAM2's memory attention needs {MEMORY_CHANNELS}")
    if 0 not in known:
        raise ValueError(
            f"the mask of frame 0 must be known, so that it can be propagated; frames with known masks: {sorted(known)}"
        )
    for frame, logit in known.items():
        if not 0 <= frame < len(pixels):
            raise ValueError(f"known has a mask for frame {frame}, but there are only {len(pixels)} frames, counted from 0")
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
        parallel = [range(start, start + lengths[start]) for start in spans[first : first + batch]]
        _track(model, pixels, masks, parallel, known)
    return masks


def _track(model: TransformersMasks, pixels: Tensor, masks: Tensor, spans: list[range], known: Mapping[int, Tensor]) -> None:
    """Write masks into `masks` for all frames except the first frame of each span.

    The longest span must be the first in `spans`.
    """
    starts = [span.start for span in spans]
    prompts = torch.cat([_resize(known[start].to(pixels.device)[None, None], model.image_size) for start in starts]) > 0
    features = model.encode(pixels[starts])
    binary = prompts.to(features.embedding.dtype)  # (B, 1, S, S)
    dense = model.sam2.prompt_encoder.mask_embed(model.sam2.mask_downsample(binary))  # (B, 256, h, w)
    no_points = _no_points(model, len(starts))
    _, _, tokens, object_logit = model.heads(features.embedding, features.high, no_points, dense, multimask=False)
    present = prompts.flatten(1).any(dim=1)
    # The decoder has one token for its single mask, and three tokens for its three masks. As in Meta's code, the object pointer
    # comes from the token of the single mask. The library `transformers` uses the token of the best of the three masks.
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
    """Track the next frame of B spans. Return its mask logits (B, 4h, 4w) float32 and its memory."""
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
    """Return F (B, 256, h, w) after the attention to the memories."""
    sam2 = model.sam2
    frames, channels, height, width = features.embedding.shape
    time = sam2.memory_temporal_positional_encoding  # (7, 1, 1, C_mem); the last entry is for the known frame
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
        # "posision" is how the library `transformers` spells "position"
        memory_posision_embeddings=torch.cat([*(memory.position + when for memory, when in spatial), vector_position]),
        num_object_pointer_tokens=len(vectors),
    )  # (1, B, h·w, 256)
    return attended.reshape(frames, height * width, channels).transpose(1, 2).reshape(frames, channels, height, width)


def _remember(model: TransformersMasks, features: ImageFeatures, mask: Tensor, present: Tensor, pointer: Tensor) -> Memory:
    """Return the memory of frames whose masks are `mask` (B, 1, S, S), with values from 0 to 1."""
    # SAM2 rounds memories to bfloat16; this code does not. The last bit of a sum depends on the batch size. Rounding would
    # make this small difference larger, and the masks of later frames would depend visibly on the batch size.
    sam2 = model.sam2
    scaled = mask * sam2.config.sigmoid_scale_for_mem_enc + sam2.config.sigmoid_bias_for_mem_enc
    encoded, position = sam2.memory_encoder(features.embedding, scaled)  # (B, C_mem, h, w) each
    if sam2.occlusion_spatial_embedding_parameter is not None:
        absent = (~present).to(encoded.dtype).view(-1, 1, 1, 1)
        encoded = encoded + absent * sam2.occlusion_spatial_embedding_parameter.view(1, -1, 1, 1)
    return Memory(_tokens(encoded), _tokens(position), pointer)


def _pointer(model: TransformersMasks, token: Tensor, present: Tensor) -> Tensor:
    """Return object pointers (B, 256) for mask tokens (B, 256).

    If no object is present, the result is SAM2's pointer for "no object".
    """
    pointer: Tensor = torch.where(present[:, None], model.sam2.object_pointer_proj(token), model.sam2.no_object_pointer)
    return pointer


def _no_points(model: TransformersMasks, frames: int) -> Tensor:
    """Return the prompt tokens (B, 2, 256) for frames that have no point prompt: two padding points."""
    padding = model.sam2.prompt_encoder.not_a_point_embed.weight
    return with_padding_point(padding.expand(frames, 1, -1), padding)


def _tokens(image: Tensor) -> Tensor:
    """Return one token per pixel, (h·w, B, C), from an image (B, C, h, w)."""
    return image.flatten(2).permute(2, 0, 1)


def _resize(masks: Tensor, side: int) -> Tensor:
    """Return logits (B, 1, H, W), resized to (B, 1, side, side), as float32."""
    masks = masks.float()
    if masks.shape[-2:] == (side, side):
        return masks
    return functional.interpolate(masks, size=(side, side), mode="bilinear", align_corners=False)
