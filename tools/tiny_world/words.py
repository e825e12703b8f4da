"""The language of the synthetic world: words, names, and the pairs that training never sees.

A name means the objects for which all of its parts are true.

    star, something red, red star, something large, large red star   appearance and size
    <head> <deed>                            motion, order and duration within a clip
        red star moving left, something blinking
    <head> <relation> the <colour> <shape>   order and interaction of two objects
        red star chasing the blue ring, something appearing before the green heart

A head is `something`, a colour (`something red`), a shape or both; before a relation it is
`something`, or a colour with a shape. `truth` defines the deeds and relations exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from types import MappingProxyType
from typing import Literal

Pair = tuple[str, str]
"""A colour and a shape."""
Kind = Literal["appearance", "size", "motion", "order", "interaction"]

COLOURS: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "red": (212, 38, 40),
        "orange": (244, 130, 28),
        "yellow": (240, 214, 44),
        "green": (42, 158, 58),
        "cyan": (58, 200, 214),
        "blue": (40, 78, 212),
        "purple": (128, 58, 172),
        "pink": (240, 122, 186),
    }
)
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "crescent")
SIZES = ("small", "large")

DIRECTIONS: Mapping[str, tuple[int, int]] = MappingProxyType({"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)})
"""x points to the right, y down."""
MOTIONS = (
    "standing still",
    *(f"moving {direction} {pace}" for direction in DIRECTIONS for pace in ("slowly", "fast")),
    *("circling", "growing", "shrinking", "blinking", "shaking", "falling"),
)
"""What an object does. Each object has exactly one of these motions."""
PRESENCES = ("appearing", "disappearing", "showing briefly")
"""How an object comes or goes inside the frame. Most objects do neither."""
RELATIONS = ("chasing", "touching", "in front of", "appearing before")

IMPLIED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {motion: (motion.rsplit(" ", 1)[0],) for motion in MOTIONS if motion.startswith("moving ")}
    | {"falling": ("moving down",), "showing briefly": ("appearing", "disappearing")}
)
"""For a deed, the other deeds that are true whenever this deed is true."""
ARGUABLE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    dict.fromkeys(("growing", "shrinking", "blinking"), ("standing still",)) | {"falling": ("moving down fast",)}
)
"""For a motion, the other deeds that some people would call true and other people false."""
DEEDS = tuple(dict.fromkeys((*MOTIONS, *(other for deed in MOTIONS for other in IMPLIED.get(deed, ())), *PRESENCES)))

HELD_OUT_PAIRS: tuple[Pair, ...] = (
    ("red", "square"),
    ("orange", "ring"),
    ("yellow", "circle"),
    ("green", "heart"),
    ("cyan", "triangle"),
    ("blue", "crescent"),
    ("purple", "star"),
    ("pink", "cross"),
    ("red", "ring"),
    ("yellow", "star"),
    ("cyan", "heart"),
    ("purple", "square"),
)
"""Pairs that only the test split shows and names. Each word is in at least five other pairs."""
VALIDATION_PAIRS: tuple[Pair, ...] = (
    ("orange", "triangle"),
    ("green", "circle"),
    ("blue", "cross"),
    ("pink", "crescent"),
)
"""Pairs that only the validation split shows and names. So early stopping uses no pair of the test split."""


def performs(motion: str) -> frozenset[str]:
    """Return the deeds that are true of an object with this motion or presence."""
    return frozenset({motion, *IMPLIED.get(motion, ())})


@dataclass(frozen=True)
class Name:
    """The parts of a name. A part that the name does not have is empty.

    Attributes:
        size, colour, shape: look of the objects that the name means.
        deed: what these objects do, one of `DEEDS`.
        relation: relation to another object, one of `RELATIONS`.
        other: the other object's colour and shape.
    """

    size: str = ""
    colour: str = ""
    shape: str = ""
    deed: str = ""
    relation: str = ""
    other: Pair | None = None

    def __str__(self) -> str:
        """Return the name as people write it."""
        words = [self.size, self.colour, self.shape] if self.shape else ["something", self.size, self.colour]
        words += [self.deed, self.relation]
        if self.other is not None:
            words += ["the", *self.other]
        return " ".join(word for word in words if word)

    @property
    def kind(self) -> Kind:
        """The kind of the name. A still cannot show motion, order or interaction."""
        if self.relation:
            return "order" if self.relation == "appearing before" else "interaction"
        if self.deed:
            return "order" if self.deed in PRESENCES else "motion"
        return "size" if self.size else "appearance"

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """The colour-shape pairs in the name."""
        own = ((self.colour, self.shape),) if self.colour and self.shape else ()
        return own if self.other is None else (*own, self.other)


@cache
def name_table() -> Mapping[str, Name]:
    """Return all names (about 20,000) as written, with their parts, in a fixed order."""
    pairs = tuple(product(COLOURS, SHAPES))
    names = [name for size, pair in product(SIZES, pairs) for name in forms(size, pair, DEEDS)]
    for pair, relation, other in product(pairs, RELATIONS, pairs):
        names += related(pair, relation, other)
    return MappingProxyType({str(name): name for name in names})


def forms(size: str, pair: Pair, deeds: tuple[str, ...]) -> Iterator[Name]:
    """Yield the names of one object without relations to other objects.

    Args:
        size: size of the object; empty if it is not clear.
        pair: colour and shape of the object.
        deeds: all deeds that are true of the object.
    """
    colour, shape = pair
    heads = (Name(), Name(shape=shape), Name(colour=colour), Name(colour=colour, shape=shape))
    yield from heads[1:]
    if size:
        yield from (Name(size=size), Name(size=size, colour=colour, shape=shape))
    yield from (Name(colour=head.colour, shape=head.shape, deed=deed) for deed in deeds for head in heads)


def related(pair: Pair, relation: str, other: Pair) -> tuple[Name, Name]:
    """Return the names of an object that describe its relation to another object."""
    return Name(relation=relation, other=other), Name("", *pair, "", relation, other)
