"""Categories from words, lists and own sentences; good and bad category files; the command `vadcli categories`."""

from __future__ import annotations

import json
import os
import re
import time
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.commands import vadcli
from vadcli.errors import UsageError
from vadcli.options.categories import (
    FEWEST_NORMAL,
    MOST_BYTES,
    Category,
    CategoryBook,
    category_list_names,
    check_file,
    parse_categories,
    read_categories,
    read_list,
    template_sentences,
)

FOLDER = Path(str(resources.files("vadcli") / "categories"))
TOML_FILES = sorted(FOLDER.glob("*.toml"))
TEXT_FILES = sorted(FOLDER.glob("*.txt"))
PAGE = Path(__file__).resolve().parents[1] / "docs" / "categories.md"
GENERAL = (
    "fighting",
    "person falling",
    "person lying on the ground",
    "running",
    "robbery",
    "vandalism",
    "fire",
    "smoke",
    "explosion",
    "traffic accident",
    "weapon",
    "crowd panic",
)
UCF_CRIME = (
    "abuse",
    "arrest",
    "arson",
    "assault",
    "burglary",
    "explosion",
    "fighting",
    "road accident",
    "robbery",
    "shooting",
    "shoplifting",
    "stealing",
    "vandalism",
)
HEAD = "format_version = 1\n"
FIGHT = '[[category]]\nname = "fight"\nmeans = ["two people punching"]\n'
NORMAL = ("an empty yard", "a parked van", "a closed gate", "a lamp above a door", "a wall with a window")
GOOD = f"{HEAD}normal = {json.dumps(NORMAL)}\n{FIGHT}" + 'verbs = ["punch", "punching"]\nlooks_like = ["people dancing"]\n'


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty folder the current folder, and return it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(content: str | bytes, name: str) -> str:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return f"@{name}"


def refused(text: str) -> str:
    """Return the one-line error with which a value of --categories is refused."""
    with pytest.raises(UsageError) as caught:
        read_categories(text)
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 500
    return said


# --- what comes with vadcli ---


@pytest.mark.parametrize("path", TOML_FILES, ids=lambda path: path.name)
def test_a_shipped_file_has_no_problem(path: Path) -> None:
    assert check_file(path.read_text(encoding="utf-8"), path.name) == []


def test_the_lists_that_are_promised_come_with_vadcli() -> None:
    old = {"general", "ucf-crime", "xd-violence", "shanghaitech", "ubnormal", "pedestrian-area"}
    assert {path.stem for path in TEXT_FILES} == old
    assert {path.stem for path in TOML_FILES} == {*old, "retail", "traffic", "warehouse", "wildlife", "home"}
    assert category_list_names() == sorted(path.stem for path in TOML_FILES)


