"""The commands about what is installed: `vadcli doctor`, `weights` and `categories`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vadcli.cli import with_options
from vadcli.cli._talk import emit_json, log, on_signals, put, put_result, say_error
from vadcli.errors import WeightsError
from vadcli.options import DEFAULT_OUT, TalkOptions, WeightsImportOptions, WeightsPullOptions
from vadcli.options.categories import DEFAULT_LIST, category_list_names, check_file, read_category_file, read_list
from vadcli.types.text import how_many, size_text

DoctorOut = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Output folder; its disk is checked.")]


@with_options(TalkOptions, section="doctor")
def doctor(*, out: DoctorOut = DEFAULT_OUT, options: TalkOptions) -> None:
    """Report what this machine has: decoders, ffmpeg, torch, devices, weights, disk.

    Exits with 1 if a needed part is missing.

    \b
    Examples:
      vadcli doctor
      vadcli doctor --json
    """  # noqa: D301
    from vadcli.doctor import examine

    broken = False
    for check in examine(out):
        broken = broken or (check.required and not check.ok)
        if options.json:
            emit_json(check.to_json())
            continue
        mark = "ok     " if check.ok else "MISSING" if check.required else "absent "
        put(f"{mark} {check.name:12} {check.found}")
        if check.advice:
            put(f"        {'':12} {check.advice}")
    if broken:
        raise typer.Exit(1)


weights_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="List, fetch, verify, test, find, remove and build weights."
)

WeightsName = Annotated[str, typer.Argument(metavar="NAME", help="A name that `vadcli weights list` prints.")]
WeightsNameOrFolder = Annotated[
    str, typer.Argument(metavar="NAME|DIR", help="A name that `vadcli weights list` prints, or a LAVIDA folder.")
]
WeightsNamesOrFolders = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME|DIR]...", help="Names or LAVIDA folders; by default all installed weights."),
]
WeightsNames = Annotated[list[str], typer.Argument(metavar="NAME...", help="Names that `vadcli weights list` prints.")]
Testable = Annotated[
    list[str], typer.Argument(metavar="NAME|DIR...", help="Names that `vadcli weights list` prints, or transformers folders.")
]
Preset = Annotated[str, typer.Argument(metavar="PRESET", help="lavida-7b, lavida-2b or lavida-tiny.")]


@weights_app.command("list")
@with_options(TalkOptions, section="weights-list")
def list_weights(*, options: TalkOptions) -> None:
    """List the known weights, which of them are installed, and what they are for.

    \b
    Examples:
      vadcli weights list
      vadcli weights list --json
    """  # noqa: D301
    from vadcli import weights

    for item in weights.status():
        if options.json:
            emit_json(item.to_json())
            continue
        entry = item.entry
        size = size_text(item.bytes) if item.bytes is not None else ""
        if not size and entry is not None and entry.download_gb is not None:
            size = f"~{entry.download_gb:g} GB"
        words = [item.trouble] if item.trouble else []
        if entry is not None and not words:
            also = f"also called {', '.join(entry.aliases)}" if entry.aliases else ""
            words = [entry.purpose, also, entry.repo_id, entry.licence, entry.note]
        put(f"{item.name:22} {item.state:9} {size:9} {'; '.join(word for word in words if word)}".rstrip())


@weights_app.command()
@with_options(WeightsPullOptions, section="weights-pull")
def pull(*, name: WeightsName, options: WeightsPullOptions) -> None:
    """Fetch a public encoder or base model into the Hugging Face cache, and check every file's hash.

    For the name of a LAVIDA model, fetches its base models. Fetches only safetensors, JSON and text files. Reads the
    environment variables HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE.

    \b
    Examples:
      vadcli weights pull siglip2-b32
      vadcli weights pull lavida-2b
      vadcli weights pull sam2.1-hiera-small --update
    """  # noqa: D301
    from vadcli import weights

    progress = sys.stderr.isatty() and not options.quiet

    def stop(number: int) -> None:
        """End the process at once, with the exit code of the signal."""
        sys.stderr.write("vadcli: interrupted; the fetched part is kept; to continue, run the same command again\n")
        sys.stderr.flush()
        os._exit(128 + number)  # after an exception, Hugging Face's library would first finish the downloads

    with on_signals(stop):
        pulled = weights.pull(name, update=options.update, progress=progress, say=log.info)
    for item in pulled:
        put_result(item.to_json(), f"{item.name}\t{item.folder}", options)
    note = weights.entry(name).note
    if note:
        log.info("%s: %s", name, note)


@weights_app.command()
@with_options(TalkOptions, section="weights-verify")
def verify(*, names: WeightsNamesOrFolders = None, options: TalkOptions) -> None:
    """List missing, changed and extra files of weights. Exits with 4 if there is such a file.

    Hashes every file again.

    \b
    Examples:
      vadcli weights verify
      vadcli weights verify lavida-2b ./my-lavida
    """  # noqa: D301
    from vadcli import weights

    wanted = names or [
        item.name for item in weights.status() if item.folder is not None and (item.commit or item.kind == "lavida")
    ]

    def verify_one(name: str) -> bool:
        """Check the files of one model and print the result. Return False if a file is wrong."""
        item = weights.known(name)
        on_hub = item is not None and item.on_hub and not Path(name).is_dir()
        result = weights.verify_pulled(name) if on_hub else weights.verify(weights.find(name))
        if options.json:
            emit_json({"name": name, **result.to_json()})
        else:
            for what in ("missing", "changed", "extra"):
                for file in getattr(result, what):
                    put(f"{what}\t{result.folder / file}")
            state = "complete and unchanged" if result.ok else "missing, changed or extra files"
            log.info("%s: %s, %s checked", name, state, how_many(result.checked, "file"))
        return result.ok

    if not wanted:
        log.info("no weights are installed, so there is nothing to verify")
    _for_each(wanted, verify_one)


def _for_each(names: Iterable[str], work: Callable[[str], bool]) -> None:
    """Call `work` for each name. Exits with 4 at the end if `work` raised WeightsError or returned False."""
    failed = False
    for name in names:
        try:
            failed |= not work(name)
        except WeightsError as error:
            failed = True
            say_error(error)
    if failed:
        raise typer.Exit(4)


@weights_app.command("check")
@with_options(TalkOptions, section="weights-check")
def check_weights(*, names: Testable, options: TalkOptions) -> None:
    """Test installed weights with pictures that vadcli draws. Exits with 4 if a test fails.

    The pictures show coloured shapes, discs, stripes, words, day and night. An encoder gets several sentences, and must choose
    the sentence that describes the picture. SAM2 must find a disc from a point at its centre. Nothing is fetched.

    \b
    Examples:
      vadcli weights check siglip2-b32
      vadcli weights check ./my-clip sam2.1-hiera-small --json
    """  # noqa: D301
    from vadcli import weights_check

    def check_one(name: str) -> bool:
        """Test one model and print the results. Return False if a test fails."""
        results = weights_check.check(name)
        for result in results:
            figures = f"{result.measure} {result.value:+.4f}  {result.right} of {result.count} right, {result.needed} needed"
            text = f"{result.name:16} {'ok' if result.ok else 'FAILED':7} {figures}  {result.what}"
            put_result({"weights": name, **result.to_json()}, text, options)
        failed = [result.name for result in results if not result.ok]
        if failed:
            log.error("%s: failed: %s; these weights do not work as they should", name, ", ".join(failed))
        else:
            log.info("%s: all %d tests passed", name, len(results))
        return not failed

    _for_each(names, check_one)


@weights_app.command()
@with_options(TalkOptions, section="weights-remove")
def remove(*, names: WeightsNames, options: TalkOptions) -> None:
    """Delete models from the Hugging Face cache.

    Deletes only files that `vadcli weights pull` fetched. LAVIDA folders and your own folders are kept.

    \b
    Examples:
      vadcli weights remove clip-l14-336
      vadcli weights remove qwen2-vl-2b sam2.1-hiera-small --json
    """  # noqa: D301
    from vadcli import weights

    def remove_one(name: str) -> bool:
        """Remove one model, and print how many bytes are free now."""
        removed = weights.remove(name, say=log.info)
        put_result(removed.to_json(), f"{removed.name}\t{size_text(removed.freed_bytes)} freed", options)
        return True

    _for_each(names, remove_one)


@weights_app.command()
@with_options(TalkOptions, section="weights-path")
def path(*, name: WeightsNameOrFolder, options: TalkOptions) -> None:
    """Print the path of the folder with these weights.

    \b
    Examples:
      vadcli weights path lavida-tiny
      du -shL "$(vadcli weights path qwen2-vl-2b)"
    """  # noqa: D301
    from vadcli import weights

    folder = weights.find(name)
    put_result({"name": name, "folder": str(folder)}, folder, options)


@weights_app.command("import")
@with_options(WeightsImportOptions, section="weights-import")
def import_weights(*, preset: Preset, options: WeightsImportOptions) -> None:
    """Build a LAVIDA folder for `--model` from files on this machine: base models, and LAVIDA's own trained weights.

    If you do not name a base model, it comes from the cache of `vadcli weights pull`. Nothing is downloaded.

    \b
    Examples:
      vadcli weights import lavida-2b
      vadcli weights import lavida-7b --sam2 sam2.1_hiera_small.pt --own lavida.safetensors --to ./lavida-7b
      vadcli weights import lavida-tiny --random-weights
    """  # noqa: D301
    from vadcli import weights
    from vadcli.detectors.lavida.importing import Sources, import_lavida

    sources = Sources(options.qwen, options.sam2, options.clip, options.own, options.lora)
    dest = options.to or weights.home() / preset
    drawn, seed, force = options.random_weights, options.seed, options.force
    with on_signals(lambda number: sys.exit(128 + number), (signal.SIGTERM,)):  # so that no half-built folder is left
        result = import_lavida(preset, dest, sources, random_weights=drawn, seed=seed, force=force, say=log.info)
    log.info("%s linked, %d copied", how_many(len(result.linked), "file"), len(result.copied))
    for note in result.notes:
        log.info("note: %s", note)
    if not result.trained:
        log.warning("LAVIDA's own weights are untrained: train them with `vadcli train`, or give trained weights with --own")
    put_result(result.to_json(), result.folder, options)


categories_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, show and check categories.")

CategoryList = Annotated[
    str, typer.Argument(metavar="NAME|FILE", help="A name that `vadcli categories list` prints, or a file.")
]
CategoryFiles = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Category files in TOML.")]


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
def show(*, name: CategoryList, options: TalkOptions) -> None:
    """Print the categories of a list, and the sentences for and against each category.

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
    put("normal scenes" if file.normal else f"normal scenes: the same as in @{DEFAULT_LIST}")
    for sentence in file.normal:
        put(f"  - {sentence}")


@categories_app.command("check")
@with_options(TalkOptions, section="categories-check")
def check_categories(*, files: CategoryFiles, options: TalkOptions) -> None:
    """Check category files, and print one line per problem. Exits with 3 if there is a problem.

    \b
    Examples:
      vadcli categories check ./mine.toml
    """  # noqa: D301
    wrong = 0
    for path in files:
        problems = check_file(read_category_file(path), str(path))
        wrong += bool(problems)
        for problem in problems:
            put_result({"file": str(path), "problem": problem}, problem, options)
        if not problems:
            log.info("%s: no problem found", path)
    if wrong:
        raise typer.Exit(3)
