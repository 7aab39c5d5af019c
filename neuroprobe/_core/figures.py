"""Figures, in matplotlib. Every function takes `ax` and returns `ax`, or makes a figure; none calls show()."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

_SIDE = 400  # pixels of a picture: more is not seen, and twenty photographs are large


@dataclass(frozen=True)
class Tile:
    """A picture of a grid with its caption, None where it cannot be read; `box` (left, top, right, bottom) is drawn on it."""

    picture: Image.Image | None
    caption: str
    box: tuple[int, int, int, int] | None = None


def axes_or_new(ax: Axes | None, width: float, height: float) -> Axes:
    """The given axes, or those of a new figure of this size in inches."""
    # a Figure of its own, without pyplot: nothing global changes and nothing is shown
    return Figure(figsize=(width, height)).subplots() if ax is None else ax


def layer_ticks(ax: Axes, layers: list[str]) -> None:
    """Name the layers along the horizontal axis; of more than sixty, some."""
    step = int(np.ceil(len(layers) / 60))
    ax.set_xticks(range(0, len(layers), step), [shortened(layer, limit=60) for layer in layers[::step]], rotation=90)


def shortened(text: str, limit: int = 30) -> str:
    """Text that any font and matplotlib's formulas take as it is, of at most so many characters."""
    # fonts have no glyphs for tabs and line ends; a dollar sign would start a formula
    text = " ".join(text.split())
    return (text if len(text) <= limit else text[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}").replace("$", r"\$")


def printable(text: str, width: int) -> str:
    """The text without what a font cannot draw, and with its middle left out if it is long."""
    from matplotlib import font_manager

    drawn = font_manager.get_font(font_manager.findfont(font_manager.FontProperties())).get_charmap()
    clean = "".join(c if c.isprintable() and ord(c) in drawn else ascii(c)[1:-1] for c in text)
    half = (width - 1) // 2
    return clean if len(clean) <= width else f"{clean[:half]}…{clean[-half:]}"


def thumbnail(picture: Image.Image) -> Image.Image:
    """A copy that is small enough for a grid."""
    small = picture.copy()
    small.thumbnail((_SIDE, _SIDE))
    return small


def picture_grid(
    rows: Sequence[Sequence[Tile]], *, title: str, names: Sequence[str] = (), side: float = 1.3, color: str = "yellow"
) -> Figure:
    """A grid of pictures, each in a square of `side` inches with its caption beneath; rows may have names, and boxes have a color."""
    n_columns, fontsize = max(len(row) for row in rows), 4 + 2 * side
    width = side * max(n_columns, 3)
    size = (width + (0.8 if any(names) else 0.3), (side + 0.05 * fontsize) * len(rows) + 0.4)
    figure = Figure(figsize=size, layout="constrained", dpi=110)
    figure.suptitle(printable(title, int(14 * width)), parse_math=False, fontsize=10)
    axes = figure.subplots(len(rows), n_columns, squeeze=False)
    for ax in axes.ravel():
        ax.axis("off")
    for line, row in zip(axes, rows, strict=True):
        for ax, tile in zip(line, row, strict=False):
            _draw(ax, tile, fontsize, color)
    for line, name in zip(axes, names, strict=False):
        text = "\n".join(printable(part, 24) for part in name.split("\n"))
        options = {"rotation": 90, "multialignment": "center", "transform": line[0].transAxes, "parse_math": False}
        line[0].text(-0.08, 0.5, text, ha="right", va="center", fontsize=7.5, **options)
    return figure


def _draw(ax: Axes, tile: Tile, fontsize: float, color: str) -> None:
    from matplotlib.patches import Rectangle

    if tile.picture is None:
        ax.text(0.5, 0.5, "cannot be read", ha="center", va="center", fontsize=7, transform=ax.transAxes)
    else:
        ax.imshow(tile.picture)
        ax.set_aspect("equal", adjustable="datalim")  # with the box below: a square for every picture, whatever its shape
        if tile.box is not None:
            left, top, right, bottom = tile.box
            ax.add_patch(Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor=color, linewidth=1))
    ax.set_box_aspect(1)
    ax.text(0.5, -0.04, tile.caption, ha="center", va="top", fontsize=fontsize, transform=ax.transAxes, parse_math=False)
