"""Finds the videos below the paths of the user, and gives each video a name, a camera and a shard.

Folders are listed and file attributes are read, but no video is opened.

The root is the folder that the names of videos and cameras are relative to. The first scan into OUT chooses the root, and every
run record stores it. Later scans use the same root for all paths, so a video or a camera never changes its name.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import groupby, tee
from operator import attrgetter
from pathlib import Path

from vadcli.errors import UsageError
from vadcli.options import FindOptions, parse_duration
from vadcli.store import encode_name
from vadcli.types.text import NotText, decode_text, is_remote, may_exist, no_folder, shown, text_encoding
from vadcli.video.objects import list_objects

MIN_FRAMES = 2
"""A folder is a video if it has at least this many numbered images."""
# Suffixes without the dot. The first line has MP4 and QuickTime, and their variants from phones, action cameras and drones.
_VIDEO = (
    "mp4 m4v mp4v mpg4 mov qt 3gp 3gpp 3gp2 3gpp2 3g2 k3g skm f4v ismv cmfv psp mj2 mjp2 insv lrv lrf 360 "
    "mkv mk3d webm avi divx xvid amv asf wmv wm flv ogv ogm ogx rm rmvb rv "
    # MPEG: transport streams, program streams, discs, camcorders
    "ts m2t m2ts mts m2s mpegts ssif tp trp rec tod mpg mpeg mpe mpg2 mpeg1 mpeg2 mpeg4 m2p vob vro evo mod mpv mpv2 mp2v m1v "
    "m2v "
    # TV recorders, broadcast, security cameras, DV
    "wtv dvr-ms ty pva nuv nsv mxf gxf lxf nut dav ifv dv dif "
    # streams without a container, and animated images
    "h261 h263 h264 264 h26l 26l avc h265 265 hevc h266 266 vvc evc av1 obu ivf vc1 rcv drc cavs avs2 avs3 mjpeg mjpg y4m gif "
    "apng"
)
# Images, sound, texts, subtitles, playlists, indexes, data, programs and archives. WebP is not here: it can be a video.
_NO_VIDEO = (
    "bmp jpeg jpg pgm png ppm tif tiff heic heif avif ico svg thm mp3 aac m4a m4b wav flac opus oga wma ac3 eac3 dts mka aif "
    "aiff amr mp2 srt vtt ass ssa sub idx lrc nfo m3u m3u8 mpd pls sdp ffconcat txt log md pdf csv tsv json jsonl xml html htm "
    "yaml yml toml ini cfg conf url lnk gpx kml md5 sha1 sha256 sfv db sqlite sqlite3 parquet npy npz mat py pyc sh bat ps1 js "
    "css exe dll so zip tar gz bz2 xz 7z rar tmp part crdownload lock pid swp bak"
)
VIDEO_SUFFIXES = frozenset(f".{name}" for name in _VIDEO.split())
"""Suffixes of files that are scanned. A file with another suffix is scanned only if --include or PATHS name it."""
IMAGE_SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
"""Suffixes of the images of a video that is a folder of numbered images."""
NO_VIDEO_SUFFIXES = frozenset(f".{name}" for name in _NO_VIDEO.split())
"""Suffixes of files that nobody expects to be scanned. These files are left out without a message."""
MOST_SUFFIXES_NAMED = 5
"""The note about files with unknown suffixes names this many suffixes."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # one slash only, because pathlib has removed the second slash
NO_URL = "this is a URL, and streams are not read"


@dataclass(frozen=True, slots=True)  # slots, because there may be a million units
class WorkUnit:
    """One video to scan."""

    video: str  # the name under which every result is stored: a path relative to the root, with `/`
    path: Path
    camera: str
    size: int  # in bytes; for a folder of images, the size of all images together
    mtime_ns: int  # time of the last change; for a folder of images, the newest time of the folder and its images
    is_frames: bool = False  # True for a folder of images
    content: str = ""  # for an object in a store, a hash that changes when the object changes; "" for a video on this machine


