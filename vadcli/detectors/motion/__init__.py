"""What the motion detector can be set to. Each value that changes scores is here and goes into the fingerprint."""

from __future__ import annotations

from dataclasses import dataclass

MODEL_VERSION = 1
"""Raised when a stored camera model can't be read as before; older models are then refitted."""


@dataclass(frozen=True)
class MotionOptions:
    """The motion detector's settings; lengths in pixels are of the delivered picture, about 360x240.

    Attributes:
        clip_frames: T, sampled frames a clip.
        rate_hz: sampled frames a second.
        max_area_px: delivered picture area.
        cell_px: side of a grid cell.
        box_cells: side of the square, in cells, over which motion is averaged: about the size of a person.
        steadying_s: standard deviation of the Gaussian over time of each cell; masks show these.
        smoothing_s: standard deviation of the Gaussian over time of the frame values.
        gap_s: samples farther apart than this (and than 3 usual steps) are never smoothed together.
        change_floor: gray levels of change that count as nothing.
        noise_factor: a pair's median change, times this, counts as noise.
        speed_floor_px: speed that counts as nothing.
        speed_cap_px: higher speeds are taken as this; optical flow is not to be trusted beyond.
        foreground_low, foreground_high: gray levels from the background where the gate begins to open and is open.
        max_scenes: views kept a camera.
        samples: M, moving cells kept a camera for rarity.
        neighbour_share: rarity is the distance to the neighbour of this rank among the samples.
        exclude_s: samples of the same video within this time are not neighbours.
        position_weight: how much a picture's width of distance counts against one unit of a scaled feature.
        moving_px: camera motion, pixels a sample, from which the camera counts as moving.
        moving_share: share of the video's samples that makes it a moving camera.
    """

    clip_frames: int = 32
    rate_hz: float = 10.0
    max_area_px: int = 86_400
    cell_px: int = 4
    box_cells: int = 5
    steadying_s: float = 0.1
    smoothing_s: float = 0.4
    gap_s: float = 1.0
    change_floor: float = 1.0
    noise_factor: float = 1.5
    speed_floor_px: float = 0.1
    speed_cap_px: float = 16.0
    foreground_low: float = 6.0
    foreground_high: float = 18.0
    max_scenes: int = 8
    samples: int = 800
    neighbour_share: float = 0.05
    exclude_s: float = 2.0
    position_weight: float = 12.0
    moving_px: float = 0.5
    moving_share: float = 0.3
