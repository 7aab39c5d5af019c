"""Two reports compared, and labels along checkpoints: which units changed their label, and when a unit got its last one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from neuroprobe._core import check_level
from neuroprobe.exceptions import InputError, UnknownNameError, shown, suggest
from neuroprobe.reports import JudgmentReport, LabelReport, check_labels, layer_parts, share, units_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: What a `LabelReport` may say about a label, next to it.
_FACTS = ("candidate", "score", "margin", "p_value", "q_value", "stability")
_CHANGES = ("same", "renamed", "gained", "lost", "unnamed")
_LABEL = "label at "
#: What a history keeps of every checkpoint, under these names.
_KEPT = {"concept": _LABEL, "score": "score at ", "q_value": "q_value at ", "stability": "stability at "}


class ComparisonReport(JudgmentReport):
    """Both labels of every unit of two reports, as `compare_reports` finds them; `overall` has the shares unchanged.

    Columns: layer, unit, concept_a, concept_b, change ("same", "renamed", "gained", "lost", or "unnamed" in both), status_a,
    status_b, and candidate, score, margin, p_value, q_value and stability of each (..._a, ..._b) where its report has them.
    """

    name = "comparison"
    title = "Labels compared"
    required = ("layer", "unit", "concept_a", "concept_b", "change")
    text_columns = ("layer", "change")
    text_prefixes = ("concept_", "status_", "candidate_")

    def changed(self) -> pd.DataFrame:
        """The units whose label is another one now: renamed, gained or lost."""
        return self._table[self._table["change"].isin(("renamed", "gained", "lost"))].reset_index(drop=True)

    def plot(self, ax: Axes | None = None) -> Axes:
        """What became of each layer's labels."""
        from neuroprobe.reports import plot_shares

        counts = pd.crosstab(self._table["layer"], self._table["change"], normalize="index")
        counts = counts.reindex(index=list(dict.fromkeys(self._table["layer"])), columns=list(_CHANGES), fill_value=0.0)
        return plot_shares(counts, title=f"{self.metadata['names'][0]} and {self.metadata['names'][1]}", ax=ax)


def compare_reports(
    a: LabelReport, b: LabelReport, *, names: tuple[str, str] = ("a", "b"), layers: Sequence[str] | None = None, level: float = 0.95
) -> ComparisonReport:
    """Compare the labels of the same units in two reports: two checkpoints, two models, two seeds.

    The share unchanged is over the units that have a label in at least one of the two; "both_named_same" is over those
    that have one in both. Intervals are Wilson's.

    Parameters
    ----------
    a, b : LabelReport
        Made with any columns a report may have; with the same vocabulary, similarity function and images, or the
        difference is not the units' alone. What differs stands in the metadata and the summary.
    names : two str, default ("a", "b")
        What the two are, for the figure and the metadata.
    layers : sequence of str, optional
        By default all that both have.
    level : float, default 0.95

    Returns
    -------
    ComparisonReport

    Raises
    ------
    InputError
        The reports have no unit in common.
    UnknownNameError
        A layer that one of them does not have.
    """
    check_level(level)
    if isinstance(names, str) or not isinstance(names, Sequence) or len(names) != 2:
        raise InputError(f"Expected `names` to be what the two reports are called, but got {names!r:.60}.")
    check_labels(a)
    check_labels(b)
    first, second = _chosen(a, layers, "_a"), _chosen(b, layers, "_b")
    table = first.merge(second, on=["layer", "unit"], how="inner", sort=False)
    if table.empty:
        raise InputError(
            f"Expected two reports with units in common, but got layers "
            f"{sorted(set(first['layer']))[:5]} and {sorted(set(second['layer']))[:5]}."
        )
    table["change"] = [_change(before, after) for before, after in zip(table["concept_a"], table["concept_b"], strict=True)]
    table = table[[*ComparisonReport.required, *(column for column in table if column not in ComparisonReport.required)]]
    metadata = {
        "names": list(names),
        "level": level,
        "differs": _differences(a.metadata, b.metadata),
        "n_only_in_a": len(first) - len(table),
        "n_only_in_b": len(second) - len(table),
        "a": a.metadata,
        "b": b.metadata,
    }
    overall = [row for layer, part in layer_parts(table).items() for row in _shares(part, layer, level)]
    return ComparisonReport(table, metadata, overall=overall)


class LabelHistoryReport(JudgmentReport):
    """The label of every unit at every checkpoint, as `labels_along` finds them.

    Columns: layer, unit, concept (the last label), stays_from (the first checkpoint from which it stays; "" for a unit
    without a last label), n_labels (how many different ones it had on the way), and "label at ...", "score at ...", and
    where the reports have them "q_value at ..." and "stability at ...", for every checkpoint.
    """

    name = "label_history"
    title = "Labels along checkpoints"
    required = ("layer", "unit", "concept", "stays_from", "n_labels")
    text_columns = ("layer", "concept", "stays_from")
    text_prefixes = (_LABEL,)

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """The checkpoints in their order."""
        return tuple(column.removeprefix(_LABEL) for column in self._table if column.startswith(_LABEL))

    def became(self, layer: str, unit: int) -> str | None:
        """Since which checkpoint the unit has had its last label without a break; None if it has none at last.

        Raises
        ------
        InputError
            The report holds no such unit.
        """
        return self._text_of(layer, unit, "stays_from") or None

    def plot(self, ax: Axes | None = None) -> Axes:
        """Which share of each layer's units already has its last label, among those with a last label."""
        from neuroprobe._core import axes_or_new, shortened

        named = self._table[self._table["concept"] != ""]
        order = {name: place for place, name in enumerate(self.checkpoints)}
        place = named["stays_from"].map(order)
        settled = pd.DataFrame({name: place <= at for name, at in order.items()}, dtype=float)
        lines = settled.groupby(named["layer"].to_numpy(), sort=False).mean()
        ax = axes_or_new(ax, 3.5 + 0.5 * len(order), 4.2)
        for layer, values in lines.iterrows():
            ax.plot(range(len(order)), values, marker="o", markersize=3, label=shortened(str(layer), 60))
        ax.set_xticks(range(len(order)), [shortened(name, 60) for name in order], rotation=90)
        ax.set(ylabel="share of units with their last label", title=self.title)
        if len(lines):
            ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
        return ax


