"""Presets and LAVIDA folders. Only safetensors are read; nothing is downloaded.

FOLDER/
  config.json         LavidaConfig
  mllm/ text/ sam2/   the base models, each a plain transformers folder with its tokenizer
  lavida.safetensors  LAVIDA's own part: the projector, and all other tensors that are trained without LoRA
  lora/               optional: LoRA adapters, which are merged into the language model when it is loaded
  checksums.json      the expected hash of each file

The files of a base model must contain every tensor of the model (see `read_whole`). There is one exception: SAM2's checkpoints
for images have no tensors of the video memory. A model without a video memory can't propagate masks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Sam2VideoModel,
)
from transformers.utils import is_accelerate_available

from vadcli import weights
from vadcli.detectors.lavida.masks import TransformersMasks
from vadcli.detectors.lavida.model import Lavida, LavidaConfig
from vadcli.detectors.lavida.projector import build_projector
from vadcli.detectors.lavida.sam2 import sam2_config
from vadcli.detectors.lavida.text import (
    CLIP_SPECIALS,
    QWEN_SPECIALS,
    SEG,
    TURN_END,
    TextEncoder,
    add_seg,
    small_text_tokenizer,
    small_tokenizer,
)
from vadcli.detectors.mllm.compress import NamePooling, SharedSight
from vadcli.detectors.mllm.qwen import VIDEO, MultimodalLM
from vadcli.detectors.running import as_weights_error, quiet, read_whole
from vadcli.errors import UsageError, WeightsError

MODELS: Mapping[str, Any] = {"mllm": Qwen2VLForConditionalGeneration, "text": CLIPTextModel, "sam2": Sam2VideoModel}
MEMORY = (
    "mask_downsample",
    "memory_attention",
    "memory_encoder",
    "memory_temporal_positional_encoding",
    "no_memory_positional_encoding",
    "no_object_pointer",
    "object_pointer_proj",
    "occlusion_spatial_embedding_parameter",
    "temporal_positional_encoding_projection_layer",
)
"""The tensors of Sam2VideoModel whose names begin with one of these words are used only to propagate masks."""
PARTS = tuple(MODELS)
OWN_PARTS = ("projector.", "mllm.sight.", "mllm.pooling.")
"""Tensors of a `Lavida` whose names begin with one of these prefixes belong to no base model."""
ADAPTERS = "lora"
SEG_STD = 0.02
QWEN_IDS = {
    "video_token_id": VIDEO,
    "image_token_id": "<|image_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
ENDS = {"bos_token_id": QWEN_SPECIALS[0], "eos_token_id": TURN_END}
CLIP_IDS = {"bos_token_id": CLIP_SPECIALS[0], "eos_token_id": CLIP_SPECIALS[1], "pad_token_id": CLIP_SPECIALS[1]}
UNTRAINED_HINT = (
    "no public LAVIDA checkpoint exists yet: train one with `vadcli train`, or scan with --detector motion, "
    "or scan with random weights (--allow-untrained)"
)
_PRESETS = resources.files("vadcli.detectors.lavida").joinpath("presets")


def preset_names() -> list[str]:
    """Return the names of the presets that come with vadcli."""
    return sorted(entry.name.removesuffix(".json") for entry in _PRESETS.iterdir() if entry.name.endswith(".json"))


def load_preset(name: str) -> LavidaConfig:
    """Return the preset with this name.

    Raises:
        UsageError: no preset has this name.
    """
    if name not in preset_names():
        raise UsageError(f"no preset is called {name!r}", hint=f"choose from {', '.join(preset_names())}")
    return LavidaConfig.from_json(json.loads(_PRESETS.joinpath(f"{name}.json").read_text(encoding="utf-8")))


def read_model(part: str, folder: Path, *, extras_matter: bool = True, **options: Any) -> Any:
    """Return a base model.

    The files must contain all tensors of the model. Only the tensors of SAM2's video memory may be missing.

    Args:
        part: mllm, text or sam2.
        folder: a transformers folder.
        extras_matter, options: see `read_whole`.

    Raises:
        WeightsError: the files can't be read, or a tensor is missing, is unknown or has the wrong shape.
    """
    may_lack = memory_names if part == "sam2" else None
    model, lacks = read_whole(MODELS[part], folder, may_lack=may_lack, extras_matter=extras_matter, **options)
    if part == "sam2":
        model.has_memory = not lacks
    return model


def check_model(part: str, folder: Path) -> None:
    """Check that a folder's files contain all tensors of the model that the folder's config describes.

    If the library `accelerate` is installed, only names and shapes are read. This takes less time and memory than reading
    the weights.

    Raises:
        WeightsError: as in `read_model`.
    """
    options: dict[str, Any] = {"device_map": "meta"} if is_accelerate_available() else {}
    read_model(part, folder, dtype="auto", **options)


def memory_names(sam2: Any) -> set[str]:
    """Return the names of those tensors of a Sam2VideoModel that are used only to propagate masks."""
    return {name for name in sam2.state_dict() if name.split(".", maxsplit=1)[0] in MEMORY}


def read_config(folder: Path) -> LavidaConfig:
    """Return the config of a folder.

    Raises:
        WeightsError: config.json is missing or can't be used.
    """
    path = folder / "config.json"
    try:
        return LavidaConfig.from_json(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise WeightsError(
            f"{folder}: not a LAVIDA folder: {path.name}: {error.strerror}", hint="build a folder with `vadcli weights import`"
        ) from error
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: {' '.join(str(error).split())}", hint="is it from another version of vadcli?") from error


def write_config(config: LavidaConfig, folder: Path) -> None:
    """Write a folder's config.json, without the sizes of the base models, which have their own files."""
    document = {**config.to_json(), "parts": {}}
    (folder / "config.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def check(folder: Path, *, allow_untrained: bool) -> LavidaConfig:
    """Check that a LAVIDA folder can be used to scan, and return its config. Loads no weights.

    In the result, `trained` is True only if config.json and lavida.safetensors are both marked as trained.

    Raises:
        WeightsError: a part is missing, or `allow_untrained` is False and LAVIDA's own part is untrained.
    """
    config = read_config(folder)
    missing = [part for part in PARTS if not (folder / part / "config.json").is_file()]
    if missing:
        raise WeightsError(
            f"{folder}: the {' and '.join(missing)} part{'s are' if len(missing) > 1 else ' is'} missing",
            hint=f"build the folder with `vadcli weights import {config.name}`",
        )
    config = replace(config, trained=weights.is_trained(folder))
    if not allow_untrained and not config.trained:
        raise WeightsError(f"{folder}: LAVIDA's own part was never trained", hint=UNTRAINED_HINT)
    return config


def image_size(folder: Path) -> int:
    """Return the side of SAM2's input square in pixels. Reads only SAM2's config.json.

    Raises:
        WeightsError: config.json has no usable size.
    """
    path = folder / "sam2" / "config.json"
    hint = "is it a transformers SAM2 folder?"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        side = document.get("image_size") or document["vision_config"]["backbone_config"]["image_size"][0]
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path}: has no usable image_size ({error})", hint=hint) from error
    if type(side) is not int or side < 1:
        raise WeightsError(f"{path}: image_size {side!r} is not a number of pixels", hint=hint)
    return side


