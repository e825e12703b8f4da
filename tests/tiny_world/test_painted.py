"""Tests of the painted world: it equals the original world, and an error names a damaged folder."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from tools.tiny_world import SyntheticWorld, WorldOptions
from tools.tiny_world.painted import PaintedWorld, paint_world, painted
from vadcli.errors import DocumentError

WORLD = SyntheticWorld(WorldOptions(size_px=32), seed=2, split="validation", length=5)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    painted(WORLD, folder, processes=0)
    return folder


def test_what_is_painted_is_the_world(cache: Path) -> None:
    read = painted(WORLD, cache, processes=0)
    assert isinstance(read, PaintedWorld)
    assert read.fingerprint() == WORLD.fingerprint()
    for index in range(len(WORLD)):
        assert np.array_equal(read.frames(index), WORLD.frames(index))
        assert np.array_equal(read.masks(index), WORLD.masks(index))
        assert read.names(index) == WORLD.names(index)
        assert read.facts(index).relations == WORLD.facts(index).relations
        assert [query.name for query in read.queries(index)] == [query.name for query in WORLD.queries(index)]
    with pytest.raises(IndexError):
        read.frames(5)


def test_several_processes_paint_the_same_bytes(cache: Path, tmp_path: Path) -> None:
    (alone,) = cache.iterdir()
    paint_world(WORLD, tmp_path / "together", processes=2)
    for path in alone.iterdir():
        assert (tmp_path / "together" / path.name).read_bytes() == path.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["together"], "nothing else is left"


def test_worker_processes_open_it_for_themselves(cache: Path) -> None:
    read = pickle.loads(pickle.dumps(painted(WORLD, cache)))
    assert np.array_equal(read.frames(1), WORLD.frames(1))


def test_another_world_or_a_damaged_folder_is_named(cache: Path, tmp_path: Path) -> None:
    (folder,) = cache.iterdir()
    other = SyntheticWorld(WORLD.options, seed=3, split="validation", length=5)
    with pytest.raises(DocumentError, match="another world"):
        PaintedWorld(other, folder)
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in folder.iterdir():
        (broken / path.name).write_bytes(path.read_bytes()[:40])
    with pytest.raises(DocumentError, match="can't be read"):
        PaintedWorld(WORLD, broken)


def test_what_a_killed_painting_left_is_removed_and_another_ones_world_stays(tmp_path: Path) -> None:
    left = tmp_path / ".tmp" / "1-dead" / "world"
    left.mkdir(parents=True)
    (left / "frames.npy").write_bytes(b"half")
    paint_world(WORLD, tmp_path / "world", processes=0)
    assert [path.name for path in tmp_path.iterdir()] == ["world"]
    marked = tmp_path / "world" / "mark"
    marked.touch()
    paint_world(WORLD, tmp_path / "world", processes=0)
    assert marked.exists(), "who comes second keeps what is there"
    assert [path.name for path in tmp_path.iterdir()] == ["world"]
