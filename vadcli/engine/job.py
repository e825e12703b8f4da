"""Decides whether a video needs scanning, and where an interrupted scan continues.

Two scans of a video give equal results if the video's content and every option that changes a score are equal. The fingerprint
is a hash of the content and of these options. The size of a video and three samples of 64 KiB identify its content. If the size
and the modification time have not changed, the stored hash of the content is used, so that an unchanged file is not opened.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from vadcli.detectors import Detector, Embedder, caveats_of
from vadcli.engine.cameras import footage_caveats
from vadcli.engine.event_rules import EventRules
from vadcli.engine.plan import WorkUnit
from vadcli.engine.second_pass import Attribution, Propagation, Refinement
from vadcli.errors import FileChanged, NotFinished, VideoError
from vadcli.options.categories import Category
from vadcli.store import OutputLayout
from vadcli.store.atomic import Claim, Scratch
from vadcli.store.checkpoint import Checkpoint, read_checkpoint
from vadcli.store.events import EventsDocument, read_unchecked
from vadcli.store.scores import ScoresMetadata, has_fingerprint, read_metadata
from vadcli.types import (
    DEFAULT_RULES,
    NO_REGIONS,
    CameraModel,
    CameraRegions,
    ClipNeeds,
    MaskRows,
    Regions,
    Status,
    TimeRules,
)
from vadcli.types.text import is_remote, may_exist, shown
from vadcli.video.objects import object_of
from vadcli.video.sampling import SamplingPlan

SAMPLE_BYTES = 64 * 1024
"""Size of each sample of a video's content."""


@dataclass(frozen=True)
class ScanIdentity:
    """The part of a fingerprint that all videos of a run share."""

    detector: str
    detector_state: Mapping[str, object]
    needs: Mapping[str, object]
    decoder: str
    fps: float | None
    categories: tuple[str, ...]

    @classmethod
    def of(
        cls, detector: Detector, needs: ClipNeeds, *, decoder: str, fps: float | None, categories: tuple[str, ...]
    ) -> ScanIdentity:
        """Return the identity of a run.

        If the detector can't read categories, the identity contains no categories.
        """
        sampling = {
            "frames": needs.frames,
            "overlap": needs.overlap,
            "rate_hz": needs.rate_hz,
            "interval": needs.interval,
            "max_area_px": needs.size.max_area_px,
            "pixel_format": str(needs.pixel_format),
        } | ({} if needs.decode == "all" else {"decode": needs.decode})
        return cls(
            detector.name, detector.fingerprint(), sampling, decoder, fps, categories if detector.uses_categories else ()
        )

    def fingerprint(self, content: str, model: CameraModel | None, regions: Regions = NO_REGIONS) -> str:
        """Return the fingerprint of a video.

        Args:
            content: hash of the content of the video.
            model: the model of the video's camera; None if the detector does not fit cameras.
            regions: the hidden parts of the picture.
        """
        own = {"content": content, "camera_model": model.sha256 if model else None}
        own |= {"regions": regions.sha256} if regions else {}
        texts = self._texts | {name: json.dumps(value) for name, value in own.items()}
        text = ", ".join(f'"{name}": {texts[name]}' for name in sorted(texts))  # equals the JSON that `digest` would make
        return hashlib.sha256(f"{{{text}}}".encode()).hexdigest()

    @cached_property
    def _texts(self) -> dict[str, str]:
        """The parts of the fingerprint that all videos share: the JSON text of each part, by the part's name."""
        parts = {
            "detector": self.detector,
            "detector_state": dict(self.detector_state),
            "needs": dict(self.needs),
            "decoder": self.decoder,
            "fps": self.fps,
            "categories": list(self.categories),
        }
        return {name: json.dumps(value, sort_keys=True) for name, value in parts.items()}


