"""Checkpoints: what a killed process leaves in the file, and which process may continue it."""

import os
import random
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.store.blocks import HEADER, block_of
from tests.store.processes import finished, running, side_by_side
from vadcli.errors import DocumentError, OutputError
from vadcli.store.atomic import Claim
from vadcli.store.checkpoint import CheckpointHeader, CheckpointWriter, read_checkpoint


def assert_same(first, second):
    for name in ("frame_index", "pts", "decode_ok", "sampled", "raw", "bbox", "mask"):
        one, other = getattr(first, name), getattr(second, name)
        assert (one is None) == (other is None), name
        if one is not None:
            np.testing.assert_array_equal(one, other, err_msg=name)
            assert one.dtype == other.dtype, name


def write(path, blocks, header=HEADER, *, resume=None):
    claim = Claim.acquire(path)
    writer = CheckpointWriter(claim, header, resume=resume)
    ends = [path.stat().st_size]
    for block in blocks:
        writer.append(block)
        ends.append(path.stat().st_size)
    assert writer.stored == read_checkpoint(path)
    claim.release(delete=False)
    return ends


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 9), max_size=5),
    interval=st.integers(1, 4),
    channels=st.integers(1, 3),
    mask_shape=st.none() | st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_what_is_appended_is_read_back(tmp_path_factory, sizes, interval, channels, mask_shape):
    path = tmp_path_factory.mktemp("out") / "scores" / "a.parquet.part"
    header = CheckpointHeader("abc", interval, channels, mask_shape, {"name": "ü"})
    firsts = np.cumsum([0, *sizes])
    blocks = [block_of(int(first), rows, header) for first, rows in zip(firsts, sizes, strict=False)]
    write(path, blocks, header)
    checkpoint = read_checkpoint(path)
    assert checkpoint.header == header
    assert checkpoint.rows == sum(sizes)
    assert checkpoint.last_row == sum(sizes) - 1
    stored = list(checkpoint.blocks(masks=True))
    assert len(stored) == len(blocks)
    for one, other in zip(blocks, stored, strict=True):
        assert_same(one, other)
    assert all(block.mask is None for block in checkpoint.blocks())


def test_a_file_cut_anywhere_keeps_its_whole_blocks_and_goes_on_as_if_never_cut(tmp_path):
    blocks = [block_of(0, 3), block_of(3, 4)]
    whole = tmp_path / "whole.part"
    ends = write(whole, blocks)
    data = whole.read_bytes()
    path = tmp_path / "cut.part"
    for size in range(len(data) + 1):
        path.write_bytes(data[:size])
        checkpoint = read_checkpoint(path)
        if size < ends[0]:
            assert checkpoint is None, size
            continue
        kept = sum(size >= end for end in ends[1:])
        assert checkpoint.end == ends[kept], size
        assert checkpoint.rows == sum(map(len, blocks[:kept])), size
        if size % 41 == 0 or size in ends:
            write(path, blocks[kept:], resume=checkpoint)
            assert path.read_bytes() == data, size


def test_damage_anywhere_never_gives_other_rows(tmp_path):
    blocks = [block_of(0, 3), block_of(3, 2)]
    path = tmp_path / "a.part"
    ends = write(path, blocks)
    data = bytearray(path.read_bytes())
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= (0x01, 0x80, 0xFF)[position % 3]
        path.write_bytes(damaged)
        checkpoint = read_checkpoint(path)
        if checkpoint is None or checkpoint.header.to_bytes() != HEADER.to_bytes():
            assert position < ends[0], position
            continue
        for one, other in zip(blocks, checkpoint.blocks(masks=True), strict=False):
            assert_same(one, other)


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 5000, b"ARROW1" * 300, os.urandom(3000), b"\xff\xff\xff\xff\xff\xff\xff\x7f" + b"x" * 50]
)
def test_garbage_is_no_checkpoint(tmp_path, data):
    path = tmp_path / "a.part"
    path.write_bytes(data)
    assert read_checkpoint(path) is None
    assert read_checkpoint(tmp_path / "missing") is None
    assert read_checkpoint(tmp_path) is None


