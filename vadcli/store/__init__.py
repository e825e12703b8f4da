"""The files that vadcli stores in an output folder.

This module knows only the names and paths of these files, and opens no file. The other modules:

- atomic: locks files, and writes a file completely or not at all
- checkpoint: the raw scores of a running video
- scores: the scores of a finished video, and one vector per sampled frame, as Parquet
- events: the events document of a video; finds the video and the times of its events
- verification: the answers of a second model about clips of a video, and the record of `vadcli verify`
- masks: the masks of a video, as a gray video or as run lengths
- choices: hidden regions, reviews of events, what `vadcli events --write` stores, and the events that scans have reported
- run_log: counts how far a run has come; writes and reads run records
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import unquote_to_bytes

from vadcli.errors import UsageError
from vadcli.store.atomic import writing
from vadcli.types.text import is_remote, no_folder, shown

CHECKPOINT_SUFFIX = ".parquet.part"
_LONGEST_NAME_BYTES = 255
_LONGEST_STEM_BYTES = _LONGEST_NAME_BYTES - len(f".{CHECKPOINT_SUFFIX}")
_HASH_DIGITS = 8
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_CONTROL = re.compile("[\0-\x1f\x7f-\x9f]")
_LOOKS_ENCODED = re.compile(rb"%(?=25|2E|0[0-9A-F]|1[0-9A-F]|7F|[89A-F][0-9A-F])")
# Readers of Parquet data sets skip files and folders whose names begin with `_` or `.`. A folder called `video=1` is a column
# for such a reader. So the names of files in OUT have codes (%5F, %2E, %3D) in place of these characters. If the name of a
# video already contains such a code, its percent sign becomes %25. So two videos never get the same file.
_PASSED_OVER = re.compile("^[_.]|=")
_LOOKS_PASSED_OVER = re.compile("^%(?=5F)|%(?=3D)")
# If the path of a video has none of these characters, its files have the same path as the video, in every version of vadcli.
# Most paths have none, so this quick test saves minutes in an archive of a million videos.
_UNUSUAL = re.compile("(?:^|/)[_./]|/$|[=%]")


def encode_name(relative: str | bytes | PurePath) -> str:
    """Return a relative path as it is stored and shown: UTF-8, `/` separators, no control characters.

    Control characters and bytes that are not UTF-8 become codes %XX. If the path already contains a code that this function
    could have made, such as %0A, the percent sign of the code becomes %25. So two files never get the same name. Other percent
    signs are kept, as in "50% off" and "a%20b" (%20 is a space, not a control character).
    """
    raw = os.fsencode(relative.as_posix() if isinstance(relative, PurePath) else relative)
    text = _LOOKS_ENCODED.sub(b"%25", raw).decode("utf-8", "surrogateescape")
    return _CONTROL.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), printable(text))


def printable(text: str) -> str:
    """Return the text as valid UTF-8: bytes of a path that are not UTF-8 become %XX."""
    return _NOT_UTF8.sub(lambda match: f"%{ord(match[0]) - 0xDC00:02X}", text)


def json_text(document: Any) -> str:
    """Return a document as indented JSON for people; raise ValueError if a number is not finite."""
    return printable(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)) + "\n"


def possible_paths(text: str) -> list[str]:
    """Return the paths that a stored path may mean: the path itself, and the path with %XX decoded."""
    return list(dict.fromkeys((text, os.fsdecode(unquote_to_bytes(text)))))


def matches(video: str, globs: Collection[str]) -> bool:
    """True if a relative path matches one of these globs, or if there are no globs."""
    return not globs or any(fnmatchcase(video, glob) for glob in globs)


def _file_name(part: str) -> str:
    """Return a part of a path as a file name without special meaning for readers of Parquet data sets."""
    if part in (".", ".."):
        return part.replace(".", "%2E")
    escaped = _LOOKS_PASSED_OVER.sub("%25", part)
    return _cut(_PASSED_OVER.sub(lambda match: f"%{ord(match[0]):02X}", escaped), whole=part)


def _old_file_name(part: str) -> str:
    """Return the file name that earlier versions gave to one part of a path."""
    return part.replace(".", "%2E") if part in (".", "..") else _cut(part, whole=part)


def _cut(name: str, *, whole: str) -> str:
    """Return the file name; a name that is too long is cut, and a hash of `whole` keeps it unique."""
    raw = name.encode()
    if len(raw) <= _LONGEST_STEM_BYTES:
        return name
    digits = hashlib.sha256(whole.encode()).hexdigest()[:_HASH_DIGITS]
    return raw[: _LONGEST_STEM_BYTES - _HASH_DIGITS - 1].decode("utf-8", "ignore") + "-" + digits


def _is_plain(relative: str) -> bool:
    """True if every version of vadcli uses exactly this path as the name of the video's files."""
    return not _UNUSUAL.search(relative) and 0 < 4 * len(relative) <= _LONGEST_STEM_BYTES


