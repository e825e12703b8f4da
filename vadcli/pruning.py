"""Removes the results of videos that are gone or too old, and files that belong to no video.

If a network share is not mounted, its videos seem to be gone. So a video counts as gone only if its folder, or the closest
existing folder above it, is not empty (`FootageFolders.presence`). And results are removed only if some footage still exists.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from vadcli.errors import DocumentError, UsageError
from vadcli.options import PruneOptions, parse_duration
from vadcli.store import CHECKPOINT_SUFFIX, OutputLayout, event_clips, files_under, matches, rendered_video, stored_layout
from vadcli.store.atomic import Claim, Scratch, output_error
from vadcli.store.events import EventsDocument, FootageFolders, Presence, read_events, timed
from vadcli.store.run_log import read_live
from vadcli.types import DEFAULT_RULES
from vadcli.types.text import how_many

KINDS = ("rendered", "masks", "embeddings", "verify", "scores", "events")
"""The folders of results. Events are removed last: if pruning is interrupted, the next run finds the rest."""
SUFFIXES = {
    "rendered": (".mp4",),
    "masks": (".mkv", ".parquet"),
    "embeddings": (".parquet",),
    "verify": (".parquet",),
    "scores": (".parquet",),
    "events": (".json",),
}
_LONGEST_WHOLE_BYTES = 220  # a longer file name may be shortened, so that the video's name is not known


@dataclass(frozen=True)
class Pruned:
    """Results that were removed, or would be removed without --dry-run.

    Attributes:
        name: the name of the video or, for a file that belongs to no video, the path of the file in OUT.
        why: the reason, in words.
        files: number of files.
        size: total size of the files in bytes.
    """

    name: str
    why: str
    files: int
    size: int

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that `vadcli prune --json` prints."""
        return {"name": self.name, "why": self.why, "files": self.files, "bytes": self.size}


