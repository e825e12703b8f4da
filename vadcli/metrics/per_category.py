"""One figure for each category of anomaly, against everything normal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from vadcli.metrics.frame import FrameSet
from vadcli.metrics.intervals import Estimate
from vadcli.types import IndexArray

NORMAL = -1
"""The code of a row without a category."""


def frames_of_category(frames: FrameSet, codes: IndexArray, code: int, *, own_videos: bool = False) -> FrameSet:
    """The frames to judge one category by: its abnormal frames and the normal ones; other categories' frames are left out.

    Args:
        frames: of all videos.
        codes: (N,) integers, the category of each abnormal row; abnormal rows of none have NORMAL.
        code: the category that stays.
        own_videos: True leaves only videos that hold the category, so that nothing but the moment is judged.
    """
    if len(codes) != len(frames.labels):
        raise ValueError(f"{len(frames.labels)} frames need as many category codes, not {len(codes)}")
    of_category = frames.labels & (codes == code)
    rows = of_category | ~frames.labels
    if own_videos:
        rows &= np.isin(frames.video, frames.video[of_category])
    return frames.keep(rows).without_empty()


def per_category(
    figure: Callable[[FrameSet], Estimate],
    frames: FrameSet,
    codes: IndexArray,
    names: Sequence[str],
    *,
    own_videos: bool = False,
) -> dict[str, Estimate]:
    """`figure` for each category by name, on the frames that `frames_of_category` leaves.

    Papers on UCF-Crime (Sultani et al., CVPR 2018) and XD-Violence report such figures without a shared definition. Here it is
    all normal frames by default, those of the category's videos with `own_videos`. Undefined where `figure` is, so for a
    category without frames.

    Args:
        figure: `frame_auc` and the like; `functools.partial` sets its options.
        frames: of all videos.
        codes: (N,) integers, 0 to len(names) - 1, NORMAL elsewhere.
        names: of the categories, by code.
        own_videos: as for `frames_of_category`.
    """
    return {name: figure(frames_of_category(frames, codes, code, own_videos=own_videos)) for code, name in enumerate(names)}