@dataclass(frozen=True)
class Unusable:
    """A path that is not scanned."""

    video: str  # the name of the video or folder, or the whole path if it is not below the root
    reason: str  # why the path is not scanned, for the user
    failed: bool = True  # False if a later run may scan the video; True if the path can't be scanned


@dataclass(frozen=True)
class Plan:
    """All videos of the input, and the paths that are not scanned."""

    root: Path  # the folder that names are relative to
    roots: tuple[str, ...]  # the absolute paths that the user gave
    units: tuple[WorkUnit, ...]  # every video, in order of camera and name
    unusable: tuple[Unusable, ...] = ()  # the paths that can't be scanned or are left out of this run
    # Number of files per unknown suffix; "" means files without a suffix. These files are not scanned.
    passed_over: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # lines that the user should read

    def shard(self, part: int, parts: int) -> tuple[WorkUnit, ...]:
        """Return the units of shard `part` of `parts`. The shard of a video depends only on its name."""
        if parts == 1:
            return self.units
        names = ((unit, hashlib.sha256(unit.video.encode()).digest()) for unit in self.units)
        return tuple(unit for unit, name in names if int.from_bytes(name[:8], "big") % parts == part - 1)


def make_plan(
    paths: Sequence[Path],
    options: FindOptions,
    *,
    out: Path,
    camera_from: str = "folder",
    root: Path | None = None,
    stored: Iterable[Path] = (),
) -> Plan:
    """Find every video below the paths.

    Args:
        paths: the files and folders that the user gave.
        options: which files and folders count as videos.
        out: the output folder, which is never scanned.
        camera_from: how videos are grouped into cameras: by `folder`, by `file`, or `all` in one camera.
        root: the user's --root. Without --root, a stored root is used. If no root is stored, the root becomes the folder that
            contains all paths.
        stored: the roots in the run records of the output folder, the newest first.

    Raises:
        UsageError: a path does not exist or is not below the root, or no path is given.
    """
    listed = read_list(options.files_from) if options.files_from else []
    if not paths and not listed and options.files_from is None:
        raise UsageError("no PATHS are given", hint="name files or folders, or give --files-from FILE")
    for path in paths:
        check_exists(path)
    walk = _Walk(options, Path(os.path.abspath(out)))
    everything = Path(os.path.abspath(os.sep))
    given = absolute([*paths, *listed])
    if everything in given[len(paths) :]:  # "/" in a list is probably a mistake, for example one half of a broken line
        walk.trouble.append((everything, "is the whole file system, which is never scanned because of a list"))
        given = [path for place, path in enumerate(given) if place < len(paths) or path != everything]
    roots = tuple(encode_name(shown(path)) for path in given[: len(paths)])
    chosen, given = choose_root(given, asked=root, stored=stored, out=out)
    for place, path in enumerate(given):
        walk.add(path, listed=place >= len(paths))
    common = Path(os.path.commonpath([str(base) for base in walk.bases])) if walk.bases else Path.cwd()
    plan = _finish(walk, chosen or common, roots, camera_from, now_ns=time.time_ns())
    if chosen is not None or not plan.units:
        return plan
    return replace(plan, notes=(f"names of videos and cameras are relative to {shown(plan.root)} (--root)", *plan.notes))


@dataclass(slots=True)
class _Found:
    """A video that has no name yet. The fields are as in `WorkUnit`."""

    path: Path
    size: int
    mtime_ns: int
    is_frames: bool
    content: str = ""


