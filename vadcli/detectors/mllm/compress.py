"""Reduces the L visual tokens of a clip to about ratio · L.

The method is reverse attention (section 3.4 of the LAVIDA paper). A token is dense if many tokens are similar to it. The
densest tokens, which show the background, become references. Each token is assigned to its nearest reference. Each reference
becomes a softmax-weighted sum of its tokens. In this sum, the tokens that are least similar to the reference have the largest
weights. No trained weights are used. Gradients pass through the sums, but not through the choice of the references.

Everything is computed in float64, and the result is cast to the dtype of the tokens. So autocast, TF32 and the order in which a
GPU adds numbers do not change the result.

`moving_groups` makes another reduction possible, before the vision tower: it finds the patches that change during a clip.

`SharedSight` and `NamePooling` are not in the paper. A small model needs these parts, because a few thousand clips are not
enough to train a vision tower. Of the presets, only lavida-tiny-scratch uses these parts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

Positions = Literal["mrope", "sequential"]
Method = Literal["reverse_attention", "mean", "densest", "least_dense", "random"]

EPSILON = 1e-10  # keeps the density of equal tokens finite
SPARE = 8  # `_nearest` first measures this many more columns per row than it returns
DEPTH = 512  # number of coordinates that are converted to float64 at a time


@dataclass(frozen=True)
class CompressionOptions:
    """How the visual tokens of a clip are compressed, and how many of them are kept.

    Args:
        ratio: share of the tokens to keep, in (0, 1]; 1 keeps all tokens unchanged.
        method: `reverse_attention` is the paper's method. The other methods are for comparison. `mean` averages the tokens of
            each reference. `densest`, `least_dense` and `random` keep some tokens unchanged and drop all others. `random` keeps
            the same positions in all clips.
        neighbours: k ≥ 1; the density of a token is computed from its k nearest neighbours.
        positions: rotary positions of the kept tokens. `mrope` keeps their 3-D positions (time, row, column). `sequential`
            numbers the tokens 0, 1, 2 and so on. Only `MultimodalLM.compressed` uses this option.
        chunk: rows of the distance matrix that are computed at a time, ≥ 1. It changes memory and time, but not the result.
    """

    ratio: float = 0.2
    method: Method = "reverse_attention"
    neighbours: int = 8
    positions: Positions = "mrope"
    chunk: int = 1024

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise ValueError(f"compression ratio is {self.ratio}; give a number above 0 and up to 1")
        if self.method not in get_args(Method):
            raise ValueError(f"compression method is {self.method!r}; give one of {', '.join(get_args(Method))}")
        if self.neighbours < 1:
            raise ValueError(f"compression neighbours is {self.neighbours}; give 1 or more")
        if self.positions not in get_args(Positions):
            raise ValueError(f"compression positions is {self.positions!r}; give one of {', '.join(get_args(Positions))}")
        if self.chunk < 1:
            raise ValueError(f"compression chunk is {self.chunk}; give 1 row or more")


@dataclass(frozen=True)
class Compressed:
    """The result of compressing L input tokens to M tokens.

    Each of the M tokens has one input token as its reference.

    Args:
        tokens: (M, D), the resulting tokens, in the dtype of the input tokens.
        kept: (M,) int64, ascending, the indices of the references among the input tokens.
        owner: (L,) int64: for each input token, the index (0 to M - 1) of its reference.
    """

    tokens: Tensor
    kept: Tensor
    owner: Tensor


def compress(tokens: Tensor, options: CompressionOptions) -> Compressed:
    """Return one clip's visual tokens, compressed.

    Args:
        tokens: (L, D) floating point, finite, L ≥ 1.
        options: how the tokens are compressed.

    Raises:
        ValueError: tokens is not a matrix, or is empty.
    """
    if tokens.dim() != 2 or tokens.shape[0] < 1:
        raise ValueError(f"tokens to compress have the shape {tuple(tokens.shape)}; give (L, D) with L ≥ 1")
    length = tokens.shape[0]
    count = kept_count(length, options.ratio)
    if count == length:
        everything = torch.arange(length, device=tokens.device)
        return Compressed(tokens, everything, everything)
    if options.method == "random":
        order = torch.randperm(length, generator=torch.Generator().manual_seed(0))
        kept = order[:count].sort().values.to(tokens.device)  # (M,)
    else:
        density = densities(tokens, options.neighbours, options.chunk)  # (L,)
        kept = references(-density if options.method == "least_dense" else density, count)
    owner = assign(tokens, kept, options.chunk)  # (L,)
    if options.method == "reverse_attention":
        return Compressed(merge(tokens, kept, owner, options.chunk), kept, owner)
    if options.method == "mean":
        sums = tokens.new_zeros(count, tokens.shape[1], dtype=torch.float64).index_add(0, owner, tokens.double())
        means = sums / torch.bincount(owner, minlength=count)[:, None]
        return Compressed(means.to(tokens.dtype), kept, owner)
    return Compressed(tokens[kept], kept, owner)


def kept_count(length: int, ratio: float) -> int:
    """Return M = max(1, ⌊ratio · length⌋), computed exactly from the decimal digits of the ratio.

    For example, a ratio of 0.29 keeps 29 of 100 tokens, although 0.29 * 100 is below 29 in floating point.
    """
    return max(1, math.floor(Fraction(repr(float(ratio))) * length))


@torch.no_grad()
def densities(tokens: Tensor, neighbours: int, chunk: int) -> Tensor:
    """Return each token's local reachability density, as in LOF (local outlier factor).

    The density is k / Σ max(k-distance of the neighbour, distance to the neighbour), summed over the k nearest neighbours. The
    k-distance of a token is the distance to its k-th nearest neighbour.

    Args:
        tokens: (L, D), the visual tokens of a clip, L ≥ 1.
        neighbours: k; at most L - 1 are used. If two tokens are equally near, the lower index is used.
        chunk: rows of the distance matrix per step.

    Returns:
        (L,) float64, all 1 for a single token.
    """
    if tokens.shape[0] == 1:
        return torch.ones(1, dtype=torch.float64, device=tokens.device)
    # A clip of black frames has many equal tokens. Equal tokens have the same density, and a token has only k neighbours, so
    # k + 1 copies of a token are enough. All further copies are left out, because they would make `_nearest` slow.
    kept, position = _without_surplus_copies(tokens, neighbours + 1)
    tokens = tokens[kept]
    k = min(neighbours, tokens.shape[0] - 1)
    nearest, squared = _nearest(tokens, tokens, k, chunk=chunk, but_self=True)  # (L', k) each
    distance = (squared / tokens.shape[1]).sqrt()
    k_distance = distance[:, -1]  # (L',)
    # (L', k). Rounding makes a sum depend on the order of its terms. The terms are sorted, so that two tokens with the same
    # distances get exactly the same density.
    reach = torch.maximum(k_distance[nearest], distance).sort(dim=1).values
    return (k / (reach.sum(dim=1) + EPSILON))[position]


def references(density: Tensor, count: int) -> Tensor:
    """Return the indices of the densest tokens, ascending. `count` is how many tokens to choose.

    If tokens are equally dense, the tokens with the lower indices are chosen.
    """
    return torch.sort(density, descending=True, stable=True).indices[:count].sort().values


@torch.no_grad()
def assign(tokens: Tensor, kept: Tensor, chunk: int) -> Tensor:
    """Return for each token the index of its nearest reference, 0 to M - 1: (L,) int64.

    If two references are equally near, the lower index is returned. The nearest reference of a reference is itself.

    Args:
        tokens: (L, D), the visual tokens of a clip.
        kept: (M,) the indices of the references, ascending.
        chunk: rows of the distance matrix per step.
    """
    unique, _ = _without_surplus_copies(tokens[kept], 1)
    nearest, _ = _nearest(tokens, tokens[kept[unique]], 1, chunk=chunk)  # (L, 1)
    owner = unique[nearest[:, 0]]
    owner[kept] = torch.arange(len(kept), device=tokens.device)
    return owner


def merge(tokens: Tensor, kept: Tensor, owner: Tensor, chunk: int = 1024) -> Tensor:
    """Merge tokens by reverse attention: Σ softmax(-⟨reference, token⟩ / √D) · token.

    The sum for a reference contains only the tokens that are assigned to the reference. So the cost is O(L · D), and no (M, L)
    matrix is needed. The result is exact and differentiable in the tokens.

    Args:
        tokens: (L, D), the visual tokens of a clip.
        kept: (M,) the indices of the references.
        owner: (L,) for each token, the index in `kept` of its reference. The reference of a reference is itself.
        chunk: number of tokens that are converted to float64 at a time.

    Returns:
        (M, D) in the dtype of `tokens`.
    """
    parts = _slices(len(tokens), chunk)
    similarity = torch.cat([(tokens[part].double() * tokens[kept[owner[part]]].double()).sum(dim=1) for part in parts])
    logits = -similarity / math.sqrt(tokens.shape[1])  # (L,)
    highest = logits.new_full((len(kept),), -math.inf).scatter_reduce(0, owner, logits.detach(), "amax")  # (M,)
    weight = (logits - highest[owner]).exp()  # (L,)
    weight = weight / weight.new_zeros(len(kept)).index_add(0, owner, weight)[owner]
    merged = logits.new_zeros(len(kept), tokens.shape[1])  # (M, D)
    for part in parts:
        merged.index_add_(0, owner[part], tokens[part].double() * weight[part, None])
    return merged.to(tokens.dtype)


def _slices(length: int, step: int) -> list[slice]:
    return [slice(start, start + step) for start in range(0, length, step)]


def _without_surplus_copies(tokens: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Leave out the surplus copies of each token.

    Of equal tokens, those with the lowest indices are kept; `most` is the largest number that is kept.

    Returns:
        (L',) the indices of the kept tokens, and (L,) for each token its position among the kept tokens. A token that is not
        kept gets the position of the kept token with the highest index among the tokens equal to it.
    """
    bits = tokens.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tokens.element_size()])
    group = torch.unique(bits, dim=0, return_inverse=True)[1]  # (L,)
    group, order = torch.sort(group, stable=True)  # equal tokens together, ordered by index
    start = torch.searchsorted(group, group)  # (L,) position of the first copy of each token
    place = torch.arange(len(group), device=tokens.device)
    representative = torch.empty_like(order)
    representative[order] = order[torch.minimum(place, start + most - 1)]
    kept = torch.zeros(len(group), dtype=torch.bool, device=tokens.device)
    kept[representative] = True
    return kept.nonzero()[:, 0], (kept.cumsum(0) - 1)[representative]


