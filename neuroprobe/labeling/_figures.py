"""The figure of reports that compare two scores of every unit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from neuroprobe._core import axes_or_new, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_two_scores(table: pd.DataFrame, x: str, y: str, *, names: tuple[str, str], title: str, ax: Axes | None = None) -> Axes:
    """Two columns of a table: a point per unit, a color per layer, and the line on which both are the same; `names` are the axes'."""
    ax = axes_or_new(ax, 5.4, 5.0)
    for layer, rows in table.groupby("layer", sort=False):
        ax.scatter(rows[x], rows[y], s=12, alpha=0.6, label=shortened(str(layer), 40))
    if table[x].notna().any():
        ax.axline((table[x].mean(),) * 2, slope=1, color="gray", linewidth=1)
        ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    ax.set_xlabel(names[0])
    ax.set_ylabel(names[1])
    ax.set_title(shortened(title, 60))
    return ax
