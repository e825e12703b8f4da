"""Visual token compression by reverse attention (paper 3.4): L tokens of a clip become about ratio · L, no weights involved.

Densities -> the densest tokens are the background's references -> every token goes to its nearest reference -> each reference
becomes a softmax-weighted sum of its tokens in which what resembles it least counts most.

Selecting carries no gradient, merging does. Whatever dtype comes in, everything is computed in float64 and cast back: then
the order in which a GPU happens to add up doesn't show, and neither autocast nor TF32 applies.

Distances are as exact as differences of coordinates, at the price of a matrix product: the product of the centred tokens
gives a *lower bound* of every squared distance (its rounding error is bounded), the few columns of the lowest bounds are
measured by their differences, and where the last of these bounds doesn't prove that no nearer column was left out, the row is
measured against all of them.

What a model made from nothing has in place of, and beside, Qwen2-VL's own parts: none of it is the paper's.

A vision tower and a language model of a few million weights don't learn to see from a few thousand clips. So the small model's
language model reads what SAM2's image encoder sees (`SharedSight`), and each name's own verdict is gathered into `<SEG>`
(`NamePooling`). The base presets use neither.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

import torch
from torch import Tensor, nn

Positions = Literal["mrope", "sequential"]
Method = Literal["reverse_attention", "mean", "densest", "least_dense", "random"]

EPSILON = 1e-10  # keeps the density of equal tokens finite
SPARE = 8  # columns measured beyond the neighbours asked for: more of them, fewer rows that need them all
DEPTH = 512  # coordinates widened to float64 at a time


@dataclass(frozen=True)
class CompressionOptions:
    """How strongly and by what neighbourhoods a clip's visual tokens are compressed.

    Args:
        ratio: share of the tokens to keep, in (0, 1]; 1 keeps all as they are.
        method: `reverse_attention`, the paper's; what it is compared with: `mean` gives each reference the plain mean of its
            tokens, `densest` and `least_dense` keep such tokens as they are, `random` any, the same ones of every clip.
        neighbours: k of the k nearest neighbours that the density is taken over, ≥ 1.
        positions: what the kept tokens' rotary positions are: their own 3-D ones, or counted on in one dimension. Only whoever
            places the tokens in the sequence reads it.
        chunk: rows of the distance matrix held at a time, ≥ 1; changes memory and time, not the result.
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
    """One clip's tokens after compression.

    Args:
        tokens: (M, D), in the input's dtype.
        kept: (M,) int64, ascending: which of the L tokens each one replaces.
        owner: (L,) int64: which of the M each of the L tokens was merged into.
    """

    tokens: Tensor
    kept: Tensor
    owner: Tensor


def compress(tokens: Tensor, options: CompressionOptions) -> Compressed:
    """Compress one clip's visual tokens.

    Args:
        tokens: (L, D) floating point, finite, L ≥ 1.
        options: ratio and neighbourhood.

    Raises:
        ValueError: tokens is not a non-empty matrix.
    """
    if tokens.dim() != 2 or tokens.shape[0] < 1:
        raise ValueError(f"tokens to compress have the shape {tuple(tokens.shape)}; give (L, D) with L ≥ 1")
    length = tokens.shape[0]
    count = kept_count(length, options.ratio)
    if count == length:
        everything = torch.arange(length, device=tokens.device)
        return Compressed(tokens, everything, everything)
    kept = _chosen(tokens, count, options)  # (M,)
    owner = assign(tokens, kept, options.chunk)  # (L,)
    if options.method == "reverse_attention":
        return Compressed(merge(tokens, kept, owner, options.chunk), kept, owner)
    if options.method == "mean":
        return Compressed(merge_evenly(tokens, owner, count), kept, owner)
    return Compressed(tokens[kept], kept, owner)


