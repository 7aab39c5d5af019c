"""Labels checked against what the network does with its units: its weights between layers, and the classes of images.

References
----------
Oikarinen and Weng, "CLIP-Dissect", ICLR 2023, arXiv 2204.10965: labels explain what the next layer reads from units.
Bau et al., "Network Dissection", CVPR 2017, arXiv 1704.05796: units with a name, and what later ones make of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy.stats import rankdata

from neuroprobe._core import Floats, check_counts
from neuroprobe.concepts import TextEncoder, text_vectors
from neuroprobe.exceptions import InputError
from neuroprobe.reports import JudgmentReport, Labels, average, interval_options, labels_of_layer, metadata_of, quantity
from neuroprobe.statistics import benjamini_hochberg, permutation_p_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
        from neuroprobe._core import axes_or_new

        ax = axes_or_new(ax, 5, 4.2)
        ax.plot(self._table["other_likeness"], self._table["top_likeness"], linestyle="", marker="o", markersize=3, alpha=0.7)
        ax.axline((0, 0), slope=1, color="gray", linewidth=1)
        ax.set(xlabel="other_likeness", ylabel="top_likeness", title=self.title)
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
    n_resamples: int = 1000,
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
    n_resamples : int, default 1000
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
    given = interval_options(level, seed, n_resamples)
    check_counts(top=top, n_permutations=n_permutations)
    matrix = _weight_matrix(weights)
    above, below = labels_of_layer(labels, upper, len(matrix)), labels_of_layer(labels, lower, matrix.shape[1])
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
    overall = [
        average("mean_correlation", correlations, **given),
        average("mean_gain", table["top_likeness"] - table["other_likeness"], **given),
        quantity("p_value", float(permutation_p_value(np.nanmean(correlations), np.nanmean(null, axis=0))), n=n_permutations),
    ]
    metadata = {
        **given, "upper": upper, "lower": lower, "top": top, "n_permutations": n_permutations, "n_lower": len(below),
        "labels": metadata_of(labels),
    }  # fmt: skip
    return WeightReport(table[list(WeightReport.required)], metadata, overall=overall)


def _weight_matrix(weights: npt.ArrayLike | torch.Tensor) -> Floats:
    try:
        matrix = (weights.detach().cpu().double().numpy() if isinstance(weights, torch.Tensor) else np.asarray(weights)).astype(float)
    except (TypeError, ValueError) as error:
        raise InputError(f"Expected finite weights [n_upper, n_lower], but got {weights!r:.60}: {error}.") from error
    if matrix.ndim > 2 and matrix.shape[2:] == (1,) * (matrix.ndim - 2):
        matrix = matrix.reshape(matrix.shape[:2])
    if matrix.ndim != 2 or not np.isfinite(matrix).all():
        raise InputError(f"Expected finite weights [n_upper, n_lower], or of a 1x1 convolution, but got {matrix.shape}.")
    return matrix


def _likeness(encoder: TextEncoder, above: Sequence[str], below: Sequence[str]) -> Floats:
    vectors = text_vectors(encoder, [*above, *below])
    cosines = np.stack([vectors[name] for name in above]) @ np.stack([vectors[name] for name in below]).T
    return cosines - cosines.mean(axis=0)  # type: ignore[no-any-return]  # [n_upper, n_lower]


def _rank_correlations(matrix: Floats, alike: Floats, n_permutations: int, seed: int) -> tuple[Floats, Floats]:
    """Spearman's correlation along every row, [n_upper], and with the lower units permuted, [n_upper, n_permutations]."""
    ours, theirs = _standard_ranks(matrix), _standard_ranks(alike)
    generator = np.random.default_rng(seed)
    null = [np.einsum("ul,ul->u", ours, theirs[:, generator.permutation(ours.shape[1])]) for _ in range(n_permutations)]
    return np.einsum("ul,ul->u", ours, theirs), np.stack(null, axis=1)


def _standard_ranks(values: Floats) -> Floats:
    """Ranks along every row, ties in their middle, centered and of length 1; NaN for a row of equal values."""
    ranks = rankdata(values, axis=1)
    ranks = ranks - ranks.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(ranks, axis=1, keepdims=True)
    return ranks / np.where(lengths > 0, lengths, np.nan)  # type: ignore[no-any-return]


def _weight_table(matrix: Floats, alike: Floats, above: Mapping[int, str], below: Mapping[int, str], top: int) -> pd.DataFrame:
    names = list(below.values())
    rows = []
    for (unit, concept), weights, likeness in zip(above.items(), matrix, alike, strict=True):
        order = np.argsort(-weights, kind="stable")
        best, rest = order[:top], order[top:]
        means = {"top_likeness": likeness[best].mean(), "other_likeness": likeness[rest].mean()}
        rows.append({"unit": unit, "concept": concept, **means, "top_concepts": ", ".join(names[i] for i in best)})
    return pd.DataFrame(rows)
