"""Status, report, captions and rendered videos print the same start time for an event."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.store.documents import DOCUMENT, PLAIN
from vadcli.cli.results import _event_line
from vadcli.export import to_vtt
from vadcli.reporting.html import _cells
from vadcli.types.text import clock, clock_ms


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0:00:00.000"),
        (59.9996, "0:01:00.000"),
        (61.5, "0:01:01.500"),
        (36_000.04, "10:00:00.040"),
        (3599.999, "0:59:59.999"),
    ],
)
def test_both_clocks_show_the_same_second(seconds, text):
    assert clock_ms(seconds) == text
    assert clock(seconds) == text.partition(".")[0]


@pytest.mark.parametrize(("start_s", "text"), [(12.6, "0:00:12"), (59.4, "0:00:59"), (59.9996, "0:01:00")])
def test_an_event_starts_at_the_same_time_everywhere(start_s, text):
    event = replace(PLAIN, start_s=start_s, end_s=start_s + 5)
    video = SimpleNamespace(video="a.mp4", camera="cam1", start=None)
    assert f" {text} to " in _event_line({"video": "a.mp4", **event.to_json()})
    assert text in _cells(video, event)
    assert f"\n0{text}." in to_vtt(replace(DOCUMENT, events=(event,)))
    assert clock_ms(event.start_s).startswith(f"{text}.")
