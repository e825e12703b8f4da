"""Tests of the tasks `pictures` and `questions`: losses, samples, and a training that learns."""

from __future__ import annotations

import colorsys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from tests.train.processes import train_together
from tests.train.small import scratch_folder
from tools.tiny_world import SyntheticWorld, WorldOptions, training
from tools.tiny_world.pictures import WORDS, PictureSample, PictureSamples, align_loss, cells_loss, recolouring
from tools.tiny_world.questions import VOCABULARIES, QuestionSamples
from tools.tiny_world.recipe import REMOVABLE, BaseChoice, TinyRecipe
from tools.tiny_world.training import tiny_trainer
from tools.tiny_world.words import COLOURS, SHAPES
from vadcli import weights
from vadcli.detectors.lavida import checkpoint
from vadcli.errors import UsageError
from vadcli.train import ExposureOptions, parse_stages
from vadcli.train.samples import PlannedSamples, ValidationSet
from vadcli.train.step import FeatureMemory

WORLD = SyntheticWorld(WorldOptions(size_px=64), seed=1, split="train", length=12)


@pytest.fixture(autouse=True)
def fresh() -> None:
    """Reset accelerate, which otherwise keeps the first precision of a process."""
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scratch_folder(tmp_path_factory.mktemp("start") / "small")


def stages(start: Path, *, steps: int = 4, **more: Any) -> tuple[TinyRecipe, ...]:
    common = {
        "name": "small",
        "model": {"folder": str(start), "masks": 1, "compression": 0.2, "train": ["projector"]},
        "data": [{"name": "synthetic", "clips": 12}],
        "world": {"size_px": 64},
        "schedule": {"epochs": 1, "steps": steps, "batch": 2, "accumulation": 1, "rate": 1e-3, "warm_up_steps": 2},
        "running": {"checkpoint_every": 2},
    }
    pictures = {"task": "pictures", "model": {"train": ["text", "image_encoder", "mask_decoder", "projector"]}}
    questions = {"task": "questions", "model": {"train": ["sight", "pooling", "tokens", "language_model"]}}
    exposure = {"model": {"train": ["pooling", "language_model", "projector"]}, "loss": {"names": 0.5}}
    exposure["running"] = {"remember": True}
    return parse_stages({**common, "stage": [pictures, questions, exposure], **more}, TinyRecipe)


# Losses


def test_a_name_is_spread_over_the_cells_that_it_covers() -> None:
    # Two cells and "nowhere" are equally probable: each loss is ln 3. Names that are not asked or hardly visible are left out.
    where = torch.zeros(1, 4, 3)
    wanted = torch.tensor([[[0.5, 0.5], [0.0, 0.0], [0.1, 0.0], [0.9, 0.9]]])
    counts = torch.tensor([[True, True, True, False]])
    assert float(align_loss(where, wanted, counts)) == pytest.approx(np.log(3))
    where[0, 0, :2] = 50.0  # the first name is in both cells: the loss is ln 2
    where[0, 1, 2] = 50.0  # the right answer, "nowhere"
    assert float(align_loss(where, wanted, counts)) == pytest.approx(np.log(2) / 2)


def test_a_cell_that_one_object_fills_tells_its_colour_and_its_shape() -> None:
    where, wanted = torch.zeros(1, len(WORDS), 2), torch.zeros(1, len(WORDS), 2)
    wanted[0, 3, 0] = wanted[0, 10, 0] = 0.8  # the first cell is filled; the second cell is empty
    assert float(cells_loss(where, wanted)) == pytest.approx(2 * np.log(8))
    wanted[0, 4, 0] = 0.5  # the cell has two colours, so only the shape counts
    assert float(cells_loss(where, wanted)) == pytest.approx(np.log(8))
    assert float(cells_loss(where, torch.zeros_like(wanted))) == 0


# Samples


def test_samples_follow_from_seed_and_number() -> None:
    chosen = BaseChoice(patterns=("pair", "pair deed"), lists=2, longest=4)
    for kind in (PictureSamples, QuestionSamples):
        first, again, other = (kind(WORLD, seed=seed, total=20, chosen=chosen) for seed in (0, 0, 1))
        assert len(first) == 20
        assert [first[7].lists, first[3].lists] == [again[7].lists, again[3].lists]
        assert any(first[number].lists != other[number].lists for number in range(6))


def changed(**shares: float) -> list[PictureSample]:
    samples = PictureSamples(WORLD, seed=0, total=60, chosen=BaseChoice(lists=1, longest=4, **shares))
    return [samples[number] for number in range(60)]


def test_stills_without_their_colours_ask_for_shapes_alone() -> None:
    found = changed(grey=0.3, colours_first=1 / 3)
    assert not any(sample.shapes_only for sample in found[:20]), "colours first"
    grey = [sample for sample in found if sample.shapes_only]
    assert 0.1 < len(grey) / 40 < 0.5
    for sample in grey:
        assert (sample.frame == sample.frame[..., :1]).all()
        assert not sample.lists
        assert not any(sample.words[: len(COLOURS)])
    assert any(any(sample.words[: len(COLOURS)]) for sample in found)


