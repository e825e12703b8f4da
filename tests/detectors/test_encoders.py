"""Image-text encoders, compared with transformers' own models and processors, with small random models."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPModel, CLIPProcessor, SiglipModel, SiglipProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.tokenization_siglip2 import Siglip2Tokenizer

from tests.detectors.encoders import PATCH_PX, SIDE_PX, WIDTH, pictures, tiny_encoder_folder
from tests.patience import PATIENCE_S
from vadcli.detectors.encoders import encoder_fingerprint, encoder_size_px, load_encoder
from vadcli.detectors.encoders.base import _in_two_steps, squash
from vadcli.detectors.encoders.networks import correlate
from vadcli.errors import DeviceError, UsageError, VadcliError, WeightsError
from vadcli.registry import ENCODERS

FAMILIES = ("clip", "siglip")
TEXTS = ["A man climbing over a Fence", "fire", "two people fighting, and a crowd in front of them", "", "Rauch über dem Zaun"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: tiny_encoder_folder(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


@pytest.fixture
def own_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder that the test may damage."""
    return tiny_encoder_folder(tmp_path / "model", getattr(request, "param", "clip"))


def library(folder: Path) -> tuple[Any, Any]:
    """Transformers' own model, and its processor that squashes."""
    side = {"height": SIDE_PX, "width": SIDE_PX}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if folder.name.startswith("clip"):
        images = CLIPImageProcessorPil.from_pretrained(folder, size=side, do_center_crop=False)
        return CLIPModel.from_pretrained(folder).eval(), CLIPProcessor(images, tokenizer)
    images = SiglipImageProcessorPil.from_pretrained(folder, size=side)
    return SiglipModel.from_pretrained(folder).eval(), SiglipProcessor(images, tokenizer)


def unit(vectors: torch.Tensor) -> np.ndarray:
    return (vectors / vectors.norm(dim=-1, keepdim=True)).detach().numpy()


def test_vectors_of_pictures_equal_the_librarys(folder: Path) -> None:
    encoder: Any = load_encoder(str(folder), precision="fp32")
    model, processor = library(folder)
    frames = pictures(11)
    found = encoder.encode_images(frames)
    assert found.dtype == np.float32
    assert found.shape == (11, encoder.width)
    pixels = encoder.rules.apply(torch.from_numpy(frames), torch.float32)
    np.testing.assert_allclose(found, unit(model.get_image_features(pixel_values=pixels).pooler_output), atol=1e-5)
    inputs = processor(images=list(frames), return_tensors="pt")  # some of its values differ by a grey level
    np.testing.assert_allclose(found, unit(model.get_image_features(**inputs).pooler_output), atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-6)
    assert len(np.unique(found.round(4), axis=0)) == 11  # the test is empty if all vectors are alike


