"""Tests of the presets: numbers of parameters, and the facts about training in a config."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, Qwen2VLConfig, Qwen2VLForConditionalGeneration, Sam2VideoModel

from vadcli.detectors.lavida.checkpoint import load_preset, preset_names
from vadcli.detectors.lavida.projector import build_projector
from vadcli.detectors.lavida.sam2 import sam2_config


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# From the model pages of Qwen2-VL-7B-Instruct, Qwen2-VL-2B-Instruct, CLIP ViT-B/32 (its text model) and SAM2.1 hiera-small,
# with the digits of these pages; exact numbers are from the classes of transformers with the public configs.
@pytest.mark.parametrize(
    ("preset", "billions", "exactly"), [("lavida-7b", 8.29, 8_291_375_616), ("lavida-2b", 2.21, 2_208_985_600)]
)
def test_large_presets_have_the_published_sizes(preset: str, billions: float, exactly: int) -> None:
    parts = load_preset(preset).parts
    with torch.device("meta"):
        qwen = Qwen2VLForConditionalGeneration(Qwen2VLConfig(**parts.mllm))
        text = CLIPTextModel(CLIPTextConfig(**parts.text))
        sam2 = Sam2VideoModel(sam2_config(**parts.sam2))
    assert count(qwen) == exactly
    assert round(count(qwen) / 1e9, 2) == billions
    assert round(count(text) / 1e6, 1) == 63.2
    assert round(count(sam2) / 1e6) == 46


@pytest.mark.parametrize("preset", preset_names())
def test_the_projector_fits_its_neighbours(preset: str) -> None:
    config = load_preset(preset)
    llm, text = config.parts.mllm["text_config"]["hidden_size"], config.parts.text["hidden_size"]
    with torch.device("meta"):
        projector = build_projector(config.projector, llm_width=llm, text_width=text, image_width=256)
        prompt = projector(
            torch.empty(2, llm), torch.empty(3, text), torch.empty(2, 8, 256, 4, 4), torch.empty(1, 256, 4, 4)
        ).sparse
    assert prompt.shape == (2, 8, 1, 256)


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        ({"training": [{"recipe": {"data": [{"name": "mevis"}, {"name": "synthetic"}]}}]}, {"mevis", "synthetic"}),
        (
            {"training": [{"recipe": {"data": [{"name": "mevis"}]}}, {"recipe": {"data": [{"name": "ade20k"}]}}]},
            {"mevis", "ade20k"},
        ),
        ({"training": [{"recipe": {"data": "mevis"}}]}, set()),
        ({"training": 3}, set()),
        ({"mllm": "/models/qwen"}, set()),
    ],
)
def test_a_model_knows_what_it_was_trained_on(sources: dict[str, Any], names: set[str]) -> None:
    assert replace(load_preset("lavida-tiny"), sources=sources).data_sets() == names
