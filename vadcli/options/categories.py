"""Reads the categories that the user looks for, and the sentences for and against each category.

`--categories` takes parts separated by commas. A part is a word, `@NAME` for a list that comes with vadcli, `@FILE` for the
user's own list, or a category with its sentences, such as `fight: two people punching; someone kicked on the ground`.
docs/categories.md describes the files.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from vadcli.errors import UsageError
from vadcli.types.text import SAVE_AS, FieldError, NotText, decode_text, did_you_mean, structure, unreadable

FORMAT_VERSION = 1
DEFAULT_LIST = "general"
FEWEST_NORMAL = 5
MOST_WORDS = 20
"""Maximum number of words in a sentence. Text encoders read 64 to 77 tokens, which are enough for 20 words."""
MOST_BYTES = 1_000_000
"""Largest size of a category file. Without this limit, `@video.mp4` would be read to its end."""
MOST_SHOWN = 80
"""An error message shows at most this many characters of a name or sentence."""
FORBIDDEN_IN_NAMES = ",:@\n"
TEMPLATES = (
    "{}",
    "a picture of {}",
    "a photo that shows {}",
    "a surveillance camera picture of {}",
    "a video frame that shows {}",
    "a scene with {}",
)


@dataclass(frozen=True)
class Category:
    """A category and the sentences that describe it.

    Attributes:
        name: the name, in the user's words.
        means: sentences that describe what the category looks like.
        looks_like: sentences about harmless things that look similar. They count against the category.
        verbs: words that mean the category, such as "punching". No sentence against the category may contain such a word.
    """

    name: str
    means: tuple[str, ...]
    looks_like: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ()

    def verb_in(self, sentence: str) -> str:
        """Return the first of `verbs` that the sentence contains as a whole word, or an empty text."""
        words = "|".join(re.escape(verb) for verb in self.verbs if verb.strip())
        match = re.search(rf"\b(?:{words})\b", sentence, re.IGNORECASE) if words else None
        return match.group() if match else ""


@dataclass(frozen=True)
class CategoryBook:
    """Categories with their sentences, and sentences about normal scenes.

    Attributes:
        categories: the categories.
        normal: sentences about normal scenes. They count against all categories (exceptions: see `normal_for`).
    """

    categories: tuple[Category, ...]
    normal: tuple[str, ...]

    def normal_for(self, category: Category) -> tuple[str, ...]:
        """Return the sentences about normal scenes that count against a category.

        Left out are sentences that contain one of the category's `verbs`, and sentences that also describe the category.
        """
        # `check_file` looks for such contradictions in one file. But the user may combine several files.
        return tuple(text for text in self.normal if text not in category.means and not category.verb_in(text))


@dataclass(frozen=True)
class CategoryFile:
    """The content of a category file. `category` has the [[category]] tables of the TOML file."""

    about: str = ""
    normal: tuple[str, ...] = ()
    category: tuple[Category, ...] = ()


def parse_categories(text: str) -> tuple[str, ...]:
    """Return the names of the categories that the text of --categories names, in order, without repeats.

    Raises:
        UsageError: a list or file does not exist.
    """
    return tuple(category.name for category in read_categories(text).categories)


def read_categories(text: str) -> CategoryBook:
    """Return the categories that the text of --categories names, in order, without repeats.

    An example of a text:

        fire, fight: two people fight; a person hits another, @LIST, @FILE

    A category can have sentences (after the colon). If a category has none, its sentences come from a list that has the
    category. If no list has it, its sentences come from TEMPLATES.

    The sentences about normal scenes come from the files in the text. If these files have none, they come from the general
    list.

    Raises:
        UsageError: a list or file does not exist, a file is damaged, or a category has no sentence.
    """
    by_name: dict[str, Category] = {}
    own_sentences: dict[str, tuple[str, ...]] = {}
    normal: dict[str, None] = {}
    for part in (piece.strip() for piece in text.split(",")):
        if part.startswith("@"):
            file = read_list(part[1:].strip())
            normal.update(dict.fromkeys(file.normal))
            for category in file.category:
                by_name.setdefault(category.name, category)
        elif part:
            name, sentences = _split(part, "--categories")
            own_sentences[name] = own_sentences.get(name, ()) + sentences
            by_name.setdefault(name, _described(name))
    categories = tuple(
        _own(name, own_sentences[name]) if own_sentences.get(name) else category for name, category in by_name.items()
    )
    return CategoryBook(categories, tuple(normal) or read_list(DEFAULT_LIST).normal)


def own_categories(text: str) -> tuple[Category, ...]:
    """Return the categories of `--categories` that have the user's own sentences.

    Raises:
        UsageError: as in `read_categories`.
    """
    return tuple(category for category in read_categories(text).categories if category != _described(category.name))


def described_categories(names: Iterable[str], own: Iterable[Category]) -> tuple[Category, ...]:
    """Return one category per name, without repeats. A name that `own` does not have gets a new category."""
    by_name = {category.name: category for category in reversed(tuple(own))}
    return tuple(by_name.get(name) or _described(name) for name in dict.fromkeys(names))


def template_sentences(name: str) -> tuple[str, ...]:
    """Return the sentences for a category that has only a name."""
    return tuple(template.format(name) for template in TEMPLATES)


def category_list_names() -> list[str]:
    """Return the names of the category lists that come with vadcli."""
    names = {entry.name.rpartition(".")[0] for entry in _folder().iterdir() if entry.name.endswith((".txt", ".toml"))}
    return sorted(names)


def read_list(name: str) -> CategoryFile:
    """Return the content of a category list.

    Args:
        name: the name of a list that comes with vadcli, or the path of a user's file.

    Raises:
        UsageError: no list or file has this name, or the file is damaged.
    """
    lists = category_list_names()
    if name in lists:
        return _shipped(name)
    path = Path(name)
    with suppress(RuntimeError):  # raised for ~NAME if NAME is not a user of this machine
        path = path.expanduser()
    if not name or not os.path.exists(path):
        near = did_you_mean(name.lower(), lists).replace("did you mean ", "did you mean @")
        raise UsageError(
            f"{_short('@' + name)} is neither a category list that comes with vadcli nor a file",
            hint=f"{near} lists: {', '.join(lists)}".strip(),
        )
    return parse_file(read_category_file(path), str(path))


def read_category_file(path: Path) -> str:
    """Return the text of a user's category file, with Unix line ends and without a byte order mark.

    Raises:
        UsageError: the path is not a file, or the file can't be read, is too long (over 1 MB), or is not text.
    """
    if path.exists() and not path.is_file():  # a pipe could be read only once
        raise UsageError(f"{path}: not a file", hint="give a file of categories, in TOML or with one category per line")
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(unreadable(path, error)) from error
    if len(content) > MOST_BYTES:
        raise UsageError(f"{path}: has more than {MOST_BYTES:,} bytes", hint="is this a category file?")
    try:
        text = decode_text(content)
    except NotText as error:
        raise UsageError(f"{path}: {error}", hint=SAVE_AS) from error
    if "\0" in text:
        raise UsageError(f"{path}: a binary file, not text", hint="is this a category file?")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_file(text: str, where: str) -> CategoryFile:
    """Return the content of a category file: TOML, or one category per line.

    The text is read as TOML if `where` (the file's name) ends in .toml, or if the text has a line `format_version = ...`
    or `[[category]]`.

    Raises:
        UsageError: the file is damaged, or has another format version or a wrong field. The message begins with `where`.
    """
    if _is_toml(text, where):
        return _parse_toml(text, where)
    sentences_of: dict[str, tuple[str, ...]] = {}
    for line in _lines(text):
        if line.startswith("@"):
            raise UsageError(
                f"{where}: {_short(line)!r}: a list can't name another list",
                hint="give both lists to --categories, with a comma between them",
            )
        name, sentences = _split(line, where)
        sentences_of[name] = sentences_of.get(name, ()) + sentences
    return CategoryFile(category=tuple(_own(name, own) if own else _described(name) for name, own in sentences_of.items()))


def check_file(text: str, where: str) -> list[str]:
    """Return the problems of a category file, one line per problem.

    The most important rule: no sentence against a category contains one of the category's `verbs`. In the NOVA paper, this rule
    raised the AUC by three points.
    """
    try:
        file = parse_file(text, where)
    except UsageError as error:
        return [str(error)]
    problems: list[str] = []
    if not file.category and not file.normal:
        problems.append("has no category")
    elif _is_toml(text, where):
        if len(file.normal) < FEWEST_NORMAL:
            problems.append(f"has {len(file.normal)} normal sentences; give at least {FEWEST_NORMAL}")
        problems += _bad_sentences("normal", file.normal)
        counts = Counter(category.name for category in file.category)
        problems += [f"the category {name!r} occurs {count} times" for name, count in counts.items() if count > 1]
        for category in file.category:
            name = category.name
            if not any(verb.strip() for verb in category.verbs):
                problems.append(f"{name}: has no verbs, so the sentences against it can't be checked")
            problems += _bad_sentences(name, category.means + category.looks_like)
            for sentence in (*category.looks_like, *file.normal):
                if verb := category.verb_in(sentence):
                    problems.append(f"{name}: the sentence {sentence!r} contains {verb!r}")
    return [f"{where}: {problem}" for problem in dict.fromkeys(problems)]


def _parse_toml(text: str, where: str) -> CategoryFile:
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits raises a plain ValueError
        raise UsageError(f"{where}: not TOML: {error}") from error
    version = document.pop("format_version", None)
    if type(version) is not int or version != FORMAT_VERSION:
        raise UsageError(
            f"{where}: not a category file of format version {FORMAT_VERSION}", hint=f"write format_version = {FORMAT_VERSION}"
        )
    tables = document.get("category")
    try:
        for number, table in enumerate(tables if isinstance(tables, list) else (), 1):
            name = table.get("name") if isinstance(table, dict) else None
            structure(Category, table, f"category {_short(name) if isinstance(name, str) and name else number}")
        file = structure(CategoryFile, document)
    except FieldError as error:
        raise UsageError(f"{where}: {error}", hint=error.hint) from error
    for category in file.category:
        name = category.name
        if not name or name != name.strip() or any(mark in name for mark in FORBIDDEN_IN_NAMES):
            raise UsageError(
                f"{where}: {_short(name)!r} can't be the name of a category",
                hint="a name is not empty, contains no comma, colon, @ or line end, and has no space around it",
            )
        if not any(sentence.strip() for sentence in category.means):
            raise UsageError(
                f"{where}: the category {_short(name)!r} has no sentence", hint="write a sentence in means = [...]"
            )
    return file


def _is_toml(text: str, where: str) -> bool:
    # Windows can hide the `.txt` of a file that is really called `mine.toml.txt`. So the content is checked, too.
    return (
        where.lower().endswith(".toml")
        or re.search(r"^\s*(format_version\s*=|\[\[category\]\])", text, re.MULTILINE) is not None
    )


def _bad_sentences(where: str, sentences: tuple[str, ...]) -> Iterator[str]:
    for sentence, count in Counter(sentences).items():
        if count > 1:
            yield f"{where}: the sentence {sentence!r} occurs {count} times"
        if not sentence.strip():
            yield f"{where}: has an empty sentence"
        if len(sentence.split()) > MOST_WORDS:
            yield f"{where}: the sentence {sentence!r} has more than {MOST_WORDS} words"


def _split(part: str, where: str) -> tuple[str, tuple[str, ...]]:
    """Return the name and the sentences of `NAME: SENTENCE; SENTENCE`; no sentences for `NAME` alone."""
    name, colon, rest = (piece.strip() for piece in part.partition(":"))
    sentences = tuple(piece for piece in (text.strip() for text in rest.split(";")) if piece)
    if colon and not (sentences and name):
        raise UsageError(
            f"{where}: {_short(part)!r} has no {'sentence' if name else 'name'}",
            hint="write NAME: SENTENCE; SENTENCE - sentences are separated by semicolons and contain no commas",
        )
    return name, sentences


def _own(name: str, sentences: tuple[str, ...]) -> Category:
    return Category(name, tuple(dict.fromkeys(sentences)))


def _described(name: str) -> Category:
    known = _known().get(name.lower())
    return replace(known, name=name) if known else Category(name, template_sentences(name))


def _short(text: str) -> str:
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


@cache
def _known() -> dict[str, Category]:
    """Return the categories of all lists, by lower-case name. The general list wins over the other lists."""
    by_name: dict[str, Category] = {}
    for name in (DEFAULT_LIST, *category_list_names()):
        text = _text(name, ".toml")
        for category in parse_file(text, f"{name}.toml").category if text else ():
            by_name.setdefault(category.name.lower(), category)
    return by_name


@cache
def _shipped(name: str) -> CategoryFile:
    text, names = _text(name, ".toml"), _text(name, ".txt")
    file = parse_file(text, f"{name}.toml") if text else CategoryFile()
    if not names:
        return file
    # The names in the .txt file are part of the fingerprints of earlier scans. If they or their order changed, all videos would
    # be scanned again.
    own = {category.name: category for category in file.category}
    return CategoryFile(file.about, file.normal, tuple(own.get(line) or _described(line) for line in _lines(names)))


def _text(name: str, suffix: str) -> str:
    entry = _folder().joinpath(f"{name}{suffix}")
    return entry.read_text(encoding="utf-8") if entry.is_file() else ""


def _folder() -> Any:
    return resources.files("vadcli").joinpath("categories")


def _lines(text: str) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]
