"""Compositional labels: for every unit a logical formula over labeled concepts, such as "red and not striped".

It needs labels of the images. Without labels, `neuroprobe.dissect_pairs` scores pairs of words as texts of their own.

References
----------
Bykov et al., "Labeling Neural Representations with Inverse Recognition", NeurIPS 2023, arXiv 2311.13594.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from neuroprobe._core import check_count, check_counts, check_number, check_seed, check_share, fingerprint_bytes, fingerprint_texts
from neuroprobe.concepts import LabelTable, as_labels
from neuroprobe.exceptions import InputError, shown
from neuroprobe.labeling._figures import plot_two_scores
from neuroprobe.labeling._formula_search import Formula, FormulaSearch, Found, SearchNull, centered_ranks
from neuroprobe.recording import Activations, check_layers
from neuroprobe.reports import Report
from neuroprobe.statistics import benjamini_hochberg

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_UNITS = 256


class FormulaReport(Report):
    """A logical formula for every unit, as `neuroprobe.dissect_formulas` finds it.

    Columns: layer, unit, formula ("" for a unit without one), auc, positive_fraction (of the images, on which the
    formula is true), length (its terms), concept and concept_auc (the best formula of one term), status ("named", or
    why not), p_value and q_value (corrected for the search), p_single (Mann-Whitney of this formula as if it had been
    chosen beforehand, as published), candidate (the best formula, named or not).
    """

    name = "formulas"
    title = "Which combinations the units respond to"
    required = (
        "layer", "unit", "formula", "auc", "positive_fraction", "length", "concept", "concept_auc", "status", "p_value", "q_value",
        "p_single", "candidate",
    )  # fmt: skip
    text_columns = ("layer", "formula", "concept", "status", "candidate")

    def formula(self, layer: str, unit: int) -> Formula | None:
        """The formula of one unit; None if it has none.

        Raises
        ------
        InputError
            The report holds no such unit.
        """
        text = self._text_of(layer, unit, "formula")
        return Formula.parse(text) if text else None

    def summary(self) -> str:
        named = self._table[self._table["status"] == "named"]
        return (
            f"{len(named)} of {len(self._table)} units named, in {self._table['layer'].nunique()} layers; mean AUC "
            f"{named['auc'].mean():.3f}, of single concepts {named['concept_auc'].mean():.3f}"
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """AUC of every unit's formula against that of its best single concept."""
        names = ("AUC of the best single concept", "AUC of the formula")
        return plot_two_scores(self._table, "concept_auc", "auc", names=names, title=f"Formulas of {len(self._table)} units", ax=ax)


