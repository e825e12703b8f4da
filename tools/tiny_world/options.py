"""The options of the synthetic world in a recipe.

Lengths are shares of the frame's side unless their names end in _px.
"""

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
    """The look of the world, and its events.

    Attributes:
        size_px: side of the square frame; a multiple of 16.
        frames: frames per clip: at least 6, so that motions can be recognised, and at most 4 s, so
            that growing objects do not fill the frame.
        rate_hz: frames per second of a clip.
        objects: lowest and highest number of named objects per clip.
        clutter: highest number of grey things behind the objects, and in front of them.
        distractors: highest number of grey lumps that move among the objects.
        texture: strength of the patterns on ground and objects; 0 is flat.
        lighting: range of the light over clips, space and time; 0 is even light, 1 the usual range.
        noise: highest standard deviation of the sensor noise, in grey levels.
        shake: highest displacement by camera shake.
        compressed: share of clips with artefacts of 8×8 quantisation.
        hard: share of clips in which two objects look alike but move differently.
        interactions: share of clips in which two objects meet or appear one after the other.
        comings: share of objects that appear or disappear inside the frame.
        unseen: share of objects from the split's own held-out pairs, in validation and test clips.
        held_out_pairs, validation_pairs: colour-shape pairs for the test or validation split only.
        held_out_motions: training has no such motions, and no motions that imply them.

    Raises:
        UsageError: a value is out of range, or nothing is left to train on.
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
            self.frames / self.rate_hz <= _LONGEST_S,
            "frames",
            f"at most {_LONGEST_S:g} s at {self.rate_hz:g} frames per second",
        )
        self._check(1 <= self.objects[0] <= self.objects[1] <= 8, "objects", "two numbers from 1 to 8 in ascending order")
        for field in ("clutter", "distractors", "texture", "lighting", "noise", "shake"):
            self._check(getattr(self, field) >= 0, field, "0 or more")
        self._check(self.shake <= 0.1, "shake", "at most 0.1 of the frame's side")
        for field in _SHARES:
            self._check(0 <= getattr(self, field) <= 1, field, "a share from 0 to 1")
        known = set(product(COLOURS, SHAPES))
        held_out = [*self.held_out_pairs, *self.validation_pairs]
        self._check(set(held_out) <= known, "held_out_pairs", "pairs of the world's colours and shapes")
        self._check(
            len(set(held_out)) == len(held_out) < len(known), "held_out_pairs", "different pairs that leave some to train on"
        )
        implied = {deed for motion in MOTIONS for deed in IMPLIED.get(motion, ())}
        self._check(set(self.held_out_motions) <= {*MOTIONS, *implied}, "held_out_motions", f"some of {', '.join(MOTIONS)}")
        self._check(len(self.motions(training=True)) > 1, "held_out_motions", "motions that leave at least two to train on")

    def motions(self, *, training: bool) -> tuple[str, ...]:
        """Return the motions that objects may have, in training or elsewhere."""
        held_out = set(self.held_out_motions) if training else set()
        return tuple(motion for motion in MOTIONS if not performs(motion) & held_out)

    def _check(self, holds: bool, field: str, wanted: str) -> None:
        if not holds:
            raise UsageError(f"the synthetic world's {field} is {getattr(self, field)!r}", hint=f"it must be: {wanted}")