class _Walk:
    """Collects videos, and the problems with paths.

    Links may lead to the same video or folder twice, so the walk remembers real paths.
    """

    def __init__(self, options: FindOptions, out: Path) -> None:
        self.options = options
        self.real_out = os.path.realpath(out)
        self.found: list[_Found] = []
        self.trouble: list[tuple[Path, str]] = []  # paths that can't be scanned, and why
        self.bases: list[Path] = []  # a folder for each given path; without --root, the root is the folder that contains them
        self.passed_over: Counter[str] = Counter()  # number of files per unknown suffix
        self._seen: set[str] = set()  # the real paths of all videos, and the paths of objects in a store
        self._folders: set[str] = set()  # the real paths of the folders that were listed

    def add(self, path: Path, *, listed: bool = False) -> None:
        """Add a path that the user gave: a file, a folder, or a path in an object store.

        If a path in a store can't be read, this is an error. But if the path was `listed` in a file, the path is only left out.
        """
        if is_remote(path):
            try:
                self._objects(path)
            except UsageError as error:
                if not listed:
                    raise
                self.trouble.append((path, str(error)))
            return
        if not os.path.isdir(path):
            if self._file(path):
                self.bases.append(path.parent)
            return
        base = path
        if self.options.frames_as_video:
            with suppress(OSError):  # `_entries` reports that the folder can't be read
                if sum(_is_numbered_image(name) for name in os.listdir(path)) >= MIN_FRAMES:
                    base = path.parent
        self.bases.append(base)
        self._folder(path)

    def _folder(self, base: Path) -> None:
        """Add the videos below a folder.

        This function does not call itself: a tree may be too deep for Python's stack.
        """
        opened = [(os.path.realpath(base), self._entries(base, base))]
        above = f"{str(base).rstrip(os.sep)}{os.sep}"
        while opened:
            real, entries = opened[-1]
            entry = next(entries, None)
            if entry is None:
                opened.pop()
                continue
            relative = entry.path.removeprefix(above).replace(os.sep, "/")
            if entry.name.startswith(".") or _matches(entry.name, relative, self.options.exclude):
                continue
            is_folder = False  # for a link to itself, `is_dir` raises OSError; `_file` reports that the link can't be read
            with suppress(OSError):
                is_folder = entry.is_dir()
            if is_folder:
                if self.options.recursive and (self.options.follow_links or not entry.is_symlink()):
                    folder = Path(entry.path)
                    opened.append((os.path.realpath(folder), self._entries(folder, base)))
            elif self._wanted(entry.name, relative):
                # The real path of the folder plus the file's name is the file's real path. Resolving every path is too slow.
                self._file(Path(entry.path), real=None if entry.is_symlink() else os.path.join(real, entry.name))

    def _entries(self, folder: Path, base: Path) -> Iterator[os.DirEntry[str]]:
        """Return the entries of a folder. If the folder was visited before, return nothing.

        A folder with numbered images is added to the videos of the walk, and its images are not returned.
        """
        real = os.path.realpath(folder)
        # Mask videos and rendered videos in the output folder of another scan are not footage.
        is_output = os.path.isfile(folder / "run.json") and os.path.isdir(folder / "scores")
        if real in self._folders or real == self.real_out or is_output:
            return iter(())
        self._folders.add(real)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            os.stat(os.path.join(folder, os.curdir))  # fails if the files can be listed but not opened
            if self.options.frames_as_video and self._take_frames(folder, entries, base):
                entries = [entry for entry in entries if not _is_numbered_image(entry.name)]
        except OSError as error:
            self.trouble.append((folder, f"the folder can't be read: {error.strerror}"))
            return iter(())
        return iter(entries)

    def _objects(self, path: Path) -> None:
        """Add the videos at a path in an object store: one object, or all objects below a folder."""
        objects, is_one = list_objects(path)
        self.bases.append(path.parent if is_one else path)
        for name, item in objects.items():
            folders = name.split("/")[:-1]
            hidden = any(part.startswith(".") for part in name.split("/")) or (folders and not self.options.recursive)
            above = ("/".join(folders[: end + 1]) for end in range(len(folders)))
            excluded = any(_matches(part.rpartition("/")[2], part, self.options.exclude) for part in (*above, name))
            if not is_one and (hidden or excluded or not self._wanted(item.path.name, name)):
                continue
            if not is_one and (str(item.path) != f"{path}/{name}" or ".." in folders):
                why = f"the object is called {name!r}: names with an empty part, `.` or `..` can't be read"
                self.trouble.append((item.path, why))
            elif str(item.path) not in self._seen:
                self._seen.add(str(item.path))
                self.found.append(_Found(item.path, item.size, item.mtime_ns, is_frames=False, content=item.content))

    def _wanted(self, name: str, relative: str) -> bool:
        if self.options.include:
            return _matches(name, relative, self.options.include)
        suffix = os.path.splitext(name)[1].lower()
        if suffix not in VIDEO_SUFFIXES and suffix not in NO_VIDEO_SUFFIXES:
            self.passed_over[suffix] += 1
        return suffix in VIDEO_SUFFIXES

    def _file(self, path: Path, *, real: str | None = None) -> bool:
        """Add a file as a video. Return False if the file does not exist.

        `real` is the file's path after links are resolved, if the caller knows this path.
        """
        real = real or os.path.realpath(path)
        if real in self._seen:
            return True
        self._seen.add(real)
        try:
            status = path.stat()
        except OSError as error:
            self.trouble.append((path, why_unreadable(path, error)))
            return not isinstance(error, FileNotFoundError)
        if not stat.S_ISREG(status.st_mode):
            self.trouble.append((path, "is not a regular file"))
            return True
        self.found.append(_Found(path, status.st_size, status.st_mtime_ns, is_frames=False))
        return True

    def _take_frames(self, folder: Path, entries: Iterable[os.DirEntry[str]], base: Path) -> bool:
        """Add a folder of numbered images as a video, unless --include leaves it out.

        Return True if the folder has numbered images, even if it was left out.
        """
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


