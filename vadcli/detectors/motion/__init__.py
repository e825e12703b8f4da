"""The options of the motion detector.

Every setting that changes scores is an option here, so the fingerprint of the detector contains it.
"""

from __future__ import annotations

from dataclasses import dataclass

MODEL_VERSION = 6
"""Increase this if a change makes stored camera models unusable. The engine then fits them again."""


@dataclass(frozen=True)
class MotionOptions:
    """The motion detector's options.

    All sizes in pixels refer to a frame of about 360x240, which the detector gets if `detail` is 1.

    Attributes:
        clip_frames: T, sampled frames per clip.
        rate_hz: sampled frames per second.
        max_area_px: largest area of a frame if `detail` is 1; larger frames are reduced to it.
        detail: width and height of a frame are this many times larger. Cells keep their size, so they show smaller things.
            Speeds are still in pixels of the small frame. Their floors are divided by `detail`, as the noise of the flow is.
        cell_px: side of a grid cell.
        blur_cells: standard deviation of the Gaussian that smooths the maps over space, in cells.
        steadying_s: standard deviation of the Gaussian that smooths each cell (and so the masks)
            over time. Maps are smoothed before the highest cell is taken, so that noise does not compete with motion.
        smoothing_s: standard deviation of the Gaussian that smooths the frame values over time.
        gap_s: no mean over time crosses a gap that is longer than `gap_s` and also longer than 3 usual steps.
        change_floor: gray levels of change that are subtracted as noise.
        noise_factor: the median change of a pair of frames, multiplied by this, is also subtracted.
        speed_floor_px: speed that is subtracted as noise, in pixels per pair of frames.
        disorder_floor_px: disorder that is subtracted as noise, in the same unit.
        speed_cap_px: higher speeds are cut to this; optical flow is not reliable beyond it.
        foreground_low, foreground_high: the foreground weight rises from 0 to 1 between these
            differences from the background, in gray levels.
        max_scenes: the largest number of scenes per camera.
        samples: M, the number of moving cells that are kept per camera, to compute rarity.
        neighbour_share: rarity is the distance to the k-th nearest sample; k is this share of all samples.
        exclude_s: samples of the same video within this time are not neighbours.
        position_weight: a distance of one frame width counts as this many feature units.
        moving_px: the camera moves in a sample if its motion is more than this, in pixels per sample.
        moving_share: a video has a moving camera if it moves in more than this share of samples.
        still: True if the detector also looks for things that appear and then stay.
        still_s: things that stay for fewer seconds do not count.
        min_size: lowest height of things whose motion counts, in percent of the frame's height; None counts all.
    """

    clip_frames: int = 32
    rate_hz: float = 10.0
    max_area_px: int = 86_400
    detail: float = 1.0
    cell_px: int = 4
    blur_cells: float = 2.0
    steadying_s: float = 0.3
    smoothing_s: float = 0.4
    gap_s: float = 1.0
    change_floor: float = 1.0
    noise_factor: float = 1.5
    speed_floor_px: float = 0.1
    disorder_floor_px: float = 0.2
    speed_cap_px: float = 16.0
    foreground_low: float = 6.0
    foreground_high: float = 18.0
    max_scenes: int = 8
    samples: int = 400
    neighbour_share: float = 0.05
    exclude_s: float = 2.0
    position_weight: float = 6.0
    moving_px: float = 0.5
    moving_share: float = 0.3
    still: bool = False
    still_s: float = 10.0
    min_size: float | None = None