def test_recoloured_stills_have_other_colours_and_the_same_brightness() -> None:
    plain, turned = changed(), changed(recoloured=1.0)
    assert sum(sample.shapes_only for sample in turned) > 50
    for one, other in zip(plain, turned, strict=True):
        if other.shapes_only:
            assert not np.array_equal(one.frame, other.frame)
            assert abs(float(one.frame.mean()) - float(other.frame.mean())) < 6


def test_no_recoloured_object_looks_like_one_of_a_held_out_pair() -> None:
    options = WORLD.options
    unspoken = frozenset((*options.held_out_pairs, *options.validation_pairs))
    rng, found = np.random.default_rng(3), 0
    for index in range(12):
        facts = WORLD.facts(index)
        for _ in range(20):
            matrix = recolouring(facts, unspoken, rng)
            if matrix is None:
                continue
            found += 1
            assert np.allclose(matrix.sum(axis=1), 1), "grey stays grey"
            for role in facts.roles:
                hue = colorsys.rgb_to_hsv(*np.clip(matrix @ np.array(COLOURS[role.pair[0]]), 0, 255) / 255)[0]
                hues = {name: colorsys.rgb_to_hsv(*np.array(rgb) / 255)[0] for name, rgb in COLOURS.items()}
                apart = {name: abs((hue - own + 0.5) % 1 - 0.5) for name, own in hues.items()}
                assert (min(apart, key=apart.__getitem__), role.pair[1]) not in unspoken
    assert found > 100
    everything = frozenset((colour, shape) for colour in COLOURS for shape in SHAPES)
    assert recolouring(WORLD.facts(0), everything, rng) is None


def test_questions_tell_each_object_in_words() -> None:
    samples = QuestionSamples(WORLD, seed=0, total=24, chosen=BaseChoice(lists=1, longest=4))
    assert {samples[number].key for number in range(12)} == {f"train/1/{index}" for index in range(12)}, "each clip once"
    sample = samples[0]
    index = int(sample.key.rsplit("/", 1)[1])
    for labels, role in zip(sample.labels, WORLD.facts(index).roles, strict=True):
        words = tuple(words[place] for words, place in zip(VOCABULARIES, labels, strict=True))
        assert words == (*role.pair, role.motion)


# Memory


def test_what_was_seen_is_remembered_to_the_byte(start: Path) -> None:
    model = checkpoint.load(start, allow_untrained=True)
    with pytest.raises(UsageError, match="image encoder"):
        FeatureMemory(model)
    model.requires_grad_(False)
    clips = [(f"{index}", WORLD.frames(index)) for index in range(3)]
    memory, small = FeatureMemory(model), FeatureMemory(model, most_bytes=1)
    first = memory.recall(clips)
    for found in (memory.recall(clips), FeatureMemory(model).recall(clips), small.recall(clips)):
        assert torch.equal(found.embedding, first.embedding)
        assert all(torch.equal(one, other) for one, other in zip(found.high, first.high, strict=True))
    assert torch.equal(memory.recall(clips[1:2]).embedding, first.embedding[8:16]), "whatever the batch"
    looked = model.encode_images(torch.from_numpy(clips[0][1])[None])
    torch.testing.assert_close(first.embedding[:8], looked.embedding, atol=2e-2, rtol=2e-3)
    assert small.bytes == 0 < memory.bytes


# Training


