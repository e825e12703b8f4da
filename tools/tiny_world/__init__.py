"""The synthetic world: clips of coloured shapes that move, meet, come and go, with exact masks and all names true of them.

    words ─ options, shapes, course ─> scene ─ casting ─> silhouettes ─> truth (names)
                                                                     └─> picture (pixels) ─> world (a data set), videos (files)

Made of numbers alone, so that training, tests and demonstrations need no download. `words` lists the names, `truth` says what
each means. It resembles no real footage.
"""

from tools.tiny_world.options import WorldOptions
from tools.tiny_world.words import HELD_OUT_PAIRS, VALIDATION_PAIRS, Name, name_table
from tools.tiny_world.world import WORLD_VERSION, Query, Split, SyntheticWorld

__all__ = [
    "HELD_OUT_PAIRS",
    "VALIDATION_PAIRS",
    "WORLD_VERSION",
    "Name",
    "Query",
    "Split",
    "SyntheticWorld",
    "WorldOptions",
    "name_table",
]
