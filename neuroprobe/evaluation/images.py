"""Labels checked on held-out images: is a unit more active on images that show its label than on others?

CoSy asks that of images which a generator made for the label; here they are real ones whose concepts are known, so
that nothing has to be generated and no generator's idea of a concept comes between.

References
----------
Kopf et al., "CoSy: Evaluating Textual Explanations of Neurons", NeurIPS 2024, arXiv 2405.20331, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import norm

from neuroprobe._core import BoolArray, Floats, check_units
from neuroprobe.concepts import ConceptSets, LabelTable, shown_concepts
from neuroprobe.evaluation.truth import check_recorded
from neuroprobe.exceptions import InputError
from neuroprobe.recording import Activations
from neuroprobe.reports import (
    JudgmentReport,
    Labels,
    average,
    check_label_sites,
    check_labels,
    interval_options,
    labeled_units,
    layer_parts,
    metadata_of,
)
from neuroprobe.statistics import auroc, auroc_interval

_UNITS = 1024  # read at a time: a layer may be on disk, and larger than memory


class ImageCheckReport(JudgmentReport):
    """AUC and MAD of every labeled unit on held-out images, as `check_on_images` finds them; their means are in `overall`.

    Columns: layer, unit, concept, auc, auc_low, auc_high, mad, mad_low, mad_high, n_positive, n_control (images), status
    ("checked", or why not).
    """

    name = "image_check"
    title = "Labeled units on held-out images"
    required = ("layer", "unit", "concept", "auc", "auc_low", "auc_high", "mad", "mad_low", "mad_high", "n_positive", "n_control", "status")
    text_columns = ("layer", "concept", "status")


def check_on_images(
    labels: Labels,
    activations: Activations,
    given_labels: LabelTable | ConceptSets,
    *,
    level: float = 0.95,
    seed: int = 0,
    n_resamples: int = 1000,
    same_images: bool = False,
) -> ImageCheckReport:
    """Compare each unit on held-out images that show its label with it on images that do not.

    AUC is the probability that the unit is more active on an image of the first kind (0.5 by chance). MAD, the mean
    activation difference, is the difference of the means over the standard deviation on the control images. Intervals
    of a unit are over images (Newcombe's for AUC, the delta method for MAD), those of the means over units.

    Parameters
    ----------
    labels : LabelReport, or mapping from (layer, unit) to a concept
    activations : Activations
        Of images that the labels were not made from.
    given_labels : GivenLabels, DataFrame, mapping, ConceptScores of given labels, or ConceptSets
        Which image shows which concept, as in `neuroprobe.concepts.as_labels`. Of concept sets, positives are compared with negatives.
    level : float, default 0.95
    seed : int, default 0
        Of the bootstrap over units.
    n_resamples : int, default 1000
    same_images : bool, default False
        Also accept the very images the labels were made from, on which they flatter themselves.

    Returns
    -------
    ImageCheckReport
        A unit whose label nobody knows the images of, or that has fewer than two of either kind, is not checked, and
        its status says why. MAD is NaN for a unit that is the same on every control image.

    Raises
    ------
    InputError
        The images are those of the labels, labels are of units of another site, no unit can be checked, or `given_labels` does not
        fit the images.

    References
    ----------
    Kopf et al. 2024, section 3: AUC and MAD.
    """
    given = interval_options(level, seed, n_resamples)
    if not isinstance(labels, Mapping):
        check_labels(labels, "a LabelReport, or a mapping from units to concepts,")
    check_recorded(activations)
    check_label_sites(labels, activations.sites)
    if not same_images:
        _check_held_out(labels, activations)
    known = shown_concepts(given_labels, activations.ids)
    named = labeled_units(labels)
    layers = {layer: {unit: label for (owner, unit), label in named.items() if owner == layer} for layer, _ in named}
    checked = [row for layer, units in layers.items() for row in _layer_rows(activations[layer], layer, units, known, level)]
    rows = {(row["layer"], row["unit"]): row for row in checked}
    table = pd.DataFrame([rows[unit] for unit in named], columns=list(ImageCheckReport.required))
    if not (table["status"] == "checked").any():
        raise InputError(f"Expected images that show, and do not show, the label of some unit, but {_why_not(table)}")
    metadata = {**given, "n_images": len(activations.ids), "activations": dict(activations.metadata), "labels": metadata_of(labels)}
    return ImageCheckReport(table, metadata, overall=_overall(table, given))


def mean_activation_difference(
    activations: npt.ArrayLike, positives: npt.ArrayLike, *, level: float = 0.95
) -> tuple[Floats, Floats, Floats]:
    """CoSy's MAD of units, with its interval.

    (mean over positives - mean over control) / standard deviation over control (n - 1 in its denominator).

    Parameters
    ----------
    activations : array, [n_images, n_units]
    positives : array of bool, [n_images]
        The others are the control.
    level : float, default 0.95

    Returns
    -------
    mad, low, high : ndarray, [n_units]
        NaN for a unit that is the same on every control image. The interval is the delta method's: it counts the
        spread of both means and of the control's standard deviation, whatever their distribution.
    """
    values, positives = np.asarray(activations, dtype=float), np.asarray(positives, dtype=bool)
    ours, control = values[positives], values[~positives]
    spread = control.std(axis=0, ddof=1)
    spread = np.where(spread > 0, spread, np.nan)
    mad = (ours.mean(axis=0) - control.mean(axis=0)) / spread
    standard = (control - control.mean(axis=0)) / spread
    # how much one control image moves MAD, through the mean and through the standard deviation
    influence = -standard - mad / 2 * (standard**2 - 1)
    variance = (ours.std(axis=0, ddof=1) / spread) ** 2 / len(ours) + influence.var(axis=0, ddof=1) / len(control)
    half = float(norm.ppf((1 + level) / 2)) * np.sqrt(variance)
    return mad, mad - half, mad + half


def _layer_rows(
    values: npt.NDArray[np.float32], layer: str, units: Mapping[int, str], known: Mapping[str, tuple[BoolArray, BoolArray]], level: float
) -> list[dict[str, Any]]:
    check_units(layer, list(units), values.shape[1])
    rows = []
    for start in range(0, values.shape[1], _UNITS):
        block = np.asarray(values[:, start : start + _UNITS])
        here = {unit: label for unit, label in units.items() if start <= unit < start + _UNITS}
        for concept in dict.fromkeys(here.values()):
            members = [unit for unit, label in here.items() if label == concept]
            chosen = block[:, [unit - start for unit in members]]
            rows += _concept_rows(chosen, layer, members, concept, known.get(concept), level)
    return rows


def _concept_rows(
    values: npt.NDArray[np.float32], layer: str, units: list[int], concept: str, masks: tuple[BoolArray, BoolArray] | None, level: float
) -> list[dict[str, Any]]:
    """Units of one label share its images: one sweep for all of them."""
    positives, control = masks or (np.zeros(len(values), dtype=bool),) * 2
    n_positive, n_control = int(positives.sum()), int(control.sum())
    common: dict[str, Any] = {"layer": layer, "concept": concept, "n_positive": n_positive, "n_control": n_control}
    status = "checked" if min(n_positive, n_control) >= 2 else "concept not known" if masks is None else "too few images"
    if status != "checked":
        return [{**common, "unit": unit, "status": status} for unit in units]
    rows = positives | control
    chosen, targets = values[rows].astype(float), positives[rows]
    area = auroc(chosen.T, targets)
    low, high = auroc_interval(area, n_positive, n_control, level=level)
    mad = mean_activation_difference(chosen, targets, level=level)
    columns = zip(units, area, low, high, *mad, strict=True)
    names = ("unit", "auc", "auc_low", "auc_high", "mad", "mad_low", "mad_high")
    return [{**common, **dict(zip(names, values, strict=True)), "status": status} for values in columns]


def _overall(table: pd.DataFrame, given: Mapping[str, Any]) -> list[dict[str, Any]]:
    checked = table[table["status"] == "checked"]
    return [average(f"mean_{c}", part[c], layer=layer, **given) for layer, part in layer_parts(checked).items() for c in ("auc", "mad")]


def _check_held_out(labels: Labels, activations: Activations) -> None:
    facts = metadata_of(labels).get("activations", {})
    ours = facts.get("images", math.nan) if isinstance(facts, Mapping) else math.nan
    if ours == activations.metadata.get("images"):
        raise InputError(
            "Expected images that the labels were not made from, but these are the same. Record others, or pass same_images=True "
            "and say so where you report the result."
        )


def _why_not(table: pd.DataFrame) -> str:
    if table.empty:
        return "no unit has a label."
    few = table["status"].value_counts().to_dict()
    named = ", ".join(repr(concept) for concept in dict.fromkeys(table["concept"]) if concept)[:200]
    return f"of the units, {few}; their labels: {named}."
