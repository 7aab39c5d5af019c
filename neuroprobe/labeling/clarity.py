"""Unit scores: how clear, how polysemantic, how redundant and how monosemantic a unit is, by the images it likes.

All four read image embeddings alone (no vocabulary): the vectors of the images on which a unit is most active, or,
for monosemanticity, of every image, weighted by the unit's activation. The functions are pure, arrays in and arrays
out; `score_units` calls them for whole layers.

References
----------
Dreyer et al., "Mechanistic understanding and validation of large AI models with SemanticLens", Nature Machine
Intelligence, 2025, arXiv 2501.05398 (clarity, polysemanticity, redundancy).
Pach et al., "Sparse Autoencoders Learn Monosemantic Features in Vision-Language Models", NeurIPS 2025,
arXiv 2504.02821 (monosemanticity).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from neuroprobe._core import BoolArray, Floats, Rows, check_count, check_seed, unit_length
from neuroprobe.concepts import ConceptScores, check_same_images
from neuroprobe.exceptions import InputError
from neuroprobe.labeling._products import Products
from neuroprobe.labeling.similarity._top_images import highest_images
from neuroprobe.recording import Activations, ActivationSummary, Recorded, check_layers
from neuroprobe.reports import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes


#: The columns of the four scores, in the order of the report.
SCORES = ("clarity", "polysemanticity", "redundancy", "monosemanticity")

_UNITS = 256  # worked on at a time


class UnitScoreReport(Report):
    """Four scores of every unit, as `neuroprobe.score_units` finds them.

    Columns: layer, unit, clarity, polysemanticity, redundancy, monosemanticity, status ("scored", or "never varies").
    A score that is not defined is NaN: all of a unit that never varies, redundancy in a layer of one such unit,
    monosemanticity from a summary or where only one image has any weight.
    """

    name = "unit_scores"
    title = "How clear the units are"
    required = ("layer", "unit", *SCORES, "status")
    text_columns = ("layer", "status")

    def summary(self) -> str:
        means = ", ".join(f"{name} {self._table[name].mean():.3f}" for name in SCORES)
        return f"{len(self._table)} units in {self._table['layer'].nunique()} layers; means: {means}"

    def plot(self, ax: Axes | None = None) -> Axes:
        """The mean of every score along the layers."""
        from neuroprobe._core import axes_or_new, layer_ticks

        layers = list(dict.fromkeys(self._table["layer"]))
        ax = axes_or_new(ax, 3.5 + 0.38 * len(layers), 4.2)
        means = self._table.groupby("layer", sort=False)[list(SCORES)].mean().reindex(layers)
        for name in SCORES:
            ax.plot(range(len(layers)), means[name], marker="o", markersize=3, label=name)
        layer_ticks(ax, layers)
        ax.set_ylabel("mean over the layer's units")
        ax.set_title(f"Scores of {len(self._table)} units")
        ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
        return ax


def score_units(
    activations: Recorded,
    scores: ConceptScores,
    *,
    layers: Sequence[str] | None = None,
    k: int = 30,
    seed: int = 0,
    device: str | torch.device = "auto",
) -> UnitScoreReport:
    """Clarity, polysemanticity, redundancy and monosemanticity of every unit.

    Parameters
    ----------
    activations : Activations or ActivationSummary
        A summary has the k highest images only, from which monosemanticity does not follow: it is NaN.
    scores : ConceptScores
        Of the same images; only its image vectors are used.
    layers : sequence of str, optional
        By default all that were recorded.
    k : int, default 30
        Images per unit: those with the highest activations, of equal ones those that come first. Units that are active on
        fewer (a sparse autoencoder's) are filled up with images on which they are not; choose k accordingly.
    seed : int, default 0
        Of the clustering behind polysemanticity.
    device : str or torch.device, default "auto"
        Where the layer's units are compared with each other and with all images.

    Returns
    -------
    UnitScoreReport

    Raises
    ------
    InputError
        Different images, k below 2 or above what there is, or a negative seed.
    UnknownNameError
        A layer that was not recorded.
    """
    check_same_images(activations, scores)
    check_seed(seed)
    chosen = check_layers(activations, layers)
    for layer in chosen:
        check_k(activations, layer, k, fewest=2)
    vectors = unit_length(scores.image_vectors.numpy())
    tables = [_layer_table(activations, scores, vectors, layer, k=k, seed=seed, device=device) for layer in chosen]
    metadata = {
        "k": k,
        "seed": seed,
        "n_images": len(scores.ids),
        "activations": dict(activations.metadata),
        "encoder": scores.metadata.get("encoder"),
    }
    return UnitScoreReport(pd.concat(tables, ignore_index=True), metadata)


def _layer_table(
    activations: Recorded, scores: ConceptScores, vectors: Floats, layer: str, *, k: int, seed: int, device: str | torch.device
) -> pd.DataFrame:
    rows, varies = top_image_rows(activations, scores, layer, k=k)
    live = np.flatnonzero(varies)
    found = {name: np.full(len(rows), np.nan) for name in SCORES}
    means = np.empty((len(live), vectors.shape[1]))
    for start in range(0, len(live), _UNITS):
        units = live[start : start + _UNITS]
        tops = vectors[rows[units]]  # [n_units, k, d]
        found["clarity"][units] = clarity(tops)
        found["polysemanticity"][units] = polysemanticity(tops, seed=seed)
        means[start : start + _UNITS] = tops.mean(axis=1)
    found["redundancy"][live] = redundancy(means, device=device)
    if isinstance(activations, Activations):
        found["monosemanticity"] = monosemanticity(activations[layer], vectors, device=device)
    table = pd.DataFrame({"layer": layer, "unit": np.arange(len(rows)), **found})
    table["status"] = np.where(varies, "scored", "never varies")
    return table


def clarity(vectors: npt.ArrayLike) -> Floats:
    """Mean cosine similarity of all pairs of a unit's top images; the closer to 1, the more alike they are.

    Parameters
    ----------
    vectors : array, [n_units, k, d]
        Embeddings of every unit's top images.

    Returns
    -------
    ndarray, [n_units]
        In [-1 / (k - 1), 1].

    References
    ----------
    Dreyer et al., 2025, "Concept clarity"; in closed form from the length of the mean of the unit vectors.
    """
    unit = unit_length(np.asarray(vectors, np.float64))
    k = unit.shape[-2]
    mean = unit.mean(axis=-2)
    found: Floats = ((mean**2).sum(axis=-1) - 1 / k) * k / (k - 1)
    return found


def polysemanticity(vectors: npt.ArrayLike, *, seed: int = 0) -> Floats:
    """One minus the cosine similarity of the centers of two clusters of a unit's top images (k-means).

    Where a cluster holds one image only, it says nothing; then, as published, one minus the mean cosine similarity
    of the mean of all and each of the first ten images.

    Parameters
    ----------
    vectors : array, [n_units, k, d]
        Embeddings of every unit's top images, most active first.
    seed : int, default 0
        Of k-means (the best of ten starts).

    Returns
    -------
    ndarray, [n_units]
        In [0, 2]; 0 for one meaning.

    References
    ----------
    Dreyer et al., 2025, "Concept polysemanticity", and `semanticlens.scores.polysemanticity_score`.
    """
    return np.array([_polysemanticity(one, seed) for one in np.asarray(vectors, np.float64)])


def _polysemanticity(tops: Floats, seed: int) -> float:
    from sklearn.cluster import KMeans

    if len(np.unique(tops, axis=0)) < 2:  # one image, several times
        return 0.0
    fitted = KMeans(n_clusters=2, n_init=10, random_state=seed).fit(tops)
    if np.bincount(fitted.labels_, minlength=2).min() > 1:
        return float(1 - clarity(fitted.cluster_centers_[None])[0])
    first = tops[:10]
    pairs = np.stack([np.broadcast_to(tops.mean(axis=0), first.shape), first], axis=1)
    return float(1 - clarity(pairs).mean())


def redundancy(means: npt.ArrayLike, *, device: str | torch.device = "cpu") -> Floats:
    """The highest cosine similarity of a unit's mean embedding with that of any other unit of the layer.

    Parameters
    ----------
    means : array, [n_units, d]
        Mean embedding of every unit's top images.
    device : str or torch.device, default "cpu"

    Returns
    -------
    ndarray, [n_units]
        In [-1, 1]; NaN where there is no other unit.

    References
    ----------
    Dreyer et al., 2025, "Redundancy"; the paper's score of a layer is the mean of these.
    """
    unit = unit_length(np.asarray(means, np.float64))
    found = np.full(len(unit), np.nan)
    if len(unit) < 2:
        return found
    products = Products(unit.T, device)
    for start in range(0, len(unit), _UNITS):
        alike = products(unit[start : start + _UNITS])
        places = np.arange(len(alike))
        alike[places, start + places] = -np.inf  # a unit is not redundant because of itself
        found[start : start + _UNITS] = alike.max(axis=1)
    return found


def monosemanticity(activations: npt.NDArray[Any], vectors: npt.ArrayLike, *, device: str | torch.device = "cpu") -> Floats:
    """Mean cosine similarity of all pairs of different images, each pair weighted by the unit's activations on both.

    The activations a are brought to w = (a - min) / (max - min) for every unit, whatever their sign. With
    vectors v of unit length, the sum over pairs needs no matrix of all pairs::

        sum_{i != j} w_i w_j <v_i, v_j> = |sum_i w_i v_i|^2 - sum_i w_i^2
        sum_{i != j} w_i w_j            = (sum_i w_i)^2     - sum_i w_i^2

    Parameters
    ----------
    activations : ndarray, [n_images, n_units]
    vectors : array, [n_images, d]
        Image embeddings.
    device : str or torch.device, default "cpu"

    Returns
    -------
    ndarray, [n_units]
        In [-1, 1]; NaN for a unit that never varies or gives weight to one image only.

    References
    ----------
    Pach et al., 2025, "Monosemanticity score".
    """
    products = Products(unit_length(np.asarray(vectors, np.float64)), device)
    found = np.full(activations.shape[1], np.nan)
    for start in range(0, len(found), _UNITS):
        values = np.asarray(activations[:, start : start + _UNITS], np.float64)
        low, high = values.min(axis=0), values.max(axis=0)
        weights = (values - low) / np.where(high > low, high - low, 1)
        squares = (weights**2).sum(axis=0)
        numerator = (products(weights.T) ** 2).sum(axis=1) - squares
        denominator = weights.sum(axis=0) ** 2 - squares
        defined = (weights > 0).sum(axis=0) > 1
        found[start : start + _UNITS] = np.where(defined, numerator / np.where(defined, denominator, 1), np.nan)
    return found


def top_image_rows(activations: Recorded, scores: ConceptScores, layer: str, *, k: int) -> tuple[Rows, BoolArray]:
    """Rows of `scores` on which every unit of a layer is most active [n_units, k], and whether the unit varies at all [n_units].

    The most active comes first; of equal ones the image that comes first.

    Raises
    ------
    InputError
        k above the number of images, or above what a summary keeps.
    """
    check_k(activations, layer, k)
    if isinstance(activations, ActivationSummary):
        found = activations[layer]
        row_of = {name: row for row, name in enumerate(scores.ids)}
        known = {row: row_of[name] for row, name in found.image_ids.items()}
        rows = np.vectorize(known.__getitem__, otypes=[np.int64])(found.top_rows[:, :k])
        return rows, found.maximum > found.minimum
    values = activations[layer]
    blocks = [np.array(values[:, start : start + _UNITS], np.float32) for start in range(0, values.shape[1], _UNITS)]
    rows = np.concatenate([highest_images(torch.from_numpy(block), k).numpy() for block in blocks])
    return rows, np.concatenate([block.max(axis=0) > block.min(axis=0) for block in blocks])


def check_k(activations: Recorded, layer: str, k: int, *, fewest: int = 1, most: int | None = None) -> None:
    """Raise `InputError` unless so many of a unit's highest images are known; of more than `most` nothing could be said."""
    check_count("k", k, low=fewest)
    kept = len(activations.ids) if isinstance(activations, Activations) else activations[layer].top_rows.shape[1]
    where = "images" if isinstance(activations, Activations) else "highest images of every unit in the summary"
    limit = kept if most is None else min(kept, most)
    if k > limit:
        raise InputError(f"Expected `k` to be at most {limit}, as there are {kept} {where}, but got {k}.")