def test_vectors_of_sentences_equal_the_librarys(folder: Path) -> None:
    encoder, (model, processor) = load_encoder(str(folder), precision="fp32"), library(folder)
    if folder.name.startswith("clip"):
        inputs = processor(text=TEXTS, padding=True, return_tensors="pt")
    else:
        inputs = processor(text=[text.lower() for text in TEXTS], padding="max_length", max_length=64, return_tensors="pt")
    found = encoder.encode_text(TEXTS)
    assert found.shape == (len(TEXTS), encoder.width)
    np.testing.assert_allclose(found, unit(model.get_text_features(**inputs).pooler_output), atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_vectors_of_old_and_other_clip_folders_equal_the_librarys(own_folder: Path) -> None:
    document = json.loads((own_folder / "config.json").read_text())
    document["text_config"] |= {"eos_token_id": 2, "hidden_act": "gelu"}  # 2: the first folders of CLIP; gelu: OpenCLIP's
    document["vision_config"] |= {"hidden_act": "gelu"}
    (own_folder / "config.json").write_text(json.dumps(document))
    encoder: Any = load_encoder(str(own_folder), precision="fp32")
    model = CLIPModel.from_pretrained(own_folder).eval()
    inputs = AutoTokenizer.from_pretrained(own_folder)(TEXTS, padding=True, return_tensors="pt")
    np.testing.assert_allclose(encoder.encode_text(TEXTS), unit(model.get_text_features(**inputs).pooler_output), atol=1e-5)
    pixels = encoder.rules.apply(torch.from_numpy(pictures(2)), torch.float32)
    expected = unit(model.get_image_features(pixel_values=pixels).pooler_output)
    np.testing.assert_allclose(encoder.encode_images(pictures(2)), expected, atol=1e-5)


def test_sentence_needs_neither_the_whole_token_table_nor_the_librarys_models(own_folder: Path) -> None:
    tensors = load_file(own_folder / "model.safetensors")
    table = tensors["text_model.embeddings.token_embedding.weight"]
    expected = load_encoder(str(own_folder), precision="fp32").encode_text(TEXTS)
    rows = 2_000_000  # 128 MB as float16, twice as much as float32
    tensors = {name: values.half() for name, values in tensors.items()}
    tensors["text_model.embeddings.token_embedding.weight"] = torch.zeros(rows, WIDTH, dtype=torch.float16)
    tensors["text_model.embeddings.token_embedding.weight"][: len(table)] = table
    save_file(tensors, own_folder / "model.safetensors", metadata={"format": "pt"})
    document = json.loads((own_folder / "config.json").read_text())
    document["text_config"]["vocab_size"] = rows
    (own_folder / "config.json").write_text(json.dumps(document))
    done = subprocess.run(
        [sys.executable, "-c", ENCODED, str(own_folder), *TEXTS], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    vectors, grown_mb, modules = json.loads(done.stdout)
    assert np.abs(np.array(vectors) - expected).max() < 0.01  # the weights are rounded to float16
    assert grown_mb < 60
    assert modules == []


ENCODED = """
import json, resource, sys
import tokenizers, vadcli.detectors.encoders.networks
from vadcli.detectors.encoders import load_encoder
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
before = peak()
found = load_encoder(sys.argv[1], device="cpu", precision="fp32").encode_text(sys.argv[2:])
heavy = sorted({"transformers.modeling_utils", "sympy", "scipy"} & set(sys.modules))
print(json.dumps([found.tolist(), peak() - before, heavy]))
"""


@pytest.mark.parametrize("size", [(45, 80), (720, 1280), (240, 320), (31, 20), (SIDE_PX, SIDE_PX)])
def test_pixels_equal_those_of_the_librarys_processor(folder: Path, size: tuple[int, int]) -> None:
    encoder: Any = load_encoder(str(folder))
    frames = pictures(2, size)
    theirs = library(folder)[1](images=list(frames), return_tensors="pt")["pixel_values"]
    levels = (encoder.rules.apply(torch.from_numpy(frames), torch.float32) - theirs).abs() * 255
    levels *= torch.tensor(encoder.rules.std)[:, None, None]
    assert levels.max() < 1.001  # at most one grey level, for few values; the rest only differs by the last bits
    assert (levels > 0.001).float().mean() < 0.01


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "side_px"), [((90, 41), 32), ((320, 180), 224), ((240, 426), 256), ((720, 1280), 224)])
def test_resize_equals_that_of_pil_first_across_and_then_down(mode: str, size: tuple[int, int], side_px: int) -> None:
    frames, height = pictures(2, size), size[0]
    code = {"bilinear": 2, "bicubic": 3}[mode]
    pil = [Image.fromarray(frame).resize((side_px, height), code).resize((side_px, side_px), code) for frame in frames]
    exact = torch.from_numpy(np.stack([np.asarray(picture) for picture in pil])).permute(0, 3, 1, 2).float()
    enlarges = min(size) < side_px
    on_cpu = squash(torch.from_numpy(frames), side_px, mode).float()
    on_gpu = _in_two_steps(torch.from_numpy(frames).permute(0, 3, 1, 2).float(), side_px, mode)  # what a GPU computes
    for found in (on_cpu, on_gpu):
        assert (found - exact).abs().max() <= 1 + enlarges
        assert (found != exact).float().mean() < 0.06


