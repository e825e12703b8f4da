"""What a clip or video is made of: things in order of depth, camera, light and recording."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tools.tiny_world.course import Course
from tools.tiny_world.words import Pair
from vadcli.types import BoolArray, TimeArray

Colour = tuple[float, float, float]
"""Red, green and blue, 0 to 255."""


@dataclass(frozen=True)
class Role:
    """What a named object is and does, in words.

    Attributes:
        pair: colour and shape of the object.
        size: `small`, `large`, or empty if it is in between or changes.
        motion: one of `words.MOTIONS`.
        presence: one of `words.PRESENCES`, or empty if it does not appear or disappear by itself.
    """

    pair: Pair
    size: str
    motion: str
    presence: str = ""


@dataclass(frozen=True)
class Paint:
    """What a thing's surface looks like.

    Attributes:
        colour: the average colour.
        shade: how much brighter the surface gets along x and y, per radius.
        stripes: contrast of the stripes, their phase per radius and their angle, both in radians.
    """

    colour: Colour
    shade: tuple[float, float] = (0.0, 0.0)
    stripes: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Thing:
    """Anything that stands or moves in front of the ground.

    Attributes:
        outline: one of `shapes.OUTLINES`.
        course: where the thing is at any time.
        radius: in sides of the frame.
        paint: surface of the thing.
        wide, tall: factors by which the outline is stretched; 1 for named objects.
        angle: angle by which the outline is rotated, in radians.
        from_s, until_s: when the thing exists; `until_s` is excluded.
        role: what the thing is and does; None for a thing without a name.
    """

    outline: str
    course: Course
    radius: float
    paint: Paint
    wide: float = 1.0
    tall: float = 1.0
    angle: float = 0.0
    from_s: float = -np.inf
    until_s: float = np.inf
    role: Role | None = None

    def shown(self, times_s: TimeArray) -> BoolArray:
        """Return (T,): whether the thing exists and blinking does not hide it, also outside the frame."""
        return (times_s >= self.from_s) & (times_s < self.until_s) & self.course.lit(times_s)


@dataclass(frozen=True)
class Sway:
    """How the camera shakes: three waves for each direction.

    Attributes:
        widths: (2, 3) amplitudes in x and y, in sides of the frame.
        hz, phases: (2, 3) frequency and phase (radians) of each wave.
    """

    widths: tuple[tuple[float, ...], ...]
    hz: tuple[tuple[float, ...], ...]
    phases: tuple[tuple[float, ...], ...]

    def at(self, times_s: TimeArray) -> TimeArray:
        """Return the displacement of everything in x and y, (T, 2)."""
        angle = 2 * np.pi * np.array(self.hz)[None] * times_s[:, None, None] + np.array(self.phases)[None]
        offset: TimeArray = (np.array(self.widths)[None] * np.sin(angle)).sum(axis=-1)
        return offset

    @property
    def reach(self) -> float:
        """The largest possible displacement in x or y."""
        return float(np.abs(np.array(self.widths)).sum(axis=-1).max())


@dataclass(frozen=True)
class Light:
    """The light of a scene.

    Attributes:
        tint: factor of each colour channel.
        slope: how much brighter the frame gets from the frame's centre to its edge, along x and y.
        flicker: amplitude, frequency in Hz and phase of the change over time.
    """

    tint: Colour = (1.0, 1.0, 1.0)
    slope: tuple[float, float] = (0.0, 0.0)
    flicker: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def over_time(self, times_s: TimeArray) -> TimeArray:
        """Return the factor of each frame, (T,)."""
        width, hz, phase = self.flicker
        return 1 + width * np.sin(2 * np.pi * hz * times_s + phase)


@dataclass(frozen=True)
class Film:
    """What the recording adds to the frames.

    Attributes:
        noise: standard deviation in grey levels.
        quality: JPEG quality of the 8×8 quantisation, 1 to 100; None for no quantisation.
    """

    noise: float = 0.0
    quality: int | None = None


@dataclass(frozen=True)
class Scene:
    """Everything that determines a clip or video.

    Attributes:
        things: all things, far ones first.
        ground: average colour of the ground.
        texture: strength of the ground's patterns.
        sway, light, film: camera, light and recording.
        grain_seed: seed of the ground's pattern and of the noise.
    """

    things: tuple[Thing, ...]
    ground: Colour
    texture: float
    sway: Sway
    light: Light
    film: Film
    grain_seed: int

    @property
    def cast(self) -> tuple[Thing, ...]:
        """The named objects, far ones first."""
        return tuple(thing for thing in self.things if thing.role is not None)
