"""Tests of decoders use the ffmpeg that vadcli finds on the machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vadcli.video import ffmpeg


@pytest.fixture(autouse=True, scope="package")
def found_ffmpeg() -> Iterator[None]:
    """Remove VADCLI_FFMPEG, so that `ffmpeg_path()` searches the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("VADCLI_FFMPEG")
        _forget()
        yield
    _forget()


def _forget() -> None:
    ffmpeg.ffmpeg_path.cache_clear()
    ffmpeg.ffmpeg_version.cache_clear()
