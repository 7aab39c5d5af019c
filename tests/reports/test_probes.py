from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from probe_tables import probe_table, unit_table

from neuroprobe.exceptions import InputError, UnknownNameError
from neuroprobe.models import Direction
from neuroprobe.reports import ProbeReport
from neuroprobe.reports._probe_tables import blog_tables, compare_scopes, summarize_seeds

METADATA = {"seeds": [0, 1, 2]}


def directions() -> list[Direction]:
    return [
        Direction(concept, "model", layer, features, "linear", seed, np.arange(n) + seed + len(layer), float(seed))
        for concept in ("red", "blue")
        for layer in ("a", "bb")
        for features, n in (("pooled", 3), ("spatial", 12))
        for seed in (0, 1, 2)
    ]


class Quick(ProbeReport):
    """Draws nothing, which takes long."""

    _png = b""


def quick(**parts) -> Quick:
    return Quick(probe_table(), METADATA, **parts)


# --- what is beside the table


def test_units_and_directions_are_saved_and_loaded(tmp_path: Path) -> None:
    report = quick(directions=directions(), units=unit_table(concepts=("NA", "1", " x ")))
    paths = report.save(tmp_path)
    assert {path.name for path in paths} == {path.name for path in tmp_path.iterdir()}
    assert {"probes_units.csv", "probes_directions.npz"} <= {path.name for path in paths}
    loaded = Quick.load(tmp_path)
    pd.testing.assert_frame_equal(loaded.units, report.units, check_exact=True)
    assert loaded.metadata == report.metadata
    for ours, theirs in zip(report.directions, loaded.directions, strict=True):
        np.testing.assert_array_equal(ours.weights, theirs.weights)
        assert (ours.concept, ours.layer, ours.seed, ours.bias) == (theirs.concept, theirs.layer, theirs.seed, theirs.bias)


def test_a_report_without_them_leaves_those_of_another_nowhere(tmp_path: Path) -> None:
    quick(directions=directions(), units=unit_table()).save(tmp_path)
    quick().save(tmp_path)
    assert not list(tmp_path.glob("probes_*"))
    assert Quick.load(tmp_path).directions == ()


@pytest.mark.parametrize("name", ["probes_units.csv", "probes_directions.npz"])
@pytest.mark.parametrize("change", ["missing", "cut", "of another"])
def test_what_does_not_belong_to_the_table_is_refused(tmp_path: Path, name: str, change: str) -> None:
    quick(directions=directions(), units=unit_table()).save(tmp_path / "one")
    quick(directions=directions()[1:], units=unit_table(width=9)).save(tmp_path / "other")
    file = tmp_path / "one" / name
    data = file.read_bytes()
    file.unlink()
    if change != "missing":
        file.write_bytes(data[:-20] if change == "cut" else (tmp_path / "other" / name).read_bytes())
    with pytest.raises(InputError, match=f"Expected {name} as it was saved"):
        Quick.load(tmp_path / "one")


def test_units_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(InputError, match="unit is missing"):
        quick(units=unit_table().drop(columns="unit"))
    with pytest.raises(InputError, match="Make the study with the scope 'neuron'"):
        _ = quick().units


def test_nothing_that_is_given_out_changes_the_report() -> None:
    report = quick(units=unit_table())
    for table in (report.units, report.table):
        table.loc[0, "concept"] = "changed"
    assert report.units.loc[0, "concept"] == report.table.loc[0, "concept"] == "red"


# --- directions


def test_a_direction_is_the_mean_over_seeds_or_one_of_them() -> None:
    report = quick(directions=directions())
    mean = report.direction("red", "bb")
    np.testing.assert_allclose(mean.weights, [3, 4, 5])  # 0, 1, 2 plus the mean seed 1 plus 2
    assert (mean.seed, mean.bias, mean.features) == (None, 1.0, "pooled")
    np.testing.assert_allclose(report.direction("red", "bb", seed=2).weights, [4, 5, 6])
    assert report.direction("blue", "a", features="spatial").weights.shape == (12,)


