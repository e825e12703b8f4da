"""The paths of the user: checks them, reads lists of them, knows suffixes, and chooses the root.

The root is the folder that the names of videos and cameras are relative to. The first scan into OUT chooses it, and every run
record stores it. Later scans use the same root, whatever paths they are given, so a video or a camera never changes its name.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import tee
from pathlib import Path

from vadcli.errors import UsageError
from vadcli.types.text import NotText, decode_text, is_remote, shown, text_encoding

# Suffixes without the dot. The first line has MP4 and QuickTime, also of phones, action cameras and drones.
_VIDEO = (
    "mp4 m4v mp4v mpg4 mov qt 3gp 3gpp 3gp2 3gpp2 3g2 k3g skm f4v ismv cmfv psp mj2 mjp2 insv lrv lrf 360 "
    "mkv mk3d webm avi divx xvid amv asf wmv wm flv ogv ogm ogx rm rmvb rv "
    # MPEG: transport streams, program streams, discs, camcorders
    "ts m2t m2ts mts m2s mpegts ssif tp trp rec tod mpg mpeg mpe mpg2 mpeg1 mpeg2 mpeg4 m2p vob vro evo mod mpv mpv2 mp2v m1v "
    "m2v "
    # TV recorders, broadcast, security cameras, DV
    "wtv dvr-ms ty pva nuv nsv mxf gxf lxf nut dav ifv dv dif "
    # streams without a container, and moving images
    "h261 h263 h264 264 h26l 26l avc h265 265 hevc h266 266 vvc evc av1 obu ivf vc1 rcv drc cavs avs2 avs3 mjpeg mjpg y4m gif "
    "apng"
)
_IMAGES = "bmp jpeg jpg pgm png ppm tif tiff webp"
# Images (but a WebP file may also be a video) and sound; texts, subtitles, playlists, indexes; data, programs, archives.
_NO_VIDEO = (
    "bmp jpeg jpg pgm png ppm tif tiff heic heif avif ico svg thm mp3 aac m4a m4b wav flac opus oga wma ac3 eac3 dts mka aif "
    "aiff amr mp2 srt vtt ass ssa sub idx lrc nfo m3u m3u8 mpd pls sdp ffconcat txt log md pdf csv tsv json jsonl xml html htm "
    "yaml yml toml ini cfg conf url lnk gpx kml md5 sha1 sha256 sfv db sqlite sqlite3 parquet npy npz mat py pyc sh bat ps1 js "
    "css exe dll so zip tar gz bz2 xz 7z rar tmp part crdownload lock pid swp bak"
)
VIDEO_SUFFIXES = frozenset(f".{name}" for name in _VIDEO.split())
"""Suffixes of files that are scanned. A file with another suffix is scanned only if --include or PATHS name it."""
IMAGE_SUFFIXES = frozenset(f".{name}" for name in _IMAGES.split())
NO_VIDEO_SUFFIXES = frozenset(f".{name}" for name in _NO_VIDEO.split())
"""Suffixes of files that nobody expects to be scanned. These files are left out without a message."""
MOST_SUFFIXES_NAMED = 5

_URL = re.compile(r"(?:^|/)[A-Za-z][A-Za-z0-9+.-]+:/")  # one slash only, because pathlib has removed the other one
NO_URL = "this is a URL, and streams are not read"


class OutsideRoot(UsageError):
    """A path is not below the root of the output folder."""


def absolute(paths: Iterable[Path]) -> list[Path]:
    """Return the paths: those on this machine as absolute paths, those in an object store unchanged.

    Raises:
        UsageError: some paths are on this machine, and others are in an object store.
    """
    found = [path if is_remote(path) else Path(os.path.abspath(path)) for path in paths]
    remote = [path for path in found if is_remote(path)]
    if remote and len(remote) < len(found):
        raise UsageError(
            f"{shown(remote[0])}: in an object store, but other footage is on this machine",
            hint="scan the two into different folders with --out",
        )
    return found


def check_exists(path: Path) -> None:
    """Raise UsageError if a path does not exist. `make_plan` reports paths that exist but can't be read."""
    if is_remote(path):
        return
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        if _URL.search(str(path)):
            raise UsageError(f"{path}: {NO_URL}", hint=_instead_of(path)) from error
        raise UsageError(f"{path}: the file or folder does not exist") from error
    except OSError:
        return


def why_unreadable(path: Path, error: OSError) -> str:
    """Return the reason why a path can't be read, as a text for the user."""
    if isinstance(error, FileNotFoundError) and _URL.search(str(path)):
        return f"{NO_URL} ({_instead_of(path)})"
    return f"can't be read: {error.strerror}"


def _instead_of(url: Path) -> str:
    if "file:/" in str(url):
        return "give the path without file://"
    return "record the stream into files, and scan their folder"


def read_list(source: Path) -> list[Path]:
    """Return the paths in a list file, or in stdin if `source` is `-`.

    The list has one path per line. If it contains a NUL, its paths are separated by NUL instead.

    Raises:
        UsageError: the list can't be read.
    """
    try:
        data = sys.stdin.buffer.read() if str(source) == "-" else source.read_bytes()
        if text_encoding(data) != "utf-8":  # UTF-8 is not decoded: the bytes of a path need not be valid UTF-8
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
    """Return a note about files with unknown suffixes; "" if there are no such files.

    The counts are per suffix, with "" for files without a suffix.
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
    """Return the root, and the given paths as paths below it.

    The root is None if no root is stored and no --root is given.

    Args:
        given: absolute paths of files and folders.
        asked: the user's --root, or None.
        stored: the roots in the run records of the output folder, the newest first.
        out: the output folder, for messages.

    Raises:
        UsageError: another root is stored, or a path is not below the root.
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
    raise OutsideRoot(message, hint=f"give another --out, or scan both into a new --out with --root {both}")


def _as_stored(asked: Path, stored: Iterable[Path], out: Path) -> Path:
    """Return --root in the form in which it is stored.

    A new root is accepted only if none of the stored roots exists.
    """
    if not (is_remote(asked) or os.path.isdir(asked)):
        raise UsageError(f"--root {asked}: the folder does not exist")
    roots, again = tee(stored)
    for root in roots:
        if root == asked or os.path.realpath(root) == os.path.realpath(asked):
            return root
    there = next((root for root in again if is_remote(root) or os.path.isdir(root)), None)
    if there is not None:
        raise UsageError(
            f"--root {asked}: the names in {out} are relative to {shown(there)}", hint="leave --root out, or give another --out"
        )
    return asked


def _below_root(given: Sequence[Path], root: Path) -> tuple[list[Path], Path | None]:
    """Return the paths as paths below the root, and the first path that is not below it, or None.

    A path is also below the root if it leads there through a link.
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
