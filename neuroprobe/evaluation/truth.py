"""Labels against known truth: the quantities of CLIP-Dissect's Tables 1 to 3, each with its interval.

References
----------
Oikarinen and Weng, "CLIP-Dissect: Automatic Description of Neuron Representations in Deep Vision Networks",
ICLR 2023, arXiv 2204.10965.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from neuroprobe._core import Floats, Unit, check_unit
from neuroprobe.concepts import TextEncoder, text_vectors
from neuroprobe.exceptions import InputError, UnknownNameError, shown, suggest
from neuroprobe.recording import Activations
from neuroprobe.reports import JudgmentReport, LabelReport, average, check_labels, interval_options, layer_parts, quantity, share, units_of
from neuroprobe.statistics import auroc, auroc_interval

Names: TypeAlias = "str | Iterable[str] | None"

#: The true concept of units, of either kind: from (layer, unit) to the concept; or from layer to the concepts of its units, as a list by
#: unit or as a mapping from unit. A concept is a name, or several that are all accepted; "" (or no names) is that of a unit that has
#: none, and is right to have no label.
Truth: TypeAlias = "Mapping[Unit, Names] | Mapping[str, Sequence[Names]] | Mapping[str, Mapping[int, Names]]"

#: All similarities of a layer, [n_units, n_concepts]: by layer, or by a function that makes them when they are needed.
Similarities: TypeAlias = "Mapping[str, Any] | Callable[[str], Any]"

#: Columns of a `LabelReport` that say how sure a label is, and whether more is surer.
_CONFIDENCES = {"score": 1, "margin": 1, "q_value": -1, "stability": 1}
_KEPT = 5
_SEPARATOR = " | "


class EvaluationReport(JudgmentReport):
    """How right labels are, as `evaluate_labels` finds it; the quantities are in `overall`.

    Columns: layer, unit, truth (the accepted names), concept (the label, "" without one), score, right, right_in_top
    (the true concept is among the five best of a unit with a label), rank (of the true concept, inf where it is beyond those ranked), and a
    column per encoder with the cosine of label and truth.
    """

    name = "evaluation"
    title = "Labels against known truth"
    required = ("layer", "unit", "truth", "concept", "score", "right", "right_in_top", "rank")
    text_columns = ("layer", "truth", "concept")


def evaluate_labels(
    labels: LabelReport,
    truth: Truth,
    *,
    encoder: TextEncoder | Mapping[str, TextEncoder] | None = None,
    similarities: Similarities | None = None,
    concepts: Sequence[str] | None = None,
    level: float = 0.95,
    seed: int = 0,
    n_resamples: int = 1000,
) -> EvaluationReport:
    """Compare labels with the truth about their units.

    Only units whose truth is given are judged. One without a label counts as wrong, and `named` says how many have
    one. A unit whose truth is "" has no concept; it counts only in `named_without_concept`.

    Quantities, over all layers and, with several, in each:

    - named, top_1, top_5 (or the number kept), top_1_of_named: shares, with Wilson's interval;
    - mean_rank, median_rank of the true concept, 1 the best, ties in their middle, with a bootstrap interval over
      units. A unit whose label was withheld is ranked by its candidates. Without `similarities` only the concepts kept
      are ranked: a true concept beyond them has no rank, `rank_beyond` is the share of such units, the mean is replaced
      by mean_rank_at_least (as if the first place beyond were theirs), and the median is inf where half are beyond;
    - auroc_of_score, and of margin, q_value (the smaller, the surer) and stability where the report has them: how well
      it tells right labels from wrong ones among the units named, with Newcombe's interval;
    - cosine of label and truth in the encoder, the best of the accepted names, over the units named, with a bootstrap
      interval over units.

    Parameters
    ----------
    labels : LabelReport
    truth : mapping
        From (layer, unit) to the unit's true concept; or from layer to the true concepts of its units, as a list by unit or as a
        mapping from unit. A true concept is a name, or several names that are all accepted. "" (or no names) says that the unit
        has no concept, and is right to have no label.
    encoder : encoder of texts, or mapping from name to encoder, optional
        Anything with ``encode_texts``; texts are embedded as they are, without a template.
    similarities : mapping or callable, optional
        [n_units, n_concepts] by layer, for ranks beyond the concepts kept. Units without any finite value (dead ones)
        get the middle rank.
    concepts : sequence of str, optional
        The names of the columns of `similarities`.
    level : float, default 0.95
        Of the intervals.
    seed : int, default 0
        Of the bootstrap.
    n_resamples : int, default 1000

    Returns
    -------
    EvaluationReport

    Raises
    ------
    InputError
        No truth about any unit of the report, or similarities that do not fit the concepts.
    UnknownNameError
        Truth about a layer that is not in the report.

    References
    ----------
    CLIP-Dissect, ICLR 2023, section 4 and Tables 1 to 3; Newcombe 2006 (see `neuroprobe.statistics.auroc_interval`).

    Examples
    --------
    >>> import pandas as pd
    >>> rows = {"layer": "fc", "unit": [0, 1], "concept": ["red", "blue"], "score": [2.0, 1.0], "status": "named"}
    >>> labels = LabelReport(pd.DataFrame(rows), {})
    >>> evaluate_labels(labels, {"fc": ["red", "green"]}).value("top_1")
    0.5
    """
    given = interval_options(level, seed, n_resamples)
    check_labels(labels)
    encoders = {} if encoder is None else dict(encoder) if isinstance(encoder, Mapping) else {"": encoder}
    table, n_ranked = _judged(labels.table, truth, encoders, similarities, concepts)
    top = min(_KEPT, 1 + len(_further_columns(labels.table)))
    overall = [row for layer, part in layer_parts(table).items() for row in _quantities(part, n_ranked, top, layer, given)]
    metadata = {
        **given,
        "n_ranked": n_ranked,
        "n_judged": len(table),
        "n_without_truth": len(labels) - len(table),
        "encoders": {name: str(getattr(e, "fingerprint", type(e).__name__)) for name, e in encoders.items()},
        "labels": labels.metadata,
    }
    return EvaluationReport(table.drop(columns=[c for c in table if c.startswith("_")]), metadata, overall=overall)


def _judged(
    labels: pd.DataFrame,
    truth: Truth,
    encoders: Mapping[str, TextEncoder],
    similarities: Similarities | None,
    concepts: Sequence[str] | None,
) -> tuple[pd.DataFrame, int]:
    """The rows of an `EvaluationReport` with the labels' confidences (as "_score", ...), and how many concepts were ranked."""
    units = units_of(labels)
    accepted = true_concepts(truth, units)
    rows = labels[[unit in accepted for unit in units]].reset_index(drop=True)
    names = [accepted[unit] for unit in units_of(rows)]
    candidates = _candidates(rows)
    table = pd.DataFrame({column: rows[column] for column in ("layer", "unit", "concept", "score")})
    table.insert(2, "truth", [_SEPARATOR.join(n) for n in names])
    table["right"] = [label in n if n else label == "" for label, n in zip(rows["concept"], names, strict=True)]
    in_top = [bool(set(c[:_KEPT]) & set(n)) for c, n in zip(candidates, names, strict=True)]
    table["right_in_top"] = np.asarray(in_top, dtype=bool) & (rows["concept"] != "").to_numpy()
    if similarities is None:
        table["rank"], n_ranked = [_rank_among(c, n) for c, n in zip(candidates, names, strict=True)], len(candidates[0])
    else:
        table["rank"], n_ranked = _ranks_in(similarities, _checked_concepts(concepts), rows, names), len(concepts or ())
    for name, encoder in encoders.items():
        table[f"cosine_{name}" if name else "cosine"] = cosines(encoder, rows["concept"].astype(str).tolist(), names)
    for column in _CONFIDENCES:
        if column in rows:
            table[f"_{column}"] = rows[column].to_numpy(dtype=float)
    return table, n_ranked