def _is_numbered_image(name: str) -> bool:
    stem, suffix = os.path.splitext(name)
    return suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".") and re.search(r"\d", stem) is not None


def _matches(name: str, relative: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) or fnmatchcase(relative, glob) for glob in globs)


def no_video_text(plan: Plan, options: FindOptions) -> str:
    """Return the message for a plan without videos."""
    places = ["below " + ", ".join(plan.roots)] if plan.roots else []
    places += [f"in {list_name(options.files_from)}"] if options.files_from else []
    return "; ".join([f"no video {' or '.join(places)}", *filter(None, [passed_over_text(plan.passed_over)])])


def _finish(walk: _Walk, root: Path, roots: tuple[str, ...], camera_from: str, *, now_ns: int) -> Plan:
    """Return the plan for the usable videos that a walk has found, with their names and cameras."""
    age_ns = int(parse_duration(walk.options.min_age, "min_age") * 1e9)
    units: list[WorkUnit] = []
    unusable = [Unusable(_as_url(path) or _name_or_path(path, root), reason) for path, reason in walk.trouble]
    names: dict[str, Path] = {}
    future: list[str] = []  # videos with a date in the future
    for found in walk.found:
        video = _name_or_path(found.path, root)
        if found.path == root:
            unusable.append(Unusable(video, "is the root of all names (give a folder above it with --root)"))
            continue
        if video in names:
            unusable.append(Unusable(video, f"its results would have the same name as the results of {names[video]}"))
            continue
        names[video] = found.path
        if abs(now_ns - found.mtime_ns) < age_ns:
            unusable.append(Unusable(video, f"changed less than {walk.options.min_age} ago (--min-age)", failed=False))
            continue
        if age_ns and found.mtime_ns > now_ns:
            future.append(video)
        camera = {"all": ".", "file": video}.get(camera_from) or video.rpartition("/")[0] or "."  # "folder" by default
        units.append(WorkUnit(video, found.path, camera, found.size, found.mtime_ns, found.is_frames, found.content))
    notes = [passed_over_text(walk.passed_over)] if walk.passed_over else []
    if future:
        some = f"{future[0]} is" if len(future) == 1 else f"{len(future)} videos are"
        first = "" if len(future) == 1 else f" (the first is {future[0]})"
        notes.append(f"{some} dated in the future{first}, so --min-age can't tell how old the recording is; scanned anyway")
    return Plan(
        root,
        roots,
        tuple(sorted(units, key=attrgetter("camera", "video"))),
        tuple(sorted(unusable, key=attrgetter("video"))),
        dict(walk.passed_over),
        tuple(notes),
    )


