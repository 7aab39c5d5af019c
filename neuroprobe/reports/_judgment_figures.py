"""Figures of judgments, in matplotlib. Every function takes `ax` (by default axes of a new figure), returns it and never calls show()."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from neuroprobe._core import axes_or_new, shortened

_LONGEST = 60


def plot_quantities(overall: pd.DataFrame, *, title: str = "", ax: Axes | None = None) -> Axes:
    """A point per quantity with its interval; quantities of unlike size (shares and ranks) on a logarithmic axis.

    Parameters
    ----------
    overall : DataFrame
        Of a `neuroprobe.reports.JudgmentReport`: layer, quantity, value, low, high.
    title : str
    """
    rows = overall[np.isfinite(overall["value"].to_numpy(dtype=float))]
    ax = axes_or_new(ax, 6.5, 1.4 + 0.32 * max(len(rows), 1))
    values = rows["value"].to_numpy(dtype=float)
    for i, (value, low, high) in enumerate(zip(values, rows["low"], rows["high"], strict=True)):
        if np.isfinite(low) and np.isfinite(high):
            ax.plot([low, high], [i, i], color="C0", linewidth=2, alpha=0.5)
        ax.plot([value], [i], marker="o", color="C0")
        ax.annotate(f"{value:.3g}", (value, i), textcoords="offset points", xytext=(0, 5), ha="center", fontsize=8)
    several = rows["layer"].nunique() > 1
    names = [f"{row.quantity}, {row.layer}" if several else str(row.quantity) for row in rows.itertuples()]
    ax.set_yticks(range(len(rows)), [shortened(name, _LONGEST) for name in names])
    ax.set_ylim(max(len(rows), 1) - 0.4, -0.9)  # the first on top, with room for its number
    if len(values) and np.abs(values).max() > 10:
        ax.set_xscale("symlog", linthresh=1)
    ax.set_title(shortened(title, _LONGEST))
    return ax


def plot_shares(shares: pd.DataFrame, *, title: str = "", ax: Axes | None = None) -> Axes:
    """A bar per row, made of shares one behind the other.

    Parameters
    ----------
    shares : DataFrame
        One row per bar (its index), one column per kind.
    title : str
    """
    ax = axes_or_new(ax, 7, 1.4 + 0.32 * max(len(shares), 1))
    left = np.zeros(len(shares))
    for kind in shares:
        ax.barh(range(len(shares)), shares[kind], left=left, label=shortened(str(kind), _LONGEST))
        left += shares[kind].to_numpy(dtype=float)
    ax.set_yticks(range(len(shares)), [shortened(str(name), _LONGEST) for name in shares.index])
    ax.invert_yaxis()
    ax.set_xlabel("share of the units")
    ax.set_title(shortened(title, _LONGEST))
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return ax