def _candidates(rows: pd.DataFrame) -> list[tuple[str, ...]]:
    """The best concepts of every unit, best first; for a unit whose label was withheld, its candidates."""
    first = rows["concept"].astype(str)
    if "candidate" in rows:
        first = first.where(first != "", rows["candidate"].astype(str))
    return list(zip(first, *(rows[column].astype(str) for column in _further_columns(rows)), strict=True))


def _further_columns(table: pd.DataFrame) -> list[str]:
    return [column for column in (f"concept_{rank}" for rank in range(2, len(table.columns) + 2)) if column in table]


def _rank_among(candidates: Sequence[str], names: Sequence[str]) -> float:
    return next((float(place) for place, concept in enumerate(candidates, start=1) if concept in names), math.inf)


def _checked_concepts(concepts: Sequence[str] | None) -> dict[str, int]:
    if concepts is None or isinstance(concepts, str) or len(set(concepts)) < len(concepts):
        raise InputError(f"Expected `concepts`, the names of the columns of `similarities`, each once, but got {concepts!r:.80}.")
    return {name: column for column, name in enumerate(concepts)}


def _ranks_in(similarities: Similarities, columns: Mapping[str, int], rows: pd.DataFrame, names: Sequence[Sequence[str]]) -> Floats:
    ranks = np.full(len(rows), math.inf)
    for layer in dict.fromkeys(rows["layer"]):
        matrix = _layer_similarities(similarities, layer, len(columns))
        for i in (int(place) for place in np.flatnonzero(rows["layer"] == layer)):
            unit = int(rows["unit"].iloc[i])
            if unit >= len(matrix):
                raise InputError(f"Expected similarities of every unit of {layer!r}, but got {len(matrix)} rows and unit {unit} is judged.")
            known = [columns[name] for name in names[i] if name in columns]
            ranks[i] = min((_rank_of(matrix[unit], column) for column in known), default=math.inf)
    return ranks


