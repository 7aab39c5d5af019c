"""Tables made from a table of probes: one row per cell with intervals over its seeds, and scopes compared."""

from __future__ import annotations

import numpy as np
import pandas as pd

from neuroprobe._core import Floats, check_level
from neuroprobe.exceptions import InputError
from neuroprobe.reports.base import markdown_cell
from neuroprobe.statistics import Interval, accuracy_interval, balanced_accuracy_interval, benjamini_hochberg, corrected_interval

#: What tells one cell of a study from another; its seeds are what is left.
CELL = ("concept", "checkpoint", "layer", "probe", "scope", "kind", "features")

#: Numbers that a summary does not average: what tells a row, what is tested, and what an interval is made of.
_NOT_AVERAGED = ("seed", "unit", "p_value", "q_value", "n_test_positive", "sensitivity", "compression")


def summarize_seeds(table: pd.DataFrame, *, level: float = 0.95) -> pd.DataFrame:
    """One row per cell, in the table's order; see `neuroprobe.ProbeReport.summary_table`."""
    check_level(level)
    keys = [column for column in CELL if column in table]
    groups = table.groupby(keys, sort=False, dropna=False)
    averaged = [column for column in table.select_dtypes("number") if column not in (*keys, *_NOT_AVERAGED)]
    summary = groups[averaged].mean().reset_index()
    summary.insert(len(keys), "n_seeds", groups.size().to_numpy())
    if "unit" in table:  # of scope neuron: the one that most seeds chose
        summary.insert(len(keys), "unit", groups["unit"].agg(_most_frequent).to_numpy())
    for column, (low, high) in _intervals(table, groups.ngroup().to_numpy(), level).items():
        place = summary.columns.get_loc(column)
        summary.insert(place + 1, f"{column}_low", low)
        summary.insert(place + 2, f"{column}_high", high)
    summary.insert(summary.columns.get_loc("baseline") + 1, "above_baseline", summary["test_accuracy"] - summary["baseline"])
    if "p_value" in table:
        _add_p_values(summary, groups["p_value"].median().to_numpy())
    return summary


def _intervals(table: pd.DataFrame, cell: np.ndarray, level: float) -> dict[str, Floats]:
    """The ends [2, n_cells] of the interval of every column that has one; `cell` is the number of every row's cell."""
    balanced = ["balanced_accuracy"] if {"sensitivity", "n_test_positive", "balanced_accuracy"} <= set(table) else []
    columns = [column for column in ("test_accuracy", "selectivity") if column in table] + balanced
    n_seeds, order = np.bincount(cell), np.argsort(cell, kind="stable")
    starts = np.cumsum(n_seeds) - n_seeds
    ends = {column: np.full((2, len(n_seeds)), np.nan) for column in columns}
    for n in np.unique(n_seeds):
        cells = np.flatnonzero(n_seeds == n)
        rows = order[starts[cells, None] + np.arange(n)]  # [n_cells, n_seeds], rows of the table
        for column in columns:
            ends[column][:, cells] = _interval(column, table, rows, level)
    return ends


def _interval(column: str, table: pd.DataFrame, rows: np.ndarray, level: float) -> Interval:
    """The interval of one column over seeds, for rows [n_cells, n_seeds] of the table."""

    def values(name: str) -> Floats:
        return np.asarray(table[name].to_numpy(dtype=np.float64)[rows])

    n_train, n_test = values("n_train").mean(axis=1), values("n_test").mean(axis=1)
    if column != "balanced_accuracy":
        function = accuracy_interval if column == "test_accuracy" else corrected_interval
        return function(values(column), n_train=n_train, n_test=n_test, level=level)
    sensitivity, n_positive = values("sensitivity"), values("n_test_positive").mean(axis=1)
    specificity = np.clip(2 * values(column) - sensitivity, 0, 1)
    sizes = {"n_train": n_train, "n_positive": n_positive, "n_negative": n_test - n_positive}
    return balanced_accuracy_interval(sensitivity, specificity, level=level, **sizes)


def _add_p_values(summary: pd.DataFrame, median: Floats) -> None:
    """Over seeds, twice their median; and the discovery rates among all cells of a checkpoint and probe."""
    summary["p_value"] = np.where(summary["n_seeds"] > 1, np.minimum(2 * median, 1), median)
    family = [column for column in ("checkpoint", "probe", "features") if column in summary]
    summary["q_value"] = summary.groupby(family, sort=False)["p_value"].transform(lambda p: benjamini_hochberg(p.to_numpy()))


def compare_scopes(table: pd.DataFrame, *, kind: str = "linear", features: str = "pooled", level: float = 0.95) -> pd.DataFrame:
    """The best single unit beside the whole layer; see `neuroprobe.ProbeReport.compare_scopes`."""
    check_level(level)
    keys = [column for column in ("concept", "checkpoint", "layer") if column in table]
    rows = table[(table["kind"] == kind) & (table["features"] == features) & table["train_accuracy"].notna()]
    neurons, layers = rows[rows["scope"] == "neuron"], rows[rows["scope"] == "layer"]
    if neurons.empty or layers.empty:
        raise InputError(f"Expected {kind} probes on {features} features in the scopes neuron and layer, but one of them has none.")
    columns = [*keys, "seed", "test_accuracy", "n_train", "n_test", "baseline"]
    pairs = layers[columns].merge(neurons[[*keys, "seed", "unit", "test_accuracy"]], on=[*keys, "seed"], suffixes=("_layer", "_neuron"))
    found = [_compared(dict(zip(keys, _tuple(key), strict=True)), group, level) for key, group in pairs.groupby(keys, sort=False)]
    return pd.DataFrame(found)


