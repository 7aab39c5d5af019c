"""Labels checked against what the network does with its units: its weights between layers, and the classes of images.

References
----------
Oikarinen and Weng, "CLIP-Dissect", ICLR 2023, arXiv 2204.10965: labels explain what the next layer reads from units.
Bau et al., "Network Dissection", CVPR 2017, arXiv 1704.05796: units with a name, and what later ones make of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy.stats import rankdata

from neuroprobe.activations import Activations
from neuroprobe.exceptions import InputError
from neuroprobe.image_checks import labeled_units
from neuroprobe.judgments import FloatArray, JudgmentReport, TextEncoder, Unit, average, check_level, quantity, share, text_vectors
from neuroprobe.report import LabelReport, versions
from neuroprobe.statistics import benjamini_hochberg, permutation_p_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Labels = LabelReport | Mapping[Unit, str]


class WeightReport(JudgmentReport):
    """Whether upper units read from lower units of like labels, as `compare_weights` finds it; the means are in `overall`.

    Columns: layer and unit (the upper one), concept, correlation (Spearman's, of weight and likeness of the labels, over the
    lower units), p_value, q_value, top_likeness (mean over the lower units with the greatest weights), other_likeness
    (over the rest), top_concepts (their labels, the greatest weight first).
    """

    name = "weights"
    title = "Weights against labels"
    required = ("layer", "unit", "concept", "correlation", "p_value", "q_value", "top_likeness", "other_likeness", "top_concepts")
    text_columns = ("layer", "concept", "top_concepts")

    def plot(self, ax: Axes | None = None) -> Axes:
        """For every upper unit, its top lower units' likeness against the others'."""
        from neuroprobe.judgment_plots import plot_pairs

        ax = plot_pairs(self._table, columns=("other_likeness", "top_likeness"), title=self.title, ax=ax)
        ax.axline((0, 0), slope=1, color="gray", linewidth=1)
        return ax


def compare_weights(
    labels: Labels,
    weights: npt.ArrayLike | torch.Tensor,
    *,
    upper: str,
    lower: str,
    encoder: TextEncoder,
    top: int = 5,
    n_permutations: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    n_resamples: int = 2000,
) -> WeightReport:
    """Do the lower units with the greatest weights into an upper unit have labels like its own?

    Likeness is the cosine of two labels in the encoder, less its mean over the upper units, so that a lower label that
    is like everything counts for nothing. Units without a label are left out.

    Parameters
    ----------
    labels : LabelReport, or mapping from (layer, unit) to a concept
        Of both layers.
    weights : array or Tensor, [n_upper, n_lower]
        Of the linear layer or 1x1 convolution ([n_upper, n_lower, 1, 1]) between the two, with nothing but pooling and
        a nonlinearity beside it. Multiply each column by its lower unit's standard deviation to compare contributions.
    upper, lower : str
        The two layers.
    encoder : encoder of texts
        Anything with ``encode_texts``.
    top : int, default 5
        Greatest weights taken as the top.
    n_permutations : int, default 1000
        Of the labels among the lower units.
    level : float, default 0.95
    seed : int, default 0
    n_resamples : int, default 2000
        Of the bootstrap over upper units.

    Returns
    -------
    WeightReport
        `overall`: mean_correlation and mean_gain (top less other likeness) with bootstrap intervals over upper units, and
        p_value of the mean correlation: the share of permutations with one at least as high.

    Raises
    ------
    InputError
        Weights that do not fit the labeled units, one without a value, or too few units with a label.
    """
    check_level(level, seed)
    _check_counts(top=top, n_permutations=n_permutations)
    matrix = _weight_matrix(weights)
    above, below = _labels_of(labels, upper, len(matrix)), _labels_of(labels, lower, matrix.shape[1])
    if len(above) < 2 or len(below) <= top:
        raise InputError(
            f"Expected labels of at least 2 units of {upper!r} and {top + 1} of {lower!r}, but got {len(above)} and {len(below)}."
        )
    matrix = matrix[np.ix_(list(above), list(below))]  # [n_upper, n_lower], only those with labels
    alike = _likeness(encoder, list(above.values()), list(below.values()))
    correlations, null = _rank_correlations(matrix, alike, n_permutations, seed)
    table = _weight_table(matrix, alike, above, below, top)
    p_values = permutation_p_value(correlations, null)
    table = table.assign(layer=upper, correlation=correlations, p_value=p_values, q_value=benjamini_hochberg(p_values))
    given: dict[str, Any] = {"level": level, "seed": seed, "n_resamples": n_resamples}
    overall = [
        average("mean_correlation", correlations, **given),
        average("mean_gain", table["top_likeness"] - table["other_likeness"], **given),
        quantity("p_value", float(permutation_p_value(np.nanmean(correlations), np.nanmean(null, axis=0))), n=n_permutations),
    ]
    metadata = {
        **given,
        "upper": upper,
        "lower": lower,
        "top": top,
        "n_permutations": n_permutations,
        "n_lower": len(below),
        **_facts(labels),
    }
    return WeightReport(table[list(WeightReport.required)], metadata, overall=overall)


class ClassReport(JudgmentReport):
    """How well classes are read from the labels of active units, as `classes_from_labels` finds it; accuracy is in `overall`.

    Columns: class, n_images, n_right, recall, low, high (its interval), n_predicted (images given this class).
    """

    name = "classes"
    title = "Classes from the labels of active units"
    required = ("class", "n_images", "n_right", "recall", "low", "high", "n_predicted")
    text_columns = ("class",)


def classes_from_labels(
    labels: Labels,
    activations: Activations,
    targets: Sequence[str],
    *,
    layer: str,
    encoder: TextEncoder,
    classes: Sequence[str] | None = None,
    top: int = 5,
    n_permutations: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> ClassReport:
    """Predict the class of every image from nothing but the labels of its most active units.

    Activations are standardized over the images, so that no unit is always among the most active; the labels of the top
    units are embedded, averaged, and less their mean over all images compared with the names of the classes.

    Parameters
    ----------
    labels : LabelReport, or mapping from (layer, unit) to a concept
    activations : Activations
    targets : sequence of str, [n_images]
        The class of each image, by name.
    layer : str
    encoder : encoder of texts
        Anything with ``encode_texts``.
    classes : sequence of str, optional
        Among which to choose; by default those that occur.
    top : int, default 5
        Units per image.
    n_permutations : int, default 200
        Of the labels among the units: what labels that say nothing of their units would reach.
    level : float, default 0.95
    seed : int, default 0

    Returns
    -------
    ClassReport
        `overall`: accuracy with Wilson's interval, chance (mean accuracy with permuted labels), most_frequent (the share
        of the most frequent class) and p_value (the share of permutations with an accuracy at least as high).

    Raises
    ------
    InputError
        Targets that are not one per image or not among the classes, fewer than two classes, or too few labeled units.
    """
    check_level(level, seed)
    _check_counts(top=top, n_permutations=n_permutations)
    names, truth = _class_numbers(targets, classes, len(activations.ids))
    values = np.asarray(activations[layer], dtype=float)
    units = _labels_of(labels, layer, values.shape[1])
    active, chosen = _most_active(values, list(units), top)
    own = [list(units.values())[i] for i in chosen]
    vectors = text_vectors(encoder, [*own, *names])
    described, wanted = np.stack([vectors[label] for label in own]), np.stack([vectors[name] for name in names])
    predicted = _nearest(active, described, wanted)
    generator = np.random.default_rng(seed)
    null = np.array(
        [(_nearest(active, described[generator.permutation(len(described))], wanted) == truth).mean() for _ in range(n_permutations)]
    )
    right = predicted == truth
    overall = [
        share("accuracy", right, level=level),
        quantity("chance", float(null.mean()), n=n_permutations),
        quantity("most_frequent", np.bincount(truth).max() / len(truth), n=len(truth)),
        quantity("p_value", float(permutation_p_value(right.mean(), null)), n=n_permutations),
    ]
    metadata = {"layer": layer, "top": top, "n_units": len(own), "n_permutations": n_permutations, "level": level, "seed": seed}
    metadata |= {"activations": dict(activations.metadata), **_facts(labels)}
    return ClassReport(_class_table(names, truth, predicted, level), metadata, overall=overall)


def _weight_matrix(weights: npt.ArrayLike | torch.Tensor) -> FloatArray:
    matrix = (weights.detach().cpu().double().numpy() if isinstance(weights, torch.Tensor) else np.asarray(weights)).astype(float)
    if matrix.ndim > 2 and matrix.shape[2:] == (1,) * (matrix.ndim - 2):
        matrix = matrix.reshape(matrix.shape[:2])
    if matrix.ndim != 2 or not np.isfinite(matrix).all():
        raise InputError(f"Expected finite weights [n_upper, n_lower], or of a 1x1 convolution, but got {matrix.shape}.")
    return matrix


def _labels_of(labels: Labels, layer: str, n_units: int) -> dict[int, str]:
    found = {unit: concept for (owner, unit), concept in labeled_units(labels).items() if owner == layer}
    if not found:
        raise InputError(f"Expected labels of units of {layer!r}, but there are none.")
    if max(found) >= n_units:
        raise InputError(
            f"Expected labels of the {n_units} units of {layer!r}, but got one of unit {max(found)}. Check the order of the axes."
        )
    return found


def _likeness(encoder: TextEncoder, above: Sequence[str], below: Sequence[str]) -> FloatArray:
    vectors = text_vectors(encoder, [*above, *below])
    cosines = np.stack([vectors[name] for name in above]) @ np.stack([vectors[name] for name in below]).T
    return cosines - cosines.mean(axis=0)  # type: ignore[no-any-return]  # [n_upper, n_lower]


def _rank_correlations(matrix: FloatArray, alike: FloatArray, n_permutations: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """Spearman's correlation along every row, [n_upper], and with the lower units permuted, [n_upper, n_permutations]."""
    ours, theirs = _standard_ranks(matrix), _standard_ranks(alike)
    generator = np.random.default_rng(seed)
    null = [np.einsum("ul,ul->u", ours, theirs[:, generator.permutation(ours.shape[1])]) for _ in range(n_permutations)]
    return np.einsum("ul,ul->u", ours, theirs), np.stack(null, axis=1)


