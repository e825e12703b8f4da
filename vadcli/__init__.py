"""vadcli finds anomalies in video archives: per-frame scores, events and masks.

    import vadcli

    for result in vadcli.scan("./footage", categories=["fight", "fire"], out="results"):
        print(result.video, result.status, result.events)

`scan`, `verify`, `events`, `render`, `report`, `search`, `clips`, `embed`, `learn`, `prune` and `evaluate` do the same as the
commands (docs/library.md). They are loaded at their first use, so that importing vadcli loads neither torch nor numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vadcli.api import clips, embed, evaluate, events, learn, prune, render, report, scan, search, verify

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "clips",
    "embed",
    "evaluate",
    "events",
    "learn",
    "prune",
    "render",
    "report",
    "scan",
    "search",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vadcli import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
