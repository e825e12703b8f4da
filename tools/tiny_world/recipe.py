"""Recipes of trainings on the synthetic world: the paper's recipe, with what only the small checkpoint needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tools.tiny_world.options import WorldOptions
from vadcli.train.recipe import (
    DataChoice,
    LossChoice,
    ModelChoice,
    Recipe,
    ValidationChoice,
    check,
    parse_recipe,
    parse_stages,
    read_recipes,
)

SYNTHETIC = "synthetic"
REMOVABLE = ("null_key", "presence", "mask_prompt", "pooling")
"""Parts of the small model that the paper does not have: three of the projector, one of the language model."""


@dataclass(frozen=True)
class TinyModelChoice(ModelChoice):
    """What is trained.

    Attributes:
        mask_prompt: give the projector a mask prompt if it has none, at first without effect; see `ProjectorOptions`.
        without: parts of the start that are taken away, to measure what they are good for; any of `REMOVABLE`.
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
        clips: how many clips the synthetic world has.
        patterns: what its names may say, keys of `tools.tiny_world.naming.PATTERNS`; empty allows everything.
        called: tells it from another choice of the synthetic world with other patterns; a list holds names of one of them.
        painted: paint the synthetic world once, into the cache folder, and read it from there.
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
    """What the tasks `pictures` and `questions` ask.

    Attributes:
        patterns: what names say, keys of `tools.tiny_world.naming.PATTERNS`, equally likely.
        lists: lists of names for each still or clip.
        longest: names per list at most.
        probability: that a still's list has a true name; that a name about a clip is true.
        hard: share of the false names that are true but for one word.
        grey, recoloured, colours_first: of stills; see `tools.tiny_world.pictures.PictureSamples`.
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
            check(0 <= getattr(self, name) <= 1, f"[base] {name} is {getattr(self, name)}, not 0 to 1")
        check(self.grey + self.recoloured <= 1, "[base] grey and recoloured are more than all stills")


@dataclass(frozen=True)
class TinyLossChoice(LossChoice):
    """The weight of each part of the loss.

    Attributes:
        align, cells: where names are in stills, and what fills a cell; task `pictures`.
        tokens: what fills a cell, in the language model's words; task `questions`.
    """

    align: float = 3.0
    cells: float = 1.0
    tokens: float = 1.0


@dataclass(frozen=True)
class TinyValidationChoice(ValidationChoice):
    """What the checkpoint is chosen by; the synthetic world by default."""

    name: str = SYNTHETIC

    def check_root(self) -> None:
        """Raise UsageError if `root` does not fit the data set: the synthetic world has none."""
        check((self.name == SYNTHETIC) != bool(self.root), f"[validation] {self.name!r}: root must be the data set's folder")


@dataclass(frozen=True)
class TinyRecipe(Recipe):
    """A whole training on the synthetic world.

    Attributes:
        task: the paper's training, or one that makes a base model from nothing for it.
        world: the synthetic world.
        base: what the tasks `pictures` and `questions` ask.
    """

    model: TinyModelChoice
    data: tuple[TinyDataChoice, ...]
    task: Literal["exposure", "pictures", "questions"] = "exposure"  # type: ignore[assignment]  # a wider choice
    world: WorldOptions = field(default_factory=WorldOptions)
    base: BaseChoice = field(default_factory=BaseChoice)
    loss: TinyLossChoice = field(default_factory=TinyLossChoice)
    validation: TinyValidationChoice = field(default_factory=TinyValidationChoice)


def read_tiny_recipes(path: Path) -> tuple[TinyRecipe, ...]:
    """Read the stages of a training on the synthetic world; raises UsageError as `read_recipes`."""
    return read_recipes(path, TinyRecipe)


def parse_tiny_stages(document: Mapping[str, Any]) -> tuple[TinyRecipe, ...]:
    """Return the stages from a parsed TOML document."""
    return parse_stages(document, TinyRecipe)


def parse_tiny_recipe(document: Mapping[str, Any]) -> TinyRecipe:
    """Return the recipe of one stage from a parsed TOML document."""
    return parse_recipe(document, TinyRecipe)
