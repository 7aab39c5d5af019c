"""ProbeReport: how well probes read concepts from layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neuroprobe.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class ProbeReport(Report):
    """How well probes read concepts from layers, as `neuroprobe.ProbingStudy` measures it.

    Columns: concept, checkpoint, layer, probe (its full name), scope, kind, features, seed, n_train, n_test,
    train_accuracy, test_accuracy (on the held-out part, which the probe has not seen) and baseline (the share of
    the more frequent class in that part).
    """

    name = "probes"
    title = "Which layers know a concept"
    required = (
        "concept", "layer", "scope", "kind", "features", "seed", "n_train", "n_test", "train_accuracy", "test_accuracy", "baseline",
    )  # fmt: skip
    text_columns = ("concept", "checkpoint", "layer", "probe", "scope", "kind", "features")

    def summary(self) -> str:
        columns = [c for c in ("concept", "layer", "checkpoint") if c in self._table]
        counts = ", ".join(f"{self._table[column].nunique()} {column}s" for column in columns)
        accuracy, baseline = self._table["test_accuracy"].mean(), self._table["baseline"].mean()
        return f"{len(self._table)} probes: {counts}; mean test accuracy {accuracy:.3f}, mean baseline {baseline:.3f}"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Mean test accuracy of every kind of probe along the layers, and the baseline."""
        from neuroprobe.plots import plot_layers

        return plot_layers(self._table, ax=ax)
