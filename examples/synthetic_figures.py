"""The figures of the synthetic archive: people, a cyclist, a cart and a thrown bag.

A figure is a function that returns the strokes of a pose, the farthest stroke first. It does not depend on the camera or the
light.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Colour = tuple[int, int, int]
Point = tuple[float, float, float]

SHIRTS: tuple[Colour, ...] = (
    (182, 60, 52), (52, 96, 150), (70, 122, 84), (222, 214, 198), (60, 62, 70), (214, 160, 70), (122, 84, 140), (92, 150, 168),
)  # fmt: skip
TROUSERS: tuple[Colour, ...] = ((44, 48, 60), (70, 66, 60), (96, 100, 112), (58, 74, 104))
SKINS: tuple[Colour, ...] = ((236, 198, 170), (198, 150, 114), (140, 96, 70), (92, 62, 48))
SHOES: Colour = (36, 34, 34)
HAIRS: tuple[Colour, ...] = ((38, 30, 26), (92, 62, 38), (168, 130, 80), (120, 120, 124))


@dataclass(frozen=True)
class Stroke:
    """A chain of points with round ends, or a filled polygon if it has no thickness."""

    points: Sequence[Point]
    colour: Colour
    thick_m: float = 0.0


@dataclass(frozen=True)
class Pose:
    """Where an actor is and how far it has moved.

    Attributes:
        x, y: place in metres.
        east, north: direction of movement, of length 1.
        gone: metres moved so far.
    """

    x: float
    y: float
    east: float
    north: float
    gone: float

    def point(self, ahead: float, aside: float, up: float) -> Point:
        """Return a point in world coordinates from metres ahead of, left of and above the actor's place."""
        return (self.x + ahead * self.east - aside * self.north, self.y + ahead * self.north + aside * self.east, up)

    @property
    def far_side(self) -> int:
        """1 if the left side of the actor is away from the camera, else -1."""
        return 1 if self.east > 0 else -1


@dataclass(frozen=True)
class Actor:
    """Something that crosses the ground in a straight line.

    Attributes:
        draw: returns the strokes of the actor in a pose, the farthest first.
        start, end: the ends of the path, (x, y) in metres.
        speed: metres per second.
        enters_s: the time at which the actor is at the start of the path.
        sway_m: how far the actor sways sideways, in metres.
        stays: True if the actor stays at the end of the path, False if it disappears there.
    """

    draw: Callable[[Pose], list[Stroke]]
    start: tuple[float, float]
    end: tuple[float, float]
    speed: float
    enters_s: float
    sway_m: float = 0.0
    stays: bool = False

    def moves(self, time_s: float) -> bool:
        """Return True while the actor moves."""
        return 0 <= (time_s - self.enters_s) * self.speed <= math.dist(self.start, self.end)

    def is_there(self, time_s: float) -> bool:
        """Return True while the actor is drawn."""
        return self.moves(time_s) or (self.stays and time_s > self.enters_s)

    def pose(self, time_s: float) -> Pose:
        """Return the pose of the actor at this time."""
        length = math.dist(self.start, self.end)
        east, north = (self.end[0] - self.start[0]) / length, (self.end[1] - self.start[1]) / length
        gone = min((time_s - self.enters_s) * self.speed, length)
        aside = self.sway_m * math.sin(0.45 * gone + self.start[0])
        x, y, _ = Pose(*self.start, east, north, gone).point(gone, aside, 0.0)
        return Pose(x, y, east, north, gone)


@dataclass(frozen=True)
class Looks:
    """A person's clothes and height."""

    shirt: Colour
    trousers: Colour
    skin: Colour
    hair: Colour
    tall_m: float

    @classmethod
    def anyone(cls, rng: np.random.Generator) -> Looks:
        """Return a random person."""
        shirt, trousers, skin, hair = (pool[rng.integers(len(pool))] for pool in (SHIRTS, TROUSERS, SKINS, HAIRS))
        return cls(shirt, trousers, skin, hair, tall_m=float(rng.uniform(1.55, 1.9)))


def person(pose: Pose, *, looks: Looks, stride_m: float) -> list[Stroke]:
    """Return the strokes of a walking person; with a longer stride, the person leans forward."""
    at, tall = pose.point, looks.tall_m
    hip, neck, lean = 0.52 * tall, 0.82 * tall, 0.12 * (stride_m - 0.6)
    phase = math.pi * pose.gone / stride_m
    legs, arms = [], []
    for side in (pose.far_side, -pose.far_side):
        swing, lift = math.sin(phase) * side, max(0.0, math.cos(phase) * side) * 0.25 * stride_m
        foot = 0.5 * stride_m * swing
        knee = at(0.28 * stride_m * swing + 0.06 + 0.3 * lift, 0.1 * side, 0.28 * tall + 0.5 * lift)
        ankle = at(foot, 0.09 * side, 0.05 + lift)
        legs.append(Stroke([at(0, 0.08 * side, hip), knee, ankle], looks.trousers, 0.15))
        legs.append(Stroke([ankle, at(foot + 0.12, 0.09 * side, 0.04 + lift)], SHOES, 0.11))
        reach = -0.34 * stride_m * swing
        hand = at(reach + 0.06, 0.22 * side, hip + 0.35 * abs(reach))
        elbow = at(0.45 * reach + lean, 0.25 * side, 0.5 * (neck + hip))
        arms.append(
            [Stroke([at(lean, 0.22 * side, neck - 0.07), elbow, hand], looks.shirt, 0.1), Stroke([hand], looks.skin, 0.1)]
        )
    body = [
        Stroke([at(0, 0, hip), at(lean, 0, neck - 0.1)], looks.shirt, 0.32),
        Stroke([at(lean, -0.2, neck - 0.07), at(lean, 0.2, neck - 0.07)], looks.shirt, 0.16),
    ]
    head = [
        Stroke([at(lean, 0, neck), at(1.3 * lean, 0, neck + 0.06)], looks.skin, 0.12),
        Stroke([at(1.4 * lean + 0.02, 0, 0.92 * tall)], looks.skin, 0.24),
        Stroke([at(1.4 * lean - 0.03, 0, 0.95 * tall)], looks.hair, 0.22),
    ]
    return legs + arms[0] + body + arms[1] + head


