"""The options of every command, as frozen dataclasses, and how they get their values.

Each option is declared only once. The metadata of a field has its help text and choices. The command line and the reference
page are made from this metadata. `ScanOptions` also has the options of each detector in the registry.

`resolve` fills an option set from several layers. The first layer that sets an option wins:
1. the command line
2. the environment: `VADCLI_*`
3. the tables of the chosen profile (`--profile`)
4. `./vadcli.toml`, or `--config FILE` in its place
5. the `vadcli.toml` in the user's configuration folder
6. the defaults
"""

from __future__ import annotations

import os
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vadcli.errors import UsageError
from vadcli.options import scan
from vadcli.options.categories import category_list_names, parse_categories
from vadcli.options.groups import (
    DEFAULT_MODEL,
    DETECTOR_CHOICES,
    PANELS,
    DecodeOptions,
    DetectorOptions,
    ExitOptions,
    FindOptions,
    HeadOptions,
    TalkOptions,
    ThresholdOptions,
    default_of,
    effective,
    flag_of,
    option,
    parse_duration,
    parse_shard,
    with_detector_options,
)
from vadcli.options.results import (
    METRIC_GROUPS,
    REPORT_FORMATS,
    ClipsOptions,
    EvalOptions,
    EventsOptions,
    PruneOptions,
    RenderOptions,
    ReportOptions,
    SearchOptions,
    StatusOptions,
    VerifyOptions,
)
from vadcli.options.scan import (
    DEFAULT_OUT,
    MASK_CHOICES,
    BenchOptions,
    EmbedOptions,
    LearnOptions,
    WeightsImportOptions,
    WeightsPullOptions,
)
from vadcli.types.text import WORDS, decode_text, did_you_mean, unreadable

if TYPE_CHECKING:
    from vadcli.options.scan import ScanOptions
else:
    ScanOptions = with_detector_options(scan.ScanOptions)

__all__ = [
    "DEFAULT_MODEL",
    "DEFAULT_OUT",
    "DETECTOR_CHOICES",
    "MASK_CHOICES",
    "METRIC_GROUPS",
    "PANELS",
    "REPORT_FORMATS",
    "BenchOptions",
    "ClipsOptions",
    "DecodeOptions",
    "DetectorOptions",
    "EmbedOptions",
    "EvalOptions",
    "EventsOptions",
    "ExitOptions",
    "FindOptions",
    "HeadOptions",
    "LearnOptions",
    "PruneOptions",
    "RenderOptions",
    "ReportOptions",
    "ScanOptions",
    "SearchOptions",
    "StatusOptions",
    "TalkOptions",
    "ThresholdOptions",
    "VerifyOptions",
    "WeightsImportOptions",
    "WeightsPullOptions",
    "cache_folder",
    "category_list_names",
    "default_of",
    "effective",
    "env_name",
    "from_keywords",
    "option",
    "out_folder",
    "parse_categories",
    "parse_duration",
    "parse_shard",
    "read_toml",
    "resolve",
]

CONFIG_NAME = "vadcli.toml"
PROFILE = "profile"
SCAN = "scan"
"""The table of `vadcli scan`. The key `out` in this table is the default for every command that needs an output folder."""

T = TypeVar("T")
_TRUTH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False, "": False}
_KINDS = WORDS | {Path: "a path"}


def resolve(
    kind: type[T],
    *,
    section: str,
    given: Mapping[str, Any],
    config: Path | None = None,
    profile: str | None = None,
    env: Mapping[str, str] | None = None,
    takes_out: bool = False,
) -> T:
    """Fill an option set from every layer.

    Args:
        kind: the option dataclass.
        section: the command's table in a TOML file.
        given: values from the command line; None means "not given".
        config: `--config FILE`, which replaces `./vadcli.toml`.
        profile: the NAME of `--profile`. The tables `[profile.NAME.COMMAND]` win over the tables `[COMMAND]`.
        env: the environment; None means the environment of this process.
        takes_out: True if the command takes the output folder as an argument. In this case, a key `out` in the command's
            table is ignored here, because `out_folder` reads this key.

    Raises:
        UsageError: a value or key is invalid; the message names its layer.
    """
    env = os.environ if env is None else env
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for source, tables in _tables(config, profile, env):
        layer = _layer(source, tables, section, known, takes_out=takes_out)
        values |= {name: _coerce(hints[name], value, f"{source}: {name}", known[name]) for name, value in layer.items()}
    for name, item in known.items():
        variable = env_name(name, section if item.metadata["own_variable"] else "")
        if variable in env:
            values[name] = _coerce(hints[name], env[variable], variable, item)
    for name, value in given.items():
        if value is not None:
            values[name] = _coerce(hints[name], value, flag_of(name), known[name])
    return kind(**values)


def out_folder(
    *,
    section: str,
    default: Path,
    config: Path | None = None,
    profile: str | None = None,
    env: Mapping[str, str] | None = None,
) -> Path:
    """Return the output folder from the environment or TOML files, if the command line names no folder.

    Args:
        section: the command's table in a TOML file. Its key `out` wins over `out` in the table of `vadcli scan`.
        default: the folder if neither the environment nor a TOML file names a folder.
        config, profile, env: as in `resolve`.

    Raises:
        UsageError: a TOML file can't be read.
    """
    env = os.environ if env is None else env
    if env.get(env_name("out")):
        return Path(env[env_name("out")]).expanduser()
    folder = default
    for _, tables in _tables(config, profile, env):
        for table in (tables.get(SCAN), tables.get(section)):
            if isinstance(table, dict) and "out" in table:
                folder = Path(str(table["out"])).expanduser()
    return folder