@pytest.mark.parametrize("tail", [b"\0" * 4096, b"\xff" * 4096, os.urandom(4096)])
def test_a_tail_that_was_never_written_is_cut_off(tmp_path, tail):
    path = tmp_path / "a.part"
    ends = write(path, [block_of(0, 3)])
    with path.open("ab") as file:
        file.write(tail)
    checkpoint = read_checkpoint(path)
    assert (checkpoint.rows, checkpoint.end) == (3, ends[1])
    write(path, [block_of(3, 3)], resume=checkpoint)
    assert read_checkpoint(path).rows == 6


def test_another_scan_s_checkpoint_is_refused_and_starting_anew_empties_it(tmp_path):
    path = tmp_path / "a.part"
    write(path, [block_of(0, 3)])
    other = replace(HEADER, fingerprint="other")
    claim = Claim.acquire(path)
    with pytest.raises(ValueError, match="another scan"):
        CheckpointWriter(claim, other, resume=read_checkpoint(path))
    CheckpointWriter(claim, other)
    checkpoint = read_checkpoint(path)
    assert (checkpoint.header, checkpoint.rows) == (other, 0)
    claim.release(delete=True)


@pytest.mark.parametrize(
    "change",
    [
        {"frame_index": np.array([1, 2, 3])},
        {"frame_index": np.array([3, 3, 4])},
        {"raw": np.zeros((3, 2), np.float32)},
        {"mask": None},
        {"mask": np.zeros((3, 4, 5), np.uint8)},
    ],
)
def test_rows_that_don_t_belong_are_refused_and_nothing_is_written(tmp_path, change):
    path = tmp_path / "a.part"
    claim = Claim.acquire(path)
    writer = CheckpointWriter(claim, HEADER)
    writer.append(block_of(0, 3))
    with pytest.raises(ValueError, match=r"instead of|must be in order"):
        writer.append(replace(block_of(3, 3), **change))
    writer.append(block_of(3, 3))
    assert read_checkpoint(path).rows == 6
    claim.release(delete=True)


def test_a_file_that_changes_while_it_is_read_is_named(tmp_path):
    path = tmp_path / "a.part"
    ends = write(path, [block_of(0, 3), block_of(3, 2000)])
    blocks = read_checkpoint(path).blocks()
    assert len(next(blocks)) == 3
    os.truncate(path, ends[1] + 10)
    with pytest.raises(DocumentError, match=r"a\.part.*changed"):
        next(blocks)


def test_an_empty_claim_leaves_no_file_and_a_written_one_does(tmp_path):
    path = tmp_path / "deep" / "a.part"
    claim = Claim.acquire(path)
    assert Claim.acquire(path) is None
    claim.release(delete=False)
    assert not path.exists()
    write(path, [block_of(0, 3)])
    assert path.exists()
    claim = Claim.acquire(path)
    claim.release(delete=True)
    claim.release(delete=True)
    assert not path.exists()


def test_a_claim_that_can_t_be_made_is_one_clear_line(tmp_path):
    (tmp_path / "scores").write_text("a file")
    with pytest.raises(OutputError, match=r"scores/a\.part"):
        Claim.acquire(tmp_path / "scores" / "a.part")


APPENDS = """
import sys
from pathlib import Path
from tests.store.blocks import HEADER, block_of
from vadcli.store.checkpoint import CheckpointWriter, Claim, read_checkpoint
path = Path(sys.argv[1])
claim = Claim.acquire(path)
checkpoint = read_checkpoint(path)
writer = CheckpointWriter(claim, HEADER, resume=checkpoint, fsync_every_s=0.02)
while True:
    writer.append(block_of(writer.stored.rows, 5))
    writer.flush()
    print(writer.stored.rows, flush=True)
"""


