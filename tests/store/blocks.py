"""Makes checkpoint blocks that are the same in every process."""

import numpy as np

from vadcli.store.checkpoint import CheckpointBlock, CheckpointHeader

HEADER = CheckpointHeader("f" * 8, interval=2, channels=3, mask_shape=(4, 6), video={"time_base": "1/90000", "frames": 40})


def block_of(first, rows, header=HEADER, seed=0):
    rng = np.random.default_rng((seed, first))
    frame_index = np.arange(first, first + rows)
    sampled = frame_index % header.interval == 0
    raw = rng.normal(size=(rows, header.channels)).astype(np.float32)
    raw[~sampled] = np.nan
    mask = None
    if header.mask_shape:
        mask = rng.integers(0, 256, (rows, *header.mask_shape), np.uint8)
        mask[~sampled] = 0
    bbox = rng.integers(0, 100, (rows, 4), np.int32)
    return CheckpointBlock(frame_index, frame_index * 3600 + 7, rng.random(rows) > 0.2, sampled, raw, bbox, mask)