def test_squashing_keeps_both_sides_of_a_wide_picture_and_the_processors_default_does_not(folders: dict[str, Path]) -> None:
    encoder: Any = load_encoder(str(folders["clip"]))
    frames = np.zeros((1, 36, 64, 3), np.uint8)
    frames[:, :, :8] = 255  # of 64 columns, a square in the middle leaves out 14 on each side
    cropped = CLIPImageProcessorPil.from_pretrained(folders["clip"])(images=list(frames), return_tensors="pt")["pixel_values"]
    squashed = encoder.rules.apply(torch.from_numpy(frames), torch.float32)
    assert cropped.amax() < 0 < squashed.amax()


def test_folder_without_rules_for_pixels_gets_those_of_its_family(own_folder: Path) -> None:
    before: Any = load_encoder(str(own_folder))
    rules = json.loads((own_folder / "preprocessor_config.json").read_text())
    (own_folder / "preprocessor_config.json").unlink()
    assert load_encoder(str(own_folder)).rules == before.rules  # type: ignore[attr-defined]
    (own_folder / "processor_config.json").write_text(json.dumps({"image_processor": {**rules, "resample": 2}}))
    assert load_encoder(str(own_folder)).rules.mode == "bilinear"  # type: ignore[attr-defined]


def test_token_ids_equal_the_librarys(folders: dict[str, Path]) -> None:
    clip: Any = load_encoder(str(folders["clip"]))
    assert [clip.token_ids(text) for text in TEXTS] == library(folders["clip"])[1](text=TEXTS)["input_ids"]
    siglip: Any = load_encoder(str(folders["siglip"]))
    theirs = Siglip2Tokenizer.from_pretrained(folders["siglip"])  # what the library takes for SigLIP 2: it lowers the case
    texts = [*TEXTS, "ΟΔΟΣ İstanbul"]
    assert [siglip.token_ids(text) for text in texts] == [theirs(text)["input_ids"] for text in texts]
    assert siglip.token_ids("A Man") == siglip.token_ids("a man")
    assert [clip.text_tokens("fire"), siglip.text_tokens("fire")] == [3, 3]  # start, fire, end; fi, re, end
    assert [clip.max_tokens, siglip.max_tokens] == [77, 64]


def test_too_long_sentence_is_refused_with_its_length(folder: Path) -> None:
    encoder = load_encoder(str(folder))
    longest = max((text for n in range(99) if encoder.text_tokens(text := "fire " * n) <= encoder.max_tokens), key=len)
    assert encoder.encode_text([longest]).shape == (1, encoder.width)
    long = "fire, " * 90
    with pytest.raises(
        UsageError, match=f"at most {encoder.max_tokens} tokens, and a sentence has {encoder.text_tokens(long)}"
    ):
        encoder.encode_text(["fire", long])


def test_vectors_do_not_depend_on_what_else_is_in_the_call(folder: Path) -> None:
    encoder = load_encoder(str(folder), device="cpu")
    frames = pictures(19)
    together = encoder.encode_images(frames)
    order = np.random.default_rng(1).permutation(19)
    assert np.array_equal(encoder.encode_images(frames[order]), together[order])
    assert np.array_equal(np.concatenate([encoder.encode_images(frames[i : i + 1]) for i in range(19)]), together)
    assert np.array_equal(encoder.patch_map(frames[7:10]), encoder.patch_map(frames)[7:10])
    words = [f"{'fire ' * (n % 20)}smoke" for n in range(21)]
    assert np.array_equal(encoder.encode_text(words[::-1])[::-1], encoder.encode_text(words))
    assert np.array_equal(np.concatenate([encoder.encode_text([word]) for word in words]), encoder.encode_text(words))


