"""The errors that vadcli raises on purpose, each with a hint and an exit code.

    VadcliError                 1    any fatal error that the user can fix
    ├── UsageError              2    an invalid option or argument
    │   └── NoVideoFound        2    the paths contain no video
    ├── OutputError             1    the output folder can't be written: it is full or read-only
    ├── DocumentError           1    a file that vadcli reads is damaged or has the wrong format
    ├── NotBetter               1    a trained head is not better than the detector alone, and was not written
    ├── DeviceError             4    the requested device is not available
    ├── WeightsError            4    weights are missing or untrained
    └── VideoError              3    one video can't be used; the scan continues without it
        ├── ProbeError          3    not a readable video file
        │   ├── UnsafeContainer 3    a playlist, script or URL that could open other files
        │   └── NoVideoStream   3    only sound or data
        ├── DecodeError         3    frames can't be decoded
        ├── DecoderCrashed      3    the decoder process died
        ├── DecoderHung         3    the decoder made no progress within the time limit
        └── NotFinished         3    the machine failed, not the video; nothing is stored, and the next run tries again
            ├── FileChanged     3    the file grew, shrank or vanished while it was read
            └── ToolError       4    a program that is needed (ffmpeg) is missing or does not run; the scan ends

A message says what is wrong and where, and shows the wrong value. The hint says how to fix it.
"""

from __future__ import annotations

import re

_REMARK = re.compile(r" \([^()]*[a-z][^()]*\)$")  # words in brackets at the end, but not a shape like (128,)


class VadcliError(Exception):
    """Base of every error that vadcli raises on purpose.

    Args:
        message: what is wrong and where, in one line.
        hint: how to fix it, in one line; if empty, the class's default hint is used.
    """

    exit_code = 1
    default_hint = ""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.default_hint

    def __str__(self) -> str:
        if not self.hint:
            return self.message
        if _REMARK.search(self.message):  # one pair of brackets is easier to read than two in a row
            return f"{self.message[:-1]}; {self.hint})"
        return f"{self.message} ({self.hint})"

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the hint when the error is sent to another process."""
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(kind: type[VadcliError], message: str, hint: str) -> VadcliError:
    return kind(message, hint=hint)


class UsageError(VadcliError):
    """An option or argument is invalid."""

    exit_code = 2


class NoVideoFound(UsageError):
    """The paths contain no video."""

    default_hint = "check the paths and --include/--exclude; with --allow-empty, the exit code is 0"


class OutputError(VadcliError):
    """The output folder can't be written."""

    default_hint = "free space or choose another output folder; finished results are kept"


class DocumentError(VadcliError):
    """A file that vadcli reads is damaged or has the wrong format, such as scores, events or annotations."""


class NotBetter(VadcliError):
    """A trained head is not better than the detector alone, so it is not written."""


class DeviceError(VadcliError):
    """The requested device is not available."""

    exit_code = 4
    default_hint = "run `vadcli doctor` to see the devices; --device cpu always works"


class WeightsError(VadcliError):
    """Weights are missing or untrained."""

    exit_code = 4


class VideoError(VadcliError):
    """One video can't be used. The scan records this and continues.

    `stage` is the step that failed: probe, open, decode, score, write or machine.
    """

    exit_code = 3
    stage = "decode"


class ProbeError(VideoError):
    """The file is not a readable video."""

    stage = "probe"


class UnsafeContainer(ProbeError):
    """The file is a playlist, script, manifest or URL that could open other files."""

    default_hint = "scan the media files themselves"


class NoVideoStream(ProbeError):
    """The file has only sound or data."""


class DecodeError(VideoError):
    """Frames can't be decoded."""


class DecoderCrashed(VideoError):
    """The decoder process died."""


class DecoderHung(VideoError):
    """The decoder made no progress within the time limit."""

    default_hint = "raise --decode-timeout if the storage is slow"


class NotFinished(VideoError):
    """The video could not be read because the machine failed: storage, memory or permissions.

    A scan stores nothing about the video, so that the next run tries again.
    """

    stage = "machine"
    default_hint = "the next run tries again"


class ToolError(NotFinished):
    """A program that vadcli needs is missing or does not run, so the next video would fail, too."""

    exit_code = 4


class FileChanged(NotFinished):
    """The file grew, shrank or vanished while it was read."""

    stage = "open"
    default_hint = "`vadcli scan --min-age 5m` leaves out files that are still being recorded"