def _name_or_path(path: Path, root: Path) -> str:
    """Return a path relative to the root, or the whole path if it is not below the root."""
    text, base = str(path), f"{str(root).rstrip('/')}/"
    return encode_name(text.removeprefix(base))


def by_camera(units: Iterable[WorkUnit]) -> Iterator[tuple[str, list[WorkUnit]]]:
    """Yield each camera with its units. The units must be in the order of a plan."""
    for camera, group in groupby(units, attrgetter("camera")):
        yield camera, list(group)


class OutsideRoot(UsageError):
    """A path is not below the root of the output folder."""


def absolute(paths: Iterable[Path]) -> list[Path]:
    """Return absolute paths. Paths in an object store are returned without a change.

    Raises:
        UsageError: some paths are on this machine, and others are in an object store.
    """
    absolute_paths = [path if is_remote(path) else Path(os.path.abspath(path)) for path in paths]
    remote = [path for path in absolute_paths if is_remote(path)]
    if remote and len(remote) < len(absolute_paths):
        raise UsageError(
            f"{shown(remote[0])}: in an object store, but other footage is on this machine",
            hint="scan them in two runs, each with its own --out",
        )
    return absolute_paths


def check_exists(path: Path) -> None:
    """Raise UsageError if a path does not exist. Paths in an object store are not checked here.

    If a path exists but can't be read, no error is raised, because the plan reports such paths.
    """
    if is_remote(path):
        return
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        if url := _as_url(path):
            raise UsageError(f"{url}: {NO_URL}", hint=_instead_of(url)) from error
        hint = "options must stand before --" if re.match("-.", str(path)) else ""
        raise UsageError(f"{path}: the file or folder does not exist", hint=hint) from error
    except OSError:
        return


def why_unreadable(path: Path, error: OSError) -> str:
    """Return why a path can't be read, as a text for the user."""
    if isinstance(error, FileNotFoundError) and (url := _as_url(path)):
        return f"{NO_URL} ({_instead_of(url)})"
    return f"can't be read: {error.strerror}"


def _as_url(path: Path) -> str:
    """Return the URL that the user gave as this path; "" if the path exists or can be scanned, or does not look like a URL."""
    text = str(path).removeprefix(f"{os.getcwd()}/")
    if not _URL.match(text) or may_exist(path):
        return ""
    return _URL.sub(r"\1:///" if text.startswith("file:") else r"\1://", text, count=1)


def _instead_of(url: str) -> str:
    if url.startswith("file:"):
        return "give the path without file://"
    return "record the stream into files, and scan their folder"


def read_list(source: Path) -> list[Path]:
    """Return the paths in a list. `source` is the list's file, or `-` for stdin.

    The list has one path per line, or NUL bytes between the paths.

    Raises:
        UsageError: the list can't be read.
    """
    try:
        data = sys.stdin.buffer.read() if str(source) == "-" else source.read_bytes()
        if text_encoding(data) != "utf-8":  # UTF-8 is not decoded, because the bytes of a path may be invalid UTF-8
            data = os.fsencode(decode_text(data))
    except OSError as error:
        raise UsageError(f"{list_name(source)} can't be read: {error.strerror}") from error
    except (NotText, UnicodeEncodeError) as error:
        raise UsageError(f"{list_name(source)} can't be read: {error}") from error
    parts = data.split(b"\0") if b"\0" in data else data.splitlines()
    return [Path(os.fsdecode(part)) for part in parts if part.strip()]


def list_name(source: Path) -> str:
    """Return the name that messages use for a list of files."""
    return "the list on stdin" if str(source) == "-" else f"the list {source}"


