"""Weights by name: the manifest, checksums, LAVIDA folders, and fetching from a hub with faults."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from tests.commands import vadcli
from tests.fake_hub import FakeHub, Revision, serve
from tests.patience import PATIENCE_S
from vadcli import weights
from vadcli.detectors.mllm import MODELS
from vadcli.errors import VadcliError, WeightsError
from vadcli.weights.files import parse_manifest

TINY = "facebook/sam2.1-hiera-tiny"
CLIP = "openai/clip-vit-base-patch32"
TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float16)}


def lavida_folder(folder: Path, *, trained: bool = False) -> Path:
    """Make a LAVIDA folder whose tensors are useless, and return it."""
    for part in ("mllm", "text", "sam2"):
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text("{}")
        save_file(TENSORS, folder / part / "model.safetensors")
    save_file(TENSORS, folder / "lavida.safetensors", metadata={"trained": str(trained).lower()})
    (folder / "config.json").write_text(json.dumps({"format_version": 1, "name": folder.name, "trained": trained}))
    weights.write_checksums(folder)
    return folder


@pytest.fixture(autouse=True)
def own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    home = tmp_path / "home"
    monkeypatch.setenv("VADCLI_WEIGHTS", str(home))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return home


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serve() as running:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        files = {"config.json": b"{}", "model.safetensors": save(TENSORS), "weights.pt": b"\x80\x02", "README.md": b"#"}
        running.repos[TINY] = {"main": Revision("a" * 40, files)}
        yield running


def said_nothing(line: str) -> None:
    raise AssertionError(line)


# The manifest


def test_the_manifest_names_base_models_and_the_lavida_folders_made_of_them() -> None:
    known = weights.manifest()
    assert {name for name, item in known.items() if item.kind == "lavida"} == {"lavida-7b", "lavida-2b", "lavida-tiny"}
    assert known["lavida-7b"].parts == {"mllm": "qwen2-vl-7b", "text": "clip-b32", "sam2": "sam2.1-hiera-small"}
    assert known["qwen2-vl-2b"].repo_id == "Qwen/Qwen2-VL-2B-Instruct"
    for item in known.values():
        assert item.purpose
        assert item.licence
        if item.kind == "lavida":
            assert item.published == (item.name == "lavida-tiny"), "only the small one comes along"
            assert "vadcli weights import" in item.note or "tools.tiny_world" in item.note


def test_the_encoders_are_known_and_no_two_entries_share_a_download() -> None:
    encoders = {name: item.repo_id for name, item in weights.manifest().items() if item.kind == "encoder"}
    assert encoders == {
        "siglip2-b32": "google/siglip2-base-patch32-256",
        "siglip2-b16": "google/siglip2-base-patch16-224",
        "siglip2-so400m": "google/siglip2-so400m-patch14-384",
        "clip-b32": CLIP,
        "clip-b16": "openai/clip-vit-base-patch16",
        "clip-l14-336": "openai/clip-vit-large-patch14-336",
    }
    assert weights.entry("clip-vit-base-patch32") is weights.entry("clip-b32")
    assert next(iter(encoders)) == "siglip2-b32", "the default comes first"
    assert all((item.download_gb or 0) > 0 for item in weights.manifest().values() if item.on_hub)


def test_a_misspelt_encoder_gets_the_right_name() -> None:
    with pytest.raises(WeightsError) as caught:
        weights.find("siglip2-b23")
    assert "siglip2-b" in caught.value.hint
    with pytest.raises(WeightsError, match="an encoder, not a LAVIDA folder"):
        weights.locate("siglip2-b32")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("format_version = 2", ValueError),
        ('format_version = 1\n[x]\nkind = "base"\npurpose = ""\nlicence = ""', ValueError),
        ('format_version = 1\n[x]\nkind = "lavida"\npurpose = ""\nlicence = ""\nparts = {mllm = "y"}', KeyError),
        ('format_version = 1\n[x]\nkind = "base"\npurpose = ""\nlicence = ""\nrepo_id = "a/b"\nsha = "1"', TypeError),
        (
            'format_version = 1\n[x]\nkind = "base"\npurpose = ""\nlicence = ""\nrepo_id = "a/b"\n'
            '[y]\nkind = "encoder"\npurpose = ""\nlicence = ""\nrepo_id = "a/b"',
            ValueError,
        ),
        (
            'format_version = 1\n[x]\nkind = "base"\npurpose = ""\nlicence = ""\nrepo_id = "a/b"\naliases = ["y"]\n'
            '[y]\nkind = "encoder"\npurpose = ""\nlicence = ""\nrepo_id = "a/c"',
            ValueError,
        ),
        (
            'format_version = 1\n[x]\nkind = "base"\npurpose = ""\nlicence = ""\nrepo_id = "a/b"\n'
            'files = {"a" = {sha256 = "12", bytes = 1}}',
            ValueError,
        ),
    ],
    ids=["version", "no repository", "unknown part", "unknown field", "one repository", "one name", "not a hash"],
)
def test_a_wrong_manifest_is_not_taken(text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        parse_manifest(tomllib.loads(text))


def test_home_is_the_users_data_folder_unless_named(monkeypatch: pytest.MonkeyPatch, own_home: Path) -> None:
    assert weights.home() == own_home
    monkeypatch.delenv("VADCLI_WEIGHTS")
    assert weights.home().parts[-2:] == ("vadcli", "weights")


# Safetensors headers


def test_a_header_tells_names_shapes_and_metadata(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors", metadata={"trained": "true"})
    header = weights.read_header(tmp_path / "a.safetensors")
    assert header.metadata["trained"] == "true"
    assert dict(header.tensors) == {"a": ("F32", (2, 3)), "b": ("F16", (4,))}


SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)
DTYPES = st.sampled_from(["float16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool"])


@settings(max_examples=40)
@given(tensors=st.dictionaries(st.text(min_size=1, max_size=5), st.tuples(SHAPES, DTYPES), min_size=1, max_size=4))
def test_every_file_that_safetensors_writes_is_sound_and_no_shorter_one_is(
    tensors: dict[str, tuple[tuple[int, ...], str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    tensors.pop("__metadata__", None)
    data = save({name: np.zeros(shape, dtype) for name, (shape, dtype) in tensors.items()})
    path = tmp_path_factory.mktemp("header") / "a.safetensors"
    path.write_bytes(data)
    assert {name: shape for name, (_, shape) in weights.read_header(path).tensors.items()} == {
        name: shape for name, (shape, _) in tensors.items()
    }
    for length in {0, 4, 8, len(data) // 2, len(data) - 1}:
        path.write_bytes(data[:length])
        with pytest.raises(WeightsError):
            weights.read_header(path)


def header_bytes(document: object, data: bytes = b"") -> bytes:
    text = json.dumps(document).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (pickle.dumps({"a": [1, 2]}), "a pickle file with the suffix .safetensors"),
        (b"PK\x03\x04\x00\x00\x08\x08" + b"x" * 50, "a pickle file with the suffix .safetensors"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "a Git LFS pointer"),
        (b"\xff" * 64, "not a safetensors file"),
        ((1 << 62).to_bytes(8, "little") + b"{}", "not a safetensors file"),
        (b"", "not a safetensors file"),
        (header_bytes([1, 2]), "not a safetensors file"),
        (header_bytes({"a": {"dtype": "F32", "shape": [2]}}), "not a safetensors file"),
        (header_bytes({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"1234"), "cut short"),
        (header_bytes({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"1" * 9), "not a safetensors file"),
        (header_bytes({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, b"1" * 8), "not a safetensors file"),
        (
            header_bytes({name: {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]} for name in "ab"}, b"1" * 8),
            "not a safetensors file",
        ),
    ],
    ids=["pickle", "torch zip", "lfs", "noise", "huge", "empty", "list", "no offsets", "short", "long", "misfit", "overlap"],
)
def test_what_is_no_safetensors_is_refused_in_one_line(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(WeightsError) as caught:
        weights.read_header(path)
    assert words in caught.value.message
    assert str(path) in caught.value.message
    assert "\n" not in str(caught.value)


# Checksums


def test_verify_names_each_missing_changed_and_extra_file(tmp_path: Path) -> None:
    folder = lavida_folder(tmp_path / "model")
    assert weights.verify(folder).ok
    (folder / "text" / "config.json").unlink()
    own = folder / "lavida.safetensors"
    data = bytearray(own.read_bytes())
    data[-1] ^= 1
    own.write_bytes(data)
    (folder / "sam2" / "stray.json").write_text("{}")
    (folder / ".DS_Store").write_text("")
    result = weights.verify(folder)
    assert (result.missing, result.changed, result.extra) == (
        ("text/config.json",),
        ("lavida.safetensors",),
        ("sam2/stray.json",),
    )
    assert not result.ok


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[" * 100_000,
        '{"a": 1}',
        '{"../a": {"sha256": "%s", "bytes": 1}}' % ("0" * 64),
        '{"/a": {"sha256": "%s", "bytes": 1}}' % ("0" * 64),
        '{"a": {"sha256": "00", "bytes": 1}}',
    ],
)
def test_damaged_checksums_are_one_line(tmp_path: Path, text: str) -> None:
    folder = lavida_folder(tmp_path / "model")
    (folder / "checksums.json").write_text(text)
    with pytest.raises(WeightsError, match="not a list of checksums"):
        weights.verify(folder)


def test_a_folder_without_checksums_cannot_be_verified(tmp_path: Path) -> None:
    folder = lavida_folder(tmp_path / "model")
    (folder / "checksums.json").unlink()
    with pytest.raises(WeightsError, match="can't be checked"):
        weights.verify(folder)


def test_a_pickle_gets_no_checksum(tmp_path: Path) -> None:
    folder = lavida_folder(tmp_path / "model")
    (folder / "mllm" / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(WeightsError, match="may be a pickle"):
        weights.write_checksums(folder)


def test_loops_pipes_and_dangling_links_hold_nothing_up(tmp_path: Path) -> None:
    folder = lavida_folder(tmp_path / "model")
    listed = weights.fingerprint(folder)
    (folder / "text" / "loop").symlink_to(folder)
    (folder / "text" / "gone.json").symlink_to(tmp_path / "nowhere")
    os.mkfifo(folder / "pipe.safetensors")
    assert weights.verify(folder).ok
    assert weights.fingerprint(folder) == listed
    assert weights.locate(str(folder)) == folder
    with pytest.raises(WeightsError, match="not a file"):
        weights.read_header(folder / "pipe.safetensors")


def test_the_fingerprint_is_of_the_contents_with_checksums_or_without(tmp_path: Path) -> None:
    folder = lavida_folder(tmp_path / "model")
    listed = weights.fingerprint(folder)
    (folder / "checksums.json").unlink()
    assert weights.fingerprint(folder) == listed
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    assert weights.fingerprint(folder) != listed
    other = lavida_folder(tmp_path / "other" / "model")
    assert weights.fingerprint(other) == listed


def test_the_fingerprint_reads_nothing_where_the_list_fits(tmp_path: Path) -> None:
    folder = lavida_folder(tmp_path / "model")
    listed = weights.fingerprint(folder)
    sums = json.loads((folder / "checksums.json").read_text())
    sums["config.json"]["sha256"] = "0" * 64
    (folder / "checksums.json").write_text(json.dumps(sums))
    assert weights.fingerprint(folder) != listed, "the listed hashes count"


def test_a_file_written_after_the_list_is_read(tmp_path: Path) -> None:
    folder = lavida_folder(tmp_path / "model")
    before = weights.fingerprint(folder)
    own = folder / "lavida.safetensors"
    save_file({**TENSORS, "b": TENSORS["b"] * 2}, own, metadata={"trained": "false"})
    later = (folder / "checksums.json").stat().st_mtime_ns + 10**9
    os.utime(own, ns=(later, later))
    assert own.stat().st_size == json.loads((folder / "checksums.json").read_text())["lavida.safetensors"]["bytes"]
    assert weights.fingerprint(folder) != before


# LAVIDA folders


def test_a_path_comes_before_a_name_and_a_name_at_home_is_found(
    tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_home = lavida_folder(own_home / "lavida-2b")
    mine = lavida_folder(own_home / "mine", trained=True)
    here = lavida_folder(tmp_path / "work" / "lavida-2b")
    assert weights.locate("lavida-2b") == at_home
    assert weights.locate("mine") == mine
    assert weights.locate(str(here)) == here
    monkeypatch.chdir(tmp_path / "work")
    assert weights.locate("lavida-2b").resolve() == here
    assert weights.is_trained(mine)
    assert not weights.is_trained(at_home)


def test_weights_of_the_checkout_are_found_last(tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = tmp_path / "checkout"
    (checkout / "vadcli").mkdir(parents=True)
    monkeypatch.setattr("vadcli.__file__", str(checkout / "vadcli" / "__init__.py"))
    packaged = lavida_folder(checkout / "vadcli" / "weights" / "lavida-tiny")
    assert weights.locate("lavida-tiny") == packaged
    stray = lavida_folder(checkout / "weights" / "lavida-tiny")
    assert weights.locate("lavida-tiny") == packaged, "a folder beside an installed package is not ours"
    (checkout / "pyproject.toml").write_text("")
    assert weights.locate("lavida-tiny") == stray
    assert weights.locate("lavida-tiny") != lavida_folder(own_home / "lavida-tiny")
    assert weights.locate("lavida-tiny") == own_home / "lavida-tiny"


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("lavida-7b", "no public trained checkpoint exists"),
        ("qwen2-vl-7b", "a base model"),
        ("nonsense", "known: lavida-7b, lavida-2b, lavida-tiny"),
        ("./nowhere", "the folder does not exist"),
    ],
)
def test_what_is_not_here_is_one_line_and_what_to_do(model: str, words: str) -> None:
    with pytest.raises(WeightsError) as caught:
        weights.locate(model)
    assert words in caught.value.message
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 4


def test_half_a_folder_is_refused(tmp_path: Path) -> None:
    folder = lavida_folder(tmp_path / "model")
    shutil.rmtree(folder / "text")
    with pytest.raises(WeightsError, match="text/ missing"):
        weights.locate(str(folder))
    with pytest.raises(WeightsError, match="it has no config"):
        weights.locate(str(tmp_path))
    with pytest.raises(WeightsError, match="no format_version"):
        weights.locate(str(folder / "sam2"))


def test_a_disguised_pickle_in_a_folder_is_refused(tmp_path: Path) -> None:
    folder = lavida_folder(tmp_path / "model")
    (folder / "mllm" / "model.safetensors").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(WeightsError, match="a pickle file with the suffix"):
        weights.locate(str(folder))


def test_status_tells_what_is_here(own_home: Path) -> None:
    lavida_folder(own_home / "lavida-2b")
    lavida_folder(own_home / "mine", trained=True)
    save_file(TENSORS, lavida_folder(own_home / "claimed", trained=True) / "lavida.safetensors", metadata={"trained": "false"})
    (lavida_folder(own_home / "bare", trained=True) / "lavida.safetensors").unlink()
    (lavida_folder(own_home / "lavida-tiny") / "sam2" / "model.safetensors").write_bytes(b"")
    states = {item.name: item.state for item in weights.status()}
    assert states["lavida-2b"] == "untrained"
    assert states["mine"] == "trained"
    assert states["claimed"] == states["bare"] == "untrained", "the file itself has to say so"
    assert states["lavida-tiny"] == "damaged"
    assert states["lavida-7b"] == states["qwen2-vl-7b"] == "absent"
    assert [json.loads(json.dumps(item.to_json()))["name"] for item in weights.status()] == list(states)


# Fetching


def test_a_pull_takes_no_pickle_and_pins_what_the_hub_declares(hub: FakeHub, own_home: Path) -> None:
    lines: list[str] = []
    (pulled,) = weights.pull("sam2.1-hiera-tiny", say=lines.append)
    assert pulled.fetched
    assert sorted(hub.downloads()) == ["config.json", "model.safetensors"]
    assert sorted(path.name for path in pulled.folder.iterdir()) == ["config.json", "model.safetensors"]
    assert any(TINY in line for line in lines)
    lock = json.loads((own_home / ".locks" / "sam2.1-hiera-tiny.json").read_text())
    revision = hub.repos[TINY]["main"]
    assert lock["commit"] == revision.commit == pulled.commit
    assert lock["files"]["model.safetensors"]["sha256"] == revision.etag("model.safetensors")
    assert weights.base_folder("sam2.1-hiera-tiny") == pulled.folder
    assert weights.verify_pulled("sam2.1-hiera-tiny").ok
    assert {item.name: item.state for item in weights.status()}["sam2.1-hiera-tiny"] == "here"


def test_what_is_here_is_not_asked_for_again(hub: FakeHub) -> None:
    weights.pull("sam2.1-hiera-tiny")
    hub.requests.clear()
    (again,) = weights.pull("sam2.1-hiera-tiny", say=said_nothing)
    assert not again.fetched
    assert hub.requests == []


def test_a_pull_stays_at_its_commit_until_update(hub: FakeHub) -> None:
    weights.pull("sam2.1-hiera-tiny")
    newer = {**hub.repos[TINY]["main"].files, "config.json": b'{"new": 1}'}
    hub.repos[TINY] = {"main": Revision("b" * 40, newer), "old": hub.repos[TINY]["main"]}
    assert weights.pull("sam2.1-hiera-tiny")[0].commit == "a" * 40
    (updated,) = weights.pull("sam2.1-hiera-tiny", update=True)
    assert updated.commit == "b" * 40
    assert (updated.folder / "config.json").read_bytes() == b'{"new": 1}'


@pytest.mark.parametrize("name", MODELS)
def test_language_models_are_pinned(name: str) -> None:
    found = weights.entry(name)
    assert re.fullmatch("[0-9a-f]{40}", found.revision or "")
    assert found.download_gb == pytest.approx(sum(one.bytes for one in found.files.values()) / 1e9, abs=0.1) or not found.files


def test_other_bytes_than_the_pinned_ones_are_refused_and_update_takes_the_newest(hub: FakeHub) -> None:
    pinned = weights.entry("qwen3-vl-2b")
    files = {"config.json": b"{}", "model.safetensors": save(TENSORS)}
    hub.repos[pinned.repo_id] = {"main": Revision("b" * 40, files), "pinned": Revision(str(pinned.revision), files)}
    with pytest.raises(WeightsError, match="still differs from the file"):
        weights.pull("qwen3-vl-2b")
    assert weights.pull("qwen3-vl-2b", update=True)[0].commit == "b" * 40


def test_a_damaged_file_is_fetched_again_and_the_others_are_not(hub: FakeHub) -> None:
    (pulled,) = weights.pull("sam2.1-hiera-tiny")
    blob = (pulled.folder / "model.safetensors").resolve()
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    assert weights.verify_pulled("sam2.1-hiera-tiny").changed == ("model.safetensors",)
    hub.requests.clear()
    weights.pull("sam2.1-hiera-tiny")
    assert hub.downloads() == ["model.safetensors"]
    assert weights.verify_pulled("sam2.1-hiera-tiny").ok


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_what_is_not_what_the_hub_declares_is_refused_and_removed(hub: FakeHub, name: str, own_home: Path) -> None:
    hub.garbled.add(name)
    with pytest.raises(WeightsError, match="still differs from the file"):
        weights.pull("sam2.1-hiera-tiny")
    assert weights.base_folder("sam2.1-hiera-tiny") is None
    assert not (own_home / ".locks").exists()
    hub.garbled.clear()
    weights.pull("sam2.1-hiera-tiny")
    assert weights.verify_pulled("sam2.1-hiera-tiny").ok


def test_a_pickle_that_the_hub_calls_safetensors_is_refused(hub: FakeHub) -> None:
    hub.repos[TINY]["main"].files["model.safetensors"] = pickle.dumps({"a": 1})
    with pytest.raises(WeightsError, match="a pickle file with the suffix"):
        weights.pull("sam2.1-hiera-tiny")


@pytest.mark.parametrize(
    ("status", "code", "words", "exit_code"),
    [
        (404, "RepoNotFound", "no such repository", 4),
        (403, "GatedRepo", "ask for access", 4),
        (404, "RevisionNotFound", "no longer has the pinned revision", 4),
        (500, "", "answered with status 500", 1),
        (429, "", "answered with status 429", 1),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    hub: FakeHub, status: int, code: str, words: str, exit_code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.refuse[TINY] = (status, code)
    with pytest.raises(VadcliError) as caught:
        weights.pull("sam2.1-hiera-tiny")
    assert words in caught.value.message
    assert TINY in caught.value.message
    assert caught.value.hint
    assert caught.value.exit_code == exit_code
    assert "\n" not in str(caught.value)


def test_a_connection_that_breaks_off_is_one_line_and_the_next_pull_goes_on(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.cut.add("model.safetensors")
    with pytest.raises(VadcliError) as caught:
        weights.pull("sam2.1-hiera-tiny")
    assert caught.value.exit_code == 1
    assert "to continue" in caught.value.hint
    assert "\n" not in str(caught.value)
    hub.cut.clear()
    hub.requests.clear()
    weights.pull("sam2.1-hiera-tiny")
    assert hub.downloads() == ["model.safetensors"]


def test_no_network_is_one_line(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(VadcliError, match="can't be fetched") as caught:
        weights.pull("sam2.1-hiera-tiny")
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)


def test_a_disk_that_is_too_small_is_said_before_anything_is_fetched(hub: FakeHub) -> None:
    hub.sizes["model.safetensors"] = 10**18
    with pytest.raises(VadcliError, match="GB to fetch, but only") as caught:
        weights.pull("sam2.1-hiera-tiny")
    assert caught.value.exit_code == 1
    assert hub.downloads() == []


def test_a_disk_that_fills_up_is_one_line(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device", "blob")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(VadcliError, match="no space left on the device") as caught:
        weights.pull("sam2.1-hiera-tiny")
    assert "HF_HOME" in caught.value.hint


def test_offline_takes_what_is_cached_and_nothing_else(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, own_home: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE is set and it is not in the cache"):
        weights.pull("sam2.1-hiera-tiny")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    (fetched,) = weights.pull("sam2.1-hiera-tiny")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert weights.pull("sam2.1-hiera-tiny", say=said_nothing)[0].folder == fetched.folder
    shutil.rmtree(own_home)
    lines: list[str] = []
    assert weights.pull("sam2.1-hiera-tiny", say=lines.append)[0].folder == fetched.folder
    assert "taken from the cache without a check" in lines[0]
    assert hub.requests == []


def test_pickles_only_means_the_hubs_own_conversion_of_the_same_pickle(hub: FakeHub) -> None:
    original = {"config.json": b"{}", "pytorch_model.bin": b"weights"}
    converted = {**original, "model.safetensors": save(TENSORS)}
    hub.repos[CLIP] = {
        "main": Revision("c" * 40, original),
        "refs/pr/1": Revision("1" * 40, converted),
        "refs/pr/2": Revision("2" * 40, {**converted, "pytorch_model.bin": b"others"}),
        "refs/pr/3": Revision("3" * 40, converted),
    }
    hub.discussions[CLIP] = [(1, "somebody", "open"), (2, "SFconvertbot", "open")]
    with pytest.raises(WeightsError, match="no safetensors, and pickles are not fetched"):
        weights.pull("clip-b32")
    hub.discussions[CLIP].append((3, "SFconvertbot", "open"))
    lines: list[str] = []
    (pulled,) = weights.pull("clip-b32", say=lines.append)
    assert pulled.commit == "3" * 40
    assert not (pulled.folder / "pytorch_model.bin").exists()
    assert "SFconvertbot" in lines[0]


def test_a_lavida_name_pulls_its_base_models(hub: FakeHub) -> None:
    files = {"config.json": b"{}", "model.safetensors": save(TENSORS)}
    for number, part in enumerate(weights.entry("lavida-2b").parts.values()):
        hub.repos[weights.entry(part).repo_id] = {"main": Revision(str(number) * 40, files)}
    pinned = weights.entry("qwen2-vl-2b")
    assert pinned.revision
    hub.repos[pinned.repo_id]["pinned"] = Revision(pinned.revision, files)
    pulled = weights.pull("lavida-2b")
    assert [item.name for item in pulled] == ["qwen2-vl-2b", "clip-b32", "sam2.1-hiera-small"]
    assert [item.commit for item in pulled] == [pinned.revision, "1" * 40, "2" * 40]
    with pytest.raises(WeightsError, match="nothing to fetch"):
        weights.pull("lavida-tiny")


SIGLIP = "google/siglip2-base-patch32-256"
SIGLIP_NAMES = ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")
SIGLIP_FILES = {name: json.dumps({"file": name}).encode() for name in SIGLIP_NAMES}
OTHER_FILES = {"tokenizer.model": b"the same once more", "README.md": b"#", ".gitattributes": b"", "onnx/model.onnx": b"x"}


def test_an_encoder_is_pulled_with_its_tokenizer_and_nothing_that_is_not_read(hub: FakeHub) -> None:
    hub.repos[SIGLIP] = {"main": Revision("e" * 40, {**SIGLIP_FILES, **OTHER_FILES, "model.safetensors": save(TENSORS)})}
    (pulled,) = weights.pull("siglip2-b32")
    assert sorted(hub.downloads()) == sorted([*SIGLIP_FILES, "model.safetensors"])
    hub.requests.clear()
    assert weights.find("siglip2-b32") == pulled.folder
    assert hub.requests == []
    assert {item.name: item.state for item in weights.status()}["siglip2-b32"] == "here"


def clip_on(hub: FakeHub) -> None:
    files = {"config.json": b"{}", "vocab.json": b'{"a": 1}', "merges.txt": b"a b", "model.safetensors": save(TENSORS)}
    hub.repos[CLIP] = {"main": Revision("c" * 40, files)}


def test_two_names_of_one_repository_are_one_download_and_one_line_of_the_list(hub: FakeHub, own_home: Path) -> None:
    clip_on(hub)
    lines: list[str] = []
    (pulled,) = weights.pull("clip-vit-base-patch32", say=lines.append)
    assert pulled.name == "clip-b32"
    assert "clip-vit-base-patch32 is another name of clip-b32" in lines
    hub.requests.clear()
    assert not weights.pull("clip-b32")[0].fetched
    assert hub.requests == []
    assert weights.find("clip-vit-base-patch32") == weights.find("clip-b32") == pulled.folder
    assert [item.name for item in weights.status() if item.entry and item.entry.repo_id == CLIP] == ["clip-b32"]
    assert [path.name for path in (own_home / ".locks").iterdir()] == ["clip-b32.json"]


def test_a_lock_under_the_older_name_still_counts(hub: FakeHub, own_home: Path) -> None:
    clip_on(hub)
    weights.pull("clip-b32")
    (own_home / ".locks" / "clip-b32.json").rename(own_home / ".locks" / "clip-vit-base-patch32.json")
    hub.requests.clear()
    assert not weights.pull("clip-b32")[0].fetched
    assert hub.requests == []
    weights.remove("clip-b32")
    assert list((own_home / ".locks").iterdir()) == []


# Removing


def test_what_was_pulled_is_removed_with_its_lock_and_can_be_pulled_again(hub: FakeHub, own_home: Path, tmp_path: Path) -> None:
    (pulled,) = weights.pull("sam2.1-hiera-tiny")
    hub.requests.clear()
    removed = weights.remove("sam2.1-hiera-tiny")
    assert (removed.commit, removed.freed_bytes, removed.kept_bytes) == (pulled.commit, pulled.bytes, 0)
    assert hub.requests == [], "removing needs no network"
    assert not pulled.folder.exists()
    assert not [path for path in (tmp_path / "hub").rglob("*") if "snapshots" in path.parts or "blobs" in path.parts]
    assert not list((own_home / ".locks").iterdir())
    assert weights.base_folder("sam2.1-hiera-tiny") is None
    assert {item.name: item.state for item in weights.status()}["sam2.1-hiera-tiny"] == "absent"
    with pytest.raises(WeightsError, match="nothing to remove"):
        weights.remove("sam2.1-hiera-tiny")
    assert weights.pull("sam2.1-hiera-tiny")[0].fetched


def test_another_revision_of_the_same_model_stays(hub: FakeHub) -> None:
    (old,) = weights.pull("sam2.1-hiera-tiny")
    newer = {**hub.repos[TINY]["main"].files, "config.json": b'{"new": 1}'}
    hub.repos[TINY] = {"main": Revision("b" * 40, newer)}
    (new,) = weights.pull("sam2.1-hiera-tiny", update=True)
    lines: list[str] = []
    removed = weights.remove("sam2.1-hiera-tiny", say=lines.append)
    assert not new.folder.exists()
    assert (old.folder / "model.safetensors").is_file(), "the older revision uses the same tensors"
    assert removed.freed_bytes == len(b'{"new": 1}')
    assert removed.kept_bytes == old.bytes
    assert "other revisions" in lines[-1]


def test_removing_says_who_else_uses_the_files(hub: FakeHub, tmp_path: Path) -> None:
    clip_on(hub)
    (pulled,) = weights.pull("clip-b32")
    built = tmp_path / "linked.safetensors"
    os.link((pulled.folder / "model.safetensors").resolve(), built)
    lines: list[str] = []
    removed = weights.remove("clip-vit-base-patch32", say=lines.append)
    assert lines[0] == "clip-vit-base-patch32: the same files are also called clip-b32"
    assert [line for line in lines if "lavida-2b is built from it" in line]
    assert built.stat().st_size > 0
    assert removed.freed_bytes == pulled.bytes - built.stat().st_size, "a file with another hard link frees nothing"


def test_what_is_not_ours_to_remove_is_refused_in_one_line(
    hub: FakeHub, own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = lavida_folder(own_home / "mine")
    lavida_folder(own_home / "lavida-2b")
    shutil.copytree(mine, tmp_path / "work" / "sam2.1-hiera-tiny")
    monkeypatch.chdir(tmp_path / "work")
    for name, words in {
        "lavida-2b": "this command does not remove LAVIDA folders",
        "lavida-tiny": "this command does not remove LAVIDA folders",
        "mine": "this command does not remove your own folders",
        str(mine): "this command does not remove your own folders",
        "./nowhere": "this command does not remove your own folders",
        "siglip2-b23": "no weights are called",
        "sam2.1-hiera-tiny": "not fetched by vadcli",
    }.items():
        with pytest.raises(WeightsError, match=words) as caught:
            weights.remove(name)
        assert caught.value.hint
        assert "\n" not in str(caught.value)
    weights.pull("sam2.1-hiera-tiny")
    weights.remove("sam2.1-hiera-tiny")
    assert (tmp_path / "work" / "sam2.1-hiera-tiny" / "config.json").is_file(), "a folder of the same name is left alone"
    assert mine.is_dir()


def test_files_that_cannot_be_deleted_keep_the_lock(hub: FakeHub, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights.pull("sam2.1-hiera-tiny")
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.utils._cache_manager._try_delete_path", lambda *arguments, **options: None)
        with pytest.raises(VadcliError, match="can't be deleted") as caught:
            weights.remove("sam2.1-hiera-tiny")
    assert caught.value.hint
    assert (own_home / ".locks" / "sam2.1-hiera-tiny.json").is_file()
    assert weights.remove("sam2.1-hiera-tiny").freed_bytes > 0


def test_the_command_removes_several_and_exits_4_if_one_is_refused(tmp_path: Path) -> None:
    with serve() as hub:
        clip_on(hub)
        environment = {"VADCLI_WEIGHTS": str(tmp_path / "home"), "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url}
        assert vadcli("weights", "pull", "clip-b32", cwd=tmp_path, **environment).returncode == 0
    done = vadcli("weights", "remove", "lavida-tiny", "clip-b32", "--json", cwd=tmp_path, **environment)
    assert done.returncode == 4
    assert "this command does not remove LAVIDA folders" in done.stderr
    (line,) = map(json.loads, done.stdout.splitlines())
    assert line["name"] == "clip-b32"
    assert line["freed_bytes"] > 0
    assert "also called clip-vit-base-patch32" in done.stderr
    table = vadcli("weights", "list", cwd=tmp_path, **environment).stdout
    assert sum("clip-vit-base-patch32" in line for line in table.splitlines()) == 1


def test_a_model_with_a_shard_missing_is_not_whole(hub: FakeHub) -> None:
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode()
    shards = {f"model-{number}.safetensors": save(TENSORS) for number in (1, 2)}
    hub.repos[TINY]["main"] = Revision("d" * 40, {"config.json": b"{}", "model.safetensors.index.json": index, **shards})
    (pulled,) = weights.pull("sam2.1-hiera-tiny")
    (pulled.folder / "model-2.safetensors").unlink()
    assert weights.base_folder("sam2.1-hiera-tiny") is None
    weights.pull("sam2.1-hiera-tiny")
    assert weights.base_folder("sam2.1-hiera-tiny") == pulled.folder


def test_a_damaged_lock_is_one_line(own_home: Path) -> None:
    (own_home / ".locks").mkdir(parents=True)
    (own_home / ".locks" / "qwen2-vl-2b.json").write_text("{")
    with pytest.raises(WeightsError, match="not a lock"):
        weights.base_folder("qwen2-vl-2b")
    assert {item.name: item.state for item in weights.status()}["qwen2-vl-2b"] == "damaged"


def test_locating_weights_imports_nothing_heavy(tmp_path: Path) -> None:
    folder = lavida_folder(tmp_path / "model")
    code = (
        "import sys; from vadcli import weights; weights.locate(sys.argv[1]); weights.fingerprint(weights.locate(sys.argv[1]));"
        "print(sorted({'torch', 'transformers', 'huggingface_hub', 'httpx'} & set(sys.modules)))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    assert said.stdout.strip() == "[]"


def test_the_small_checkpoint_comes_along_whole_and_small() -> None:
    folder = Path(__file__).resolve().parents[1] / "weights" / "lavida-tiny"
    assert weights.locate("lavida-tiny") == folder
    assert weights.is_trained(folder)
    assert weights.verify(folder).ok
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 10e6