@pytest.mark.parametrize("path", TEXT_FILES, ids=lambda path: path.name)
def test_the_names_of_the_old_lists_are_as_before(path: Path) -> None:
    """The fingerprints of scans and the scripts of users contain these names."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert parse_categories(f"@{path.stem}") == tuple(lines)


def test_the_names_of_the_two_most_used_lists() -> None:
    assert parse_categories("@general") == GENERAL
    assert parse_categories("@ucf-crime") == UCF_CRIME


@pytest.mark.parametrize("name", category_list_names())
def test_every_category_of_a_list_is_described_in_its_own_file(name: str) -> None:
    file = read_list(name)
    assert len(file.normal) >= FEWEST_NORMAL
    assert file.about
    for category in file.category:
        assert category.means != template_sentences(category.name)
        assert category.looks_like
        assert set(category.means).isdisjoint(file.normal)


# --- words, lists and own sentences ---


def test_a_known_word_gets_the_sentences_of_its_list() -> None:
    (fire,) = read_categories("fire").categories
    assert fire == {category.name: category for category in read_list("general").category}["fire"]
    (deer,) = read_categories("deer").categories
    assert deer in read_list("wildlife").category


def test_upper_and_lower_case_find_the_same_sentences() -> None:
    (given_name,) = read_categories("FIRE").categories
    (known,) = read_categories("fire").categories
    assert given_name.name == "FIRE"
    assert given_name.means == known.means


def test_an_unknown_word_gets_templates() -> None:
    (robot,) = read_categories("a robot with {braces}").categories
    assert robot == Category("a robot with {braces}", template_sentences("a robot with {braces}"))
    assert len(set(robot.means)) == len(robot.means) > 1
    assert all("a robot with {braces}" in sentence for sentence in robot.means)


def test_own_sentences() -> None:
    (fight,) = read_categories("fight: two people punching; someone kicked on the ground").categories
    assert fight == Category("fight", ("two people punching", "someone kicked on the ground"))


def test_a_sentence_may_contain_a_colon_and_stray_semicolons_do_no_harm() -> None:
    (clock,) = read_categories(" clock : a clock that shows 12:30 ;; a clock that shows 12:30;").categories
    assert clock == Category("clock", ("a clock that shows 12:30",))


def test_a_list_of_vadcli() -> None:
    book, file = read_categories("@retail"), read_list("retail")
    assert book == CategoryBook(file.category, file.normal)
    assert read_categories("@ retail ") == book


def test_an_own_toml_file(here: Path) -> None:
    book = read_categories(written(GOOD, "own.toml"))
    fight = Category("fight", ("two people punching",), ("people dancing",), ("punch", "punching"))
    assert book == CategoryBook((fight,), NORMAL)


def test_an_own_text_file(here: Path) -> None:
    own = written("# mine\nfire\n\nforklift speeding # at any hour\nfight: two people punching; a kick\nfire\n", "own.txt")
    fire, forklift, fight = read_categories(own).categories
    assert fire in read_list("general").category
    assert forklift == Category("forklift speeding", template_sentences("forklift speeding"))
    assert fight == Category("fight", ("two people punching", "a kick"))


def test_a_mixture_keeps_the_order(here: Path) -> None:
    own = written("forklift\nfire\n", "own.txt")
    text = f"robot,, {own}, fight: a punch, @pedestrian-area, car ,robot,"
    expected = ("robot", "forklift", "fire", "fight", *parse_categories("@pedestrian-area"))
    assert parse_categories(text) == tuple(dict.fromkeys(expected))


def test_own_sentences_win_wherever_they_stand() -> None:
    own = Category("fire", ("a red flicker", "an orange glow"))
    for text in ("@general, fire: a red flicker, fire: an orange glow", "fire: a red flicker; an orange glow, fire, @general"):
        book = read_categories(text)
        assert [category for category in book.categories if category.name == "fire"] == [own]
        assert len(book.categories) == len(GENERAL)


def test_otherwise_the_first_wins(here: Path) -> None:
    own = written(GOOD.replace('"fight"', '"fire"'), "own.toml")
    assert read_categories(f"{own}, fire, @general").categories[0].means == ("two people punching",)
    assert "two people punching" not in read_categories(f"@general, {own}").categories[GENERAL.index("fire")].means


def test_normal_sentences_are_those_of_the_files_in_use(here: Path) -> None:
    own, text = written(GOOD, "own.toml"), written("forklift\n", "own.txt")
    general, retail = read_list("general").normal, read_list("retail").normal
    assert read_categories("").normal == general
    assert read_categories(f"fire, robot, fight: a punch, {text}").normal == general
    assert read_categories(f"{own}, fire").normal == NORMAL
    assert read_categories(f"@retail, {own}, {text}").normal == (*retail, *NORMAL)
    assert read_categories("@retail, @general").normal == tuple(dict.fromkeys((*retail, *general)))


def test_a_file_may_hold_normal_sentences_alone(here: Path) -> None:
    own = written(f"{HEAD}normal = {json.dumps(NORMAL)}\n", "own.toml")
    assert read_categories(f"robot, {own}") == CategoryBook((Category("robot", template_sentences("robot")),), NORMAL)


def test_normal_sentences_that_name_a_category_do_not_stand_against_it() -> None:
    """A category that is only a word gets the normal sentences of the general list, which were not written for it."""
    book = read_categories("car, robot")
    car, robot = book.categories
    assert any(re.search(r"\bcars\b", sentence) for sentence in book.normal)
    assert not any(re.search(r"\bcars?\b", sentence) for sentence in book.normal_for(car))
    assert set(book.normal_for(car)) < set(book.normal)
    assert book.normal_for(robot) == book.normal


@pytest.mark.parametrize("name", category_list_names())
def test_all_normal_sentences_of_a_list_stand_against_all_its_categories(name: str) -> None:
    book = read_categories(f"@{name}")
    assert all(book.normal_for(category) == book.normal for category in book.categories)


def test_words_for_a_category_are_whole_words() -> None:
    category = Category("fire", ("x",), verbs=("fire", "on fire", "c++", " "))
    assert category.verb_in("a Fire in a bin") == "Fire"
    assert category.verb_in("a fireplace and a fireman") == ""
    assert Category("fire", ("x",)).verb_in("a fire") == ""


# Words without the characters that have a meaning in --categories.
WORD = st.text(st.characters(exclude_characters=",:@", exclude_categories=["Cs"]), max_size=30)


@given(st.lists(WORD, max_size=20))
def test_words_come_back_stripped_and_once(words: list[str]) -> None:
    expected = tuple(dict.fromkeys(word.strip() for word in words if word.strip()))
    assert parse_categories(", ".join(words)) == expected


def test_500_categories_are_quick(here: Path) -> None:
    names = [f"thing {number}" for number in range(500)]
    tables = "".join(
        f'[[category]]\nname = "{name}"\nmeans = ["one {name}"]\nverbs = ["v{name}", "w{name}", "x{name}"]\n' for name in names
    )
    text = f"{HEAD}normal = {json.dumps([f'normal scene {number}' for number in range(25)])}\n{tables}"
    own, lines = written(text, "own.toml"), written("\n".join(names), "own.txt")
    started = time.process_time()
    for value in (", ".join(names), own, lines, ", ".join(f"{name}: a; b" for name in names)):
        assert parse_categories(value) == tuple(names)
    assert check_file(text, "own.toml") == []
    assert time.process_time() - started < 10, "it takes about half a second"


# --- what is wrong, in one line ---


def test_a_misspelt_list_is_named_with_the_nearest_one() -> None:
    said = refused("fire, @retial")
    assert said.startswith(
        "@retial is neither a category list that comes with vadcli nor a file (did you mean @retail? lists: general, "
    )
    assert "did you mean @general?" in refused("@General")


@pytest.mark.parametrize(
    "name", ["missing.toml", "", "a\0b.txt", "~nobody-of-this-name/own.txt", "x" * 5000, "no/such/folder.txt"]
)
def test_a_file_that_is_not_there(here: Path, name: str) -> None:
    assert " is neither a category list that comes with vadcli nor a file (lists: general, " in refused(f"@{name}")


def test_a_folder_and_a_pipe_are_no_files(here: Path) -> None:
    (here / "folder").mkdir()
    os.mkfifo(here / "pipe")
    assert refused("@folder").startswith("folder: not a file (")
    assert refused("@pipe").startswith("pipe: not a file ("), "and nobody waits for a writer"


@pytest.mark.parametrize("suffix", ["txt", "toml"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (bytes(range(256)), "not text in UTF-8"),
        ("Fünf\n".encode("latin-1"), "not text in UTF-8"),
        ("fire\n".encode("utf-16")[:-1], "not text in UTF-16"),
        (b"fire\n\0\0\0\0", "a binary file"),
        (b"a" * (MOST_BYTES + 1), "has more than 1,000,000 bytes"),
    ],
    ids=["bytes", "latin-1", "utf-16", "zeros", "long"],
)
def test_a_file_that_is_no_text(here: Path, suffix: str, content: bytes, words: str) -> None:
    assert refused(written(content, f"own.{suffix}")).startswith(f"own.{suffix}: {words}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fight = \n", "own.toml: not TOML: Invalid value (at line 1"),
        (f"{HEAD}about = {'[' * 100_000}", "own.toml: not TOML: "),
        (f"{HEAD}about = {'1' * 5000}", "own.toml: not TOML: "),
        (FIGHT, "own.toml: not a category file of format version 1 (write format_version = 1)"),
        (f"format_version = 2\n{FIGHT}", "own.toml: not a category file of format version 1"),
        (f"format_version = true\n{FIGHT}", "own.toml: not a category file of format version 1"),
        (f'{HEAD}normals = ["x"]\n{FIGHT}', "own.toml: the file has no key 'normals' (did you mean normal?)"),
        (f'{HEAD}{FIGHT}looks_lik = ["x"]\n', "own.toml: category fight has no key 'looks_lik' (did you mean looks_like?)"),
        (f'{HEAD}[[category]]\nname = "fire"\n', "own.toml: category fire has no means"),
        (f'{HEAD}[[category]]\nmeans = ["x"]\n', "own.toml: category 1 has no name"),
        (
            f'{HEAD}{FIGHT}[[category]]\nname = "fire"\nmeans = []\n',
            "own.toml: the category 'fire' has no sentence (write a sentence",
        ),
        (f'{HEAD}[[category]]\nname = "fire"\nmeans = [" "]\n', "own.toml: the category 'fire' has no sentence"),
        (f'{HEAD}[[category]]\nname = "fire"\nmeans = "x"\n', 'own.toml: category fire.means is "x", not a list'),
        (f'{HEAD}[[category]]\nname = "fire"\nmeans = [1]\n', "own.toml: category fire.means is 1, not a text"),
        (f'{HEAD}category = ["fire"]\n', 'own.toml: category 1 is "fire", not a table'),
        (f'{HEAD}[category]\nname = "fire"\nmeans = ["x"]\n', "own.toml: category is "),
        (f'{HEAD}normal = "x"\n', 'own.toml: normal is "x", not a list'),
        *(
            (f'{HEAD}[[category]]\nname = "{name}"\nmeans = ["x"]\n', "can't be the name of a category (a name is not empty")
            for name in ("", " fire", "fire: at night", "fire, smoke", "@fire", "fire\\nsmoke", f"a:{'a' * 5000}")
        ),
    ],
)
def test_a_damaged_toml_file(here: Path, text: str, words: str) -> None:
    said = refused(written(text, "own.toml"))
    assert words in said
    assert said.startswith("own.toml: ")
    assert check_file(text, "own.toml") == [said], "the check says the same"


@pytest.mark.parametrize("text", ["fight:", "fight: ; ;", ": two people punching", ":", f"{'x' * 5000}:"])
def test_a_name_without_a_sentence_and_a_sentence_without_a_name(text: str) -> None:
    said = refused(f"fire, {text}")
    assert said.startswith("--categories: ")
    assert f"has no {'name' if text.startswith(':') else 'sentence'} (write NAME: SENTENCE; SENTENCE" in said


def test_a_bad_line_in_a_text_file_is_named_with_the_file(here: Path) -> None:
    assert refused(written("fire\nfight:\n", "own.txt")).startswith("own.txt: 'fight:' has no sentence")
    assert refused(written("fire\n@general\n", "own.txt")).startswith("own.txt: '@general': a list can't name another list (")


# --- files from other machines ---


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["no mark", "byte order mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["unix", "windows", "old mac"])
def test_line_ends_and_byte_order_marks_do_not_matter(here: Path, mark: str, end: str) -> None:
    toml = written((mark + GOOD.replace("\n", end)).encode(), "own.toml")
    text = written((mark + "fight\nfire\n".replace("\n", end)).encode(), "own.txt")
    assert read_categories(toml) == read_categories(written(GOOD, "plain.toml"))
    assert parse_categories(text) == ("fight", "fire")


@pytest.mark.parametrize("name", ["own.TOML", "own.toml.txt", "own"])
def test_toml_under_another_name_is_read_as_toml(here: Path, name: str) -> None:
    """Windows hides the end of `own.toml.txt`. If it were read as a list, each of its lines would be a category."""
    assert read_categories(written(GOOD, name)) == read_categories(written(GOOD, "own.toml"))


def test_a_name_in_any_alphabet_and_of_any_length(here: Path) -> None:
    names = ("драка", "火事", "🔥", "x" * 5000)
    assert parse_categories(", ".join(names)) == names
    assert parse_categories(written("\n".join(names), "own.txt")) == names


# --- what the check finds ---


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('["people dancing"]', '["a man Punching a ball"]', "fight: the sentence 'a man Punching a ball' contains 'Punching'"),
        ("a parked van", "a punch card", "fight: the sentence 'a punch card' contains 'punch'"),
        ('verbs = ["punch", "punching"]\n', "", "fight: has no verbs, so the sentences against it can't be checked"),
        ('["punch", "punching"]', '[" "]', "fight: has no verbs, so the sentences against it can't be checked"),
        ('"a parked van", ', "", f"has 4 normal sentences; give at least {FEWEST_NORMAL}"),
        ("a parked van", "a closed gate", "normal: the sentence 'a closed gate' occurs 2 times"),
        ("a parked van", " ", "normal: has an empty sentence"),
        ('["people dancing"]', '["two people punching"]', "fight: the sentence 'two people punching' occurs 2 times"),
        ("people dancing", "so " * 21, f"fight: the sentence {'so ' * 21!r} has more than 20 words"),
        (FIGHT, f'{FIGHT}verbs = ["punch"]\n{FIGHT}', "the category 'fight' occurs 2 times"),
    ],
)
def test_the_check_names_the_problem(old: str, new: str, problem: str) -> None:
    assert check_file(GOOD, "own.toml") == []
    assert GOOD.count(old) == 1
    found = check_file(GOOD.replace(old, new), "own.toml")
    assert f"own.toml: {problem}" in found
    assert len(found) == len(set(found))


def test_the_check_reads_text_files_too() -> None:
    assert check_file("fire\nfight: a punch\n", "own.txt") == []
    assert check_file("# nothing\n", "own.txt") == ["own.txt: has no category"]
    assert check_file(HEAD, "own.toml") == ["own.toml: has no category"]


# --- the page ---


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_file_on_the_page_has_no_problem(here: Path) -> None:
    (text,) = blocks("toml")
    assert check_file(text, "mine.toml") == []
    assert parse_categories(written(text, "mine.toml")) == ("climbing", "fire")


def test_the_values_on_the_page_can_be_read(here: Path) -> None:
    (toml,), (lines,) = blocks("toml"), blocks("text")
    written(toml, "mine.toml")
    assert parse_categories(written(lines, "mine.txt")) == ("fire", "forklift speeding", "fight")
    values = re.findall(r"--categories (\"[^\"]+\"|\S+)", "".join(blocks("sh")))
    assert len(values) == 4
    for value in values:
        assert parse_categories(value.strip('"'))


def test_the_page_breaks_its_rule_only_where_it_says_so() -> None:
    """The page's bad sentence is reported, and the sentence that replaces it is not."""
    (text,) = blocks("toml")
    bad = text.replace("a worker standing on a ladder", "a worker climbing a ladder")
    assert check_file(bad, "mine.toml") == [
        "mine.toml: climbing: the sentence 'a worker climbing a ladder' contains 'climbing'"
    ]


