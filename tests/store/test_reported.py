"""The list of reported events after a line was written only in part."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.store.documents import DOCUMENT, FIGHT, PLAIN
from vadcli.errors import OutputError
from vadcli.store import OutputLayout
from vadcli.store.choices import ReportedEvents


def test_an_event_after_a_cut_off_line_is_reported_once(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    ReportedEvents(layout).add(DOCUMENT, FIGHT)
    os.truncate(layout.reported, layout.reported.stat().st_size - 9)
    assert ReportedEvents(layout).new(DOCUMENT) == [FIGHT, PLAIN]
    assert ReportedEvents(layout).add(DOCUMENT, PLAIN)
    assert ReportedEvents(layout).new(DOCUMENT) == [FIGHT]


def test_a_full_disk_adds_no_part_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, write, room = OutputLayout(tmp_path), os.write, [10]

    def fills_up(fd: int, data: bytes) -> int:
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data[: room.pop()])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fills_up)
        with pytest.raises(OutputError, match="no space left"):
            ReportedEvents(layout)
    assert layout.reported.stat().st_size == 0
    reported = ReportedEvents(layout)
    before, room[:] = layout.reported.read_bytes(), [10]
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fills_up)
        with pytest.raises(OutputError, match="no space left"):
            reported.add(DOCUMENT, FIGHT)
    assert layout.reported.read_bytes() == before
    assert reported.add(DOCUMENT, FIGHT)
    assert ReportedEvents(layout).new(replace(DOCUMENT, events=(FIGHT, PLAIN))) == [PLAIN]
