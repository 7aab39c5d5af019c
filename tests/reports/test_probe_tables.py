from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from probe_tables import probe_table

from neuroprobe.exceptions import InputError
from neuroprobe.reports._probe_tables import blog_tables, compare_scopes, summarize_seeds
from neuroprobe.statistics import accuracy_interval, balanced_accuracy_interval, benjamini_hochberg, corrected_interval


def test_every_cell_has_the_means_and_intervals_of_its_seeds() -> None:
    table = probe_table(checkpoints=("early", "late"), n_seeds=4)
    table = table.assign(selectivity=np.random.default_rng(1).random(len(table)))
    summary = summarize_seeds(table.sample(frac=1, random_state=0))
    assert len(summary) == len(table) / 4
    for _, row in summary.iterrows():
        keys = ["concept", "checkpoint", "layer", "kind", "features"]
        part = table[(table[keys] == row[keys]).all(axis=1)]
        assert row["n_seeds"] == len(part) == 4
        assert row["test_accuracy"] == pytest.approx(part["test_accuracy"].mean())
        assert row["auroc"] == pytest.approx(part["auroc"].mean())
        assert row["above_baseline"] == pytest.approx(part["test_accuracy"].mean() - 2 / 3)
        accuracy = accuracy_interval(part["test_accuracy"], n_train=210, n_test=90)
        assert (row["test_accuracy_low"], row["test_accuracy_high"]) == pytest.approx((float(accuracy[0]), float(accuracy[1])))
        specificity = 2 * part["balanced_accuracy"] - part["sensitivity"]
        balanced = balanced_accuracy_interval(part["sensitivity"], specificity, n_train=210, n_positive=30, n_negative=60)
        assert (row["balanced_accuracy_low"], row["balanced_accuracy_high"]) == pytest.approx((float(balanced[0]), float(balanced[1])))
        selectivity = corrected_interval(part["selectivity"], n_train=210, n_test=90)
        assert (row["selectivity_low"], row["selectivity_high"]) == pytest.approx((float(selectivity[0]), float(selectivity[1])))


def test_the_order_is_the_tables() -> None:
    table = probe_table(layers=("features.1", "features.10", "features.2"), concepts=("z", "a"))
    summary = summarize_seeds(table)
    assert list(dict.fromkeys(summary["layer"])) == ["features.1", "features.10", "features.2"]
    assert list(dict.fromkeys(summary["concept"])) == ["z", "a"]


def test_cells_may_have_different_numbers_of_seeds() -> None:
    table = probe_table(n_seeds=3)
    table = table[~((table["layer"] == "b") & (table["seed"] > 0))]
    summary = summarize_seeds(table)
    assert dict(summary.groupby("layer")["n_seeds"].first()) == {"a": 3, "b": 1, "c": 3}
    wilson = accuracy_interval([summary[summary["layer"] == "b"]["test_accuracy"].iloc[0]], n_train=210, n_test=90)
    assert summary[summary["layer"] == "b"]["test_accuracy_low"].iloc[0] == pytest.approx(float(wilson[0]))


def test_a_table_with_no_more_than_it_must_have_is_enough() -> None:
    table = probe_table().drop(columns=["checkpoint", "balanced_accuracy", "auroc", "sensitivity", "n_test_positive", "unit"])
    summary = summarize_seeds(table)
    assert summary["test_accuracy_low"].notna().all()
    assert "balanced_accuracy_low" not in summary


def test_probes_without_an_accuracy_have_no_interval() -> None:
    table = probe_table(probes=[("linear", "pooled"), ("regression", "pooled")]).assign(r2=0.5)
    table.loc[table["kind"] == "regression", ["test_accuracy", "train_accuracy", "balanced_accuracy", "sensitivity", "baseline"]] = np.nan
    summary = summarize_seeds(table).set_index("kind")
    assert summary.loc["regression", "test_accuracy_low"].isna().all()
    assert (summary.loc["regression", "r2"] == 0.5).all()
    assert summary.loc["linear", "test_accuracy_low"].notna().all()


def test_p_values_of_several_seeds_are_twice_their_median() -> None:
    table = probe_table(probes=[("linear", "pooled")], concepts=("red",))
    table["p_value"] = [0.01, 0.2, 0.03, 0.6, 0.7, 0.8, 0.001, 0.002, 0.5]
    summary = summarize_seeds(table)
    np.testing.assert_allclose(summary["p_value"], [0.06, 1, 0.004])
    np.testing.assert_allclose(summary["q_value"], benjamini_hochberg([0.06, 1, 0.004]))
    one = summarize_seeds(table[table["seed"] == 0])
    np.testing.assert_allclose(one["p_value"], [0.01, 0.6, 0.001])


def test_discovery_rates_are_within_a_checkpoint_probe_and_kind_of_features() -> None:
    table = probe_table(n_seeds=1, checkpoints=("early", "late"), probes=[("nonlinear", "pooled"), ("nonlinear", "spatial")])
    summary = summarize_seeds(table.assign(p_value=np.random.default_rng(0).random(len(table)) ** 3))
    for _, part in summary.groupby(["checkpoint", "features"]):
        np.testing.assert_allclose(part["q_value"], benjamini_hochberg(part["p_value"].to_numpy()))


