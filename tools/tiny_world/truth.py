"""What is true of a scene, from its courses and from what is seen of it in a coarse picture, without painting.

A name is true, false or arguable. Only true ones belong in a list of what is there, only false ones in a list of what isn't;
arguable are names about which people would disagree, such as the size of something that grows.

    moving d slowly, fast    at .12 to .18 or .42 to .58 sides of the picture a second, at most 12° off
    moving d                 either of them; `moving down` also where it falls
    falling                  from rest, faster and faster
    circling, shaking        about one turn a second; 2.4 to 3.1 times a second, a fraction of a radius
    growing, shrinking       by e to the .8 to 1 a second
    blinking                 out of sight for half of each .4 to .6 seconds; hidden frames are no frames of it
    standing still           none of these
    appearing, disappearing  it is not there, then there (or the reverse), in the middle of the clip and of the picture
    showing briefly          both, and there for three frames at most: told by how long, not by how it looks
    A chasing the B          same direction and speed, A behind B on its line
    A touching the B         their silhouettes overlap in a frame in which both are seen
    A in front of the B      and A covers part of B
    A appearing before the B both appear, A at least two frames earlier

Whatever the name, its objects are those that its first part means (of two objects the first-named), its masks are their visible
parts, and its frames are those in which any of them is seen: a motion, an order or a meeting belongs to the whole clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from tools.tiny_world.scene import Role, Scene, Thing
from tools.tiny_world.silhouettes import Silhouette, alone, silhouettes, visible
from tools.tiny_world.words import (
    ARGUABLE,
    DEEDS,
    DIRECTIONS,
    PRESENCES,
    RELATIONS,
    Name,
    forms,
    performs,
    related,
)
from vadcli.types import BoolArray, FloatArray, TimeArray

COARSE_PX = 32
SEEN_PART = 0.3  # an object is seen where this much of it is
BRIEF_FRAMES = 3
_LEAST_FRAMES = {"standing still": 2, "blinking": 2, "circling": 6, "growing": 5, "shrinking": 5, "shaking": 5, "falling": 4}
_LEAST_WAY = 0.045


class Verdict(IntEnum):
    """Whether a name holds; the least of its parts, the greatest over objects."""

    FALSE = 0
    ARGUABLE = 1
    TRUE = 2


@dataclass(frozen=True, eq=False)
class Sighting:
    """What is seen of one object.

    Attributes:
        role: what is said of it.
        thing: the object.
        seen: (T,) where enough of it is visible.
        shown: (T,) where it is there and lit.
        x, y: (T,) its middle.
        radius: (T,) sides of the picture.
    """

    role: Role
    thing: Thing
    seen: BoolArray
    shown: BoolArray
    x: TimeArray
    y: TimeArray
    radius: TimeArray


@dataclass(frozen=True)
class Facts:
    """Every verdict about a scene.

    Attributes:
        roles: of the named objects, far ones first.
        deeds: for each object, the verdict on every deed.
        relations: of object i to object j.
        evident: for each object, whether all that its role says can be seen; the other verdicts suppose it.
    """

    roles: tuple[Role, ...]
    deeds: tuple[dict[str, Verdict], ...]
    relations: dict[tuple[str, int, int], Verdict]
    evident: tuple[bool, ...]

    def of(self, name: Name, index: int) -> Verdict:
        """Whether object `index` is one that the name means."""
        role = self.roles[index]
        verdict = _is(not name.colour or name.colour == role.pair[0], not name.shape or name.shape == role.pair[1])
        if name.size and name.size != role.size:
            verdict = min(verdict, Verdict.FALSE if role.size else Verdict.ARGUABLE)
        if name.deed:
            verdict = min(verdict, self.deeds[index][name.deed])
        if name.relation:
            verdict = min(verdict, self._related(name, index))
        return verdict

    def verdict(self, name: Name) -> Verdict:
        """Whether the clip has an object that the name means."""
        return max((self.of(name, index) for index in range(len(self.roles))), default=Verdict.FALSE)

    def meant(self, name: Name) -> tuple[int, ...]:
        """The objects that the name means."""
        return tuple(index for index in range(len(self.roles)) if self.of(name, index) is Verdict.TRUE)

    def names(self) -> tuple[str, ...]:
        """All true names, each once."""
        return tuple(dict.fromkeys(str(name) for index in range(len(self.roles)) for name in self._names_of(index)))

    @property
    def twins(self) -> bool:
        """Whether two objects look alike and move differently."""
        return any(
            one.pair == other.pair and one.motion != other.motion
            for place, one in enumerate(self.roles)
            for other in self.roles[:place]
        )

    def _related(self, name: Name, index: int) -> Verdict:
        others = (other for other, role in enumerate(self.roles) if other != index and role.pair == name.other)
        return max((self.relations[name.relation, index, other] for other in others), default=Verdict.FALSE)

    def _names_of(self, index: int) -> Iterator[Name]:
        role = self.roles[index]
        deeds = tuple(deed for deed in DEEDS if self.deeds[index][deed] is Verdict.TRUE)
        yield from forms(role.size, role.pair, deeds)
        for (relation, one, other), verdict in self.relations.items():
            if one == index and verdict is Verdict.TRUE:
                yield from related(role.pair, relation, self.roles[other].pair)


def fits(role: Role, name: Name) -> Verdict:
    """Whether a name without a relation means something with this role, wherever it is."""
    return Facts((role,), (_done(role),), {}, (True,)).of(name, 0)


def observe(scene: Scene, times_s: TimeArray) -> Facts:
    """All that is true of a scene at these times, evenly spaced."""
    shapes = silhouettes(scene, times_s, COARSE_PX)
    cast = [shape for shape in shapes if shape.thing.role is not None]
    parts = visible(shapes, COARSE_PX).sum(axis=(2, 3)) if cast else np.zeros((0, len(times_s)), np.float32)
    sightings = [_sighting(shape, part, times_s) for shape, part in zip(cast, parts, strict=True)]
    covers = [alone(shape, COARSE_PX) for shape in cast] if len(cast) > 1 else []
    relations = {
        (relation, i, j): _RELATIONS[relation](sightings, covers, i, j)
        for i in range(len(cast))
        for j in range(len(cast))
        for relation in RELATIONS
        if i != j
    }
    return Facts(
        tuple(sighting.role for sighting in sightings),
        tuple(_deeds(sighting) for sighting in sightings),
        relations,
        tuple(_evident(sighting) for sighting in sightings),
    )


def _sighting(shape: Silhouette, part: FloatArray, times_s: TimeArray) -> Sighting:
    role, course = shape.thing.role, shape.thing.course
    assert role is not None
    seen = part >= np.maximum(SEEN_PART * shape.area, 1.5)
    x, y = course.at(times_s)
    return Sighting(role, shape.thing, seen, shape.thing.shown(times_s), x, y, shape.thing.radius * course.scale(times_s))


def _evident(one: Sighting) -> bool:
    """Whether what its role says can be seen in the clip."""
    motion, seen = one.role.motion, one.seen
    least = _LEAST_FRAMES.get(motion, 4)
    if seen.sum() < least or (one.role.presence and not np.array_equal(seen, one.shown)):
        return False
    if motion == "blinking":
        return bool(np.diff(one.shown).sum() >= 2 and np.array_equal(seen, one.shown))
    if motion in _LEAST_FRAMES and motion != "falling":
        return True
    first, last = np.flatnonzero(seen)[[0, -1]]
    way = float(np.hypot(one.x[last] - one.x[first], one.y[last] - one.y[first]))
    return way >= (3 if motion == "falling" else 1) * _LEAST_WAY


def _deeds(one: Sighting) -> dict[str, Verdict]:
    role, seen = one.role, one.seen
    verdicts = _done(role)
    if not role.presence and not seen.all():
        verdicts |= dict.fromkeys(PRESENCES, Verdict.ARGUABLE)
    elif role.presence in ("appearing", "disappearing") and seen.sum() <= BRIEF_FRAMES + 1:
        verdicts["showing briefly"] = Verdict.ARGUABLE
    return verdicts


def _done(role: Role) -> dict[str, Verdict]:
    """The verdict on every deed as far as the role alone says it."""
    verdicts = dict.fromkeys(DEEDS, Verdict.FALSE)
    verdicts |= dict.fromkeys(ARGUABLE.get(role.motion, ()), Verdict.ARGUABLE)
    return verdicts | dict.fromkeys(performs(role.motion) | (performs(role.presence) if role.presence else set()), Verdict.TRUE)


def _touching(cast: list[Sighting], covers: list[FloatArray], i: int, j: int) -> Verdict:
    one, other = cast[i], cast[j]
    together = one.shown & other.shown
    overlap = np.minimum(covers[i], covers[j]).sum(axis=(1, 2))
    if (overlap[one.seen & other.seen] >= 1).any():
        return Verdict.TRUE
    apart = np.hypot(one.x - other.x, one.y - other.y) > 1.1 * (one.radius + other.radius)
    return Verdict.FALSE if apart[together].all() and not overlap.any() else Verdict.ARGUABLE


def _in_front(cast: list[Sighting], covers: list[FloatArray], i: int, j: int) -> Verdict:
    if i < j:
        return Verdict.FALSE
    overlap = np.minimum(covers[i], covers[j]).sum(axis=(1, 2))
    least = 0.12 * np.minimum(covers[i].sum(axis=(1, 2)), covers[j].sum(axis=(1, 2)))
    if ((overlap >= np.maximum(least, 1)) & cast[i].seen & cast[j].seen).any():
        return Verdict.TRUE
    return min(_touching(cast, covers, i, j), Verdict.ARGUABLE)


def _chasing(cast: list[Sighting], covers: list[FloatArray], i: int, j: int) -> Verdict:
    one, other = cast[i], cast[j]
    together = one.seen & other.seen
    if one.role.motion != other.role.motion or not one.role.motion.startswith("moving ") or not together.any():
        return Verdict.FALSE
    east, south = DIRECTIONS[one.role.motion.split()[1]]
    x, y = (other.x - one.x)[together], (other.y - one.y)[together]
    ahead, aside = x * east + y * south, np.abs(x * south - y * east)
    if (ahead <= 0).all():
        return Verdict.FALSE
    near = one.radius + other.radius + 0.16
    behind = (ahead > 0).all() and (ahead < near[together]).all() and (aside < 0.09).all()
    return Verdict.TRUE if behind and together.sum() >= 4 else Verdict.ARGUABLE


def _appearing_before(cast: list[Sighting], covers: list[FloatArray], i: int, j: int) -> Verdict:
    one, other = cast[i], cast[j]
    comes, follows = (sighting.role.presence in ("appearing", "showing briefly") for sighting in (one, other))
    if comes and follows:
        lead = int(other.seen.argmax()) - int(one.seen.argmax())
        return Verdict.TRUE if lead >= 2 else Verdict.FALSE if lead <= 0 else Verdict.ARGUABLE
    if comes:  # the other one is there already, or comes otherwise
        return Verdict.FALSE if other.seen[0] else Verdict.ARGUABLE
    return Verdict.ARGUABLE if follows or not (one.seen.all() and other.seen.all()) else Verdict.FALSE


_RELATIONS: dict[str, Callable[[list[Sighting], list[FloatArray], int, int], Verdict]] = {
    "chasing": _chasing,
    "touching": _touching,
    "in front of": _in_front,
    "appearing before": _appearing_before,
}


def _is(*holds: bool) -> Verdict:
    return Verdict.TRUE if all(holds) else Verdict.FALSE