def _layer_similarities(similarities: Similarities, layer: str, n_concepts: int) -> Floats:
    if not callable(similarities) and layer not in similarities:
        raise UnknownNameError(f"Expected similarities of {layer!r}, whose units are judged, but got those of {list(similarities)}.")
    matrix = np.asarray(similarities(layer) if callable(similarities) else similarities[layer], dtype=float)
    if matrix.ndim != 2 or matrix.shape[1] != n_concepts:
        raise InputError(f"Expected the similarities of {layer!r} to be [n_units, {n_concepts}], but got {matrix.shape}.")
    return matrix


def _rank_of(scores: Floats, column: int) -> float:
    """1 for the highest; equal ones share the middle of their places, so that a row of equal scores ranks nothing first."""
    scores = np.where(np.isnan(scores), -np.inf, scores)
    greater, equal = int((scores > scores[column]).sum()), int((scores == scores[column]).sum())
    return greater + (equal + 1) / 2


def _quantities(table: pd.DataFrame, n_ranked: int, top: int, layer: str, given: Mapping[str, Any]) -> list[dict[str, Any]]:
    level = float(given["level"])
    nameable, rest = table[table["truth"] != ""], table[table["truth"] == ""]
    named = nameable["concept"] != ""
    rows = [
        share("named", named, level=level, layer=layer),
        share("top_1", nameable["right"], level=level, layer=layer),
        share(f"top_{top}", nameable["right_in_top"], level=level, layer=layer),
        share("top_1_of_named", nameable.loc[named, "right"], level=level, layer=layer),
        *_rank_quantities(nameable["rank"].to_numpy(dtype=float), n_ranked, layer, given),
        *(_confidence(nameable[named], column, level, layer) for column in _CONFIDENCES if f"_{column}" in table),
        *(average(c, nameable[c], layer=layer, **given) for c in table if c.startswith("cosine")),
    ]
    return [*rows, share("named_without_concept", rest["concept"] != "", level=level, layer=layer)] if len(rest) else rows


def _rank_quantities(ranks: Floats, n_ranked: int, layer: str, given: Mapping[str, Any]) -> list[dict[str, Any]]:
    beyond = np.isinf(ranks)
    mean = average("mean_rank", ranks, layer=layer, **given)
    if beyond.any():
        mean = average("mean_rank_at_least", np.where(beyond, n_ranked + 1, ranks), layer=layer, **given)
    median = average("median_rank", ranks, statistic=_median, layer=layer, **given)
    return [mean, median, *([share("rank_beyond", beyond, level=given["level"], layer=layer)] if beyond.any() else [])]


