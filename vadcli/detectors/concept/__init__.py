"""The concept detector: an image-text encoder compares frames with sentences about categories.

This file holds the detector's options, which the command line shows without loading a model.
"""

from __future__ import annotations

from dataclasses import dataclass

from vadcli.options.groups import HOW, OUTPUT, DetectorOptions, option

DEFAULT_ENCODER = "siglip2-b32"


@dataclass(frozen=True)
class ConceptOptions(DetectorOptions):
    """The options that only the concept detector has."""

    encoder: str = option(
        DEFAULT_ENCODER,
        "Image-text encoder of the concept detector: a name of `vadcli weights list`, or a transformers folder.",
        panel=HOW,
        metavar="NAME|DIR",
    )
    keep_embeddings: bool = option(
        True,
        "With the concept detector, store a vector per sampled frame: other categories and searches then need no decoding.",
        panel=OUTPUT,
    )

    def is_ready(self) -> bool:
        """True if the user named an encoder, or the default encoder is on this machine."""
        from vadcli import weights

        return self.encoder != DEFAULT_ENCODER or weights.base_folder(self.encoder) is not None
