"""Clusters of some images of a probing set, judged against those of random images of the same set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from neuroprobe.concepts import ConceptScores
from neuroprobe.embedding_scorers import decorrelated

_Floats = npt.NDArray[np.float64]

_AXES = 8  # principal ones of the images: clusters lie in few directions, and noise fills the others
_SMALLEST = 4  # images of a cluster; fewer are outliers
_STARTS = 5  # of k-means
_COLUMNS = 1024  # concepts at a time


@dataclass(frozen=True)
class Clustering:
    """A set of images in several numbers of clusters."""

    labels: Mapping[int, npt.NDArray[np.int64]]
    silhouettes: Mapping[int, float]
    standings: Mapping[int, float]
    p_value: float

    def chosen(self, significance: float, n: int) -> tuple[npt.NDArray[np.int64], str]:
        """The cluster of every image, and why."""
        if len(self.labels) == 1 and np.isnan(self.p_value):
            return next(iter(self.labels.values())), "as asked"
        if not self.p_value <= significance:
            return np.zeros(n, np.int64), "one facet"
        standings = {m: -np.inf if np.isnan(standing) else standing for m, standing in self.standings.items()}
        return self.labels[max(standings, key=standings.__getitem__)], "several facets"


class ClusterSpace:
    """The images of a probing set in the space in which they are clustered, and what random ones of them look like there."""

    def __init__(self, scores: ConceptScores, numbers: Sequence[int], *, n_null: int, seed: int) -> None:
        self.vectors: npt.NDArray[np.float32] = decorrelated(scores.image_vectors).numpy()
        self.concepts = scores.concepts
        self._texts: npt.NDArray[np.float32] = scores.text_vectors.numpy()
        self._row_of = {id_: row for row, id_ in enumerate(scores.ids)}
        self._numbers, self._n_null, self._seed = numbers, n_null, seed
        self._nulls: dict[int, _Floats] = {}

    def rows(self, ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """Of images of the scores."""
        return np.array([self._row_of[id_] for id_ in ids], np.int64)

    def cluster(self, rows: npt.NDArray[np.int64]) -> Clustering:
        """The images in every number of clusters that is considered."""
        points = _leading(self.vectors[rows])
        labels = {m: _clusters(points, m, self._seed) for m in self._numbers}
        silhouettes = {m: _silhouette(points, found) for m, found in labels.items()}
        if not self._n_null:
            return Clustering(labels, silhouettes, dict.fromkeys(labels, float("nan")), float("nan"))
        null = self._null(len(rows))  # [n_null, n_numbers]
        mean, spread = _moments(null)
        observed = (np.array(list(silhouettes.values())) - mean) / spread
        by_chance = np.nan_to_num((null - mean) / spread, nan=-np.inf).max(axis=1)
        highest = np.nan_to_num(observed, nan=-np.inf).max()
        p_value = (1 + int((by_chance >= highest).sum())) / (1 + len(null))
        return Clustering(labels, silhouettes, dict(zip(labels, observed.tolist(), strict=True)), p_value)

    def _null(self, n: int) -> _Floats:
        """Mean silhouettes of random images, [n_null, n_numbers]; those of one size are drawn once."""
        if n not in self._nulls:
            generator = np.random.default_rng((self._seed, n))
            found = np.empty((self._n_null, len(self._numbers)))
            for i in range(self._n_null):
                points = _leading(self.vectors[generator.choice(len(self.vectors), n, replace=False)])
                found[i] = [_silhouette(points, _clusters(points, m, self._seed)) for m in self._numbers]
            self._nulls[n] = found
        return self._nulls[n]

    def standing_out(self, inside: npt.NDArray[np.int64], others: npt.NDArray[np.int64]) -> tuple[_Floats, _Floats]:
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


def _leading(vectors: npt.NDArray[np.float32]) -> _Floats:
    """Some images' coordinates along their own principal axes, [n, 8]."""
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    left, lengths, _ = np.linalg.svd(centred, full_matrices=False)
    found: _Floats = left[:, :_AXES] * lengths[:_AXES]
    return found


def _moments(null: _Floats) -> tuple[_Floats, _Floats]:
    """Mean and standard deviation of every column; NaN where most are none, as then clusters of that number are too small."""
    mean, spread = np.full(null.shape[1], np.nan), np.full(null.shape[1], np.nan)
    for i, column in enumerate(null.T):
        known = column[~np.isnan(column)]
        if 2 * len(known) > len(column) and known.std() > 0:
            mean[i], spread[i] = known.mean(), known.std()
    return mean, spread


def _clusters(points: _Floats, m: int, seed: int) -> npt.NDArray[np.int64]:
    from sklearn.cluster import KMeans

    if len(np.unique(points, axis=0)) < m:  # the same image over and over
        return np.zeros(len(points), np.int64)
    found: npt.NDArray[np.int64] = KMeans(n_clusters=m, n_init=_STARTS, random_state=seed).fit(points).labels_.astype(np.int64)
    return found


def _silhouette(points: _Floats, labels: npt.NDArray[np.int64]) -> float:
    """Mean silhouette; NaN if a cluster is too small to be a facet."""
    from sklearn.metrics import silhouette_score

    sizes = np.bincount(labels)
    return float(silhouette_score(points, labels)) if len(sizes) > 1 and sizes.min() >= _SMALLEST else float("nan")