def _median(ranks: npt.NDArray[Any], axis: int = 0) -> Any:
    """numpy's median also takes the difference of the two in the middle, which two infinite ranks do not have."""
    ordered = np.sort(ranks, axis=axis)
    n = ordered.shape[axis]
    return (ordered.take((n - 1) // 2, axis=axis) + ordered.take(n // 2, axis=axis)) / 2


def _confidence(named: pd.DataFrame, column: str, level: float, layer: str) -> dict[str, Any]:
    values, right = named[f"_{column}"].to_numpy(dtype=float) * _CONFIDENCES[column], named["right"].to_numpy(dtype=bool)
    finite = np.isfinite(values)
    values, right = values[finite], right[finite]
    name, n_right = f"auroc_of_{column}", int(right.sum())
    if n_right in (0, len(right)):  # nothing to tell apart
        return quantity(name, math.nan, n=len(right), layer=layer)
    area = float(auroc(values, right))
    low, high = auroc_interval(area, n_right, len(right) - n_right, level=level)
    return quantity(name, area, interval=(low, high), n=len(right), layer=layer)


def check_recorded(activations: Any) -> None:
    """Raise `InputError` unless these are activations."""
    if not isinstance(activations, Activations):
        raise InputError(f"Expected recorded activations, of which every value is needed, but got {shown(activations)}.")


def cosines(encoder: TextEncoder, labels: Sequence[str], names: Sequence[Sequence[str]]) -> Floats:
    """The cosine of each label and the nearest of its names, [n_labels]; NaN without a label or a name."""
    vectors = text_vectors(encoder, [*labels, *(name for n in names for name in n)])
    best = [max((float(vectors[label] @ vectors[name]) for name in n), default=math.nan) if label else math.nan
            for label, n in zip(labels, names, strict=True)]  # fmt: skip
    return np.asarray(best)


def true_concepts(truth: Truth, units: Iterable[Unit]) -> dict[Unit, tuple[str, ...]]:
    """The accepted names of those of `units` whose truth is given; () for a unit that is known to have no concept.

    Raises
    ------
    InputError
        Not a mapping, a truth that is no name and no names, a list shorter than its layer, or truth of none of these units.
    UnknownNameError
        A layer that none of these units is in.
    """
    units = list(units)
    given = _by_unit(truth)
    layers = list(dict.fromkeys(layer for layer, _ in units))
    for layer in dict.fromkeys(layer for layer, _ in given):
        if layer not in layers:
            raise UnknownNameError(f"Expected the truth about units of the report's layers, but got {layer!r}. {suggest(layer, layers)}")
    _check_lists(truth, units)
    found = {unit: given[unit] for unit in units if unit in given}
    if not found:
        raise InputError(f"Expected the truth about at least one of the {len(units)} units, but got it about none of them.")
    return found


def _check_lists(truth: Truth, units: Iterable[Unit]) -> None:
    """A list that is too short may be several names of one concept, or in another order than that of the units."""
    for layer, unit in units:
        listed = truth.get(layer)  # type: ignore[call-overload]
        if isinstance(listed, Sized) and not isinstance(listed, (str, Mapping)) and unit >= len(listed):
            raise InputError(
                f"Expected the truth about {layer!r} as a list with a concept, or several, of every unit, but it has {len(listed)} and "
                f"there is a unit {unit}. Of some units only, give {{({layer!r}, unit): concept}}."
            )


def _by_unit(truth: Truth) -> dict[Unit, tuple[str, ...]]:
    if not isinstance(truth, Mapping):
        raise InputError(f"Expected the truth as a mapping from (layer, unit) to a concept, but got {shown(truth)}.")
    given: dict[Unit, tuple[str, ...]] = {}
    for key, value in truth.items():
        if isinstance(key, str) and isinstance(value, Mapping):
            given.update({_unit(key, unit): _names(v, key, unit) for unit, v in value.items()})
        elif isinstance(key, str) and isinstance(value, Iterable) and not isinstance(value, str):
            given.update({(key, unit): _names(v, key, unit) for unit, v in enumerate(value)})
        elif isinstance(key, tuple) and len(key) == 2 and isinstance(key[0], str):
            given[_unit(*key)] = _names(value, *key)
        else:
            raise InputError(
                f"Expected the truth as {{(layer, unit): concept}} or {{layer: [concept of unit 0, ...]}}, but got {key!r}: {value!r:.80}."
            )
    return given


def _unit(layer: str, unit: Any) -> Unit:
    check_unit(layer, unit)
    return layer, int(unit)


def _names(value: Any, layer: str, unit: int) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) or not isinstance(value, Iterable | None) else list(value or ())
    if not all(isinstance(name, str) for name in names):
        raise InputError(f"Expected a concept's name, or several, as the truth about unit {unit} of {layer!r}, but got {value!r:.80}.")
    return tuple(str(name) for name in names if name)
