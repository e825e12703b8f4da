"""Draws random scenes: named objects with their motions and positions, and their surroundings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from tools.tiny_world.recipe import WorldOptions
from tools.tiny_world.scene import Colour, Course, Film, Light, Paint, Role, Scene, Sway, Thing, course
from tools.tiny_world.truth import BRIEF_FRAMES
from tools.tiny_world.words import COLOURS, DIRECTIONS, MOTIONS, SIZES, Pair

T = TypeVar("T")

RADII = {"small": (0.075, 0.1), "large": (0.155, 0.2), "": (0.1, 0.12)}
_UNSIZED = ("growing", "shrinking")
_PLANS = ("chase", "pass", "rest", "order")
"""What the first two objects of a scene do together: one chases, passes or touches the other, or appears before the other."""
_PLACES_TRIED = 12


@dataclass(frozen=True)
class Palette:
    """The pairs and motions of random objects.

    Attributes:
        pairs: pairs of a colour and a shape.
        rare: other pairs, from which `rare_share` of the objects are drawn.
        rare_share: 0 to 1.
        motions: the motions that objects may have.
    """

    pairs: tuple[Pair, ...]
    rare: tuple[Pair, ...]
    rare_share: float
    motions: tuple[str, ...]

    def pair(self, rng: np.random.Generator) -> Pair:
        """Return a random pair."""
        pool = self.rare if self.rare and rng.random() < self.rare_share else self.pairs
        return _pick(pool, rng)

    def motion(self, rng: np.random.Generator, *, other_than: str = "") -> str:
        """Return a random motion, but not `other_than`."""
        return _pick([motion for motion in self.motions if motion != other_than], rng)


def draw_clip(options: WorldOptions, palette: Palette, rng: np.random.Generator) -> tuple[Scene, bool]:
    """Return a random scene for a clip, and whether the clip must have twins.

    Twins are two objects that look alike and move differently.
    Some objects of the scene may be hidden or unrecognisable; `truth.observe` finds such objects.
    """
    hard = bool(rng.random() < options.hard) and options.objects[1] > 1
    count = max(int(rng.integers(options.objects[0], options.objects[1] + 1)), 1 + hard)
    roles = [draw_role(palette, rng) for _ in range(count)]
    planned = _pick(_PLANS, rng) if rng.random() < options.interactions else ""
    planned = planned if count >= 2 + hard else ""  # the object that looks like the first one has no part in the plan
    roles = _arranged(roles, planned, palette, rng)
    if hard:  # the last object gets the look of the first object but another motion
        first = roles[0]
        motion = palette.motion(rng, other_than=first.motion)
        size = "" if motion in _UNSIZED else first.size or _pick(SIZES, rng)
        roles = [*roles[:-1], Role(first.pair, size, motion)]
    middle_s = (options.frames - 1) / 2 / options.rate_hz
    cast = [_enter(role, options, rng) for role in roles]
    placed: list[Thing] = []
    for thing in cast:
        placed.append(place(thing, placed, middle_s=middle_s, rng=rng))
    placed = _meeting(placed, planned, options, rng)
    things = [placed[at] for at in rng.permutation(len(placed))]
    return surround(things, options, middle_s=middle_s, rng=rng), hard


def draw_role(palette: Palette, rng: np.random.Generator) -> Role:
    """Return a random role of an object that does not appear or disappear."""
    motion = palette.motion(rng)
    return Role(palette.pair(rng), "" if motion in _UNSIZED else _pick(SIZES, rng), motion)


def embody(role: Role, *, texture: float, rng: np.random.Generator) -> Thing:
    """Return an object with this role, at a preliminary position."""
    colour = tuple(float(np.clip(part + rng.uniform(-10, 10), 0, 255)) for part in COLOURS[role.pair[0]])
    shade = (float(rng.uniform(-0.15, 0.15) * texture), float(rng.uniform(-0.15, 0.15) * texture))
    stripes = (float(rng.choice([0.0, 0.14]) * texture), float(rng.uniform(3, 8)), float(rng.uniform(0, np.pi)))
    radius = float(rng.uniform(*RADII[role.size]))
    paint = Paint((colour[0], colour[1], colour[2]), shade, stripes)
    return Thing(role.pair[1], Course(0.5, 0.5), radius, paint, angle=float(rng.uniform(-0.2, 0.2)), role=role)


def place(thing: Thing, others: Sequence[Thing], *, middle_s: float, rng: np.random.Generator) -> Thing:
    """Return the object on a random course, if possible away from all other objects at `middle_s`."""
    assert thing.role is not None
    at = np.array([middle_s])
    drawn = thing
    for _ in range(_PLACES_TRIED):
        margin = thing.radius + 0.02
        spot = (float(rng.uniform(margin, 1 - margin)), float(rng.uniform(margin, 1 - margin)))
        drawn = replace(thing, course=course(thing.role.motion, spot, middle_s=middle_s, rng=rng))
        x, y = (part[0] for part in drawn.course.at(at))
        centres = [(*(part[0] for part in other.course.at(at)), other.radius) for other in others]
        if all(np.hypot(x - u, y - v) > 1.1 * (radius + thing.radius) for u, v, radius in centres):
            break
    return drawn


def surround(cast: Sequence[Thing], options: WorldOptions, *, middle_s: float, rng: np.random.Generator) -> Scene:
    """Return a scene of these objects, random grey things, a ground, a camera and light."""
    behind = [_clutter(rng, options, front=False) for _ in range(rng.integers(options.clutter + 1))]
    front = [_clutter(rng, options, front=True) for _ in range(rng.integers(options.clutter + 1))]
    among = list(cast)
    for _ in range(rng.integers(options.distractors + 1)):
        at = int(rng.integers(len(among) + 1))
        among.insert(at, distractor(_pick(MOTIONS, rng), options, middle_s=middle_s, rng=rng))
    ground = _muted(rng, 45, 205)
    lighting = options.lighting
    gain = 1 + lighting * float(rng.uniform(-0.35, 0.15))
    red, green, blue = (gain * (1 + lighting * float(part)) for part in rng.uniform(-0.06, 0.06, 3))
    slope_x, slope_y = (lighting * float(part) for part in rng.uniform(-0.2, 0.2, 2))
    flicker = (lighting * float(rng.uniform(0, 0.08)), float(rng.uniform(0.1, 2.0)), float(rng.uniform(0, 2 * np.pi)))
    quality = int(rng.integers(12, 70))
    film = Film(
        float(rng.uniform(0, options.noise)),
        quality if rng.random() < options.compressed else None,
    )
    light = Light((red, green, blue), (slope_x, slope_y), flicker)
    # The camera shakes in three waves per direction: large slow ones and a small fast one.
    widths = np.array([0.5, 0.3, 0.2]) * (options.shake * float(rng.random()))
    hz = rng.uniform([0.2, 0.8, 2.5], [0.6, 1.8, 6.0], (2, 3))
    phases = rng.uniform(0, 2 * np.pi, (2, 3))
    sway = Sway(*(tuple(map(tuple, values.tolist())) for values in (np.stack([widths, widths]), hz, phases)))
    things = (*behind, *among, *front)
    return Scene(things, ground, options.texture, sway, light, film, int(rng.integers(2**32)))


def distractor(motion: str, options: WorldOptions, *, middle_s: float, rng: np.random.Generator) -> Thing:
    """Return a grey lump that moves like a named object but has no name."""
    moves = course(motion, (float(rng.random()), float(rng.random())), middle_s=middle_s, rng=rng)
    paint = _grey(rng, 0.15 * options.texture)
    return Thing("lump", moves, float(rng.uniform(0.05, 0.12)), paint, tall=float(rng.uniform(0.6, 1.0)))


def _arranged(roles: list[Role], planned: str, palette: Palette, rng: np.random.Generator) -> list[Role]:
    """Return the roles; the first two get the motions of the plan if the split may show these motions."""
    moves = [motion for motion in palette.motions if motion.startswith("moving ")]
    still = "standing still"
    motions: tuple[str, str]
    if planned == "chase" and moves:
        motions = (_pick(moves, rng),) * 2
    elif planned == "pass" and moves and still in palette.motions:
        motions = (still, _pick(moves, rng))
    elif planned in ("rest", "order") and still in palette.motions:
        motions = (still, still)
    else:
        return roles
    presence = "appearing" if planned == "order" else ""
    changed = [
        Role(role.pair, "small" if planned == "chase" else role.size or _pick(SIZES, rng), motion, presence)
        for role, motion in zip(roles, motions, strict=False)
    ]
    return [*changed, *roles[2:]]


def _enter(role: Role, options: WorldOptions, rng: np.random.Generator) -> Thing:
    """Return an object with this role that may appear or disappear during the clip."""
    frames = options.frames
    first, last = 0, frames
    if role.presence or role.motion in ("blinking", "falling") or rng.random() >= options.comings:
        pass  # the object is there for the whole clip, or `_meeting` sets its times
    elif role.motion == "standing still" and rng.random() < 0.7:
        role = replace(role, presence="showing briefly")
        first = int(rng.integers(1, frames - BRIEF_FRAMES))
        last = first + int(rng.integers(2, BRIEF_FRAMES + 1))
    else:
        away = int(rng.integers(1, max(2, frames - 5)))
        role = replace(role, presence=_pick(["appearing", "disappearing"], rng))
        first, last = (away, frames) if role.presence == "appearing" else (0, frames - away)
    thing = embody(role, texture=options.texture, rng=rng)
    from_s = (first - 0.5) / options.rate_hz if first else -np.inf
    until_s = (last - 0.5) / options.rate_hz if last < frames else np.inf
    return replace(thing, from_s=from_s, until_s=until_s)


def _meeting(cast: list[Thing], planned: str, options: WorldOptions, rng: np.random.Generator) -> list[Thing]:
    """Return the objects; the first two are moved in place or time for the plan if their roles fit the plan."""
    if not planned:
        return cast
    first, second = cast[:2]
    motions = [thing.role.motion for thing in (first, second) if thing.role]
    apart = first.radius + second.radius
    spot = first.course
    match planned:
        case "chase" if motions[0] == motions[1] and motions[0].startswith("moving "):
            ahead = np.array(DIRECTIONS[motions[0].split()[1]]) * 0.5 * (apart + float(rng.uniform(0.03, 0.09)))
            x, y = 0.25 + 0.5 * spot.x, 0.25 + 0.5 * spot.y  # keeps both objects in the frame
            first = replace(first, course=replace(spot, x=x - float(ahead[0]), y=y - float(ahead[1])))
            second = replace(second, course=replace(spot, x=x + float(ahead[0]), y=y + float(ahead[1])))
        case "pass" if motions[1].startswith("moving "):
            second = replace(second, course=replace(second.course, x=spot.x, y=spot.y))
        case "rest" if motions == ["standing still"] * 2:
            angle, near = float(rng.uniform(0, 2 * np.pi)), 0.75 * apart
            x, y = spot.x + near * float(np.cos(angle)), spot.y + near * float(np.sin(angle))
            second = replace(second, course=replace(second.course, x=x, y=y))
        case "order" if motions == ["standing still"] * 2:
            lead = int(rng.integers(1, options.frames - 4))
            follow = int(rng.integers(lead + 2, options.frames - 1))
            first = replace(first, from_s=(lead - 0.5) / options.rate_hz)
            second = replace(second, from_s=(follow - 0.5) / options.rate_hz)
    return [first, second, *cast[2:]]


def _clutter(rng: np.random.Generator, options: WorldOptions, *, front: bool) -> Thing:
    """Return a grey post, box or lump that stands still; it is narrow if `front`."""
    kind = _pick(["post", "box", "lump"], rng)
    spot = Course(float(rng.uniform(0, 1)), float(rng.uniform(0, 1)))
    paint = _grey(rng, 0.2 * options.texture * float(rng.random()))
    most = 0.6 if front else 1.0
    if kind == "post":
        upright = bool(rng.random() < 0.7)
        thin = float(rng.uniform(0.025, 0.07)) * most / 0.6
        middle = replace(spot, y=0.5) if upright else replace(spot, x=0.5)
        return Thing("box", middle, 0.6, paint, wide=thin if upright else 1.0, tall=1.0 if upright else thin)
    radius = float(rng.uniform(0.08, 0.22)) * most
    return Thing(kind, spot, radius, paint, tall=float(rng.uniform(0.5, 1.0)))


def _grey(rng: np.random.Generator, contrast: float) -> Paint:
    return Paint(_muted(rng, 40, 200), stripes=(contrast, float(rng.uniform(2, 9)), float(rng.uniform(0, np.pi))))


def _muted(rng: np.random.Generator, low: float, high: float) -> Colour:
    grey = rng.uniform(low, high)
    red, green, blue = (float(np.clip(grey + part, 0, 255)) for part in rng.uniform(-14, 14, 3))
    return red, green, blue


def _pick(pool: Sequence[T], rng: np.random.Generator) -> T:
    return pool[int(rng.integers(len(pool)))]
