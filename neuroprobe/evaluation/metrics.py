"""Sanity tests of similarity functions: does a unit's score fall when the labels of its concept are made wrong?

A function by which labels are found or judged should like the true concept of a unit better than the same concept
with labels missing, and better than with wrong labels added.

References
----------
Oikarinen, Yan and Weng, "Evaluating Neuron Explanations: A Unified Framework with Sanity Checks", ICML 2025,
arXiv 2506.05774, section 4.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from neuroprobe._core import BoolArray, Floats, Unit, check_count, check_level, check_number, check_seed
from neuroprobe.concepts import ConceptSets, LabelTable, as_labels
from neuroprobe.evaluation.truth import Truth, check_recorded, true_concepts
from neuroprobe.exceptions import InputError
from neuroprobe.labeling import Similarity, get_similarity, list_similarities
from neuroprobe.recording import Activations
from neuroprobe.reports import LabelReport, Report, check_label_sites, labeled_units, share

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Change: TypeAlias = Callable[[BoolArray, np.random.Generator], BoolArray]


class MetricCheckReport(Report):
    """How often each similarity function notices wrong labels, as `check_metrics` finds it.

    Columns: metric, test ("missing labels" or "extra labels"), share (of the units, whose score falls), low, high (its
    interval), mean_change (of the score, in the function's range over the layer), n_units, status ("tested", or what
    the function refused).
    """

    name = "metric_check"
    title = "Similarity functions under wrong labels"
    required = ("metric", "test", "share", "low", "high", "mean_change", "n_units", "status")
    text_columns = ("metric", "test", "status")

    def summary(self) -> str:
        tested = self._table[self._table["status"] == "tested"]
        least = tested.groupby("metric", sort=False)["share"].min().sort_values(ascending=False, kind="stable")
        return f"share of units whose score falls, in the worse of {tested['test'].nunique()} tests: " + ", ".join(
            f"{metric} {value:.2f}" for metric, value in least.items()
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """The shares with their intervals."""
        from neuroprobe.reports import plot_quantities

        rows = self._table.rename(columns={"metric": "quantity", "test": "layer", "share": "value"})
        return plot_quantities(rows, title="share of units whose score falls", ax=ax)


def check_metrics(
    activations: Activations,
    given_labels: LabelTable,
    truth: Truth | LabelReport,
    *,
    metrics: Sequence[str | Similarity] | Mapping[str, str | Similarity] | None = None,
    parameters: Mapping[str, Mapping[str, Any]] | None = None,
    n_draws: int = 1,
    least_fall: float = 0.001,
    level: float = 0.95,
    seed: int = 0,
) -> MetricCheckReport:
    """Test similarity functions with concept labels of which half the positives are missing, or as many are added.

    A function passes for a unit if the score of its true concept falls by more than `least_fall` of the function's
    range, the range of its scores over all units and concepts and all three kinds of labels. What is drawn for a
    concept depends on the seed and its name.

    Parameters
    ----------
    activations : Activations
    given_labels : GivenLabels, DataFrame, mapping, or ConceptScores of given labels
        Which images show which concept, as in `neuroprobe.concepts.as_labels`.
    truth : mapping or LabelReport
        The concept of each unit, as in `evaluate_labels`; with several accepted names the first that is
        known counts. Of a report, the labels.
    metrics : sequence of names or functions, or mapping from name to either, optional
        By default all of `neuroprobe.labeling.list_similarities`. They are called as those are, with the labels as
        0.0 and 1.0 for the concept scores, and see whole layers and all concepts.
    parameters : mapping from a metric's name to its keyword arguments, optional
    n_draws : int, default 1
        Of wrong labels; a unit's score is the mean over them.
    least_fall : float, default 0.001
    level : float, default 0.95
    seed : int, default 0

    Returns
    -------
    MetricCheckReport
        Two rows per function. Concepts with fewer than two positives, or more positives than negatives, cannot be
        tested; their units are not counted.

    Raises
    ------
    InputError
        Labels that are not one per image, or no unit whose concept can be tested.

    References
    ----------
    Oikarinen, Yan and Weng 2025, section 4. As in the published code, the threshold is 0.001 of the range; here
    exactly half the positives are dropped, and exactly as many added, where it draws each image by itself.
    """
    check_level(level)
    check_recorded(activations)
    if not isinstance(parameters, Mapping | None):
        raise InputError(f"Expected `parameters` to map metrics' names to their arguments, but got {parameters!r:.60}.")
    check_seed(seed)
    check_count("n_draws", n_draws)
    check_number("least_fall", least_fall, low=0)
    names, matrix = _label_matrix(given_labels, activations.ids)
    units = _testable(_concept_columns(activations, truth, names), matrix)
    wrong = {test: [_changed(matrix, names, change, (seed, draw)) for draw in range(n_draws)] for test, change in _TESTS.items()}
    rows = []
    for metric, function in _chosen(metrics).items():
        called = partial(function, **(parameters or {}).get(metric, {}))
        try:
            changes = _changes(called, activations, units, {_RIGHT: [matrix], **wrong})
        except InputError as error:  # a function that takes no labels is a finding too; the others are still tested
            rows += [{"metric": metric, "test": test, "n_units": 0, "status": f"refused: {error}"} for test in _TESTS]
            continue
        for test, values in changes.items():
            fallen = share("share", values < -least_fall, level=level)
            facts = {"share": fallen["value"], "low": fallen["low"], "high": fallen["high"], "mean_change": values.mean()}
            rows.append({"metric": metric, "test": test, **facts, "n_units": len(units), "status": "tested"})
    metadata = {
        "n_draws": n_draws, "least_fall": least_fall, "level": level, "seed": seed,
        "parameters": {metric: dict(given) for metric, given in (parameters or {}).items()},
        "n_images": len(activations.ids), "n_concepts": len(names), "n_units": len(units), "activations": dict(activations.metadata),
    }  # fmt: skip
    return MetricCheckReport(pd.DataFrame(rows, columns=list(MetricCheckReport.required)), metadata)


def _drop_half(labels: BoolArray, generator: np.random.Generator) -> BoolArray:
    """The labels [n_images] without half of their positives (rounded down), at random."""
    positives = np.flatnonzero(labels)
    changed = labels.copy()
    changed[generator.choice(positives, size=len(positives) // 2, replace=False)] = False
    return changed


def _add_as_many(labels: BoolArray, generator: np.random.Generator) -> BoolArray:
    """The labels [n_images] with as many positives again, at random among the negatives."""
    negatives = np.flatnonzero(~labels)
    changed = labels.copy()
    changed[generator.choice(negatives, size=min(int(labels.sum()), len(negatives)), replace=False)] = True
    return changed


_RIGHT = "right labels"
_TESTS: dict[str, Change] = {"missing labels": _drop_half, "extra labels": _add_as_many}


def _changed(matrix: BoolArray, names: Sequence[str], change: Change, seeds: tuple[int, int]) -> BoolArray:
    columns = [
        change(column, np.random.default_rng((*seeds, zlib.crc32(name.encode(errors="surrogatepass")))))
        for name, column in zip(names, matrix.T, strict=True)
    ]
    return np.stack(columns, axis=1)  # [n_images, n_concepts]


def _label_matrix(given_labels: LabelTable, ids: Sequence[str]) -> tuple[list[str], BoolArray]:
    if isinstance(given_labels, ConceptSets):
        raise InputError("Expected labels of every image, but concept sets have only those of their own. Give a table.")
    labels = as_labels(given_labels, ids)
    return list(labels.concepts), labels.truth


def _concept_columns(activations: Activations, truth: Truth | LabelReport, names: Sequence[str]) -> dict[Unit, int]:
    columns = {name: column for column, name in enumerate(names)}
    if isinstance(truth, LabelReport):
        check_label_sites(truth, activations.sites)
    recorded = [(layer, unit) for layer in activations.layers for unit in range(activations[layer].shape[1])]
    given = {unit: (label,) for unit, label in labeled_units(truth).items()} if isinstance(truth, LabelReport) else truth
    accepted = true_concepts(given, recorded)
    known = {unit: [columns[name] for name in concepts if name in columns] for unit, concepts in accepted.items()}
    return {unit: found[0] for unit, found in known.items() if found}


def _testable(units: Mapping[Unit, int], matrix: BoolArray) -> dict[Unit, int]:
    n_positive = matrix.sum(axis=0)
    possible = (n_positive >= 2) & (2 * n_positive <= len(matrix))
    found = {unit: column for unit, column in units.items() if possible[column]}
    if not found:
        raise InputError(
            "Expected a unit whose concept has labels, at least two positives and no fewer negatives than positives, "
            f"but none of {len(units)} has."
        )
    return found


def _chosen(metrics: Sequence[str | Similarity] | Mapping[str, str | Similarity] | None) -> dict[str, Similarity]:
    if isinstance(metrics, Mapping):
        return {name: get_similarity(metric)[1] for name, metric in metrics.items()}
    if isinstance(metrics, str):
        metrics = [metrics]
    if not isinstance(metrics, Iterable | None):
        raise InputError(f"Expected `metrics` to be a list of names or functions, but got {metrics!r:.60}.")
    chosen = [get_similarity(metric) for metric in (list_similarities() if metrics is None else metrics)]
    if not chosen or len({name for name, _ in chosen}) < len(chosen):
        raise InputError(f"Expected metrics of different names, at least one, but got {[name for name, _ in chosen]}.")
    return dict(chosen)


def _changes(
    function: Similarity, activations: Activations, units: Mapping[Unit, int], labels: Mapping[str, Sequence[BoolArray]]
) -> dict[str, Floats]:
    """The change of every unit's score under each test, in the function's range; layer by layer, never two matrices at once."""
    changes: dict[str, list[Floats]] = {test: [] for test in _TESTS}
    for layer in dict.fromkeys(layer for layer, _ in units):
        rows, columns = np.array([(unit, column) for (owner, unit), column in units.items() if owner == layer]).T
        values = np.asarray(activations[layer], dtype=np.float32)
        scores, ends = {}, []
        for test, matrices in labels.items():
            own = []
            for matrix in matrices:
                alike = _checked(function(values, matrix.astype(np.float32)), (values.shape[1], matrix.shape[1]))
                own.append(alike[rows, columns])
                ends += [alike.min(), alike.max()]
            scores[test] = np.mean(own, axis=0)
        for test in _TESTS:
            changes[test].append((scores[test] - scores[_RIGHT]) / ((max(ends) - min(ends)) or 1.0))
    return {test: np.concatenate(parts) for test, parts in changes.items()}


def _checked(scores: npt.ArrayLike, shape: tuple[int, int]) -> Floats:
    found: Floats = np.asarray(scores, dtype=float)
    if found.shape != shape or not np.isfinite(found).all():
        raise InputError(f"Expected finite scores {shape}, but got {found.shape}, finite: {np.isfinite(found).all()}.")
    return found
