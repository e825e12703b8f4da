"""Regions: which pixels they hide, what replaces the pixels, and to which cameras they belong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vadcli.types import NO_REGIONS, CameraRegions, Regions
from vadcli.types.media import Blanker, MaskImage, Polygon, region_from_json

TRIANGLE = Polygon(((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)))
LEFT = Polygon(((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0)))
TOP = Polygon(((0.0, 0.0), (1.0, 0.0), (1.0, 0.5), (0.0, 0.5)))


def test_a_polygon_holds_for_every_size() -> None:
    rows = ["".join("#" if hidden else "." for hidden in row) for row in TRIANGLE.inside(6, 3).tolist()]
    assert rows == ["#####.", "###...", "#....."]
    for width, height in ((64, 48), (640, 480), (4000, 300)):
        hidden = Regions(ignore=(LEFT,)).hidden(width, height)
        assert hidden.shape == (height, width)
        assert hidden[:, : width // 2].all()
        assert not hidden[:, width // 2 :].any()


def test_a_pixel_is_hidden_if_any_part_of_it_is() -> None:
    strip = Polygon(((0.0, 0.0), (0.3, 0.0), (0.3, 1.0), (0.0, 1.0)))
    assert Regions(ignore=(strip,)).hidden(4, 1).tolist() == [[True, True, False, False]]
    assert Regions(only=(strip,)).hidden(4, 1).tolist() == [[False, True, True, True]]


def test_ignore_and_only_together() -> None:
    hidden = Regions(ignore=(LEFT,), only=(TOP,)).hidden(8, 8)
    assert not hidden[:4, 4:].any()
    assert hidden.sum() == 48
    two = Regions(only=(TOP, LEFT)).hidden(8, 8)
    assert two.sum() == 16
    assert two[4:, 4:].all()


def test_a_mask_image_is_stretched_to_the_frame() -> None:
    pixels = np.array([[1, 0, 0], [0, 0, 1]], np.bool_)
    image = MaskImage.of(pixels)
    np.testing.assert_array_equal(image.inside(9, 4), pixels.repeat(2, axis=0).repeat(3, axis=1))
    assert region_from_json(image.to_json()) == image


points = st.tuples(st.floats(0, 1), st.floats(0, 1))
polygons = st.lists(points, min_size=3, max_size=8).map(lambda some: Polygon(tuple(some)))


@given(st.lists(polygons, max_size=3), st.lists(polygons, max_size=3), st.integers(1, 40), st.integers(1, 40))
def test_stored_regions_hide_the_same(ignore: list[Polygon], only: list[Polygon], width: int, height: int) -> None:
    regions = Regions(tuple(ignore), tuple(only))
    stored = Regions.from_json(regions.to_json())
    assert (stored, stored.sha256) == (regions, regions.sha256)
    np.testing.assert_array_equal(stored.hidden(width, height), regions.hidden(width, height))
    assert Regions(tuple(ignore[::-1]), tuple(only[::-1])).sha256 == regions.sha256
    assert bool(regions.sha256) == bool(regions) == (regions != NO_REGIONS)


def test_the_hash_tells_what_is_ignored_from_what_is_looked_at() -> None:
    hashes = {Regions(ignore=(LEFT,)).sha256, Regions(only=(LEFT,)).sha256, Regions(ignore=(TOP,)).sha256, NO_REGIONS.sha256}
    assert len(hashes) == 4


@pytest.mark.parametrize("channels", [1, 3])
def test_hidden_pixels_get_the_middle_brightness_of_their_frame(channels: int) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 20, 30, channels), dtype=np.uint8)
    frames[1, :, 15:] = 40
    frames[2, :, 15:] = 200
    frames[2, :5, 15:] = 0  # a thing that covers less than half of the visible pixels
    before = frames.copy()
    Blanker(Regions(ignore=(LEFT,)), 30, 20).blank(frames)
    np.testing.assert_array_equal(frames[:, :, 15:], before[:, :, 15:])
    assert (frames[1, :, :15] == 40).all()
    assert (frames[2, :, :15] == 200).all()
    assert np.unique(frames[0, :, :15].reshape(-1, channels), axis=0).shape == (1, channels)


def test_if_all_is_hidden_nothing_is_seen() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
    Blanker(Regions(ignore=(LEFT, Polygon(((0.4, 0.0), (1.0, 0.0), (1.0, 1.0), (0.4, 1.0))))), 8, 8).blank(frames)
    assert len(np.unique(frames)) == 1


def test_regions_are_for_the_cameras_that_their_names_fit() -> None:
    table = CameraRegions({"*": Regions(ignore=(TOP,)), "gate*": Regions(only=(LEFT,)), "[1]": Regions(ignore=(LEFT,))})
    assert table.of("yard") == Regions(ignore=(TOP,))
    assert table.of("gate/a.mp4") == Regions(ignore=(TOP,), only=(LEFT,))
    assert table.of("[1]") == Regions(ignore=(TOP, LEFT))  # this is the name of a camera, although it is also a glob for "1"
    assert table.unknown(["yard"]) == ["gate*", "[1]"]
    assert CameraRegions().of("yard") == NO_REGIONS
