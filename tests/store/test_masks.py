"""Mask videos and run lengths: they are lossless, belong to the right rows, and have the same bytes each time."""

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from tests.store.processes import finished
from vadcli.errors import DocumentError
from vadcli.store.masks import (
    MaskRleWriter,
    MaskVideoWriter,
    enlarged_box,
    mask_box,
    read_boxes,
    read_mask_rle,
    read_masks,
    upsample_mask,
)
from vadcli.types.results import Box


def frames_of(n, height, width, seed=0):
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (n, height, width), np.uint8)
    frames[::3] = 0
    return frames


def write_video(path, frames, timestamps, fps=25.0):
    with MaskVideoWriter(path, frames.shape[2], frames.shape[1], fps=fps) as writer:
        for frame, timestamp in zip(frames, timestamps, strict=True):
            writer.write(frame, float(timestamp))


@settings(max_examples=25)
@given(
    n=st.integers(0, 6), width=st.integers(1, 70), height=st.integers(1, 70), fps=st.sampled_from([0.0004, 1.0, 29.97, 240.0])
)
def test_a_mask_video_is_lossless_at_every_size_and_rate(tmp_path_factory, n, width, height, fps):
    path = tmp_path_factory.mktemp("masks") / "a.mkv"
    frames = frames_of(n, height, width, seed=width)
    write_video(path, frames, np.arange(n) / fps, fps)
    stored = list(read_masks(path))
    assert len(stored) == n
    assert all(np.array_equal(one, other) for one, other in zip(stored, frames, strict=True))


def test_a_mask_video_is_gray_ffv1_timed_in_milliseconds_and_makes_the_same_bytes_again(tmp_path):
    frames = frames_of(5, 36, 64)
    timestamps = [0.0, 0.04, 0.0404, 0.0404, 3723.5]
    for name in "ab":
        write_video(tmp_path / f"{name}.mkv", frames, timestamps)
    assert (tmp_path / "a.mkv").read_bytes() == (tmp_path / "b.mkv").read_bytes()
    with av.open(str(tmp_path / "a.mkv")) as container:
        stream = container.streams.video[0]
        assert (container.format.name, stream.codec_context.name, stream.pix_fmt) == ("matroska,webm", "ffv1", "gray")
        assert [round(float(frame.time) * 1000) for frame in container.decode(stream)] == [0, 40, 41, 42, 3_723_500]


def test_a_frame_of_another_size_is_refused(tmp_path):
    with (
        MaskVideoWriter(tmp_path / "a.mkv", 64, 36) as writer,
        pytest.raises(ValueError, match=r"must be \(36, 64\) uint8, not"),
    ):
        writer.write(np.zeros((64, 36), np.uint8), 0.0)
    with (
        MaskRleWriter(tmp_path / "a.parquet", "a", 64, 36) as writer,
        pytest.raises(ValueError, match=r"must be \(36, 64\) uint8, not"),
    ):
        writer.write(np.zeros((36, 64), np.float32), 0, 0)


@pytest.mark.parametrize("data", [b"", b"not a video" * 100, bytes(5000)])
def test_a_damaged_mask_file_is_named(tmp_path, data):
    for name, read in (("a.mkv", read_masks), ("a.parquet", read_mask_rle), ("b.parquet", read_boxes)):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(DocumentError, match=name):
            list(read(path))
        with pytest.raises(DocumentError, match=f"missing-{name}: can't be read|missing-{name}"):
            list(read(tmp_path / f"missing-{name}"))


def test_a_video_that_is_no_mask_video_is_refused(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height = 64, 64
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    with pytest.raises(DocumentError, match="not a mask video: mpeg4"):
        list(read_masks(path))


@settings(max_examples=50)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 40), st.integers(1, 40), st.integers(0, 255))
def test_upsampling_keeps_flat_masks_and_never_leaves_their_range(h, w, height, width, value):
    flat = upsample_mask(np.full((h, w), value, np.uint8), width, height)
    assert flat.shape == (height, width)
    assert (flat == value).all()
    mask = frames_of(2, h, w, seed=value)[1]
    large = upsample_mask(mask, width, height)
    assert mask.min() <= large.min() <= large.max() <= mask.max()


def test_upsampling_is_bilinear_between_the_centres_of_pixels():
    large = upsample_mask(np.array([[0, 200]], np.uint8), 8, 1)
    assert large[0].tolist() == [0, 0, 25, 75, 125, 175, 200, 200]
    same = frames_of(2, 5, 7)[1]
    assert upsample_mask(same, 7, 5) is same


@settings(max_examples=60)
@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11), st.integers(100, 255)), max_size=4),
)
def test_the_box_of_a_mask_is_that_of_its_run_lengths(height, width, spots):
    mask = np.zeros((height, width), np.uint8)
    for y, x, value in spots:
        mask[y % height, x % width] = value
    box = mask_box(mask, 128)
    strong = np.asfortranarray(mask >= 128, np.uint8)
    if strong.any():
        assert list(box) == coco.toBbox(coco.encode(strong)).tolist()
    else:
        assert box is None