def dissect_formulas(
    activations: Activations,
    given_labels: LabelTable,
    *,
    concepts: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    max_length: int = 3,
    beam_width: int = 10,
    max_siblings: int | None = 3,
    tolerance: float = 0.005,
    min_fraction: float = 0.01,
    max_fraction: float = 0.5,
    n_null: int = 1000,
    seed: int = 0,
    false_discovery_rate: float = 0.05,
    device: str | torch.device = "auto",
) -> FormulaReport:
    """The logical formula over labeled concepts that every unit tells apart best, by its AUC.

    A beam search: the best concepts and negations first, then each of them joined by "and" or "or" to every concept
    and negation, and so on. Formulas true of too few or too many images are left out, also on the way to longer
    ones. Every unit of a layer is searched, independently of all others.

    The best of thousands of formulas has a high AUC on noise too, so the Mann-Whitney p-value of the formula
    found (`p_single`, the published one) means little. `p_value` is the share of random orders of the images, searched in
    the same way, whose best formula reaches the unit's AUC: (1 + their number) / (1 + n_null). It assumes only that
    images are exchangeable; with equal activations (zeros after a ReLU) it is conservative. For a unit beyond all
    random orders it is the number of possible formulas times a bound on the tail of the rank sum, where that is less.

    Parameters
    ----------
    activations : Activations
        One row per image (pooled).
    given_labels : GivenLabels, DataFrame (index: ids of images, columns: concepts), mapping, or array, [n_images, n_concepts]
        Booleans, as in `neuroprobe.concepts.as_labels`; an array is in the order of the activations.
    concepts : sequence of str, optional
        The columns of an array; of other kinds, those to search.
    layers : sequence of str, optional
        By default all that were recorded.
    max_length : int, default 3
        Terms of a formula, at most. With 1, single concepts and their negations.
    beam_width : int, default 10
        Formulas kept at every length.
    max_siblings : int or None, default 3
        How many of them may continue the same shorter formula by the same operator; None for any number, as published. A
        beam of variants of one formula loses "red or blue", which would lead to "(red or blue) and not striped".
    tolerance : float, default 0.005
        The shortest formula whose AUC is at most this much below that of the best is taken; 0 for the best, as published.
    min_fraction, max_fraction : float, default 0.01 and 0.5
        Of the images, on which a formula has to be true; within [0, 1].
    n_null : int, default 1000
        Random orders searched; 0 for none, and then every formula found is a name.
    seed : int, default 0
        Of the random orders.
    false_discovery_rate : float, default 0.05
        Units with a greater q-value (Benjamini-Hochberg over the layer's units that vary) get no name.
    device : str or torch.device, default "auto"
        Where the formulas of a beam are joined to the concepts.

    Returns
    -------
    FormulaReport

    Raises
    ------
    InputError
        Labels that are not all true or false or do not fit the images, names that are missing or equal, bounds that no concept
        keeps, or numbers out of range.
    UnknownNameError
        A layer that was not recorded.

    References
    ----------
    Bykov et al., NeurIPS 2023, section 3; the p-value corrected for the search is ours.
    """
    check_counts(max_length=max_length, beam_width=beam_width, max_siblings=1 if max_siblings is None else max_siblings)
    check_count("n_null", n_null, low=0)
    check_seed(seed)
    check_share("tolerance", tolerance, zero=True, one=True)
    check_share("max_fraction", max_fraction, one=True)
    check_number("min_fraction", min_fraction, low=0, high=max_fraction)
    check_share("false_discovery_rate", false_discovery_rate, zero=True, one=True)
    if not isinstance(activations, Activations):
        raise InputError(f"Expected recorded activations, all of which formulas need, but got {shown(activations)}. Use `record`.")
    labels = as_labels(given_labels, activations.ids, concepts=concepts)
    matrix, names = labels.truth, list(labels.concepts)
    chosen = check_layers(activations, layers)
    parameters: dict[str, Any] = {
        "max_length": max_length, "beam_width": beam_width, "max_siblings": max_siblings, "tolerance": tolerance,
        "fractions": (min_fraction, max_fraction),
    }  # fmt: skip
    search = FormulaSearch(matrix, names, device=device, **parameters)
    if not search.has_start:
        raise InputError(
            f"Expected a concept, or a negation, that is true of {min_fraction:.3g} to {max_fraction:.3g} of the {len(matrix)} images, "
            "but there is none to begin with. Widen `min_fraction` and `max_fraction`."
        )
    null = SearchNull(search, n=n_null, seed=seed)
    tables = [_layer_table(layer, activations[layer], search, null, false_discovery_rate) for layer in chosen]
    metadata = {
        **parameters,
        "n_null": n_null,
        "seed": seed,
        "false_discovery_rate": false_discovery_rate,
        "n_images": len(matrix),
        "concepts": fingerprint_texts(names),
        "n_concepts": len(names),
        "given_labels": fingerprint_bytes(np.packbits(matrix).tobytes()),
        "activations": dict(activations.metadata),
    }
    return FormulaReport(pd.concat(tables, ignore_index=True), metadata)


def _layer_table(
    layer: str, values: npt.NDArray[Any], search: FormulaSearch, null: SearchNull, false_discovery_rate: float
) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for start in range(0, values.shape[1], _UNITS):
        ranks = centered_ranks(values[:, start : start + _UNITS])
        live = np.flatnonzero(ranks.any(axis=0)).tolist()
        found = dict(zip(live, search.best(ranks[:, live]), strict=True)) if live else {}
        rows += [_row(ranks[:, i], found.get(i), null) for i in range(ranks.shape[1])]
    table = pd.DataFrame(rows, columns=[c for c in FormulaReport.required if c not in ("layer", "unit", "formula", "status", "q_value")])
    table["q_value"] = benjamini_hochberg(table["p_value"])
    table["status"] = "named"
    table.loc[table["q_value"] > false_discovery_rate, "status"] = "not significant"
    table.loc[table["auc"].isna(), "status"] = "never varies"
    table["formula"] = table["candidate"].where(table["status"] == "named", "")
    table["layer"], table["unit"] = layer, np.arange(len(table))
    return table[list(FormulaReport.required)]


def _row(ranks: npt.NDArray[np.float64], found: Found | None, null: SearchNull) -> dict[str, Any]:
    from scipy.stats import mannwhitneyu

    if found is None:
        return {"candidate": "", "concept": "", "length": 0}  # the rest is missing
    return {
        "candidate": str(found.formula),
        "auc": found.auc,
        "positive_fraction": found.mask.mean(),
        "length": len(found.formula),
        "concept": str(found.single),
        "concept_auc": found.single_auc,
        "p_value": null.p_value(found.auc, ranks, found.mask),
        "p_single": float(mannwhitneyu(ranks[found.mask], ranks[~found.mask]).pvalue),
    }
