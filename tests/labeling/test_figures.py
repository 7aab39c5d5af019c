from __future__ import annotations

import pandas as pd
import pytest

from neuroprobe.labeling._figures import plot_two_scores

NAMES = ("one", "the other")


def test_units_are_points_by_layer() -> None:
    table = pd.DataFrame({"layer": ["a", "b", "a"], "x": [0.1, 0.2, 0.3], "y": [0.4, 0.5, 0.6]})
    ax = plot_two_scores(table, "x", "y", names=NAMES, title="units")
    assert [points.get_offsets().tolist() for points in ax.collections] == [[[0.1, 0.4], [0.3, 0.6]], [[0.2, 0.5]]]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == (*NAMES, "units")


@pytest.mark.parametrize("layers", [["$\\frac{", "a\tb\nc", "x" * 500], ["a"], []])
@pytest.mark.parametrize("value", [0.2, float("nan")])
def test_names_of_every_kind_and_units_without_scores_are_drawn(layers: list[str], value: float) -> None:
    table = pd.DataFrame({"layer": layers, "x": value, "y": 0.4})
    plot_two_scores(table, "x", "y", names=NAMES, title="$x").figure.savefig("/dev/null", format="png")
