"""Writes sentences about the stored results: why there are no events, the source of the times, and facts about the run."""

from __future__ import annotations

import shlex
from datetime import datetime

from vadcli.reporting.archive import Archive
from vadcli.reporting.stories import counted, lasting
from vadcli.store import printable
from vadcli.store.stored_run import StoredRun
from vadcli.types import TimeSource

_SHORT_HASH = 12
SOURCES = {
    TimeSource.OPTION: "the pattern of --time-from",
    TimeSource.CONTAINER: "the creation time in the file",
    TimeSource.NAME: "the file's name",
    TimeSource.MODIFIED: "the file's last change",
}


def no_events_text(archive: Archive, highest: float | None) -> tuple[str, list[tuple[str, str]]]:
    """Return a sentence that says why there are no events, and pairs (command, what it does) that may show some.

    Args:
        archive: an archive without events.
        highest: the highest score of its videos; None if there are no scores.
    """
    thresholds = archive.counts.thresholds
    if not archive.counts.total.scored:
        return "There are no events, because no video has scores.", []
    out = shlex.quote(printable(str(archive.layout.out)))
    preview = (f"vadcli events {out} --preview", "prints how many events and alarms per hour other thresholds give.")
    if not archive.is_whole:
        return "There are no events.", [preview]
    if highest is None or highest >= min(thresholds):
        reasons = "did so too briefly, outside the chosen times, or in events that a review marks as false"
        return f"There are no events: the scores that reached the threshold {reasons}.", [preview]
    needed = f"the threshold is {min(thresholds):.2f}{' or more' if len(thresholds) > 1 else ''}"
    lower = f"vadcli events {out} --threshold {max(0.01, int(highest * 20) / 20):.2f} --write"
    told = f"There are no events: the highest score is {highest:.2f}, and {needed}."
    return told, [preview, (lower, "stores the events of a lower threshold. Then make the report again.")]


def time_sources(archive: Archive) -> str:
    """Return a sentence about the source of the dates and times of the videos; "" if no video has a date."""
    found, zones = archive.counts.sources, archive.counts.zones
    if not found:
        return ""
    parts = [f"{SOURCES[source]} ({counted(number, 'video')})" for source, number in found.most_common()]
    if unknown := archive.counts.total.scored - found.total():
        parts.append(f"unknown for {counted(unknown, 'video')}")
    zone = f", in the time zone {next(iter(zones))}" if len(zones) == 1 and "" not in zones else ""
    copied = " The last change of a copied file may be the time of the copy." if TimeSource.MODIFIED in found else ""
    return f"Dates and times are from {', '.join(parts)}{zone}.{copied}"


def run_facts(archive: Archive) -> list[tuple[str, str]]:
    """Return facts about the newest run of `archive.runs`, as (name, value) pairs."""
    run = archive.newest
    if run is None:
        return [("Run", "no run record is stored")]
    facts = [
        ("Detector", str(run.info.detector.get("name", "?"))),
        ("Weights", ", ".join(f"{name} {sha[:_SHORT_HASH]}" for name, sha in run.info.weights.items()) or "none"),
        ("Run", f"{when(run.start)}, {_ending(run)}"),
        ("Speed", speed(run) or "not known"),
        ("Footage from", run.info.root),
        ("Command", shlex.join(run.info.command)),
        ("Version", f"vadcli {run.info.version}"),
    ]
    if looked_for := _looked_for(run):
        facts.insert(2, ("Looked for", looked_for))
    if verified := archive.verification:
        facts += [("Verified by", f"{verified.model}, {when(datetime.fromisoformat(verified.start))}: {verified.text}")]
        facts += [("Audit", verified.audit.text)] if verified.audit else []
    if len(nodes := (run.progress or {}).get("nodes") or {}) > 1:
        facts.append(("Nodes", ", ".join(f"{node} ({counted(videos, 'video')})" for node, videos in nodes.items())))
    others = len(archive.runs) - 1
    return [*facts, ("Earlier runs", str(others))] if others else facts


def _looked_for(run: StoredRun) -> str:
    """Return the categories that the detector read; "" if it reads none.

    Records of older versions have only the categories that the user gave, and the motion detector reads none.
    """
    given = str(run.info.config.get("categories") or "")
    if run.info.looked_for is None:
        return "" if run.info.detector.get("name") == "motion" else given
    return given or ", ".join(run.info.looked_for) if run.info.looked_for else ""


def speed(run: StoredRun) -> str:
    """Return text like `310 frames/s`; "" if the run has not ended or has decoded no frames."""
    frames = int(run.totals.get("decoded_frames", 0))
    if run.end is None or not frames:
        return ""
    return f"{frames / max(1e-3, (run.end - run.start).total_seconds()):.0f} frames/s"


def when(moment: datetime) -> str:
    """Return a time as text, in UTC and without seconds."""
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _ending(run: StoredRun) -> str:
    if run.end is None:
        return "not ended: it is still running, or was killed"
    return f"{lasting((run.end - run.start).total_seconds())}, exit code {run.exit_code}"