def load(
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    allow_untrained: bool = False,
    attention: str = "sdpa",
) -> Lavida:
    """Return the model of a folder, ready to score.

    If the folder has no lavida.safetensors, LAVIDA's own part gets random weights. The seed is in the config.

    Raises:
        WeightsError: a part of the model can't be used, or the model is untrained and `allow_untrained` is False.
    """
    config = check(folder, allow_untrained=allow_untrained)
    qwen = read_model("mllm", folder / "mllm", dtype=dtype, attn_implementation=attention)
    clip, sam2 = (read_model(part, folder / part, dtype=torch.float32) for part in ("text", "sam2"))
    with quiet(), as_weights_error(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder / "mllm", local_files_only=True)
        words = AutoTokenizer.from_pretrained(folder / "text", local_files_only=True)
        if (folder / ADAPTERS).is_dir():
            try:
                from peft import PeftModel
            except ImportError as error:
                what = f"{folder / ADAPTERS}: adapters need the peft package"
                raise WeightsError(what, hint="pip install 'vadcli[train]'") from error
            qwen = PeftModel.from_pretrained(qwen, folder / ADAPTERS).merge_and_unload()
        model = _assemble(config, qwen=qwen, clip=clip, sam2=sam2, tokenizer=tokenizer, words=words)
        if (folder / weights.OWN_NAME).is_file():
            _load_own(model, folder / weights.OWN_NAME)
        else:
            table = qwen.get_input_embeddings().weight
            drawn = torch.randn(table.shape[1], generator=torch.Generator().manual_seed(config.seed))
            with torch.no_grad():
                table[tokenizer.convert_tokens_to_ids(SEG)] = drawn.to(table) * SEG_STD
    return model.to(device=device, dtype=dtype).eval()


def create(preset: str, folder: Path, *, seed: int = 0) -> LavidaConfig:
    """Write a LAVIDA folder with random weights. The same preset and seed give the same bytes.

    Raises:
        UsageError: no preset has this name.
        OSError: the folder can't be written.
    """
    config = load_preset(preset)
    save(random_model(config, seed=seed), folder, trained=False)
    return config


