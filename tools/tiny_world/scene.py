"""The parts of a clip or video: things with their motions, camera, light and recording.

One formula, `Course`, gives every motion over time, for clips and long videos alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tools.tiny_world.words import DIRECTIONS, Pair
from vadcli.types import BoolArray, TimeArray

SLOW = (0.12, 0.18)
FAST = (0.42, 0.58)
"""Speeds in frame sides per second.

No speed lies between the two ranges, so that it is clear what is slow and what is fast.
"""
FALL = (1.1, 1.5)
GROWTH = (0.8, 1.0)
TURNS_HZ = (0.9, 1.15)
SHAKES_HZ = (2.4, 3.1)
BLINKS_HZ = (1.6, 2.6)

Colour = tuple[float, float, float]
"""Red, green and blue, 0 to 255."""


@dataclass(frozen=True)
class Course:
    """The motion of a thing. Lengths are in sides of the frame.

    Attributes:
        x, y: centre of the thing at `since_s`, without the swing; 0 to 1 inside the frame, y points down.
        since_s: the time at which speed, fall and growth start.
        speed: sides per second, (x, y).
        fall: downward acceleration after `since_s`, sides per second².
        swing: amplitudes in x and y of a periodic motion.
        swing_hz: periods per second of the swing.
        turn: phase of y relative to x in the swing, radians.
        growth: the radius grows by the factor exp(growth) per second.
        blink_hz: blinks per second; the thing is invisible for half of each period. 0 means no blinking.
        phase: phase of the swing and of the blinking at time 0, radians.
    """

    x: float
    y: float
    since_s: float = 0.0
    speed: tuple[float, float] = (0.0, 0.0)
    fall: float = 0.0
    swing: tuple[float, float] = (0.0, 0.0)
    swing_hz: float = 0.0
    turn: float = 0.0
    growth: float = 0.0
    blink_hz: float = 0.0
    phase: float = 0.0

    def at(self, times_s: TimeArray) -> tuple[TimeArray, TimeArray]:
        """Return the centre's x and y, (T,) each."""
        elapsed_s = times_s - self.since_s
        angle = 2 * np.pi * self.swing_hz * times_s + self.phase
        x = self.x + self.speed[0] * elapsed_s + self.swing[0] * np.sin(angle)
        y = self.y + self.speed[1] * elapsed_s + self.swing[1] * np.sin(angle + self.turn)
        return x, y + 0.5 * self.fall * np.maximum(elapsed_s, 0) ** 2

    def scale(self, times_s: TimeArray) -> TimeArray:
        """Return the size relative to the size at `since_s`, (T,)."""
        return np.exp(self.growth * (times_s - self.since_s))

    def lit(self, times_s: TimeArray) -> BoolArray:
        """Return (T,): False while blinking hides the thing."""
        return (
            (times_s * self.blink_hz + self.phase / (2 * np.pi)) % 1 < 0.5 if self.blink_hz else np.ones(len(times_s), np.bool_)
        )


def course(motion: str, spot: tuple[float, float], *, middle_s: float, rng: np.random.Generator) -> Course:
    """Return a random course with this motion.

    Args:
        motion: one of `words.MOTIONS`.
        spot: approximate position at `middle_s`. Things that fall start near the upper edge.
        middle_s: the middle of the time in which the thing is shown.
        rng: the source of random numbers.
    """
    x, y = spot
    phase = float(rng.uniform(0, 2 * np.pi))
    drawn = Course(x, y, middle_s, phase=phase)
    match motion.split():
        case ["moving", direction, pace]:
            east, south = DIRECTIONS[direction]
            speed = float(rng.uniform(*(FAST if pace == "fast" else SLOW)))
            astray = float(rng.uniform(-0.2, 0.2))
            drawn = replace(drawn, speed=(speed * (east - astray * south), speed * (south + astray * east)))
        case ["circling"]:
            radius, sense = float(rng.uniform(0.07, 0.12)), float(rng.choice([-1.0, 1.0]))
            hz = float(rng.uniform(*TURNS_HZ))
            drawn = replace(drawn, swing=(radius, radius), swing_hz=hz, turn=sense * np.pi / 2)
        case ["growing" | "shrinking"]:
            growth = float(rng.uniform(*GROWTH))
            drawn = replace(drawn, growth=growth if motion == "growing" else -growth)
        case ["blinking"]:
            drawn = replace(drawn, blink_hz=float(rng.uniform(*BLINKS_HZ)))
        case ["shaking"]:
            width, height = float(rng.uniform(0.02, 0.045)), float(rng.uniform(0.0, 0.03))
            hz = float(rng.uniform(*SHAKES_HZ))
            drawn = replace(drawn, swing=(width, height), swing_hz=hz, turn=1.0)
        case ["falling"]:
            drawn = Course(x, float(rng.uniform(0.1, 0.3)), middle_s - 0.5, fall=float(rng.uniform(*FALL)))
    return drawn


@dataclass(frozen=True)
class Role:
    """The look and the motion of a named object, in words.

    Attributes:
        pair: colour and shape of the object.
        size: `small`, `large`, or empty if it is in between or changes.
        motion: one of `words.MOTIONS`.
        presence: one of `words.PRESENCES`, or empty.
    """

    pair: Pair
    size: str
    motion: str
    presence: str = ""


@dataclass(frozen=True)
class Paint:
    """The surface of a thing.

    Attributes:
        colour: the average colour.
        shade: increase of brightness along x and y, per radius.
        stripes: contrast of the stripes, their phase per radius and their angle, both in radians.
    """

    colour: Colour
    shade: tuple[float, float] = (0.0, 0.0)
    stripes: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Thing:
    """Anything that stands or moves in front of the ground.

    Attributes:
        outline: one of the outlines of `silhouettes.distance`.
        course: motion of the thing.
        radius: in sides of the frame.
        paint: surface of the thing.
        wide, tall: factors by which the outline is stretched; 1 for named objects.
        angle: angle by which the outline is rotated, in radians.
        from_s, until_s: the thing exists from `from_s` until just before `until_s`.
        role: role of the thing; None for a thing without a name.
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
        """Return (T,): whether the thing exists, inside or outside the frame, and blinking does not hide it."""
        return (times_s >= self.from_s) & (times_s < self.until_s) & self.course.lit(times_s)


@dataclass(frozen=True)
class Sway:
    """The shaking of the camera: three waves per direction.

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
        slope: increase of brightness from the frame's centre to its edge, along x and y.
        flicker: amplitude, frequency in Hz and phase of the change over time.
    """

    tint: Colour = (1.0, 1.0, 1.0)
    slope: tuple[float, float] = (0.0, 0.0)
    flicker: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def over_time(self, times_s: TimeArray) -> TimeArray:
        """Return the factor by which the brightness of each frame changes, (T,)."""
        width, hz, phase = self.flicker
        return 1 + width * np.sin(2 * np.pi * hz * times_s + phase)


@dataclass(frozen=True)
class Film:
    """Noise and compression of the recording.

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
        things: all things, the farthest first.
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
        """The named objects, the farthest first."""
        return tuple(thing for thing in self.things if thing.role is not None)
