"""The self-test of weights: a perfect model passes, random weights and single faults fail."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.commands import WITH_TORCH, vadcli
from tests.detectors.ask.models import tiny_qwen_folder
from tests.detectors.encoders import tiny_encoder_folder
from vadcli.detectors.ask import Question
from vadcli.errors import WeightsError
from vadcli.types import BoolArray, ByteArray, FloatArray
from vadcli.weights_check import (
    CHECKS,
    CheckResult,
    check,
    check_asker,
    check_encoder,
    check_masks,
    clip_tests,
    picture_tests,
    sam2_segment,
)

SMALL_PX = 48


def small(frames: ByteArray) -> FloatArray:
    shrunk = [np.asarray(Image.fromarray(frame).resize((SMALL_PX, SMALL_PX))) for frame in frames]
    return np.stack(shrunk).reshape(len(frames), -1).astype(np.float32)


def unit(vectors: FloatArray) -> FloatArray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


class Planted:
    """A perfect encoder: it knows the drawn pictures, and gives a picture and its sentences the same vector.

    It turns capitals into small letters.

    Args:
        common: length of the part that all vectors share. Real encoders have such a part too, so all their cosines are high.
    """

    name, width, size_px, temperature, max_tokens = "planted", 64, SMALL_PX, 0.03, 64

    def __init__(self, common: float = 3.0) -> None:
        self.common = common
        self.pictures: list[FloatArray] = []
        self.picture_axes: list[int] = []
        self.sentence_axes: dict[str, int] = {}
        first = 1
        for test in picture_tests():
            self.pictures.append(small(test.pictures))
            self.picture_axes += [first + answer for answer in test.answers]
            for answer, wordings in enumerate(test.sentences):
                self.sentence_axes |= dict.fromkeys(wordings, first + answer)
            first += len(test.sentences)
        self.gallery = np.concatenate(self.pictures)

    def _vectors(self, axes: Sequence[int]) -> FloatArray:
        vectors = np.zeros((len(axes), self.width), np.float32)
        vectors[:, 0] = self.common
        vectors[np.arange(len(axes)), list(axes)] = 1
        return unit(vectors)

    def encode_images(self, frames: ByteArray) -> FloatArray:
        distances = np.linalg.norm(small(frames)[:, None] - self.gallery[None], axis=-1)
        return self._vectors([self.picture_axes[nearest] for nearest in distances.argmin(axis=1)])

    def encode_text(self, texts: Sequence[str]) -> FloatArray:
        return self._vectors([self.sentence_axes[text.lower()] for text in texts])

    def patch_map(self, frames: ByteArray) -> FloatArray:
        raise NotImplementedError

    def text_tokens(self, text: str) -> int:
        return len(text.split())

    def fingerprint(self) -> dict[str, Any]:
        return {}


class Drawn(Planted):
    """An encoder with random weights: a random layer for pixels, and a random vector per word. All vectors share a part."""

    def __init__(self, seed: int, common: float) -> None:
        super().__init__(common)
        self.draw = np.random.default_rng(seed)
        self.layer = self.draw.normal(size=(SMALL_PX * SMALL_PX * 3, self.width)).astype(np.float32)
        self.shift = self.draw.normal(size=self.width).astype(np.float32) * common
        self.words: dict[str, FloatArray] = {}

    def encode_images(self, frames: ByteArray) -> FloatArray:
        return unit(np.tanh(small(frames) / 255 @ self.layer / SMALL_PX) + self.shift)

    def encode_text(self, texts: Sequence[str]) -> FloatArray:
        def word(text: str) -> FloatArray:
            return self.words.setdefault(text, self.draw.normal(size=self.width).astype(np.float32))

        return unit(np.stack([np.mean([word(one) for one in text.lower().split()], axis=0) for text in texts]) + self.shift)


class SwappedChannels(Planted):
    def encode_images(self, frames: ByteArray) -> FloatArray:
        return super().encode_images(np.ascontiguousarray(frames[..., ::-1]))


class SeesCapitals(Planted):
    def encode_text(self, texts: Sequence[str]) -> FloatArray:
        return self._vectors([self.sentence_axes[text.lower()] if text.islower() else 60 for text in texts])


class OneVector(Planted):
    def encode_images(self, frames: ByteArray) -> FloatArray:
        return self._vectors([0] * len(frames))


class Overflows(Planted):
    def encode_images(self, frames: ByteArray) -> FloatArray:
        return super().encode_images(frames) * np.float32(np.nan)


class NotUnit(Planted):
    def encode_text(self, texts: Sequence[str]) -> FloatArray:
        return super().encode_text(texts) * 3


class MixedUp(Planted):
    """Knows the pictures, but gives each sentence the vector of the next sentence of its test."""

    def __init__(self) -> None:
        super().__init__()
        first = 1
        for test in picture_tests():
            count = len(test.sentences)
            for answer, wordings in enumerate(test.sentences):
                self.sentence_axes |= dict.fromkeys(wordings, first + (answer + 1) % count)
            first += count


def failed(results: Sequence[CheckResult]) -> set[str]:
    return {result.name for result in results if not result.ok}


RANKED = {"discs", "coloured shapes", "stripes", "words", "day and night"}


def test_an_encoder_that_is_right_passes_every_test() -> None:
    results = check_encoder(Planted())
    assert {result.name for result in results} == RANKED | {"capitals", "unit length"}
    assert failed(results) == set()
    assert all(result.right == result.count for result in results)
    margins = [result.value for result in results if result.measure == "margin"]
    assert margins == pytest.approx([0.1] * 5, abs=1e-3), "1 / (3² + 1)"


@pytest.mark.parametrize("common", [0.0, 3.0])
@pytest.mark.parametrize("seed", range(6))
def test_random_weights_fail(seed: int, common: float) -> None:
    assert len(failed(check_encoder(Drawn(seed, common)))) >= 3


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_folders_with_random_weights_fail(tmp_path: Path, family: str, seed: int) -> None:
    results = check(str(tiny_encoder_folder(tmp_path / family, family, seed)))
    assert failed(results) >= {"discs", "coloured shapes", "words"}
    assert not failed(results) & {"capitals", "unit length"}, "their tokenizers and vectors are in order"


@pytest.mark.parametrize(
    ("encoder", "names"),
    [
        (SeesCapitals(), {"capitals"}),
        (OneVector(), RANKED),
        (Overflows(), {*RANKED, "unit length"}),
        (NotUnit(), {"unit length"}),
        (MixedUp(), RANKED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Planted) else "",
)
def test_a_single_fault_fails_the_tests_that_it_concerns(encoder: Planted, names: set[str]) -> None:
    results = check_encoder(encoder)
    assert failed(results) == names
    for result in results:
        json.dumps(result.to_json(), allow_nan=False)


def test_swapped_colour_channels_fail_the_tests_of_colours() -> None:
    assert failed(check_encoder(SwappedChannels())) >= {"discs", "coloured shapes"}


def test_no_two_pictures_or_sentences_of_a_question_are_alike() -> None:
    for test in picture_tests():
        flat = small(test.pictures)
        distances = np.linalg.norm(flat[:, None] - flat[None], axis=-1) + 1e9 * np.eye(len(flat))
        assert distances.min() > 100, test.name
        sentences = [wording for wordings in test.sentences for wording in wordings]
        assert len(set(sentences)) == len(sentences)
        assert all(sentence.islower() for sentence in sentences)
        assert len(test.answers) == len(test.pictures)
        assert set(test.answers) == set(range(len(test.sentences)))
        chance = len(test.answers) / len(test.sentences)
        assert chance * 1.5 < test.needed <= len(test.answers)


# Qwen2-VL


class PlantedAsker:
    """A perfect language model: it knows the drawn clips. It prefers "no", but less so if the question is the right one.

    Args:
        right: False makes it prefer the next question of the clip instead.
    """

    name, clip_frames, clip_s, max_area_px, batch_size, parallel = "planted", 8, 8.0, SMALL_PX**2, 1, 1

    def __init__(self, right: bool = True) -> None:
        pairs = [
            (small(test.pictures[place][None]), test.sentences[(answer + (not right)) % len(test.sentences)][0])
            for test in clip_tests()
            for place, answer in enumerate(test.answers)
        ]
        self.gallery = np.concatenate([picture for picture, _ in pairs])
        self.texts = [text for _, text in pairs]

    def prepare(self) -> None: ...

    def ask(self, frames: ByteArray, asked: Sequence[Question]) -> FloatArray:
        nearest = np.linalg.norm(small(frames[:, 0])[:, None] - self.gallery[None], axis=-1).argmin(axis=1)
        return np.array([[-1.0 if one.text == self.texts[at] else -4.0 for one in asked] for at in nearest], np.float32)

    def describe(self, frames: ByteArray) -> str:
        raise NotImplementedError

    def fingerprint(self) -> dict[str, object]:
        return {}


def test_a_model_that_sees_colours_and_shapes_passes_and_one_that_mixes_them_up_fails() -> None:
    results = check_asker(PlantedAsker())
    assert [(result.name, result.right, result.count) for result in results] == [("squares", 6, 6), ("coloured shapes", 9, 9)]
    assert failed(results) == set()
    assert {result.value for result in results} == {3.0}
    assert failed(check_asker(PlantedAsker(right=False))) == {"squares", "coloured shapes"}


@pytest.mark.parametrize("seed", range(2))
def test_a_language_model_with_random_weights_fails(tmp_path: Path, seed: int) -> None:
    assert failed(check(str(tiny_qwen_folder(tmp_path / "qwen", seed=seed)))) == {"squares", "coloured shapes"}


# SAM2


def flood(frames: ByteArray, points: FloatArray) -> BoolArray:
    """Return a perfect mask per point: all pixels of the same colour as the point."""
    masks = []
    for frame, (x, y) in zip(frames, points.astype(int), strict=True):
        same = (np.abs(frame.astype(int) - frame[y, x].astype(int)) < 20).all(axis=-1)
        masks.append(same)
    return np.stack(masks)


def everything(frames: ByteArray, points: FloatArray) -> BoolArray:
    return np.ones(frames.shape[:3], bool)


def whatever_is_not_grey(frames: ByteArray, points: FloatArray) -> BoolArray:
    return np.asarray((np.abs(frames.astype(int) - 200) > 20).any(axis=-1))


@pytest.mark.parametrize(
    ("segment", "names"),
    [(flood, set()), (everything, {"disc", "one of two discs"}), (whatever_is_not_grey, {"one of two discs"})],
)
def test_masks(segment: Any, names: set[str]) -> None:
    assert failed(check_masks(segment)) == names


SMALL_SAM2 = Path(__file__).resolve().parents[1] / "weights" / "lavida-tiny" / "sam2"


def save_random_sam2(folder: Path) -> Path:
    """Save a SAM2 model of the size of the small checkpoint, with random weights, and return its folder."""
    torch = pytest.importorskip("torch")
    from transformers import Sam2VideoConfig, Sam2VideoModel

    import vadcli.detectors.lavida.sam2  # noqa: F401  registers the small image encoder

    torch.manual_seed(0)
    Sam2VideoModel(Sam2VideoConfig.from_pretrained(SMALL_SAM2)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def random_sam2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_sam2(tmp_path_factory.mktemp("sam2"))


def test_random_sam2_weights_fail(random_sam2: Path) -> None:
    assert failed(check(str(random_sam2))) == {"disc", "one of two discs"}


@pytest.mark.parametrize("has_box", [False, True])
def test_prompts_give_what_transformers_own_model_gives(random_sam2: Path, has_box: bool) -> None:
    """Sam2Model of transformers and LAVIDA's decoder compute the same mask from a point, or from a point and a box."""
    import torch
    from transformers import Sam2Config, Sam2Model

    from vadcli.detectors.lavida.checkpoint import read_model
    from vadcli.detectors.lavida.masks import sam_pixels
    from vadcli.detectors.refining import Sam2Refiner

    video = read_model("sam2", random_sam2)
    config = video.config
    parts = {name: getattr(config, name) for name in ("vision_config", "prompt_encoder_config", "mask_decoder_config")}
    model = Sam2Model(Sam2Config(**parts)).eval()
    missing, _ = model.load_state_dict(video.state_dict(), strict=False)
    assert not missing
    model.prompt_encoder.shared_embedding.load_state_dict(model.shared_image_embedding.state_dict())
    draw = np.random.default_rng(0)
    frames = draw.integers(0, 256, (3, 200, 300, 3), np.uint8)
    points = np.array([[150, 100], [40, 180], [290, 10]], np.float32)
    corners = np.stack([np.maximum(points - 30, 0), np.minimum(points + 40, [299, 199])], axis=1).astype(np.float32)
    side = config.image_size
    scale = torch.tensor([side / 300, side / 200])
    box = {"input_boxes": (torch.from_numpy(corners) * scale).view(3, 1, 4)} if has_box else {}
    with torch.inference_mode():
        output = model(
            pixel_values=sam_pixels(torch.from_numpy(frames), side),
            input_points=(torch.from_numpy(points) * scale).view(3, 1, 1, 2),
            input_labels=torch.ones(3, 1, 1, dtype=torch.int32),
            multimask_output=True,
            **box,
        )
        best = output.pred_masks[torch.arange(3), 0, output.iou_scores[:, 0].argmax(dim=1)]
        theirs = torch.nn.functional.interpolate(best[:, None], size=(200, 300), mode="bilinear")[:, 0] > 0
    if has_box:
        refiner, prompts = Sam2Refiner(str(random_sam2), device="cpu"), np.concatenate([points[:, None], corners], axis=1)
        ours = np.concatenate([refiner.segment(*one, 300, 200) for one in zip(frames, prompts[:, None], strict=True)])
    else:
        ours = sam2_segment(random_sam2)(frames, points)
    assert 0.02 < ours.mean() < 0.98, "neither nothing nor everything"
    assert (ours == theirs.numpy()).mean() > 0.999