def _standard_ranks(values: FloatArray) -> FloatArray:
    """Ranks along every row, ties in their middle, centered and of length 1; NaN for a row of equal values."""
    ranks = rankdata(values, axis=1)
    ranks = ranks - ranks.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(ranks, axis=1, keepdims=True)
    return ranks / np.where(lengths > 0, lengths, np.nan)  # type: ignore[no-any-return]


def _weight_table(matrix: FloatArray, alike: FloatArray, above: Mapping[int, str], below: Mapping[int, str], top: int) -> pd.DataFrame:
    names = np.asarray(list(below.values()), dtype=object)
    rows = []
    for (unit, concept), weights, likeness in zip(above.items(), matrix, alike, strict=True):
        order = np.argsort(-weights, kind="stable")
        best, rest = order[:top], order[top:]
        means = {"top_likeness": likeness[best].mean(), "other_likeness": likeness[rest].mean()}
        rows.append({"unit": unit, "concept": concept, **means, "top_concepts": ", ".join(names[best])})
    return pd.DataFrame(rows)


def _class_numbers(targets: Sequence[str], classes: Sequence[str] | None, n_images: int) -> tuple[list[str], npt.NDArray[np.int64]]:
    targets = [str(target) for target in targets]
    if len(targets) != n_images:
        raise InputError(f"Expected a class for each of the {n_images} images, but got {len(targets)}.")
    names = list(dict.fromkeys(targets if classes is None else (str(name) for name in classes)))
    unknown = sorted(set(targets) - set(names))
    if unknown or len(names) < 2 or not all(names):
        raise InputError(f"Expected targets among at least two classes with names, but got {unknown[:3] or names}.")
    numbers = {name: number for number, name in enumerate(names)}
    return names, np.array([numbers[target] for target in targets])


