"""Figures of probes, in matplotlib; what they show and take is told by the methods of `ProbeReport` that have the same names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm, to_rgb
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D

from neuroprobe._core import axes_or_new, check_share, layer_ticks, shortened
from neuroprobe.exceptions import InputError, suggest
from neuroprobe.reports._probe_tables import summarize_seeds

_BASELINE = "baseline: the more frequent class"

#: More layers than this are not all named.
_MOST_TICKS = 20

#: The colors' scale reaches at least so far from the baseline: what is only noise stays pale.
_LEAST_SCALE = 0.1

#: Inches that a name takes in a legend.
_LEGEND_COLUMN = 2.5

#: More checkpoints than this are not all named in a legend.
_MOST_NAMED = 10


def plot_mean_layers(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """A color per probe, darker for later checkpoints."""
    regression = not table["test_accuracy"].notna().any() and "r2" in table
    summary = summarize_seeds(table if regression else _scored(table))
    layers, checkpoints, probes = _unique(summary, "layer"), _unique(summary, "checkpoint"), _probes(summary)
    if regression:
        summary = summary.assign(test_accuracy=summary["r2"], test_accuracy_low=np.nan, test_accuracy_high=np.nan, baseline=0.0)
    shades = np.linspace(0.3 if len(checkpoints) > 1 else 1, 1, len(checkpoints))
    ax = axes_or_new(ax, 3.5 + 0.38 * len(layers), 4.6)
    for checkpoint, shade in zip(checkpoints, shades, strict=True):
        part = summary[_is(summary, "checkpoint", checkpoint)]
        for i, (scope, kind, features) in enumerate(probes):
            rows = part[(part["scope"] == scope) & (part["kind"] == kind) & (part["features"] == features)]
            means = rows.groupby("layer")[["test_accuracy", "test_accuracy_low", "test_accuracy_high"]].mean().reindex(layers)
            label = _probe_name(scope, kind, features) + (f", {shortened(checkpoint)}" if len(checkpoints) > 1 else "")
            _line(ax, means, color=_shaded(f"C{i % 10}", shade), label=label, band=len(checkpoints) < 3)
    ax.axhline(float(summary["baseline"].mean()), color="gray", linewidth=1, label=_BASELINE)
    layer_ticks(ax, layers)
    ax.set_ylabel("R2 on held-out images" if regression else "accuracy on held-out images")
    n_concepts = summary["concept"].nunique()
    ax.set_title(f"Mean over {n_concepts} concepts" if n_concepts > 1 else shortened(summary["concept"].iloc[0]))
    handles = _handles(probes, "baseline: the mean" if regression else _BASELINE) + [
        Line2D([], [], color=_shaded("black", shade), label=shortened(name)) for name, shade in _few(checkpoints, shades)
    ]
    ax.legend(handles=handles, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return ax


def plot_layers(table: pd.DataFrame, *, checkpoint: str | None = None, figure: FigureBase | None = None) -> FigureBase:
    """A panel per concept, a line per probe."""
    summary, checkpoint = _at_checkpoint(summarize_seeds(_scored(table)), checkpoint)
    layers, probes = _unique(summary, "layer"), _probes(summary)
    figure, panels = _panels(figure, summary, layers, height=1.9)
    for panel, part in panels:
        for color, (scope, kind, features) in enumerate(probes):
            rows = part[(part["scope"] == scope) & (part["kind"] == kind) & (part["features"] == features)]
            _line(panel, rows.set_index("layer").reindex(layers), color=f"C{color % 10}", label="", band=True)
        panel.axhline(float(part["baseline"].mean()), color="gray", linewidth=1)
        panel.set_xlim(-0.5, len(layers) - 0.5)
        panel.grid(axis="y", alpha=0.25)
    handles = _handles(probes)
    whole: Any = figure  # a figure and a subfigure both have a box and a resolution
    fitting = max(1, int(whole.bbox.width / whole.dpi / _LEGEND_COLUMN))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4, fitting), fontsize=8, frameon=False)
    figure.supylabel("accuracy on held-out images", fontsize=9)
    figure.suptitle(f"Where each concept is read{_said(checkpoint)}; bands: 95 % intervals", fontsize=11)
    return figure


def plot_what_where_when(
    table: pd.DataFrame, *, kind: str = "linear", features: str = "pooled", scope: str = "layer", figure: FigureBase | None = None
) -> FigureBase:
    """A panel per concept: layers across, checkpoints up."""
    chosen = table[(table["kind"] == kind) & (table["features"] == features) & (table["scope"] == scope)]
    if chosen.empty:
        there = "; ".join(sorted({_probe_name(*probe) for probe in _probes(table)}))
        raise InputError(f"Expected probes of this report but got {scope}, {kind}, {features}. It has: {there}.")
    summary = summarize_seeds(_scored(chosen))
    layers, checkpoints = _unique(summary, "layer"), _unique(summary, "checkpoint")
    figure, panels = _panels(figure, summary, layers, height=0.75 + 0.2 * len(checkpoints), margin=1.2)
    furthest = max(float(summary["above_baseline"].abs().max()), _LEAST_SCALE)
    norm = TwoSlopeNorm(0, -furthest, furthest)
    picture: Any = None
    for panel, part in panels:
        gain, *ends = (_grid(part, column, checkpoints, layers) for column in ("above_baseline", "test_accuracy_low", "baseline"))
        picture = panel.imshow(gain, cmap="RdBu_r", norm=norm, aspect="auto", origin="lower", interpolation="nearest")
        rows, columns = np.nonzero(ends[0] <= ends[1])
        panel.scatter(columns, rows, s=4, color="0.25", linewidths=0)
        panel.set_yticks(range(len(checkpoints)), [shortened(name, 18) for name in checkpoints], fontsize=8)
    bar = figure.colorbar(picture, ax=[panel for panel, _ in panels], label="accuracy above the baseline", pad=0.02)
    bar.ax.yaxis.label.set_fontsize(9)
    figure.suptitle(f"What is read where and when: {_probe_name(scope, kind, features)}\n(dot: not surely above the baseline)", fontsize=11)
    return figure


def plot_units(
    units: pd.DataFrame, *, checkpoint: str | None = None, kind: str = "linear", false_discovery_rate: float = 0.05,
    figure: FigureBase | None = None,
) -> FigureBase:  # fmt: skip
    """A panel per concept, a dot per unit."""
    check_share("false_discovery_rate", false_discovery_rate, zero=True, one=True)
    chosen = units[units["kind"] == kind]
    if chosen.empty:
        raise InputError(f"Expected a kind of probe that the units have, but got {kind!r}. {suggest(str(kind), _unique(units, 'kind'))}")
    summary, checkpoint = _at_checkpoint(chosen, checkpoint)
    score = "auroc" if "auroc" in summary and summary["auroc"].notna().any() else "test_accuracy"
    layers = _unique(summary, "layer")
    figure, panels = _panels(figure, summary, layers, height=1.9)
    for panel, part in panels:
        found = np.asarray(part["q_value"] <= false_discovery_rate) if "q_value" in part else np.zeros(len(part), dtype=bool)
        _scatter_units(panel, part, layers, score, found)
        panel.axhline(0.5 if score == "auroc" else float(part["baseline"].mean()), color="gray", linewidth=1)
        panel.set_xlim(-0.7, len(layers) - 0.3)
    figure.supylabel(f"{'AUROC' if score == 'auroc' else 'accuracy'} on held-out images", fontsize=9)
    colored = f"; in color: false discovery rate up to {false_discovery_rate:g}" if "q_value" in summary else ""
    figure.suptitle(f"Which units carry a concept{_said(checkpoint)}{colored}", fontsize=11)
    return figure


def _scatter_units(panel: Axes, part: pd.DataFrame, layers: list[str], score: str, found: np.ndarray) -> None:
    place = part["layer"].map({layer: i for i, layer in enumerate(layers)}).to_numpy(dtype=float)
    # units stand side by side within their layer, in their order
    within = part.groupby("layer")["unit"].transform(lambda u: (u.rank() - 0.5) / len(u) - 0.5).to_numpy(dtype=float)
    x, y = place + 0.7 * within, part[score].to_numpy()
    panel.scatter(x[~found], y[~found], s=3, color="0.75", linewidths=0, rasterized=True)
    panel.scatter(x[found], y[found], s=5, color="C3", linewidths=0, rasterized=True)
    best = [i for i in np.argsort(-y, kind="stable")[:3] if found[i] or "q_value" not in part]
    names = ", ".join(f"{shortened(part['layer'].iloc[i], 18)}:{int(part['unit'].iloc[i])}" for i in best)
    panel.scatter(x[best], y[best], s=28, facecolors="none", edgecolors="black", linewidths=0.8)
    counted = f": {found.sum()} of {len(part)}" if "q_value" in part else ""
    panel.set_title(shortened(part["concept"].iloc[0]) + counted, fontsize=10)
    panel.text(0.02, 0.97, names, transform=panel.transAxes, fontsize=7, va="top")
    panel.margins(y=0.12)


# --- what the figures share


def _scored(table: pd.DataFrame) -> pd.DataFrame:
    """Without the probes that have no accuracy, such as regressions."""
    rows = table[table["test_accuracy"].notna()]
    if rows.empty:
        raise InputError("Expected probes with a test accuracy, but the report has none.")
    return rows


def _unique(table: pd.DataFrame, column: str) -> list[str]:
    return list(dict.fromkeys(table[column])) if column in table else [""]


def _is(table: pd.DataFrame, column: str, value: str) -> Any:
    return table[column] == value if column in table else np.ones(len(table), dtype=bool)


def _probes(table: pd.DataFrame) -> list[tuple[str, str, str]]:
    return list(dict.fromkeys(zip(table["scope"], table["kind"], table["features"], strict=True)))


def _probe_name(scope: str, kind: str, features: str) -> str:
    whole = {"layer": "", "neuron": "best unit: ", "full": "all layers: "}
    return f"{whole.get(scope, scope + ': ')}{kind}, {features}"


def _at_checkpoint(summary: pd.DataFrame, checkpoint: str | None) -> tuple[pd.DataFrame, str]:
    known = _unique(summary, "checkpoint")
    checkpoint = known[-1] if checkpoint is None else checkpoint
    if checkpoint not in known:
        raise InputError(f"Expected a checkpoint of this report, but got {checkpoint!r}. It has: {', '.join(known)}.")
    return summary[_is(summary, "checkpoint", checkpoint)], checkpoint


def _said(checkpoint: str) -> str:
    return f" at {shortened(checkpoint)}" if checkpoint not in ("", "model") else ""


def _grid(part: pd.DataFrame, column: str, checkpoints: Sequence[str], layers: Sequence[str]) -> np.ndarray:
    """[n_checkpoints, n_layers]; NaN where there is no probe."""
    rows = part if "checkpoint" in part else part.assign(checkpoint="")
    grid = rows.pivot(index="checkpoint", columns="layer", values=column).reindex(index=checkpoints, columns=layers)
    return np.asarray(grid.to_numpy(dtype=float))


def _line(ax: Axes, rows: pd.DataFrame, *, color: Any, label: str, band: bool) -> None:
    x = np.arange(len(rows))
    ax.plot(x, rows["test_accuracy"], color=color, marker="o", markersize=2.5, linewidth=1.2, label=label)
    if band:
        low, high = (rows[f"test_accuracy_{end}"].to_numpy(dtype=float) for end in ("low", "high"))
        ax.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)


def _shaded(color: str, shade: float) -> tuple[float, float, float]:
    """A color mixed with white: all of it for 1."""
    red, green, blue = (1 - shade * (1 - part) for part in to_rgb(color))
    return red, green, blue


def _few(names: Sequence[str], shades: np.ndarray) -> list[tuple[str, float]]:
    """Names for a legend with their shades: none of one, all of a few, else the first and the last."""
    pairs = list(zip(names, shades.tolist(), strict=True))
    return pairs[1:1] if len(pairs) == 1 else pairs if len(pairs) <= _MOST_NAMED else [pairs[0], pairs[-1]]


def _handles(probes: Sequence[tuple[str, str, str]], baseline: str = _BASELINE) -> list[Line2D]:
    lines = [Line2D([], [], color=f"C{i % 10}", marker="o", markersize=3, label=_probe_name(*probe)) for i, probe in enumerate(probes)]
    return [*lines, Line2D([], [], color="gray", linewidth=1, label=baseline)]


def _panels(
    figure: FigureBase | None, summary: pd.DataFrame, layers: list[str], *, height: float, margin: float = 1.4
) -> tuple[FigureBase, list[tuple[Axes, pd.DataFrame]]]:
    """A figure with a panel per concept, three in a row, each with its rows; the axes' names stand only at the left and below."""
    concepts = _unique(summary, "concept")
    n_columns, step = min(len(concepts), 3), -(-len(layers) // _MOST_TICKS)
    n_rows = -(-len(concepts) // n_columns)
    if figure is None:
        width = margin + 0.17 * min(len(layers), 2 * _MOST_TICKS)
        figure = Figure(figsize=(max(n_columns * width + 1.2, 5.5), n_rows * height + 1.9), layout="constrained")
    grid = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    for empty in grid.ravel()[len(concepts) :]:
        empty.remove()
    panels = list(zip(grid.ravel(), (summary[summary["concept"] == concept] for concept in concepts), strict=False))
    for i, (panel, part) in enumerate(panels):
        panel.tick_params(labelbottom=i + n_columns >= len(concepts), labelleft=i % n_columns == 0, labelsize=8)
        panel.set_title(shortened(part["concept"].iloc[0]), fontsize=10)
        panel.set_xticks(range(0, len(layers), step), [shortened(layer, limit=24) for layer in layers[::step]], rotation=90, fontsize=7)
    return figure, panels
