"""Tests of the table of SAM2's parameter names: comparison with both models."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import Sam2VideoModel

from tests.detectors.lavida.test_masks import TINY
from vadcli.detectors.lavida import sam2 as key_map
from vadcli.detectors.lavida.masks import TransformersMasks
from vadcli.detectors.lavida.sam2 import sam2_config


def transformers_names(**sizes: object) -> dict[str, Tensor]:
    with torch.device("meta"):
        return Sam2VideoModel(sam2_config(**sizes)).state_dict()


@pytest.fixture(scope="module")
def package_small() -> dict[str, Tensor]:
    """Return SAM2.1 hiera-small from the config of the sam2 package, with the video memory."""
    pytest.importorskip("sam2", reason="the sam2 package is not installed")
    from hydra import compose
    from hydra.utils import instantiate

    return instantiate(compose("configs/sam2.1/sam2.1_hiera_s.yaml").model, _recursive_=True).state_dict()


def test_every_parameter_of_hiera_small_has_one_counterpart(package_small: dict[str, Tensor]) -> None:
    ours = transformers_names()
    renamed = key_map.transformers_state({name: tensor.to("meta") for name, tensor in package_small.items()})
    assert {name: tensor.shape for name, tensor in renamed.items()} == {name: tensor.shape for name, tensor in ours.items()}
    back = key_map.package_state(ours)
    assert {name: tensor.shape for name, tensor in back.items()} == {name: t.shape for name, t in package_small.items()}


def test_every_parameter_of_a_tiny_model_has_one_counterpart() -> None:
    pytest.importorskip("sam2", reason="the sam2 package is not installed")
    from vadcli.detectors.lavida.sam2 import PackageMasks

    theirs = PackageMasks(sam2_config(**TINY)).state_dict()
    named = key_map.package_state(transformers_names(**TINY))
    assert {name: named[name].shape for name in theirs} == {name: tensor.shape for name, tensor in theirs.items()}
    memory = ("memory_", "maskmem_", "no_mem_pos_enc", "no_obj_", "mask_downsample.", "obj_ptr_")
    assert all(name.startswith(memory) for name in named.keys() - theirs.keys())


@pytest.mark.parametrize("sizes", [{}, TINY], ids=["hiera-small", "tiny"])
def test_no_two_parameters_get_one_name(sizes: dict[str, object]) -> None:
    names = transformers_names(**sizes)
    targets = [other for name in names for other in key_map.to_package(name)]
    doubled = {other for other in targets if targets.count(other) > 1}
    assert doubled == {key_map.PACKAGE_MATRIX}, "two parameters would be written over one another"


@pytest.mark.parametrize("side", [0, 1])
def test_one_rule_a_name(side: int) -> None:
    examples = [rule[side].format(*"0123") for rule in key_map.RULES]
    for example in examples:
        assert sum(bool(pattern.fullmatch(example)) for pattern, _ in key_map._patterns(side)) == 1, example


def test_tensors_survive_the_way_there_and_back() -> None:
    torch.manual_seed(0)
    model = TransformersMasks(Sam2VideoModel(sam2_config(**TINY)))
    state = model.sam2.state_dict()
    back = key_map.transformers_state(key_map.package_state(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert len({tensor.data_ptr() for tensor in back.values()}) == len(back), "safetensors doesn't write shared memory"


def test_the_image_matrix_wins_where_two_differ() -> None:
    image, prompt = torch.zeros(2, 4), torch.ones(2, 4)
    for state in (dict(zip(key_map.MATRICES, (image, prompt))), dict(zip(key_map.MATRICES[::-1], (prompt, image)))):
        assert torch.equal(key_map.package_state(state)[key_map.PACKAGE_MATRIX], image)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the SAM2 of transformers has no parameter 'lm_head\.weight'"):
        key_map.package_state({"lm_head.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"sam2 package.* has no parameter 'lm_head\.weight'"):
        key_map.transformers_state({"lm_head.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="1 of SAM2's 4 point embeddings"):
        key_map.transformers_state({key_map.PACKAGE_POINTS[0]: torch.zeros(1, 4)})
