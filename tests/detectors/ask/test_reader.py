"""The answers of `ask`, compared with transformers' own forward pass without a cache."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.detectors.ask.models import tiny_qwen_folder
from tests.detectors.lavida.models import films
from vadcli.detectors.ask import MAX_PX, MIN_PX, SEVERITY, Question, QwenAsker, questions_for
from vadcli.detectors.ask.reader import ANSWER_SO, Reader, answer_tokens, first_sentence
from vadcli.detectors.mllm.compress import CompressionOptions, compress
from vadcli.detectors.mllm.qwen import VIDEO, qwen_patches
from vadcli.errors import UsageError, WeightsError

ASKED = questions_for("fight: two people fighting, purple dragon, fire")
ALONE = tuple(Question(one.category, one.text) for one in ASKED)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen_folder(tmp_path_factory.mktemp("ask") / "qwen")


@pytest.fixture(scope="module")
def asker(folder: Path) -> QwenAsker:
    found = QwenAsker(str(folder), device="cpu")
    assert isinstance(found, QwenAsker)
    found.prepare()
    return found


@pytest.fixture(scope="module")
def reader(asker: QwenAsker) -> Reader:
    return asker.load(torch.device("cpu"))


def ids_around(reader: Reader, text: str) -> tuple[list[int], list[int]]:
    """The ids before and after the video, from the chat template alone."""
    said = [
        {"role": "system", "content": "You watch the videos of cameras. Judge only what is visible."},
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text + ANSWER_SO}]},
    ]
    ids = reader.tokenizer(reader.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True))["input_ids"]
    hole = ids.index(reader.tokenizer.convert_tokens_to_ids(VIDEO))
    return ids[:hole], ids[hole + 1 :]


@torch.no_grad()
def by_transformers(reader: Reader, frames: Tensor, text: str) -> np.ndarray:
    """(B,) log-odds of whole sequences without a cache."""
    patches, grid = qwen_patches(frames, min_px=MIN_PX, max_px=MAX_PX)
    before, after = ids_around(reader, text)
    video = reader.tokenizer.convert_tokens_to_ids(VIDEO)
    ids = torch.tensor([[*before, *[video] * grid.tokens, *after]] * len(frames))
    logits = reader.lm.qwen(
        input_ids=ids,
        mm_token_type_ids=(ids == video).int() * 2,
        pixel_values_videos=patches.flatten(0, 1),
        video_grid_thw=torch.tensor([[grid.pairs, grid.rows, grid.columns]] * len(frames)),
        use_cache=False,
    ).logits[:, -1]
    yes, no = answer_tokens(reader.tokenizer)
    return np.asarray((logits[:, yes] - logits[:, no]).numpy())


@torch.no_grad()
def by_hand(reader: Reader, frames: Tensor, text: str, ratio: float) -> np.ndarray:
    """(B,) log-odds with compressed tokens, one clip at a time, without a cache; kept tokens have the places of the grid."""
    model, found = reader.lm.qwen.model, []
    yes, no = answer_tokens(reader.tokenizer)
    before, after = ids_around(reader, text)
    for clip in frames:
        patches, grid = qwen_patches(clip[None], min_px=MIN_PX, max_px=MAX_PX)
        thw = torch.tensor([[grid.pairs, grid.rows, grid.columns]])
        kept = compress(model.visual(patches[0], grid_thw=thw).pooler_output, CompressionOptions(ratio=ratio))
        assert len(kept.kept) == int(grid.tokens * ratio)
        rows, columns = grid.rows // 2, grid.columns // 2
        place = torch.tensor([np.unravel_index(int(at), (grid.pairs, rows, columns)) for at in kept.kept]).T + len(before)
        start = len(before) + max(rows, columns)
        positions = torch.cat(
            [
                torch.arange(len(before)).expand(3, -1),
                place,
                torch.arange(start, start + len(after)).expand(3, -1),
            ],
            dim=1,
        )
        words = model.language_model.embed_tokens
        embedded = torch.cat([words(torch.tensor(before)), kept.tokens, words(torch.tensor(after))])
        states = model.language_model(inputs_embeds=embedded[None], position_ids=positions[:, None], use_cache=False)
        logits = reader.lm.qwen.lm_head(states.last_hidden_state[0, -1])
        found.append(float(logits[yes] - logits[no]))
    return np.array(found)


def test_log_odds_equal_transformers_own_forward_without_a_cache(asker: QwenAsker, reader: Reader) -> None:
    frames = films(3)
    found = asker.ask(frames.numpy(), ALONE)
    assert found.shape == (3, 3)
    assert found.dtype == np.float32
    wanted = np.stack([by_transformers(reader, frames, one.text) for one in ALONE], axis=1)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
    assert np.ptp(found, axis=0).min() > 0.01, "the clips differ"
    assert np.ptp(found, axis=1).min() > 0.01, "the questions differ"


def test_compressed_log_odds_equal_an_explicit_reference(folder: Path, reader: Reader) -> None:
    frames = films(2)
    found = QwenAsker(str(folder), device="cpu", compression=0.2).ask(frames.numpy(), ALONE)
    wanted = np.stack([by_hand(reader, frames, one.text, 0.2) for one in ALONE], axis=1)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("compression", [1.0, 0.2])
def test_neither_order_nor_company_changes_an_answer(folder: Path, compression: float) -> None:
    asker = QwenAsker(str(folder), device="cpu", compression=compression)
    frames = films(8).numpy()
    whole = asker.ask(frames, ASKED)
    backwards = asker.ask(frames[::-1].copy(), ASKED[::-1])[::-1, ::-1]
    np.testing.assert_allclose(backwards, whole, rtol=0, atol=1e-5)
    for size in (1, 3):
        parts = np.concatenate([asker.ask(frames[start : start + size], ASKED) for start in range(0, 8, size)])
        np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-5)
    alone = np.concatenate([asker.ask(frames[:2], [one]) for one in ASKED], axis=1)
    np.testing.assert_allclose(alone, whole[:2], rtol=0, atol=1e-5)


def with_bias(asker: QwenAsker, value: float) -> QwenAsker:
    """The same model; its output layer adds a value to the logit of "yes"."""
    asker.prepare()
    (copy,) = asker._copies.all
    head = copy.reader.lm.qwen.lm_head
    changed = nn.Linear(head.in_features, head.out_features)
    changed.weight.data, changed.bias.data = head.weight.data, torch.zeros(head.out_features)
    changed.bias.data[copy.reader.answers[0]] = value
    copy.reader.lm.qwen.lm_head = changed
    return asker


def test_a_look_alike_is_subtracted_where_the_answer_leans_to_yes(folder: Path) -> None:
    asker = with_bias(QwenAsker(str(folder), device="cpu"), -0.8)
    frames = films(4).numpy()
    texts = [Question("", f"Does this video clip show {thing}?") for thing in ("smoke", "fog", "a dog", "rain", "a bag")]
    plain = asker.ask(frames, texts)
    assert (plain > 0).any()
    assert (plain < 0).any()
    pairs = [Question("", texts[0].text, other.text) for other in texts[1:]]
    wanted = plain[:, :1] - np.maximum(plain[:, 1:], 0)
    np.testing.assert_allclose(asker.ask(frames, pairs), wanted, rtol=0, atol=1e-5)


def test_a_bias_towards_yes_shifts_all_answers_equally(folder: Path) -> None:
    asker = QwenAsker(str(folder), device="cpu")
    frames = films(3).numpy()
    before = asker.ask(frames, ALONE)
    after = with_bias(asker, 1.5).ask(frames, ALONE)
    np.testing.assert_allclose(after - before, 1.5, rtol=0, atol=1e-4)


def test_answers_must_be_single_tokens(tmp_path: Path) -> None:
    asker = QwenAsker(str(tiny_qwen_folder(tmp_path / "qwen", answers=("yes",))), device="cpu")
    with pytest.raises(WeightsError, match="'no' is 2 tokens in this tokenizer") as error:
        asker.prepare()
    assert "Instruct model of Qwen2-VL or Qwen3-VL" in str(error.value.hint)


def test_a_missing_model_names_the_command_that_pulls_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VADCLI_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsError, match="qwen2-vl-7b: not on this machine") as error:
        QwenAsker("qwen2-vl-7b")
    assert error.value.hint == "run `vadcli weights pull qwen2-vl-7b` (16.6 GB)"
    with pytest.raises(UsageError, match="not a model that `ask` can use"):
        QwenAsker("siglip2-b32")
    with pytest.raises(UsageError, match="the folder does not exist"):
        QwenAsker("./nothing")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(WeightsError, match="not a model that `ask` can use"):
        QwenAsker(str(tmp_path))


def test_the_chat_template_may_be_in_the_processors_file(asker: QwenAsker, tmp_path: Path) -> None:
    copy = tiny_qwen_folder(tmp_path / "qwen")
    template = (copy / "chat_template.jinja").read_text()
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(WeightsError, match="chat_template"):
        QwenAsker(str(copy), device="cpu").prepare()
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    frames = films(1).numpy()
    np.testing.assert_array_equal(QwenAsker(str(copy), device="cpu").ask(frames, ALONE), asker.ask(frames, ALONE))


def test_damaged_weights_are_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    copy = tiny_qwen_folder(tmp_path / "copy")
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError) as error:
        QwenAsker(str(copy), device="cpu").prepare()
    assert "\n" not in str(error.value)


def test_a_description_is_one_sentence_and_always_the_same(asker: QwenAsker) -> None:
    (clip,) = films(1).numpy()
    said = asker.describe(clip)
    assert said == asker.describe(clip)
    assert said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("A man falls. He gets up.", "A man falls."),
        ("A man\n falls", "A man falls"),
        ("It costs 3.50 euros! Really?", "It costs 3.50 euros!"),
        ("", ""),
    ],
)
def test_the_first_sentence(text: str, first: str) -> None:
    assert first_sentence(text) == first


@torch.no_grad()
def test_a_description_consists_of_the_most_probable_tokens(asker: QwenAsker, reader: Reader) -> None:
    frames = films(1)
    (prefix,) = reader.lm.prefixes(reader.read(frames), reader.prompt("What?"))
    prompt = reader.prompt("What?")
    found = reader.lm.continued(prefix, prompt, most=4, stop=set())
    assert prefix.cache.get_seq_length() == prefix.length, "the prefix can be used again"
    patches, grid = qwen_patches(frames, min_px=MIN_PX, max_px=MAX_PX)
    video = reader.tokenizer.convert_tokens_to_ids(VIDEO)
    ids = [*prompt.before, *[video] * grid.tokens, *prompt.after]
    for token in found:
        whole = torch.tensor([ids])
        logits = reader.lm.qwen(
            input_ids=whole,
            mm_token_type_ids=(whole == video).int() * 2,
            pixel_values_videos=patches.flatten(0, 1),
            video_grid_thw=torch.tensor([[grid.pairs, grid.rows, grid.columns]]),
            use_cache=False,
        ).logits[0, -1]
        assert token == int(logits.argmax())
        ids.append(token)
    assert reader.lm.continued(prefix, prompt, most=4, stop={found[0]}) == []


def test_questions_name_the_category_and_quote_its_sentences() -> None:
    fight, dragon, smoke = questions_for("fight, purple dragon, smoke: grey smoke; black smoke")
    assert fight.text.startswith("Does this video clip show fight, such as: two people fighting; ")
    assert fight.text.count(";") == 2
    assert "hugging" in fight.look_alike
    assert dragon == Question("purple dragon", "Does this video clip show purple dragon?")
    assert smoke == Question("smoke", "Does this video clip show smoke, such as: grey smoke; black smoke?")
    assert questions_for("") == SEVERITY
    with pytest.raises(UsageError, match="control token"):
        questions_for("fire <|im_end|>")


def test_every_question_shares_its_beginning(reader: Reader) -> None:
    texts: Sequence[str] = [one.text for one in (*ASKED, *SEVERITY)]
    assert len({reader.prompt(text).before for text in texts}) == 1
    assert len({reader.prompt(text).after for text in texts}) == len(texts)
