"""Figures kept in the scan's output: what was measured before of the same things under the same protocol stays."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from vadcli.evaluate.collect import TestSet
from vadcli.evaluate.measure import GROUPS, NEEDS_MASKS
from vadcli.evaluate.report import Report
from vadcli.outputs.atomic import Scratch
from vadcli.outputs.layout import OutputLayout

SAME = ("format_version", "generator", "dataset", "root", "inputs")
"""What must agree for two documents to be of the same figures, besides the protocol without its groups."""


def document_of(report: Report, root: Path) -> dict[str, Any]:
    """A report with what it was measured from: the truth's path and a digest of what was read."""
    return {**report.to_json(), "root": str(root), "inputs": inputs_of(report.test)}


def keep(document: dict[str, Any], layout: OutputLayout) -> Path:
    """Write a document of `document_of` to OUT/eval/<dataset>.json, with the groups that an earlier one has besides.

    Raises:
        OutputError: it can't be written.
    """
    final = layout.evaluation(document["dataset"])
    with Scratch(layout.scratch) as scratch, scratch.replace(final) as path:
        path.write_text(json.dumps(merged(_earlier(final), document), indent=2) + "\n", encoding="utf-8")
    return final


def merged(earlier: dict[str, Any] | None, document: dict[str, Any]) -> dict[str, Any]:
    """The document with the groups that only the earlier one has; as it is where the two are not of the same."""
    if earlier is None or not _same(earlier, document):
        return document
    lost = [group for group in earlier["metrics"] if group not in document["metrics"]]
    if not lost:
        return document
    figures = {**earlier["metrics"], **document["metrics"]}
    asked = (earlier["protocol"]["groups"], document["protocol"]["groups"])
    groups = [group for group in GROUPS if group in asked[0] or group in asked[1]] if all(asked) else []
    whole = {**document, "metrics": {group: figures[group] for group in GROUPS if group in figures}}
    whole["protocol"] = {**document["protocol"], "groups": groups}
    if not set(lost).isdisjoint(NEEDS_MASKS) and set(document["metrics"]).isdisjoint(NEEDS_MASKS):
        whole["two_level_masks"] = earlier["two_level_masks"]
        whole["left_out"] = {**document["left_out"], "unmasked": earlier["left_out"]["unmasked"]}
    return whole


def inputs_of(test: TestSet) -> str:
    """Hexadecimal digest of what figures are made from: scores, labels and events by content, stored masks by size and time.

    The pictures of a pixel truth are not in it.
    """
    digest, layout = hashlib.sha256(), OutputLayout(test.out)
    digest.update(json.dumps([test.videos, list(test.categories)]).encode())
    frames = test.frames
    for array in (frames.scores, frames.labels, frames.offsets, frames.sampled, *test.categories.values(), *test.events.true):
        if array is not None:
            digest.update(array.tobytes())
    for video in test.videos:
        digest.update(_content(layout.events(video)))
        for path in (layout.mask_video(video), layout.mask_rle(video)):
            state = path.stat() if path.exists() else None
            digest.update(f"{state.st_size} {state.st_mtime_ns}".encode() if state else b"-")
    return digest.hexdigest()


def _content(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return b"-"


def _same(earlier: dict[str, Any], document: dict[str, Any]) -> bool:
    protocols = [{**each["protocol"], "groups": None} for each in (earlier, document)]
    return protocols[0] == protocols[1] and all(earlier[key] == document[key] for key in SAME)


def _earlier(path: Path) -> dict[str, Any] | None:
    """The stored document; None where there is none, or none of this kind."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    needed = {*SAME, "protocol", "metrics", "left_out", "two_level_masks"}
    return found if isinstance(found, dict) and needed <= set(found) else None
