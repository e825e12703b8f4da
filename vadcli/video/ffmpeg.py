"""Which ffmpeg is called."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess

from vadcli.errors import DecodeError

_INSTALL_HINT = "pip install imageio-ffmpeg, install ffmpeg, or set VADCLI_FFMPEG to its path"


@functools.cache
def ffmpeg_path() -> str:
    """The ffmpeg to call: VADCLI_FFMPEG, else the system's, else the one that imageio-ffmpeg brings.

    Raises:
        DecodeError: there is none, or VADCLI_FFMPEG names a file that can't be run.
    """
    named = os.environ.get("VADCLI_FFMPEG")
    if named:
        found = shutil.which(named)
        if not found:
            raise DecodeError(f"VADCLI_FFMPEG={named} is not a program that can be run", hint=_INSTALL_HINT)
        return found
    system = shutil.which("ffmpeg")
    if system:
        return system
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError) as error:
        raise DecodeError("no ffmpeg found", hint=_INSTALL_HINT) from error


@functools.cache
def ffmpeg_version() -> tuple[int, int]:
    """(major, minor) of `ffmpeg_path()`; builds from git without a number count as the newest.

    Raises:
        DecodeError: it can't be run.
    """
    path = ffmpeg_path()
    try:
        said = subprocess.run([path, "-hide_banner", "-version"], capture_output=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise DecodeError(f"{path} does not run: {error}", hint=_INSTALL_HINT) from error
    match = re.search(rb"version n?(\d+)\.(\d+)", said)
    return (int(match[1]), int(match[2])) if match else (1000, 0)
