"""A claimed video on its way through the scan, and where an interrupted one goes on."""

from __future__ import annotations

from dataclasses import dataclass

from vadcli.outputs.checkpoint import Checkpoint, Claim, read_checkpoint
from vadcli.scan.job import ScanJob, Verdict
from vadcli.scan.plan import WorkUnit
from vadcli.types import CameraModel
from vadcli.video.sampling import SamplingPlan


@dataclass(frozen=True)
class Task:
    """A claimed video on its way through the scan.

    Attributes:
        unit: the video.
        claim: the right to write it.
        verdict: its fingerprint and source.
        model: its camera's model.
        resume: the checkpoint to go on from, or None.
    """

    unit: WorkUnit
    claim: Claim
    verdict: Verdict
    model: CameraModel | None
    resume: Checkpoint | None = None

    def start_clip(self, job: ScanJob) -> int:
        """The first clip that the checkpoint does not hold."""
        return resume_clip(self.resume, job) if self.resume else 0


def resume_clip(checkpoint: Checkpoint, job: ScanJob) -> int:
    """The first clip that a checkpoint does not hold whole."""
    plan = SamplingPlan(job.needs.frames, job.needs.overlap, checkpoint.header.interval)
    return plan.whole_clips(checkpoint.last_row + 1)


def usable_checkpoint(claim: Claim, fingerprint: str, job: ScanJob) -> Checkpoint | None:
    """The claimed video's checkpoint where it belongs to this very scan and holds at least one clip."""
    checkpoint = read_checkpoint(claim.path)
    if checkpoint is None or checkpoint.header.fingerprint != fingerprint or not checkpoint.rows:
        return None
    has_masks = checkpoint.header.mask_shape is not None
    return checkpoint if has_masks == job.keeps_masks else None  # boxes come from the masks where they are kept
