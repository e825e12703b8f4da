"""Finds the true names of a scene from courses and silhouettes in small frames, without painting.

A name is true, false or arguable. People would disagree about an arguable name, such as the size of
a growing object. An arguable name is never used.

    moving d slowly, fast    0.12 to 0.18 or 0.42 to 0.58 frame sides per second, at most 12° off d
    moving d                 slowly or fast; `moving down` also when falling
    falling                  accelerated downwards, from rest
    circling, shaking        about one turn per second; 2.4 to 3.1 small swings per second
    growing, shrinking       by exp(0.8) to exp(1) per second
    blinking                 invisible for half of each 0.4 to 0.6 s; those frames are not labelled
    standing still           none of the above
    appearing, disappearing  starting or stopping to exist during the clip, inside the frame
    showing briefly          both, for at most three frames
    A chasing the B          same direction and speed, A behind B on its line
    A touching the B         their silhouettes overlap in a frame in which both are seen
    A in front of the B      A is nearer to the camera and covers part of B
    A appearing before the B both appear, A at least two frames earlier

A name with a relation means A only. Masks are the visible parts of the objects that a name means. All
frames that show such an object are labelled, because a deed belongs to the whole clip.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from tools.tiny_world.scene import Role, Scene
from tools.tiny_world.silhouettes import alone, silhouettes, visible
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
SEEN_PART = 0.3  # an object is seen in a frame if at least this share of the object is visible
BRIEF_FRAMES = 3
_LEAST_FRAMES = {"standing still": 2, "blinking": 2, "circling": 6, "growing": 5, "shrinking": 5, "shaking": 5, "falling": 4}
_LEAST_DISTANCE = 0.045  # in sides of the frame; an object that moves less far is not recognised


class Answer(IntEnum):
    """Whether a name is true.

    The answer for an object is the minimum over the parts of the name. The answer for a clip is the maximum
    over its objects.
    """

    FALSE = 0
    ARGUABLE = 1
    TRUE = 2


@dataclass(frozen=True, eq=False)
class Sighting:
    """The frames and positions in which one object is seen.

    Attributes:
        role: role of the object.
        seen: (T,) bool, whether enough of the object is visible.
        shown: (T,) bool, whether the object exists and blinking does not hide it.
        x, y: (T,) centre of the object, in sides of the frame.
        radius: (T,) in sides of the frame.
    """

    role: Role
    seen: BoolArray
    shown: BoolArray
    x: TimeArray
    y: TimeArray
    radius: TimeArray


@dataclass(frozen=True)
class Facts:
    """The facts that decide which names are true of a scene.

    Attributes:
        roles: roles of the named objects, the farthest first.
        deeds: per object, the answer for every deed.
        relations: for (relation, i, j), whether object i has this relation to object j.
        evident: per object, whether its role can be recognised. All other facts assume that it can.
    """

    roles: tuple[Role, ...]
    deeds: tuple[dict[str, Answer], ...]
    relations: dict[tuple[str, int, int], Answer]
    evident: tuple[bool, ...]

    def of(self, name: Name, index: int) -> Answer:
        """Return whether the name means object `index`."""
        role = self.roles[index]
        looks = name.colour in ("", role.pair[0]) and name.shape in ("", role.pair[1])
        answer = Answer.TRUE if looks else Answer.FALSE
        if name.size and name.size != role.size:
            answer = min(answer, Answer.FALSE if role.size else Answer.ARGUABLE)
        if name.deed:
            answer = min(answer, self.deeds[index][name.deed])
        if name.relation:
            others = [other for other, role in enumerate(self.roles) if other != index and role.pair == name.other]
            related_to = (self.relations[name.relation, index, other] for other in others)
            answer = min(answer, max(related_to, default=Answer.FALSE))
        return answer

    def answer(self, name: Name) -> Answer:
        """Return whether the clip has an object that the name means."""
        return max((self.of(name, index) for index in range(len(self.roles))), default=Answer.FALSE)

    def meant(self, name: Name) -> tuple[int, ...]:
        """Return the indices of the objects that the name means."""
        return tuple(index for index in range(len(self.roles)) if self.of(name, index) is Answer.TRUE)

    def names(self) -> tuple[str, ...]:
        """Return all true names, each once."""
        names: list[Name] = []
        for index, role in enumerate(self.roles):
            names += forms(role.size, role.pair, tuple(deed for deed in DEEDS if self.deeds[index][deed] is Answer.TRUE))
            for (relation, first, second), answer in self.relations.items():
                if first == index and answer is Answer.TRUE:
                    names += related(role.pair, relation, self.roles[second].pair)
        return tuple(dict.fromkeys(map(str, names)))

    @property
    def twins(self) -> bool:
        """Whether two objects look alike and move differently."""
        return any(
            first.pair == second.pair and first.motion != second.motion
            for place, first in enumerate(self.roles)
            for second in self.roles[:place]
        )


def fits(role: Role, name: Name) -> Answer:
    """Return whether a name without a relation means an object with this role."""
    return Facts((role,), (_done(role),), {}, (True,)).of(name, 0)


def observe(scene: Scene, times_s: TimeArray) -> Facts:
    """Return the facts about a scene at these evenly spaced times."""
    shapes = silhouettes(scene, times_s, COARSE_PX)
    cast = [shape for shape in shapes if shape.thing.role is not None]
    parts = visible(shapes, COARSE_PX).sum(axis=(2, 3)) if cast else np.zeros((0, len(times_s)), np.float32)
    sightings = []
    for shape, part in zip(cast, parts, strict=True):
        role, course = shape.thing.role, shape.thing.course
        assert role is not None
        seen, shown = part >= np.maximum(SEEN_PART * shape.area, 1.5), shape.thing.shown(times_s)
        sightings.append(Sighting(role, seen, shown, *course.at(times_s), shape.thing.radius * course.scale(times_s)))
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


def _evident(sighting: Sighting) -> bool:
    """Return whether the role of an object can be recognised in the clip."""
    motion, seen, shown = sighting.role.motion, sighting.seen, sighting.shown
    least = _LEAST_FRAMES.get(motion, 4)
    if seen.sum() < least or (sighting.role.presence and not np.array_equal(seen, shown)):
        return False
    if motion == "blinking":
        return bool(np.diff(shown).sum() >= 2 and np.array_equal(seen, shown))
    if motion in _LEAST_FRAMES and motion != "falling":
        return True
    first, last = np.flatnonzero(seen)[[0, -1]]
    distance = float(np.hypot(sighting.x[last] - sighting.x[first], sighting.y[last] - sighting.y[first]))
    return distance >= (3 if motion == "falling" else 1) * _LEAST_DISTANCE


def _deeds(sighting: Sighting) -> dict[str, Answer]:
    role, seen = sighting.role, sighting.seen
    answers = _done(role)
    if not role.presence and not seen.all():
        answers |= dict.fromkeys(PRESENCES, Answer.ARGUABLE)
    elif role.presence in ("appearing", "disappearing") and seen.sum() <= BRIEF_FRAMES + 1:
        answers["showing briefly"] = Answer.ARGUABLE
    return answers


def _done(role: Role) -> dict[str, Answer]:
    """Return the answer for every deed from the role alone."""
    answers = dict.fromkeys(DEEDS, Answer.FALSE)
    answers |= dict.fromkeys(ARGUABLE.get(role.motion, ()), Answer.ARGUABLE)
    return answers | dict.fromkeys(performs(role.motion) | (performs(role.presence) if role.presence else set()), Answer.TRUE)


def _touching(cast: list[Sighting], covers: list[FloatArray], i: int, j: int) -> Answer:
    first, second = cast[i], cast[j]
    together = first.shown & second.shown
    overlap = np.minimum(covers[i], covers[j]).sum(axis=(1, 2))
    if (overlap[first.seen & second.seen] >= 1).any():
        return Answer.TRUE
    apart = np.hypot(first.x - second.x, first.y - second.y) > 1.1 * (first.radius + second.radius)
    return Answer.FALSE if apart[together].all() and not overlap.any() else Answer.ARGUABLE


def _in_front(cast: list[Sighting], covers: list[FloatArray], i: int, j: int) -> Answer:
    if i < j:
        return Answer.FALSE
    overlap = np.minimum(covers[i], covers[j]).sum(axis=(1, 2))
    least = 0.12 * np.minimum(covers[i].sum(axis=(1, 2)), covers[j].sum(axis=(1, 2)))
    if ((overlap >= np.maximum(least, 1)) & cast[i].seen & cast[j].seen).any():
        return Answer.TRUE
    return min(_touching(cast, covers, i, j), Answer.ARGUABLE)


def _chasing(cast: list[Sighting], covers: list[FloatArray], i: int, j: int) -> Answer:
    first, second = cast[i], cast[j]
    together = first.seen & second.seen
    if first.role.motion != second.role.motion or not first.role.motion.startswith("moving ") or not together.any():
        return Answer.FALSE
    east, south = DIRECTIONS[first.role.motion.split()[1]]
    x, y = (second.x - first.x)[together], (second.y - first.y)[together]
    ahead, aside = x * east + y * south, np.abs(x * south - y * east)
    if (ahead <= 0).all():
        return Answer.FALSE
    near = first.radius + second.radius + 0.16
    behind = (ahead > 0).all() and (ahead < near[together]).all() and (aside < 0.09).all()
    return Answer.TRUE if behind and together.sum() >= 4 else Answer.ARGUABLE


def _appearing_before(cast: list[Sighting], covers: list[FloatArray], i: int, j: int) -> Answer:
    first, second = cast[i], cast[j]
    comes, follows = (sighting.role.presence in ("appearing", "showing briefly") for sighting in (first, second))
    if comes and follows:
        lead = int(second.seen.argmax()) - int(first.seen.argmax())
        return Answer.TRUE if lead >= 2 else Answer.FALSE if lead <= 0 else Answer.ARGUABLE
    if comes:  # the second object exists from the start, or becomes visible in another way
        return Answer.FALSE if second.seen[0] else Answer.ARGUABLE
    return Answer.ARGUABLE if follows or not (first.seen.all() and second.seen.all()) else Answer.FALSE


_RELATIONS: dict[str, Callable[[list[Sighting], list[FloatArray], int, int], Answer]] = {
    "chasing": _chasing,
    "touching": _touching,
    "in front of": _in_front,
    "appearing before": _appearing_before,
}
