"""Figures, in matplotlib. Every function takes `ax`, returns `ax` and never calls show()."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure


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