def test_run_lengths_read_back_in_step_with_their_rows(tmp_path):
    path = tmp_path / "a.parquet"
    frames = frames_of(2500, 6, 8)
    frames[1] = 127
    frames[2] = 128
    with MaskRleWriter(path, "cam/ü.mp4", 8, 6) as writer:
        for k, frame in enumerate(frames):
            writer.write(frame, k * 3, k * 9000)
    rows = list(read_mask_rle(path))
    assert [row.frame_index for row in rows] == list(range(0, 7500, 3))
    assert [row.pts for row in rows] == list(range(0, 2500 * 9000, 9000))
    assert (rows[1].area, rows[2].area) == (0, 48)
    for row, frame in zip(rows[:300], frames[:300], strict=True):
        strong = frame >= 128
        np.testing.assert_array_equal(row.decode(), strong)
        assert row.area == strong.sum()
        assert row.bbox == mask_box(frame, 128)
    indices, boxes = read_boxes(path)
    assert indices.tolist() == [row.frame_index for row in rows]
    assert boxes.dtype == np.int32
    assert [tuple(box) if box[2] else None for box in boxes.tolist()] == [row.bbox for row in rows]


def test_a_stored_row_goes_straight_into_pycocotools(tmp_path):
    path = tmp_path / "a.parquet"
    frame = np.asarray(Image.new("L", (8, 6), 255))
    with MaskRleWriter(path, "a.mp4", 8, 6) as writer:
        writer.write(frame, 0, 0)
    table = pq.read_table(path)
    assert coco.decode(table.to_pylist()[0]["rle"]).shape == (6, 8)
    assert table.schema.names == ["frame_index", "pts", "rle", "area", "bbox"]
    assert table.schema.metadata[b"vadcli.path"] == b"a.mp4"
    pq.write_table(pa.table({"frame_index": [1]}), path)
    with pytest.raises(DocumentError, match="not a masks file of schema version 1"):
        list(read_mask_rle(path))


def test_a_video_without_sampled_rows_has_empty_masks(tmp_path):
    path = tmp_path / "a.parquet"
    MaskRleWriter(path, "a.mp4", 8, 6).close()
    assert list(read_mask_rle(path)) == []
    assert [array.shape for array in read_boxes(path)] == [(0,), (0, 4)]


FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
from vadcli.errors import OutputError
from vadcli.store.atomic import Scratch
from vadcli.store.masks import MaskRleWriter, MaskVideoWriter
sys.dont_write_bytecode = True  # Python would store truncated files
out = Path(sys.argv[1])
rng = np.random.default_rng(0)
frames = rng.integers(0, 256, (20, 120, 160), np.uint8)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
with Scratch(out / ".tmp") as scratch:
    try:
        with scratch.replace(out / "a.mkv") as path, MaskVideoWriter(path, 160, 120) as video:
            for k, frame in enumerate(frames):
                video.write(frame, k)
    except OutputError as error:
        print(error)
    try:
        with scratch.replace(out / "a.parquet") as path, MaskRleWriter(path, "a", 160, 120) as runs:
            for k, frame in enumerate(frames):
                runs.write(frame, k, k)
    except OutputError as error:
        print(error)
print(sorted(entry.name for entry in out.iterdir()))
"""


def test_a_full_disk_leaves_no_half_mask_file(tmp_path):
    video, runs, left = finished(FULL_DISK, tmp_path).splitlines()
    assert str(tmp_path / "a.mkv") in video
    assert str(tmp_path / "a.parquet") in runs
    assert "larger than the system allows" in video
    assert "larger than the system allows" in runs
    assert left == "[]"


@settings(max_examples=200)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    shown=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    seed=st.integers(0, 10_000),
    top=st.sampled_from([100, 140, 255]),
)
def test_the_box_of_an_enlarged_mask_needs_no_enlarging(size, shown, seed, top):
    mask = np.random.default_rng(seed).integers(0, top, size, dtype=np.uint8)
    quick, large = enlarged_box(mask, *shown, 128), upsample_mask(mask, *shown)
    inner, outer = mask_box(large, 129), mask_box(large, 127)  # a value just at the level may be rounded to either side
    assert quick is not None or inner is None
    if quick is not None:
        assert outer is not None
        assert within(quick, outer)
        assert inner is None or within(inner, quick)


def within(box: Box, other: Box) -> bool:
    """True if the first box is inside the second box."""
    (x, y, width, height), (left, top, wide, tall) = box, other
    return left <= x and top <= y and x + width <= left + wide and y + height <= top + tall


def test_the_box_of_a_clear_blob_is_the_very_same():
    mask = np.zeros((64, 64), np.uint8)
    mask[10:20, 30:44] = 255
    mask[50, 5] = 200
    for shown in ((64, 64), (1920, 1080), (333, 77), (32, 32)):
        assert enlarged_box(mask, *shown, 128) == mask_box(upsample_mask(mask, *shown), 128)