def cyclist(pose: Pose, *, looks: Looks) -> list[Stroke]:
    """Return the strokes of a cyclist."""

    def at(ahead: float, up: float, aside: float = 0.0) -> Point:
        return pose.point(ahead, aside, up)

    turn = [step * math.pi / 12 for step in range(25)]
    wheels = [
        Stroke([at(hub + 0.33 * math.cos(a), 0.34 + 0.33 * math.sin(a)) for a in turn], SHOES, 0.05) for hub in (-0.52, 0.52)
    ]
    bars = (
        ((-0.52, 0.34), (-0.2, 0.86)),
        ((-0.15, 0.75), (0.36, 0.8)),
        ((-0.05, 0.34), (0.36, 0.8)),
        ((0.36, 0.95), (0.52, 0.34)),
    )
    frame = [Stroke([at(*one), at(*other)], (196, 44, 40), 0.06) for one, other in bars]
    limbs = []
    crank = pose.gone / 0.6
    for side in (pose.far_side, -pose.far_side):
        right, up = math.cos(crank) * side, -math.sin(crank) * side
        knee, pedal = at(0.12 + 0.1 * right, 0.68 + 0.1 * up, 0.1 * side), at(-0.05 + 0.17 * right, 0.3 + 0.17 * up, 0.1 * side)
        arm = [at(0.2, 1.38, 0.16 * side), at(0.3, 1.1, 0.22 * side), at(0.42, 1.0, 0.2 * side)]
        limbs.append([Stroke([at(-0.2, 0.95, 0.09 * side), knee, pedal], looks.trousers, 0.14), Stroke(arm, looks.shirt, 0.1)])
    back = Stroke([at(-0.2, 1.0), at(0.16, 1.4)], looks.shirt, 0.33)
    head = [Stroke([at(0.3, 1.62)], looks.skin, 0.24), Stroke([at(0.27, 1.69), at(0.29, 1.69)], (236, 236, 230), 0.24)]
    return limbs[0] + wheels + frame + [back] + limbs[1] + head


def cart(pose: Pose, *, paint: Colour) -> list[Stroke]:
    """Return the strokes of a small cart with a load."""
    at, near = pose.point, -pose.far_side

    def box(back: float, front: float, low: float, high: float, half: float, *, colour: Colour) -> list[Stroke]:
        end = back if pose.north > 0 else front  # the end that faces the camera
        flank = [(back, low), (front, low), (front, high), (back, high)]
        gable = [(-half, low), (half, low), (half, high), (-half, high)]
        roof = [(back, -half), (front, -half), (front, half), (back, half)]
        return [
            Stroke([at(a, half * near, z) for a, z in flank], _shaded(colour, 0.74)),
            Stroke([at(end, b, z) for b, z in gable], _shaded(colour, 0.58)),
            Stroke([at(a, b, high) for a, b in roof], colour),
        ]

    turn = [step * math.pi / 8 for step in range(16)]
    wheels = [
        Stroke([at(hub + 0.27 * math.cos(a), 0.62 * side, 0.28 + 0.27 * math.sin(a)) for a in turn], SHOES)
        for side in (-near, near)
        for hub in (-0.85, 0.85)
    ]
    load = 1.15 + 0.02 * math.sin(9 * pose.gone)
    chassis, crate, cabin = (
        box(-1.35, 1.25, 0.34, 0.75, 0.62, colour=paint),
        box(-1.25, 0.0, 0.75, load, 0.52, colour=(150, 116, 78)),
        box(0.3, 0.95, 0.75, 1.7, 0.58, colour=(190, 206, 214)),
    )
    upper = crate + cabin if (pose.east > 0) == (pose.x < 0) else cabin + crate
    return wheels[:2] + chassis + wheels[2:] + upper


def thrown_bag(pose: Pose) -> list[Stroke]:
    """Return the strokes of a bag that flies, bounces once and stays on the ground."""
    flight_m, hop_m = 8.0, 2.34
    part = pose.gone / flight_m if pose.gone < flight_m else (pose.gone - flight_m) / hop_m
    up = 0.25 + 4 * (2.4 if pose.gone < flight_m else 0.5) * max(0.0, part * (1 - part))
    spin = 1.6 * pose.gone
    ahead, rise = 0.32 * math.cos(spin), 0.2 * math.sin(spin)
    ends = [pose.point(-ahead, 0, up - rise), pose.point(ahead, 0, up + rise)]
    strap = [pose.point(-0.4 * ahead, 0, up - 0.4 * rise + 0.1), pose.point(0.4 * ahead, 0, up + 0.4 * rise + 0.1)]
    return [Stroke(ends, (176, 40, 66), 0.4), Stroke(strap, (240, 236, 226), 0.12)]


def _shaded(colour: Colour, light: float) -> Colour:
    red, green, blue = (int(light * part) for part in colour)
    return red, green, blue
