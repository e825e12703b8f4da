"""Tests of dropping static patches: comparison with a simple loop."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vadcli.detectors.mllm.compress import moving_groups


def slow_distance(patches: Tensor, group: int) -> float:
    """Return the mean cosine distance of one group to the same group in the first step."""
    distances = []
    for step in range(1, patches.shape[0]):
        for patch in range(patches.shape[2]):
            a, b = patches[0, group, patch].double().tolist(), patches[step, group, patch].double().tolist()
            dot = sum(x * y for x, y in zip(a, b, strict=True))
            distances.append(1 - dot / (math.hypot(*a) * math.hypot(*b)))
    return sum(distances) / len(distances)


def film(steps: int, groups: int, seed: int = 0) -> Tensor:
    """Return patches (T, G, 4, 12); a group with a higher index moves more."""
    generator = torch.Generator().manual_seed(seed)
    still = torch.randn(groups, 4, 12, generator=generator)
    amount = torch.logspace(-2, 0, groups)[:, None, None]
    return torch.stack([still] + [still + amount * torch.randn(groups, 4, 12, generator=generator) for _ in range(steps - 1)])


@given(
    st.integers(2, 5),
    st.integers(1, 9),
    st.sampled_from([1e-4, 0.01, 0.1, 0.5]),
    st.sampled_from([torch.float32, torch.float16]),
    st.integers(0, 1000),
)
@settings(max_examples=60)
def test_equals_an_obvious_loop(steps: int, groups: int, threshold: float, dtype: torch.dtype, seed: int) -> None:
    patches = film(steps, groups, seed).to(dtype)
    keep = moving_groups(patches, threshold)
    assert keep.shape == (steps, groups)
    assert keep[0].all(), "the first step is always kept"
    for group in range(groups):
        distance = slow_distance(patches, group)
        if abs(distance - threshold) > 1e-9:
            assert keep[1:, group].tolist() == [distance >= threshold] * (steps - 1)


def test_drops_what_stands_still_and_keeps_what_moves() -> None:
    patches = film(4, 1)[:1].repeat(4, 3, 1, 1)  # three equal groups, four equal steps
    patches[2, 1] = torch.randn(4, 12, generator=torch.Generator().manual_seed(1))  # the middle group moves once
    assert moving_groups(patches).tolist() == [[True] * 3] + [[False, True, False]] * 3


def test_one_moving_patch_counts_by_its_share_of_the_group() -> None:
    patches = torch.zeros(2, 1, 4, 2)
    patches[..., 0] = 1.0
    patches[1, 0, 3] = torch.tensor([0.0, 1.0])  # cosine distance 1 in one of four patches
    assert moving_groups(patches, 0.2499)[1].tolist() == [True]
    assert moving_groups(patches, 0.2501)[1].tolist() == [False]


def test_brightness_alone_is_not_motion() -> None:
    first = film(1, 5)
    assert not moving_groups(torch.cat([first, 3 * first]), 1e-6)[1].any()


def test_zeros_that_stay_are_static_and_zeros_that_change_move() -> None:
    patches = torch.zeros(2, 2, 4, 3)
    patches[1, 1] = 1.0
    assert moving_groups(patches)[1].tolist() == [False, True]


def test_a_single_step_and_a_threshold_of_zero_keep_everything() -> None:
    assert moving_groups(film(1, 6)).all()
    assert moving_groups(film(1, 6).repeat(3, 1, 1, 1), 0.0).all()


@pytest.mark.parametrize("threshold", [-0.1, 2.1, math.nan])
def test_threshold_is_a_cosine_distance(threshold: float) -> None:
    with pytest.raises(ValueError, match="static-patch threshold is"):
        moving_groups(film(2, 2), threshold)


def test_patches_have_four_dimensions() -> None:
    with pytest.raises(ValueError, match="give \\(T, G, 4, D\\)"):
        moving_groups(torch.zeros(2, 4, 8))