def _nearest(rows: Tensor, columns: Tensor, count: int, *, chunk: int, but_self: bool = False) -> tuple[Tensor, Tensor]:
    """Return, for each row, the nearest columns and their distances, the nearest column first.

    Of equally near columns, the column with the lower index comes first.

    It is slow to compute exact distances from differences of coordinates. So a fast matrix product gives a lower bound of each
    squared distance, and only the columns with the lowest bounds are measured exactly. If the bounds cannot prove that the
    measured columns include the nearest columns of a row, all columns are measured for this row.

    Args:
        rows: (R, D), R tokens.
        columns: (C, D), C tokens.
        count: how many columns to return per row: at most C, or at most C - 1 if `but_self` is True.
        chunk: number of rows per step. The memory use is O(chunk · (C + D)).
        but_self: True if rows and columns are the same tokens. In this case, the result of a token does not contain
            the token itself.

    Returns:
        (R, count) int64 indices; (R, count) float64 squared distances.
    """
    centre = columns.mean(dim=0, dtype=torch.float64)  # (D,)
    column_size = _squared_sizes(columns, centre, chunk)  # (C,)
    indices, distances, doubtful = [], [], []
    for part in _slices(len(rows), chunk):
        itself = torch.arange(len(rows), device=rows.device)[part] if but_self else None
        bound = _lower_bounds(rows[part], columns, centre, column_size)  # (chunk, C)
        if itself is not None:
            bound.scatter_(1, itself[:, None], math.inf)
        bound, candidates = bound.topk(min(count + SPARE, len(columns)), dim=1, largest=False)
        index, squared = _by_distance(rows[part], columns, candidates, count, itself)
        indices.append(index)
        distances.append(squared)
        doubtful.append(~(squared[:, -1] < bound[:, -1]))  # ~(a < b), not a >= b: NaN must count as doubtful
    index, squared = torch.cat(indices), torch.cat(distances)
    if count + SPARE < len(columns):  # otherwise all columns are already measured
        unproven = torch.cat(doubtful).nonzero()[:, 0]
        for part in _slices(len(unproven), chunk):
            again = unproven[part]  # indices of rows
            wide = rows[again].double(), columns.double()
            distance = torch.cdist(*wide, compute_mode="donot_use_mm_for_euclid_dist")  # (chunk, C)
            if but_self:
                distance.scatter_(1, again[:, None], math.inf)
            candidates = distance.sort(dim=1, stable=True).indices[:, :count]
            index[again], squared[again] = _by_distance(rows[again], columns, candidates, count, None)
    return index, squared