def _most_active(values: FloatArray, units: Sequence[int], top: int) -> tuple[npt.NDArray[np.int64], list[int]]:
    """The `top` most active of the units for each image, [n_images, top], as places in the list of those that vary, and that list."""
    spread = values[:, list(units)].std(axis=0)
    chosen = [place for place, deviation in enumerate(spread) if deviation > 0]
    if len(chosen) <= top:
        raise InputError(f"Expected more than {top} units with a label that vary over the images, but got {len(chosen)}. Lower `top`.")
    varying = values[:, [units[place] for place in chosen]]
    standard = (varying - varying.mean(axis=0)) / spread[chosen]
    return np.argsort(-standard, axis=1, kind="stable")[:, :top], chosen


def _nearest(active: npt.NDArray[np.int64], described: FloatArray, classes: FloatArray) -> npt.NDArray[np.int64]:
    pooled = sum(described[units] for units in active.T) / active.shape[1]  # [n_images, d]
    return np.asarray(np.argmax((pooled - pooled.mean(axis=0)) @ classes.T, axis=1))


def _class_table(names: Sequence[str], truth: npt.NDArray[Any], predicted: npt.NDArray[Any], level: float) -> pd.DataFrame:
    rows = []
    for number, name in enumerate(names):
        right = predicted[truth == number] == number
        recall = share("recall", right, level=level)
        rows.append(
            {"class": name, "n_images": len(right), "n_right": int(right.sum()), "recall": recall["value"], "low": recall["low"],
             "high": recall["high"], "n_predicted": int((predicted == number).sum())}
        )  # fmt: skip
    return pd.DataFrame(rows)


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"Expected `{name}` to be at least 1, but got {count}.")


def _facts(labels: Labels) -> dict[str, Any]:
    return {"labels": labels.metadata if isinstance(labels, LabelReport) else {}, "versions": versions()}
