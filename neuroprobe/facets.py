"""Facets: the several things a unit fires for, found by clustering its strongest images in the encoder's space.

A unit's strongest images are clustered (k-means) after the image embeddings of the whole probing set have been decorrelated, so that
what makes images differ everywhere, such as their shapes, does not make facets of a unit that fires for one colour. Whether there
are facets at all is decided by the silhouette against a null: as many images drawn at random from the probing set, clustered in the
same way. Images of one concept fall apart no better than any images do.

References
----------
Goh et al., "Multimodal Neurons in Artificial Neural Networks", Distill, 2021 (units are multi-faceted).
Nguyen, Yosinski and Clune, "Multifaceted Feature Visualization", 2016, arXiv 1602.03616 (clusters of a unit's images).
Rousseeuw, "Silhouettes", J. Comput. Appl. Math. 20, 1987.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroprobe.activations import Activations
from neuroprobe.concepts import ConceptScores
from neuroprobe.embedding_scorers import decorrelated
from neuroprobe.exceptions import InputError
from neuroprobe.gallery import Example, check_unit, top_images
from neuroprobe.recorded import Recorded, check_same_images
from neuroprobe.similarity.arrays import check_count, check_number

_Floats = npt.NDArray[np.float64]

#: Most images of a unit that are clustered, and fewest.
K, FEWEST = 100, 12

_AXES = 8  # principal ones of the unit's images: clusters lie in few directions, and noise fills the others
_SMALLEST = 4  # images of a facet; fewer are outliers
_PEAK = 5  # images whose mean is the unit's peak
_STARTS = 5  # of k-means
_COLUMNS = 1024
_TOP = 5


@dataclass(frozen=True)
class FacetConcept:
    """A concept of a facet, and how far it stands out.

    Attributes
    ----------
    concept : str
    against_set : float
        Mean score of the facet's images minus that of all images of the probing set that are not among the unit's, in standard deviations
        of the concept's scores over the probing set.
    against_others : float
        The same against the images of the unit's other facets; NaN if there is one facet.
    """

    concept: str
    against_set: float
    against_others: float

    @property
    def score(self) -> float:
        """The smaller of the two: a facet's label is the concept for which it is largest."""
        return self.against_set if np.isnan(self.against_others) else min(self.against_set, self.against_others)


@dataclass(frozen=True)
class Facet:
    """One of the things a unit fires for.

    Attributes
    ----------
    examples : tuple of Example
        Its images, strongest first.
    concepts : tuple of FacetConcept
        The five that stand out most, best first.
    share : float
        Of the unit's images that were clustered.
    """

    examples: tuple[Example, ...]
    concepts: tuple[FacetConcept, ...]
    share: float

    @property
    def label(self) -> str:
        """The concept that stands out most from the rest of the probing set and from the unit's other facets; empty if none does."""
        return self.concepts[0].concept if self.concepts and self.concepts[0].score > 0 else ""


@dataclass(frozen=True)
class UnitFacets:
    """A unit's facets, largest first; a sequence of `Facet`.

    Attributes
    ----------
    layer : str
    unit : int
    facets : tuple of Facet
        None for a unit that never varies.
    status : str
        "clustered"; "too few images", if fewer than 12 are active, which are then one facet; or "never varies".
    p_value : float
        How often random images of the probing set fall apart as clearly, into whatever number of clusters; NaN if
        `n_facets` was given or nothing was clustered.
    silhouettes : mapping from number of clusters to float
        Mean silhouette of the unit's images.
    standings : mapping from number of clusters to float
        How many standard deviations that is above the mean of random images; NaN for clusters that were too small.
    metadata : mapping
        k, n_facets, max_facets, significance, n_null, seed, and what was recorded and scored.
    """

    layer: str
    unit: int
    facets: tuple[Facet, ...]
    status: str
    p_value: float
    silhouettes: Mapping[int, float]
    standings: Mapping[int, float]
    metadata: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.facets)

    def __getitem__(self, index: int) -> Facet:
        return self.facets[index]

    def __iter__(self) -> Iterator[Facet]:
        return iter(self.facets)

    @property
    def labels(self) -> tuple[str, ...]:
        """The label of every facet."""
        return tuple(facet.label for facet in self.facets)


