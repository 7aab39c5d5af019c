"""Figures of effects and of what scores are made of, each from the table of a report.

Every function takes `title` and `ax` (by default the axes of a new figure), returns `ax` and never calls show().
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from neuroprobe._core import axes_or_new, shortened

#: For what adds to a score, and what takes from it.
_COLORS = ("#0072b2", "#d55e00")


def plot_contributions(table: pd.DataFrame, *, title: str = "", ax: Axes | None = None) -> Axes:
    """Bars for the lowest and highest contribution of rows of a `CompositionReport`, and a point for that to the class's images."""
    ax, places = _concept_axes(table, title, ax), np.arange(len(table))
    ax.barh(places, table["highest"], height=0.6, color=_COLORS[0], alpha=0.75, label="where it adds most (5 % of the images)")
    ax.barh(places, table["lowest"], height=0.6, color=_COLORS[1], alpha=0.75, label="where it takes most (5 %)")
    for place, low, high in zip(places, table["low"], table["high"], strict=True):
        ax.plot([low, high], [place, place], color="black", linewidth=1.5)
    ax.plot(table["contribution"], places, linestyle="", marker="o", markersize=4, color="black", label="mean, images of the class")
    ax.set_xlabel("contribution to the score")
    ax.legend(fontsize=7, loc="lower right")
    return ax


def plot_attributions(table: pd.DataFrame, *, title: str = "", ax: Axes | None = None) -> Axes:
    """A bar for what each row of an `AttributionReport` adds to one image's score (to the right) or takes from it (to the left)."""
    ax, values = _concept_axes(table, title, ax), table["attribution"].to_numpy(dtype=float)
    ax.barh(np.arange(len(table)), values, height=0.6, color=[_COLORS[int(value < 0)] for value in values])
    ax.set_xlabel("attribution")
    return ax


def _concept_axes(table: pd.DataFrame, title: str, ax: Axes | None) -> Axes:
    """A line per concept, the first on top."""
    ax = axes_or_new(ax, 6.5, 1.4 + 0.3 * max(len(table), 1))
    names = [f"{shortened(str(row.concept), 32)} ({row.n_units} unit{'s' * (row.n_units > 1)})" for row in table.itertuples()]
    ax.set_yticks(np.arange(len(table)), names)
    ax.set_ylim(max(len(table), 1) - 0.4, -0.6)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_title(shortened(title, 60))
    return ax


def plot_explained(table: pd.DataFrame, *, k: int, title: str = "", ax: Axes | None = None) -> Axes:
    """R2 on held-out images against the number of concepts of a `CompositionReport`; what is not named comes last, hollow.

    A line marks the first `k`.
    """
    ax = axes_or_new(ax, 5.5, 3.6)
    ranks, named = table["rank"].to_numpy(), table["named"].to_numpy(dtype=bool)
    ax.fill_between(ranks, table["r2_low"], table["r2_high"], color=_COLORS[0], alpha=0.25, linewidth=0)
    ax.plot(ranks, table["r2"], color=_COLORS[0], linewidth=1)
    ax.plot(ranks[named], table["r2"][named], marker="o", markersize=4, linestyle="", color=_COLORS[0], label="concepts")
    if not named.all():
        ax.plot(
            ranks[~named], table["r2"][~named], marker="o", markersize=4, linestyle="", markerfacecolor="white", color=_COLORS[0],
            label="units without a label",
        )  # fmt: skip
    ax.axvline(k, color="gray", linewidth=1, linestyle=":", label=f"the first {k}")
    ax.axhline(0, color="black", linewidth=0.8)
    ax.set_ylim(max(-1.0, min(-0.02, float(table["r2_low"].min()))), 1.03)
    ax.set_xlabel("number of concepts added up")
    ax.set_ylabel("$R^2$ on held-out images")
    ax.set_title(shortened(title, 60))
    ax.legend(fontsize=8, loc="lower right")
    return ax


def plot_effects(table: pd.DataFrame, *, title: str = "", ax: Axes | None = None) -> Axes:
    """A point per concept and output of an `EffectReport` with its interval, and a bar for what random units do."""
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
    ax.set_title(shortened(title, 90))
    if len(table):
        ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return ax
