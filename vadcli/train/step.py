"""One training step of LAVIDA: the losses of a batch of exposure samples (paper 3.3 and 3.9).

    frames                         → vision encoders → visual tokens and F, F_s0, F_s1
    visual tokens, category names  → language model  → answer logits (LM loss) and h_seg
    category names                 → CLIP text       → text features
    F, F_s0, F_s1, h_seg, text     → projector → mask decoder → mask, IoU and score losses

F, F_s0 and F_s1 are SAM2's image features at three resolutions, and h_seg is the language model's
output at `<SEG>`. Every sample has its own prompt and list of categories. The mask gate is only for
inference, so it is not used here. `FeatureMemory` stores the features of a frozen image encoder, so that
they are computed only once.

The mask, IoU and score losses follow SAM2's training loss. Letters in shapes: B clips, N frames, M masks per frame, P frames
that show an object, (h, w) the output size of the mask decoder. Two rules apply to every part of the loss:

- It is computed in float32 even if autocast is on, or in float64 if its inputs are float64.
- It is a mean over the frames of the batch, or over the clips for the loss of the language model. A frame without an object has
  the mask loss 0, but counts in the mean. So a batch can be split into micro-batches of equal size: the loss of the batch is
  the mean of their losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vadcli.detectors.lavida.masks import ImageFeatures
from vadcli.detectors.lavida.model import EncodedClips, Lavida, LavidaOutput
from vadcli.detectors.lavida.projector import Prompts
from vadcli.detectors.lavida.text import TextEncoder, build_prompt
from vadcli.detectors.mllm.qwen import VisualTokens
from vadcli.errors import UsageError
from vadcli.train import LossWeights
from vadcli.train.samples import ExposureSample
from vadcli.train.state import part_of
from vadcli.types import ByteArray

FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2.0
IGNORED = -100
"""Label of a token that is not part of the answer; the same number as in the library `transformers`."""


@dataclass(frozen=True)
class Losses:
    """The losses of a batch as scalars.

    Attributes:
        focal, dice, iou, score, lm: the parts in the paper, before they are multiplied by their weights.
        names: the result of `names_loss`, which is not in the paper; 0 if `names_loss` is not used.
        total: sum of the parts, each multiplied by its weight in `LossWeights`. Training minimises the total.
    """

    focal: Tensor
    dice: Tensor
    iou: Tensor
    score: Tensor
    lm: Tensor
    names: Tensor
    total: Tensor


@dataclass(frozen=True)
class MaskLosses:
    """The mask losses of the P frames that show an object.

    Attributes:
        focal, dice: (P,) losses of the best of the M masks.
        iou: (P,) loss of the estimated IoU, as a mean over the M masks.
        best: (P,) int64, index of the best mask.
    """

    focal: Tensor
    dice: Tensor
    iou: Tensor
    best: Tensor


def focal_loss(logits: Tensor, targets: Tensor, *, alpha: float = FOCAL_ALPHA, gamma: float = FOCAL_GAMMA) -> Tensor:
    """Return the binary focal loss: the mean of α_t (1 − p_t)^γ · cross-entropy over a mask's pixels.

    Args:
        logits: (…, h, w).
        targets: (…, h, w) 0 to 1 or bool.
        alpha: weight of a positive pixel; a negative pixel has the weight 1 − alpha.
        gamma: 0 or more; a higher value gives less weight to pixels that are predicted correctly.

    Returns:
        (…,), one value per mask.
    """
    logits, targets = _exact(logits), _exact(targets)
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    positive = logits.sigmoid()
    missed = positive + targets - 2 * positive * targets  # 1 − p_t
    balance = alpha * targets + (1 - alpha) * (1 - targets)
    return (balance * missed**gamma * entropy).mean(dim=(-2, -1))


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the Dice loss: 1 − (2 Σ p·t + 1) / (Σ p + Σ t + 1) over the pixels, p = sigmoid(logits).

    Args:
        logits: (…, h, w).
        targets: (…, h, w) 0 to 1 or bool.

    Returns:
        (…,), one value per mask, 0 to 1.
    """
    positive, targets = _exact(logits).sigmoid(), _exact(targets)
    common = (positive * targets).sum(dim=(-2, -1))
    both = positive.sum(dim=(-2, -1)) + targets.sum(dim=(-2, -1))
    return 1 - (2 * common + 1) / (both + 1)


