"""Finds the wall-clock start of stored videos, and chooses events by time and category. No video is opened.

The start is that of the document, or it is computed again from stored values. Results of versions that did not store a start
get it from the name or the modification time.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from vadcli.store import matches
from vadcli.store.events import EventsDocument
from vadcli.types import TimeRules, TimeSource, When
from vadcli.types.wall_clock import in_zone


def timed(document: EventsDocument, rules: TimeRules) -> EventsDocument:
    """Return the document with the start of its video.

    A stored start is kept, unless the user gave rules. If it came from a pattern of an earlier scan, and the rules have no
    pattern, only its time zone is changed, because the earlier pattern is not stored.
    """
    if document.start is not None:
        if not rules.given:
            return document
        if document.start.source is TimeSource.OPTION and rules.pattern is None:
            return replace(document, start=in_zone(document.start, rules.zone))
    source = document.scan.source if document.scan else {}
    mtime_ns, duration_s = source.get("mtime_ns"), document.video["duration_s"]
    start = rules.start_of(
        f"{source.get('root', '')}/{document.video['path']}",
        created=document.created,
        modified_s=mtime_ns / 1e9 if isinstance(mtime_ns, int | float) else None,
        duration_s=duration_s,
    )
    return replace(document, start=start)


def choose(documents: Sequence[EventsDocument], when: When, categories: Collection[str] = ()) -> list[EventsDocument]:
    """Return the documents with only the chosen events, which keep their numbers.

    Videos without a chosen event are left out, but failed videos are kept. Without a choice, nothing is left out.

    Args:
        documents: the documents, with the start of their videos.
        when: the choice by time.
        categories: globs of categories; empty for all events. An event without a category counts as `anomaly`.
    """
    if not when and not categories:
        return list(documents)
    chosen = []
    for document in documents:
        events = tuple(
            event
            for event in document.events
            if matches((event.category or "anomaly").casefold(), [name.casefold() for name in categories])
            and when.takes(document.start, event.start_s, event.end_s)
        )
        if events or document.failure:
            chosen.append(replace(document, events=events))
    return chosen