@lru_cache(maxsize=4096)  # making a path is slow, and a scan uses the same paths often
def _path(
    out: Path,
    kind: str,
    relative: str,
    suffix: str,
    *,
    hidden: bool = False,
    name: Callable[[str], str] = _file_name,
) -> Path:
    if not _is_plain(relative):
        relative = "/".join(name(part) for part in relative.split("/") if part)
    if not relative:
        raise ValueError("an empty relative path has no output file")
    path = Path(f"{out}/{kind}/{relative}{suffix}")
    return path.with_name(f".{path.name}") if hidden else path


@dataclass(frozen=True)
class OutputLayout:
    """The paths of one output folder.

    The arguments `video` and `camera` of the methods are relative paths as `encode_name` returns them. Earlier versions gave
    some files other names. If only the file with the earlier name exists, a method returns the path of that file.

    Attributes:
        out: the output folder.
    """

    out: Path

    def __post_init__(self) -> None:
        if is_remote(self.out):
            raise UsageError(f"{shown(self.out)}: results can't be in an object store", hint="give a folder on this machine")

    def scores(self, video: str) -> Path:
        """Return the path of the scores of a finished video."""
        return self._of("scores", video, ".parquet")

    def checkpoint(self, video: str) -> Path:
        """Return the path of the checkpoint of a video. A process that works on the video locks this file."""
        # The file is hidden, so that programs that read all scores skip it.
        return self._of("scores", video, CHECKPOINT_SUFFIX, hidden=True)

    def embeddings(self, video: str) -> Path:
        """Return the path of the file with a video's vectors, one vector per sampled frame."""
        return self._of("embeddings", video, ".parquet")

    def answers(self, video: str) -> Path:
        """Return the path of the file with a second model's answers about clips of a video."""
        return self._of("verify", video, ".parquet")

    def events(self, video: str) -> Path:
        """Return the path of the events document of a video."""
        return self._of("events", video, ".json")

    def mask_video(self, video: str) -> Path:
        """Return the path of the gray video that stores a video's masks."""
        return self._of("masks", video, ".mkv")

    def mask_rle(self, video: str) -> Path:
        """Return the path of the file that stores a video's masks as run lengths."""
        return self._of("masks", video, ".parquet")

    def rendered(self, video: str) -> Path:
        """Return the path of the rendered video."""
        return self._of("rendered", video, ".mp4")

    def camera(self, camera: str) -> Path:
        """Return the path of the camera model of a camera.

        The camera "." has the videos directly in the scanned folder; its file is %2E.json.
        """
        return self._of("cameras", camera, ".json")

    def evaluation(self, dataset: str) -> Path:
        """Return the path of the file with the results of the newest evaluation on a data set."""
        return self.out / "eval" / f"{_file_name(dataset)}.json"

    @property
    def has_results(self) -> bool:
        """True if the folder has a run record or the events of a video, so that a scan has written into it."""
        return any(next(files, None) for files in (self.iter_runs(), self.iter_events())) or os.path.isfile(self.run_json)

    @property
    def runs(self) -> Path:
        """The folder of the run records."""
        return self.out / "runs"

    @property
    def run_json(self) -> Path:
        """A copy of the newest run record."""
        return self.out / "run.json"

    @property
    def verification(self) -> Path:
        """The record of the newest run of `vadcli verify`."""
        return self.out / "verify.json"

    @property
    def choices(self) -> Path:
        """The thresholds and the review that `vadcli events --write` has stored."""
        return self.out / "choices.json"

    @property
    def reported(self) -> Path:
        """The list of the events that scans have reported."""
        return self.out / "reported.jsonl"

    @property
    def scratch(self) -> Path:
        """The folder of temporary files.

        It is removed when the last process that works in the output folder ends.
        """
        return self.out / ".tmp"

    def iter_scores(self) -> Iterator[Path]:
        """Yield every scores file, in the order of the names."""
        return files_under(self.out / "scores", ".parquet")

    def iter_events(self) -> Iterator[Path]:
        """Yield every events document, in the order of the names."""
        return files_under(self.out / "events", ".json")

    def iter_embeddings(self) -> Iterator[Path]:
        """Yield every embeddings file, in the order of the names."""
        return files_under(self.out / "embeddings", ".parquet")

    def iter_answers(self) -> Iterator[Path]:
        """Yield every file of answers, in the order of the names."""
        return files_under(self.out / "verify", ".parquet")

    def iter_checkpoints(self) -> Iterator[Path]:
        """Yield the checkpoint of every video that is running or was interrupted."""
        return files_under(self.out / "scores", CHECKPOINT_SUFFIX)

    def iter_runs(self) -> Iterator[Path]:
        """Yield every run record, oldest first."""
        return files_under(self.runs, ".json")

    def rename_old_files(self, videos: Iterable[str], cameras: Iterable[str]) -> None:
        """Rename the files of these videos and cameras to the names that this version gives to them.

        A file needs a new name if the earlier version that wrote it used another name.

        Several scans may call this method at the same time.

        Raises:
            OutputError: a file can't be renamed.
        """
        kinds = [("masks", ".mkv"), ("masks", ".parquet"), ("rendered", ".mp4"), ("embeddings", ".parquet")]
        kinds += [
            ("events", ".json"),
            ("scores", ".parquet"),
        ]  # scores are last: if the scores have the new name, all files of the video have it
        named = [(kind, video, suffix) for video in videos if not _is_plain(video) for kind, suffix in kinds]
        named += [("cameras", camera, ".json") for camera in cameras if not _is_plain(camera)]
        for kind, relative, suffix in named:
            path = _path(self.out, kind, relative, suffix)
            old = self._of(kind, relative, suffix)
            if old != path:
                with writing(path), suppress(FileNotFoundError):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    old.rename(path)
                with suppress(OSError):  # other files are in the folder
                    old.parent.rmdir()

    def _of(self, kind: str, relative: str, suffix: str, *, hidden: bool = False) -> Path:
        path = _path(self.out, kind, relative, suffix, hidden=hidden)
        if _is_plain(relative):
            return path
        if any(_LOOKS_PASSED_OVER.search(part) for part in relative.split("/")):
            return path  # the old path is now the path of another video, so a file there belongs to that video
        old = _path(self.out, kind, relative, suffix, hidden=hidden, name=_old_file_name)
        return old if old != path and os.path.lexists(old) and not os.path.lexists(path) else path


