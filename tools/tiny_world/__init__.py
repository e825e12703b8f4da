"""The synthetic world: clips of moving coloured shapes, with exact masks and all true names.

    words ─ recipe ─> scene ─ casting ─> silhouettes ─┬─> truth (names)
                                                      └─> painting (pixels)
    truth, painting ─> world (a data set), videos (files)

Everything is computed, so that training, tests and demonstrations need no download. `words` lists
the names, and `truth` defines their meaning. The clips do not look like real videos.
"""

from tools.tiny_world.recipe import WorldOptions
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