def iou_of_logits(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the IoU of each predicted mask (logit > 0) and its target (value > 0), without a gradient.

    Returns:
        (…,) float32; 0 if both masks are empty.
    """
    predicted, true = logits.detach() > 0, targets > 0
    common = (predicted & true).sum(dim=(-2, -1))
    either = (predicted | true).sum(dim=(-2, -1))
    return common.float() / either.clamp(min=1).float()


def iou_loss(predicted: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """Return the IoU loss: |predicted IoU − actual IoU|. The gradient reaches only the predicted IoU.

    Args:
        predicted: (…,) the IoU head's estimate, 0 to 1.
        logits, targets: (…, h, w) the masks whose IoU the IoU head estimates.

    Returns:
        (…,), one value per mask.
    """
    return (_exact(predicted) - iou_of_logits(logits, targets)).abs()


def score_loss(logits: Tensor, present: Tensor) -> Tensor:
    """Return the binary cross-entropy of each frame's object score.

    Args:
        logits: (N,) object-score logits.
        present: (N,) bool, whether the frame shows an anomaly.

    Returns:
        (N,), one value per frame.
    """
    return F.binary_cross_entropy_with_logits(_exact(logits), _exact(present), reduction="none")


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of the language model for each clip, as the mean over the answer tokens.

    Only the logits of the answer are converted to float32, because float32 logits of a whole prompt would
    not fit into memory.

    Args:
        logits: (B, L, V), at each position the logits of the next token.
        labels: (B, L) int64 token ids, `IGNORED` outside the answer; logits i − 1 predict label i.

    Returns:
        (B,), 0 for a clip whose labels are all ignored.
    """
    labels = labels[:, 1:]
    clip, place = (labels != IGNORED).nonzero(as_tuple=True)
    entropy = F.cross_entropy(_exact(logits[clip, place]), labels[clip, place], reduction="none")  # (answer tokens,)
    sums = entropy.new_zeros(len(labels)).index_add(0, clip, entropy)
    return sums / (labels != IGNORED).sum(dim=1).clamp(min=1)


def names_loss(logits: Sequence[Tensor], truth: Sequence[Sequence[bool]]) -> Tensor:
    """Return the mean binary cross-entropy over all names of all clips. Each clip has its own list of C names.

    Args:
        logits: for each clip, a (C,) tensor with one logit per name.
        truth: for each clip, one bool per name: True if the clip shows what the name means.
    """
    targets = torch.tensor([float(shown) for names in truth for shown in names], device=logits[0].device)
    return F.binary_cross_entropy_with_logits(_exact(torch.cat(list(logits))), targets)


def mask_losses(logits: Tensor, iou: Tensor, targets: Tensor, *, weights: LossWeights | None = None) -> MaskLosses:
    """Return the mask losses of frames that all show an object.

    Only the best of the M masks is trained: the first with the lowest weighted sum of focal loss and Dice loss.
    The estimated IoU of every mask is trained.

    Args:
        logits: (P, M, h, w).
        iou: (P, M) estimated IoU of each mask.
        targets: (P, h, w).
        weights: the weights `focal` and `dice` of the sum; None takes the paper's weights.
    """
    weights = weights or LossWeights()
    wanted = targets.unsqueeze(1).expand_as(logits)  # (P, M, h, w)
    focal, dice = focal_loss(logits, wanted), dice_loss(logits, wanted)  # (P, M)
    best = (weights.focal * focal + weights.dice * dice).detach().argmin(dim=1, keepdim=True)  # (P, 1)
    heads = iou_loss(iou, logits, wanted).mean(dim=1)
    return MaskLosses(focal.gather(1, best)[:, 0], dice.gather(1, best)[:, 0], heads, best[:, 0])


def anomaly_loss(
    *,
    mask_logits: Tensor,
    iou: Tensor,
    score_logits: Tensor,
    masks: Tensor,
    present: Tensor,
    answer: Tensor | None = None,
    weights: LossWeights | None = None,
) -> Losses:
    """Return all parts of the loss of a batch and their weighted sum.

    Args:
        mask_logits: (N, M, h, w), without the mask gate.
        iou: (N, M) estimated IoU of each mask.
        score_logits: (N,) object-score logits.
        masks: (N, h, w) target masks at the decoder's size; masks of frames without an anomaly are not used.
        present: (N,) bool, True for frames that show an anomaly.
        answer: (B,) result of `answer_loss`; if None, `lm` is 0.
        weights: weight of each part; None takes the paper's weights.

    Raises:
        ValueError: the shapes do not fit together.
    """
    weights = weights or LossWeights()
    count, heads = iou.shape
    shapes = [tuple(item.shape) for item in (mask_logits, score_logits, masks, present)]
    size = tuple(masks.shape[1:])
    if shapes != [(count, heads, *size), (count,), (count, *size), (count,)] or present.dtype != torch.bool:
        raise ValueError(f"shapes do not fit: mask {shapes[0]}, IoU {(count, heads)}, score {shapes[1]}, targets {shapes[2:]}")
    terms = mask_losses(mask_logits[present], iou[present], masks[present], weights=weights)
    parts = {
        "focal": terms.focal.sum() / max(count, 1),
        "dice": terms.dice.sum() / max(count, 1),
        "iou": terms.iou.sum() / max(count, 1),
        "score": score_loss(score_logits, present).sum() / max(count, 1),
        "lm": _exact(score_logits).new_zeros(()) if answer is None else _exact(answer).sum() / max(len(answer), 1),
    }
    total = torch.stack([getattr(weights, name) * part for name, part in parts.items()]).sum()
    return Losses(**parts, total=total, names=total.new_zeros(()))


def _exact(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


PROJECTIONS = ("masks.sam2.mask_decoder.conv_s0.", "masks.sam2.mask_decoder.conv_s1.")


class FeatureMemory:
    """Stores the features of a frozen image encoder for each clip, so that each clip is encoded once.

    The features are stored in half precision. A clip has the same features in every epoch: it is always encoded
    alone, and the features are rounded even when they are used for the first time.

    Args:
        model: the model with the image encoder. Its modules `conv_s0` and `conv_s1` become frozen, because the
            stored features are their output.
        most_bytes: largest total size of the features. Clips that do not fit are encoded every time.

    Raises:
        UsageError: the image encoder is trained.
    """

    def __init__(self, model: Lavida, *, most_bytes: int = 8 << 30) -> None:
        if any(value.requires_grad and part_of(name) == "image_encoder" for name, value in model.named_parameters()):
            raise UsageError("the option `remember` needs a frozen image encoder", hint="leave image_encoder out of `train`")
        for name, value in model.named_parameters():
            if name.startswith(PROJECTIONS):
                value.requires_grad_(False)
        self.model, self.most_bytes = model, most_bytes
        self.bytes = 0
        self._kept: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self._read: dict[str, VisualTokens] = {}
        self._position: Tensor | None = None

    @torch.no_grad()
    def recall(self, clips: Sequence[tuple[str, ByteArray]]) -> ImageFeatures:
        """Return the image features of `clips`, concatenated in their order.

        Args:
            clips: key and frames (T, H, W, 3) uint8 of each clip.
        """
        features = []
        for key, frames in clips:
            parts = self._kept.get(key)
            if parts is None:
                device = next(self.model.parameters()).device
                image = self.model.encode_images(torch.from_numpy(frames)[None].to(device))
                self._position = image.position
                parts = (image.embedding.half(), image.high[0].half(), image.high[1].half())
                size = sum(part.numel() * part.element_size() for part in parts)
                if self.bytes + size <= self.most_bytes:
                    self.bytes += size
                    self._kept[key] = parts
            features.append(parts)
        embedding, fine, middle = (torch.cat([part.float() for part in parts]) for parts in zip(*features, strict=True))
        assert self._position is not None
        return ImageFeatures(embedding, self._position, (fine, middle))

    def read(self, keys: Sequence[str], image: ImageFeatures, frames: int) -> list[VisualTokens]:
        """Return the compressed visual tokens of each clip.

        The model's module `sight` makes the tokens from SAM2's image features. If `sight` is frozen, the
        tokens of each clip are computed once and stored.

        Args:
            keys: key of each clip.
            image: result of `recall` for these clips.
            frames: frames per clip.
        """
        sight = self.model.mllm.sight
        assert sight is not None
        if any(value.requires_grad for value in sight.parameters()):
            return self.model.visual_from(image, frames)
        for row, key in enumerate(keys):
            if key not in self._read:
                (self._read[key],) = self.model.visual_from(image[row * frames : (row + 1) * frames], frames)
        return [self._read[key] for key in keys]


Seg = Literal["own", "next", "none"]


class ExposureStep(nn.Module):
    """LAVIDA with its losses, as one module to train.

    Args:
        model: prepared for training by `state.set_up`.
        weights: weights of the losses; None takes the paper's weights.
        masks: number of masks per prompt that the decoder learns, 3 or 1.
        memory: stores features between epochs; only for a model with `SharedSight`, which makes visual tokens
            from SAM2's features. If None, each clip is encoded every time.
        without_seg: share of the samples for which zeros replace h_seg, 0 to 1. From these samples, the model
            learns to find a category without the language model. Not in the paper.
    """

    def __init__(
        self,
        model: Lavida,
        *,
        weights: LossWeights | None = None,
        masks: int = 3,
        memory: FeatureMemory | None = None,
        without_seg: float = 0.0,
    ) -> None:
        super().__init__()
        if masks not in (1, 3):
            raise ValueError(f"masks is {masks}; the decoder has 1 or 3 masks per prompt")
        self.model = model
        self.weights = weights or LossWeights()
        self.masks = masks
        self.memory = memory
        self.without_seg = without_seg

    def forward(self, samples: Sequence[ExposureSample]) -> dict[str, Tensor]:
        """Return the losses of a batch by name; the names are the attributes of `Losses`.

        Args:
            samples: the batch. All samples have the same number of frames; the frame sizes may differ.
        """
        losses = self.losses(samples)
        return {name: getattr(losses, name) for name in LOSS_NAMES}

    def losses(self, samples: Sequence[ExposureSample]) -> Losses:
        """Return the losses of a batch as `Losses`; see `forward`."""
        encoded = self._encode(samples, training=True)
        prompts, answer, names = self._read(encoded, samples)
        output = self.model.answer(encoded, prompts, multimask=self.masks == 3)
        size = output.mask_logit.shape[-2:]
        masks = [decoder_masks(torch.from_numpy(sample.masks).to(self.device), (size[0], size[1])) for sample in samples]
        present = torch.cat([torch.from_numpy(sample.labels) for sample in samples]).to(self.device)
        losses = anomaly_loss(
            mask_logits=output.mask_logit,
            iou=output.iou,
            score_logits=output.object_logit,
            masks=torch.cat(masks),
            present=present,
            answer=answer,
            weights=self.weights,
        )
        return replace(losses, names=names, total=losses.total + self.weights.names * names)

    @torch.no_grad()
    def judge(self, samples: Sequence[ExposureSample], *, seg: Seg = "own") -> LavidaOutput:
        """Return the scores and masks of each sample. The mask gate is not applied.

        As in a scan, frames are resized to the size for inference, and each frame gets a single mask.

        Args:
            samples: the batch. All samples have the same number of frames.
            seg: which h_seg (the language model's output at `<SEG>`) is used: the sample's `own`, that of the `next`
                sample in the batch, or zeros (`none`). The values `next` and `none` show the effect of h_seg.
        """
        encoded = self._encode(samples, training=False)
        prompts, *_ = self._read(encoded, samples, seg=seg)
        output = self.model.answer(encoded, prompts)
        mask = output.mask_logit[:, 0]
        b, t = len(samples), encoded.frames
        return LavidaOutput(output.object_logit.view(b, t), mask.view(b, t, *mask.shape[1:]))

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    @cached_property
    def answer(self) -> tuple[int, ...]:
        """Token ids of the fixed answer."""
        ids = self.model.tokenizer(self.model.config.prompt.answer, add_special_tokens=False)["input_ids"]
        return tuple(ids)

    def _encode(self, samples: Sequence[ExposureSample], *, training: bool) -> EncodedClips:
        """Return the encoded clips; clips whose frames have the same size are encoded in one batch."""
        counts = {len(sample.frames) for sample in samples}
        if len(counts) != 1:
            raise ValueError(f"all samples of a batch must have the same number of frames, not {sorted(counts)}")
        if self.memory is not None:
            keys, frames = [sample.key for sample in samples], len(samples[0].frames)
            image = self.memory.recall([(sample.key, sample.frames) for sample in samples])
            return EncodedClips(self.memory.read(keys, image, frames), image, frames)
        groups: dict[tuple[int, ...], list[int]] = {}
        for row, sample in enumerate(samples):
            groups.setdefault(sample.frames.shape, []).append(row)
        encoded = [
            self.model.encode(
                torch.stack([torch.from_numpy(samples[row].frames) for row in rows]).to(self.device), training=training
            )
            for rows in groups.values()
        ]
        if len(encoded) == 1:
            return encoded[0]
        rows = [row for rows in groups.values() for row in rows]  # clip i of the concatenated groups belongs to sample rows[i]
        order = sorted(range(len(rows)), key=rows.__getitem__)
        visual = [clip for part in encoded for clip in part.visual]
        image = ImageFeatures.cat([part.image for part in encoded])
        t = encoded[0].frames
        index = torch.tensor([place * t + frame for place in order for frame in range(t)], device=image.embedding.device)
        return EncodedClips([visual[place] for place in order], image[index], t)

    def _read(
        self, encoded: EncodedClips, samples: Sequence[ExposureSample], *, seg: Seg = "own"
    ) -> tuple[Prompts, Tensor, Tensor]:
        """Return the prompts for the mask decoder, the answer loss (B,), and the names loss."""
        prompts = [build_prompt(self.model.tokenizer, sample.categories, self.model.config.prompt) for sample in samples]
        if any(tokens.after[-len(self.answer) :] != self.answer for tokens in prompts):
            raise ValueError(f"the prompt does not end with the tokens of the answer {self.model.config.prompt.answer!r}")
        read = self.model.mllm.answers(encoded.visual, prompts, len(self.answer))
        labels = torch.tensor([[IGNORED, *self.answer]] * len(samples), device=self.device)
        text, counts = texts_of(self.model.text, [sample.categories for sample in samples])
        names = read.seg.new_zeros(())
        if read.names and self.weights.names:
            names = names_loss(read.names, [[name in sample.true for name in sample.categories] for sample in samples])
        hidden = {"own": read.seg, "next": read.seg.roll(-1, dims=0), "none": torch.zeros_like(read.seg)}[seg]
        if self.without_seg and self.training:
            hidden = hidden * (torch.rand(len(samples), 1, device=self.device) >= self.without_seg)
        return self.model.prompts(encoded, hidden, text, counts), answer_loss(read.logits, labels), names


def texts_of(encoder: TextEncoder, lists: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
    """Return the text features (B, C, D) of B lists of names, and a mask (B, C).

    C is the length of the longest list. Shorter lists are padded: features 0, mask False.
    """
    names = list(dict.fromkeys(name for listed in lists for name in listed))
    features = encoder.pooled(names)  # each name once
    place = {name: row for row, name in enumerate(names)}
    longest = max(map(len, lists))
    rows = [[place[name] for name in listed] for listed in lists]
    index = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=features.device)
    lengths = torch.tensor([len(row) for row in rows], device=features.device)
    counts = torch.arange(longest, device=features.device) < lengths[:, None]
    # Indexing would sum the gradient in a random order on a GPU. The product with a one-hot matrix sums it in
    # the same order in every run.
    chosen = F.one_hot(index, len(names)).to(features.dtype) * counts[..., None]
    return chosen @ features, counts


LOSS_NAMES = ("focal", "dice", "iou", "score", "lm", "names", "total")


def decoder_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Return masks at the size of the mask decoder.

    An output pixel is True if the mask covers at least half of the pixel. If the mask covers less than half of every output
    pixel, the most covered pixels are True. So small objects do not disappear.

    Args:
        masks: (N, H, W) bool.
        size: (h, w); the masks are resized to this size without keeping their aspect ratio, as SAM2 does.

    Returns:
        (N, h, w) bool.
    """
    coverage = F.adaptive_avg_pool2d(masks.float().unsqueeze(1), size)[:, 0]  # (N, h, w)
    half = coverage >= 0.5
    most = coverage.amax(dim=(1, 2), keepdim=True)
    small = (most > 0) & ~half.any(dim=(1, 2), keepdim=True)
    return torch.where(small, coverage >= most, half)
