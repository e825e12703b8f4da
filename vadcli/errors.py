"""The errors that vadcli raises on purpose, each with a hint and an exit code.

    VadcliError                 1    anything fatal that a person can mend
    ├── UsageError              2    an option or argument that can't be used
    │   └── NoVideoFound        2    the paths hold no video
    ├── OutputError             1    OUT can't be written: full, read-only, not ours
    ├── DocumentError           1    a file that vadcli reads back is not what it should be
    ├── DeviceError             4    the device asked for is not there
    ├── WeightsError            4    weights are missing or untrained
    └── VideoError              3    one video can't be used; the scan goes on without it
        ├── ProbeError          3    not a readable video file
        │   ├── UnsafeContainer 3    a playlist, script or URL that could open other files
        │   └── NoVideoStream   3    sound or data only
        ├── DecodeError         3    frames can't be decoded
        ├── DecoderCrashed      3    the decoder's process died
        ├── DecoderHung         3    the decoder made no progress in time
        └── FileChanged         3    the file grew, shrank or vanished while it was read

A message says what and where and shows the value; the hint says how to mend it.
"""

from __future__ import annotations


class VadcliError(Exception):
    """Base of every error raised on purpose.

    Args:
        message: what went wrong and where, one line.
        hint: how to mend it, one line; the class's own hint where empty.
    """

    exit_code = 1
    default_hint = ""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.default_hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        """Errors cross process boundaries with their hint."""
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(kind: type[VadcliError], message: str, hint: str) -> VadcliError:
    return kind(message, hint=hint)


class UsageError(VadcliError):
    """An option or argument that can't be used."""

    exit_code = 2


class NoVideoFound(UsageError):
    """The paths hold no video."""

    default_hint = "check the paths and --include/--exclude; --allow-empty makes this exit 0"


class OutputError(VadcliError):
    """The output folder can't be written."""

    default_hint = "free space or choose another place for what is written; what was finished is kept"


class DocumentError(VadcliError):
    """A scores, events or camera file is not what it should be."""


class DeviceError(VadcliError):
    """The device asked for is not there."""

    exit_code = 4
    default_hint = "run `vadcli doctor` to see the devices; --device cpu always works"


class WeightsError(VadcliError):
    """Weights are missing or untrained."""

    exit_code = 4


class VideoError(VadcliError):
    """One video can't be used; the scan records it and goes on.

    `stage` says where: probe, open, decode, score or write.
    """

    exit_code = 3
    stage = "decode"


class ProbeError(VideoError):
    """Not a readable video file."""

    stage = "probe"


class UnsafeContainer(ProbeError):
    """A playlist, script, manifest or URL that could open other files."""

    default_hint = "scan the media files themselves"


class NoVideoStream(ProbeError):
    """The file holds sound or data only."""


class DecodeError(VideoError):
    """Frames can't be decoded."""


class DecoderCrashed(VideoError):
    """The decoder's process died."""


class DecoderHung(VideoError):
    """The decoder made no progress in time."""

    default_hint = "raise --decode-timeout if the storage is slow"


class FileChanged(VideoError):
    """The file grew, shrank or vanished while it was read."""

    stage = "open"
    default_hint = "use --min-age for files that are still being recorded"
