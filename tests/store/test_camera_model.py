"""The files of camera models."""

import json

import numpy as np
import pytest

from vadcli.engine.cameras import read_camera, write_camera
from vadcli.errors import DocumentError
from vadcli.types import CameraModel

ARRAYS = {"background": np.arange(24, dtype=np.uint8).reshape(4, 6), "scale": np.linspace(0, 1, 5, dtype=np.float32)}
MODEL = CameraModel("cam/ü", "motion", 3, ARRAYS, {"shift": 0.25, "names": ["a"]})


def test_a_model_reads_back_with_the_same_hash(tmp_path):
    path = tmp_path / "cam.json"
    write_camera(path, MODEL)
    stored = read_camera(path)
    assert (stored.camera, stored.detector, stored.version, stored.values) == ("cam/ü", "motion", 3, MODEL.values)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(stored.arrays[name], array)
        assert stored.arrays[name].dtype == array.dtype
    assert stored.sha256 == MODEL.sha256


def document(**changes):
    return {**MODEL.to_json(), **changes}


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "not JSON"),
        (b"[]", "format version 1"),
        (json.dumps(document(format_version=2)).encode(), "format version 1"),
        (
            json.dumps(document(arrays={"a": {"dtype": "<f4", "shape": [3], "data": "eJwDAAAAAAE="}})).encode(),
            "not a camera model",
        ),
        (json.dumps(document(arrays={"a": {"dtype": "<f4", "shape": [3], "data": "AAAA"}})).encode(), "not a camera model"),
        (
            json.dumps(document(arrays={"a": {"dtype": "|O", "shape": [1], "data": "eJwDAAAAAAE="}})).encode(),
            "not a camera model",
        ),
        (json.dumps(document(arrays=[])).encode(), "not a camera model"),
        (json.dumps({"format_version": 1}).encode(), "no 'arrays'"),
    ],
)
def test_a_damaged_model_is_named_and_says_how_to_mend_it(tmp_path, data, what):
    path = tmp_path / "cam.json"
    path.write_bytes(data)
    with pytest.raises(DocumentError) as caught:
        read_camera(path)
    assert caught.value.message.startswith(f"{path}: ")
    assert what in caught.value.message
    assert "--refit" in caught.value.hint


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(DocumentError, match=r"cam\.json: can't be read"):
        read_camera(tmp_path / "cam.json")