def test_killed_again_and_again_in_mid_write_no_row_that_was_written_is_lost(tmp_path):
    path = tmp_path / "a.part"
    rng = random.Random(0)
    rows = 0
    for _ in range(5):
        with running(APPENDS, path) as process:
            assert Claim.acquire(path) is None
            time.sleep(rng.random() * 0.3)
            process.send_signal(signal.SIGKILL)
            said = process.stdout.read().splitlines()
            process.wait()
        checkpoint = read_checkpoint(path)
        assert checkpoint.rows > rows
        assert checkpoint.rows >= int(said[-1] if said else 0)
        rows = checkpoint.rows
    for index, block in enumerate(checkpoint.blocks(masks=True)):
        assert_same(block, block_of(index * 5, 5))
    claim = Claim.acquire(path)
    assert claim is not None, "the claim died with its process"
    claim.release(delete=True)


FULL_DISK = """
import resource, sys
from pathlib import Path
from tests.store.blocks import HEADER, block_of
from vadcli.errors import OutputError
from vadcli.store.checkpoint import CheckpointWriter, Claim
path = Path(sys.argv[1])
writer = CheckpointWriter(Claim.acquire(path), HEADER)
writer.append(block_of(0, 5))
sys.dont_write_bytecode = True  # Python would store truncated files
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 500, 1 << 40))
try:
    writer.append(block_of(5, 5))
except OutputError as error:
    print(error)
print(path.stat().st_size)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 40, 1 << 40))
writer.append(block_of(5, 5))
"""


def test_a_full_disk_keeps_the_whole_blocks_and_the_writer_can_go_on(tmp_path):
    path = tmp_path / "a.part"
    said, size = finished(FULL_DISK, path).splitlines()
    assert str(path) in said
    assert "larger than the system allows" in said
    checkpoint = read_checkpoint(path)
    assert checkpoint.rows == 10
    assert int(size) < checkpoint.end == path.stat().st_size


CLAIMS = """
import os, random, sys, time
from pathlib import Path
from vadcli.store.atomic import Claim
path, holder = Path(sys.argv[1]), sys.argv[1] + ".holder"
rng, wins, refusals = random.Random(int(sys.argv[2])), 0, 0
while wins < 1500:
    claim = Claim.acquire(path)
    if claim is None:
        refusals += 1
        time.sleep(0)
        continue
    os.close(os.open(holder, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    if rng.random() < 0.5:
        os.write(claim.fd, b"x")
    wins += 1
    os.unlink(holder)
    claim.release(delete=rng.random() < 0.7)
print(refusals)
"""


def test_of_processes_that_claim_one_video_exactly_one_wins_each_time(tmp_path):
    refusals = sum(map(int, side_by_side(CLAIMS, *[(tmp_path / "a.part", seed) for seed in range(3)])))
    assert refusals > 0, "they did meet"


READS_MANY = """
import resource, sys
from pathlib import Path
import numpy as np
from vadcli.store.checkpoint import CheckpointBlock, CheckpointHeader, CheckpointWriter, Claim, read_checkpoint

header = CheckpointHeader("f", 1, 2, (60, 90))
claim = Claim.acquire(Path(sys.argv[1]))
writer = CheckpointWriter(claim, header)
rng = np.random.default_rng(0)
rows = 100
mask = np.zeros((rows, 60, 90), np.uint8)
mask[:, 20:30, 20:50] = rng.integers(0, 256, (rows, 10, 30))

def block(first):
    index = np.arange(first, first + rows)
    yes = np.ones(rows, bool)
    return CheckpointBlock(index, index, yes, yes, np.ones((rows, 2), np.float32), np.ones((rows, 4), np.int32), mask)

def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1 << 20)

def read(wanted):
    checkpoint = read_checkpoint(claim.path)
    assert checkpoint.rows == wanted, checkpoint.rows
    assert sum(int(block.mask[:, 20:30].any(axis=(1, 2)).sum()) for block in checkpoint.blocks(masks=True)) == wanted

for first in range(0, 5_000, rows):
    writer.append(block(first))
read(5_000)
before = peak_mib()
for first in range(5_000, 100_000, rows):
    writer.append(block(first))
read(100_000)
print(claim.path.stat().st_size / 2**20, peak_mib() - before)
"""


def test_memory_does_not_grow_with_the_rows(tmp_path):
    stored_mib, grown_mib = map(float, finished(READS_MANY, tmp_path / "a.part").split())
    assert stored_mib > 30
    assert grown_mib < 15
