"""Footage in which pictures are repeated: a camera of 4 pictures a second in a file of 30."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vadcli.types import BoolArray, FloatArray

LONGEST_STEPS = 4
"""A picture is taken as repeated for at most this many sampled steps; beyond that the scene stood still."""

HELD_SHARE = 0.1
"""A row that changes by less than this share of what the next changed row does shows a repeated picture."""


@dataclass(frozen=True)
class Stretch:
    """Rows start ... end - 1 of a clip that show one step of the camera between them; row `source` saw it."""

    start: int
    end: int
    source: int

    @property
    def steps(self) -> int:
        """How many sampled steps the camera's one step is spread over."""
        return self.end - self.start


def stretches(activity: FloatArray, usable: BoolArray) -> list[Stretch]:
    """Find what repeated pictures hide.

    Args:
        activity: (T,) how much each row changes.
        usable: (T,) rows that could be measured; a stretch doesn't reach across others.

    Returns:
        The stretches of more than one row. A scene that begins to move after standing still looks like one, too: its first
        step is spread over the rows before.
    """
    found: list[Stretch] = []
    row = len(activity) - 1
    while row > 0:
        start = row
        if usable[row] and activity[row] > 0:
            while start - 1 >= 0 and row - start + 1 < LONGEST_STEPS and _held(start - 1, row, activity, usable):
                start -= 1
        if start < row:
            found.append(Stretch(start, row + 1, row))
        row = start - 1
    return _with_end(found[::-1], activity, usable)


def _held(row: int, source: int, activity: FloatArray, usable: BoolArray) -> bool:
    return bool(usable[row] and activity[row] < HELD_SHARE * activity[source])


def _with_end(found: list[Stretch], activity: FloatArray, usable: BoolArray) -> list[Stretch]:
    """At the end of a clip the step that repeats would show is not there yet: the last one seen stands in for it."""
    changed = np.flatnonzero((activity > HELD_SHARE * activity.max(initial=0.0)) & usable)
    if not found or len(changed) < 3:
        return found
    usual = int(np.median(np.diff(changed)))
    last = int(changed[-1])
    end = min(len(activity), last + usual)
    if not 2 <= usual <= LONGEST_STEPS or end == last + 1 or not usable[last:end].all():
        return found
    start = found[-1].start if found[-1].source == last else last
    kept = [stretch for stretch in found if stretch.source < last]
    return [*kept, Stretch(start, end, last)]
