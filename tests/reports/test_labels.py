from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neuroprobe import Activations
from neuroprobe.exceptions import InputError
from neuroprobe.models import Site
from neuroprobe.reports import LabelReport, check_label_sites, labeled_units, labels_of_layer

HOSTILE = ["$", "$x", "$x$", "$\\frac$", "a $\\nonsense{ b$", "\\$x\\$", "_hidden", "a\nb", "c\td\re", "x" * 200, "<b>", "{}", "%d", "\\"]


def label_table(concepts: list[str], layers: list[str] | None = None) -> pd.DataFrame:
    n = len(concepts)
    table = pd.DataFrame({"layer": layers or [f"layer{i % 2}" for i in range(n)], "unit": range(n), "concept": concepts, "score": 1.0})
    table["status"] = np.where(table["concept"] == "", "never varies", "named")
    return table


def plot_labels(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    return LabelReport(table, {}).plot(ax=ax)


def drawn(ax: Axes) -> Figure:
    """Draw everything; a text matplotlib cannot read fails here."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = ax.figure
        figure.savefig("/dev/null", format="png")
    return figure


def shown(ticks) -> list[str]:
    return [tick.get_text() for tick in ticks]


def test_labels_show_each_layers_shares() -> None:
    #          layer0  layer1
    # red        2       0
    # blue       0       1      and one unit of each layer is something else
    table = label_table(["red", "blue", "red", "", "green", "", "", "green"])
    ax = plot_labels(table)
    assert shown(ax.get_xticklabels()) == ["layer0", "layer1"]
    names, shares = shown(ax.get_yticklabels()), ax.images[0].get_array()
    found = {name: row.tolist() for name, row in zip(names, shares, strict=True)}
    assert found == {"red": [0.5, 0], "green": [0.25, 0.25], "blue": [0, 0.25]}
    drawn(ax)


def test_labels_show_the_most_frequent_concepts_and_say_so() -> None:
    concepts = [f"concept {i}" for i in range(40) for _ in range(i + 1)]
    ax = plot_labels(label_table(concepts))
    assert shown(ax.get_yticklabels()) == [f"concept {i}" for i in range(39, 14, -1)]
    assert "the 25 most frequent" in ax.get_title()


def test_layers_keep_the_tables_order() -> None:
    layers = ["features.1", "features.10", "features.2"]
    assert shown(plot_labels(label_table(["a", "b", "c"], layers)).get_xticklabels()) == layers


@pytest.mark.parametrize("concepts", [["", ""], [""]])
def test_labels_of_dead_units_alone_can_be_drawn(concepts: list[str]) -> None:
    drawn(plot_labels(label_table(concepts)))


def test_given_axes_are_used_and_returned() -> None:
    table = label_table(["red", "blue"])
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert plot_labels(table, ax=right) is right
    assert right.get_title()
    assert not left.get_title()
    assert not left.lines
    drawn(right)
    part = Figure().subfigures(1, 2)[0].subplots()
    assert plot_labels(table, ax=part) is part

    assert plot_labels(table).figure is not plot_labels(table).figure


def test_hostile_concepts_and_layers_are_drawn_as_they_are() -> None:
    ax = plot_labels(label_table(HOSTILE))
    drawn(ax)
    assert len(ax.get_yticklabels()) == len(HOSTILE)
    assert max(len(text) for text in shown(ax.get_yticklabels())) <= 60
    drawn(plot_labels(label_table(["red"] * len(HOSTILE), HOSTILE)))


def test_dollars_stay_dollars() -> None:
    from matplotlib.text import Text

    label = plot_labels(label_table(["$x$ for $5"])).get_yticklabels()[0]
    assert isinstance(label, Text)
    assert label._preprocess_math(label.get_text()) == ("$x$ for $5", False)


def test_labels_are_read_from_a_report_or_a_mapping() -> None:
    expected = {("layer0", 0): "red", ("layer0", 2): "blue"}
    assert labeled_units(LabelReport(label_table(["red", "", "blue"]), {})) == expected
    assert labeled_units({("layer0", np.int64(0)): "red", ("layer0", 1): "", ("layer0", 2): "blue"}) == expected
    assert labels_of_layer(expected, "layer0", 3) == {0: "red", 2: "blue"}


@pytest.mark.parametrize("unit", [-1, "x", True, 2.5, None])
def test_labels_of_what_is_no_units_number_are_refused(unit: object) -> None:
    with pytest.raises(InputError, match="Expected a unit from 0 on of 'fc', but got"):
        labeled_units({("fc", unit): "red"})


def test_labels_of_a_unit_beyond_the_layer_are_refused() -> None:
    labels_of_layer({("fc", 3): "red"}, "fc", 4)
    with pytest.raises(InputError, match="Expected a unit from 0 to 3 of 'fc', but got 4"):
        labels_of_layer({("fc", 4): "red"}, "fc", 4)


def test_labels_of_another_site_under_the_same_name_are_refused(tmp_path: Path) -> None:
    activations = Activations({"fc": np.eye(2, dtype=np.float32)}, ("a", "b"), {"sites": {"fc": Site("fc", call=1).identity}})
    table = label_table(["red", "blue"], ["fc", "fc"])
    same, other = (LabelReport(table, {"activations": {"sites": {"fc": s.identity}}}) for s in (Site("fc", call=1), Site("fc", call=0)))
    check_label_sites(same, activations.sites)
    check_label_sites(LabelReport(table, {}), activations.sites)  # nobody knows
    for refused in (lambda: check_label_sites(other, activations.sites), lambda: other.to_html(tmp_path / "page", activations=activations)):
        with pytest.raises(InputError, match="Hand in the same Site"):
            refused()
    assert not (tmp_path / "page").exists()


def test_nothing_global_is_touched() -> None:
    code = """
import sys
import pandas as pd
from neuroprobe.reports import LabelReport
table = pd.DataFrame({"layer": ["a"], "unit": [0], "concept": ["red"], "score": [1.0], "status": ["named"]})
LabelReport(table, {}).to_single_html()
print("matplotlib.pyplot" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stderr
