"""Figures of causal effects, in matplotlib. As in `neuroprobe._core.figures`, every function takes `ax`, returns `ax` and never calls show()."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from neuroprobe._core import axes_or_new, shortened


def plot_effects(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """A point per concept and output with its interval, and a bar for what random units do.

    Parameters
    ----------
    table : DataFrame
        Of an `EffectReport`.
    ax : matplotlib Axes, optional
        By default those of a new figure.
    """
    ax = axes_or_new(ax, 6.5, 1.5 + 0.3 * max(len(table), 1))
    places = np.arange(len(table))
    if table["random_low"].notna().any():
        widths = table["random_high"] - table["random_low"]
        ax.barh(places, widths, left=table["random_low"], height=0.7, color="0.85", label="random units of the layer")
    ax.hlines(places, table["low"], table["high"], color="C0", linewidth=2)
    ax.plot(table["effect"], places, linestyle="", marker="o", markersize=4, color="C0", label="these units")
    ax.axvline(0, color="0.4", linewidth=0.8)
    several = table["concept"].nunique() > 1
    names = [f"{row.output}, images with {row.concept}" if several else str(row.output) for row in table.itertuples()]
    ax.set_yticks(places, [shortened(name, 60) for name in names])
    ax.set_ylim(max(len(table), 1) - 0.4, -0.6)
    ax.set_xlabel("change of the output on images with the concept,\nminus its change on matched images without")
    ax.set_title(_title(table))
    if len(table):
        ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return ax


def _title(table: pd.DataFrame) -> str:
    if table.empty:
        return ""
    first, several = table.iloc[0], table["concept"].nunique() > 1
    one = len(table[["layer", "units", "intervention"]].drop_duplicates()) == 1
    done = in_words(first) if one else "Several interventions"
    return shortened(done + ("" if several else f"; images with {first['concept']}"), 90)


def in_words(row: Mapping[str, Any] | pd.Series[Any]) -> str:
    """What was done, as a row of an `EffectReport` tells it.

    Examples
    --------
    >>> in_words({"units": "3 17", "layer": "fc", "intervention": "set to zero"})
    '2 units of fc set to zero'
    """
    n = len(str(row["units"]).split())
    return f"{n} unit{'' if n == 1 else 's'} of {row['layer']} {row['intervention']}"
