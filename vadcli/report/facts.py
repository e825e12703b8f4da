"""An archive's facts in words: how long, how many, by what, how fast."""

from __future__ import annotations

import shlex
from datetime import datetime

from vadcli.outputs.run_record import StoredRun
from vadcli.report.archive import Archive

_SHORT_HASH = 12


def clock(seconds: float) -> str:
    """0:00:00, rounded down like a player's clock."""
    whole = int(seconds + 1e-6)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def lasting(seconds: float) -> str:
    """`2.7 s` under a minute, else like `clock`."""
    return f"{seconds:.1f} s" if seconds < 60 else clock(seconds)


def counted(number: int, noun: str) -> str:
    """`no events`, `1 event`, `1,204 events`."""
    return f"no {noun}s" if number == 0 else f"{number:,} {noun}{'s' if number > 1 else ''}"


def run_facts(archive: Archive) -> list[tuple[str, str]]:
    """What the newest run in scope was: a name and a value each."""
    run = archive.newest
    if run is None:
        return [("Run", "no run's record is here")]
    facts = [
        ("Detector", str(run.info.detector.get("name", "?"))),
        ("Weights", ", ".join(f"{name} {sha[:_SHORT_HASH]}" for name, sha in run.info.weights.items()) or "none needed"),
        ("Looked for", str(run.info.config.get("categories") or "anything that stands out")),
        ("Run", f"{when(run.start)}, {_ending(run)}"),
        ("Speed", speed(run) or "not known"),
        ("Footage from", run.info.root),
        ("Command", shlex.join(run.info.command)),
        ("Version", f"vadcli {run.info.version}"),
    ]
    others = len(archive.runs) - 1
    return [*facts, ("Runs before", str(others))] if others else facts


def speed(run: StoredRun) -> str:
    """`310 frames/s`; "" where the run has not ended or decoded nothing."""
    frames = int(run.totals.get("decoded_frames", 0))
    if run.end is None or not frames:
        return ""
    return f"{frames / max(1e-3, (run.end - run.start).total_seconds()):.0f} frames/s"


def when(moment: datetime) -> str:
    """A moment in UTC to the minute."""
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _ending(run: StoredRun) -> str:
    if run.end is None:
        return "not ended: it runs still, or was killed"
    return f"{lasting((run.end - run.start).total_seconds())}, exit code {run.exit_code}"