def facets(
    recorded: Recorded,
    scores: ConceptScores,
    layer: str,
    unit: int,
    *,
    k: int = K,
    n_facets: int | None = None,
    max_facets: int = 5,
    significance: float = 0.05,
    n_null: int = 99,
    seed: int = 0,
) -> UnitFacets:
    """The facets of one unit, as `layer_facets` finds those of several; parameters and errors as there."""
    options: dict[str, Any] = {"k": k, "n_facets": n_facets, "max_facets": max_facets, "significance": significance}
    return layer_facets(recorded, scores, layer, [unit], **options, n_null=n_null, seed=seed)[0]


def layer_facets(
    recorded: Recorded,
    scores: ConceptScores,
    layer: str,
    units: Sequence[int] | None = None,
    *,
    k: int = K,
    n_facets: int | None = None,
    max_facets: int = 5,
    significance: float = 0.05,
    n_null: int = 99,
    seed: int = 0,
) -> list[UnitFacets]:
    """The facets of a layer's units: clusters of their strongest images, each with the concept by which it stands out.

    Clustered are a unit's strongest images, as far as it is at least half as far above its mean as on its five strongest
    (else images on which it does not fire would make a facet), at most `k` and at most a tenth of the probing set, or 30 if that is
    more. For every number of clusters from 2 to `max_facets` the mean silhouette is compared with that of random images; the
    number that stands highest above them is taken, if random images stand as high, at any number, with a probability of at most
    `significance`. Otherwise there is one facet.

    Parameters
    ----------
    recorded : Activations or ActivationSummary
        A summary has to have kept as many of the highest images.
    scores : ConceptScores
        Of the same images. Their image vectors are clustered, their concepts are the labels.
    layer : str
    units : sequence of int, optional
        By default all units of the layer.
    k : int, default 100
        Most images of a unit that are clustered; at least 12.
    n_facets : int, optional
        A number of facets that is taken untested.
    max_facets : int, default 5
    significance : float, default 0.05
        Of the choice between one facet and several, for each unit by itself.
    n_null : int, default 99
        Random sets of images, of each size that occurs.
    seed : int, default 0
        Of the random sets and of k-means.

    Returns
    -------
    list of UnitFacets

    Raises
    ------
    InputError
        Different images, a unit that the layer does not have, more images than a summary keeps, or a number out of its range.
    UnknownNameError
        A layer that was not recorded.
    """
    check_same_images(recorded, scores)
    _check_numbers(len(scores.ids), k, n_facets, max_facets, significance, n_null, seed)
    n_units = len(recorded[layer].mean) if not isinstance(recorded, Activations) else recorded[layer].shape[1]
    chosen = range(n_units) if units is None else list(units)
    for unit in chosen:
        check_unit(layer, unit, n_units)
    space = _Space(scores, [n_facets] if n_facets else list(range(2, max_facets + 1)), n_null=0 if n_facets else n_null, seed=seed)
    parameters = {"k": k, "n_facets": n_facets, "max_facets": max_facets, "significance": significance, "n_null": n_null, "seed": seed}
    metadata = {**parameters, "recorded": dict(recorded.metadata), "concept_scores": dict(scores.metadata)}
    return [_unit_facets(recorded, space, layer, int(unit), k, significance, metadata) for unit in chosen]


def _unit_facets(
    recorded: Recorded, space: _Space, layer: str, unit: int, k: int, significance: float, metadata: Mapping[str, Any]
) -> UnitFacets:
    examples = active_examples(recorded, layer, unit, k=k)
    if not examples:
        return UnitFacets(layer, unit, (), "never varies", float("nan"), {}, {}, metadata)
    if len(examples) < FEWEST:
        clusters, status, found = np.zeros(len(examples), np.int64), "too few images", _Clustering({}, {}, {}, float("nan"))
    else:
        examples, status = examples[: _size(len(examples))], "clustered"
        found = space.cluster(space.rows(examples))
        clusters = found.best(significance, len(examples))
    made = [_facet(space, examples, clusters == c, len(set(clusters)) > 1) for c in range(clusters.max() + 1)]
    made.sort(key=lambda facet: (-facet.share, examples.index(facet.examples[0])))
    return UnitFacets(layer, unit, tuple(made), status, found.p_value, found.silhouettes, found.standings, metadata)