def _chosen(tokens: Tensor, count: int, options: CompressionOptions) -> Tensor:
    """(M,) int64 ascending: the tokens that stand for all."""
    if options.method == "random":
        generator = torch.Generator().manual_seed(0)
        return torch.randperm(len(tokens), generator=generator)[:count].sort().values.to(tokens.device)
    density = densities(tokens, options.neighbours, options.chunk)  # (L,)
    return references(-density if options.method == "least_dense" else density, count)


def compress_clips(tokens: Tensor, options: CompressionOptions) -> list[Compressed]:
    """Compress B clips of one length, (B, L, D), each as if it were alone."""
    return [compress(clip, options) for clip in tokens]


def kept_count(length: int, ratio: float) -> int:
    """M = max(1, ⌊ratio · length⌋), of the ratio as it is written: 0.29 of 100 tokens are 29, though 0.29 * 100 is below 29."""
    return max(1, math.floor(Fraction(repr(float(ratio))) * length))


@torch.no_grad()
def densities(tokens: Tensor, neighbours: int, chunk: int) -> Tensor:
    """Local reachability density of each token (LOF's): k / Σ over its k nearest of max(k-distance of the neighbour, distance).

    Args:
        tokens: (L, D), L ≥ 1.
        neighbours: k; min(k, L - 1) where there are fewer others. Among equally near ones the lower index is the nearer.
        chunk: rows of the distance matrix held at a time.

    Returns:
        (L,) float64, all 1 for a single token.
    """
    if tokens.shape[0] == 1:
        return torch.ones(1, dtype=torch.float64, device=tokens.device)
    # Equals are at distance 0: after k + 1 of them a further copy is nobody's neighbour and has the neighbours of the copy
    # before it. Without this a clip of black frames would have all its rows measured in full.
    few, stand_in = _without_surplus_copies(tokens, neighbours + 1)
    tokens = tokens[few]
    k = min(neighbours, tokens.shape[0] - 1)
    nearest, squared = _nearest(tokens, tokens, k, chunk=chunk, but_self=True)  # (L', k) each
    distance = (squared / tokens.shape[1]).sqrt()
    k_distance = distance[:, -1]  # (L',)
    reach = torch.maximum(k_distance[nearest], distance).sort(dim=1).values  # (L', k), sorted: equal terms, equal sums
    return (k / (reach.sum(dim=1) + EPSILON))[stand_in]


def references(density: Tensor, count: int) -> Tensor:
    """Indices of the `count` densest tokens, (M,) ascending; of equally dense ones the lower indices."""
    return torch.sort(density, descending=True, stable=True).indices[:count].sort().values


@torch.no_grad()
def assign(tokens: Tensor, kept: Tensor, chunk: int) -> Tensor:
    """Which reference each token is nearest to: (L,) int64 in 0..M-1, of equally near ones the lower; a reference is its own.

    Args:
        tokens: (L, D).
        kept: (M,) the references' indices, ascending.
        chunk: rows of the distance matrix held at a time.
    """
    few, _ = _without_surplus_copies(tokens[kept], 1)
    nearest, _ = _nearest(tokens, tokens[kept[few]], 1, chunk=chunk)  # (L, 1)
    owner = few[nearest[:, 0]]
    owner[kept] = torch.arange(len(kept), device=tokens.device)
    return owner


