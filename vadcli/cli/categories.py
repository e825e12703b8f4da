"""`vadcli categories`: list the category lists that come with vadcli, show one list, and check files of a user."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vadcli.cli._options import with_options
from vadcli.cli._talk import emit_json, log, put, put_result
from vadcli.options import TalkOptions
from vadcli.options.categories import DEFAULT_LIST, category_list_names, check_file, read_list, read_text

categories_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, show and check categories.")

Name = Annotated[str, typer.Argument(metavar="NAME|FILE", help="A name of `vadcli categories list`, or your own file.")]
Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Category files in TOML.")]


@categories_app.command("list")
@with_options(TalkOptions, section="categories-list")
def list_categories(*, options: TalkOptions) -> None:
    """List the category lists for `--categories @NAME`.

    \b
    Examples:
      vadcli categories list
      vadcli scan ./footage --categories @retail
    """  # noqa: D301
    for name in category_list_names():
        file = read_list(name)
        document = {"name": name, "about": file.about, "categories": [category.name for category in file.category]}
        put_result(document, f"{name:16} {len(file.category):3} categories  {file.about}".rstrip(), options)


@categories_app.command()
@with_options(TalkOptions, section="categories-show")
def show(*, name: Name, options: TalkOptions) -> None:
    """Print the categories of a list and the sentences for and against each.

    \b
    Examples:
      vadcli categories show general
      vadcli categories show ./mine.toml --json
    """  # noqa: D301
    file = read_list(name.removeprefix("@"))
    if options.json:
        emit_json({"name": name.removeprefix("@"), **asdict(file)})
        return
    for category in file.category:
        put(category.name)
        for mark, sentences in (("+", category.means), ("-", category.looks_like)):
            for sentence in sentences:
                put(f"  {mark} {sentence}")
    put("normal scenes" if file.normal else f"normal scenes: those of @{DEFAULT_LIST}")
    for sentence in file.normal:
        put(f"  - {sentence}")


@categories_app.command()
@with_options(TalkOptions, section="categories-check")
def check(*, files: Files, options: TalkOptions) -> None:
    """Check category files, and print one line per problem. Exits with 3 if there is a problem.

    \b
    Examples:
      vadcli categories check ./mine.toml
    """  # noqa: D301
    wrong = 0
    for path in files:
        problems = check_file(read_text(path), str(path))
        wrong += bool(problems)
        for problem in problems:
            put_result({"file": str(path), "problem": problem}, problem, options)
        if not problems:
            log.info("%s: no problem found", path)
    if wrong:
        raise typer.Exit(3)
