"""The heat map's look: which colour and how opaque a pixel score is, laid over a picture where it matters."""

from __future__ import annotations

import numpy as np
from PIL import Image

from vadcli.types import ByteArray

# Dark violet over red and orange to pale yellow: brightness rises all the way, so the order survives every kind of
# colour blindness and a grey print.
RAMP = ((0.0, (62, 15, 114)), (0.3, (130, 30, 120)), (0.5, (205, 62, 70)), (0.75, (249, 142, 20)), (1.0, (255, 214, 92)))
FAINT = 0.15  # below this pixel score nothing is drawn
STRONG = 0.6  # from this on the heat is at its most opaque
MOST_OPAQUE = 0.55
OUTLINE = 128  # the outline runs where the mask reaches 0.5
OUTLINE_COLOUR = (255, 224, 130)


class HeatLayer:
    """Draws masks over pictures of one size.

    A mask that comes again, as it does between two sampled frames, costs only the blending.

    Args:
        width, height: of the pictures, px.
        line_px: thickness of the outline around pixel scores >= 0.5.
    """

    def __init__(self, width: int, height: int, *, line_px: int) -> None:
        self.size = (width, height)
        self.line_px = line_px
        self._mask: ByteArray | None = None
        self._layer: tuple[tuple[int, int, int, int], Image.Image, Image.Image] | None = None

    def draw(self, picture: ByteArray, mask: ByteArray) -> None:
        """Blend a mask into a picture.

        Args:
            picture: (H, W, 3) uint8, changed in place.
            mask: (h, w) uint8, 0–255 = pixel score 0–1; any size. Must not be changed while it is in use here.
        """
        if mask is not self._mask:
            self._mask, self._layer = mask, self._prepare(mask)
        if self._layer is None:
            return
        (left, top, right, bottom), colour, opacity = self._layer
        patch = Image.fromarray(np.ascontiguousarray(picture[top:bottom, left:right]))
        patch.paste(colour, (0, 0), opacity)
        picture[top:bottom, left:right] = np.asarray(patch)

    def _prepare(self, mask: ByteArray) -> tuple[tuple[int, int, int, int], Image.Image, Image.Image] | None:
        grey = Image.fromarray(mask)
        if grey.size != self.size:
            grey = grey.resize(self.size, Image.Resampling.BILINEAR)
        box = grey.point(_VISIBLE).getbbox()
        if box is None:
            return None
        grey = grey.crop(box)
        colour = grey.copy()
        colour.putpalette(_COLOURS)
        rgb, opacity = colour.convert("RGB"), grey.point(_OPACITY)
        outline = Image.fromarray(_outline(np.asarray(grey), self.line_px))
        rgb.paste(OUTLINE_COLOUR, (0, 0), outline)
        opacity.paste(230, (0, 0), outline)
        return box, rgb, opacity


def _outline(grey: ByteArray, line_px: int) -> ByteArray:
    """(H, W) uint8, 255 on the inner edge of the area at or above 0.5; the picture's own edge counts as inside."""
    inside = np.pad(grey >= OUTLINE, line_px, mode="edge")
    height, width = grey.shape
    core = np.ones((height, width), dtype=bool)
    for down, right in ((0, 1), (2, 1), (1, 0), (1, 2)):
        y, x = down * line_px, right * line_px
        core &= inside[y : y + height, x : x + width]
    return ((grey >= OUTLINE) & ~core).astype(np.uint8) * 255


def _colour_table() -> list[int]:
    at = np.linspace(0.0, 1.0, 256)
    stops = [stop for stop, _ in RAMP]
    channels = [np.interp(at, stops, [colour[channel] for _, colour in RAMP]) for channel in range(3)]
    return [int(value) for value in np.stack(channels, axis=1).round().ravel()]


def _opacity_table() -> list[int]:
    rise = np.clip((np.linspace(0.0, 1.0, 256) - FAINT) / (STRONG - FAINT), 0.0, 1.0)
    smooth = rise * rise * (3.0 - 2.0 * rise)
    return [int(value) for value in (smooth * MOST_OPAQUE * 255).round()]


_COLOURS = _colour_table()
_OPACITY = _opacity_table()
_VISIBLE = [255 if value else 0 for value in _OPACITY]
