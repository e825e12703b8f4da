"""Where every file of an output folder lies, and how a video's relative path becomes a file name. Touches no file."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from urllib.parse import unquote_to_bytes

CHECKPOINT_SUFFIX = ".parquet.part"
_LONGEST_NAME_BYTES = 255
_LONGEST_STEM_BYTES = _LONGEST_NAME_BYTES - len(f".{CHECKPOINT_SUFFIX}")
_HASH_DIGITS = 8
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_LOOKS_ENCODED = re.compile(rb"%(?=25|2E|0[0-9A-F]|1[0-9A-F]|7F|[89A-F][0-9A-F])")


def encode_name(relative: str | bytes | PurePath) -> str:
    """A relative path as it is written everywhere: UTF-8, `/` separators, no control characters.

    Bytes that are not UTF-8 and control characters become %XX. A percent sign that would read as such a byte becomes %25,
    so that two files never share a name; any other one ("50% off", "a%20b") stays as it is.
    """
    raw = os.fsencode(relative.as_posix() if isinstance(relative, PurePath) else relative)
    text = _LOOKS_ENCODED.sub(b"%25", raw).decode("utf-8", "surrogateescape")
    return "".join(_encode_character(character) for character in printable(text))


def printable(text: str) -> str:
    """Text that may hold a raw path, as UTF-8 can write it: bytes that are not UTF-8 become %XX, all else stays."""
    return _NOT_UTF8.sub(lambda match: f"%{ord(match[0]) - 0xDC00:02X}", text)


def told_paths(text: str) -> list[str]:
    """The paths that a stored text may mean: itself, and with its %XX read as bytes."""
    return list(dict.fromkeys((text, os.fsdecode(unquote_to_bytes(text)))))


def matches(video: str, globs: Collection[str]) -> bool:
    """Whether a relative path is like one of these globs; any is where there are none."""
    return not globs or any(fnmatchcase(video, glob) for glob in globs)


def _encode_character(character: str) -> str:
    code = ord(character)
    if code < 0x20 or 0x7F <= code < 0xA0:
        return "".join(f"%{byte:02X}" for byte in character.encode())
    return character


def _file_name(part: str) -> str:
    """One part of a path as a file name: cut to what fits with the longest suffix, the cut made unique by a hash."""
    if part in (".", ".."):
        return part.replace(".", "%2E")
    raw = part.encode()
    if len(raw) <= _LONGEST_STEM_BYTES:
        return part
    digits = hashlib.sha256(raw).hexdigest()[:_HASH_DIGITS]
    return raw[: _LONGEST_STEM_BYTES - _HASH_DIGITS - 1].decode("utf-8", "ignore") + "-" + digits


def _mirrored(relative: str) -> str:
    parts = [_file_name(part) for part in relative.split("/") if part]
    if not parts:
        raise ValueError("an empty relative path has no output file")
    return "/".join(parts)


@dataclass(frozen=True)
class OutputLayout:
    """The paths of one output folder.

    `video` and `camera` are relative paths as `encode_name` writes them.

    Attributes:
        out: the output folder.
    """

    out: Path

    def scores(self, video: str) -> Path:
        """The finished scores of a video."""
        return self._of("scores", video, ".parquet")

    def checkpoint(self, video: str) -> Path:
        """The unfinished scores of a video, also the claim on it; hidden, so that who reads all scores passes over it."""
        path = self._of("scores", video, CHECKPOINT_SUFFIX)
        return path.with_name(f".{path.name}")

    def events(self, video: str) -> Path:
        """The events document of a video."""
        return self._of("events", video, ".json")

    def mask_video(self, video: str) -> Path:
        """The masks of a video as a gray video."""
        return self._of("masks", video, ".mkv")

    def mask_rle(self, video: str) -> Path:
        """The masks of a video as run lengths."""
        return self._of("masks", video, ".parquet")

    def rendered(self, video: str) -> Path:
        """The rendered video."""
        return self._of("rendered", video, ".mp4")

    def camera(self, camera: str) -> Path:
        """A camera's model; the root camera "." is the file %2E.json."""
        return self._of("cameras", camera, ".json")

    def evaluation(self, dataset: str) -> Path:
        """The figures of the newest evaluation against a data set."""
        return self.out / "eval" / f"{_file_name(dataset)}.json"

    @property
    def runs(self) -> Path:
        """The folder of the runs' records."""
        return self.out / "runs"

    @property
    def run_json(self) -> Path:
        """A copy of the newest run's record."""
        return self.out / "run.json"

    @property
    def scratch(self) -> Path:
        """The folder of temporaries; gone when no process works here."""
        return self.out / ".tmp"

    def iter_scores(self) -> Iterator[Path]:
        """Every stored scores file, in the order of the names."""
        return _files_under(self.out / "scores", ".parquet")

    def iter_events(self) -> Iterator[Path]:
        """Every stored events document, in the order of the names."""
        return _files_under(self.out / "events", ".json")

    def iter_checkpoints(self) -> Iterator[Path]:
        """The checkpoint of every video that is running or was interrupted."""
        return _files_under(self.out / "scores", CHECKPOINT_SUFFIX)

    def iter_runs(self) -> Iterator[Path]:
        """Every run's record, oldest first."""
        return _files_under(self.runs, ".json")

    def _of(self, kind: str, relative: str, suffix: str) -> Path:
        return self.out / kind / (_mirrored(relative) + suffix)


def _files_under(folder: Path, suffix: str) -> Iterator[Path]:
    for base, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(base, name) for name in sorted(names) if name.endswith(suffix))