def from_keywords(kind: type[T], given: Mapping[str, Any]) -> T:
    """Fill an option set from keyword arguments alone, for the library. The value None means "not given".

    Args:
        kind: the option dataclass.
        given: options by name. If an option takes words separated by commas, a list of words may be given instead.

    Raises:
        UsageError: an option is not known or works only on the command line, or its value can't be used.
    """
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    hints, values = typing.get_type_hints(kind), {}
    for name, value in given.items():
        if name not in known:
            raise UsageError(f"{name!r} is not an option", hint=did_you_mean(name, known) or "see docs/cli.md")
        if hints[name] is str and not isinstance(value, str | None) and isinstance(value, Iterable):
            value = ",".join(map(str, value))  # noqa: PLW2901 - categories=["fight", "fire"] reads as "fight,fire"
        if value is not None:
            values[name] = _coerce(hints[name], value, name, known[name])
        if name in values and (instead := known[name].metadata.get("cli_only")) and values[name] != known[name].default:
            raise UsageError(f"{name!r} works only on the command line", hint=instead)
    return kind(**values)


def env_name(name: str, command: str = "") -> str:
    """Return the name of an option's environment variable, such as `VADCLI_MIN_AGE`.

    With a `command`, return the name of a variable for this command alone, such as `VADCLI_EVENTS_FORMAT`.
    """
    return "_".join(filter(None, ("VADCLI", command.replace("-", "_").upper(), name.upper())))


def read_toml(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file.

    Raises:
        UsageError: the file can't be read or is not TOML.
    """
    try:
        return tomllib.loads(decode_text(path.read_bytes()))
    except OSError as error:
        raise UsageError(unreadable(path, error)) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: can't be read as TOML: {error}") from error


def _tables(config: Path | None, profile: str | None, env: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, tables by command) for each TOML file, and then for the chosen profile in each file.

    Later tables win over earlier tables.

    Raises:
        UsageError: a file can't be read, or no file has the profile.
    """
    from platformdirs import user_config_path

    paths = [path for path in (user_config_path("vadcli") / CONFIG_NAME,) if path.is_file()]
    if config is not None:
        paths.append(config)
    elif Path(CONFIG_NAME).is_file():
        paths.append(Path(CONFIG_NAME))
    files = [(path, read_toml(path)) for path in paths]
    yield from ((str(path), tables) for path, tables in files)
    profile = profile or env.get(env_name("profile"))
    if not profile:
        return
    with_profiles = [(path, profiles) for path, tables in files if isinstance(profiles := tables.get(PROFILE), dict)]
    chosen = [
        (f"{path}: [{PROFILE}.{profile}]", profiles[profile])
        for path, profiles in with_profiles
        if isinstance(profiles.get(profile), dict)
    ]
    if not chosen:
        names = sorted({name for _, profiles in with_profiles for name in profiles})
        hint = f"choose among {', '.join(names)}" if names else f"write [{PROFILE}.{profile}.{SCAN}] into {CONFIG_NAME}"
        raise UsageError(f"--profile {profile}: no settings file has this profile", hint=hint)
    yield from chosen


def _layer(path: str, tables: Mapping[str, Any], section: str, known: Mapping[str, Any], *, takes_out: bool) -> dict[str, Any]:
    table, scan = tables.get(section, {}), tables.get(SCAN, {})
    if not isinstance(table, dict):
        raise UsageError(f"{path}: {section} must be a table: write [{section}]")
    values = {key.replace("-", "_"): value for key, value in table.items()}
    if takes_out:
        values.pop("out", None)  # `out_folder` reads it
    elif "out" in known and isinstance(scan, dict) and "out" in scan:
        values = {"out": scan["out"], **values}
    for key in values:
        if key not in known:
            raise UsageError(f"{path}: [{section}] has no option {key!r}", hint=did_you_mean(key, known))
    return values


def _coerce(hint: Any, value: Any, where: str, item: Field[Any]) -> Any:
    """Convert a value (of the command line, a TOML file or the environment) to the type of its option."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    try:
        result = _convert(hint, value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: {value!r} is not {_KINDS.get(hint, 'a list of texts')}") from error
    choices = item.metadata.get("choices", ())
    if choices and result not in choices:
        raise UsageError(f"{where}: {result!r} is not one of {', '.join(choices)}")
    return result


def _convert(hint: Any, value: Any) -> Any:
    if typing.get_origin(hint) is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(str(part).strip() for part in parts)
    if hint is bool:
        word = str(value).strip().lower()
        if word not in _TRUTH:
            raise ValueError(value)
        return _TRUTH[word]
    if hint is int and (isinstance(value, bool) or (isinstance(value, float) and value != int(value))):
        raise ValueError(value)
    if hint is str and isinstance(value, list):
        return ",".join(map(str, value))  # categories = ["fight", "fire"] reads as "fight,fire"
    if hint is str or typing.get_origin(hint) is typing.Literal:
        return str(value)
    return Path(value).expanduser() if hint is Path else hint(value)


def cache_folder() -> Path:
    """Return the platform's cache folder, for data that can be fetched or computed again."""
    from platformdirs import user_cache_path

    return user_cache_path("vadcli")
