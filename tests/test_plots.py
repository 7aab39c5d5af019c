from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neuroprobe.plots import plot_labels, plot_layers

HOSTILE = ["$", "$x", "$x$", "$\\frac$", "a $\\nonsense{ b$", "\\$x\\$", "_hidden", "a\nb", "c\td\re", "x" * 200, "<b>", "{}", "%d", "\\"]


def label_table(concepts: list[str], layers: list[str] | None = None) -> pd.DataFrame:
    n = len(concepts)
    table = pd.DataFrame({"layer": layers or [f"layer{i % 2}" for i in range(n)], "unit": range(n), "concept": concepts, "score": 1.0})
    table["status"] = np.where(table["concept"] == "", "never varies", "named")
    return table


def probe_table(*, layers=("a", "b", "c"), checkpoints=("model",), kinds=("linear", "nonlinear"), concepts=("red", "blue")) -> pd.DataFrame:
    rows = [
        {"concept": concept, "checkpoint": checkpoint, "layer": layer, "kind": kind, "features": "pooled", "baseline": 0.6}
        for concept in concepts for checkpoint in checkpoints for layer in layers for kind in kinds
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    return table.assign(test_accuracy=np.linspace(0.5, 1, len(table)))


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
    assert shown(plot_layers(probe_table(layers=layers)).get_xticklabels()) == layers


@pytest.mark.parametrize("concepts", [["", ""], [""]])
def test_labels_of_dead_units_alone_can_be_drawn(concepts: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn(plot_labels(label_table(concepts)))


def test_a_line_per_kind_and_checkpoint_is_the_mean_over_concepts() -> None:
    table = probe_table(checkpoints=("early", "late"))
    ax = plot_layers(table)
    lines = {line.get_label(): line.get_ydata() for line in ax.lines}
    assert set(lines) == {
        *(f"{kind}, pooled, {checkpoint}" for kind in ("linear", "nonlinear") for checkpoint in ("early", "late")),
        "baseline: the more frequent class",
    }
    for checkpoint in ("early", "late"):
        for i, layer in enumerate("abc"):
            rows = table[(table["checkpoint"] == checkpoint) & (table["layer"] == layer) & (table["kind"] == "linear")]
            assert lines[f"linear, pooled, {checkpoint}"][i] == pytest.approx(rows["test_accuracy"].mean())
    np.testing.assert_allclose(lines["baseline: the more frequent class"], 0.6)
    drawn(ax)


def test_more_layers_than_fit_are_thinned_where_they_stand() -> None:
    layers = [f"l{i}" for i in range(150)]
    ax = plot_layers(probe_table(layers=layers, kinds=("linear",)))
    ticks = {int(x): name for x, name in zip(ax.get_xticks(), shown(ax.get_xticklabels()), strict=True)}
    assert len(ticks) <= 60
    assert all(layers[x] == name for x, name in ticks.items())


@pytest.mark.parametrize("plot", [plot_labels, plot_layers])
def test_given_axes_are_used_and_returned(plot) -> None:
    table = label_table(["red", "blue"]) if plot is plot_labels else probe_table()
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert plot(table, ax=right) is right
    assert right.get_title()
    assert not left.get_title()
    assert not left.lines
    drawn(right)
    part = Figure().subfigures(1, 2)[0].subplots()
    assert plot(table, ax=part) is part


@pytest.mark.parametrize("plot", [plot_labels, plot_layers])
def test_without_axes_a_new_figure_is_made(plot) -> None:
    table = label_table(["red", "blue"]) if plot is plot_labels else probe_table()
    assert plot(table).figure is not plot(table).figure


def test_the_table_is_not_changed() -> None:
    for plot, table in ((plot_labels, label_table(["red", ""])), (plot_layers, probe_table())):
        before = table.copy()
        plot(table)
        pd.testing.assert_frame_equal(table, before)


def test_hostile_concepts_are_drawn_as_they_are() -> None:
    ax = plot_labels(label_table(HOSTILE))
    figure = drawn(ax)
    assert len(ax.get_yticklabels()) == len(HOSTILE)
    assert max(len(text) for text in shown(ax.get_yticklabels())) <= 60
    assert figure is ax.figure


def test_hostile_layers_are_drawn_as_they_are() -> None:
    drawn(plot_labels(label_table(["red"] * len(HOSTILE), HOSTILE)))
    drawn(plot_layers(probe_table(layers=HOSTILE)))


def test_hostile_checkpoints_are_drawn_as_they_are() -> None:
    ax = plot_layers(probe_table(checkpoints=HOSTILE, concepts=("$\\frac$",)))
    drawn(ax)
    assert len(ax.get_legend().get_texts()) == 2 * len(HOSTILE) + 1


def test_dollars_stay_dollars() -> None:
    from matplotlib.text import Text

    label = plot_labels(label_table(["$x$ for $5"])).get_yticklabels()[0]
    assert isinstance(label, Text)
    assert label._preprocess_math(label.get_text()) == ("$x$ for $5", False)


def test_nothing_global_is_touched() -> None:
    code = """
import sys
import pandas as pd
from neuroprobe.report import LabelReport
table = pd.DataFrame({"layer": ["a"], "unit": [0], "concept": ["red"], "score": [1.0], "status": ["named"]})
LabelReport(table, {}).to_html()
print("matplotlib.pyplot" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stderr
