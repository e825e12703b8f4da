"""How an event is called where there is room for a word or a line."""

from __future__ import annotations

import re

from vadcli.types import Event

UNNAMED = "anomaly"
"""What an event without a category is called."""


def label(event: Event) -> str:
    """The event's category."""
    return event.category or UNNAMED


def caption(event: Event) -> str:
    """The event's category and how sure it is."""
    return f"{label(event)} {event.peak_score:.2f}"


def one_line(text: str) -> str:
    """Text without line ends, for formats that are read line by line."""
    return " ".join(text.split())


_NOT_XML = re.compile("[^\\t\\n\\r\\x20-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")


def legal_in_xml(text: str) -> str:
    """Text with a mark in place of each character that no XML file may hold, escaped or not."""
    return _NOT_XML.sub("\ufffd", text)
