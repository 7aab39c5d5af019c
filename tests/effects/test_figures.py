from __future__ import annotations

import pandas as pd
import pytest
from matplotlib.figure import Figure

from neuroprobe.effects._figures import plot_attributions, plot_contributions, plot_explained

HOSTILE = ["red", "$\\frac{", "a\tb\nc", "x" * 500, "<img src=x>", "\N{SNOWMAN}"]


def contributions(names: list[str]) -> pd.DataFrame:
    n = len(names)
    return pd.DataFrame(
        {
            "rank": range(1, n + 1), "concept": names, "named": [True] * max(n - 1, 0) + [False] * min(n, 1), "n_units": range(1, n + 1),
            "contribution": [1.0 - i for i in range(n)], "low": [0.5 - i for i in range(n)], "high": [1.5 - i for i in range(n)],
            "lowest": [-2.0 - i for i in range(n)], "highest": [2.0 + i for i in range(n)], "attribution": [2.0 - i for i in range(n)],
            "r2": [i / max(n, 1) for i in range(n)], "r2_low": [-5.0] * n, "r2_high": [1.0] * n,
        }
    )  # fmt: skip


@pytest.mark.parametrize("names", [HOSTILE, ["red"], []])
def test_names_of_every_kind_are_drawn(names: list[str]) -> None:
    table = contributions(names)
    for ax in (
        plot_contributions(table, title="$x"),
        plot_attributions(table, title="$x"),
        *([plot_explained(table, k=1, title="$x")] if names else []),
    ):
        ax.figure.savefig("/dev/null", format="png")


def test_bars_and_points_are_the_table() -> None:
    table, ax = contributions(["red", "blue", "big"]), Figure().subplots()
    assert plot_contributions(table, ax=ax) is ax
    assert [bar.get_width() for bar in ax.patches] == [*table["highest"], *table["lowest"]]
    (points,) = [line for line in ax.get_lines() if line.get_marker() == "o"]
    assert points.get_xdata().tolist() == table["contribution"].tolist()
    assert [text.get_text() for text in ax.get_yticklabels()] == ["red (1 unit)", "blue (2 units)", "big (3 units)"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first on top


def test_attributions_have_the_color_of_their_sign() -> None:
    ax = plot_attributions(contributions(["red", "blue", "big", "small"]))
    colors = [bar.get_facecolor() for bar in ax.patches]
    assert colors[0] == colors[1] != colors[3]


def test_what_is_explained_is_a_line_with_its_interval_within_sight() -> None:
    table = contributions(["red", "blue", "(unnamed)"])
    ax = plot_explained(table, k=2)
    assert ax.get_lines()[0].get_ydata().tolist() == table["r2"].tolist()
    assert ax.get_ylim()[0] == -1  # an interval far below 0 does not squeeze the rest
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["concepts", "units without a label", "the first 2"]