def labels_along(reports: Mapping[str, LabelReport], *, level: float = 0.95) -> LabelHistoryReport:
    """Follow every unit's label along checkpoints: when did this unit become red?

    Parameters
    ----------
    reports : mapping from a checkpoint's name to its LabelReport
        In the order of the checkpoints; at least two, of the same units.
    level : float, default 0.95
        Of the intervals in `overall`: for every checkpoint, the share of the units with a last label that have it from
        there on.

    Returns
    -------
    LabelHistoryReport

    Raises
    ------
    InputError
        Fewer than two reports, or reports of different units.

    Examples
    --------
    >>> def labels(name):
    ...     return LabelReport(pd.DataFrame({"layer": "fc", "unit": [0], "concept": [name], "score": 1.0, "status": "named"}), {})
    >>> history = labels_along({"epoch 0": labels("blue"), "epoch 1": labels("red"), "epoch 2": labels("red")})
    >>> history.became("fc", 0)
    'epoch 1'
    """
    check_level(level)
    if not isinstance(reports, Mapping):
        raise InputError(f"Expected a mapping from checkpoints' names to their reports, but got {shown(reports)}.")
    for report in reports.values():
        check_labels(report, "a LabelReport for every checkpoint")
    tables = {name: report.table for name, report in reports.items()}
    if len(tables) < 2:
        raise InputError(f"Expected the reports of at least two checkpoints, but got {len(tables)}.")
    first = next(iter(tables.values()))
    units = units_of(first)
    aligned = {name: _aligned(table, units, name) for name, table in tables.items()}
    labels = np.array([table["concept"].astype(str) for table in aligned.values()], dtype=object)  # [n_checkpoints, n_units]
    since = _stays_from(labels)
    names = np.asarray([*tables, ""], dtype=object)
    table = pd.DataFrame({"layer": first["layer"], "unit": first["unit"], "concept": labels[-1]})
    table["stays_from"] = names[np.where(labels[-1] == "", -1, since)]
    table["n_labels"] = [len(set(column) - {""}) for column in labels.T]
    facts = {prefix + name: part[fact].to_numpy() for fact, prefix in _KEPT.items() for name, part in aligned.items() if fact in part}
    table = pd.concat([table, pd.DataFrame(facts)], axis=1)
    overall = [share(f"settled by {name}", since[labels[-1] != ""] <= place, level=level) for place, name in enumerate(tables)]
    metadata = {"level": level, "reports": {name: report.metadata for name, report in reports.items()}}
    return LabelHistoryReport(table, metadata, overall=overall)


def _stays_from(labels: Any) -> Any:
    """For every unit the first row from which its label is that of the last row: [n_checkpoints, n_units] -> [n_units]."""
    other = labels[::-1] != labels[-1]  # backward from the last checkpoint
    return len(labels) - np.where(other.any(axis=0), other.argmax(axis=0), len(labels))


def _aligned(table: pd.DataFrame, units: Sequence[tuple[str, int]], name: str) -> pd.DataFrame:
    own = units_of(table)
    if set(own) != set(units) or len(own) != len(units):
        raise InputError(
            f"Expected every report to hold the same {len(units)} units, but that of {name!r} differs. Choose layers and units alike."
        )
    places = {unit: place for place, unit in enumerate(own)}
    return table.iloc[[places[unit] for unit in units]].reset_index(drop=True)


def _chosen(report: LabelReport, layers: Sequence[str] | None, suffix: str) -> pd.DataFrame:
    table = report.table
    if layers is not None and (isinstance(layers, str) or not isinstance(layers, Iterable)):
        raise InputError(f"Expected `layers` to be a list of layers of both reports, but got {layers!r:.60}.")
    for layer in layers or ():
        if layer not in set(table["layer"]):
            raise UnknownNameError(f"Expected layers of both reports, but got {layer!r}. {suggest(layer, dict.fromkeys(table['layer']))}")
    rows = table if layers is None else table[table["layer"].isin(list(layers))]
    facts = ["concept", "status", *(column for column in _FACTS if column in rows)]
    return rows[["layer", "unit", *facts]].rename(columns={fact: fact + suffix for fact in facts})


def _change(before: str, after: str) -> str:
    if before == after:
        return "same" if before else "unnamed"
    return "renamed" if before and after else "gained" if after else "lost"


def _shares(table: pd.DataFrame, layer: str, level: float) -> list[dict[str, Any]]:
    change = table["change"]
    named, both = change != "unnamed", change.isin(("same", "renamed"))
    return [
        share("unchanged", change[named] == "same", level=level, layer=layer),
        share("both_named_same", change[both] == "same", level=level, layer=layer),
    ]


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """What beside the units' activations would change labels, and is not the same in both."""
    scores = [m.get("concept_scores", {}) if isinstance(m.get("concept_scores", {}), Mapping) else {} for m in (a, b)]
    differs = [key for key in ("similarity", "parameters") if a.get(key) != b.get(key)]
    return [*differs, *(key for key in ("encoder", "vocabulary", "images") if scores[0].get(key) != scores[1].get(key))]