def test_no_pictures_no_sentences_and_views(folder: Path) -> None:
    encoder = load_encoder(str(folder))
    frames = pictures(4)
    assert encoder.encode_images(frames[:0]).shape == (0, encoder.width)
    assert encoder.patch_map(frames[:0]).shape == (0, 4, 4, encoder.width)
    assert encoder.encode_text([]).shape == (0, encoder.width)
    frozen = frames[::-1, ::-1]
    frozen.flags.writeable = False
    assert np.array_equal(encoder.encode_images(frozen), encoder.encode_images(frozen.copy()))
    with pytest.raises(ValueError, match=r"give \(N, H, W, 3\) uint8"):
        encoder.encode_images(frames[0])


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_is_close(folder: Path, precision: str) -> None:
    whole, half = load_encoder(str(folder), precision="fp32"), load_encoder(str(folder), precision=precision)
    frames = pictures(3)
    assert np.abs(half.encode_images(frames) - whole.encode_images(frames)).max() < 0.03
    assert np.abs(half.encode_text(TEXTS) - whole.encode_text(TEXTS)).max() < 0.03
    assert np.abs(half.patch_map(frames) - whole.patch_map(frames)).max() < 0.06
    assert half.encode_images(frames).dtype == np.float32


@pytest.mark.parametrize(
    ("precision", "amx", "expected"),
    [("auto", True, torch.bfloat16), ("auto", False, torch.float32), ("fp32", True, torch.float32)],
)
def test_auto_is_bf16_only_on_a_cpu_with_amx(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, precision: str, amx: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx}, raising=False)
    encoder: Any = load_encoder(str(folders["clip"]), device="cpu", precision=precision)
    assert encoder.vision.visual_projection.weight.dtype == expected
    assert (
        encoder.text.text_projection.weight.dtype == torch.float32
    )  # not copied, so that large tables of words stay on the disk
    assert encoder.encode_images(pictures(2)).dtype == np.float32


def test_sclip_equals_twice_the_librarys_attention_if_keys_are_queries(folders: dict[str, Path]) -> None:
    encoder: Any = load_encoder(str(folders["clip"]), precision="fp32")
    block = encoder.vision.vision_model.encoder.layers[-1].self_attn
    tokens = torch.randn(2, 17, WIDTH, generator=torch.Generator().manual_seed(0))
    theirs = library(folders["clip"])[0].vision_model.encoder.layers[-1].self_attn
    np.testing.assert_allclose(block(tokens[:, :1], tokens), theirs(tokens)[0][:, :1].detach(), atol=1e-6)
    assert not torch.allclose(correlate(block, tokens), 2 * block(tokens, tokens) - block.out_proj.bias, atol=1e-3)
    block.k_proj.load_state_dict(block.q_proj.state_dict())
    # Both sums of weights are 1, so the values come out twice; the bias of the last projection is added only once.
    np.testing.assert_allclose(correlate(block, tokens), 2 * block(tokens, tokens) - block.out_proj.bias, atol=1e-5)


def plant(folder: Path) -> None:
    """Rewrites the image half of a CLIP: blocks pass their input on, and axis 0 of a patch is how red it is."""
    tensors = load_file(folder / "model.safetensors")
    for name, values in tensors.items():
        if name.startswith("vision_model.encoder") and ("out_proj" in name or "fc2" in name):
            values.zero_()
        if name.startswith("vision_model.embeddings") or name == "visual_projection.weight":
            values.zero_()
        if "layrnorm" in name or "layernorm" in name:
            values.fill_(1 if name.endswith("weight") else 0)
    patch = tensors["vision_model.embeddings.patch_embedding.weight"]  # (W, 3, 8, 8)
    patch[0, 0], patch[0, 1:] = 1, -0.5
    patch[1, 1], patch[1, ::2] = 1, -0.5
    tensors["visual_projection.weight"].fill_diagonal_(1)
    # The last block reads what similar patches contain: with values as they are, colours stay where they are.
    last = "vision_model.encoder.layers.1.self_attn."
    for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
        tensors[f"{last}{part}.weight"].zero_().fill_diagonal_(1)
        tensors[f"{last}{part}.bias"].zero_()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_patch_map_lights_the_red_square(own_folder: Path) -> None:
    plant(own_folder)
    encoder = load_encoder(str(own_folder))
    frames = np.full((1, SIDE_PX, SIDE_PX, 3), 90, np.uint8)
    frames[0, :, :PATCH_PX] = (20, 200, 20)
    frames[0, 2 * PATCH_PX : 3 * PATCH_PX, 3 * PATCH_PX :] = (220, 20, 20)
    red = encoder.patch_map(frames)[0, ..., 0]  # (4, 4)
    assert np.unravel_index(red.argmax(), red.shape) == (2, 3)
    assert np.sort(red.ravel())[-2] < red[2, 3] - 0.3
    green = encoder.patch_map(frames)[0, ..., 1]
    assert green[:, 0].min() > green[:, 1:].max() + 0.3


