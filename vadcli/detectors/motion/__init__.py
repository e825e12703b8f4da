"""The options of the motion detector.

Every setting that changes scores is a field of `MotionOptions`, so the fingerprint of the detector contains it. Users set three
of them, with `MotionUserOptions`.
"""

from __future__ import annotations

from dataclasses import dataclass

from vadcli.errors import UsageError
from vadcli.options.groups import HOW, DetectorOptions, option

MODEL_VERSION = 7
"""Increase this if a change makes stored camera models unusable. The engine then fits them again."""


@dataclass(frozen=True)
class MotionOptions:
    """The motion detector's options.

    All sizes in pixels refer to a small frame of about 360x240 pixels. The detector gets this small frame if `detail` is 1.

    Attributes:
        clip_frames: T, sampled frames per clip.
        rate_hz: sampled frames per second.
        step_s: the length of a step in seconds. Speeds are in pixels per step, so they do not depend on `rate_hz`.
        max_area_px: largest area of a frame if `detail` is 1. Larger frames are reduced to this area.
        detail: factor by which width and height of a frame are larger than those of the small frame. Cells keep their size in
            pixels, so a cell covers a smaller part of a larger frame. Speeds are still in pixels of the small frame. The floors
            of speed and disorder are divided by `detail`, because the noise of the flow is smaller by the same factor.
        cell_px: side of a grid cell, in pixels of the frame that the detector gets.
        blur_cells: standard deviation of the Gaussian that smooths the maps over space, in cells.
        steadying_s: standard deviation, in seconds, of the Gaussian that smooths each cell over time. This smooths masks too.
            After this smoothing, the value of a frame is the value of its highest cell. Without the smoothing, the highest cell
            would often be noise.
        smoothing_s: standard deviation, in seconds, of the Gaussian that smooths the values of frames over time.
        gap_s: frames are not smoothed across a gap that is longer than `gap_s` seconds and longer than 3 times the median step.
        change_floor: noise, in gray levels, that is subtracted from the change of each cell.
        noise_factor: the median change of all cells, multiplied by this factor, is also subtracted from the change of each
            cell.
        speed_floor_px: noise that is subtracted from speeds, in pixels per pair of frames.
        disorder_floor_px: noise that is subtracted from disorder, in pixels per step.
        speed_cap_px: the highest speed. Faster motion gets this speed, because optical flow is not reliable for it.
        foreground_low, foreground_high: a cell that differs from the background by at most `foreground_low` gray levels has the
            foreground weight 0. From there to `foreground_high`, the weight rises to 1.
        max_scenes: the largest number of scenes per camera.
        samples: M, the number of moving cells that are stored per camera as samples for rarity.
        neighbour_share: rarity is the distance from a moving cell to its k-th nearest sample. k is this share of the number of
            samples.
        exclude_s: a sample from the same video is ignored if it is at most this many seconds before or after the cell.
        position_weight: the distance, in feature space, of two cells that are one frame width apart.
        moving_px: the camera counts as moving in a sampled frame if the whole picture moved by more than this many pixels since
            the previous sampled frame.
        moving_share: a video counts as filmed by a moving camera if the camera moves in more than this share of the sampled
            frames.
        still: True if the detector also looks for things that appear and then stay. False measures motion only.
        still_s: with `still`, a thing counts only if it stays for at least this many seconds.
        min_size: a thing counts only if it has at least this height, in percent of the height of the frame. None means that all
            things count.
    """

    clip_frames: int = 32
    rate_hz: float = 8.0
    step_s: float = 0.1
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
    still: bool = True
    still_s: float = 10.0
    min_size: float | None = None


@dataclass(frozen=True)
class MotionUserOptions(DetectorOptions):
    """The options of the detector `motion` that users set."""

    min_size: float | None = option(
        None,
        "Ignore moving things whose height is below this, in percent of the picture's height (motion detector).",
        panel=HOW,
        metavar="PERCENT",
        why_ignored="can't tell how large things are",
    )
    motion_detail: float = option(
        1.0,
        "Size of the frames (motion detector): 1 is about 360x240; 2 has twice the width and height, for small things in large "
        "pictures, and takes about four times as long.",
        panel=HOW,
        metavar="FACTOR",
        why_ignored="chooses its own frame size",
    )
    still: bool = option(
        True,
        "Also find what appears and then stays for 10 seconds or more, such as an abandoned bag; --no-still finds only motion "
        "(motion detector).",
        panel=HOW,
        why_ignored="does not look for things that stand still",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_size is not None and not 0 < self.min_size < 100:
            raise UsageError(f"--min-size {self.min_size:g} is outside 0-100", hint="give a share of the height in percent")
        if not 1 <= self.motion_detail <= 4:
            raise UsageError(
                f"--motion-detail {self.motion_detail:g} is outside 1-4", hint="1 is the default; 2 is enough for 1080p"
            )

    @property
    def motion_options(self) -> MotionOptions:
        """All options of the detector: the user's values, and the defaults of the other options."""
        return MotionOptions(min_size=self.min_size, detail=self.motion_detail, still=self.still)
