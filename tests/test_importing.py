"""Building LAVIDA folders from small models that look like the public ones, and errors for other models."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Sam2VideoModel,
)

from vadcli import weights
from vadcli.detectors.lavida.checkpoint import load_preset
from vadcli.detectors.lavida.importing import Sources, import_lavida
from vadcli.detectors.lavida.sam2 import package_state, sam2_config
from vadcli.detectors.lavida.text import CHAT_TEMPLATE, CLIP_SPECIALS, QWEN_SPECIALS, SEG, small_text_tokenizer
from vadcli.errors import UsageError, VadcliError, WeightsError

PRESET = load_preset("lavida-tiny")


@pytest.fixture(autouse=True)
def own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("VADCLI_WEIGHTS", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "home"


def qwen_folder(folder: Path, sizes: dict[str, Any]) -> Path:
    """A Qwen2-VL folder as the hub has them: a tokenizer with a chat template, without `<SEG>`."""
    raw = Tokenizer(
        models.BPE(vocab={piece: number for number, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(list(QWEN_SPECIALS))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    config = Qwen2VLConfig(**sizes)
    config.video_token_id = tokenizer.convert_tokens_to_ids("<|video_pad|>")
    config.image_token_id = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def clip_folder(folder: Path, sizes: dict[str, Any]) -> Path:
    """Make a folder with a whole CLIP: text and vision."""
    words = small_text_tokenizer(640, 32)
    start, end = words.convert_tokens_to_ids(list(CLIP_SPECIALS))
    text = {**sizes, "bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """Public base models in miniature."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    Sam2VideoModel(sam2_config(**PRESET.parts.sam2)).save_pretrained(folder / "sam2")
    return Sources(
        qwen=qwen_folder(folder / "qwen", dict(PRESET.parts.mllm)),
        clip=clip_folder(folder / "clip", dict(PRESET.parts.text)),
        sam2=folder / "sam2",
    )


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    return tmp_path / "out" / "model"


def left_over(dest: Path) -> list[str]:
    """What stands beside the destination."""
    return sorted(path.name for path in dest.parent.iterdir() if path != dest) if dest.parent.exists() else []


def test_a_folder_of_public_parts_can_be_loaded(base: Sources, dest: Path) -> None:
    from vadcli.detectors.lavida import checkpoint

    result = import_lavida("lavida-tiny", dest, base)
    assert weights.locate(str(dest)) == dest
    assert weights.verify(dest).ok
    assert left_over(dest) == []
    assert not result.trained
    assert not weights.is_trained(dest)
    assert json.loads((dest / "config.json").read_text())["sources"]["mllm"] == str(base.qwen)
    with pytest.raises(WeightsError, match="never trained"):
        checkpoint.load(dest)
    model = checkpoint.load(dest, allow_untrained=True)
    assert model.tokenizer.convert_tokens_to_ids(SEG) == len(model.tokenizer) - 1


def test_weights_are_linked_and_what_is_written_to_is_not(base: Sources, dest: Path) -> None:
    assert base.qwen is not None
    before = {path: path.read_bytes() for path in base.qwen.iterdir()}
    result = import_lavida("lavida-tiny", dest, base)
    assert "mllm/model.safetensors" in result.linked
    assert (dest / "mllm" / "model.safetensors").samefile(base.qwen / "model.safetensors")
    assert {path: path.read_bytes() for path in base.qwen.iterdir()} == before
    assert SEG in (dest / "mllm" / "tokenizer.json").read_text()
    assert SEG not in (base.qwen / "tokenizer.json").read_text()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_others_may_read_what_is_written_as_the_umask_says(
    base: Sources, dest: Path, monkeypatch: pytest.MonkeyPatch, umask: int, mode: int
) -> None:
    before = os.umask(umask)
    try:
        import_lavida("lavida-tiny", dest, replace(base, sam2=None), random_weights=True)
    finally:
        os.umask(before)
    assert base.qwen is not None
    theirs = (base.qwen / "model.safetensors").stat().st_mode
    assert (dest / "mllm" / "model.safetensors").stat().st_mode == theirs, "a link: not ours to change"
    files = [dest / "config.json", dest / weights.CHECKSUMS_NAME, *dest.rglob("*.safetensors")]
    modes = {str(path.relative_to(dest)): path.stat().st_mode & 0o777 for path in files if path.stat().st_nlink == 1}
    ours = ("config.json", weights.CHECKSUMS_NAME, "sam2/model.safetensors", "text/model.safetensors")
    assert modes == dict.fromkeys(ours, mode)