def files_under(folder: Path, suffix: str | tuple[str, ...]) -> Iterator[Path]:
    """Yield all files below `folder` with this suffix, in the order of their names.

    Only one folder is in memory at a time.
    """
    for base, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(base, name) for name in sorted(names) if name.endswith(suffix))


_EVENT_CLIP = re.compile(r"(.+)\.event-\d+")


def event_clip(rendered: Path, event_id: int) -> Path:
    """Return the path of the rendered file of one event, next to `rendered`, the file of the whole video."""
    return rendered.with_name(f"{rendered.stem}.event-{event_id:03d}.mp4")


def rendered_video(path: Path) -> Path:
    """Return the rendered file of the whole video; `path` is this file, or the rendered file of one event."""
    match = _EVENT_CLIP.fullmatch(path.stem)
    return path.with_stem(match[1]) if match else path


def event_clips(rendered: Path) -> list[Path]:
    """Return the rendered files of the events of one video, in the order of the names.

    Raises:
        OSError: the folder can't be read.
    """
    clips = (path for path in rendered.parent.iterdir() if path.suffix == ".mp4" and path != rendered)
    return sorted(path for path in clips if rendered_video(path) == rendered)


def stored_layout(out: Path, *, hint: str = "name the output folder of a scan") -> OutputLayout:
    """Return the layout of a scan's output folder; raise UsageError if the folder has no results."""
    layout = OutputLayout(out)
    if not out.is_dir():
        raise UsageError(f"{out}: {no_folder(out)}", hint=hint)
    if not layout.has_results:
        raise UsageError(f"{out}: contains no results of a scan", hint=hint)
    return layout