def transformers_folder(folder: Path, **config: object) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# By name or folder


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "bert"}, "no self-test exists for a 'bert' model"),
        ({"format_version": 1}, "a LAVIDA folder has no self-test"),
    ],
)
def test_what_cannot_be_tested_is_one_line(tmp_path: Path, config: dict[str, object], words: str) -> None:
    folder = transformers_folder(tmp_path / "model", **config)
    with pytest.raises(WeightsError, match=words) as caught:
        check(str(folder))
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_the_folder_decides_which_tests_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [CheckResult("planted", "", "margin", 0.1, 1, 1, 1)]
    monkeypatch.setattr("vadcli.weights_check.CHECKS", {**CHECKS, "clip": lambda folder: expected})
    assert check(str(transformers_folder(tmp_path / "mine", model_type="clip"))) == expected
    with pytest.raises(WeightsError, match="not a transformers folder"):
        check(str(tmp_path))


def test_the_command_exits_4_for_weights_that_are_absent_and_for_random_ones(tmp_path: Path, random_sam2: Path) -> None:
    environment = {"VADCLI_WEIGHTS": str(tmp_path / "home")}
    done = vadcli("weights", "check", "siglip2-b32", random_sam2, "--json", cwd=tmp_path, forks=WITH_TORCH, **environment)
    assert done.returncode == 4
    assert "vadcli weights pull siglip2-b32" in done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["test"], line["ok"]) for line in lines] == [("disc", False), ("one of two discs", False)]
    assert "failed: disc, one of two discs" in done.stderr
    table = vadcli("weights", "check", random_sam2, cwd=tmp_path, forks=WITH_TORCH, **environment).stdout.splitlines()
    assert [line.split()[0] for line in table] == ["disc", "one"]
    assert all("FAILED" in line for line in table)