def source_of(unit: WorkUnit, known: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the size, modification time and content hash of a video, which are stored with its results.

    Args:
        unit: the video.
        known: what this function returned in an earlier scan. If the size and the time have not changed, the hash in `known`
            is used again.

    Raises:
        NotFinished: the file has vanished or can't be read.
    """
    if known and (known.get("size"), known.get("mtime_ns")) == (unit.size, unit.mtime_ns) and known.get("content"):
        content = str(known["content"])
    else:
        content = unit.content or _content_sample(unit)
    return {"size": unit.size, "mtime_ns": unit.mtime_ns, "content": content}


def _content_sample(unit: WorkUnit) -> str:
    """Return a hash of the video's size and of samples from its start, middle and end.

    Raises:
        NotFinished: the file has vanished or can't be read.
    """
    digest = hashlib.sha256(str(unit.size).encode())
    try:
        if unit.is_frames:
            names = sorted(path.name for path in unit.path.iterdir())
            digest.update("\0".join(names).encode(errors="surrogateescape"))
            for name in (names[0], names[len(names) // 2], names[-1]) if names else ():
                if not os.path.isdir(unit.path / name):  # only the name of a folder is hashed
                    _sample(unit.path / name, digest)
        else:
            _sample(unit.path, digest)
    except FileNotFoundError as error:
        raise FileChanged(f"{unit.path}: vanished before it was scanned") from error
    except OSError as error:
        raise NotFinished(f"{unit.path}: can't be read at the moment: {error.strerror}") from error
    return digest.hexdigest()


def check_unchanged(document: EventsDocument, path: Path) -> None:
    """Raise VideoError if a video has changed since its scan, because its event times may be wrong now."""
    source = document.scan.source if document.scan else {}
    if is_remote(path):
        if source.get("content") and object_of(path).content != source["content"]:
            raise VideoError(f"{shown(path)}: has changed since it was scanned", hint="scan it again")
        return
    try:
        status = path.stat()
    except OSError as error:
        raise FileChanged(f"{path}: can't be read: {error.strerror}") from error
    if path.is_dir() or not source.get("content"):
        return
    if (source.get("size"), source.get("mtime_ns")) == (status.st_size, status.st_mtime_ns):
        return
    unit = WorkUnit(str(document.video["path"]), path, "", status.st_size, status.st_mtime_ns, is_frames=False)
    if status.st_size != source.get("size") or _content_sample(unit) != source["content"]:
        raise VideoError(f"{path}: has changed since it was scanned", hint="scan it again")


def _sample(path: Path, digest: Any) -> None:
    """Update a digest with samples from the start, the middle and the end of a file."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        for start in (0, max(0, size // 2 - SAMPLE_BYTES // 2), max(0, size - SAMPLE_BYTES)):
            file.seek(start)
            digest.update(file.read(SAMPLE_BYTES))


@dataclass(frozen=True)
class ScanJob:
    """The settings that the scan of one video needs."""

    layout: OutputLayout
    scratch: Scratch
    root: Path  # the folder that names are relative to
    detector: Detector
    needs: ClipNeeds  # the detector's needs, changed by the sampling options
    identity: ScanIdentity  # the part of the fingerprints that all videos share
    rules: EventRules  # how the scores of each video become events
    categories: tuple[str, ...] = ()  # what the user looks for
    own_categories: tuple[Category, ...] = ()  # the categories that the user describes with sentences
    mask_video: bool = False  # write the masks as a video
    mask_rle: bool = False  # write the masks as run lengths
    masked_rows: MaskRows = MaskRows.SAMPLED  # which frames get a mask
    force: bool = False  # also scan videos that are done
    retry_failed: bool = False  # repeat the scan of videos that failed or are partial
    checkpoint_s: float = 30.0  # seconds between two fsyncs of a checkpoint
    # The next fields are second passes. A field is None if the options do not ask for its pass, or the detector needs none.
    attribution: Attribution | None = None  # finds the categories of events
    propagation: Propagation | None = None  # makes a mask for every frame
    refinement: Refinement | None = None  # refines the masks in events
    refined: str = ""  # hash of the model that refines masks; "" if masks are not refined
    times: TimeRules = DEFAULT_RULES  # how to find the wall-clock time at which a video starts
    regions: CameraRegions = field(default_factory=CameraRegions)  # the hidden parts of each camera's picture

    @property
    def keeps_masks(self) -> bool:
        """True if masks are written."""
        return self.mask_video or self.mask_rle

    @property
    def embedder(self) -> Embedder | None:
        """The detector, if it makes vectors and the options ask for vectors; else None."""
        return self.detector if isinstance(self.detector, Embedder) and self.detector.keeps_embeddings else None

    def caveats(self, model: CameraModel | None) -> tuple[str, ...]:
        """Return sentences that warn the user about scores of this detector with this camera model."""
        return (*caveats_of(self.detector), *footage_caveats(model))


class Need(StrEnum):
    """What a run must do with a video."""

    SCAN = "scan"
    NOTHING = "done"
    RECUT = "recut"  # make the events again from the stored scores
    FAILED_BEFORE = "failed"  # skip the video, because it failed in an earlier run
    TAKEN = "taken"  # do not scan the video, because OUT has the results of another video with the same name


@dataclass(frozen=True)
class Decision:
    """What a run must do with a video, and why."""

    need: Need
    fingerprint: str  # the fingerprint of a scan with the present settings; "" if the video can't be read
    source: Mapping[str, Any]  # size, modification time and content hash of the video (see `source_of`)
    # How an earlier scan of the same video ended.
    status: Status = Status.DONE
    stage: str = ""
    reason: str = ""
    events: int = 0  # number of events that the earlier scan found


def decide(job: ScanJob, unit: WorkUnit, model: CameraModel | None) -> Decision:
    """Decide what a run must do with a video, from the stored results of the video.

    Raises:
        NotFinished: the video can't be read.
    """
    scores = job.layout.scores(unit.video)
    document = read_unchecked(job.layout.events(unit.video))
    state = document.scan if document else None
    # If a video is done, its events document is enough for the decision. A run decides about every video of the archive,
    # and reading the metadata of all scores would take most of its time.
    is_sure = bool(state and state.status is Status.DONE and not job.keeps_masks and has_fingerprint(scores, state.fingerprint))
    metadata = None if is_sure else read_metadata(scores)
    earlier = metadata.source if metadata else state.source if state else None
    source = source_of(unit, earlier)
    source["root"] = shown(job.root)
    fingerprint = job.identity.fingerprint(str(source["content"]), model, job.regions.of(unit.camera))
    # OUT may have the results of another video with this name, below another root. If that other video still exists, its
    # results are replaced only with --force.
    root = earlier.get("root") if earlier and earlier.get("content") != source["content"] else None
    if not job.force and root not in (None, source["root"]) and may_exist(Path(str(root)) / unit.video):
        reason = f"OUT has the results of another video of this name, below {root}"
        hint = "give another --out, or --force to replace them"
        return Decision(Need.TAKEN, fingerprint, source, Status.FAILED, "write", f"{reason} ({hint})")
    if job.force or document is None or state is None or state.fingerprint != fingerprint:
        return Decision(Need.SCAN, fingerprint, source)
    if state.status is not Status.DONE and job.retry_failed:
        return Decision(Need.SCAN, fingerprint, source)
    if document.failure:
        return Decision(Need.FAILED_BEFORE, fingerprint, source, Status.FAILED, document.failure.stage, document.failure.error)
    if not is_sure and (metadata is None or metadata.fingerprint != fingerprint or not _has_masks(job, unit.video, metadata)):
        return Decision(Need.SCAN, fingerprint, source)
    judge = job.rules.judge
    same_head = document.head == (judge.mark if judge else None)
    need = Need.NOTHING if same_head and document.thresholds == job.rules.of_video(unit.video) else Need.RECUT
    extra = metadata.extra if metadata else {}
    stage, reason = str(extra.get("stage", "")), str(extra.get("reason", ""))
    return Decision(need, fingerprint, source, state.status, stage, reason, len(document.events))


def _has_masks(job: ScanJob, video: str, metadata: ScoresMetadata) -> bool:
    """True if the mask files that the options ask for are stored, and were made with these options."""
    paths = [job.layout.mask_video(video)] * job.mask_video + [job.layout.mask_rle(video)] * job.mask_rle
    fits = metadata.masks is job.masked_rows and str(metadata.extra.get("refined", "")) == job.refined
    return all(path.exists() for path in paths) and (fits or not paths)


@dataclass(frozen=True)
class Task:
    """A claimed video that is being scanned."""

    unit: WorkUnit
    claim: Claim  # the lock on its files
    decision: Decision  # has the fingerprint and the source of the scan
    model: CameraModel | None  # of the video's camera; None if the detector does not fit cameras
    resume: Checkpoint | None = None  # the checkpoint to continue from; None to start at the first clip

    def start_clip(self, job: ScanJob) -> int:
        """Return the number of the first clip to score. All earlier clips are in the checkpoint."""
        if self.resume is None:
            return 0
        plan = SamplingPlan(job.needs.frames, job.needs.overlap, self.resume.header.interval)
        if job.needs.decode == "all":
            return plan.whole_clips(self.resume.last_row + 1)
        # The distances between sampled frames may differ, so the sampled frames are counted. Frames that did not decode are not
        # counted, so the scan may repeat some clips that are already in the checkpoint.
        return plan.whole_clips_of(sum(int(block.sampled.sum()) for block in self.resume.blocks()))

    @property
    def has_damage(self) -> bool:
        """True if the checkpoint has a frame that did not decode."""
        return self.resume is not None and not all(block.decode_ok.all() for block in self.resume.blocks())


def usable_checkpoint(claim: Claim, fingerprint: str, job: ScanJob, video: str) -> Checkpoint | None:
    """Return the checkpoint of a claimed video if this scan can continue from it; else None."""
    checkpoint = read_checkpoint(claim.path)
    if checkpoint is None or checkpoint.header.fingerprint != fingerprint or not checkpoint.rows:
        return None
    has_masks = checkpoint.header.mask_shape is not None
    if has_masks != job.keeps_masks:
        return None
    # With masks, the boxes are made from the masks at the end of the scan. Without masks, the boxes are already in the
    # checkpoint, so the checkpoint can be used only if its boxes were made with the present mask threshold.
    level = job.rules.of_video(video).mask_level
    return checkpoint if has_masks or checkpoint.header.box_level in (0, level) else None
