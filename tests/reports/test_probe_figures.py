from __future__ import annotations

import io
import warnings

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, FigureBase
from probe_tables import probe_table, unit_table
from reports.test_labels import HOSTILE, shown

from neuroprobe.exceptions import InputError
from neuroprobe.reports._probe_figures import plot_layers, plot_mean_layers, plot_units, plot_what_where_when
from neuroprobe.reports._probe_tables import summarize_seeds


def drawn(figure: FigureBase) -> Figure:
    """Draw everything; a text matplotlib cannot read, or a layout that does not fit, fails here."""
    whole = figure.get_figure(root=True)
    assert isinstance(whole, Figure)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole.savefig(io.BytesIO(), format="png")
    return whole


def panels(figure: FigureBase) -> dict[str, object]:
    return {ax.get_title(): ax for ax in figure.axes if ax.get_title()}


# --- means over concepts


def test_a_line_per_probe_and_checkpoint_is_the_mean_over_concepts() -> None:
    table = probe_table(checkpoints=("early", "late"))
    ax = plot_mean_layers(table)
    lines = {line.get_label(): line.get_ydata() for line in ax.lines}
    assert len(lines) == 3 * 2 + 1
    for checkpoint in ("early", "late"):
        for i, layer in enumerate("abc"):
            rows = table[(table["checkpoint"] == checkpoint) & (table["layer"] == layer) & (table["kind"] == "linear")]
            assert lines[f"linear, pooled, {checkpoint}"][i] == pytest.approx(rows["test_accuracy"].mean())
    np.testing.assert_allclose(lines["baseline: the more frequent class"], 2 / 3)
    drawn(ax.figure)


def test_given_axes_are_used_and_returned() -> None:
    left, right = Figure().subplots(1, 2)
    assert plot_mean_layers(probe_table(), ax=right) is right
    assert right.lines
    assert not left.lines


def test_more_layers_than_fit_are_thinned_where_they_stand() -> None:
    layers = [f"l{i}" for i in range(150)]
    for ax in (plot_mean_layers(probe_table(layers=layers)), plot_layers(probe_table(layers=layers)).axes[0]):
        ticks = {int(x): name for x, name in zip(ax.get_xticks(), shown(ax.get_xticklabels()), strict=True)}
        assert 2 < len(ticks) <= 60
        assert all(layers[x] == name for x, name in ticks.items())


def test_a_legend_names_few_checkpoints_or_the_first_and_the_last() -> None:
    for n, named in ((1, 0), (7, 7), (30, 2)):
        ax = plot_mean_layers(probe_table(checkpoints=[f"step {i}" for i in range(n)]))
        texts = [text.get_text() for text in ax.get_legend().get_texts()]
        assert len(texts) == 3 + 1 + named


def test_regressions_alone_show_their_r2() -> None:
    table = probe_table(probes=[("regression", "pooled")]).assign(test_accuracy=np.nan, r2=0.4)
    ax = plot_mean_layers(table)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), 0.4)
    assert ax.get_ylabel() == "R2 on held-out images"
    with pytest.raises(InputError, match="test accuracy"):
        plot_layers(table)


# --- a panel per concept


def test_layers_have_a_panel_per_concept_with_lines_bands_and_the_baseline() -> None:
    table = probe_table(checkpoints=("early", "late"))
    figure = plot_layers(table)
    summary = summarize_seeds(table[table["checkpoint"] == "late"])
    assert set(panels(figure)) == {"red", "blue"}
    for concept, ax in panels(figure).items():
        part = summary[(summary["concept"] == concept) & (summary["kind"] == "linear")]
        np.testing.assert_allclose(ax.lines[0].get_ydata(), part["test_accuracy"])
        band = ax.collections[0].get_paths()[0].vertices[:, 1]
        assert band.min() == pytest.approx(part["test_accuracy_low"].min())
        assert band.max() == pytest.approx(part["test_accuracy_high"].max())
        np.testing.assert_allclose(ax.lines[-1].get_ydata(), 2 / 3)
    assert "at late" in figure.get_suptitle()
    drawn(figure)
    early = panels(plot_layers(table, checkpoint="early"))["red"].lines[0].get_ydata()
    assert not np.allclose(early, panels(figure)["red"].lines[0].get_ydata())


def test_what_where_when_shows_the_accuracy_above_the_baseline() -> None:
    table = probe_table(checkpoints=("early", "middle", "late"))
    figure = plot_what_where_when(table, kind="nonlinear", features="spatial")
    summary = summarize_seeds(table)
    for concept, ax in panels(figure).items():
        picture = ax.images[0]
        assert picture.get_array().shape == (3, 3)
        assert picture.norm.vcenter == 0
        assert picture.norm.vmin == -picture.norm.vmax
        for i, checkpoint in enumerate(("early", "middle", "late")):
            for j, layer in enumerate("abc"):
                row = summary[
                    (summary["concept"] == concept) & (summary["checkpoint"] == checkpoint) & (summary["layer"] == layer)
                    & (summary["features"] == "spatial")
                ].iloc[0]  # fmt: skip
                assert picture.get_array()[i, j] == pytest.approx(row["test_accuracy"] - 2 / 3)
                dots = ax.collections[0].get_offsets().tolist()
                assert ([j, i] in dots) == (row["test_accuracy_low"] <= row["baseline"])
        ax_bottom, ax_top = ax.get_ylim()
        assert ax_bottom < ax_top  # the first checkpoint is below
    drawn(figure)


