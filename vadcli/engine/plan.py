"""Turns paths into work units: finds the videos, and the name, camera and shard of each video.

Folders are listed and file attributes are read, but no file is opened.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from vadcli.errors import UsageError
from vadcli.options import FindOptions, parse_duration
from vadcli.store import encode_name
from vadcli.types.text import NotText, decode_text, text_encoding

# Suffixes of containers that the probe accepts. Another file is a video only if --include or the command line names it.
VIDEO_SUFFIXES = frozenset(
    [
        ".3g2",
        ".3gp",
        ".asf",
        ".av1",
        ".avi",
        ".dav",
        ".dv",
        ".f4v",
        ".flv",
        ".gif",
        ".h264",
        ".h265",
        ".264",
        ".265",
        ".hevc",
        ".ivf",
        ".m1v",
        ".m2ts",
        ".m2v",
        ".m4v",
        ".mjpeg",
        ".mjpg",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpe",
        ".mpeg",
        ".mpg",
        ".mts",
        ".mxf",
        ".nut",
        ".obu",
        ".ogm",
        ".ogv",
        ".qt",
        ".rm",
        ".rmvb",
        ".ts",
        ".vob",
        ".webm",
        ".wmv",
        ".y4m",
    ]
)
IMAGE_SUFFIXES = frozenset([".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"])
MIN_FRAMES = 2


@dataclass(frozen=True)
class WorkUnit:
    """One video to scan.

    Attributes:
        video: relative path with `/`, the name under which every result is stored.
        path: path of the file or folder.
        camera: the camera's name.
        size: bytes; of all images for a folder of frames.
        mtime_ns: time of the last change; of the newest image for a folder of frames.
        is_frames: True for a folder of images.
    """

    video: str
    path: Path
    camera: str
    size: int
    mtime_ns: int
    is_frames: bool = False


@dataclass(frozen=True)
class Unusable:
    """A path that cannot be scanned, and why. `failed` is False if the path is only left out of this run."""

    video: str
    reason: str
    failed: bool = True


@dataclass(frozen=True)
class Plan:
    """All videos of the input, and the paths that cannot be scanned.

    Attributes:
        root: the folder that names are relative to.
        roots: the absolute paths given.
        units: every video, in order of camera and name.
        unusable: the paths that could not be read or are left out of this run.
    """

    root: Path
    roots: tuple[str, ...]
    units: tuple[WorkUnit, ...]
    unusable: tuple[Unusable, ...] = field(default=())

    def shard(self, part: int, parts: int) -> tuple[WorkUnit, ...]:
        """Return the units of shard `part` of `parts`, by a hash of the name: a new file never changes the shard of another."""
        return tuple(unit for unit in self.units if _bucket(unit.video, parts) == part - 1)


def _bucket(video: str, parts: int) -> int:
    return int.from_bytes(hashlib.sha256(video.encode()).digest()[:8], "big") % parts


def make_plan(
    paths: Sequence[Path], options: FindOptions, *, out: Path, camera_from: str = "folder", root: Path | None = None
) -> Plan:
    """Find every video below the paths.

    Args:
        paths: files and folders as given.
        options: what counts as a video.
        out: the output folder, which is never scanned.
        camera_from: `folder`, `file` or `all`.
        root: the folder that names are relative to; None means the common ancestor of the paths.

    Raises:
        UsageError: a path does not exist, or no path is given.
    """
    listed = read_list(options.files_from) if options.files_from else []
    if not paths and not listed and options.files_from is None:
        raise UsageError("no PATHS", hint="name files or folders, or --files-from FILE")
    for path in paths:
        if not os.path.lexists(path):
            raise UsageError(f"{path}: there is no such file or folder")
    walk = _Walk(options, Path(os.path.abspath(out)))
    given = [Path(os.path.abspath(path)) for path in [*paths, *listed]]
    for path in given:
        walk.add(path)
    roots = tuple(encode_name(path) for path in given[: len(paths)])
    return _finish(walk, root or _common_root(walk.bases), roots, camera_from, now_ns=time.time_ns())


def read_list(source: Path) -> list[Path]:
    """Return the paths of a list file or of stdin (`-`): one per line, or separated by NUL if there is a NUL.

    Raises:
        UsageError: the list can't be read.
    """
    try:
        data = sys.stdin.buffer.read() if str(source) == "-" else source.read_bytes()
        if text_encoding(data) != "utf-8":  # else paths need not be text
            data = os.fsencode(decode_text(data))
    except OSError as error:
        raise UsageError(f"{source}: the list can't be read: {error.strerror}") from error
    except (NotText, UnicodeEncodeError) as error:
        raise UsageError(f"{source}: the list can't be read: {error}") from error
    parts = data.split(b"\0") if b"\0" in data else data.splitlines()
    return [Path(os.fsdecode(part)) for part in parts if part.strip()]


@dataclass
class _Found:
    path: Path
    size: int
    mtime_ns: int
    is_frames: bool


class _Walk:
    """Collects videos and problems. It remembers real paths, so that nothing is scanned twice and loops of links end."""

    def __init__(self, options: FindOptions, out: Path) -> None:
        self.options = options
        self.out = out
        self.real_out = os.path.realpath(out)
        self.found: list[_Found] = []
        self.trouble: list[tuple[Path, str]] = []
        self.bases: list[Path] = []
        self._seen: set[str] = set()
        self._folders: set[str] = set()

    def add(self, path: Path) -> None:
        """Add a path that the user gave: a file, a folder of videos or a folder of images."""
        if path.is_dir():
            self.bases.append(path)
            if self._is_frame_folder(path):
                self.bases[-1] = path.parent
            self._folder(path, base=path)
        else:
            self.bases.append(path.parent)
            self._file(path)

    def _folder(self, folder: Path, base: Path) -> None:
        real = os.path.realpath(folder)
        if real in self._folders or real == self.real_out or _is_scan_output(folder):
            return
        self._folders.add(real)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            self.trouble.append((folder, f"the folder can't be read: {error.strerror}"))
            return
        if self.options.frames_as_video and self._take_frames(folder, entries, base):
            entries = [entry for entry in entries if not _is_numbered_image(entry.name)]
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = Path(entry.path)
            relative = path.relative_to(base).as_posix()
            if _matches(entry.name, relative, self.options.exclude):
                continue
            if _leads_to_folder(entry):
                if self.options.recursive and (self.options.follow_links or not entry.is_symlink()):
                    self._folder(path, base)
            elif self._wanted(entry.name, relative):
                self._file(path)

    def _wanted(self, name: str, relative: str) -> bool:
        if self.options.include:
            return _matches(name, relative, self.options.include)
        return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES

    def _file(self, path: Path) -> None:
        real = os.path.realpath(path)
        if real in self._seen:
            return
        self._seen.add(real)
        try:
            status = path.stat()
        except OSError as error:
            self.trouble.append((path, f"can't be read: {error.strerror}"))
            return
        if not stat.S_ISREG(status.st_mode):
            self.trouble.append((path, "is not a regular file"))
            return
        self.found.append(_Found(path, status.st_size, status.st_mtime_ns, is_frames=False))

    def _is_frame_folder(self, folder: Path) -> bool:
        if not self.options.frames_as_video:
            return False
        try:
            return sum(_is_numbered_image(name) for name in os.listdir(folder)) >= MIN_FRAMES
        except OSError:
            return False

    def _take_frames(self, folder: Path, entries: Iterable[os.DirEntry[str]], base: Path) -> bool:
        images = [entry for entry in entries if _is_numbered_image(entry.name) and entry.is_file()]
        if len(images) < MIN_FRAMES:
            return False
        relative = folder.relative_to(base).as_posix()
        if folder != base and self.options.include and not _matches(folder.name, relative, self.options.include):
            return True
        stats = [entry.stat() for entry in images]
        newest = max(*(status.st_mtime_ns for status in stats), folder.stat().st_mtime_ns)
        self._seen.add(os.path.realpath(folder))
        self.found.append(_Found(folder, sum(status.st_size for status in stats), newest, is_frames=True))
        return True


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    """True if a link leads to a folder. A link to itself gives False and is later reported as an unreadable file."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_scan_output(folder: Path) -> bool:
    """True if the folder is the output of any scan. Its mask videos and rendered videos are not footage."""
    return (folder / "run.json").is_file() and (folder / "scores").is_dir()