# --- `vadcli categories` ---


def test_list() -> None:
    table = vadcli("categories", "list")
    assert table.returncode == 0
    assert [line.split()[0] for line in table.stdout.splitlines()] == category_list_names()
    assert table.stderr == ""
    done = vadcli("categories", "list", "--json")
    items = {item["name"]: item for item in map(json.loads, done.stdout.splitlines())}
    assert list(items) == category_list_names()
    assert tuple(items["ucf-crime"]["categories"]) == UCF_CRIME
    assert all(item["about"] for item in items.values())


def test_show(here: Path) -> None:
    lines = vadcli("categories", "show", "general").stdout.splitlines()
    assert tuple(line for line in lines if not line.startswith("  ")) == (*GENERAL, "normal scenes")
    assert vadcli("categories", "show", "@general").stdout.splitlines() == lines, "as in --categories"
    file = read_list("general")
    assert f"  + {file.category[0].means[0]}" in lines
    assert f"  - {file.category[0].looks_like[0]}" in lines
    assert lines[-1] == f"  - {file.normal[-1]}"
    written(GOOD, "own.toml")
    done = vadcli("categories", "show", "own.toml", "--json", cwd=here)
    assert done.returncode == 0
    assert json.loads(done.stdout) == {
        "name": "own.toml",
        "about": "",
        "normal": list(NORMAL),
        "category": [
            {
                "name": "fight",
                "means": ["two people punching"],
                "looks_like": ["people dancing"],
                "verbs": ["punch", "punching"],
            }
        ],
    }


