"""The options of the synthetic world, and recipes for training on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Literal

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
from vadcli.train import DataChoice, LossWeights, ModelChoice, Recipe, ValidationChoice, check, read_recipes

SYNTHETIC = "synthetic"
REMOVABLE = ("null_key", "presence", "mask_prompt", "pooling")
"""Parts of the small model that are not in the paper: three of the projector, and the language
model's pooling."""
_LONGEST_S = 4.0


@dataclass(frozen=True)
class WorldOptions:
    """The look of the world, and its events. Lengths are shares of the frame's side unless named _px.

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
        for name in ("clutter", "distractors", "texture", "lighting", "noise", "shake"):
            self._check(getattr(self, name) >= 0, name, "0 or more")
        self._check(self.shake <= 0.1, "shake", "at most 0.1 of the frame's side")
        for name in ("hard", "interactions", "comings", "unseen", "compressed"):
            self._check(0 <= getattr(self, name) <= 1, name, "a share from 0 to 1")
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
        """Return the motions that objects may have in training, or in validation and tests."""
        held_out = set(self.held_out_motions) if training else set()
        return tuple(motion for motion in MOTIONS if not performs(motion) & held_out)

    def _check(self, ok: bool, name: str, wanted: str) -> None:
        if not ok:
            raise UsageError(f"the synthetic world's {name} is {getattr(self, name)!r}", hint=f"it must be: {wanted}")


@dataclass(frozen=True)
class TinyModelChoice(ModelChoice):
    """The model to train, and which of its parts are trained.

    Attributes:
        mask_prompt: gives the projector a mask prompt, which has no effect before it is trained. See
            `ProjectorOptions`.
        without: parts of `REMOVABLE` to remove before training, to measure their use.
    """

    mask_prompt: bool = False
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        strange = sorted(set(self.without) - set(REMOVABLE))
        check(not strange, f"[model] without names {strange}: give some of {', '.join(REMOVABLE)}")


@dataclass(frozen=True)
class TinyDataChoice(DataChoice):
    """One data set of the mixture, `synthetic` or one on disk.

    Attributes:
        clips: number of clips of the synthetic world.
        patterns: allowed kinds of names, keys of `naming.PATTERNS`; an empty list allows all kinds.
        called: name of this data set. It is needed if the recipe has the synthetic world several times. A list
            has only names of one of these data sets.
        painted: paint the synthetic world once into the cache folder, and read it from there.
    """

    clips: int = 10_000
    patterns: tuple[str, ...] = ()
    called: str = ""
    painted: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check(not self.called or bool(self.patterns), f"data {self.name!r}: called {self.called!r} needs patterns")
        check(self.clips > 0, f"data {self.name!r}: clips is {self.clips}; it must be above 0")

    def check_root(self) -> None:
        """Raise UsageError if `root` does not fit the data set. The synthetic world has no root."""
        check((self.name == SYNTHETIC) != bool(self.root), f"data {self.name!r}: root must be the folder of a data set on disk")


@dataclass(frozen=True)
class BaseChoice:
    """The questions of the tasks `pictures` and `questions`.

    Attributes:
        patterns: kinds of names, keys of `naming.PATTERNS`, equally likely.
        lists: lists of names per still or clip.
        longest: highest number of names per list.
        probability: probability that a list has a true name (stills), or that a name is true (clips).
        hard: share of the false names that differ from a true name in one word.
        grey, recoloured: shares of stills without colours, and with other colours.
        colours_first: share of the training, from its start, in which no still changes colour.
    """

    patterns: tuple[str, ...] = ("pair",)
    lists: int = 4
    longest: int = 8
    probability: float = 0.5
    hard: float = 0.5
    grey: float = 0.0
    recoloured: float = 0.0
    colours_first: float = 0.0

    def __post_init__(self) -> None:
        check(self.lists > 0 and self.longest > 0, "[base] lists and longest must be above 0")
        for name in ("probability", "hard", "grey", "recoloured", "colours_first"):
            check(0 <= getattr(self, name) <= 1, f"[base] {name} is {getattr(self, name)}, outside 0-1")
        check(self.grey + self.recoloured <= 1, "[base] grey and recoloured must be at most 1 together")


@dataclass(frozen=True)
class TinyLossWeights(LossWeights):
    """Weight of each part of the loss.

    Attributes:
        align, cells: the positions of names in stills, and the content of each cell; for the task `pictures`.
        tokens: the content of each cell in the language model's words; for the task `questions`.
    """

    align: float = 3.0
    cells: float = 1.0
    tokens: float = 1.0


@dataclass(frozen=True)
class TinyValidationChoice(ValidationChoice):
    """The data set by which the best weights are chosen; the synthetic world by default."""

    name: str = SYNTHETIC

    def check_root(self) -> None:
        """Raise UsageError if `root` does not fit the data set. The synthetic world has no root."""
        check((self.name == SYNTHETIC) != bool(self.root), f"[validation] {self.name!r}: root must be the data set's folder")


@dataclass(frozen=True)
class TinyRecipe(Recipe):
    """A whole training on the synthetic world.

    Attributes:
        task: `exposure` is the paper's training; `pictures` and `questions` make its base models.
        world: the synthetic world.
        base: the questions of the tasks `pictures` and `questions`.
    """

    model: TinyModelChoice
    data: tuple[TinyDataChoice, ...]
    task: Literal["exposure", "pictures", "questions"] = "exposure"  # type: ignore[assignment]  # a wider choice
    world: WorldOptions = field(default_factory=WorldOptions)
    base: BaseChoice = field(default_factory=BaseChoice)
    loss: TinyLossWeights = field(default_factory=TinyLossWeights)
    validation: TinyValidationChoice = field(default_factory=TinyValidationChoice)


def read_tiny_recipes(path: Path) -> tuple[TinyRecipe, ...]:
    """Return the stages of a recipe file; raises UsageError as `read_recipes`."""
    return read_recipes(path, TinyRecipe)