def test_an_interval_that_just_reaches_the_baseline_has_a_dot() -> None:
    table = probe_table(n_seeds=1, probes=[("linear", "pooled")])
    low = summarize_seeds(table)["test_accuracy_low"].to_numpy()  # of one seed, in the table's order
    for baseline, n_dots in ((low, 3), (low - 1e-6, 0)):
        figure = plot_what_where_when(table.assign(baseline=baseline))
        assert [len(ax.collections[0].get_offsets()) for ax in panels(figure).values()] == [n_dots] * 2


def test_all_panels_share_one_scale() -> None:
    table = probe_table()
    table.loc[table["concept"] == "red", "test_accuracy"] = 0.99
    norms = {id(ax.images[0].norm) for ax in panels(plot_what_where_when(table)).values()}
    assert len(norms) == 1


def test_units_stand_at_their_score_and_those_found_in_color() -> None:
    figure = plot_units(unit_table())
    for title, ax in panels(figure).items():
        assert title in ("red: 1 of 20", "blue: 1 of 20")
        gray, found, ringed = (collection.get_offsets() for collection in ax.collections[:3])
        assert len(gray) == 19
        np.testing.assert_allclose(found[:, 1], [0.97])
        np.testing.assert_allclose(ringed, found)
        assert 0.5 < found[0, 0] < 1.5  # in the second layer
        assert "b:7" in [text.get_text() for text in ax.texts]
    drawn(figure)
    alike = unit_table().assign(q_value=0.05)
    assert set(panels(plot_units(alike, false_discovery_rate=0.05))) == {"red: 20 of 20", "blue: 20 of 20"}
    assert set(panels(plot_units(alike, false_discovery_rate=0.049))) == {"red: 0 of 20", "blue: 0 of 20"}
    unknown = plot_units(unit_table().drop(columns=["q_value", "auroc"]))
    assert set(panels(unknown)) == {"red", "blue"}


@pytest.mark.parametrize("plot", [plot_layers, plot_what_where_when, plot_units])
def test_a_given_figure_is_used_and_returned(plot) -> None:
    table = unit_table() if plot is plot_units else probe_table()
    part = Figure(layout="constrained").subfigures(1, 2)[1]
    assert plot(table, figure=part) is part
    assert len(panels(part)) == 2


@pytest.mark.slow
def test_the_blogs_whole_grid_can_be_read() -> None:
    concepts = ["red", "yellow", "blue", "green", "zigzagged", "striped", "dotted", "male", "female"]
    layers, checkpoints = [f"features.{i}" for i in range(19)], [f"step_{i:05d}" for i in range(7)]
    table = probe_table(concepts=concepts, layers=layers, checkpoints=checkpoints, n_seeds=1)
    for figure in (plot_what_where_when(table), plot_layers(table)):
        whole = drawn(figure)
        renderer = FigureCanvasAgg(whole).get_renderer()
        for ax in panels(figure).values():
            for axis in (ax.xaxis, ax.yaxis):
                boxes = [label.get_window_extent(renderer) for label in axis.get_ticklabels() if label.get_visible() and label.get_text()]
                if axis is ax.xaxis and not ax.xaxis.get_tick_params()["labelbottom"]:
                    continue
                assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
            assert ax.get_window_extent(renderer).width > 150
        titles = [ax.title.get_window_extent(renderer) for ax in panels(figure).values()]
        assert not any(a.overlaps(b) for i, a in enumerate(titles) for b in titles[i + 1 :])


def test_noise_alone_stays_pale() -> None:
    table = probe_table().assign(test_accuracy=2 / 3 + 0.01)
    (picture, *_) = [image for ax in panels(plot_what_where_when(table)).values() for image in ax.images]
    assert picture.norm.vmax >= 0.1


def test_the_legend_of_a_narrow_figure_lies_within_it() -> None:
    figure = drawn(plot_layers(probe_table(layers=("a",))))
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 >= 0
    assert legend.x1 <= figure.bbox.width


def test_wrong_choices_are_refused() -> None:
    with pytest.raises(InputError, match=r"got 'last'. It has: model"):
        plot_layers(probe_table(), checkpoint="last")
    with pytest.raises(InputError, match=r"got layer, sparse, pooled. It has: linear, pooled; nonlinear, pooled"):
        plot_what_where_when(probe_table(), kind="sparse")
    with pytest.raises(InputError, match=r"got 'sparse'. Known: 'linear'"):
        plot_units(unit_table(), kind="sparse")


def test_hostile_names_are_drawn_as_they_are() -> None:
    table = probe_table(concepts=HOSTILE[:5], layers=HOSTILE[5:9], checkpoints=HOSTILE[9:], n_seeds=1)
    for figure in (plot_layers(table), plot_what_where_when(table), plot_mean_layers(table).figure):
        drawn(figure)
    drawn(plot_units(unit_table(concepts=HOSTILE[:3], layers=HOSTILE[3:])))


def test_the_table_is_not_changed() -> None:
    for plot, table in (
        (plot_mean_layers, probe_table()), (plot_layers, probe_table()), (plot_what_where_when, probe_table()), (plot_units, unit_table()),
    ):  # fmt: skip
        before = table.copy()
        plot(table)
        pd.testing.assert_frame_equal(table, before)
