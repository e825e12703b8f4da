"""How things move: one formula gives every motion over time, for clips and long videos alike."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tools.tiny_world.words import DIRECTIONS
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


@dataclass(frozen=True)
class Course:
    """Where something is at any time. Lengths are in sides of the frame.

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
        phase: where in their periods the swing and the blinking start, radians.
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
        gone = times_s - self.since_s
        angle = 2 * np.pi * self.swing_hz * times_s + self.phase
        x = self.x + self.speed[0] * gone + self.swing[0] * np.sin(angle)
        y = self.y + self.speed[1] * gone + self.swing[1] * np.sin(angle + self.turn)
        return x, y + 0.5 * self.fall * np.maximum(gone, 0) ** 2

    def scale(self, times_s: TimeArray) -> TimeArray:
        """Return the size relative to the size at `since_s`, (T,)."""
        return np.exp(self.growth * (times_s - self.since_s))

    def lit(self, times_s: TimeArray) -> BoolArray:
        """Return (T,): True at times at which blinking does not hide the thing."""
        return (
            (times_s * self.blink_hz + self.phase / (2 * np.pi)) % 1 < 0.5 if self.blink_hz else np.ones(len(times_s), np.bool_)
        )


def course(motion: str, spot: tuple[float, float], *, middle_s: float, rng: np.random.Generator) -> Course:
    """Return a random course with this motion.

    Args:
        motion: one of `words.MOTIONS`.
        spot: where the thing is at `middle_s`, roughly; something that falls starts near the upper edge.
        middle_s: the middle of the time in which the thing is shown.
        rng: the source of random numbers.
    """
    x, y = spot
    phase = float(rng.uniform(0, 2 * np.pi))
    drawn = Course(x, y, middle_s, phase=phase)
    match motion.split():
        case ["moving", direction, pace]:
            drawn = replace(drawn, speed=_speed(direction, pace, rng))
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


def _speed(direction: str, pace: str, rng: np.random.Generator) -> tuple[float, float]:
    east, south = DIRECTIONS[direction]
    speed = float(rng.uniform(*(FAST if pace == "fast" else SLOW)))
    astray = float(rng.uniform(-0.2, 0.2))
    return speed * (east - astray * south), speed * (south + astray * east)