def _is_numbered_image(name: str) -> bool:
    stem, suffix = os.path.splitext(name)
    return suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".") and re.search(r"\d", stem) is not None


def _matches(name: str, relative: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) or fnmatchcase(relative, glob) for glob in globs)


def _common_root(bases: Sequence[Path]) -> Path:
    return Path(os.path.commonpath([str(base) for base in bases])) if bases else Path.cwd()


def _finish(walk: _Walk, root: Path, roots: tuple[str, ...], camera_from: str, *, now_ns: int) -> Plan:
    youngest_ns = now_ns - int(parse_duration(walk.options.min_age, "min_age") * 1e9)
    units: list[WorkUnit] = []
    unusable = [Unusable(video_name(path, root), reason) for path, reason in walk.trouble]
    names: dict[str, Path] = {}
    for found in walk.found:
        video = video_name(found.path, root)
        if video in names:
            unusable.append(Unusable(video, f"its results would have the same name as those of {names[video]}"))
            continue
        names[video] = found.path
        if found.mtime_ns > youngest_ns and walk.options.min_age not in ("0s", "0"):
            unusable.append(Unusable(video, f"changed less than {walk.options.min_age} ago (--min-age)", failed=False))
            continue
        camera = _camera(video, camera_from)
        units.append(WorkUnit(video, found.path, camera, found.size, found.mtime_ns, found.is_frames))
    return Plan(root, roots, tuple(sorted(units, key=_in_order)), tuple(sorted(unusable, key=lambda item: item.video)))


def _in_order(unit: WorkUnit) -> tuple[str, str]:
    return unit.camera, unit.video


def video_name(path: Path, root: Path) -> str:
    """Return the relative path under which a video's results are stored."""
    return encode_name(os.path.relpath(path, root))


def _camera(video: str, camera_from: str) -> str:
    if camera_from == "all":
        return "."
    if camera_from == "file":
        return video
    return video.rpartition("/")[0] or "."


def by_camera(units: Iterable[WorkUnit]) -> Iterator[tuple[str, list[WorkUnit]]]:
    """Group units by camera; they must be in plan order."""
    group: list[WorkUnit] = []
    for unit in units:
        if group and group[0].camera != unit.camera:
            yield group[0].camera, group
            group = []
        group.append(unit)
    if group:
        yield group[0].camera, group
