"""Tests of visual token compression: comparison with a slow and simple reference in float64."""

from __future__ import annotations

import math
import weakref
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vadcli.detectors.mllm.compress import (
    CompressionOptions,
    assign,
    compress,
    densities,
    kept_count,
    merge,
    references,
)

RATIOS = (1.0, 0.5, 0.2, 0.1, 0.05)


# The reference uses numpy in float64, computes one row at a time, and follows the formulas step by step.


def row_distances(rows: np.ndarray, row: np.ndarray) -> np.ndarray:
    return np.sqrt(((rows - row) ** 2).sum(1) / rows.shape[1])


def slow_densities(x: np.ndarray, neighbours: int) -> np.ndarray:
    length = len(x)
    k = min(neighbours, length - 1)
    near, distance = np.zeros((length, k), int), np.zeros((length, k))
    for i in range(length):
        d = row_distances(x, x[i])
        d[i] = np.inf
        near[i] = np.argsort(d, kind="stable")[:k]
        distance[i] = d[near[i]]
    k_distance = distance[:, -1]
    return k / (np.maximum(k_distance[near], distance).sum(1) + 1e-10)


def slow_references(density: np.ndarray, count: int) -> np.ndarray:
    return np.sort(np.argsort(-density, kind="stable")[:count])


def slow_assign(x: np.ndarray, kept: np.ndarray) -> np.ndarray:
    owner = np.array([row_distances(x[kept], row).argmin() for row in x])
    owner[kept] = np.arange(len(kept))
    return owner


def slow_merge(x: np.ndarray, kept: np.ndarray, owner: np.ndarray) -> np.ndarray:
    out = np.zeros((len(kept), x.shape[1]))
    for b, i in enumerate(kept):
        mine = x[owner == b]
        logits = -(mine @ x[i]) / math.sqrt(x.shape[1])
        weight = np.exp(logits - logits.max())
        out[b] = (weight[:, None] * mine).sum(0) / weight.sum()
    return out


def check_against_reference(tokens: Tensor, options: CompressionOptions, *, near: float = 1e-5) -> None:
    """Compare with the reference.

    Only tokens with a density very near to the threshold may be chosen differently.
    """
    x = tokens.double().numpy()
    count = max(1, math.floor(Fraction(str(options.ratio)) * len(x)))
    result = compress(tokens, options)
    kept = result.kept.numpy()
    assert len(kept) == count
    assert (np.diff(kept) > 0).all()
    if len(x) > 1 and count < len(x):
        density = slow_densities(x, options.neighbours)
        np.testing.assert_allclose(densities(tokens, options.neighbours, options.chunk).numpy(), density, rtol=near)
        wanted = slow_references(density, count)
        threshold = density[wanted].min()
        for i in np.setxor1d(kept, wanted):
            assert abs(density[i] - threshold) <= near * threshold
    owner = slow_assign(x, kept)
    np.testing.assert_array_equal(result.owner.numpy(), owner)
    merged = slow_merge(x, kept, owner)
    assert result.tokens.dtype == tokens.dtype
    tolerance = 1e-4 if tokens.dtype == torch.float32 else 2 * torch.finfo(tokens.dtype).eps
    assert np.abs(result.tokens.double().numpy() - merged).max() <= tolerance * max(1.0, np.abs(merged).max())