_MEANS = {"neuron": "neuron_accuracy", "layer": "layer_accuracy", "difference": "difference"}


def _compared(key: dict[str, str], group: pd.DataFrame, level: float) -> dict[str, object]:
    parts = {"n_train": group["n_train"].mean(), "n_test": group["n_test"].mean(), "level": level}
    neuron, layer = group["test_accuracy_neuron"].to_numpy(), group["test_accuracy_layer"].to_numpy()
    ends = {"neuron": accuracy_interval(neuron, **parts), "layer": accuracy_interval(layer, **parts)}
    ends["difference"] = corrected_interval(layer - neuron, **parts)
    baseline = float(group["baseline"].mean())
    facts: dict[str, object] = {**key, "unit": int(_most_frequent(group["unit"])), "n_seeds": len(group), "baseline": baseline}
    for name, values in (("neuron", neuron), ("layer", layer), ("difference", layer - neuron)):
        facts |= {_MEANS[name]: float(values.mean()), f"{name}_low": float(ends[name][0]), f"{name}_high": float(ends[name][1])}
    return facts | {"where": _where(ends, baseline)}


def _most_frequent(units: pd.Series[float]) -> float:
    found = units.mode()
    return float(found.iloc[0]) if len(found) else np.nan


def _where(ends: dict[str, Interval], baseline: float) -> str:
    layer, neuron, difference = (float(ends[name][0]) for name in ("layer", "neuron", "difference"))  # the lower ends
    if max(layer, neuron) <= baseline:
        return "not found"
    if np.isnan(difference):  # one seed
        return "undecided"
    if difference > 0:
        return "direction" if neuron <= baseline else "several units"
    return "one unit" if neuron > baseline else "undecided"


def _tuple(key: object) -> tuple[str, ...]:
    return key if isinstance(key, tuple) else (str(key),)


# --- the blog's style

#: The blog's columns: which probe stands in each.
BLOG_COLUMNS = {
    "linear_gap": ("linear", "pooled"),
    "non_linear_gap": ("nonlinear", "pooled"),
    "non_linear_non_gap": ("nonlinear", "spatial"),
}


def blog_tables(table: pd.DataFrame) -> str:
    """Markdown: one table per concept and checkpoint; see `neuroprobe.ProbeReport.to_markdown`."""
    rows = table[table["scope"] == "layer"]
    wanted = {name: rows[(rows["kind"] == kind) & (rows["features"] == features)] for name, (kind, features) in BLOG_COLUMNS.items()}
    wanted = {name: part for name, part in wanted.items() if len(part)}
    if not wanted:
        names = ", ".join(f"{kind} on {features} features" for kind, features in BLOG_COLUMNS.values())
        raise InputError(f"Expected probes of the blog's kinds ({names}) in scope layer, but the report has none. Use style='rows'.")
    keys = [column for column in ("concept", "checkpoint") if column in table]
    summary = summarize_seeds(pd.concat(wanted, names=["column"]).reset_index("column").assign(probe=lambda t: t["column"]))
    several = "checkpoint" in table and table["checkpoint"].nunique() > 1
    blocks = [_blog_table(_tuple(key), part, list(wanted), several) for key, part in summary.groupby(keys, sort=False)]
    return "\n".join(blocks)


def _blog_table(key: tuple[str, ...], part: pd.DataFrame, columns: list[str], several: bool) -> str:
    layers = list(dict.fromkeys(part["layer"]))
    values = part.pivot(index="layer", columns="probe", values="test_accuracy").reindex(index=layers, columns=columns)
    shown = values.map(lambda value: "" if value != value else f"{value:.3f}")
    best = values.round(3).eq(values.round(3).max())
    marked = shown.where(~best, "**" + shown + "**")
    lines = ["| layer | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    lines += [f"| {markdown_cell(layer)} | " + " | ".join(marked.loc[layer]) + " |" for layer in layers]
    return (
        f"### {markdown_cell(key[0])}{f' at {markdown_cell(key[1])}' if several else ''}\n\n" + "\n".join(lines) + f"\n\n{_caption(part)}\n"
    )


def _caption(part: pd.DataFrame) -> str:
    half = float(((part["test_accuracy_high"] - part["test_accuracy_low"]) / 2).median())
    return (
        f"Test accuracy on {_numbers(part['n_test'])} held-out images that the probe was not trained on "
        f"({_numbers(part['n_train'])} to train; splits: {_numbers(part['n_seeds'])}). "
        f"Baseline {_numbers(part['baseline'], '.3f')}: the more frequent class. "
        f"95 % intervals reach about {half:.3f} to each side. Best of each column in bold."
    )


def _numbers(values: pd.Series[float], form: str = ".0f") -> str:
    low, high = f"{values.min():{form}}", f"{values.max():{form}}"
    return low if low == high else f"{low} to {high}"
