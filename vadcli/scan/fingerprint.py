"""What makes two scans of a video the same scan: its content and every option that changes a score.

The content is known by its size and three samples of 64 KiB, so that a night's 40,000 unchanged files cost a `stat` each:
where size and modification time are those of last time, the content of last time is taken.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vadcli.detectors.base import Detector
from vadcli.errors import FileChanged, ProbeError
from vadcli.scan.plan import WorkUnit
from vadcli.types import CameraModel, ClipNeeds

SAMPLE_BYTES = 64 * 1024


@dataclass(frozen=True)
class Recipe:
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
    ) -> Recipe:
        """Categories count only where the detector reads them."""
        asked = {
            "frames": needs.frames,
            "overlap": needs.overlap,
            "rate_hz": needs.rate_hz,
            "interval": needs.interval,
            "max_area_px": needs.size.max_area_px,
            "pixel_format": str(needs.pixel_format),
        }
        return cls(detector.name, detector.fingerprint(), asked, decoder, fps, categories if detector.uses_categories else ())

    def fingerprint(self, content: str, model: CameraModel | None) -> str:
        """Of one video scanned by this recipe with this camera model."""
        parts = {
            "content": content,
            "detector": self.detector,
            "detector_state": dict(self.detector_state),
            "needs": dict(self.needs),
            "decoder": self.decoder,
            "fps": self.fps,
            "categories": list(self.categories),
            "camera_model": model.sha256 if model else None,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def source_of(unit: WorkUnit, known: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Size, modification time and content hash of a unit, as stored with its results.

    Args:
        unit: the video.
        known: what was stored last time; its content hash is taken over where size and time have not changed.

    Raises:
        FileChanged, ProbeError: the file vanished or can't be read.
    """
    if known and (known.get("size"), known.get("mtime_ns")) == (unit.size, unit.mtime_ns) and known.get("content"):
        content = str(known["content"])
    else:
        content = content_sample(unit)
    return {"size": unit.size, "mtime_ns": unit.mtime_ns, "content": content}


def content_sample(unit: WorkUnit) -> str:
    """Hash of the unit's size and of samples from its start, middle and end.

    Raises:
        FileChanged, ProbeError: it vanished or can't be read.
    """
    digest = hashlib.sha256(str(unit.size).encode())
    try:
        if unit.is_frames:
            names = sorted(path.name for path in unit.path.iterdir())
            digest.update("\0".join(names).encode(errors="surrogateescape"))
            for name in (names[0], names[len(names) // 2], names[-1]) if names else ():
                _sample(unit.path / name, digest)
        else:
            _sample(unit.path, digest)
    except FileNotFoundError as error:
        raise FileChanged(f"{unit.path}: vanished before it was scanned") from error
    except OSError as error:
        raise ProbeError(f"{unit.path}: can't be read: {error.strerror}", hint="check the file and its permissions") from error
    return digest.hexdigest()


def _sample(path: Path, digest: Any) -> None:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        for start in (0, max(0, size // 2 - SAMPLE_BYTES // 2), max(0, size - SAMPLE_BYTES)):
            file.seek(start)
            digest.update(file.read(SAMPLE_BYTES))
