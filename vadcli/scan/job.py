"""What all videos of one scan share, and whether a video needs scanning at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from vadcli.detectors.base import Detector
from vadcli.errors import DocumentError
from vadcli.outputs.atomic import Scratch
from vadcli.outputs.event_json import EventsDocument, load
from vadcli.outputs.layout import OutputLayout
from vadcli.outputs.scores import read_metadata
from vadcli.scan.attribution import Attribution
from vadcli.scan.fingerprint import Recipe, source_of
from vadcli.scan.plan import WorkUnit
from vadcli.scan.propagation import Propagation
from vadcli.types import CameraModel, ClipNeeds, MaskRows, Status, Thresholds


@dataclass(frozen=True)
class ScanJob:
    """One scan's settings, as far as they concern a single video.

    Attributes:
        layout, scratch: where results and temporaries go.
        root: what relative paths are relative to.
        detector: what scores.
        needs: what it is fed, after the options that change the sampling.
        recipe: the shared part of the fingerprints.
        thresholds: how scores become events.
        categories: the user's words.
        mask_video, mask_rle: which masks to write.
        masked_rows: of which rows.
        force: scan what is done as well.
        retry_failed: try failed and partial videos again.
        checkpoint_s: seconds between two fsyncs of a checkpoint.
        attribution: fills in the categories of events, where the detector can.
        propagation: makes the masks of every row, where they are wanted.
    """

    layout: OutputLayout
    scratch: Scratch
    root: Path
    detector: Detector
    needs: ClipNeeds
    recipe: Recipe
    thresholds: Thresholds
    categories: tuple[str, ...] = ()
    mask_video: bool = False
    mask_rle: bool = False
    masked_rows: MaskRows = MaskRows.SAMPLED
    force: bool = False
    retry_failed: bool = False
    checkpoint_s: float = 30.0
    attribution: Attribution | None = None
    propagation: Propagation | None = None

    @property
    def keeps_masks(self) -> bool:
        """True where masks are written."""
        return self.mask_video or self.mask_rle


class Need(StrEnum):
    """What a video needs."""

    SCAN = "scan"
    NOTHING = "done"
    RECUT = "recut"
    FAILED_BEFORE = "failed"
    TAKEN = "taken"


@dataclass(frozen=True)
class Verdict:
    """What a video needs, and why.

    Attributes:
        need: what is to be done.
        fingerprint: of the scan it would get; empty where it can't be known before the camera is fitted.
        source: size, time and content of the input.
        status, stage, reason: how an earlier scan of the same input ended.
        events: how many events that scan found.
    """

    need: Need
    fingerprint: str
    source: Mapping[str, Any]
    status: Status = Status.DONE
    stage: str = ""
    reason: str = ""
    events: int = 0


def judge(job: ScanJob, unit: WorkUnit, model: CameraModel | None) -> Verdict:
    """What a video needs, by what is stored for it.

    Raises:
        FileChanged, ProbeError: the input can't be read.
    """
    metadata = read_metadata(job.layout.scores(unit.video))
    document = _stored_events(job.layout.events(unit.video))
    state = document.scan if document else None
    known = metadata.source if metadata else state.source if state else None
    source = source_of(unit, known)
    source["root"] = str(job.root)
    fingerprint = job.recipe.fingerprint(str(source["content"]), model)
    if known and not job.force and _is_anothers(known, source, unit):
        reason = f"OUT holds the results of {Path(str(known['root'])) / unit.video}"
        hint = "give another --out, or --force to replace them"
        return Verdict(Need.TAKEN, fingerprint, source, Status.FAILED, "write", f"{reason} ({hint})")
    if job.force or document is None or state is None or state.fingerprint != fingerprint:
        return Verdict(Need.SCAN, fingerprint, source)
    if state.status is not Status.DONE and job.retry_failed:
        return Verdict(Need.SCAN, fingerprint, source)
    if document.failure:
        return Verdict(Need.FAILED_BEFORE, fingerprint, source, Status.FAILED, document.failure.stage, document.failure.error)
    if metadata is None or metadata.fingerprint != fingerprint or not _has_masks(job, unit.video, metadata.masks):
        return Verdict(Need.SCAN, fingerprint, source)
    need = Need.NOTHING if document.thresholds == job.thresholds else Need.RECUT
    stage, reason = str(metadata.extra.get("stage", "")), str(metadata.extra.get("reason", ""))
    return Verdict(need, fingerprint, source, state.status, stage, reason, len(document.events))


def _stored_events(path: Path) -> EventsDocument | None:
    """The document of an earlier scan, not held against the schema: that would cost more than the rest of a night's look."""
    try:
        return EventsDocument.from_json(load(path))
    except (DocumentError, AttributeError, KeyError, TypeError, ValueError):
        return None


def _is_anothers(stored: Mapping[str, Any], source: Mapping[str, Any], unit: WorkUnit) -> bool:
    """Results of a different file that is still there under another root must not be written over unasked."""
    root = stored.get("root")
    if root in (None, source["root"]) or stored.get("content") == source["content"]:
        return False
    return (Path(str(root)) / unit.video).exists()


def _has_masks(job: ScanJob, video: str, rows: MaskRows) -> bool:
    """Whether the masks that are wanted are there, and of the rows that are wanted."""
    wanted = [job.layout.mask_video(video)] * job.mask_video + [job.layout.mask_rle(video)] * job.mask_rle
    return all(path.exists() for path in wanted) and (rows is job.masked_rows or not wanted)
