"""Repeat the tables of the LAVIDA paper in miniature, with short trainings of the small model.

Each training changes one setting. All trainings start from the same model. Each training is repeated with three seeds.

    python benchmarks/miniature.py --start training/7-exposure/model --table compression --budget 30
    python benchmarks/miniature.py --write benchmarks/miniature.md

A cell is one training and one exam. Finished cells are kept in benchmarks/miniature.json, and an interrupted cell continues. So
several runs can fill a table, one seed after another; missing cells are marked. The tables about the language model are printed
only if `<SEG>` matters (see MATTERS).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from _exam import GROUPS, Group, examine, title

from vadcli.detectors.lavida import checkpoint
from vadcli.train.step import ExposureStep, FeatureMemory
from vadcli.train.trainer import starting_from

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout: tools/ is not part of the wheel
from tools.tiny_world import SyntheticWorld, WorldOptions
from tools.tiny_world.recipe import TinyRecipe, read_tiny_recipes
from tools.tiny_world.training import tiny_trainer

HERE = Path(__file__).resolve().parent
STORE = HERE / "miniature.json"
WORK = HERE / "work" / "miniature"
RECIPE = HERE.parent / "recipes" / "lavida-tiny.toml"
SEEDS = (0, 1, 2)
STEPS = 150
CLIPS = 150
EXAM_SEED = 777
MATTERS = 0.10
"""`<SEG>` matters if the `<SEG>` of another clip lowers the frame AUC on two similar objects by at least this."""
METHODS = ("reverse_attention", "mean", "densest", "least_dense", "random")
RATIOS = (1.0, 0.5, 0.2, 0.1, 0.05)
ASKED = (
    "seen pairs, 8 names",
    "pairs never shown, 8 names",
    "a motion that another object like it has, 1 name",
    "a motion that another object like it has, 4 names",
)


@dataclass(frozen=True)
class Cell:
    """One row of a table: its label, and the values of the recipe that it changes (`table.key` -> value)."""

    label: str
    changes: dict[str, Any]


TABLES: dict[str, tuple[Cell, ...]] = {
    "compression": tuple(
        Cell(f"{method}, ratio {ratio:g}", {"model.method": method, "model.compression": ratio})
        for ratio in RATIOS
        for method in METHODS
        if ratio < 1 or method == METHODS[0]
    ),
    "projector": tuple(Cell(kind, {"model.projector": kind}) for kind in ("mlp", "qformer", "two_way")),
    "categories": tuple(Cell(f"N = {count}", {"data.max_categories": count}) for count in (4, 8, 16, 24)),
    "queries": tuple(Cell(f"{count} queries", {"model.queries": count}) for count in (4, 8, 12, 16)),
    "probability": tuple(Cell(f"p = {share:g}", {"exposure.probability": share}) for share in (0.25, 0.5, 0.75)),
    "seg": (Cell("with <SEG>", {"exposure.without_seg": 0.0}), Cell("without <SEG>", {"exposure.without_seg": 1.0})),
}
OF_THE_LANGUAGE_MODEL = ("compression", "seg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=Path, help="the folder that every cell starts from")
    parser.add_argument("--table", choices=sorted(TABLES), action="append", help="table to fill; by default all tables")
    parser.add_argument("--budget", type=float, default=0.0, help="minutes after which no new cell is begun")
    parser.add_argument("--write", type=Path, help="a Markdown file for the tables")
    chosen = parser.parse_args()
    ends = time.monotonic() + 60 * chosen.budget
    for table, cell, seed in wanted(chosen.table or sorted(TABLES)):
        if chosen.start is None or time.monotonic() > ends:
            break
        keep(table, cell, seed, run(chosen.start, table, cell, seed))
    text = report(stored())
    if chosen.write:
        chosen.write.write_text(text, encoding="utf-8")
    print(text)


def wanted(tables: list[str]) -> Iterator[tuple[str, Cell, int]]:
    """Yield the cells that are not stored yet: first all cells of one seed, then those of the next seed."""
    done = stored()
    for seed in SEEDS:
        for table in tables:
            yield from (
                (table, cell, seed) for cell in TABLES[table] if str(seed) not in done.get(table, {}).get(cell.label, {})
            )


def run(start: Path, table: str, cell: Cell, seed: int) -> dict[str, float]:
    """Train and examine the model of one cell, and return its figures."""
    out = WORK / table / cell.label.replace(" ", "-").replace(",", "") / str(seed)
    model = out / "model"
    if not model.is_dir():
        tiny_trainer(recipe_of(start, cell, seed), out, device="cpu").run()
    loaded = checkpoint.load(model).requires_grad_(False)
    step = ExposureStep(loaded, masks=1, memory=FeatureMemory(loaded))
    world = SyntheticWorld(WorldOptions(), seed=EXAM_SEED, split="test", length=CLIPS)
    seg = "none" if cell.changes.get("exposure.without_seg") == 1.0 else "own"
    found: dict[str, float] = {}
    for group in (group for group in GROUPS if group.name in ASKED):
        found[group.name] = auc(step, world, group, seg)
    twins = next(group for group in GROUPS if group.name == ASKED[2])
    found["another's <SEG>"] = auc(step, world, twins, "next")
    found |= costs(step, world)
    shutil.rmtree(out)
    return found


def auc(step: ExposureStep, world: SyntheticWorld, group: Group, seg: Any) -> float:
    """Return the frame AUC of one group."""
    value = examine(step, world, group, clips=CLIPS, seg=seg).frames.value
    assert value is not None, group.name
    return value


def costs(step: ExposureStep, world: SyntheticWorld) -> dict[str, float]:
    """Return the number of compressed visual tokens per clip, and the seconds per clip to compute them."""
    clips = torch.stack([torch.from_numpy(world.frames(index)) for index in range(8)])
    with torch.no_grad():
        step.model.encode(clips[:2])
        began = time.perf_counter()
        seen = step.model.encode(clips)
        seconds = (time.perf_counter() - began) / len(clips)
    return {"tokens": float(len(seen.visual[0].tokens)), "seconds": seconds}


def recipe_of(start: Path, cell: Cell, seed: int) -> TinyRecipe:
    """Return a short version of the recipe's first exposure stage, with the changes of a cell."""
    recipe = starting_from(next(stage for stage in read_tiny_recipes(RECIPE) if stage.task == "exposure"), start)
    parts: dict[str, dict[str, Any]] = {}
    for key, value in cell.changes.items():
        table, _, name = key.partition(".")
        parts.setdefault(table, {})[name] = value
    data = parts.pop("data", {})
    changed = {table: replace(getattr(recipe, table), **values) for table, values in parts.items()}
    return replace(
        recipe,
        seed=seed,
        data=tuple(replace(item, clips=2000, **data) for item in recipe.data),
        schedule=replace(recipe.schedule, epochs=1, steps=STEPS, warm_up_steps=20),
        validation=replace(recipe.validation, every=0),
        **changed,
    )


