"""Tests of LAVIDA folders: they are written, read again, and refused if they are damaged."""

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
from vadcli.detectors.lavida.checkpoint import MEMORY
from vadcli.detectors.lavida.masks import TransformersMasks
from vadcli.errors import WeightsError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "tiny"))


def configure(folder: Path, **values: object) -> None:
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**document, **values}))


def edit(path: Path, **values: torch.Tensor | None) -> None:
    """Add tensors to a safetensors file, or remove them."""
    tensors = {**load_file(path), **values}
    save_file({name: value for name, value in tensors.items() if value is not None}, path, metadata={"format": "pt"})


def drop_memory(folder: Path) -> list[str]:
    """Remove the video memory from the SAM2 of a folder, as in a checkpoint for images."""
    path = folder / "sam2" / "model.safetensors"
    memory = [name for name in load_file(path) if name.split(".", maxsplit=1)[0] in MEMORY]
    edit(path, **dict.fromkeys(memory))
    return memory


@torch.no_grad()
def test_a_stored_model_scores_as_before(tmp_path: Path) -> None:
    from vadcli.detectors.lavida.checkpoint import load_preset

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


def test_token_ids_lie_within_small_vocabularies(made: Path) -> None:
    """For ids outside the vocabulary, transformers would write many warnings to stderr."""
    mllm, text = (json.loads((made / part / "config.json").read_text()) for part in ("mllm", "text"))
    size = mllm["text_config"]["vocab_size"]
    for config in (mllm, mllm["text_config"], text):
        ids = {name: value for name, value in config.items() if name.endswith("_token_id") and value is not None}
        assert len(ids) >= 2
        assert all(0 <= value < config.get("vocab_size", size) for value in ids.values()), ids


def test_an_untrained_model_is_refused_with_what_to_do(folder: Path) -> None:
    with pytest.raises(WeightsError, match=r"never trained.*no public LAVIDA checkpoint.*train.*motion.*--allow-untrained"):
        checkpoint.load(folder)
    assert not checkpoint.load(folder, allow_untrained=True).config.trained


@torch.no_grad()
def test_a_missing_own_part_is_drawn_from_the_seed(folder: Path) -> None:
    (folder / weights.OWN_NAME).unlink()
    configure(folder, trained=True)
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


FIRST = {
    "mllm": ("model.layers.1.input_layernorm.weight", "layers.1.input_layernorm.weight"),
    "text": ("encoder.layers.0.layer_norm1.bias", "encoder.layers.0.layer_norm1.bias"),
    "sam2": ("mask_decoder.conv_s0.bias", "mask_decoder.conv_s0.bias"),
}


@pytest.mark.parametrize("part", FIRST)
def test_nothing_that_the_files_lack_is_drawn(folder: Path, part: str) -> None:
    path = folder / part / "model.safetensors"
    stored, name = FIRST[part]
    whole = load_file(path)
    edit(path, **{stored: torch.ones(3, 5)})
    with pytest.raises(WeightsError, match=rf"{name} has shape \(3, 5\), not \(\d+,\)"):
        checkpoint.load(folder, allow_untrained=True)
    edit(path, **{stored: None, f"{stored}_of_old": whole[stored]})
    with pytest.raises(WeightsError, match=f"{name} is missing") as caught:
        checkpoint.load(folder, allow_untrained=True)
    assert "\n" not in str(caught.value)
    assert "incomplete" in caught.value.hint
    assert caught.value.exit_code == 4
    edit(path, **{stored: whole[stored]})
    with pytest.raises(WeightsError, match="_of_old' is not part of this model"):
        checkpoint.load(folder, allow_untrained=True)


def test_it_is_said_how_many_tensors_are_missing(folder: Path) -> None:
    path = folder / "sam2" / "model.safetensors"
    gone = sorted(name for name in load_file(path) if name.startswith("memory_attention."))
    edit(path, **dict.fromkeys(gone))
    with pytest.raises(WeightsError, match=rf"{gone[0]} is missing \({len(gone)} tensors are missing;"):
        checkpoint.load(folder, allow_untrained=True)