# --- scopes compared


def scopes(neuron: list[float], layer: list[float], *, units: list[int] | None = None) -> pd.DataFrame:
    """One concept and layer, the accuracies of each seed."""
    n = len(neuron)
    table = probe_table(concepts=("red",), layers=("a",), probes=[("linear", "pooled")], scopes=("neuron", "layer"), n_seeds=n)
    table["test_accuracy"] = [*neuron, *layer]
    table["unit"] = [*(units or [3] * n), *[np.nan] * n]
    return table


def test_scopes_are_compared_split_by_split() -> None:
    neuron, layer = [0.68, 0.7, 0.69], [0.93, 0.96, 0.95]
    (row,) = compare_scopes(scopes(neuron, layer, units=[3, 1, 3])).to_dict("records")
    assert (row["concept"], row["layer"], row["unit"], row["n_seeds"]) == ("red", "a", 3, 3)
    assert row["neuron_accuracy"] == pytest.approx(0.69)
    assert row["layer_accuracy"] == pytest.approx(np.mean(layer))
    low, high = corrected_interval(np.subtract(layer, neuron), n_train=210, n_test=90)
    assert (row["difference_low"], row["difference_high"]) == pytest.approx((float(low), float(high)))
    assert (row["neuron_low"], row["layer_high"]) == pytest.approx(
        (float(accuracy_interval(neuron, n_train=210, n_test=90)[0]), float(accuracy_interval(layer, n_train=210, n_test=90)[1]))
    )


@pytest.mark.parametrize(
    ("neuron", "layer", "where"),
    [
        ([0.68, 0.7, 0.69], [0.93, 0.96, 0.95], "direction"),
        ([0.8, 0.81, 0.8], [0.97, 0.97, 0.98], "several units"),
        ([0.96, 0.94, 0.95], [0.95, 0.94, 0.96], "one unit"),
        ([0.67, 0.66, 0.68], [0.68, 0.67, 0.66], "not found"),
        ([0.7, 0.69, 0.7], [0.78, 0.7, 0.79], "undecided"),
        ([0.7], [0.95], "undecided"),
    ],
)
def test_where_a_concept_lives(neuron: list[float], layer: list[float], where: str) -> None:
    assert compare_scopes(scopes(neuron, layer))["where"].tolist() == [where]


def test_one_scope_cannot_be_compared() -> None:
    with pytest.raises(InputError, match="scopes neuron and layer"):
        compare_scopes(probe_table())


# --- the blog's style


def test_the_blogs_table_by_hand() -> None:
    table = probe_table(concepts=("red",), layers=("features.0", "features.1"), n_seeds=2)
    accuracy = {
        ("features.0", "linear", "pooled"): [0.7, 0.8], ("features.0", "nonlinear", "pooled"): [0.9, 0.9],
        ("features.0", "nonlinear", "spatial"): [0.95, 0.95], ("features.1", "linear", "pooled"): [0.8, 0.8],
        ("features.1", "nonlinear", "pooled"): [0.9001, 0.9001], ("features.1", "nonlinear", "spatial"): [0.9, 0.91],
    }  # fmt: skip
    table["test_accuracy"] = [accuracy[row.layer, row.kind, row.features][row.seed] for row in table.itertuples()]
    lines = blog_tables(table).splitlines()
    assert lines[:6] == [
        "### red",
        "",
        "| layer | linear_gap | non_linear_gap | non_linear_non_gap |",
        "| --- | ---: | ---: | ---: |",
        "| features.0 | 0.750 | **0.900** | **0.950** |",  # both that read 0.900 are best
        "| features.1 | **0.800** | **0.900** | 0.905 |",
    ]
    caption = lines[7]
    assert "Test accuracy on 90 held-out images" in caption
    assert "210 to train; splits: 2" in caption
    assert "Baseline 0.667" in caption


def test_the_blogs_style_has_a_table_per_concept_and_checkpoint() -> None:
    text = blog_tables(probe_table(concepts=("red", "a|b"), checkpoints=("early", "late")))
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "### red at early", "### red at late", "### a\\|b at early", "### a\\|b at late",
    ]  # fmt: skip


def test_columns_that_were_not_probed_are_left_out() -> None:
    text = blog_tables(probe_table(probes=[("nonlinear", "pooled"), ("sparse", "pooled")], scopes=("layer", "neuron")))
    assert "| layer | non_linear_gap |" in text
    with pytest.raises(InputError, match="Expected probes of the blog's kinds"):
        blog_tables(probe_table(probes=[("sparse", "pooled")]))
    with pytest.raises(InputError, match="Expected probes of the blog's kinds"):
        blog_tables(probe_table(scopes=("neuron",)))


def test_several_sizes_and_baselines_are_said() -> None:
    table = probe_table(concepts=("red",))
    table.loc[table["seed"] == 1, ["n_test", "baseline"]] = [87, 0.7]
    assert "on 89 held-out images" in blog_tables(table)
    table.loc[table["layer"] == "a", "baseline"] = 0.5
    assert "Baseline 0.500 to 0.678" in blog_tables(table)
