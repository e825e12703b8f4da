"""Tests of a whole training: equal results when it is repeated or killed, and its validation."""

from __future__ import annotations

import csv
import json
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from tests.patience import PATIENCE_S
from tests.train import miniatures
from tests.train.processes import train, train_together
from tests.train.small import PAPER_MIX, WHOLE, small_model
from tools.tiny_world.recipe import TinyRecipe, read_tiny_recipes
from tools.tiny_world.training import tiny_trainer
from vadcli.detectors.lavida import checkpoint
from vadcli.errors import DocumentError, UsageError, VadcliError
from vadcli.train import PAPER_PARTS, Recipe, parse_recipe, read_recipes
from vadcli.train.state import TrainerState
from vadcli.train.step import LOSS_NAMES
from vadcli.train.trainer import Trainer
from vadcli.train.training import validate

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.fixture(autouse=True)
def fresh() -> None:
    """Reset accelerate, which otherwise keeps the first precision of a process."""
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a LAVIDA folder to start from; the model is smaller than any preset."""
    folder = tmp_path_factory.mktemp("start") / "small"
    checkpoint.save(small_model(), folder, trained=False)
    return folder


def recipe_of(
    start: Path,
    *,
    steps: int = 6,
    accumulation: int = 1,
    lora: bool = False,
    every: int = 0,
    patience: int = 0,
    seed: int = 0,
) -> Recipe:
    return parse_recipe(
        {
            "name": "small",
            "seed": seed,
            "model": {
                "folder": str(start),
                "train": list(PAPER_PARTS if lora else WHOLE),
                "masks": 3 if lora else 1,
                "compression": 0.5,
            },
            "data": [{"name": "synthetic", "clips": 20, "max_categories": 4}],
            "world": {"size_px": 64},
            "schedule": {
                "epochs": 2,
                "steps": steps // 2,
                "batch": 1,
                "accumulation": accumulation,
                "rate": 1e-3,
                "warm_up_steps": 2,
            },
            "validation": {"clips": 4, "every": every, "patience": patience},
            "running": {"checkpoint_every": 2},
        },
        TinyRecipe,
    )


def losses_of(out: Path) -> list[list[str]]:
    """Return the rows of the log without the seconds."""
    with (out / "log.csv").open(newline="") as file:
        return [row[:-1] for row in csv.reader(file)]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class Killed(Exception):
    pass


def killed_after(step: int) -> Callable[[Trainer], None]:
    """Stop a trainer like a kill would: in the middle of a step, without any cleaning up."""

    def arm(trainer: Trainer) -> None:
        train = trainer._train

        def stop(samples: object, rate: float) -> dict[str, float]:
            found = train(samples, rate)  # type: ignore[arg-type]
            if trainer.progress.step == step:
                raise Killed
            return found

        trainer._train = stop  # type: ignore[method-assign]

    return arm


@pytest.mark.parametrize("lora", [False, True])
def test_a_killed_training_ends_with_the_same_bytes_as_an_undisturbed_one(start: Path, tmp_path: Path, lora: bool) -> None:
    recipe = recipe_of(start, lora=lora, every=3, accumulation=2)
    whole = tiny_trainer(recipe, tmp_path / "whole", device="cpu").run()
    rng = np.random.default_rng(1 + lora)
    first = int(rng.integers(2, 5))
    for step in (first, 5):
        broken = tiny_trainer(recipe, tmp_path / "broken", device="cpu")
        killed_after(step)(broken)
        with pytest.raises(Killed):
            broken.run()
        assert not (tmp_path / "broken" / "model").exists()
    resumed = tiny_trainer(recipe, tmp_path / "broken", device="cpu").run()
    assert losses_of(tmp_path / "broken") == losses_of(tmp_path / "whole")
    assert (tmp_path / "broken/validation.csv").read_bytes() == (tmp_path / "whole/validation.csv").read_bytes()
    assert files_of(resumed) == files_of(whole)


@pytest.mark.slow
def test_a_process_killed_by_the_system_goes_on_to_the_same_bytes(start: Path, tmp_path: Path) -> None:
    recipe = recipe_of(start, steps=8)
    child = train(recipe, out=tmp_path / "broken")
    log, deadline = tmp_path / "broken" / "log.csv", time.monotonic() + PATIENCE_S
    try:
        while not (log.is_file() and len(log.read_text().splitlines()) > 4):
            assert not child.ended(), "the training ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        child.kill()
        assert child.wait().returncode == -signal.SIGKILL
    resumed = tiny_trainer(recipe, tmp_path / "broken", device="cpu").run()
    whole = tiny_trainer(recipe, tmp_path / "whole", device="cpu").run()
    assert losses_of(tmp_path / "broken") == losses_of(tmp_path / "whole")
    assert files_of(resumed) == files_of(whole)


def test_one_seed_gives_one_training_and_another_seed_another(start: Path, tmp_path: Path) -> None:
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        tiny_trainer(recipe_of(start, steps=2, seed=seed), tmp_path / name, device="cpu").run()
    assert losses_of(tmp_path / "first") == losses_of(tmp_path / "again") != losses_of(tmp_path / "other")
    header, *rows = losses_of(tmp_path / "first")
    assert header == ["step", *LOSS_NAMES, "rate"]
    assert [row[0] for row in rows] == ["1", "2"]


@pytest.mark.parametrize("lora", [False, True])
def test_the_folder_that_comes_out_scores_as_the_trained_model_did(start: Path, tmp_path: Path, lora: bool) -> None:
    recipe = recipe_of(start, steps=4, lora=lora)
    recipe = replace(recipe, schedule=replace(recipe.schedule, rate=1e-2))
    trainer = tiny_trainer(recipe, tmp_path, device="cpu")
    folder = trainer.run()
    model = checkpoint.load(folder)  # without allow_untrained
    assert model.config.trained
    assert model.config.sources["training"][-1]["recipe"] == recipe.without_paths()
    assert model.config.sources["training"][-1]["data"] == trainer.work.fingerprint
    assert model.config.compression.ratio == 0.5
    names = ("red star", "something falling")
    frames = torch.from_numpy(trainer.work.samples.mixture.sample(trainer.work.samples.mixture.plan(0)[0]).frames)[None]
    trained = trainer.work.module.eval().model
    with torch.no_grad():
        wanted, got = (one(frames, one.questions(names)) for one in (trained, model))
        before = checkpoint.load(start, allow_untrained=True)
        untrained = before(frames, before.questions(names))
    torch.testing.assert_close(got.object_logit, wanted.object_logit, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got.mask_logit, wanted.mask_logit, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(got.object_logit, untrained.object_logit, atol=1e-2)
    assert (folder / "lora").is_dir() == lora
    assert {path.stat().st_mode for path in folder.rglob("*.safetensors")} == {(folder / "config.json").stat().st_mode}


def test_the_best_validation_is_what_comes_out_and_waiting_ends(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = iter([0.6, 0.9, 0.7, 0.9])

    def told(*args: object, **more: object) -> object:
        return replace(validate(*args, **more), frame_auc=next(figures))  # type: ignore[arg-type]

    monkeypatch.setattr("vadcli.train.training.validate", told)
    recipe = recipe_of(start, steps=20, every=1, patience=2)
    trainer = tiny_trainer(recipe, tmp_path, device="cpu")
    folder = trainer.run()
    assert trainer.progress == TrainerState(step=4, best=0.9, best_step=2, waited=2)
    training = json.loads((folder / "config.json").read_text())["sources"]["training"][-1]
    assert (training["steps"], training["validation_frame_auc"]) == (2, 0.9)
    rows = (tmp_path / "validation.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [["1", "0.6"], ["2", "0.9"], ["3", "0.7"], ["4", "0.9"]]
    # When the training is run again, it does no more steps.
    assert files_of(tiny_trainer(recipe, tmp_path, device="cpu").run()) == files_of(folder)


def test_validation_shows_what_training_never_does(start: Path, tmp_path: Path) -> None:
    trainer = tiny_trainer(recipe_of(start, every=3), tmp_path, device="cpu")
    assert trainer.work.validation_set is not None
    assert len(trainer.work.validation_set) == 4
    assert all("/validation/" in trainer.work.validation_set[place].key for place in range(4))
    assert all("/train/" in trainer.work.samples.mixture.sample(draw).key for draw in trainer.work.samples.mixture.plan(0))
    state = torch.get_rng_state()
    found = validate(trainer.work.module, trainer.work.validation_set, batch=3)
    assert torch.equal(torch.get_rng_state(), state), "validation must not move training's random numbers on"
    assert found.frames == 4 * 8
    assert found.frame_auc is not None
    assert 0 <= found.frame_auc <= 1
    assert found == validate(trainer.work.module, trainer.work.validation_set, batch=2)


def test_another_recipe_does_not_go_on_with_a_training(start: Path, tmp_path: Path) -> None:
    recipe = recipe_of(start, steps=2)
    tiny_trainer(recipe, tmp_path, device="cpu").run()
    other = replace(recipe, schedule=replace(recipe.schedule, rate=2e-3))
    with pytest.raises(DocumentError, match="another recipe"):
        tiny_trainer(other, tmp_path, device="cpu").run()


def test_checkpoints_are_whole_or_absent_and_only_the_newest_are_kept(start: Path, tmp_path: Path) -> None:
    recipe = recipe_of(start, steps=6)
    left = tmp_path / "checkpoints" / ".step-00000002.new"
    left.mkdir(parents=True)
    (left / "state.json").write_text("{")  # left by a run that was killed while it wrote
    tiny_trainer(recipe, tmp_path, device="cpu").run()
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000004", "step-00000006"]
    (tmp_path / "checkpoints/step-00000006/optimizer.safetensors").write_bytes(b"cut")
    with pytest.raises(DocumentError, match=r"optimizer\.safetensors"):
        tiny_trainer(recipe, tmp_path, device="cpu").run()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"progress": {"step": "6"}}, r'state\.json: cannot be read: progress\.step is "6", not a whole number'),
        ({"progress": {"steps": 6}}, r"state\.json: cannot be read: progress has no key 'steps'"),
        ({"progress": None}, r"state\.json: cannot be read: progress is null, not a table"),
        ({"scaler": None}, r"state\.json: cannot be read"),
    ],
)
def test_a_damaged_state_ends_training_with_one_line(start: Path, tmp_path: Path, damage: dict[str, Any], message: str) -> None:
    recipe = recipe_of(start, steps=2)
    tiny_trainer(recipe, tmp_path, device="cpu").run()
    state = tmp_path / "checkpoints/step-00000002/state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | damage))
    with pytest.raises(DocumentError, match=message) as error:
        tiny_trainer(recipe, tmp_path, device="cpu").run()
    assert "\n" not in str(error.value)


def test_a_loss_that_is_not_a_number_ends_training(start: Path, tmp_path: Path) -> None:
    trainer = tiny_trainer(recipe_of(start, steps=2), tmp_path, device="cpu")
    with torch.no_grad():
        trainer.parameters[0].fill_(float("nan"))
    with pytest.raises(VadcliError, match="step 1: a loss is not a finite number"):
        trainer.run()


@pytest.mark.slow
def test_two_processes_train_as_one_does(start: Path, tmp_path: Path) -> None:
    alone = recipe_of(start, steps=4, every=2)
    alone = replace(alone, schedule=replace(alone.schedule, batch=2, accumulation=2), running=replace(alone.running, workers=0))
    shared = replace(alone, schedule=replace(alone.schedule, batch=1))
    tiny_trainer(alone, tmp_path / "alone", device="cpu").run()
    children = train_together(shared, out=tmp_path / "shared")
    done = [child.wait() for child in children]
    assert [one.returncode for one in done] == [0, 0], done
    one, two = ([[float(value) for value in row] for row in losses_of(tmp_path / name)[1:]] for name in ("alone", "shared"))
    np.testing.assert_allclose(two, one, rtol=2e-3, atol=1e-4)
    assert checkpoint.load(tmp_path / "shared" / "model").config.trained


def test_reading_in_other_processes_changes_nothing(start: Path, tmp_path: Path) -> None:
    recipe = recipe_of(start, steps=2)
    tiny_trainer(recipe, tmp_path / "own", device="cpu").run()
    tiny_trainer(replace(recipe, running=replace(recipe.running, workers=1)), tmp_path / "other", device="cpu").run()
    assert losses_of(tmp_path / "own") == losses_of(tmp_path / "other")


def test_accumulated_batches_are_the_whole_batch(start: Path, tmp_path: Path) -> None:
    found = []
    for batch, accumulation in ((3, 1), (1, 3)):
        recipe = recipe_of(start, steps=2, accumulation=accumulation)
        schedule = replace(recipe.schedule, batch=batch)
        out = tmp_path / str(batch)
        tiny_trainer(replace(recipe, schedule=schedule), out, device="cpu").run()
        found.append([[float(value) for value in row] for row in losses_of(out)[1:]])
    np.testing.assert_allclose(found[0], found[1], rtol=2e-3, atol=1e-4)


def test_the_7b_recipe_trains_a_small_model_on_every_data_set(start: Path, tmp_path: Path) -> None:
    recipe = read_recipes(RECIPES / "lavida-7b.toml", Recipe)[0]
    data = tuple(
        replace(item, root=str(miniature(tmp_path / name)))
        for item in recipe.data
        for name, miniature in miniatures.MINIATURES.items()
        if name == item.name
    )
    assert len(data) == len(recipe.data) == 8
    recipe = replace(
        recipe,
        data=data,
        model=replace(recipe.model, folder=str(start)),
        schedule=replace(recipe.schedule, epochs=1, steps=5),
        validation=replace(recipe.validation, every=0),
        running=replace(recipe.running, workers=0),
    )
    trainer = Trainer(recipe, tmp_path / "out", device="cpu")
    # With 20 samples per epoch, the paper's smallest weight, 1/20, gives one sample. A smaller weight would be an error.
    assert dict(
        zip((one.data.name for one in trainer.work.samples.mixture.samplers), trainer.work.samples.mixture.quotas, strict=True)
    ) == {name: round(20 * weight) for name, weight in PAPER_MIX.items()}
    folder = trainer.run()
    assert len(losses_of(tmp_path / "out")) == 1 + 5
    assert checkpoint.load(folder).config.trained
    counts = {len(trainer.work.samples.mixture.sample(draw).frames) for draw in trainer.work.samples.mixture.plan(0)}
    assert counts == {1, 8}, "images and clips"


def test_a_preset_is_a_start(tmp_path: Path) -> None:
    recipe, *_ = read_tiny_recipes(RECIPES / "lavida-tiny.toml")
    recipe = replace(
        recipe,
        data=(replace(recipe.data[0], clips=12, painted=False),),
        world=replace(recipe.world, size_px=64),
        schedule=replace(recipe.schedule, epochs=1, steps=1, batch=1, accumulation=1),
        validation=replace(recipe.validation, every=0),
    )
    folder = tiny_trainer(recipe, tmp_path, device="cpu").run()
    assert checkpoint.load(folder).config.name == "lavida-tiny"
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 10e6, "what the project ships is small"


def test_a_start_that_is_not_there_is_named(tmp_path: Path) -> None:
    recipe = replace(recipe_of(tmp_path), model=replace(recipe_of(tmp_path).model, folder="", preset="lavida-huge"))
    with pytest.raises(UsageError, match="lavida-huge"):
        tiny_trainer(recipe, tmp_path, device="cpu")
