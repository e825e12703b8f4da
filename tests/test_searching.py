"""Stored vectors are searched without an encoder."""

from pathlib import Path

import numpy as np
import pytest

from vadcli.store import OutputLayout
from vadcli.store.scores import EmbeddingsMetadata, StoredEmbeddings, write_embeddings
from vadcli.types import BoolArray, Embeddings, TimeArray
from vadcli.vectors import encoders_in, find

VIDEOS = 40


@pytest.fixture
def layout(tmp_path: Path) -> OutputLayout:
    layout = OutputLayout(tmp_path)
    random = np.random.default_rng(7)
    for number in range(VIDEOS):
        video = f"cam{number % 3}/{number:02d}.mp4"
        path = layout.embeddings(video)
        path.parent.mkdir(parents=True, exist_ok=True)
        vectors = Embeddings.of(random.standard_normal((30, 16), np.float32))
        metadata = EmbeddingsMetadata(video, video[:4], "tiny" if number else "other", "k", "k", "c")
        write_embeddings(path, StoredEmbeddings(metadata, np.arange(30) * 5, np.arange(30) * 2.0, vectors))
    return layout


def test_only_videos_that_may_be_among_the_best_are_asked_about(layout: OutputLayout) -> None:
    query = np.eye(16, dtype=np.float32)[0]
    asked: list[str] = []

    def rows(video: str, timestamp: TimeArray) -> BoolArray | None:
        asked.append(video)
        return None

    everything = find(layout, query, encoder_key="k", top=1000)
    assert len({moment.video for moment in everything}) == VIDEOS
    best = find(layout, query, encoder_key="k", top=3, rows=rows)
    assert [(one.video, one.peak_frame) for one in best] == [(one.video, one.peak_frame) for one in everything[:3]]
    assert 3 <= len(asked) < VIDEOS


def test_a_video_without_chosen_frames_has_no_moment(layout: OutputLayout) -> None:
    query = np.eye(16, dtype=np.float32)[0]
    (first,) = find(layout, query, encoder_key="k", top=1)
    others = find(layout, query, encoder_key="k", top=1, rows=lambda video, at: at < 0 if video == first.video else None)
    assert others
    assert others[0].video != first.video


def test_encoders_are_read_until_the_caller_has_enough(layout: OutputLayout) -> None:
    found = encoders_in(layout)
    assert next(found) == ("other", "k")
    assert list(found) == [("tiny", "k")]