def passed_over_text(counts: Mapping[str, int]) -> str:
    """Return a note about files with unknown suffixes; "" if there are none.

    `counts` has the number of files per suffix; the key "" is for files without a suffix.
    """
    if not counts:
        return ""
    total = sum(counts.values())
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{suffix or 'none'} {count}" for suffix, count in ordered[:MOST_SUFFIXES_NAMED]]
    more = [f"{len(ordered) - MOST_SUFFIXES_NAMED} more"] if len(ordered) > MOST_SUFFIXES_NAMED else []
    files = "1 file with an unknown suffix was" if total == 1 else f"{total} files with unknown suffixes were"
    return f"{files} passed over ({', '.join([*named, *more])}; --include to add them)"


def choose_root(
    given: Sequence[Path], *, asked: Path | None, stored: Iterable[Path], out: Path
) -> tuple[Path | None, list[Path]]:
    """Return the root, and the given paths as paths below the root.

    The root is None if no root is stored and --root is not given. In this case, the paths are returned without a change.

    Args:
        given: absolute paths of files and folders.
        asked: the user's --root; None if --root is not given.
        stored: the roots in the run records of the output folder, the newest first.
        out: the output folder, for messages.

    Raises:
        UsageError: another root is stored, or a path is not below --root.
        OutsideRoot: a path is not below a stored root.
    """
    if asked is not None:
        root = _as_stored(absolute([asked])[0], stored, out)
        below, outside = _below_root(given, root)
        if outside is not None:
            raise UsageError(f"{shown(outside)}: not below --root {shown(asked)}", hint="name a folder that contains all PATHS")
        return root, below
    newest: tuple[Path, Path] | None = None  # the newest root, and the first path that is not below it
    for root in stored:
        below, outside = _below_root(given, root)
        if outside is None:
            return root, below
        newest = newest or (root, outside)
    if newest is None:
        return None, list(given)
    root, path = newest
    message = f"{shown(path)}: not below {shown(root)}, to which the names in {out} are relative"
    if is_remote(path) or is_remote(root):
        raise OutsideRoot(message, hint="give another --out")
    if not os.path.isdir(root):
        raise OutsideRoot(message, hint=f"if the footage has moved, give the folder that replaces {root} with --root")
    both = os.path.commonpath([path, root])
    raise OutsideRoot(message, hint=f"give another --out, or scan both folders into a new --out with --root {both}")


def _as_stored(asked: Path, stored: Iterable[Path], out: Path) -> Path:
    """Return the root that this scan uses if the user gives --root.

    If one of the stored roots is the same folder as --root, return the stored root, which may be written in another way. If no
    root is stored, or no stored root exists any more (the footage has moved), return --root.

    Raises:
        UsageError: --root does not exist. Or --root is none of the stored roots, and at least one of them still exists.
    """
    if not (is_remote(asked) or os.path.isdir(asked)):
        raise UsageError(f"--root {asked}: {no_folder(asked)}")
    roots, again = tee(stored)
    for root in roots:
        if root == asked or os.path.realpath(root) == os.path.realpath(asked):
            return root
    existing = next((root for root in again if is_remote(root) or os.path.isdir(root)), None)
    if existing is not None:
        raise UsageError(
            f"--root {asked}: the names in {out} are relative to another root, {shown(existing)}",
            hint="omit --root, or give another --out",
        )
    return asked


def _below_root(given: Sequence[Path], root: Path) -> tuple[list[Path], Path | None]:
    """Return the paths as paths below the root, and the first path that is not below the root.

    The second value is None if there is no such path. A path that is below the root only after links are resolved counts as
    below the root, too.
    """
    below: list[Path] = []
    for path in given:
        if path.is_relative_to(root):
            below.append(path)
            continue
        if is_remote(path) or is_remote(root):
            return below, path
        real, real_root = Path(os.path.realpath(path)), Path(os.path.realpath(root))
        if not real.is_relative_to(real_root):
            return below, path
        below.append(root / real.relative_to(real_root))
    return below, None
