"""What a recipe may set about the synthetic world. Lengths are shares of the picture's side unless they end in _px."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from tools.tiny_world.words import (
    COLOURS,
    HELD_OUT_PAIRS,
    IMPLIED,
    MOTIONS,
    SHAPES,
    VALIDATION_PAIRS,
    Pair,
    performs,
)
from vadcli.errors import UsageError

_SHARES = ("hard", "interactions", "comings", "unseen", "compressed")
_LONGEST_S = 4.0


@dataclass(frozen=True)
class WorldOptions:
    """How the world looks and what happens in it.

    Attributes:
        size_px: side of the square picture; a multiple of 16.
        frames: of a clip, at least 6, or no motion could be told; of 4 s at most, or what grows would fill the picture.
        rate_hz: frames a second of a clip.
        objects: fewest and most named objects of a clip.
        clutter: most grey things that stand behind the objects, and in front of them.
        distractors: most grey lumps that move among the objects.
        texture: how strong patterns on ground and objects are; 0 is flat.
        lighting: how far light may vary over clip, picture and time; 0 is even, 1 the usual range.
        noise: largest standard deviation of the sensor's noise, grey levels.
        shake: largest sway of the camera.
        compressed: share of clips with artefacts of 8×8 quantisation.
        hard: share of clips in which an object has a twin: the same colour and shape, another motion.
        interactions: share of clips with a planned chase, touch, passing or order of two objects.
        comings: share of objects that appear or disappear in the picture.
        unseen: share of the objects of a validation or test clip that are drawn from that split's own held-out pairs.
        held_out_pairs, validation_pairs: colour-shape pairs that only the test or only the validation split knows.
        held_out_motions: motions that training neither shows nor names; what implies one of them is held out with it.

    Raises:
        UsageError: a value that makes no world.
    """

    size_px: int = 128
    frames: int = 8
    rate_hz: float = 7.5
    objects: tuple[int, int] = (1, 4)
    clutter: int = 2
    distractors: int = 2
    texture: float = 1.0
    lighting: float = 1.0
    noise: float = 8.0
    shake: float = 0.012
    compressed: float = 0.5
    hard: float = 0.4
    interactions: float = 0.5
    comings: float = 0.3
    unseen: float = 0.5
    held_out_pairs: tuple[Pair, ...] = HELD_OUT_PAIRS
    validation_pairs: tuple[Pair, ...] = VALIDATION_PAIRS
    held_out_motions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._check(self.size_px >= 32 and self.size_px % 16 == 0, "size_px", "a multiple of 16, at least 32")
        self._check(self.frames >= 6, "frames", "at least 6")
        self._check(self.rate_hz > 0, "rate_hz", "above 0")
        self._check(
            self.frames / self.rate_hz <= _LONGEST_S, "frames", f"no more than {_LONGEST_S:g} s at {self.rate_hz:g} a second"
        )
        self._check(1 <= self.objects[0] <= self.objects[1] <= 8, "objects", "fewest and most, 1 to 8")
        for field in ("clutter", "distractors", "texture", "lighting", "noise", "shake"):
            self._check(getattr(self, field) >= 0, field, "not negative")
        self._check(self.shake <= 0.1, "shake", "at most 0.1 of the picture")
        for field in _SHARES:
            self._check(0 <= getattr(self, field) <= 1, field, "a share from 0 to 1")
        known = set(product(COLOURS, SHAPES))
        held_out = [*self.held_out_pairs, *self.validation_pairs]
        self._check(set(held_out) <= known, "held_out_pairs", "colours and shapes of the world")
        self._check(
            len(set(held_out)) == len(held_out) < len(known), "held_out_pairs", "each pair once, and some left to train on"
        )
        implied = {deed for motion in MOTIONS for deed in IMPLIED.get(motion, ())}
        self._check(set(self.held_out_motions) <= {*MOTIONS, *implied}, "held_out_motions", f"among {', '.join(MOTIONS)}")
        self._check(len(self.motions(training=True)) > 1, "held_out_motions", "at least two motions left to train on")

    def motions(self, *, training: bool) -> tuple[str, ...]:
        """What objects may do, in training or elsewhere."""
        held_out = set(self.held_out_motions) if training else set()
        return tuple(motion for motion in MOTIONS if not performs(motion) & held_out)

    def _check(self, holds: bool, field: str, wanted: str) -> None:
        if not holds:
            raise UsageError(f"the synthetic world's {field} is {getattr(self, field)!r}", hint=f"wanted: {wanted}")
