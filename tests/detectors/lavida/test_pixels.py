"""Tests of the pixels for both encoders: comparison with the image processors of transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vadcli.detectors.lavida.masks import IMAGENET_MEAN, IMAGENET_STD, sam_pixels
from vadcli.detectors.mllm.qwen import CLIP_MEAN, CLIP_STD, normalise, qwen_patches, resize

PX = 28 * 28


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """Return an image with smooth and textured parts, as in real videos."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("size", [(240, 320), (320, 240), (270, 480), (101, 37), (28, 28)])
def test_patches_and_grid_equal_the_processors(size: tuple[int, int]) -> None:
    low, high = 160 * PX, 192 * PX
    frames = np.stack([picture(*size, seed) for seed in range(4)])
    got, grid = qwen_patches(torch.from_numpy(frames)[None], min_px=low, max_px=high)
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": low, "longest_edge": high})
    images = [processor(images=[Image.fromarray(frame)], return_tensors="pt") for frame in frames]
    assert images[0]["image_grid_thw"].tolist() == [[1, grid.rows, grid.columns]]
    assert got.shape == (1, grid.patches, 3 * 2 * 14 * 14)
    # The processor repeats an image in time; a pair of a video has two different frames.
    pages = torch.stack([image["pixel_values"] for image in images]).view(2, 2, -1, 3, 2, 14, 14)
    wanted = torch.stack([pages[:, 0, :, :, 0], pages[:, 1, :, :, 1]], dim=3)  # (pairs, P, 3, 2, 14, 14)
    levels = (got.view(2, -1, 3, 2, 14, 14) - wanted) * torch.tensor(CLIP_STD).view(3, 1, 1, 1) * 255
    # PIL rounds to whole levels between its two passes; torch does not.
    assert levels.abs().max() <= 6
    assert (levels.abs() > 1.5).float().mean() < 0.001


def test_a_frame_larger_than_the_limit_is_shrunk_and_a_small_one_grown() -> None:
    for size in ((1080, 1920), (60, 80)):
        _, grid = qwen_patches(torch.zeros(1, 2, *size, 3, dtype=torch.uint8), min_px=160 * PX, max_px=192 * PX)
        assert 160 * PX <= grid.rows * grid.columns * 14 * 14 <= 192 * PX
        assert grid.tokens == grid.rows * grid.columns // 4


def test_a_picture_far_too_long_for_the_rule_is_still_seen() -> None:
    patches, grid = qwen_patches(torch.zeros(1, 2, 2, 4000, 3, dtype=torch.uint8), min_px=160 * PX, max_px=192 * PX)
    assert patches.shape[1] == grid.patches > 0


def test_squares_are_squeezed_and_normalised() -> None:
    frame = picture(90, 160, 1)
    got = sam_pixels(torch.from_numpy(frame.copy())[None], 64)
    wanted = np.asarray(Image.fromarray(frame).resize((64, 64), Image.Resampling.BILINEAR)) / 255.0
    wanted = (wanted - IMAGENET_MEAN) / IMAGENET_STD
    levels = (got[0].permute(1, 2, 0).numpy() - wanted) * IMAGENET_STD * 255
    assert np.abs(levels).max() <= 2


def test_a_frame_of_the_right_size_is_not_touched() -> None:
    frame = torch.randint(0, 256, (1, 56, 84, 3), dtype=torch.uint8)
    assert torch.equal(resize(frame, 56, 84, mode="bicubic"), frame.permute(0, 3, 1, 2).float())


def test_frames_do_not_touch_each_other() -> None:
    frames = torch.randint(0, 256, (2, 4, 40, 60, 3), dtype=torch.uint8)
    both, _ = qwen_patches(frames, min_px=PX, max_px=8 * PX)
    alone, _ = qwen_patches(frames[1:], min_px=PX, max_px=8 * PX)
    assert torch.equal(both[1:], alone)


def test_normalising_gives_zero_for_the_mean() -> None:
    mean = torch.tensor(CLIP_MEAN).view(3, 1, 1).expand(3, 2, 2) * 255
    assert normalise(mean, CLIP_MEAN, CLIP_STD).abs().max() < 1e-6