def stored() -> dict[str, Any]:
    """Return the stored cells: table -> label -> seed -> figures."""
    return json.loads(STORE.read_text(encoding="utf-8")) if STORE.is_file() else {}


def keep(table: str, cell: Cell, seed: int, found: dict[str, float]) -> None:
    """Add a cell to the store. The file is replaced as a whole, so an interruption cannot damage it."""
    document = stored()
    document.setdefault(table, {}).setdefault(cell.label, {})[str(seed)] = found
    temporary = STORE.with_suffix(".new")
    temporary.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(STORE)
    print(table, cell.label, seed, {name: round(value, 3) for name, value in found.items()}, flush=True)


def report(done: dict[str, Any]) -> str:
    """Return all tables as Markdown; missing cells are marked."""
    lines = ["# The paper's tables in miniature", "", *ABOUT, ""]
    for table, cells in TABLES.items():
        lines += [f"## {table}", ""]
        found = done.get(table, {})
        gap = seg_gap(found)
        if table in OF_THE_LANGUAGE_MODEL and gap is not None and gap < MATTERS:
            lines += [
                f"Left out: another clip's `<SEG>` lowers the frame AUC by only {gap:.3f}, so the table would mean nothing.",
                "",
            ]
            continue
        columns = (*ASKED, "another's <SEG>", "tokens", "seconds")
        lines += [f"| | {' | '.join(map(title, columns))} | seeds |", "|---" * (len(columns) + 2) + "|"]
        for cell in cells:
            seeds = found.get(cell.label, {})
            figures = [mean_text([seed[column] for seed in seeds.values()]) for column in columns]
            lines.append(f"| {cell.label} | {' | '.join(figures)} | {len(seeds) or 'missing'} |")
        lines.append("")
    return "\n".join(lines)


def seg_gap(found: dict[str, Any]) -> float | None:
    """Return the largest loss of frame AUC by another clip's `<SEG>`, on two similar objects."""
    gaps = [mean(seed[ASKED[2]] - seed["another's <SEG>"] for seed in seeds.values()) for seeds in found.values() if seeds]
    return max(gaps) if gaps else None


def mean_text(values: list[float]) -> str:
    """Return the mean of the seeds with their lowest and highest value, as text."""
    if not values:
        return "-"
    digits = 0 if max(values) > 5 else 3
    text = f"{mean(values):.{digits}f}"
    return text if len(values) == 1 or digits == 0 else f"{text} [{min(values):.3f}, {max(values):.3f}]"


ABOUT = (
    "`python benchmarks/miniature.py --start training/7-exposure/model` measured the figures on this page.",
    "",
    "These tables repeat the tables of the LAVIDA paper with a small model. [The page of the",
    "benchmarks](README.md#the-papers-tables-in-miniature) has the conclusions.",
    "",
    "Each table changes one setting:",
    "- compression: the method and the ratio of the token compression;",
    "- projector: the kind of projector;",
    "- categories: the number N of categories per sample;",
    "- queries: the number of queries of the projector;",
    "- probability: the probability p that a sample shows an anomaly;",
    "- seg: training with and without `<SEG>`.",
    "",
    "Each row is one setting, with three seeds. Every row starts from the same model: the result of the first exposure",
    "stage of recipes/lavida-tiny.toml. This model compresses visual tokens by reverse attention, to a share of 0.2.",
    "",
    f"For each row, the starting model is trained for {STEPS} more steps of the first exposure stage, on 2,000 clips, with",
    f"the setting that the row names. Then the trained model scores {CLIPS} new clips.",
    "",
    "The training of a row is short, so the settings of the starting model have an advantage over other settings. The",
    'tables "projector" and "queries" do not have this bias, because the projector of every row begins from random weights.',
    "",
    "The columns of each table:",
    "- The first four columns have the frame AUC for four kinds of categories. A cell has the mean over the seeds, and in",
    "  brackets the lowest and highest value of a seed.",
    '- *another\'s <SEG>* is also a frame AUC, for "motion of one of two similar objects, 1 name". But here, the model',
    "  scores each clip with the `<SEG>` of another clip.",
    "- *tokens* is the number of tokens per clip after compression.",
    "- *seconds* is the time per clip until the tokens of the clip are compressed. Other programs ran on the machine at the",
    "  same time, so the seconds show only the order of magnitude.",
)


if __name__ == "__main__":
    main()
