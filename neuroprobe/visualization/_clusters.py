"""Clusters of some images of a probing set, judged against those of random images of the same set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from neuroprobe._core import Floats
from neuroprobe.concepts import ConceptScores
from neuroprobe.statistics import decorrelated

_AXES = 8  # principal ones of the images: clusters lie in few directions, and noise fills the others
_SMALLEST = 4  # images of a cluster; fewer are outliers
_STARTS = 10  # of k-means
_NEARLY = 0.9  # of the highest standing: fewer clusters that stand as high are preferred
_STEPS = 100  # at most, of each
_COLUMNS = 1024  # concepts at a time


@dataclass(frozen=True)
class Clustering:
    """A set of images in several numbers of clusters."""

    labels: Mapping[int, npt.NDArray[np.int64]]
    silhouettes: Mapping[int, float]
    standings: Mapping[int, float]
    p_value: float

    def chosen(self, max_p_value: float, n: int) -> tuple[npt.NDArray[np.int64], str]:
        """The cluster of every image, and why."""
        if len(self.labels) == 1 and np.isnan(self.p_value):
            return next(iter(self.labels.values())), "as asked"
        if not self.p_value <= max_p_value:
            return np.zeros(n, np.int64), "one facet"
        standings = {m: standing for m, standing in self.standings.items() if not np.isnan(standing)}
        enough = _NEARLY * max(standings.values())
        return self.labels[min(m for m, standing in standings.items() if standing >= enough)], "several facets"


class ClusterSpace:
    """The images of a probing set in the space in which they are clustered, and what random ones of them look like there."""

    def __init__(self, scores: ConceptScores, numbers: Sequence[int], *, n_null: int, seed: int) -> None:
        self.vectors: npt.NDArray[np.float32] = decorrelated(scores.image_vectors).numpy()
        self.concepts = scores.concepts
        self._texts: npt.NDArray[np.float32] = scores.text_vectors.numpy()
        self._row_of = {id_: row for row, id_ in enumerate(scores.ids)}
        self._numbers, self._n_null, self._seed = numbers, n_null, seed
        self._nulls: dict[int, Floats] = {}

    def rows(self, ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """Of images of the scores."""
        return np.array([self._row_of[id_] for id_ in ids], np.int64)

    def cluster(self, rows: npt.NDArray[np.int64]) -> Clustering:
        """The images in every number of clusters that is considered."""
        points = _leading(self.vectors[rows][None])
        labels = {m: k_means(points, m, seed=self._seed) for m in self._numbers}
        silhouettes = {m: float(mean_silhouettes(points, found, m)[0]) for m, found in labels.items()}
        labels = {m: np.unique(found[0], return_inverse=True)[1] for m, found in labels.items()}  # none is empty
        if not self._n_null:
            return Clustering(labels, silhouettes, dict.fromkeys(labels, float("nan")), float("nan"))
        null = self._null(len(rows))  # [n_null, n_numbers]
        mean, spread = _moments(null)
        observed = (np.array(list(silhouettes.values())) - mean) / spread
        by_chance = np.nan_to_num((null - mean) / spread, nan=-np.inf).max(axis=1)
        highest = np.nan_to_num(observed, nan=-np.inf).max()
        p_value = (1 + int((by_chance >= highest).sum())) / (1 + len(null))
        return Clustering(labels, silhouettes, dict(zip(labels, observed.tolist(), strict=True)), p_value)

    def _null(self, n: int) -> Floats:
        """Mean silhouettes of random images, [n_null, n_numbers]; those of one size are drawn once."""
        if n not in self._nulls:
            generator = np.random.default_rng((self._seed, n))
            rows = np.stack([generator.choice(len(self.vectors), n, replace=False) for _ in range(self._n_null)])
            points = _leading(self.vectors[rows])
            found = [mean_silhouettes(points, k_means(points, m, seed=self._seed), m) for m in self._numbers]
            self._nulls[n] = np.stack(found, axis=1)
        return self._nulls[n]

    def standing_out(self, inside: npt.NDArray[np.int64], others: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
        """How far every concept is higher on some of a unit's images than on the rest of the set, and than on the unit's others."""
        rest = np.ones(len(self.vectors), bool)
        rest[inside] = rest[others] = False
        against_set, against_others = np.full(len(self.concepts), np.nan), np.full(len(self.concepts), np.nan)
        for start in range(0, len(self.concepts), _COLUMNS):
            columns = slice(start, start + _COLUMNS)
            values = (self.vectors @ self._texts[columns].T).astype(np.float64)
            spread = values.std(axis=0)
            spread[spread == 0] = np.inf  # a concept that is the same everywhere stands out nowhere
            mean = values[inside].mean(axis=0)
            if rest.any():
                against_set[columns] = (mean - values[rest].mean(axis=0)) / spread
            if len(others):
                against_others[columns] = (mean - values[others].mean(axis=0)) / spread
        return against_set, against_others


def _leading(vectors: npt.NDArray[np.float32]) -> Floats:
    """Coordinates of sets of images [n_sets, n, d] along the principal axes of each, [n_sets, n, 8]."""
    centered = vectors.astype(np.float64)
    centered -= centered.mean(axis=1, keepdims=True)
    variances, axes = np.linalg.eigh(centered @ centered.transpose(0, 2, 1))  # by the n x n products, as d may be large
    found: Floats = axes[:, :, -_AXES:] * np.sqrt(variances[:, None, -_AXES:].clip(min=0))
    return found


def k_means(points: npt.ArrayLike, m: int, *, seed: int = 0, starts: int = _STARTS) -> npt.NDArray[np.int64]:
    """Clusters of several sets of points at once, by Lloyd's algorithm from random points of the set; the best of some starts.

    Of hundreds of small sets it takes a thirtieth of the time of scikit-learn's, one by one.

    Parameters
    ----------
    points : array, [n_sets, n, d]
    m : int
        Clusters; at most n.
    seed : int, default 0
        Of the starts, which are the same for every set.
    starts : int, default 10

    Returns
    -------
    ndarray, [n_sets, n], int64
        From 0 to m - 1. A cluster may be empty where points are equal.
    """
    sets = np.asarray(points, np.float64)
    n_sets, n, _ = sets.shape
    generator = np.random.default_rng((seed, n, m))
    best, least = np.zeros((n_sets, n), np.int64), np.full(n_sets, np.inf)
    for _ in range(starts):
        centers = sets[:, generator.choice(n, m, replace=False)]
        labels, spread = _from_centers(sets, centers)
        better = spread < least
        best[better], least[better] = labels[better], spread[better]
    return best


def _from_centers(sets: Floats, centers: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
    """Where Lloyd's algorithm ends: the labels, and each set's sum of squared distances to the centers."""
    labels = np.full(sets.shape[:2], -1)
    for _ in range(_STEPS):
        distances = (centers**2).sum(-1)[:, None] - 2 * sets @ centers.transpose(0, 2, 1)  # [n_sets, n, m], less the points' squares
        nearest = distances.argmin(-1)
        if (nearest == labels).all():
            break
        labels = nearest
        members = _one_hot(labels, centers.shape[1])
        sizes = members.sum(1)[..., None]
        centers = np.where(sizes > 0, members.transpose(0, 2, 1) @ sets / np.maximum(sizes, 1), centers)
    spread: Floats = distances.min(-1).sum(1) + (sets**2).sum((1, 2))
    return labels, spread


def mean_silhouettes(points: npt.ArrayLike, labels: npt.NDArray[np.int64], m: int, *, smallest: int = _SMALLEST) -> Floats:
    """Mean silhouette of clusters of several sets of points.

    Parameters
    ----------
    points : array, [n_sets, n, d]
    labels : ndarray, [n_sets, n], int
        From 0 to m - 1.
    m : int
        Clusters.
    smallest : int, default 4
        Points of a cluster, at least 2.

    Returns
    -------
    ndarray, [n_sets]
        NaN for one cluster, or if one has fewer points than `smallest`.

    References
    ----------
    Rousseeuw, J. Comput. Appl. Math. 20, 1987.
    """
    sets = np.asarray(points, np.float64)
    if m < 2:
        return np.full(len(sets), np.nan)
    squares = (sets**2).sum(-1)
    distances = np.sqrt((squares[:, :, None] + squares[:, None] - 2 * sets @ sets.transpose(0, 2, 1)).clip(min=0))
    distances[:, np.arange(sets.shape[1]), np.arange(sets.shape[1])] = 0
    members = _one_hot(labels, m)
    sizes = members.sum(1)  # [n_sets, m]
    sums = distances @ members  # [n_sets, n, m]
    own_size = np.take_along_axis(sizes, labels, 1)
    within = np.take_along_axis(sums, labels[..., None], 2)[..., 0] / np.maximum(own_size - 1, 1)
    beside = np.where(members > 0, np.inf, sums / np.maximum(sizes, 1)[:, None]).min(-1)
    largest = np.maximum(within, beside)
    found: Floats = ((beside - within) / np.where(largest > 0, largest, 1)).mean(1)
    return np.where(sizes.min(1) >= max(smallest, 2), found, np.nan)


def _one_hot(labels: npt.NDArray[np.int64], m: int) -> Floats:
    found: Floats = (labels[..., None] == np.arange(m)).astype(np.float64)
    return found


def _moments(null: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation of every column; NaN where most are none, as then clusters of that number are too small."""
    mean, spread = np.full(null.shape[1], np.nan), np.full(null.shape[1], np.nan)
    for i, column in enumerate(null.T):
        known = column[~np.isnan(column)]
        if 2 * len(known) > len(column) and known.std() > 0:
            mean[i], spread[i] = known.mean(), known.std()
    return mean, spread
