"""LAVIDA folders: written, read back, refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.detectors.lavida.models import PRESET, films, tiny_folder
from vadcli import weights
from vadcli.detectors.lavida import checkpoint
from vadcli.errors import WeightsError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "tiny"))


def mark_trained(folder: Path) -> None:
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**document, "trained": True}))


@torch.no_grad()
def test_a_stored_model_scores_as_before(tmp_path: Path) -> None:
    from vadcli.detectors.lavida.config import load_preset

    model = checkpoint.random_model(load_preset(PRESET), seed=3)
    checkpoint.save(model, tmp_path / "m", trained=True)
    stored = checkpoint.load(tmp_path / "m")
    frames = films(2)
    wanted = model(frames, model.questions(["fight"]))
    got = stored(frames, stored.questions(["fight"]))
    assert torch.equal(got.object_logit, wanted.object_logit)
    assert torch.equal(got.mask_logit, wanted.mask_logit)
    assert stored.config.trained
    assert weights.verify(tmp_path / "m").ok


def test_the_same_seed_gives_the_same_bytes(made: Path, tmp_path: Path) -> None:
    again = tiny_folder(tmp_path / "again")
    assert weights.fingerprint(again) == weights.fingerprint(made)
    checkpoint.create(PRESET, tmp_path / "other", seed=2)
    assert weights.fingerprint(tmp_path / "other") != weights.fingerprint(made)


def test_there_is_no_pickle_and_it_is_small(made: Path) -> None:
    suffixes = {path.suffix for path in made.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".safetensors", ".jinja"}
    assert sum(path.stat().st_size for path in made.rglob("*") if path.is_file()) < 12 << 20


def test_an_untrained_model_is_refused_with_what_to_do(folder: Path) -> None:
    with pytest.raises(WeightsError, match=r"never trained.*no public LAVIDA checkpoint.*train.*motion.*--allow-untrained"):
        checkpoint.load(folder)
    assert not checkpoint.load(folder, allow_untrained=True).config.trained


@torch.no_grad()
def test_a_missing_own_part_is_drawn_from_the_seed(folder: Path) -> None:
    (folder / checkpoint.OWN).unlink()
    mark_trained(folder)
    with pytest.raises(WeightsError, match="never trained"):
        checkpoint.load(folder)
    first, second = (checkpoint.load(folder, allow_untrained=True) for _ in range(2))
    frames = films(1)
    assert torch.equal(
        first(frames, first.questions(["fight"])).object_logit, second(frames, second.questions(["fight"])).object_logit
    )


@pytest.mark.parametrize("part", ["mllm", "text", "sam2"])
def test_a_missing_part_is_named(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    with pytest.raises(WeightsError, match=f"the {part} part is missing"):
        checkpoint.load(folder, allow_untrained=True)


def test_a_damaged_file_is_one_line(folder: Path) -> None:
    path = folder / "mllm" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(WeightsError, match="can't be loaded") as caught:
        checkpoint.load(folder, allow_untrained=True)
    assert "\n" not in str(caught.value)
    assert "weights verify" in caught.value.hint


def test_another_models_own_part_is_refused(folder: Path) -> None:
    own = load_file(folder / checkpoint.OWN)
    name = sorted(own)[0]
    save_file({**own, name: torch.zeros(3, 5)}, folder / checkpoint.OWN)
    with pytest.raises(WeightsError, match=r"is \(3, 5\) where"):
        checkpoint.load(folder, allow_untrained=True)
    save_file({**own, "projector.strange": torch.zeros(1)}, folder / checkpoint.OWN)
    with pytest.raises(WeightsError, match=r"projector\.strange"):
        checkpoint.load(folder, allow_untrained=True)
    save_file({key: value for key, value in own.items() if key != name}, folder / checkpoint.OWN)
    with pytest.raises(WeightsError, match="is missing"):
        checkpoint.load(folder, allow_untrained=True)


@torch.no_grad()
def test_an_overlay_replaces_trained_parts_of_the_base_models(folder: Path) -> None:
    before = checkpoint.load(folder, allow_untrained=True)
    name = "masks.sam2.mask_decoder.obj_score_token.weight"
    own = load_file(folder / checkpoint.OWN)
    save_file({**own, name: before.state_dict()[name] + 1}, folder / checkpoint.OWN)
    after = checkpoint.load(folder, allow_untrained=True)
    torch.testing.assert_close(after.state_dict()[name], before.state_dict()[name] + 1)


@torch.no_grad()
def test_adapters_beside_the_weights_are_merged(folder: Path) -> None:
    peft = pytest.importorskip("peft")
    model = checkpoint.load(folder, allow_untrained=True)
    before = model.mllm.qwen.model.language_model.layers[0].self_attn.q_proj.weight.clone()
    adapted = peft.get_peft_model(model.mllm.qwen, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(folder / checkpoint.ADAPTERS)
    merged = checkpoint.load(folder, allow_untrained=True)
    weight = merged.mllm.qwen.model.language_model.layers[0].self_attn.q_proj.weight
    assert not torch.allclose(weight, before)
    assert not any("lora" in name for name in merged.state_dict())


def test_not_a_folder_of_ours(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not a LAVIDA folder"):
        checkpoint.load(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(WeightsError, match=r"config\.json"):
        checkpoint.load(tmp_path)
