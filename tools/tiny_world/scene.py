"""What a clip or video is made of, before any pixel: things in their order of depth, camera, light, film. Values only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tools.tiny_world.course import Course
from tools.tiny_world.words import Pair
from vadcli.types import BoolArray, TimeArray

Colour = tuple[float, float, float]
"""Red, green, blue, 0 to 255."""


@dataclass(frozen=True)
class Role:
    """What is said of a named object.

    Attributes:
        pair: its colour and shape.
        size: `small`, `large`, or empty where it is between them or changes.
        motion: one of `words.MOTIONS`.
        presence: one of `words.PRESENCES`, or empty where it doesn't come or go by itself.
    """

    pair: Pair
    size: str
    motion: str
    presence: str = ""


@dataclass(frozen=True)
class Paint:
    """What a thing's surface looks like.

    Attributes:
        colour: on average.
        shade: how much lighter it gets along x and y, by radius.
        stripes: contrast of its stripes, their number by radius, and their angle in radians.
    """

    colour: Colour
    shade: tuple[float, float] = (0.0, 0.0)
    stripes: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Thing:
    """Anything that stands or moves before the ground.

    Attributes:
        outline: one of `shapes.OUTLINES`.
        course: where it is at any time.
        radius: in sides of the picture.
        paint: its surface.
        wide, tall: its outline is stretched by these; only nameless things are.
        angle: by which it is turned, radians.
        from_s, until_s: when it is there.
        role: what is said of it; None for what has no name.
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
        """When it is there and not out by blinking, in the picture or beside it: (T,)."""
        return (times_s >= self.from_s) & (times_s < self.until_s) & self.course.lit(times_s)


@dataclass(frozen=True)
class Sway:
    """How the camera shakes: three waves for each direction.

    Attributes:
        widths: (2, 3) of x and y, sides of the picture.
        hz, phases: (2, 3) of each wave.
    """

    widths: tuple[tuple[float, ...], ...]
    hz: tuple[tuple[float, ...], ...]
    phases: tuple[tuple[float, ...], ...]

    def at(self, times_s: TimeArray) -> TimeArray:
        """By how much everything is off its place: (T, 2), x and y."""
        angle = 2 * np.pi * np.array(self.hz)[None] * times_s[:, None, None] + np.array(self.phases)[None]
        offset: TimeArray = (np.array(self.widths)[None] * np.sin(angle)).sum(axis=-1)
        return offset

    @property
    def reach(self) -> float:
        """The farthest offset there can be."""
        return float(np.abs(np.array(self.widths)).sum(axis=-1).max())


@dataclass(frozen=True)
class Light:
    """How bright it is.

    Attributes:
        tint: factor of each colour.
        slope: how much brighter it gets over the picture along x and y.
        flicker: width, hz and phase of its change over time.
    """

    tint: Colour = (1.0, 1.0, 1.0)
    slope: tuple[float, float] = (0.0, 0.0)
    flicker: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def over_time(self, times_s: TimeArray) -> TimeArray:
        """Factor of each frame, (T,)."""
        width, hz, phase = self.flicker
        return 1 + width * np.sin(2 * np.pi * hz * times_s + phase)


@dataclass(frozen=True)
class Film:
    """What the recording adds.

    Attributes:
        noise: standard deviation, grey levels.
        quality: of 8×8 quantisation as JPEG counts it, 1 to 100; None leaves it out.
    """

    noise: float = 0.0
    quality: int | None = None


@dataclass(frozen=True)
class Scene:
    """Everything that follows from a seed, short of its pixels.

    Attributes:
        things: far ones first.
        ground: the ground's average colour.
        texture: how strong the ground's patterns are.
        sway, light, film: camera, light, recording.
        grain_seed: of the ground's pattern and the noise.
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