def random_model(
    config: LavidaConfig, *, seed: int = 0, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Lavida:
    """Return a model with random weights and small tokenizers. It is created directly on `device`."""
    parts = config.parts
    with torch.random.fork_rng(devices=_cuda_devices(device)), torch.device(device), quiet():
        torch.manual_seed(seed)
        sizes, text_sizes = parts.mllm["text_config"], parts.text
        tokenizer = small_tokenizer(sizes["vocab_size"])
        words = small_text_tokenizer(text_sizes["vocab_size"], text_sizes["max_position_embeddings"])
        mllm = Qwen2VLConfig(**{**parts.mllm, **_ids(tokenizer, QWEN_IDS), "text_config": {**sizes, **_ids(tokenizer, ENDS)}})
        clip = CLIPTextConfig(**{**text_sizes, **_ids(words, CLIP_IDS)})
        qwen = Qwen2VLForConditionalGeneration._from_config(mllm, dtype=dtype)
        text, sam2 = CLIPTextModel(clip), Sam2VideoModel(sam2_config(**parts.sam2))
        model = _assemble(config, qwen=qwen, clip=text, sam2=sam2, tokenizer=tokenizer, words=words)
        if config.random_gain is not None:
            with torch.no_grad():
                for module in model.modules():
                    if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d):
                        nn.init.xavier_normal_(module.weight, gain=config.random_gain)
                    elif isinstance(module, nn.Embedding):
                        nn.init.normal_(module.weight)
    return model.to(device=device, dtype=dtype).eval()


def _ids(tokenizer: Any, names: Mapping[str, str]) -> dict[str, int]:
    """Return the ids of a small tokenizer's special tokens, to replace default ids in a config."""
    return {name: int(tokenizer.convert_tokens_to_ids(token)) for name, token in names.items()}


def save(model: Lavida, folder: Path, *, trained: bool) -> None:
    """Write a LAVIDA folder with the base models, LAVIDA's own part, the config and the checksums."""
    folder.mkdir(parents=True, exist_ok=True)
    masks: Any = model.masks
    # If the video memory was missing when the model was loaded, its weights are random. Stored random weights could not be
    # recognised later, so these tensors are left out.
    left_out = set() if masks.has_memory else memory_names(masks.sam2)
    sam2_tensors = {name: value for name, value in masks.sam2.state_dict().items() if name not in left_out}
    with quiet():
        model.mllm.qwen.save_pretrained(folder / "mllm")
        model.text.clip.save_pretrained(folder / "text")
        masks.sam2.save_pretrained(folder / "sam2", state_dict=sam2_tensors)
        model.tokenizer.save_pretrained(folder / "mllm")
        model.text.tokenizer.save_pretrained(folder / "text")
    own = {name: value.contiguous() for name, value in model.state_dict().items() if name.startswith(OWN_PARTS)}
    save_file(own, folder / weights.OWN_NAME, metadata={"trained": str(trained).lower()})
    write_config(replace(model.config, trained=trained), folder)
    weights.share(folder)
    weights.write_checksums(folder)


def _assemble(config: LavidaConfig, *, qwen: Any, clip: Any, sam2: Any, tokenizer: Any, words: Any) -> Lavida:
    """Build the model from its parts. LAVIDA's own part gets random weights from the config's seed."""
    seg = add_seg(tokenizer)
    table = qwen.get_input_embeddings().weight
    if seg >= len(table):
        qwen.resize_token_embeddings(seg + 1)
    masks = TransformersMasks(sam2)
    width, added = int(qwen.config.text_config.hidden_size), config.additions
    with torch.random.fork_rng(devices=_cuda_devices(table.device)):
        torch.manual_seed(config.seed)
        projector = build_projector(
            config.projector, llm_width=width, text_width=clip.config.hidden_size, image_width=masks.width
        )
        sight = SharedSight(image_width=masks.width, llm_width=width, motion_width=added.motion_width) if added.sight else None
        pooling = NamePooling(width) if added.pooling else None
    mllm = MultimodalLM(qwen, sight=sight, pooling=pooling)
    return Lavida(config, mllm=mllm, text=TextEncoder(clip, words), masks=masks, projector=projector, tokenizer=tokenizer)


def _load_own(model: Lavida, path: Path) -> None:
    """Load lavida.safetensors. A tensor in this file replaces the base model's tensor of the same name."""
    stored = load_file(path)
    expected = model.state_dict()
    strange = sorted(set(stored) - set(expected))
    if strange:
        raise WeightsError(f"{path}: {strange[0]!r} is not part of this model", hint="is the file from another preset?")
    wrong = [name for name in stored if stored[name].shape != expected[name].shape]
    if wrong:
        name = sorted(wrong)[0]
        raise WeightsError(
            f"{path}: {name} has shape {tuple(stored[name].shape)}, not {tuple(expected[name].shape)}",
            hint="is the file from another preset?",
        )
    lacking = [name for name in expected if name.startswith(OWN_PARTS) and name not in stored]
    if lacking:
        raise WeightsError(f"{path}: {lacking[0]} is missing", hint="the file is incomplete: fetch or train the model again")
    model.load_state_dict(stored, strict=False)


def _cuda_devices(device: torch.device | str) -> list[int]:
    """Return the CUDA devices whose random state `torch.random.fork_rng` must restore."""
    chosen = torch.device(device)
    return [chosen.index or 0] if chosen.type == "cuda" else []
