"""Videos whose pixels are not square: all results have the shape that a player shows."""

from __future__ import annotations

import re
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageDraw

import vadcli
from tests import media
from vadcli.export import export
from vadcli.store import OutputLayout
from vadcli.store.masks import read_mask_rle, read_masks

STORED, SHOWN = (160, 120), (320, 120)  # pixels of 2:1
SEEN_S = (3.0, 4.0)
FPS = 10


def stranger(number: int, width: int, height: int) -> np.ndarray:
    """Return a frame of a scene in which a small thing moves up and down. For one second, a big thing crosses on the right."""
    scene = np.random.default_rng(0).integers(90, 110, (height, width)).astype(np.uint8)
    image = Image.fromarray(scene)
    pen = ImageDraw.Draw(image)
    y = 50 + 20 * (number // 2 % 2)
    pen.rectangle((10, y, 18, y + 8), fill=170)
    if SEEN_S[0] <= number / FPS < SEEN_S[1]:
        x = 100 + 4 * (number - SEEN_S[0] * FPS)
        pen.rectangle((x, 40, x + 14, 80), fill=240)
    return np.asarray(image)


def test_masks_boxes_exports_and_rendered_videos_have_the_shape_that_a_player_shows(tmp_path: Path) -> None:
    footage = tmp_path / "footage"
    footage.mkdir()
    media.make_video(footage / "a.mkv", "ffv1", frames=80, fps=FPS, size=STORED, draw=stranger, options=("-vf", "setsar=2"))
    out = tmp_path / "out"
    assert [result.status for result in vadcli.scan(footage, out=out, detector="motion", masks="both", threshold=0.112)] == [
        "done"
    ]
    found = vadcli.events(out)
    (document,) = found.documents
    assert (document.video["width"], document.video["height"]) == SHOWN
    (event,) = document.events
    assert event.bbox is not None
    left, top, width, height = event.bbox
    assert 180 <= left < left + width <= 320  # of the 160 stored columns, the thing is in columns 100 to 160
    assert 20 <= top < top + height <= 100
    layout = OutputLayout(out)
    assert {mask.shape for mask in read_masks(layout.mask_video("a.mkv"))} == {(SHOWN[1], SHOWN[0])}
    assert {tuple(row.rle["size"]) for row in read_mask_rle(layout.mask_rle("a.mkv"))} == {(SHOWN[1], SHOWN[0])}
    export(found.documents, "cvat", layout=layout, to=tmp_path / "cvat", file=None)  # type: ignore[arg-type]
    (file,) = (tmp_path / "cvat").rglob("*.xml")
    assert re.findall(r"<(?:width|height)>(\d+)<", file.read_text()) == ["320", "120"]
    (rendered,) = vadcli.render(footage, out=out)
    with av.open(str(rendered.files[0])) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.sample_aspect_ratio) == (320, 1)
        picture = next(container.decode(stream)).to_ndarray(format="gray")
    bright = np.flatnonzero(picture[50:75].max(axis=0) > 140)
    assert bright[0] == pytest.approx(20, abs=3)
    assert bright[-1] == pytest.approx(37, abs=3)