def active_examples(recorded: Recorded, layer: str, unit: int, *, k: int) -> list[Example]:
    """A unit's strongest images, as far as it is at least half as far above its mean as on its five strongest; none if it never varies."""
    if isinstance(recorded, Activations):
        n, mean = len(recorded.ids), float(np.asarray(recorded[layer][:, unit], np.float64).mean())
    else:
        n, mean = recorded[layer].count, float(recorded[layer].mean[unit])
    strongest = top_images(recorded, layer, unit, k=min(k, n, max(n // 10, 30)))
    if not strongest[0].varies:
        return []
    peak = float(np.mean([example.value for example in strongest[:_PEAK]]))
    return [example for example in strongest if example.value >= (peak + mean) / 2]


def _size(n: int) -> int:
    """The largest of few sizes up to n: 12, 15, 18, 22, ...; so that units share their random sets."""
    size = FEWEST
    while (following := size + max(size // 5, 1)) <= n:
        size = following
    return size


@dataclass(frozen=True)
class _Clustering:
    """A set of images in several numbers of clusters."""

    labels: Mapping[int, npt.NDArray[np.int64]]
    silhouettes: Mapping[int, float]
    standings: Mapping[int, float]
    p_value: float

    def best(self, significance: float, n: int) -> npt.NDArray[np.int64]:
        """The cluster of every image."""
        if len(self.labels) == 1 and np.isnan(self.p_value):
            return next(iter(self.labels.values()))  # as many as were asked for
        if not self.p_value <= significance:
            return np.zeros(n, np.int64)
        return self.labels[max(self.standings, key=lambda m: -np.inf if np.isnan(self.standings[m]) else self.standings[m])]


class _Space:
    """The images of a probing set in the space in which they are clustered, and what random ones of them look like there."""

    def __init__(self, scores: ConceptScores, numbers: Sequence[int], *, n_null: int, seed: int) -> None:
        self.vectors: npt.NDArray[np.float32] = decorrelated(scores.image_vectors).numpy()
        self.concepts = scores.concepts
        self._texts: npt.NDArray[np.float32] = scores.text_vectors.numpy()
        self._row_of = {id_: row for row, id_ in enumerate(scores.ids)}
        self._numbers, self._n_null, self._seed = numbers, n_null, seed
        self._nulls: dict[int, _Floats] = {}

    def rows(self, examples: Sequence[Example]) -> npt.NDArray[np.int64]:
        """Of the scores, where the examples' are those of what was recorded."""
        return np.array([self._row_of[example.image_id] for example in examples], np.int64)

    def cluster(self, rows: npt.NDArray[np.int64]) -> _Clustering:
        """The images in every number of clusters that is considered."""
        points = _leading(self.vectors[rows])
        labels = {m: _clusters(points, m, self._seed) for m in self._numbers}
        silhouettes = {m: _silhouette(points, found) for m, found in labels.items()}
        if not self._n_null:
            return _Clustering(labels, silhouettes, dict.fromkeys(labels, float("nan")), float("nan"))
        null = self._null(len(rows))  # [n_null, n_numbers]
        mean, spread = _moments(null)
        observed = (np.array(list(silhouettes.values())) - mean) / spread
        by_chance = np.nan_to_num((null - mean) / spread, nan=-np.inf).max(axis=1)
        highest = np.nan_to_num(observed, nan=-np.inf).max()
        p_value = (1 + int((by_chance >= highest).sum())) / (1 + len(null))
        return _Clustering(labels, silhouettes, dict(zip(labels, observed.tolist(), strict=True)), p_value)

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


def _facet(space: _Space, examples: Sequence[Example], members: npt.NDArray[np.bool_], several: bool) -> Facet:
    rows = space.rows(examples)
    against_set, against_others = space.standing_out(rows[members], rows[~members])
    order = np.argsort(-(np.minimum(against_set, against_others) if several else against_set), kind="stable")[:_TOP]
    concepts = tuple(FacetConcept(space.concepts[c], float(against_set[c]), float(against_others[c])) for c in order)
    own = tuple(example for example, member in zip(examples, members, strict=True) if member)
    return Facet(own, concepts, float(members.mean()))


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


def _check_numbers(n: int, k: int, n_facets: int | None, max_facets: int, significance: float, n_null: int, seed: int) -> None:
    check_count("k", k, low=FEWEST)
    if n_facets is not None:
        check_count("n_facets", n_facets)
    check_count("max_facets", max_facets, low=2)
    check_number("significance", significance, low=0, high=1, above=True)
    check_count("n_null", n_null, low=19)
    check_count("seed", seed, low=0)
    if n < FEWEST:
        raise InputError(f"Expected at least {FEWEST} images to cluster some of them, but there are {n}.")
