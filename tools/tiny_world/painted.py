"""Paints the synthetic world once into a folder, and reads it from there in each training.

    FOLDER/frames.npy   (N, T, H, W, 3) uint8
    FOLDER/masks.npy    (N, K, T, H, W / 8) uint8: masks of at most K objects, one bit per pixel
    FOLDER/facts.json   the facts about each clip

The folder has a temporary name until it is complete.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from tools.tiny_world.scene import Role
from tools.tiny_world.truth import Answer, Facts
from tools.tiny_world.words import DEEDS
from tools.tiny_world.world import SyntheticWorld
from vadcli.errors import DocumentError
from vadcli.store.atomic import Scratch, writing
from vadcli.types import BoolArray, ByteArray

_CHUNK = 16

_painting: SyntheticWorld | None = None  # set once in each worker process


class PaintedWorld(SyntheticWorld):
    """A SyntheticWorld whose clips are read from a folder.

    Args:
        world: the world that was painted.
        folder: the folder that `paint_world` made.

    Raises:
        DocumentError: the folder contains another world, or is damaged.
    """

    def __init__(self, world: SyntheticWorld, folder: Path) -> None:
        super().__init__(world.options, seed=world.seed, split=world.split, length=world.length)
        self.folder = folder
        try:
            self._frames = np.load(folder / "frames.npy", mmap_mode="r")
            self._masks = np.load(folder / "masks.npy", mmap_mode="r")
            document = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
            self._facts = document["clips"]
            whole = document["world"] == world.fingerprint() and len(self._facts) == len(self._frames) == world.length
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DocumentError(f"{folder}: can't be read: {error}", hint="delete this folder to paint it again") from error
        if not whole:
            raise DocumentError(f"{folder}: contains another world", hint="delete this folder to paint it again")

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the world without its arrays; each worker process opens the folder again."""
        plain = SyntheticWorld(self.options, seed=self.seed, split=self.split, length=self.length)
        return (PaintedWorld, (plain, self.folder))

    def frames(self, index: int) -> ByteArray:
        """Return the stored frames of clip `index`."""
        return np.array(self._frames[self._checked(index)])

    def masks(self, index: int) -> BoolArray:
        """Return the stored masks of clip `index`."""
        packed = self._masks[self._checked(index), : len(self.facts(index).roles)]
        return np.unpackbits(packed, axis=-1).astype(np.bool_)

    def facts(self, index: int) -> Facts:
        """Return the stored facts of clip `index`."""
        stored = self._facts[self._checked(index)]
        return Facts(
            tuple(Role((colour, shape), size, motion, presence) for colour, shape, size, motion, presence in stored["roles"]),
            tuple(dict(zip(DEEDS, map(Answer, answers), strict=True)) for answers in stored["deeds"]),
            {(relation, first, second): Answer(answer) for relation, first, second, answer in stored["relations"]},
            tuple(stored["evident"]),
        )


def painted(world: SyntheticWorld, cache: Path, *, processes: int | None = None) -> PaintedWorld:
    """Return the world from its folder in `cache`. If there is no folder, paint it first.

    Raises:
        OutputError: the folder cannot be written.
        DocumentError: the folder is damaged.
    """
    folder = cache / f"synthetic-{world.split}-{world.seed}-{world.fingerprint()[:12]}"
    if not folder.is_dir():
        paint_world(world, folder, processes=processes)
    return PaintedWorld(world, folder)


def paint_world(world: SyntheticWorld, folder: Path, *, processes: int | None = None) -> None:
    """Paint every clip into a new folder, with several processes.

    If another process makes the folder at the same time, the folder of that process is used. Temporary
    files of an interrupted run are removed. If `processes` is 0, this process paints.

    Raises:
        OutputError: the folder cannot be written.
    """
    options = world.options
    shape = (len(world), options.frames, options.size_px, options.size_px)
    with Scratch(folder.parent / ".tmp") as scratch, writing(folder):
        temporary = scratch.folder / "world"
        temporary.mkdir()
        frames = np.lib.format.open_memmap(temporary / "frames.npy", mode="w+", dtype=np.uint8, shape=(*shape, 3))
        packed = (shape[0], options.objects[1], *shape[1:3], options.size_px // 8)
        masks = np.lib.format.open_memmap(temporary / "masks.npy", mode="w+", dtype=np.uint8, shape=packed)
        facts = []
        for index, (clip_frames, clip_masks, clip_facts) in enumerate(_clips(world, processes)):
            frames[index] = clip_frames
            masks[index, : len(clip_masks)] = clip_masks
            facts.append(clip_facts)
        frames.flush()
        masks.flush()
        document = {"world": world.fingerprint(), "clips": facts}
        (temporary / "facts.json").write_text(json.dumps(document), encoding="utf-8")
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise


def _clips(world: SyntheticWorld, processes: int | None) -> Iterator[tuple[ByteArray, ByteArray, dict[str, Any]]]:
    if processes == 0:
        _begin(world)
        yield from map(_paint, range(len(world)))
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_begin, initargs=(world,)) as pool:
        yield from pool.map(_paint, range(len(world)), chunksize=_CHUNK)


def _begin(world: SyntheticWorld) -> None:
    global _painting  # noqa: PLW0603  # each worker of the pool gets the world once
    _painting = world
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)  # there is already one process per core


def _paint(index: int) -> tuple[ByteArray, ByteArray, dict[str, Any]]:
    assert _painting is not None
    facts = _painting.facts(index)
    document = {
        "roles": [[*role.pair, role.size, role.motion, role.presence] for role in facts.roles],
        "deeds": [[int(answers[deed]) for deed in DEEDS] for answers in facts.deeds],
        "relations": [[*key, int(answer)] for key, answer in facts.relations.items()],
        "evident": list(facts.evident),
    }
    return _painting.frames(index), np.packbits(_painting.masks(index), axis=-1), document