def test_patch_of_siglip_is_what_its_head_returns_for_that_patch_alone(folders: dict[str, Path]) -> None:
    encoder: Any = load_encoder(str(folders["siglip"]), precision="fp32")
    frames = pictures(2)
    found = encoder.patch_map(frames)
    pixels = encoder.rules.apply(torch.from_numpy(frames), torch.float32)
    theirs = library(folders["siglip"])[0].vision_model
    patches = theirs(pixel_values=pixels).last_hidden_state
    for place in range(16):
        alone = unit(theirs.head(patches[:, place : place + 1]))
        np.testing.assert_allclose(found[:, place // 4, place % 4], alone, atol=1e-5)
    assert np.abs(found[:, 0, 0] - found[:, 3, 3]).max() > 1e-3


def test_fingerprint_follows_what_changes_a_vector(own_folder: Path, tmp_path: Path) -> None:
    other = tiny_encoder_folder(tmp_path / "other", seed=1)
    first = encoder_fingerprint(str(own_folder))
    assert first == json.loads(json.dumps(first))
    assert first == encoder_fingerprint(str(shutil.copytree(own_folder, tmp_path / "same")))  # not the place, not the name
    assert first != encoder_fingerprint(str(other))
    assert first != encoder_fingerprint(str(own_folder), precision="bf16")
    (own_folder / "README.md").write_text("nothing")
    (own_folder / "pytorch_model.bin").write_bytes(b"never read")
    assert first == encoder_fingerprint(str(own_folder))
    rules = own_folder / "preprocessor_config.json"
    rules.write_text(rules.read_text().replace('"resample": 3', '"resample": 2'))
    assert first != encoder_fingerprint(str(own_folder))
    assert encoder_size_px(str(own_folder)) == load_encoder(str(own_folder)).size_px == SIDE_PX


def test_size_needs_no_torch_and_may_be_left_out_of_the_config(own_folder: Path) -> None:
    config = json.loads((own_folder / "config.json").read_text())
    del config["vision_config"]["image_size"]
    (own_folder / "config.json").write_text(json.dumps(config))
    assert encoder_size_px(str(own_folder)) == 224
    code = (
        "import sys; from vadcli.detectors.encoders import encoder_fingerprint as f, encoder_size_px as s;"
        f"s({str(own_folder)!r}); f({str(own_folder)!r}); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    assert done.stdout.strip() == "False"


def test_folder_in_several_files(own_folder: Path) -> None:
    before = load_encoder(str(own_folder))
    frames = pictures(2)
    expected = before.encode_images(frames), before.encode_text(TEXTS)
    CLIPModel.from_pretrained(own_folder).save_pretrained(own_folder, max_shard_size="60KB")
    (own_folder / "model.safetensors").unlink(missing_ok=True)
    assert len(list(own_folder.glob("model-*.safetensors"))) > 1
    after = load_encoder(str(own_folder))
    assert np.array_equal(after.encode_images(frames), expected[0])
    assert np.array_equal(after.encode_text(TEXTS), expected[1])
    next(iter(sorted(own_folder.glob("model-*.safetensors")))).unlink()
    with pytest.raises(WeightsError, match="no such file"):
        load_encoder(str(own_folder))


def test_names_and_their_errors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folders: dict[str, Path]) -> None:
    monkeypatch.setenv("VADCLI_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("vadcli.weights.hub.base_folder", lambda name: None)
    with pytest.raises(WeightsError, match=r"siglip2-b32: not on this machine.*run `vadcli weights pull siglip2-b32`"):
        load_encoder("siglip2-b32")
    with pytest.raises(UsageError, match=r"no encoder is called 'siglip-b32' \(did you mean .*siglip2-b32"):
        load_encoder("siglip-b32")
    with pytest.raises(UsageError, match=r"no encoder is called 'xyzzy' \(choose one of siglip2-b32, "):
        load_encoder("xyzzy")
    with pytest.raises(UsageError, match="qwen2-vl-2b is not an encoder: it is the default model of `ask`"):
        load_encoder("qwen2-vl-2b")
    with pytest.raises(UsageError, match=r"--encoder ./nowhere: the folder does not exist"):
        load_encoder("./nowhere")
    monkeypatch.setattr("vadcli.weights.hub.base_folder", lambda name: folders["clip"])
    assert load_encoder("clip-b32").name == "clip-b32"


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["vision_model.encoder.layers.0.mlp.fc1.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (cut_short, "cut short"),
        (without_a_tensor, "layers.0.mlp.fc1.weight is missing"),
        (only_a_pickle, "has no model.safetensors; only safetensors are read"),
        (lambda folder: (folder / "config.json").unlink(), "not an encoder: config.json is missing or can.t be read"),
        (lambda folder: (folder / "config.json").write_text("{"), "not a JSON object"),
        (lambda folder: change_config(folder, model_type="qwen2_vl"), "its model_type is 'qwen2_vl'"),
        (lambda folder: change_config(folder, model_type="siglip2"), "no fixed size"),
        (lambda folder: change_config(folder, projection_dim=7), "has shape .*, not .*config.json belongs to another model"),
        (
            lambda folder: change_config(folder, text_config={"hidden_act": "mish"}),
            "hidden_act 'mish' is not one of quick_gelu",
        ),
        (
            lambda folder: (folder / "preprocessor_config.json").write_text('{"resample": 1}'),
            "can't prepare pictures as in this file",
        ),
    ],
)
def test_damaged_folders_are_one_line(own_folder: Path, harm: Any, words: str) -> None:
    harm(own_folder)
    with pytest.raises(WeightsError, match=words) as caught:
        load_encoder(str(own_folder))
    assert "\n" not in str(caught.value)
    assert str(own_folder) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("own_folder", ["siglip"], indirect=True)
def test_heads_that_do_not_fit_are_one_line(own_folder: Path) -> None:
    text = json.loads((own_folder / "config.json").read_text())["text_config"]
    change_config(own_folder, text_config={**text, "num_attention_heads": 7})
    with pytest.raises(WeightsError, match="7 heads cannot share a hidden_size of 32"):
        load_encoder(str(own_folder))


def test_damaged_tokenizer_is_one_line(own_folder: Path) -> None:
    (own_folder / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(WeightsError, match="can't be loaded") as caught:
        load_encoder(str(own_folder)).encode_text(["fire"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"device": "tpu"}, UsageError, "'tpu' is not a device"),
        ({"device": "cuda:99"}, DeviceError, "cuda:99: torch"),
        ({"precision": "int8"}, UsageError, "'int8' does not exist"),
    ],
)
def test_options_are_checked(folders: dict[str, Path], options: dict[str, str], kind: type[VadcliError], words: str) -> None:
    with pytest.raises(kind, match=words):
        load_encoder(str(folders["clip"]), **options)


def test_another_family_is_one_registry_entry(monkeypatch: pytest.MonkeyPatch, own_folder: Path) -> None:
    monkeypatch.setitem(ENCODERS._all, "dummy", f"{__name__}:Dummy")
    change_config(own_folder, model_type="dummy")
    assert isinstance(load_encoder(str(own_folder)), Dummy)


class Dummy:
    def __init__(self, name: str, folder: Path, *, device: str, precision: str) -> None:
        self.name = name