def test_stages_follow_one_another_and_are_not_begun_again(start: Path, tmp_path: Path) -> None:
    model = training.train(stages(start), tmp_path / "once", device="cpu")
    assert model == tmp_path / "once" / "model"
    loaded = checkpoint.load(model)
    assert loaded.config.trained
    told = loaded.config.sources["training"]
    assert [stage["recipe"]["task"] for stage in told] == ["pictures", "questions", "exposure"]
    assert str(tmp_path) not in (model / "config.json").read_text(), "no place of one machine is stored"
    for number, task in enumerate(("pictures", "questions", "exposure"), start=1):
        assert (tmp_path / "once" / f"{number}-{task}" / "model").is_dir()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "once").rglob("*.safetensors")}
    AcceleratorState._reset_state(True)
    assert training.train(stages(start), tmp_path / "once", device="cpu") == model
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "once").rglob("*.safetensors")} == before


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_stage_that_was_stopped_goes_on_to_the_same_bytes(
    start: Path, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = stages(start)[number]
    whole = tiny_trainer(recipe, tmp_path / "whole", device="cpu").run()
    trainer = tiny_trainer(recipe, tmp_path / "cut", device="cpu")
    train = trainer._train

    def stops(samples: Any, rate: float) -> dict[str, float]:
        if trainer.progress.step == 3:
            raise KeyboardInterrupt
        return train(samples, rate)

    monkeypatch.setattr(trainer, "_train", stops)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    again = tiny_trainer(recipe, tmp_path / "cut", device="cpu").run()
    for path in whole.rglob("*.safetensors"):
        assert (again / path.relative_to(whole)).read_bytes() == path.read_bytes(), path.name


def test_pictures_are_learned(start: Path, tmp_path: Path) -> None:
    recipe = stages(start, steps=40, schedule={"epochs": 1, "steps": 40, "batch": 4, "accumulation": 1, "rate": 3e-3})[0]
    tiny_trainer(recipe, tmp_path, device="cpu").run()
    rows = [line.split(",") for line in (tmp_path / "log.csv").read_text().splitlines()]
    align, focal = ([float(row[rows[0].index(name)]) for row in rows[1:]] for name in ("align", "focal"))
    assert np.mean(align[-8:]) < 0.8 * np.mean(align[:8])
    assert np.mean(focal[-8:]) < 0.5 * np.mean(focal[:8])


def test_a_task_refuses_a_model_that_lacks_its_parts(tmp_path: Path) -> None:
    for task, lacking in (("pictures", "null key"), ("questions", "sight and pooling")):
        (recipe,) = parse_stages(
            {"name": "x", "task": task, "model": {"preset": "lavida-tiny"}, "data": [{"name": "synthetic", "clips": 4}]},
            TinyRecipe,
        )
        AcceleratorState._reset_state(True)
        with pytest.raises(UsageError, match=lacking):
            tiny_trainer(recipe, tmp_path, device="cpu")


@pytest.mark.slow
def test_two_processes_paint_once_and_train_one_model_in_stages(start: Path, tmp_path: Path) -> None:
    chosen = {"folder": str(start), "masks": 1, "compression": 0.2, "train": ["projector"]}
    schedule = {"epochs": 1, "steps": 2, "batch": 1, "accumulation": 1, "rate": 1e-3, "warm_up_steps": 1}
    questions = {"train": ["sight", "pooling", "language_model"]}
    common = {"name": "small", "model": chosen, "world": {"size_px": 64}, "schedule": schedule}
    common["data"] = [{"name": "synthetic", "clips": 12, "painted": True}]
    found = parse_stages(
        {
            **common,
            "stage": [
                {"task": "pictures"},
                {"task": "questions", "model": questions, "running": {"precision": "bf16"}},
            ],
        },
        TinyRecipe,
    )
    children = train_together(*found, out=tmp_path / "out", XDG_CACHE_HOME=str(tmp_path / "cache"))
    done = [child.wait() for child in children]
    assert [one.returncode for one in done] == [0, 0], done
    (painted_folder,) = (tmp_path / "cache" / "vadcli" / "training").iterdir()
    assert painted_folder.name.startswith("synthetic-train-")
    model = tmp_path / "out" / "model"
    assert weights.verify(model).ok
    stages_told = checkpoint.load(model).config.sources["training"]
    assert [stage["recipe"]["task"] for stage in stages_told] == ["pictures", "questions"]
    for folder in ("1-pictures", "2-questions"):
        assert len((tmp_path / "out" / folder / "log.csv").read_text().splitlines()) == 1 + 2, "one log, written once"


def test_what_is_not_the_papers_can_be_taken_away(start: Path, tmp_path: Path) -> None:
    recipe = stages(start)[-1]
    bare = replace(recipe, model=replace(recipe.model, without=REMOVABLE))
    model = checkpoint.load(tiny_trainer(bare, tmp_path / "out").run())
    options = model.config.projector
    assert (options.null_key, options.presence, options.mask_prompt, model.config.additions.pooling) == (False,) * 4
    names = [name for name, _ in model.named_parameters()]
    assert not [name for name in names if "null" in name or "projector.presence" in name or "odds" in name or "pooling" in name]
    assert any(name.startswith("mllm.sight.") for name in names)  # the image encoder is frozen


def test_an_addition_that_there_is_none_is_named(start: Path) -> None:
    with pytest.raises(UsageError, match="without"):
        stages(start, model={"folder": str(start), "without": ["blocks"]})


def test_one_world_can_be_in_the_mixture_twice_with_lists_of_their_own(start: Path) -> None:
    looks = {"name": "synthetic", "clips": 12, "patterns": ["pair"], "called": "looks"}
    motions = {"name": "synthetic", "clips": 12, "patterns": ["pair deed"], "called": "motions"}
    recipe = replace(stages(start, data=[looks, motions])[-1], exposure=ExposureOptions(min_irrelevant=0))
    tiny = training.TinyTraining()
    samples = PlannedSamples(tiny.mixture(recipe, frames=8), epochs=1)
    lengths = [{len(name.split()) for name in samples[number].categories} for number in range(len(samples))]
    assert {2} in lengths
    assert any(min(one) > 2 for one in lengths)
    assert not any(2 in one and len(one) > 1 for one in lengths)
    held_recipe = replace(recipe, validation=replace(recipe.validation, clips=8))
    held = ValidationSet(tiny.sampler(held_recipe, tiny.validation_data(held_recipe), 8), count=8)
    assert {len(name.split()) > 2 for sample in held for name in sample.categories} == {False, True}
    with pytest.raises(UsageError, match="patterns"):
        stages(start, data=[{"name": "synthetic", "called": "looks"}])
