"""Recipes for training on the synthetic world: the paper's recipe and the small model's options."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tools.tiny_world.options import WorldOptions
from vadcli.train.recipe import (
    DataChoice,
    LossWeights,
    ModelChoice,
    Recipe,
    ValidationChoice,
    check,
    read_recipes,
)

SYNTHETIC = "synthetic"
REMOVABLE = ("null_key", "presence", "mask_prompt", "pooling")
"""Parts of the small model that are not in the paper: three of the projector, and the language
model's pooling."""


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
        called: name of this choice, needed if the recipe has the synthetic world several times. A list
            has only names of one choice.
        painted: paint the synthetic world once into the cache folder, and read it from there.
    """

    clips: int = 10_000
    patterns: tuple[str, ...] = ()
    called: str = ""
    painted: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check(not self.called or bool(self.patterns), f"data {self.name!r}: called {self.called!r} needs patterns")
        check(self.clips > 0, f"data {self.name!r}: clips is {self.clips}, not above 0")

    def check_root(self) -> None:
        """Raise UsageError if `root` does not fit the data set: the synthetic world has none."""
        check((self.name == SYNTHETIC) != bool(self.root), f"data {self.name!r}: root must be the folder of a data set on disk")


@dataclass(frozen=True)
class BaseChoice:
    """The questions of the tasks `pictures` and `questions`.

    Attributes:
        patterns: kinds of names, keys of `naming.PATTERNS`, equally likely.
        lists: lists of names per still or clip.
        longest: highest number of names per list.
        probability: probability that a list has a true name (stills), or that a name is true (clips).
        hard: share of the false names that differ from a true one in one word.
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
    """The data set that selects the best checkpoint; the synthetic world by default."""

    name: str = SYNTHETIC

    def check_root(self) -> None:
        """Raise UsageError if `root` does not fit the data set: the synthetic world has none."""
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