def _squared_sizes(tokens: Tensor, centre: Tensor, chunk: int) -> Tensor:
    return torch.cat([(tokens[part].double() - centre).square_().sum(dim=1) for part in _slices(len(tokens), chunk)])


def _lower_bounds(rows: Tensor, columns: Tensor, centre: Tensor, column_size: Tensor) -> Tensor:
    """Return lower bounds of the squared distances between rows and columns, (R, C) float64."""
    # Let u be half the distance from 1 to the next float. Then the rounding error of a sum of D products is at most
    # D·u·|a|·|b|, in any order of addition. So the computed |a|² + |b|² - 2ab differs from |a - b|² by at most
    # (D + 8)·u·(|a| + |b|)² ≤ 2·(D + 8)·u·(|a|² + |b|²). Twice this limit is subtracted.
    slack = 4 * (rows.shape[1] + 8) * torch.finfo(torch.float64).eps / 2
    row_size = _squared_sizes(rows, centre, len(rows))
    bound = (row_size[:, None] + column_size) * (1 - slack)  # (R, C)
    for part in _slices(rows.shape[1], DEPTH):
        bound.addmm_(rows[:, part].double() - centre[part], (columns[:, part].double() - centre[part]).T, alpha=-2)
    return bound


def _by_distance(rows: Tensor, columns: Tensor, candidates: Tensor, count: int, itself: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return, for each row, the nearest of its candidates (R, N) and their exact squared distances."""
    candidates = candidates.sort(dim=1).values  # so that, of equally near candidates, the lower index is chosen below
    wide = rows.double()
    measured = [(columns[column].double().sub_(wide)).square_().sum(dim=1) for column in candidates.unbind(1)]
    squared = torch.stack(measured, dim=1)  # (R, N)
    if itself is not None:
        squared.masked_fill_(candidates == itself[:, None], math.inf)
    squared, order = squared.sort(dim=1, stable=True)
    return candidates.gather(1, order[:, :count]), squared[:, :count]


STATIC_DISTANCE = 0.01
"""A patch is static if its mean cosine distance is below this value, as in the code of the paper's authors."""


@torch.no_grad()
def moving_groups(patches: Tensor, threshold: float = STATIC_DISTANCE) -> Tensor:
    """Return which merge groups to keep: all groups of the first step, and moving groups of later steps.

    A merge group consists of the four patches that become one visual token. At each later step, the patches are compared with
    the patches at the same place in the first step. A group moves if the mean cosine distance of its patches over all later
    steps is at least the threshold. The caller drops the patches of all other groups, and the positions of these patches.

    Args:
        patches: (T, G, P, D) patch embeddings of one clip: T time steps, G merge groups, P = 4 patches per group, D numbers.
        threshold: mean cosine distance, in [0, 2]; 0 keeps all groups.

    Returns:
        (T, G) bool, True if the group is kept.

    Raises:
        ValueError: the threshold is outside [0, 2], or `patches` has another shape.
    """
    if not 0 <= threshold <= 2:
        raise ValueError(f"static-patch threshold is {threshold}; give a cosine distance in [0, 2]")
    if patches.dim() != 4 or patches.shape[0] < 1:
        raise ValueError(f"patches have the shape {tuple(patches.shape)}; give (T, G, 4, D) with T ≥ 1")
    steps, groups = patches.shape[:2]
    keep = torch.ones(steps, groups, dtype=torch.bool, device=patches.device)
    if steps == 1 or threshold == 0:
        return keep
    first = normalize(patches[0].double(), dim=-1)  # (G, P, D)
    distance = torch.zeros(groups, dtype=torch.float64, device=patches.device)
    for step in patches[1:]:
        # The cosine distance of two unit vectors is half the square of their Euclidean distance. With this formula, small
        # distances are precise, and equal patches have distance 0 even if all their numbers are 0.
        chord = normalize(step.double(), dim=-1) - first
        distance += chord.square().sum(dim=-1).mean(dim=-1) / 2
    keep[1:] = distance / (steps - 1) >= threshold
    return keep


KERNEL = 3
CONVOLUTIONS = 3
WAVES = 4


class SharedSight(nn.Module):
    """Makes visual tokens from SAM2's embedding F: one token per frame and grid cell.

    A token describes the look of its grid cell, how the cell changes over time, and where the cell is. Changes and positions
    are added before compression, because they can't be computed from merged tokens.

    Args:
        image_width: channels of F.
        llm_width: D, the width of a token.
        motion_width: channels of the convolutions over time and space, which describe the changes.
    """

    def __init__(self, *, image_width: int, llm_width: int, motion_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(image_width)
        self.narrow = nn.Linear(image_width, motion_width)
        self.changes = nn.ModuleList(nn.Conv3d(motion_width, motion_width, KERNEL, padding=1) for _ in range(CONVOLUTIONS))
        self.token = nn.Linear(image_width + motion_width + 6 * WAVES, llm_width)

    def forward(self, image: Tensor) -> Tensor:
        """Return the visual tokens (B, T · h · w, D) of SAM2's embedding (B, T, C_img, h, w)."""
        pixels = self.norm(image.movedim(2, -1))  # (B, T, h, w, C_img)
        frames, rows, columns = pixels.shape[1:4]
        place = _waves(frames, rows, columns, image.device).to(pixels.dtype).expand(len(pixels), -1, -1, -1, -1)
        tokens: Tensor = self.token(torch.cat([pixels, self.motion(pixels), place], dim=-1))
        return tokens.flatten(1, 3)

    def motion(self, pixels: Tensor) -> Tensor:
        """Return features (B, T, h, w, motion_width) of how the embedding changes from frame to frame.

        `pixels` (B, T, h, w, C_img) is the normalised embedding F.
        """
        states = self.narrow(pixels).movedim(-1, 1)  # (B, m, T, h, w)
        for convolution in self.changes:
            states = states + nn.functional.gelu(convolution(states))
        moved: Tensor = states.movedim(1, -1)
        return moved


class NamePooling(nn.Module):
    """Adds the hidden states of the categories to the hidden state at `<SEG>`.

    The state of a category is multiplied by the probability that the clip shows the category. A linear layer predicts this
    probability from the state.

    Args:
        width: D, the width of a hidden state.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.presence = nn.Linear(width, 1)

    def forward(self, seg: Tensor, names: Tensor) -> tuple[Tensor, Tensor]:
        """Return `seg` (B, D) plus the weighted sum of `names` (B, C, D), and the weights as logits (B, C)."""
        logits = self.presence(names)[..., 0]
        return seg + (logits.sigmoid()[..., None] * names).sum(dim=1), logits


def _waves(frames: int, rows: int, columns: int, device: torch.device) -> Tensor:
    """Return the position encoding (T, h, w, 6 · WAVES): sines and cosines of time, row and column.

    Each axis has WAVES frequencies: half a wave over the length of the axis, then 1, 2 and 4 waves.
    """
    parts = []
    for axis, length in enumerate((frames, rows, columns)):
        at = (torch.arange(length, device=device) + 0.5) / length * torch.pi
        angles = at[:, None] * 2 ** torch.arange(WAVES, device=device)  # (length, WAVES)
        shape = [1, 1, 1, 2 * WAVES]
        shape[axis] = length
        parts.append(torch.cat([angles.sin(), angles.cos()], dim=1).view(shape).expand(frames, rows, columns, -1))
    return torch.cat(parts, dim=-1)