def test_show_says_where_the_normal_sentences_of_a_text_file_come_from(here: Path) -> None:
    written("fight: two people punching\n", "own.txt")
    done = vadcli("categories", "show", "own.txt", cwd=here)
    assert done.stdout == "fight\n  + two people punching\nnormal scenes: the same as in @general\n"


def test_show_of_nothing(here: Path) -> None:
    done = vadcli("categories", "show", "retial", cwd=here)
    assert (done.returncode, done.stdout) == (2, "")
    first, hint = done.stderr.splitlines()
    assert first == "vadcli: error: @retial is neither a category list that comes with vadcli nor a file"
    assert "did you mean @retail?" in hint


def test_check(here: Path) -> None:
    written(GOOD, "good.toml")
    written(GOOD.replace("a parked van", "a punch card"), "bad.toml")
    written(b"\xef\xbb\xbffire\r\nsmoke\r\n", "windows.txt")
    good = vadcli("categories", "check", "good.toml", "windows.txt", cwd=here)
    assert (good.returncode, good.stdout) == (0, "")
    assert good.stderr == "good.toml: no problem found\nwindows.txt: no problem found\n"
    assert vadcli("categories", "check", "good.toml", "--quiet", cwd=here).stderr == ""
    bad = vadcli("categories", "check", "bad.toml", "good.toml", cwd=here)
    assert bad.returncode == 3
    assert bad.stdout == "bad.toml: fight: the sentence 'a punch card' contains 'punch'\n"
    assert bad.stderr == "good.toml: no problem found\n"
    done = vadcli("categories", "check", "bad.toml", "--json", cwd=here)
    assert done.returncode == 3
    assert json.loads(done.stdout) == {"file": "bad.toml", "problem": bad.stdout.strip()}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.toml", "can't be read: No such file or directory"),
        ("folder", "not a file"),
        ("video.mp4", "not text in UTF-8"),
    ],
)
def test_check_of_what_cannot_be_read(here: Path, name: str, words: str) -> None:
    (here / "folder").mkdir()
    written(bytes(range(256)) * 10, "video.mp4")
    done = vadcli("categories", "check", name, cwd=here)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"vadcli: error: {name}: {words}")


def test_check_needs_a_file() -> None:
    done = vadcli("categories", "check")
    assert done.returncode == 2
    assert "FILE" in done.stderr


def test_a_scan_refuses_a_misspelt_list_in_one_line(here: Path) -> None:
    (here / "a.mp4").write_bytes(b"")
    done = vadcli("scan", "a.mp4", "--categories", "@retial", "--detector", "concept", cwd=here)
    assert done.returncode == 2
    assert "@retial is neither" in done.stderr
    assert "Traceback" not in done.stderr
