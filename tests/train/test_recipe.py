"""Tests of recipes: the files that come with the project, and the messages about wrong recipes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.train.small import PAPER_MIX, WHOLE
from tools.tiny_world.recipe import TinyRecipe, read_tiny_recipes
from vadcli.errors import UsageError
from vadcli.train import PAPER_PARTS, Recipe, ScheduleChoice, parse_recipe, parse_stages, read_recipes
from vadcli.train.state import OPTIONAL_PARTS
from vadcli.train.trainer import plan_of, plan_text

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def document(**more: Any) -> dict[str, Any]:
    return {"name": "mine", "model": {"preset": "lavida-tiny"}, "data": [{"name": "synthetic"}], **more}


def test_the_7b_recipe_is_the_papers() -> None:
    recipe = read_recipes(RECIPES / "lavida-7b.toml", Recipe)[0]
    assert {item.name: item.weight for item in recipe.data} == PAPER_MIX
    assert recipe.model.train == PAPER_PARTS
    schedule = recipe.schedule
    assert (schedule.total_steps, schedule.batch, schedule.accumulation) == (16_000, 2, 2)
    assert (schedule.rate, schedule.betas, schedule.decay, schedule.clip) == (1e-5, (0.9, 0.999), 0.01, 1.0)
    assert (recipe.lora.rank, recipe.lora.alpha, recipe.lora.dropout, recipe.lora.targets) == (
        8,
        16,
        0.05,
        ("q_proj", "v_proj"),
    )
    assert (recipe.loss.focal, recipe.loss.dice, recipe.loss.iou, recipe.loss.score, recipe.loss.lm) == (20, 2, 1, 2, 1)
    assert recipe.running.precision == "bf16"
    assert recipe.running.gradient_checkpointing


def test_the_tiny_recipe_trains_everything_from_nothing() -> None:
    stages = read_tiny_recipes(RECIPES / "lavida-tiny.toml")
    tasks = [recipe.task for recipe in stages]
    assert (tasks[0], tasks[-1], set(tasks)) == ("pictures", "exposure", {"pictures", "questions", "exposure"})
    assert {recipe.model.preset for recipe in stages} == {"lavida-tiny-scratch"}
    trained = {part for recipe in stages for part in recipe.model.train}
    assert trained == {*WHOLE, *OPTIONAL_PARTS} - {"vision_tower"}, "its shared sight stands in for the tower"
    assert {item.name for recipe in stages for item in recipe.data} == {"synthetic"}


def test_the_checkpoint_says_by_which_stages_of_the_recipe_it_was_trained() -> None:
    document = json.loads((RECIPES.parent / "weights" / "lavida-tiny" / "config.json").read_text())
    told = [stage["recipe"] for stage in document["sources"]["training"]]
    stages = [recipe.without_paths() for recipe in read_tiny_recipes(RECIPES / "lavida-tiny.toml")[-len(told) :]]
    assert len(told) >= 7
    for mine, theirs in zip(told, stages, strict=True):
        for key in ("task", "seed", "schedule", "loss", "base"):
            assert mine[key] == theirs[key], key


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"modle": {}}, "modle"),
        ({"model": {"preset": "lavida-tiny", "compresion": 0.5}}, r"model has no key 'compresion'.*compression"),
        ({"schedule": {"rate": "fast"}}, 'schedule.rate is "fast", not a number'),
        ({"schedule": {"batch": True}}, "schedule.batch is true, not a whole number"),
        ({"schedule": {"betas": [0.9]}}, "schedule.betas has 1 values, not 2"),
        ({"schedule": {"steps": 0}}, "steps is 0"),
        ({"running": {"precision": "fp8"}}, "fp8.*fp32, bf16, fp16"),
        ({"data": [{"name": "mevis"}]}, "mevis.*root"),
        ({"data": []}, "no .*data"),
        ({"data": [{"name": "synthetic", "split": "test"}]}, "do not train on a test set"),
        ({"validation": {"split": "test"}}, "do not choose weights on a test set"),
        ({"validation": {"split": "train", "every": 5}}, "validated on the split that it is trained on"),
        ({"model": {}}, "a preset or a folder"),
        ({"model": {"preset": "a", "folder": "b"}}, "a preset or a folder"),
        ({"world": {"size_px": 30}}, "size_px"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_what_can_not_be_used_is_named(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        parse_recipe(document(**changes), TinyRecipe)


@pytest.mark.parametrize("text", ["name = ", 'name = "x"\n'])
def test_an_error_names_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"mine\.toml"):
        read_recipes(path, Recipe)


def test_a_recipe_survives_its_json() -> None:
    for path in RECIPES.glob("*.toml"):
        for recipe in read_tiny_recipes(path):
            assert parse_recipe(recipe.to_json(), TinyRecipe) == recipe


def test_the_fingerprint_is_of_what_is_computed() -> None:
    recipe = parse_recipe(document(), TinyRecipe)
    assert changed(recipe, schedule=replace(recipe.schedule, rate=2e-5))
    assert changed(recipe, seed=1)
    assert not changed(recipe, running=replace(recipe.running, workers=3, keep=5))
    moved = [parse_recipe(document(data=[{"name": "mevis", "root": root}]), TinyRecipe).fingerprint() for root in ("/a", "/b")]
    assert moved[0] == moved[1] != recipe.fingerprint()


def changed(recipe: Recipe, **values: Any) -> bool:
    return replace(recipe, **values).fingerprint() != recipe.fingerprint()


def test_the_rate_rises_over_the_warm_up_and_falls_along_a_line() -> None:
    schedule = ScheduleChoice(epochs=2, steps=10, rate=1.0, warm_up_steps=4)
    rates = [schedule.rate_at(step) for step in range(schedule.total_steps)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[12] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(1 / 16)
    assert replace(schedule, warm_up_steps=0).rate_at(0) == 1.0


def test_reading_a_recipe_loads_no_torch() -> None:
    code = "import sys, vadcli.train; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_the_plan_of_the_7b_recipe_needs_no_memory_and_no_data() -> None:
    recipe = read_recipes(RECIPES / "lavida-7b.toml", Recipe)[0]
    recipe = replace(recipe, model=replace(recipe.model, folder="", preset="lavida-7b"))
    plan = plan_of(recipe)
    trained = {size.name: size.trained for size in plan.sizes if size.trained}
    assert set(trained) == set(PAPER_PARTS)
    # r · (in + out) of q (3584 -> 3584) and v (3584 -> 512), in 28 layers.
    assert trained["lora"] == 28 * 8 * ((3584 + 3584) + (3584 + 512))
    assert trained["tokens"] == trained["lm_head"] >= 152064 * 3584
    assert plan.weights_bytes > 16 * sum(trained.values())
    text = plan_text(plan)
    assert "16,000 steps of 4 samples" in text
    for name in PAPER_PARTS:
        assert name in text


def test_the_plan_of_a_model_made_from_nothing() -> None:
    model = {"preset": "lavida-tiny", "train": list(WHOLE), "masks": 1}
    plan = plan_of(parse_recipe(document(model=model), TinyRecipe))
    for size in plan.sizes:
        assert size.trained == (0 if size.name == "rest" else size.total)
    without = plan_of(replace(plan.recipe, running=replace(plan.recipe.running, gradient_checkpointing=True)))
    assert without.activations_bytes < plan.activations_bytes
    assert without.weights_bytes == plan.weights_bytes


def test_a_stage_is_the_recipe_with_its_own_values_over_it() -> None:
    common = document(schedule={"steps": 5, "batch": 3}, exposure={"probability": 0.25})
    first, second = parse_stages({**common, "stage": [{"task": "pictures"}, {"schedule": {"steps": 7}, "seed": 4}]}, TinyRecipe)
    assert (first.task, first.schedule.steps, first.schedule.batch, first.seed) == ("pictures", 5, 3, 0)
    assert (second.task, second.schedule.steps, second.schedule.batch, second.seed) == ("exposure", 7, 3, 4)
    assert first.exposure == second.exposure
    assert parse_stages(common, TinyRecipe) == (parse_recipe(common, TinyRecipe),)


@pytest.mark.parametrize(
    ("stage", "told"),
    [
        ([], "stage must be tables"),
        ({"task": "pictures"}, "stage must be tables"),
        ([{"task": "cooking"}], "cooking.*pictures"),
    ],
)
def test_stages_that_are_none_are_named(stage: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        parse_stages(document(stage=stage), TinyRecipe)