@torch.no_grad()
def test_a_sam2_for_images_marks_frames_and_propagates_nothing(folder: Path, tmp_path: Path) -> None:
    before = checkpoint.load(folder, allow_untrained=True)
    memory = drop_memory(folder)
    model = checkpoint.load(folder, allow_untrained=True)
    frames = films(1)
    wanted = before(frames, before.questions(["fight"])).mask_logit
    assert torch.equal(model(frames, model.questions(["fight"])).mask_logit, wanted)
    with pytest.raises(WeightsError, match="no memory to propagate masks"):
        model.propagate(frames[0], {0: wanted[0, 0]}, batch=1)
    checkpoint.save(model, tmp_path / "again", trained=False)
    assert not set(memory) & set(load_file(tmp_path / "again" / "sam2" / "model.safetensors"))
    again = checkpoint.load(tmp_path / "again", allow_untrained=True).masks
    assert isinstance(again, TransformersMasks)
    assert not again.has_memory


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("mllm/tokenizer.json", "{}"),
        ("mllm/tokenizer.json", '{"version": "1.0", "model": {"type": "Strange"}}'),
        ("text/tokenizer.json", "[]"),
        ("mllm/config.json", "[1]"),
        ("mllm/config.json", '{"model_type": "qwen2_vl", "text_config": 3}'),
        ("text/config.json", "null"),
        ("sam2/config.json", '{"model_type": "sam2_video", "vision_config": [1]}'),
        ("mllm/tokenizer_config.json", "[1]"),
    ],
)
def test_whatever_the_libraries_raise_is_one_line(folder: Path, file: str, text: str) -> None:
    (folder / file).write_text(text)
    with pytest.raises(WeightsError) as caught:
        checkpoint.load(folder, allow_untrained=True)
    assert str(folder) in caught.value.message
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["null", "[1]", "3", "{", "{}", '{"image_size": "large"}', '{"image_size": -1}', '{"vision_config": [1]}', "[" * 99999],
)
def test_sam2s_side_where_its_config_is_none(folder: Path, text: str) -> None:
    assert checkpoint.image_size(folder) == 256
    (folder / "sam2" / "config.json").write_text(text)
    with pytest.raises(WeightsError, match="image_size"):
        checkpoint.image_size(folder)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sampling": {"frames": 8.0}}, "sampling.frames is 8.0, not a whole number"),
        ({"sampling": {"rate_hz": "7.5"}}, 'sampling.rate_hz is "7.5", not a number'),
        ({"sampling": [8, 7.5]}, "sampling is [8, 7.5], not a table"),
        ({"pixels": {"static_threshold": float("nan")}}, "static_threshold is NaN, not a number"),
        ({"trained": "yes"}, 'trained is "yes", not true or false'),
        ({"trained": 1}, "trained is 1, not true or false"),
        ({"seed": True}, "seed is true, not a whole number"),
        ({"name": None}, "name is null, not a text"),
        ({"mask_gate": ["hard"]}, 'mask_gate is ["hard"], not one of hard, soft, off'),
        ({"lora": {"targets": "q_proj"}}, 'targets is "q_proj", not a list'),
        ({"parts": {"mllm": None}}, "mllm is null, not a table"),
    ],
)
def test_a_field_of_another_type_is_named(folder: Path, values: dict[str, object], words: str) -> None:
    configure(folder, **values)
    with pytest.raises(WeightsError) as caught:
        checkpoint.check(folder, allow_untrained=True)
    assert words in caught.value.message
    assert caught.value.exit_code == 4


def test_a_number_may_be_written_without_a_point(folder: Path) -> None:
    configure(folder, sampling={"rate_hz": 8}, lora={"targets": ["q_proj"]}, random_gain=None)
    config = checkpoint.check(folder, allow_untrained=True)
    assert (config.sampling.rate_hz, type(config.sampling.rate_hz)) == (8.0, float)
    assert config.lora.targets == ("q_proj",)


def test_a_config_alone_makes_no_part_trained(folder: Path) -> None:
    configure(folder, trained=True)
    with pytest.raises(WeightsError, match="never trained"):
        checkpoint.check(folder, allow_untrained=False)
    assert not checkpoint.check(folder, allow_untrained=True).trained
    assert not weights.is_trained(folder)
    own = load_file(folder / weights.OWN_NAME)
    save_file(own, folder / weights.OWN_NAME, metadata={"trained": "true"})
    assert checkpoint.check(folder, allow_untrained=False).trained
    assert weights.is_trained(folder)
    configure(folder, trained=False)
    assert not checkpoint.check(folder, allow_untrained=True).trained
    assert not weights.is_trained(folder)


def test_another_models_own_part_is_refused(folder: Path) -> None:
    own = load_file(folder / weights.OWN_NAME)
    name = sorted(own)[0]
    save_file({**own, name: torch.zeros(3, 5)}, folder / weights.OWN_NAME)
    with pytest.raises(WeightsError, match=r"has shape \(3, 5\), not"):
        checkpoint.load(folder, allow_untrained=True)
    save_file({**own, "projector.strange": torch.zeros(1)}, folder / weights.OWN_NAME)
    with pytest.raises(WeightsError, match=r"projector\.strange"):
        checkpoint.load(folder, allow_untrained=True)
    save_file({key: value for key, value in own.items() if key != name}, folder / weights.OWN_NAME)
    with pytest.raises(WeightsError, match="is missing"):
        checkpoint.load(folder, allow_untrained=True)


@torch.no_grad()
def test_an_overlay_replaces_trained_parts_of_the_base_models(folder: Path) -> None:
    before = checkpoint.load(folder, allow_untrained=True)
    name = "masks.sam2.mask_decoder.obj_score_token.weight"
    own = load_file(folder / weights.OWN_NAME)
    save_file({**own, name: before.state_dict()[name] + 1}, folder / weights.OWN_NAME)
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
