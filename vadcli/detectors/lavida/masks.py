"""SAM2's image encoder and mask decoder (paper 3.8), for all frames of a batch in one call.

The input is normalised pixels and one prompt per frame. The output is an object score and mask logits per frame. Frames do not
influence each other, because there is no memory: SAM2 treats each frame as a first frame. `propagate.py` adds the memory, and
`sam2_package.py` implements the same protocol with Meta's package.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vadcli.detectors.lavida.config import MaskGate
from vadcli.detectors.lavida.sam2_sizes import STRIDE_PX
from vadcli.detectors.mllm.pixels import ExactBuffers

NO_OBJECT_LOGIT = -1024.0  # SAM2 writes this into the mask of an absent object

# Levels of the feature pyramid network (FPN): (N, 256, 4h, 4w), (N, 256, 2h, 2w), (N, 256, h, w)
Pyramid = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class ImageFeatures:
    """The encoder's output for N frames; h = w = image size / 16.

    Attributes:
        embedding: F, (N, 256, h, w). `decode` adds SAM2's no-memory embedding, which the projector must not read.
        position: sine position encoding of F, (1, 256, h, w).
        high: F_s0 (N, 32, 4h, 4w) and F_s1 (N, 64, 2h, 2w), projected for the decoder.
    """

    embedding: Tensor
    position: Tensor
    high: tuple[Tensor, Tensor]

    def __len__(self) -> int:
        return len(self.embedding)

    def __getitem__(self, rows: slice | Tensor) -> ImageFeatures:
        """Select frames by slice, index tensor (K,) or boolean mask (N,)."""
        return ImageFeatures(self.embedding[rows], self.position, (self.high[0][rows], self.high[1][rows]))

    @staticmethod
    def cat(parts: list[ImageFeatures]) -> ImageFeatures:
        """Join the frames of all parts, in order. A single part is not copied."""
        if len(parts) == 1:
            return parts[0]
        high = (torch.cat([p.high[0] for p in parts]), torch.cat([p.high[1] for p in parts]))
        return ImageFeatures(torch.cat([p.embedding for p in parts]), parts[0].position, high)


@dataclass(frozen=True)
class MaskOutput:
    """The decoder's output for N frames in float32, with M masks per frame: 1, or 3 with `multimask`.

    Attributes:
        object_logit: (N,), above 0 if the frame has something to segment.
        mask_logit: (N, M, 4h, 4w), before any gate.
        iou: (N, M), the decoder's own estimate of the quality of each mask, 0 to 1.
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
        """Decode one mask per frame, or three with `multimask`.

        Args:
            features: the features of N frames.
            prompt: one prompt per frame, (N, 1, width).
            multimask: return three masks per frame.
            dense: (N, width, h, w), added to SAM2's embedding of "no mask".
        """


class TransformersMasks(ExactBuffers):
    """SAM2 of transformers. Its state dict is that of a Sam2VideoModel with the prefix `sam2.`.

    Everything runs in the dtype of the wrapped model, except position encodings, which are computed
    in float32 and then cast. This class never switches gradients off. If you freeze
    `sam2.vision_encoder` with `requires_grad_(False)`, gradients still reach the decoder's projections in `features`.

    Args:
        sam2: the model to wrap. It is changed in place: its prompt encoder gets the position matrix for images.

    Attributes:
        has_memory: False if the weights lack SAM2's video memory. In this case, masks cannot be propagated.
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

        In training mode, the decoder would no longer replace unstable masks. The mode has no other effect on it.
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

        The two projections used here belong to the decoder and are trained with it.
        """
        fine, middle, embedding = levels
        high = (self.sam2.mask_decoder.conv_s0(fine), self.sam2.mask_decoder.conv_s1(middle))
        position = self.sam2.vision_encoder.neck.position_encoding(embedding[:1].shape, embedding.device, embedding.dtype)
        return ImageFeatures(embedding, position, high)

    def decode(
        self, features: ImageFeatures, prompt: Tensor, *, multimask: bool = False, dense: Tensor | None = None
    ) -> MaskOutput:
        """See MaskModel.decode.

        Without `multimask`, SAM2 replaces an unstable mask with the best of its three masks.
        """
        embedding = features.embedding + self.sam2.no_memory_embedding.view(1, -1, 1, 1)
        sparse = with_padding_point(prompt.to(embedding.dtype), self.sam2.prompt_encoder.not_a_point_embed.weight)
        no_mask = self.sam2.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1)
        given = no_mask if dense is None else no_mask + dense.to(embedding.dtype)
        mask_logit, iou, _, object_logit = self.heads(embedding, features.high, sparse, given, multimask=multimask)
        return MaskOutput(object_logit.float(), mask_logit.float(), iou.float())

    def heads(
        self, embedding: Tensor, high: tuple[Tensor, Tensor], sparse: Tensor, dense: Tensor, *, multimask: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Run the decoder alone, in the model's dtype.

        Args:
            embedding: F (N, 256, h, w), after the caller has added the no-memory embedding or applied attention to memories.
            high: F_s0 and F_s1.
            sparse: prompt tokens, (N, P, 256).
            dense: mask prompt, (N or 1, 256, h or 1, w or 1).
            multimask: return three masks instead of one.

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

    transformers computes it in the model's dtype, for every frame and level.

    Args:
        width: channels of the encoding.
        finest: height of the largest grid whose encoding is used. Larger grids get zeros that
            need no memory. At stride 4, the real values would need as much memory as the features.
    """

    def __init__(self, width: int, *, finest: int) -> None:
        super().__init__()
        self.width = width
        self.finest = finest

    def forward(self, shape: torch.Size, device: torch.device, dtype: torch.dtype, mask: None = None) -> Tensor:
        """Return the encoding (N, width, h, w) for features of `shape` (N, C, h, w).

        `mask` is part of the interface of transformers and is ignored.
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
    """Return (N, 2, 256): SAM2's "not a point" token (1, 256), and then the prompt (N, 1, 256)."""
    return torch.cat([padding.unsqueeze(0).expand(len(prompt), -1, -1), prompt], dim=1)


def gate(output: MaskOutput, rule: MaskGate) -> Tensor:
    """Return the mask logits (N, M, H, W), changed by the object score of the frame.

    Args:
        output: the decoder's output.
        rule: `hard` writes -1024 into masks whose object logit is not above 0, as SAM2 does; `soft`
            returns the logit of the product of both probabilities; `off` does not change the masks.
    """
    masks, score = output.mask_logit, output.object_logit.view(-1, 1, 1, 1)
    if rule == "off":
        return masks
    if rule == "hard":
        return masks.masked_fill(score <= 0, NO_OBJECT_LOGIT)
    # With p = σ(m)σ(o): (1 - p) / p = e^-m + e^-o + e^-(m + o)
    score = score.expand_as(masks)
    return -torch.logsumexp(torch.stack([-masks, -score, -masks - score]), dim=0)
