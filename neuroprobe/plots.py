"""Figures, in matplotlib. Every function takes `ax`, returns `ax` and never calls show()."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase

_MOST_CONCEPTS = 25


def plot_labels(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Which share of each layer's units is named what.

    Parameters
    ----------
    table : DataFrame
        Of a `LabelReport`.
    ax : matplotlib Axes, optional
        By default those of a new figure.
    """
    named = table[table["status"] == "named"]
    layers = list(dict.fromkeys(table["layer"]))
    frequent = named["concept"].value_counts(sort=True).head(_MOST_CONCEPTS).index.tolist()
    counts = pd.crosstab(named["concept"], named["layer"]).reindex(index=frequent, columns=layers, fill_value=0)
    shares = counts / table.groupby("layer").size().reindex(layers)
    ax = axes_or_new(ax, 2.5 + 0.42 * len(layers), 1.6 + 0.24 * max(len(frequent), 1))
    if frequent:
        picture = ax.imshow(shares.to_numpy(), cmap="viridis", aspect="auto", vmin=0)
        _figure_of(ax).colorbar(picture, ax=ax, label="share of the layer's units")
    ax.set_yticks(range(len(frequent)), [shortened(concept) for concept in frequent])
    layer_ticks(ax, layers)
    ax.set_title(f"Labels of {len(table)} units" + (f", the {len(frequent)} most frequent" if len(frequent) == _MOST_CONCEPTS else ""))
    return ax


def axes_or_new(ax: Axes | None, width: float, height: float) -> Axes:
    """The given axes, or those of a new figure of this size in inches."""
    # a Figure of its own, without pyplot: nothing global changes and nothing is shown
    return Figure(figsize=(width, height)).subplots() if ax is None else ax


def _figure_of(ax: Axes) -> FigureBase:
    figure = ax.get_figure()
    if figure is None:
        raise ValueError("Expected axes that belong to a figure.")
    return figure


def layer_ticks(ax: Axes, layers: list[str]) -> None:
    """Name the layers along the horizontal axis; of more than sixty, some."""
    step = int(np.ceil(len(layers) / 60))
    ax.set_xticks(range(0, len(layers), step), [shortened(layer, limit=60) for layer in layers[::step]], rotation=90)


def shortened(text: str, limit: int = 30) -> str:
    """Text that any font and matplotlib's formulas take as it is, of at most so many characters."""
    # fonts have no glyphs for tabs and line ends; a dollar sign would start a formula
    text = " ".join(text.split())
    return (text if len(text) <= limit else text[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}").replace("$", r"\$")