def merge(tokens: Tensor, kept: Tensor, owner: Tensor, chunk: int = 1024) -> Tensor:
    """Reverse attention of each reference over its own tokens: Σ softmax(-⟨reference, token⟩ / √D) · token.

    Exact and segment by segment: O(L · D), no (M, L) attention. Differentiable in the tokens.

    Args:
        tokens: (L, D).
        kept: (M,) the references' indices.
        owner: (L,) which reference each token belongs to; every reference owns at least itself.
        chunk: tokens widened to float64 at a time.

    Returns:
        (M, D) in the dtype of tokens.
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


def merge_evenly(tokens: Tensor, owner: Tensor, count: int) -> Tensor:
    """The mean of the tokens that each of `count` references owns, (M, D) in the dtype of tokens."""
    sums = tokens.new_zeros(count, tokens.shape[1], dtype=torch.float64).index_add(0, owner, tokens.double())
    return (sums / torch.bincount(owner, minlength=count)[:, None]).to(tokens.dtype)


def _slices(length: int, step: int) -> list[slice]:
    return [slice(start, start + step) for start in range(0, length, step)]


def _without_surplus_copies(tokens: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """At most the `most` first of equal tokens each.

    Returns:
        (L',) their indices, ascending; (L,) which of them each token is, or, for a surplus copy, the last equal one left.
    """
    bits = tokens.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tokens.element_size()])
    group = torch.unique(bits, dim=0, return_inverse=True)[1]  # (L,)
    group, order = torch.sort(group, stable=True)  # equals beside one another, by index
    start = torch.searchsorted(group, group)  # (L,) where each one's equals begin
    place = torch.arange(len(group), device=tokens.device)
    representative = torch.empty_like(order)
    representative[order] = order[torch.minimum(place, start + most - 1)]
    few = torch.zeros(len(group), dtype=torch.bool, device=tokens.device)
    few[representative] = True
    return few.nonzero()[:, 0], (few.cumsum(0) - 1)[representative]


def _nearest(rows: Tensor, columns: Tensor, count: int, *, chunk: int, but_self: bool = False) -> tuple[Tensor, Tensor]:
    """The `count` columns nearest to each row, nearest first, and of equally near ones the lower index first.

    Args:
        rows: (R, D).
        columns: (C, D).
        count: at most C, or C - 1 with but_self.
        chunk: rows at a time: memory is O(chunk · (C + D)).
        but_self: rows and columns are the same tokens, and none is its own neighbour.

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
        doubtful.append(~(squared[:, -1] < bound[:, -1]))  # ~: what is not a number is doubtful too
    index, squared = torch.cat(indices), torch.cat(distances)
    if count + SPARE < len(columns):  # else all were measured
        unproven = torch.cat(doubtful).nonzero()[:, 0]
        for part in _slices(len(unproven), chunk):
            some = unproven[part]
            candidates = _search_all(rows[some], columns, count, some if but_self else None)
            index[some], squared[some] = _by_distance(rows[some], columns, candidates, count, None)
    return index, squared


def _squared_sizes(tokens: Tensor, centre: Tensor, chunk: int) -> Tensor:
    return torch.cat([(tokens[part].double() - centre).square_().sum(dim=1) for part in _slices(len(tokens), chunk)])


def _lower_bounds(rows: Tensor, columns: Tensor, centre: Tensor, column_size: Tensor) -> Tensor:
    """(R, C) float64, never above the squared distances.

    A product of D terms is off by at most D·u·|a|·|b| in whatever order it is added up (u: half the spacing at 1), |a - b|²
    worked out as |a|² + |b|² - 2ab by at most (D + 8)·u·(|a| + |b|)² ≤ 2·(D + 8)·u·(|a|² + |b|²). Twice that is taken off.
    """
    slack = 4 * (rows.shape[1] + 8) * torch.finfo(torch.float64).eps / 2
    row_size = _squared_sizes(rows, centre, len(rows))
    bound = (row_size[:, None] + column_size) * (1 - slack)  # (R, C)
    for some in _slices(rows.shape[1], DEPTH):
        bound.addmm_(rows[:, some].double() - centre[some], (columns[:, some].double() - centre[some]).T, alpha=-2)
    return bound


def _by_distance(rows: Tensor, columns: Tensor, candidates: Tensor, count: int, itself: Tensor | None) -> tuple[Tensor, Tensor]:
    """The `count` nearest of each row's candidates (R, N), by the differences of their coordinates; see _nearest."""
    candidates = candidates.sort(dim=1).values  # so that the stable sort below leaves ties to the lower index
    wide = rows.double()
    measured = [(columns[column].double().sub_(wide)).square_().sum(dim=1) for column in candidates.unbind(1)]
    squared = torch.stack(measured, dim=1)  # (R, N)
    if itself is not None:
        squared.masked_fill_(candidates == itself[:, None], math.inf)
    squared, order = squared.sort(dim=1, stable=True)
    return candidates.gather(1, order[:, :count]), squared[:, :count]


def _search_all(rows: Tensor, columns: Tensor, count: int, itself: Tensor | None) -> Tensor:
    """(R, count) nearest columns by the differences to all of them; see _nearest. Slow: only for the rows that need it."""
    distance = torch.cdist(rows.double(), columns.double(), compute_mode="donot_use_mm_for_euclid_dist")  # (R, C)
    if itself is not None:
        distance.scatter_(1, itself[:, None], math.inf)
    return distance.sort(dim=1, stable=True).indices[:, :count]


KERNEL = 3
CONVOLUTIONS = 3
WAVES = 4


class SharedSight(nn.Module):
    """Visual tokens from SAM2's embedding F: one a frame and cell, with how it changes and where it is.

    Change and place are part of a token before compression, so that they outlive the merging of tokens.

    Args:
        image_width: channels of F.
        llm_width: D.
        motion_width: channels of the convolutions over time and picture.
    """

    def __init__(self, *, image_width: int, llm_width: int, motion_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(image_width)
        self.narrow = nn.Linear(image_width, motion_width)
        self.changes = nn.ModuleList(nn.Conv3d(motion_width, motion_width, KERNEL, padding=1) for _ in range(CONVOLUTIONS))
        self.token = nn.Linear(image_width + motion_width + 6 * WAVES, llm_width)

    def forward(self, image: Tensor) -> Tensor:
        """(B, T, C_img, h, w) -> (B, T · h · w, D)."""
        pixels = self.norm(image.movedim(2, -1))  # (B, T, h, w, C_img)
        frames, rows, columns = pixels.shape[1:4]
        place = _waves(frames, rows, columns, image.device).to(pixels.dtype).expand(len(pixels), -1, -1, -1, -1)
        tokens: Tensor = self.token(torch.cat([pixels, self.motion(pixels), place], dim=-1))
        return tokens.flatten(1, 3)

    def motion(self, pixels: Tensor) -> Tensor:
        """How each cell changes: normed features (B, T, h, w, C_img) -> (B, T, h, w, motion_width)."""
        states = self.narrow(pixels).movedim(-1, 1)  # (B, m, T, h, w)
        for convolution in self.changes:
            states = states + nn.functional.gelu(convolution(states))
        moved: Tensor = states.movedim(1, -1)
        return moved


class NamePooling(nn.Module):
    """`<SEG>`'s hidden state and the sum of the names', each weighed by how likely the name is there by its own state.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.presence = nn.Linear(width, 1)

    def forward(self, seg: Tensor, names: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D), (B, C, D) -> gathered (B, D), presence logits (B, C)."""
        logits = self.presence(names)[..., 0]
        return seg + (logits.sigmoid()[..., None] * names).sum(dim=1), logits


def _waves(frames: int, rows: int, columns: int, device: torch.device) -> Tensor:
    """(T, h, w, 6 · WAVES): sines and cosines of time, row and column, each from half a wave to four over its length."""
    parts = []
    for axis, length in enumerate((frames, rows, columns)):
        at = (torch.arange(length, device=device) + 0.5) / length * torch.pi
        angles = at[:, None] * 2 ** torch.arange(WAVES, device=device)  # (length, WAVES)
        shape = [1, 1, 1, 2 * WAVES]
        shape[axis] = length
        parts.append(torch.cat([angles.sin(), angles.cos()], dim=1).view(shape).expand(frames, rows, columns, -1))
    return torch.cat(parts, dim=-1)