def test_a_file_system_without_permissions_is_no_obstacle(base: Sources, dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, mode: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(path))

    monkeypatch.setattr(Path, "chmod", refuse)
    import_lavida("lavida-tiny", dest, replace(base, sam2=None), random_weights=True)
    assert weights.verify(dest).ok


def test_links_through_the_hub_caches_own_links(base: Sources, dest: Path, tmp_path: Path) -> None:
    assert base.sam2 is not None
    linked = tmp_path / "snapshot"
    linked.mkdir()
    for path in base.sam2.iterdir():
        (linked / path.name).symlink_to(path)
    import_lavida("lavida-tiny", dest, replace(base, sam2=linked))
    assert not (dest / "sam2" / "model.safetensors").is_symlink()
    assert (dest / "sam2" / "model.safetensors").samefile(base.sam2 / "model.safetensors")


def test_copies_where_nothing_can_be_linked(base: Sources, dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    result = import_lavida("lavida-tiny", dest, base)
    assert result.linked == []
    assert {"mllm/model.safetensors", "sam2/model.safetensors"} <= set(result.copied)
    assert weights.verify(dest).ok


def test_the_text_encoder_is_the_text_half_of_clip(base: Sources, dest: Path) -> None:
    assert base.clip is not None
    import_lavida("lavida-tiny", dest, base)
    ids = torch.tensor([[5, 9, 20, 1]])
    half, whole = CLIPTextModel.from_pretrained(dest / "text"), CLIPModel.from_pretrained(base.clip)
    with torch.no_grad():
        torch.testing.assert_close(
            half(input_ids=ids).last_hidden_state, whole.text_model(input_ids=ids).last_hidden_state, rtol=0, atol=0
        )
    assert not any("vision" in name for name in load_file(dest / "text" / "model.safetensors"))
    assert (dest / "text" / "tokenizer.json").is_file()


@pytest.mark.parametrize(("metadata", "trained"), [({"trained": "true"}, True), ({"trained": "false"}, False), (None, False)])
def test_only_its_own_metadata_makes_a_part_trained(
    base: Sources, dest: Path, tmp_path: Path, metadata: dict[str, str] | None, trained: bool
) -> None:
    own = tmp_path / "own.safetensors"
    save_file({"projector.x": torch.ones(2)}, own, metadata=metadata)
    result = import_lavida("lavida-tiny", dest, replace(base, own=own))
    assert result.trained is weights.is_trained(dest) is trained
    assert (dest / "lavida.safetensors").samefile(own)
    assert any("is not marked as trained" in note for note in result.notes) is not trained


def test_adapters_are_taken_along(base: Sources, dest: Path, tmp_path: Path) -> None:
    lora = tmp_path / "lora"
    lora.mkdir()
    (lora / "adapter_config.json").write_text("{}")
    (lora / "adapter_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(WeightsError, match=r"adapter_model\.safetensors is missing"):
        import_lavida("lavida-tiny", dest, replace(base, lora=lora))
    save_file({"a": torch.ones(1)}, lora / "adapter_model.safetensors")
    import_lavida("lavida-tiny", dest, replace(base, lora=lora))
    assert sorted(path.name for path in (dest / "lora").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_a_model_drawn_at_random_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder, seed in zip(folders, (1, 1, 2), strict=True):
        result = import_lavida("lavida-tiny", folder, Sources(), random_weights=True, seed=seed)
        assert any("random weights" in note for note in result.notes)
        assert not weights.is_trained(folder)
    own = [load_file(folder / "lavida.safetensors") for folder in folders]
    assert all(torch.equal(own[0][name], own[1][name]) for name in own[0].keys() | own[1].keys())
    sums = [json.loads((folder / "checksums.json").read_text()) for folder in folders]
    for part in ("mllm", "text", "sam2"):
        first, second, third = (each[f"{part}/model.safetensors"] for each in sums)
        assert first == second != third


def test_what_is_missing_is_drawn_and_what_is_given_is_not(base: Sources, dest: Path) -> None:
    from vadcli.detectors.lavida import checkpoint

    assert base.sam2 is not None
    with pytest.raises(WeightsError, match="no base model for mllm, text on this machine") as caught:
        import_lavida("lavida-tiny", dest, Sources(sam2=base.sam2))
    assert "--random-weights" in caught.value.hint
    assert not dest.exists()
    result = import_lavida("lavida-tiny", dest, Sources(sam2=base.sam2), random_weights=True)
    assert result.converted == ["mllm", "text"]
    assert (dest / "sam2" / "model.safetensors").samefile(base.sam2 / "model.safetensors")
    checkpoint.load(dest, allow_untrained=True)


def test_base_models_are_found_in_the_hubs_cache(base: Sources, dest: Path, tmp_path: Path) -> None:
    assert base.sam2 is not None
    with pytest.raises(WeightsError, match=r"no base model for mllm \(qwen2-vl-2b\)") as caught:
        import_lavida("lavida-2b", dest, Sources(sam2=base.sam2))
    assert "vadcli weights pull lavida-2b" in caught.value.hint
    text = {**PRESET.parts.text, "hidden_size": 512}
    inner = {**PRESET.parts.mllm["text_config"], "hidden_size": 1536, "num_hidden_layers": 1, "num_attention_heads": 48}
    mllm = {"text_config": inner, "vision_config": {**PRESET.parts.mllm["vision_config"], "hidden_size": 1536, "depth": 1}}
    cached = {
        name: tmp_path / "hub" / f"models--{repo.replace('/', '--')}" / "snapshots" / commit
        for name, repo, commit in (
            ("mllm", "Qwen/Qwen2-VL-2B-Instruct", weights.entry("qwen2-vl-2b").revision),
            ("text", "openai/clip-vit-base-patch32", "a" * 40),
            ("sam2", "facebook/sam2.1-hiera-small", "a" * 40),
        )
    }
    qwen_folder(cached["mllm"], mllm)
    clip_folder(cached["text"], text)
    shutil.copytree(base.sam2, cached["sam2"])
    result = import_lavida("lavida-2b", dest, Sources())
    assert json.loads((dest / "config.json").read_text())["sources"] == {part: str(path) for part, path in cached.items()}
    assert "sam2/model.safetensors" in result.linked


def test_a_folder_that_is_there_stays_unless_forced(base: Sources, dest: Path) -> None:
    import_lavida("lavida-tiny", dest, base)
    before = weights.fingerprint(dest)
    with pytest.raises(UsageError, match="already exists"):
        import_lavida("lavida-tiny", dest, base)
    assert weights.fingerprint(dest) == before
    import_lavida("lavida-tiny", dest, Sources(), random_weights=True, force=True)
    assert weights.fingerprint(dest) != before
    assert left_over(dest) == []


def test_force_replaces_nothing_but_lavida_folders(base: Sources, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("words")
    for folder in (precious, base.qwen):
        assert folder is not None
        names = sorted(path.name for path in folder.iterdir())
        with pytest.raises(VadcliError):
            import_lavida("lavida-tiny", folder, Sources(), random_weights=True, force=True)
        assert sorted(path.name for path in folder.iterdir()) == names


def test_a_failure_half_way_leaves_what_was_there(base: Sources, dest: Path, tmp_path: Path) -> None:
    assert base.qwen is not None
    silent = tmp_path / "silent"
    shutil.copytree(base.qwen, silent)
    (silent / "chat_template.jinja").unlink()
    with pytest.raises(WeightsError, match="can't be loaded"):
        import_lavida("lavida-tiny", dest, replace(base, qwen=silent))
    assert not dest.exists()
    assert left_over(dest) == []
    import_lavida("lavida-tiny", dest, base)
    before = weights.fingerprint(dest)
    with pytest.raises(WeightsError, match="can't be loaded"):
        import_lavida("lavida-tiny", dest, replace(base, qwen=silent), force=True)
    assert weights.fingerprint(dest) == before
    assert left_over(dest) == []


def test_an_interrupt_leaves_nothing(base: Sources, dest: Path) -> None:
    def interrupt(line: str) -> None:
        if "hashing" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_lavida("lavida-tiny", dest, base, say=interrupt)
    assert not dest.exists()
    assert left_over(dest) == []


def spoiled(source: Path, folder: Path, what: str) -> Path:
    """A copy of a model folder with one thing wrong."""
    shutil.copytree(source, folder)
    tensors, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    if what == "pickle":
        tensors.write_bytes(pickle.dumps({"a": 1}))
    elif what == "cut":
        tensors.write_bytes(tensors.read_bytes()[:-10])
    elif what == "bin":
        tensors.rename(folder / "pytorch_model.bin")
    elif what == "type":
        config["model_type"] = "bert"
    elif what == "width":
        config["text_config"]["hidden_size"] = 3584
    elif what == "config":
        (folder / "config.json").write_text("{")
        return folder
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("pickle", "a pickle file with the suffix"),
        ("cut", "cut short"),
        ("bin", "contains no .safetensors file"),
        ("type", "has the model_type 'bert', not qwen2_vl"),
        ("width", "its width is 3584, but lavida-tiny needs 128"),
        ("config", "not a model folder"),
    ],
)
def test_a_base_model_that_is_none_is_refused_in_one_line(
    base: Sources, dest: Path, tmp_path: Path, what: str, words: str
) -> None:
    assert base.qwen is not None
    with pytest.raises(WeightsError) as caught:
        import_lavida("lavida-tiny", dest, replace(base, qwen=spoiled(base.qwen, tmp_path / "spoiled", what)))
    assert words in caught.value.message
    assert "\n" not in str(caught.value)
    assert not dest.exists()


LACKING = {
    "qwen": "model.layers.1.input_layernorm.weight",
    "clip": "text_model.encoder.layers.1.layer_norm1.bias",
    "sam2": "memory_attention.layer_norm.bias",
}


@pytest.mark.parametrize("part", LACKING)
@pytest.mark.parametrize("what", ["missing", "renamed", "another size"])
def test_an_incomplete_base_model_builds_no_folder(base: Sources, dest: Path, tmp_path: Path, part: str, what: str) -> None:
    source = Path(shutil.copytree(getattr(base, part), tmp_path / "lacking"))
    tensors = load_file(source / "model.safetensors")
    name = LACKING[part]
    tensor = tensors.pop(name)
    if what == "renamed":
        tensors[f"{name}_of_old"] = tensor
    elif what == "another size":
        tensors[name] = torch.ones(3)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError) as caught:
        import_lavida("lavida-tiny", dest, replace(base, **{part: source}))
    assert caught.value.message.startswith(f"{source}: ")
    own_name = name.removeprefix("text_").removeprefix("model.").removeprefix("layers")
    assert f"{own_name} {'has shape (3,), not' if what == 'another size' else 'is missing'}" in caught.value.message
    assert "\n" not in str(caught.value)
    assert not dest.exists()
    assert left_over(dest) == []


def test_without_accelerate_base_models_are_held_against_their_configs_all_the_same(
    base: Sources, dest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert base.sam2 is not None
    monkeypatch.setattr("vadcli.detectors.lavida.checkpoint.is_accelerate_available", lambda: False)
    source = Path(shutil.copytree(base.sam2, tmp_path / "lacking"))
    tensors = load_file(source / "model.safetensors")
    del tensors["no_memory_embedding"], tensors["mask_downsample.bias"]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"mask_downsample\.bias is missing \(2 tensors are missing;"):
        import_lavida("lavida-tiny", dest, replace(base, sam2=source))
    import_lavida("lavida-tiny", dest, base)


def test_what_is_no_own_part_is_refused(base: Sources, dest: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.safetensors"
    save_file({"head.weight": torch.ones(1)}, own)
    with pytest.raises(WeightsError, match="has no projector"):
        import_lavida("lavida-tiny", dest, replace(base, own=own))
    own.write_bytes(pickle.dumps({"projector.x": 1}))
    with pytest.raises(WeightsError, match="a pickle file with the suffix"):
        import_lavida("lavida-tiny", dest, replace(base, own=own))
    with pytest.raises(WeightsError, match="no such file or directory"):
        import_lavida("lavida-tiny", dest, replace(base, own=tmp_path / "nowhere.safetensors"))
    with pytest.raises(UsageError, match="no preset is called"):
        import_lavida("lavida-9000", dest, base)


def test_metas_checkpoint_becomes_the_same_model(base: Sources, dest: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = Sam2VideoModel(sam2_config(blocks=(1, 2, 7, 2), global_blocks=(5, 7, 9)))
    with torch.no_grad():  # one matrix, which transformers keeps twice
        model.prompt_encoder.shared_embedding.positional_embedding.copy_(model.shared_image_embedding.positional_embedding)
    path = tmp_path / "sam2.1_hiera_tiny.pt"
    torch.save({"model": package_state(model.state_dict())}, path)
    result = import_lavida("lavida-tiny", dest, replace(base, sam2=path))
    assert "sam2" in result.converted
    loaded = Sam2VideoModel.from_pretrained(dest / "sam2")
    state = loaded.state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=0, msg=name)
    assert loaded.config.vision_config.backbone_config.blocks_per_stage == [1, 2, 7, 2]


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_runs_code_runs_none(base: Sources, dest: Path, tmp_path: Path) -> None:
    path, mark = tmp_path / "sam2.pt", tmp_path / "mark"
    torch.save({"model": Evil(mark)}, path)
    with pytest.raises(WeightsError, match=r"not Meta's SAM2\.1 checkpoint") as caught:
        import_lavida("lavida-tiny", dest, replace(base, sam2=path))
    assert "\n" not in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize(
    "state",
    [{}, {"model": {}}, {"model": {"image_encoder.trunk.patch_embed.proj.weight": torch.ones(96, 3, 7, 7)}}, {"model": [1]}],
    ids=["nothing", "empty", "no blocks", "a list"],
)
def test_another_checkpoint_is_not_taken_for_metas(base: Sources, dest: Path, tmp_path: Path, state: dict[str, Any]) -> None:
    path = tmp_path / "sam2.pt"
    torch.save(state, path)
    with pytest.raises(WeightsError, match=r"SAM2\.1"):
        import_lavida("lavida-tiny", dest, replace(base, sam2=path))
    assert not dest.exists()


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(
    base: Sources, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    with pytest.raises(VadcliError, match=r"needs .* kB, but only 1 kB") as caught:
        import_lavida("lavida-tiny", dest, base)
    assert caught.value.exit_code == 1
    assert not dest.parent.exists()


def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(
    base: Sources, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr("shutil.copy2", full)
    with pytest.raises(VadcliError, match="no space left on the device") as caught:
        import_lavida("lavida-tiny", dest, base)
    assert caught.value.exit_code == 1
    assert not dest.exists()
    assert left_over(dest) == []


def test_a_place_that_cannot_be_written_is_named_with_the_right_option(base: Sources, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("words")
    with pytest.raises(VadcliError, match=r"file/model: can't be created: .*/file: is a file, but must be a folder") as caught:
        import_lavida("lavida-tiny", tmp_path / "file" / "model", base)
    assert "--to" in caught.value.hint
    assert "--out" not in str(caught.value)
    assert "videos" not in str(caught.value)
