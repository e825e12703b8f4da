"""What the user looks for: names of categories, and sentences for and against each.

`--categories` takes parts separated by commas: a word, `@NAME` for a list that comes with vadcli, `@FILE` for a user's own
list, or a category with its sentences, `fight: two people punching; someone kicked on the ground`.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from vadcli.errors import UsageError
from vadcli.types.codec import FieldError, structure

FORMAT_VERSION = 1
DEFAULT_LIST = "general"
FEWEST_NORMAL = 5
MOST_WORDS = 20
"""A sentence of this many words fits into the text encoders, which read 64 to 77 tokens."""
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
        name: in the user's words.
        means: sentences that say what it looks like.
        looks_like: sentences about harmless things that look alike.
        verbs: words that no sentence against the category may contain.
    """

    name: str
    means: tuple[str, ...]
    looks_like: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ()


@dataclass(frozen=True)
class CategoryBook:
    """Categories, and sentences about normal scenes that stand against all of them."""

    categories: tuple[Category, ...]
    normal: tuple[str, ...]


@dataclass(frozen=True)
class CategoryFile:
    """A category file in TOML. `category` holds its [[category]] tables."""

    about: str = ""
    normal: tuple[str, ...] = ()
    category: tuple[Category, ...] = ()


def parse_categories(text: str) -> tuple[str, ...]:
    """Returns the names of the categories in `a, b, @list, @file`, in order, without repeats.

    Raises:
        UsageError: a list or file does not exist.
    """
    return tuple(category.name for category in read_categories(text).categories)


def read_categories(text: str) -> CategoryBook:
    """Returns the categories of `a, b: sentence; sentence, @list, @file` with their sentences, in order, without repeats.

    A word that one of vadcli's lists describes gets its sentences; any other word gets TEMPLATES. The normal sentences are
    those of the files that are used, or of the general list if none is.

    Raises:
        UsageError: a list or file does not exist, a file is damaged, or a category has no sentence.
    """
    found: dict[str, Category] = {}
    normal: dict[str, None] = {}
    for part in (piece.strip() for piece in text.split(",")):
        if not part:
            continue
        if part.startswith("@"):
            file = read_list(part[1:])
            normal.update(dict.fromkeys(file.normal))
            for category in file.category:
                found.setdefault(category.name, category)
        else:
            category = _inline(part)
            found.setdefault(category.name, category)
    return CategoryBook(tuple(found.values()), tuple(normal) or read_list(DEFAULT_LIST).normal)


def template_sentences(name: str) -> tuple[str, ...]:
    """Returns the sentences for a category of which only the name is known."""
    return tuple(template.format(name) for template in TEMPLATES)


def category_list_names() -> list[str]:
    """Returns the names of the category lists that come with vadcli."""
    names = {entry.name.rpartition(".")[0] for entry in _folder().iterdir() if entry.name.endswith((".txt", ".toml"))}
    return sorted(names)


def read_list(name: str) -> CategoryFile:
    """Returns a list of vadcli by its name, or a user's file by its path.

    Raises:
        UsageError: neither exists, or the file is damaged.
    """
    if name in category_list_names():
        return _shipped(name)
    path = Path(name).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"@{name} is neither a category list of vadcli nor a readable file",
            hint=f"lists: {', '.join(category_list_names())}",
        ) from error
    if path.suffix.lower() == ".toml":
        return parse_file(text, str(path))
    return CategoryFile(category=tuple(_described(line) for line in _lines(text)))


def parse_file(text: str, where: str) -> CategoryFile:
    """Returns the content of a category file in TOML.

    Raises:
        UsageError: it is not TOML, has another format version, or a field is wrong; the message begins with `where`.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where}: not TOML: {error}") from error
    version = document.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise UsageError(
            f"{where}: not a category file of format version {FORMAT_VERSION}", hint=f"write format_version = {FORMAT_VERSION}"
        )
    try:
        file = structure(CategoryFile, document)
    except FieldError as error:
        raise UsageError(f"{where}: {error}", hint=error.hint) from error
    for category in file.category:
        if not category.means:
            raise UsageError(f"{where}: the category {category.name!r} has no sentence", hint="add some under means")
    return file


def check_file(text: str, where: str) -> list[str]:
    """Returns what is wrong with a category file in TOML, one line per problem.

    The most important rule: no sentence against a category contains a word for it (NOVA: worth three points of AUC).
    """
    try:
        file = parse_file(text, where)
    except UsageError as error:
        return [str(error)]
    return [f"{where}: {problem}" for problem in _problems(file)]


def _problems(file: CategoryFile) -> Iterator[str]:
    if len(file.normal) < FEWEST_NORMAL:
        yield f"has {len(file.normal)} normal sentences; give at least {FEWEST_NORMAL}"
    yield from _bad_sentences("normal", file.normal)
    for name, count in Counter(category.name for category in file.category).items():
        if count > 1:
            yield f"the category {name!r} is there {count} times"
    for category in file.category:
        if any(mark in category.name for mark in ",:@") or category.name != category.name.strip() or not category.name:
            yield f"the name {category.name!r} must not be empty or contain a comma, a colon or @"
        if not category.verbs:
            yield f"{category.name}: has no verbs, so nothing keeps them out of the sentences against it"
        yield from _bad_sentences(category.name, category.means + category.looks_like)
        for verb in category.verbs:
            word = re.compile(rf"\b{re.escape(verb)}\b", re.IGNORECASE)
            for sentence in (*category.looks_like, *file.normal):
                if word.search(sentence):
                    yield f"{category.name}: the sentence {sentence!r} contains {verb!r}"


def _bad_sentences(where: str, sentences: tuple[str, ...]) -> Iterator[str]:
    for sentence, count in Counter(sentences).items():
        if count > 1:
            yield f"{where}: the sentence {sentence!r} is there {count} times"
        if not sentence.strip():
            yield f"{where}: has an empty sentence"
        if len(sentence.split()) > MOST_WORDS:
            yield f"{where}: the sentence {sentence!r} has more than {MOST_WORDS} words"


def _inline(part: str) -> Category:
    name, colon, told = (piece.strip() for piece in part.partition(":"))
    if not colon:
        return _described(name)
    sentences = tuple(piece for piece in (text.strip() for text in told.split(";")) if piece)
    if not sentences or not name:
        raise UsageError(
            f"--categories: {part!r} has no {'sentence' if name else 'name'}",
            hint="write NAME: SENTENCE; SENTENCE - sentences are separated by semicolons and contain no commas",
        )
    return Category(name, sentences)


def _described(name: str) -> Category:
    return _known().get(name) or Category(name, template_sentences(name))


@cache
def _known() -> dict[str, Category]:
    """The categories of all of vadcli's lists by name; the general list wins."""
    found: dict[str, Category] = {}
    for name in (DEFAULT_LIST, *category_list_names()):
        text = _text(name, ".toml")
        for category in parse_file(text, f"{name}.toml").category if text else ():
            found.setdefault(category.name, category)
    return found


@cache
def _shipped(name: str) -> CategoryFile:
    """A list of vadcli. The names of a text list are in fingerprints, so they come from there if it exists."""
    text, names = _text(name, ".toml"), _text(name, ".txt")
    file = parse_file(text, f"{name}.toml") if text else CategoryFile()
    if not names:
        return file
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
