"""Measure how good the small checkpoint is on new clips, and how much `<SEG>` contributes.

python benchmarks/tiny.py --model weights/lavida-tiny --clips 1000 --write benchmarks/tiny.md

`--exact` adds a second model: the paper's own method, made by recipes/lavida-tiny-exact.toml. Without this option, the section
about that model in the file stays as it is.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path

import torch
from _exam import GROUPS, Group, Marks, examine, title

from vadcli.detectors.lavida import checkpoint
from vadcli.metrics import Metric
from vadcli.train.step import ExposureStep, FeatureMemory, Seg

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout: tools/ is not part of the wheel
from tools.tiny_world import SyntheticWorld, WorldOptions

SEED = 20_263
Asked = tuple[Group, Seg]
EXCHANGED = (
    "a motion that another object like it has, 1 name",
    "a motion that another object like it has, 4 names",
    "seen pairs, 8 names",
)


ABOUT = (
    "This page shows how well `lavida-tiny` finds given categories. The clips come from the test split of the synthetic",
    "world. The script draws the clips with a seed that no training used. For half of the objects, no training clip showed",
    "or named the object's pair of colour and shape.",
    "",
    "Each clip is scored with two lists of categories:",
    "- The first list has one true category, which the clip shows.",
    "- The second list has only false categories.",
    "",
    'If the name of a row contains "8 names", each of the two lists of a clip has 8 categories. 30 % of the false categories',
    "differ from a true category in only one word.",
    "",
    'In the rows "motion of one of two similar objects", two objects have the same colour and shape. The true category is',
    "the motion of one object. The false categories are motions that neither object makes.",
    "",
    "- **frame AUC** is computed over all frames of all clips. Each clip is scored with two lists of categories, so each",
    "  frame counts twice.",
    "- **mask IoU, pixel AP and pixel AUC** are computed over all frames that show the true category. Frames with low scores",
    "  are included.",
    "- **lists** is the number of lists of categories, two per clip.",
    "- **target** is the lowest frame AUC that the model should reach.",
    "",
    "The values in square brackets are 95 % confidence intervals, from a bootstrap over the clips.",
)


EXACT_TITLE = "## The paper's method as it is"
EXACT = (
    "The model `lavida-tiny-exact` has only two of the five",
    "[additions of lavida-tiny](../docs/training.md#what-the-small-model-adds): the convolutional trunk, and visual tokens",
    "from SAM2's features.",
    "",
    "The training (`recipes/lavida-tiny-exact.toml`) started from the result of the ninth stage of lavida-tiny. It took",
    "1,500 steps with the paper's method. The language model and the whole projector were trained. The loss had no separate",
    "terms for the categories of a list.",
)


SEG_ABOUT = (
    "The language model passes its result to the mask decoder as the embedding of one token, `<SEG>`. The next table shows",
    "how much this embedding contributes. Each column has the frame AUC for one input of the mask decoder:",
    "- *own*: the mask decoder gets the `<SEG>` embedding of the same clip and the same list of categories.",
    "- *another's*: the mask decoder gets the `<SEG>` embedding of another clip with another list of categories.",
    "- *none*: the mask decoder gets no `<SEG>` embedding.",
)
SEG_AGAIN = (
    "The next table shows the frame AUC of `lavida-tiny-exact` if the mask decoder gets the `<SEG>` embedding of the same\n"
    "clip (*own*), of another clip (*another's*), or no embedding (*none*):"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("weights/lavida-tiny"))
    parser.add_argument("--exact", type=Path, help="a second model to report, which has only the parts of the paper")
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=SEED, help="seed of the clips; training used 0 to 4")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", default="", help="measure only groups whose names contain this text")
    parser.add_argument("--write", type=Path, help="a Markdown file for the tables")
    chosen = parser.parse_args()
    began = time.perf_counter()
    groups = [group for group in GROUPS if chosen.only in group.name]
    asked: list[Asked] = [(group, "own") for group in groups]
    asked += [(group, seg) for group in groups if group.name in EXCHANGED for seg in ("next", "none")]
    with ProcessPoolExecutor(chosen.processes, mp_context=get_context("spawn")) as pool:
        exam = partial(ask, seed=chosen.seed, clips=chosen.clips, batch=chosen.batch)
        found = dict(zip(asked, pool.map(partial(exam, chosen.model), asked), strict=True))
        exact = {}
        if chosen.exact is not None:
            exact = dict(zip(asked, pool.map(partial(exam, chosen.exact), asked), strict=True))
    text = report(chosen, groups, found, exact, time.perf_counter() - began)
    if chosen.write and chosen.write.exists() and not exact:
        text += "".join(chosen.write.read_text(encoding="utf-8").partition(f"\n{EXACT_TITLE}\n")[1:])
    if chosen.write:
        chosen.write.write_text(text, encoding="utf-8")
    print(text)


def ask(model: Path, asked: Asked, *, seed: int, clips: int, batch: int) -> Marks:
    """Return the marks of one group.

    This runs in a worker process, which keeps the model and its features.
    """
    torch.set_num_threads(1)
    step, world = _loaded(model, seed, clips)
    group, seg = asked
    return examine(step, world, group, clips=clips, batch=batch, seg=seg)


@lru_cache(maxsize=1)
def _loaded(model: Path, seed: int, clips: int) -> tuple[ExposureStep, SyntheticWorld]:
    loaded = checkpoint.load(model).requires_grad_(False)
    world = SyntheticWorld(WorldOptions(), seed=seed, split="test", length=clips)
    return ExposureStep(loaded, masks=1, memory=FeatureMemory(loaded)), world


def line(group: Group, marks: Marks) -> str:
    wanted = "" if group.wanted is None else f"{group.wanted:.2f}"
    figures = (marks.frames, marks.iou, marks.ap, marks.auc)
    return f"| {title(group.name)} | {' | '.join(map(figure_text, figures))} | {marks.lists} | {wanted} |"


def figure_text(metric: Metric) -> str:
    """Return a figure with its interval, as text."""
    if metric.value is None:
        return "-"
    if metric.ci_low is None or metric.ci_high is None:
        return f"{metric.value:.3f}"
    return f"{metric.value:.3f} [{metric.ci_low:.3f}, {metric.ci_high:.3f}]"


def exchanged(group: Group, found: Mapping[Asked, Marks]) -> str:
    return f"| {title(group.name)} | {' | '.join(figure_text(found[group, seg].frames) for seg in ('own', 'next', 'none'))} |"


def report(
    chosen: argparse.Namespace,
    groups: Sequence[Group],
    found: Mapping[Asked, Marks],
    exact: Mapping[Asked, Marks],
    seconds: float,
) -> str:
    """Return the whole page."""
    models = f"--model {chosen.model}" + (f" --exact {chosen.exact}" if chosen.exact is not None else "")
    command = f"`python benchmarks/tiny.py {models} --clips {chosen.clips} --seed {chosen.seed}`"
    lines = [
        "# The small checkpoint on new clips",
        "",
        f"{command} measured the figures of `lavida-tiny` on this page in {seconds:.0f} s.",
        "",
        *ABOUT,
        *_tables(groups, found, SEG_ABOUT),
    ]
    if exact:
        lines += [
            "",
            EXACT_TITLE,
            "",
            f"{command} measured the figures of `lavida-tiny-exact`.",
            "",
            *EXACT,
            *_tables(groups, exact, (SEG_AGAIN,)),
        ]
    return "\n".join([*lines, ""])


def _tables(groups: Sequence[Group], found: Mapping[Asked, Marks], about_seg: Sequence[str]) -> list[str]:
    return [
        "",
        "| question | frame AUC | mask IoU | pixel AP | pixel AUC | lists | target |",
        "|---|---|---|---|---|---|---|",
        *(line(group, found[group, "own"]) for group in groups),
        "",
        *about_seg,
        "",
        "| question | own | another's | none |",
        "|---|---|---|---|",
        *(exchanged(group, found) for group in groups if group.name in EXCHANGED),
    ]


if __name__ == "__main__":
    main()