def test_a_direction_is_of_the_last_checkpoint_unless_another_is_asked_for() -> None:
    found = [dataclasses.replace(d, checkpoint=name, bias=bias) for name, bias in (("late", 2.0), ("early", 1.0)) for d in directions()]
    report = Quick(probe_table(checkpoints=("early", "late")), METADATA, directions=found)
    assert report.direction("red", "bb").bias == 2
    assert report.direction("red", "bb", checkpoint="early").bias == 1


def test_unknown_directions_are_refused_by_name() -> None:
    report = quick(directions=directions())
    for wrong, message in (
        ({"concept": "reed"}, "concept is known, but got 'reed'. Did you mean 'red'"),
        ({"layer": "c"}, "layer is known, but got 'c'"),
        ({"seed": 7}, "seed is known, but got 7"),
        ({"kind": "sparse"}, "kind is known, but got 'sparse'"),
        ({"checkpoint": "early"}, "checkpoint is known"),
    ):
        with pytest.raises(UnknownNameError, match=f"whose {message}"):
            report.direction(**{"concept": "red", "layer": "a", **wrong})
    with pytest.raises(InputError, match="keep_directions=True"):
        quick().direction("red", "a")


# --- tables


def test_the_tables_are_those_of_the_functions() -> None:
    report = ProbeReport(probe_table(probes=[("linear", "pooled")], scopes=("layer", "neuron")), METADATA)
    pd.testing.assert_frame_equal(report.summary_table(level=0.9), summarize_seeds(report.table, level=0.9))
    pd.testing.assert_frame_equal(report.compare_scopes(), compare_scopes(report.table))


def test_markdown_in_both_styles(tmp_path: Path) -> None:
    report = quick()
    assert report.to_markdown().startswith("| concept | checkpoint | layer |")
    text = report.to_markdown(tmp_path / "blog.md", style="blog")
    assert text == blog_tables(report.table) == (tmp_path / "blog.md").read_text()
    with pytest.raises(UnknownNameError, match="Did you mean 'blog'"):
        report.to_markdown(style="blogg")  # type: ignore[arg-type]


# --- figures


def test_figures_are_of_the_reports_tables() -> None:
    report = ProbeReport(probe_table(checkpoints=("early", "late")), METADATA, units=unit_table())
    assert report.plot().get_ylabel() == "accuracy on held-out images"
    for figure in (report.plot_layers(), report.plot_what_where_when(), report.plot_units()):
        assert isinstance(figure, Figure)
        assert {"red", "blue"} <= {ax.get_title().split(":")[0] for ax in figure.axes}
    with pytest.raises(InputError, match="scope 'neuron'"):
        quick().plot_units()


@pytest.mark.parametrize(
    ("table", "panels"),
    [
        (probe_table(n_seeds=1), 2),
        (probe_table(n_seeds=1, checkpoints=("early", "late")), 3),  # and the scale
        (probe_table(n_seeds=1, concepts=[f"concept {i}" for i in range(24)]), 24),
        (probe_table(n_seeds=1, concepts=[f"concept {i}" for i in range(25)]), 1),
        (probe_table(n_seeds=1, probes=[("regression", "pooled")]).assign(test_accuracy=np.nan, r2=0.1), 1),
        (probe_table(n_seeds=1, scopes=("neuron",)), 2),
    ],
)
def test_a_figure_is_saved_whatever_the_table_holds(monkeypatch: pytest.MonkeyPatch, table: pd.DataFrame, panels: int) -> None:
    seen = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: seen.append(len(self.axes)))
    ProbeReport(table, METADATA).to_single_html()
    assert seen == [panels]


def test_the_summary_of_regressions_alone_says_what_they_explain() -> None:
    table = probe_table(concepts=("red",)).assign(kind="regression", test_accuracy=np.nan, r2=0.25)
    assert ProbeReport(table, {}).summary().endswith("1 checkpoints; mean R2 0.250")