@dataclass(frozen=True)
class PruneResult:
    """The result of `vadcli prune`.

    Attributes:
        removed: one entry per video, and one entry per file that belongs to no video.
        problems: lines about videos that were kept although they may be gone, and about files that can't be read or removed.
        notes: lines about files that were left for the next run.
    """

    removed: tuple[Pruned, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Number of bytes that were freed, or would be freed."""
        return sum(item.size for item in self.removed)

    def summary(self) -> dict[str, Any]:
        """Return the counts, as `vadcli prune --json` prints them."""
        return {"removed": len(self.removed), "bytes": self.size, "problems": len(self.problems)}


def prune_all(out: Path, options: PruneOptions) -> PruneResult:
    """Remove results from an output folder, as the options say.

    Raises:
        UsageError: the folder does not exist, or its footage can't be reached.
        OutputError: OUT can't be written.
    """
    layout = stored_layout(out)
    with Scratch(layout.scratch):  # removes the temporary files of killed processes
        return _Pruning(layout, options).run()


@dataclass
class _Pruning:
    """One run of `vadcli prune`: what it has removed so far, and what it has to report."""

    layout: OutputLayout
    options: PruneOptions
    removed: list[Pruned] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    all_known: bool = True  # False if an events document can't be read, so that the document's video is not known

    def run(self) -> PruneResult:
        """Remove the results, and return what was removed."""
        self.folders = FootageFolders(self.layout, self.options.footage)
        self.is_busy = bool(read_live(self.layout))
        documents: dict[str, EventsDocument] = {}
        for path in self.layout.iter_events():
            try:
                # There may be a million documents in memory, so the parts that are not needed are dropped.
                document = replace(read_events(path), events=(), scan_events=None, caveats=())
                documents[_key(path, self.layout.out / "events", ".json")] = document
            except DocumentError as error:
                self.all_known = False
                self.problems.append(str(error))
        include = self.options.include
        chosen = {key: document for key, document in documents.items() if matches(str(document.video["path"]), include)}
        reasons = {**(self._missing(chosen) if self.options.missing else {}), **self._old(chosen)}
        for key, why in sorted(reasons.items()):
            if not self._remove(key, str(documents[key].video["path"]), why):
                reasons.pop(key)
        if self.is_busy:
            self.notes.append("a scan is running, so files that belong to no video are left for the next run")
        elif not include:
            self._remove_leftovers([document for key, document in documents.items() if key not in reasons])
        return PruneResult(tuple(self.removed), tuple(self.problems), tuple(self.notes))

    def _missing(self, documents: dict[str, EventsDocument]) -> dict[str, str]:
        """Return the documents' videos that no longer exist, each with the reason for removing its results.

        The keys are those of `documents`: the names of the files that OUT has for the videos.

        Raises:
            UsageError: no part of the footage can be reached.
        """
        presences: dict[str, Presence] = {}
        by_root: dict[str | None, list[str]] = defaultdict(list)
        for key, document in documents.items():
            presences[key] = self.folders.presence(str(document.video["path"]), document)
            by_root[self.folders.existing_root(document)].append(key)
        refused = []
        for root, keys in by_root.items():
            if why := self._why_not(root, [key for key in keys if presences[key] is not Presence.HERE], keys, documents):
                refused.append(why)
                presences.update(dict.fromkeys(keys, Presence.UNKNOWN))
        if refused and len(refused) == len(by_root):
            hint = "mount the folder, or name the folder that contains the footage with --footage"
            raise UsageError(refused[0], hint=f"{hint}; with --no-missing, only --older-than removes results")
        unknown = [str(documents[key].video["path"]) for key, presence in presences.items() if presence is Presence.UNKNOWN]
        if unknown:
            self.problems.append(
                f"the results of {how_many(len(unknown), 'video')} are kept: the footage is not found, but its folder is empty "
                f"or can't be read, so perhaps a share is not mounted; the first video is {unknown[0]}"
            )
        return {key: "no longer exists" for key, presence in presences.items() if presence is Presence.GONE}

    def _why_not(self, root: str | None, lost: Sequence[str], keys: Sequence[str], documents: dict[str, EventsDocument]) -> str:
        """Return why no result of the videos below this root may be removed; "" if the footage can be reached.

        `keys` are all videos below the root, and `lost` are the videos that are not found.
        """
        if root is None:
            folder = next(iter(self.folders.roots(documents[keys[0]])), "the root of the scans")
            return f"{folder}: the folder of the footage can't be reached, so nothing is removed"
        if len(lost) < len(keys) or self.options.footage is not None:
            return ""
        parents = {str(documents[key].video["path"]).rpartition("/")[0] for key in keys} - {""}
        if any(self.folders.presence(parent, documents[keys[0]]) is Presence.HERE for parent in parents):
            return ""
        return f"{root}: neither its {how_many(len(keys), 'video')} nor their folders exist, so nothing is removed"

    def _old(self, documents: dict[str, EventsDocument]) -> dict[str, str]:
        """Return the documents' videos that are too old for the options, each with the reason for removing its results.

        The keys are those of `documents`: the names of the files that OUT has for the videos.
        """
        if self.options.older_than is None:
            return {}
        before = datetime.now(UTC) - timedelta(seconds=parse_duration(self.options.older_than, "older_than"))
        reasons = {}
        for key, document in documents.items():
            start = timed(document, DEFAULT_RULES).start
            if start is not None:
                moment = start.at(0.0)
            else:  # the time when the video was scanned
                stored = [self.layout.out / "scores" / f"{key}.parquet", self.layout.out / "events" / f"{key}.json"]
                moment = datetime.fromtimestamp(next(path for path in stored if path.exists()).stat().st_mtime, UTC)
            if moment < before:
                reasons[key] = f"older than {self.options.older_than}"
        return reasons

    def _remove(self, key: str, video: str, why: str) -> bool:
        """Remove all results of one video. Returns False if this fails, or if a scan works on the video."""
        if self.options.dry_run:
            return self._delete(video, why, list(_files_of(self.layout, key)))
        checkpoint = _checkpoint(self.layout, key)
        claim = Claim.acquire(checkpoint)
        if claim is None:
            self.notes.append(f"{video}: a scan works on this video, so its results are left for the next run")
            return False
        try:
            unfinished = [checkpoint] if checkpoint.stat().st_size else []
            return self._delete(video, why, [*unfinished, *_files_of(self.layout, key)])
        finally:
            claim.release(delete=True)
            if not self.is_busy:  # a running scan may be about to write into one of these folders
                for kind in KINDS:
                    with suppress(OSError):  # `rmdir` fails at the first folder that is not empty
                        for folder in list(Path(key).parents)[:-1]:
                            (self.layout.out / kind / folder).rmdir()

    def _delete(self, name: str, why: str, files: list[Path]) -> bool:
        size = 0
        for path in files:
            try:
                size += path.lstat().st_size
                if not self.options.dry_run:
                    path.unlink()
            except FileNotFoundError:
                continue
            except OSError as error:
                self.problems.append(str(output_error(path, error)))
                return False
        self.removed.append(Pruned(name, why, len(files), size))
        return True

    def _remove_leftovers(self, documents: list[EventsDocument]) -> None:
        """Remove files that belong to no video.

        These are the files whose video has no events, no scores and no checkpoint in OUT. The option `missing` also removes
        the checkpoints of deleted videos and the models of cameras whose folders were deleted.

        Args:
            documents: the documents of the videos that were not removed. The models of their cameras are kept.
        """
        out = self.layout.out
        for kind in ("rendered", "masks", "embeddings", "verify"):
            for path in files_under(out / kind, SUFFIXES[kind]):
                key = _key(rendered_video(path) if kind == "rendered" else path, out / kind, path.suffix)
                owners = (out / "events" / f"{key}.json", out / "scores" / f"{key}.parquet", _checkpoint(self.layout, key))
                if path.is_file() and not any(owner.exists() for owner in owners):
                    self._delete_file(path, "belongs to no video")
        if not self.options.missing or not self.all_known:
            return
        for path in list(self.layout.iter_checkpoints()):
            key = _key(path.with_name(path.name[1:]), out / "scores", CHECKPOINT_SUFFIX)
            if _is_whole_name(key) and self.folders.presence(key) is Presence.GONE:
                claim = None if self.options.dry_run else Claim.acquire(path)
                if claim is not None or self.options.dry_run:
                    self._delete_file(path, "the video of this unfinished scan no longer exists")
                if claim is not None:
                    claim.release(delete=True)
        used = {self.layout.camera(str(document.video["camera"])) for document in documents if document.video["camera"]}
        cameras = out / "cameras"
        for path in sorted(cameras.rglob("*.json")):
            camera = _key(path, cameras, ".json")
            if path not in used and _is_whole_name(camera) and self.folders.presence(camera) is Presence.GONE:
                self._delete_file(path, "the camera no longer exists")

    def _delete_file(self, path: Path, why: str) -> None:
        name = path.relative_to(self.layout.out)
        if self._delete(name.as_posix(), why, [path]) and not self.options.dry_run:
            with suppress(OSError):
                for folder in list(name.parents)[:-2]:
                    (self.layout.out / folder).rmdir()


def _key(path: Path, folder: Path, suffix: str) -> str:
    """Return the name of a video's files: the path without its folder and suffix."""
    return path.relative_to(folder).as_posix().removesuffix(suffix)


def _checkpoint(layout: OutputLayout, key: str) -> Path:
    path = layout.out / "scores" / f"{key}{CHECKPOINT_SUFFIX}"
    return path.with_name(f".{path.name}")


def _is_whole_name(key: str) -> bool:
    """True if `key` has the whole name of a video or camera. Very long names are shortened in file names."""
    return key != "%2E" and all(len(os.fsencode(part)) < _LONGEST_WHOLE_BYTES for part in key.split("/"))


def _files_of(layout: OutputLayout, key: str) -> Iterator[Path]:
    """Yield the files of a video, also the files of its rendered events."""
    with suppress(OSError):
        yield from event_clips(layout.out / "rendered" / f"{key}.mp4")
    for kind in KINDS:
        for suffix in SUFFIXES[kind]:
            if os.path.lexists(path := layout.out / kind / f"{key}{suffix}"):
                yield path
