"""Clips gathered into batches: nothing lost, nothing mixed up, pixels copied once and their memory used again."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vadcli.detectors.batching import MOST_CAMERAS, SPARES, ClipBatcher, PerCamera
from vadcli.types import CameraModel, Clip

SIZES = ((2, 3), (3, 2), (4, 4))


def clip(number: int, size: tuple[int, int], *, memory: np.ndarray | None = None, video: str = "a.mp4") -> Clip:
    """A clip of two frames that are filled with its number, in memory that the caller may use again."""
    frames = np.full((2, *size, 1), number % 251, np.uint8) if memory is None else memory
    frames[...] = number % 251
    index = np.array([2 * number, 2 * number + 1])
    return Clip(video, number, frames, index, index / 10, np.ones(2, np.bool_), 1)


@given(st.lists(st.sampled_from(SIZES), max_size=40), st.integers(1, 5), st.booleans())
def test_every_clip_comes_back_once_with_its_own_pixels(sizes: list[tuple[int, int]], size: int, recycling: bool) -> None:
    batcher = ClipBatcher[int](size)
    slots = {each: np.zeros((2, *each, 1), np.uint8) for each in SIZES}  # the loader's memory: overwritten by the next clip
    seen: list[int] = []

    def look(batch: object) -> None:
        given = batch.clip_batch()  # type: ignore[attr-defined]
        assert 1 <= len(given.frames) <= size
        for row, (one, ticket) in enumerate(zip(batch.clips, batch.tickets, strict=True)):  # type: ignore[attr-defined]
            assert (given.frames[row] == ticket % 251).all()
            assert one.index == ticket
            assert given.timestamp[row].tolist() == one.timestamp.tolist()
            seen.append(ticket)
        if recycling:
            batcher.give_back(batch)  # type: ignore[arg-type]

    for number, each in enumerate(sizes):
        batch = batcher.add(clip(number, each, memory=slots[each]), number)
        if batch is not None:
            assert len(batch) == size
            look(batch)
    for batch in batcher.flush():
        look(batch)
    assert sorted(seen) == list(range(len(sizes)))
    assert batcher.flush() == []


def test_the_pixels_of_a_batch_are_used_again_and_not_before() -> None:
    batcher = ClipBatcher[None](2)
    first, second = (pair[1] for pair in [[batcher.add(clip(number, (2, 3)), None) for number in (k, k + 1)] for k in (0, 2)])
    assert first is not None
    assert second is not None
    assert not np.shares_memory(first.pixels, second.pixels)
    batcher.give_back(first)
    batcher.add(clip(4, (2, 3)), None)
    third = batcher.add(clip(5, (2, 3)), None)
    assert third is not None
    assert third.pixels is first.pixels
    assert (second.clip_batch().frames == np.array([2, 3])[:, None, None, None, None]).all()


def test_pixels_of_many_sizes_do_not_pile_up() -> None:
    batcher = ClipBatcher[None](1)
    for number in range(3 * SPARES):
        batch = batcher.add(clip(number, (1 + number, 2)), None)
        assert batch is not None
        batcher.give_back(batch)
    assert len(batcher._spare) == SPARES


def test_dropped_clips_leave_no_gap_and_only_their_batches_are_flushed() -> None:
    batcher = ClipBatcher[int](8)
    for number in range(6):
        batcher.add(clip(number, (2, 3), video="ab"[number % 2]), number)
    batcher.add(clip(9, (4, 4), video="c"), 9)
    (batch,) = batcher.flush("b")
    kept = batch.without(lambda one: one.video == "b")
    assert kept.tickets == [0, 2, 4]
    assert kept.clip_batch().frames[:, 0, 0, 0, 0].tolist() == [0, 2, 4]
    assert [one.frames[0, 0, 0, 0] for one in kept.clips] == [0, 2, 4]
    assert [each.tickets for each in batcher.flush()] == [[9]]


@given(st.lists(st.integers(0, MOST_CAMERAS + 5), max_size=200))
def test_what_is_kept_per_camera_is_that_of_the_camera_and_bounded(order: list[int]) -> None:
    models = [CameraModel(f"cam{number}", "fake", 1, {}, {}) for number in range(MOST_CAMERAS + 6)]
    made: list[str] = []

    def make(model: CameraModel | None) -> str:
        assert model is not None
        made.append(model.camera)
        return model.camera

    kept = PerCamera(make)
    for place, number in enumerate(order):
        before = len(made)
        assert kept(models[number]) == f"cam{number}"
        recent = list(dict.fromkeys(reversed(order[:place])))[:MOST_CAMERAS]
        assert (len(made) == before) is (number in recent)
