"""The documentation fits the code: generated pages are up to date, and pages mention every option and command."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import typing
from dataclasses import fields
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S
from vadcli.cli import app
from vadcli.options import (
    BenchOptions,
    ClipsOptions,
    EmbedOptions,
    EvalOptions,
    EventsOptions,
    LearnOptions,
    PruneOptions,
    RenderOptions,
    ReportOptions,
    ScanOptions,
    SearchOptions,
    StatusOptions,
    VerifyOptions,
    WeightsImportOptions,
    WeightsPullOptions,
    category_list_names,
    env_name,
)

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str, **environment: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_S, check=True, env={**os.environ, **environment}
    )
    return done.stdout


def test_the_command_reference_is_fresh(tmp_path: Path) -> None:
    page = tmp_path / "cli.md"
    title = ("--name", "vadcli", "--title", "Command reference", "--output", str(page))
    run(sys.executable, "-m", "typer", "vadcli.cli", "utils", "docs", *title)
    assert (ROOT / "docs" / "cli.md").read_text() == page.read_text(), "run `make completions`"


@pytest.mark.parametrize(("shell", "name"), [("bash", "vadcli.bash"), ("zsh", "_vadcli"), ("fish", "vadcli.fish")])
def test_completions_are_fresh(shell: str, name: str) -> None:
    vadcli = Path(sys.executable).with_name("vadcli")
    made = run(str(vadcli), _VADCLI_COMPLETE=f"source_{shell}")
    assert (ROOT / "completions" / name).read_text() == made, "run `make completions`"


def test_every_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    names = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    names += [group.name for group in app.registered_groups if group.name]
    assert [name for name in names if f"vadcli {name}" not in readme] == []


BASIC = {bool, int, float, str, Path}
COMMANDS = {
    "scan": ScanOptions,
    "render": RenderOptions,
    "events": EventsOptions,
    "report": ReportOptions,
    "search": SearchOptions,
    "eval": EvalOptions,
    "verify": VerifyOptions,
    "learn": LearnOptions,
    "embed": EmbedOptions,
    "clips": ClipsOptions,
    "prune": PruneOptions,
    "status": StatusOptions,
    "bench": BenchOptions,
    "weights-pull": WeightsPullOptions,
    "weights-import": WeightsImportOptions,
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_help(command: str) -> None:
    reference = (ROOT / "docs" / "cli.md").read_text()
    for item in fields(COMMANDS[command]):
        assert item.metadata["help"].endswith("."), item.name
        assert f"--{item.name.replace('_', '-')}" in reference


def test_a_variable_means_one_thing() -> None:
    found: dict[str, list[object]] = {}
    for command, kind in COMMANDS.items():
        hints = typing.get_type_hints(kind)
        for item in fields(kind):
            name = env_name(item.name, command if item.metadata["own_variable"] else "")
            meant = ({hints[item.name], *typing.get_args(hints[item.name])} & BASIC, item.metadata["choices"])
            found.setdefault(name, []).append(meant)
    assert {name: meant for name, meant in found.items() if any(one != meant[0] for one in meant)} == {}
    page = (ROOT / "docs" / "using.md").read_text()
    named = {env_name(i.name, c) for c, kind in COMMANDS.items() for i in fields(kind) if i.metadata["own_variable"]}
    assert named <= set(re.findall(r"`(VADCLI_[A-Z0-9_]+)`", page))


def test_every_category_list_is_named_in_the_docs() -> None:
    page = (ROOT / "docs" / "categories.md").read_text()
    assert [name for name in category_list_names() if f"`@{name}`" not in page] == []


@pytest.mark.parametrize("page", sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]))
def test_links_to_files_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    missing = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    assert missing == []


def test_the_readme_opens_with_two_commands() -> None:
    blocks = re.findall(r"```(?:sh|console|bash)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    commands = [line.split("#")[0].strip() for line in blocks[0].splitlines() if line.strip()]
    assert commands == ["make demo", "make test"]


def test_the_schema_is_valid_json_and_shipped() -> None:
    path = ROOT / "vadcli" / "store" / "schemas" / "events-1.json"
    assert json.loads(path.read_text())["$schema"].startswith("https://json-schema.org/")