def clusters(length: int, width: int, *, norm: float, spread: float, groups: int = 4, seed: int = 0) -> Tensor:
    """Return dense groups of tokens that are far from the origin and from each other."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.nn.functional.normalize(torch.randn(groups, width, generator=generator), dim=1) * norm
    return centres[torch.arange(length) % groups] + spread * torch.randn(length, width, generator=generator)


def random_tokens(length: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(length, width, generator=torch.Generator().manual_seed(seed))


def unprovable(length: int) -> Tensor:
    """Return two groups that are so far apart that the bounds are useless: every row needs all columns."""
    tokens = random_tokens(length, 4)
    tokens[:, 0] = 1e8 * (-1.0) ** torch.arange(length)
    return tokens


# Comparison with the reference


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 9, 10, 17, 40, 333])
def test_equals_the_reference(length: int, ratio: float) -> None:
    check_against_reference(random_tokens(length, 24), CompressionOptions(ratio=ratio, chunk=50))


@pytest.mark.parametrize("length", [2500, 6000])
def test_equals_the_reference_at_full_length(length: int) -> None:
    tokens = random_tokens(length, 6)
    x = tokens.double().numpy()
    density = slow_densities(x, 8)
    got = densities(tokens, 8, 1024)
    np.testing.assert_allclose(got.numpy(), density, rtol=1e-9)
    for ratio in RATIOS[1:]:
        kept = references(got, kept_count(length, ratio))
        np.testing.assert_array_equal(kept.numpy(), slow_references(density, len(kept)))
    owner = assign(tokens, kept, 1024)  # at 0.05
    np.testing.assert_array_equal(owner.numpy(), slow_assign(x, kept.numpy()))
    np.testing.assert_allclose(merge(tokens, kept, owner).numpy(), slow_merge(x, kept.numpy(), owner.numpy()), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_computed_wide_and_cast_back(dtype: torch.dtype) -> None:
    check_against_reference(random_tokens(200, 32).to(dtype), CompressionOptions(chunk=64))


def test_wide_tokens_are_taken_in_slices_of_their_coordinates() -> None:
    check_against_reference(random_tokens(60, 1300), CompressionOptions())


@pytest.mark.parametrize("ratio", RATIOS)
def test_clusters_far_from_the_origin(ratio: float) -> None:
    tokens = clusters(400, 64, norm=1e3, spread=1e-2)
    shortcut = (tokens.square().sum(1)[:, None] + tokens.square().sum(1) - 2 * tokens @ tokens.T).clamp(min=0).sqrt()
    true = torch.cdist(tokens.double(), tokens.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert (shortcut[true < 1] - true[true < 1]).abs().max() > 0.1, "these tokens should defeat the plain shortcut"
    check_against_reference(tokens, CompressionOptions(ratio=ratio))


def test_small_differences_beside_far_tokens() -> None:
    check_against_reference(unprovable(120), CompressionOptions(chunk=16))


def test_huge_and_tiny_tokens() -> None:
    for scale in (1e-20, 1e15):
        check_against_reference(random_tokens(100, 8) * scale, CompressionOptions())


@given(
    st.integers(1, 40),
    st.integers(1, 5),
    st.sampled_from(RATIOS),
    st.integers(1, 10),
    st.integers(1, 50),
    st.sampled_from([torch.float32, torch.float16]),
    st.integers(0, 10_000),
)
@settings(max_examples=150)
def test_equals_the_reference_on_a_lattice(
    length: int, width: int, ratio: float, neighbours: int, chunk: int, dtype: torch.dtype, seed: int
) -> None:
    """Tokens of small whole numbers have many ties, in which the lower index must be chosen."""
    tokens = torch.randint(-2, 3, (length, width), generator=torch.Generator().manual_seed(seed)).to(dtype)
    check_against_reference(tokens, CompressionOptions(ratio=ratio, neighbours=neighbours, chunk=chunk), near=1e-12)


@given(st.integers(2, 60), st.sampled_from(RATIOS), st.integers(1, 12), st.integers(0, 10_000))
@settings(max_examples=60)
def test_equals_the_reference_on_copies_of_few_tokens(length: int, ratio: float, neighbours: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    few = torch.randn(4, 5, generator=generator)
    tokens = few[torch.randint(0, 4, (length,), generator=generator)]
    check_against_reference(tokens, CompressionOptions(ratio=ratio, neighbours=neighbours), near=1e-12)


# Undefined cases of the formula


def test_ratio_1_and_a_single_token_are_the_identity() -> None:
    tokens = random_tokens(30, 4)
    for given_tokens, ratio in ((tokens, 1.0), (tokens[:1], 0.05)):
        result = compress(given_tokens, CompressionOptions(ratio=ratio))
        assert torch.equal(result.tokens, given_tokens)
        assert result.kept.tolist() == result.owner.tolist() == list(range(len(given_tokens)))
    everything = torch.arange(30)
    assert torch.equal(assign(tokens, everything, 7), everything)
    assert torch.allclose(merge(tokens, everything, everything), tokens), "and so is the computation where nothing is left out"


def test_equal_tokens_are_merged_in_order_and_measured_once() -> None:
    tokens = random_tokens(1, 16).expand(3000, 16).contiguous()
    result = compress(tokens, CompressionOptions(ratio=0.1))
    assert result.kept.tolist() == list(range(300))
    assert result.owner.tolist() == list(range(300)) + [0] * 2700
    assert torch.allclose(result.tokens, tokens[:300])
    assert torch.allclose(densities(tokens, 8, 64), torch.tensor(8 / 1e-10, dtype=torch.float64))


def test_a_reference_belongs_to_itself_beside_an_equal_one() -> None:
    tokens = torch.tensor([[0.0], [0.0], [0.0], [5.0]])
    assert assign(tokens, torch.tensor([1, 2]), 8).tolist() == [0, 0, 1, 0]


def test_what_resembles_the_background_least_weighs_most() -> None:
    tokens = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    merged = merge(tokens, torch.tensor([0]), torch.tensor([0, 0, 0]))
    same, other = math.exp(-1 / math.sqrt(2)), 1.0
    total = 2 * same + other
    assert torch.allclose(merged, torch.tensor([[2 * same / total, other / total]]))


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_count_of_kept_tokens_is_exact(length: int, parts_in_10_000: int) -> None:
    assert kept_count(length, parts_in_10_000 / 10_000) == max(1, length * parts_in_10_000 // 10_000)


def test_count_of_kept_tokens_does_not_follow_rounding() -> None:
    assert math.floor(0.29 * 100) == 28
    assert kept_count(100, 0.29) == 29
    assert kept_count(5, 0.05) == 1
    assert kept_count(1, 1) == 1


def test_references_of_equal_density_are_the_first() -> None:
    assert references(torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0]), 3).tolist() == [0, 1, 3]


# The result must not depend on these


def test_chunk_changes_nothing() -> None:
    tokens = torch.cat([clusters(150, 8, norm=100, spread=0.1), random_tokens(60, 8)])
    whole = compress(tokens, CompressionOptions(chunk=1024))
    for chunk in (1, 7, 64):
        part = compress(tokens, CompressionOptions(chunk=chunk))
        assert torch.equal(part.kept, whole.kept)
        assert torch.equal(part.owner, whole.owner)
        assert torch.allclose(part.tokens, whole.tokens, atol=1e-6)


def test_autocast_does_not_reach_inside() -> None:
    tokens = clusters(200, 32, norm=100, spread=0.1)
    wanted = compress(tokens, CompressionOptions())
    with torch.autocast("cpu", torch.bfloat16):
        got = compress(tokens, CompressionOptions())
    assert torch.equal(got.kept, wanted.kept)
    assert torch.equal(got.tokens, wanted.tokens)


def test_large_norms_neither_overflow_nor_blur() -> None:
    tokens = random_tokens(100, 8) * 1e4
    result = compress(tokens, CompressionOptions())
    assert result.tokens.isfinite().all()
    check_against_reference(tokens, CompressionOptions())
    check_against_reference(random_tokens(100, 8).half() * 1e4, CompressionOptions())


def test_gradients_pass_through_the_merge() -> None:
    tokens = random_tokens(40, 6).double().requires_grad_()
    result = compress(tokens, CompressionOptions())
    assert not result.kept.requires_grad
    assert torch.autograd.gradcheck(lambda x: merge(x, result.kept, result.owner), (tokens,))
    result.tokens.sum().backward()
    assert tokens.grad is not None
    assert (tokens.grad.abs().sum(1) > 0).all(), "every token takes part in one of the kept ones"


# Memory


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations create, and the largest sum of bytes at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[int, int]] = {}  # storage -> (bytes, number of its tensors)
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, list | tuple) else (out,):
            if isinstance(tensor, Tensor):
                self._hold(tensor)
        return out

    def _hold(self, tensor: Tensor) -> None:
        key = tensor.untyped_storage()._cdata
        size, holders = self.live.get(key, (tensor.untyped_storage().nbytes(), 0))
        self.now += size if holders == 0 else 0
        self.live[key] = (size, holders + 1)
        self.peak = max(self.peak, self.now)
        weakref.finalize(tensor, self._let_go, key)

    def _let_go(self, key: int) -> None:
        size, holders = self.live.pop(key)
        if holders > 1:
            self.live[key] = (size, holders - 1)
        else:
            self.now -= size


def peak_bytes(make: Any, length: int) -> int:
    tokens = make(length)
    with torch.no_grad(), LiveBytes() as meter:
        compress(tokens, CompressionOptions(chunk=64))
    return meter.peak


@pytest.mark.parametrize("make", [lambda length: random_tokens(length, 4), unprovable])
def test_memory_grows_linearly(make: Any) -> None:
    small, large = peak_bytes(make, 1500), peak_bytes(make, 6000)
    assert large < 4.2 * small
    assert large < 64 * 6000 * 8 * 6, "a few chunks of rows, nothing like 6,000²"


def test_the_meter_sees_quadratic_memory() -> None:
    def naive(length: int) -> int:
        x = random_tokens(length, 4)
        with torch.no_grad(), LiveBytes() as meter:
            torch.cdist(x, x).topk(9, largest=False)
        return meter.peak

    assert naive(2000) > 3.5 * naive(1000)
    assert naive(2000) >= 2000 * 2000 * 4


# Options


@pytest.mark.parametrize(
    ("wrong", "value"),
    [
        ({"ratio": 0.0}, "0.0"),
        ({"ratio": 1.5}, "1.5"),
        ({"ratio": math.nan}, "nan"),
        ({"neighbours": 0}, "0"),
        ({"positions": "absolute"}, "absolute"),
        ({"chunk": 0}, "0"),
    ],
)
def test_options_check_themselves(wrong: dict[str, Any], value: str) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))} is .*{value}.*; give "):
        CompressionOptions(**wrong)


@pytest.mark.parametrize("shape", [(0, 4), (4,), (1, 4, 4)])
def test_only_a_matrix_of_tokens_is_taken(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"give \(L, D\)"):
        compress(torch.zeros(shape), CompressionOptions())


# Methods for comparison


def test_the_mean_takes_all_tokens_of_a_set_alike() -> None:
    tokens = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    found = compress(tokens, CompressionOptions(ratio=0.25, method="mean"))
    paper = compress(tokens, CompressionOptions(ratio=0.25))
    assert torch.equal(found.kept, paper.kept)
    assert torch.equal(found.owner, paper.owner)
    for place in range(len(found.kept)):
        torch.testing.assert_close(found.tokens[place], tokens[found.owner == place].mean(dim=0), atol=1e-6, rtol=1e-6)
    assert not torch.allclose(found.tokens, paper.tokens, atol=1e-3)


@pytest.mark.parametrize("method", ["densest", "least_dense", "random"])
def test_keeping_leaves_tokens_as_they_are(method: Any) -> None:
    tokens = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    found = compress(tokens, CompressionOptions(ratio=0.25, method=method))
    assert torch.equal(found.tokens, tokens[found.kept])
    assert len(found.kept) == 10
    density = densities(tokens, 8, 1024)
    left = density[[place for place in range(40) if place not in found.kept.tolist()]]
    if method == "densest":
        assert density[found.kept].min() >= left.max()
    if method == "least_dense":
        assert density[found.kept].max() <= left.min()
    if method == "random":
        again = compress(torch.randn(40, 6), CompressionOptions(ratio=0.25, method=method))
        assert torch.equal(again.kept, found.kept), "the same places of every clip"


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(ValueError, match=r"best.*reverse_attention"):
        CompressionOptions(method="best")  # type: ignore[arg-type]
