"""Ranking: the likeliest images of a concept within its group, and others to tell them from."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from neuroprobe._core import check_counts
from neuroprobe.concepts.concept_sets import ConceptSet
from neuroprobe.concepts.vocabulary import ConceptGroup, Vocabulary
from neuroprobe.exceptions import InputError, suggest

#: Which images are taken as negatives: random others, the least likely ones, or the likeliest of the group's other concepts.
Negatives: TypeAlias = Literal["random", "least_likely", "group"]

_IMAGES_PER_TYPE = 5


@dataclass(frozen=True)
class Ranking:
    """How sets are made from likelihoods.

    Parameters
    ----------
    n_positive : int, default 100
        The likeliest images.
    n_negative : int, default 200
    seed : int, default 0
        Of the random negatives. What is drawn for a concept depends on the seed and its name, not on what else is asked.
    negatives : {"random", "least_likely", "group"}, default "random"
        "random": any of the images after the positives (and the gap), drawn evenly. "least_likely": the last of the
        ranking. "group": hard ones, the likeliest images of the group's other concepts ("none" is not one), in turns.
    gap : int, default 0
        So many images that follow the positives in the ranking are in neither set: between the sure ones and the rest.
    n_types : int, default 20
        Clusters of the set's own image embeddings (k-means), which become the images' types; fewer where a type would hold
        fewer than five images on average, and none where there would be fewer than two. 0 for no types.

    Raises
    ------
    InputError
    """

    n_positive: int = 100
    n_negative: int = 200
    seed: int = 0
    negatives: Negatives = "random"
    gap: int = 0
    n_types: int = 20

    def __post_init__(self) -> None:
        check_counts(n_positive=self.n_positive, n_negative=self.n_negative)
        check_counts(low=0, seed=self.seed, gap=self.gap, n_types=self.n_types)
        if self.negatives not in get_args(Negatives):
            what = suggest(str(self.negatives), get_args(Negatives))
            raise InputError(f"Expected `negatives` to be a way of choosing them, but got {self.negatives!r}. {what}")

    def check(self, vocabulary: Vocabulary, n_images: int | None) -> None:
        """Raise what is wrong before an image is read: too few images (None: not known), or groups that cannot be ranked.

        Raises
        ------
        InputError
        """
        for group in vocabulary.groups:
            _check_group(group, self.negatives)
        needed = self.n_positive + self.gap + self.n_negative
        if n_images is not None and n_images < needed:
            gap = f", a gap of {self.gap}" if self.gap else ""
            raise InputError(
                f"Expected at least {needed} images ({self.n_positive} positives{gap} and {self.n_negative} negatives), "
                f"but got {n_images}. Give more images, or smaller n_positive and n_negative (--positives, --negatives)."
            )

    @property
    def parameters(self) -> dict[str, Any]:
        """What a report's metadata say of the ranking."""
        return asdict(self)


def rank_groups(
    vocabulary: Vocabulary,
    likelihoods: Mapping[str, npt.NDArray[Any]],
    ids: Sequence[str],
    ranking: Ranking,
    *,
    vectors: npt.NDArray[Any] | None = None,
    duplicates: Mapping[str, int] | None = None,
) -> dict[str, ConceptSet]:
    """A set for every concept of the vocabulary.

    Parameters
    ----------
    vocabulary : Vocabulary
    likelihoods : mapping from a group's name to [n_images, n_concepts_of_group]
        In the order of the group's names.
    ids : sequence of str
        The images: the rows.
    ranking : Ranking
    vectors : ndarray, [n_images, d], optional
        Embeddings, of which types are made.
    duplicates : mapping from id to group, optional
        Near-duplicates; none of a positive's becomes a negative.

    Raises
    ------
    InputError
        Too few images are left for the negatives, or one has no group of near-duplicates.
    """
    ranking.check(vocabulary, len(ids))
    groups = None if duplicates is None else _group_per_row(ids, duplicates)
    sets = {}
    for group in vocabulary.groups:
        for column, name in enumerate(group.concepts):
            positives, negatives, order = _rows(group, column, likelihoods[group.name], ranking, groups)
            rows = np.concatenate([positives, negatives])
            ranks = np.empty(len(ids), dtype=np.int64)
            ranks[order] = np.arange(len(ids))
            sets[name] = ConceptSet(
                name,
                group.name,
                tuple(ids[row] for row in positives),
                tuple(ids[row] for row in negatives),
                duplicates=() if groups is None else tuple(groups[rows].tolist()),
                types=() if vectors is None else embedding_types(vectors, rows, n_types=ranking.n_types, seed=ranking.seed),
                likelihoods=tuple(likelihoods[group.name][rows, column].tolist()),
                ranks=tuple(ranks[rows].tolist()),
            )
    return sets


def embedding_types(vectors: npt.NDArray[Any], rows: npt.NDArray[np.int64], *, n_types: int, seed: int) -> tuple[int, ...]:
    """Types of some images: clusters of their embeddings (k-means), whatever the order of the rows.

    Parameters
    ----------
    vectors : ndarray, [n_images, d]
    rows : ndarray of int, [n]
    n_types : int
        At most so many, and at most one for five images.
    seed : int

    Returns
    -------
    tuple of int, [n]
        Empty where there would be fewer than two.
    """
    order = np.argsort(rows, kind="stable")
    own = vectors[rows[order]]
    n_clusters = min(n_types, len(rows) // _IMAGES_PER_TYPE, len(np.unique(own, axis=0)))
    if n_clusters < 2:
        return ()

    found = np.empty(len(rows), dtype=np.int64)
    with threadpool_limits(1):  # the same bits on every machine's setting
        found[order] = cluster_types(own, n_types=n_clusters, seed=seed)
    return tuple(found.tolist())


def _rows(
    group: ConceptGroup, column: int, likelihoods: npt.NDArray[Any], ranking: Ranking, groups: npt.NDArray[np.int64] | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows of the positives, of the negatives, and of all images from the likeliest on."""
    order = np.argsort(-likelihoods[:, column], kind="stable")
    positives, others = order[: ranking.n_positive], order[ranking.n_positive + ranking.gap :]
    if groups is not None:
        others = others[~np.isin(groups[others], groups[positives])]
    if len(others) < ranking.n_negative:
        raise InputError(
            f"Expected at least {ranking.n_negative} images that are no near-duplicates of the positives of {group.concepts[column]!r}, "
            f"but {len(others)} are left. Give more images, or smaller n_positive and n_negative (--positives, --negatives)."
        )
    if ranking.negatives == "least_likely":
        return positives, others[::-1][: ranking.n_negative], order
    if ranking.negatives == "group":
        competing = [i for i in range(len(group.concepts)) if i != column]
        return positives, _in_turns(likelihoods[:, competing], others, ranking.n_negative), order
    name = f"{group.name}/{group.concepts[column]}"
    generator = np.random.default_rng((ranking.seed, zlib.crc32(name.encode())))
    # sorted, so that rounding, which can turn neighbors round, changes no draw
    return positives, generator.choice(np.sort(others), size=ranking.n_negative, replace=False), order


def _in_turns(likelihoods: npt.NDArray[Any], others: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.int64]:
    """`n` of the `others`: the likeliest of the first column, of the second, ..., of the first again, no image twice."""
    rows = np.sort(others)
    orders = rows[np.argsort(-likelihoods[rows], axis=0, kind="stable")]  # [n_others, n_competing]
    return np.array(list(dict.fromkeys(orders.reshape(-1).tolist()))[:n], dtype=np.int64)


def _group_per_row(ids: Sequence[str], duplicates: Mapping[str, int]) -> npt.NDArray[np.int64]:
    missing = next((id_ for id_ in ids if id_ not in duplicates), None)
    if missing is not None:
        raise InputError(f"Expected a group of near-duplicates for every image, but {missing!r} has none.")
    return np.array([duplicates[id_] for id_ in ids], dtype=np.int64)


def _check_group(group: ConceptGroup, negatives: Negatives) -> None:
    if len(group.names) < 2:
        raise InputError(
            f"Expected at least two names in a group that is ranked, but {group.name!r} has only {group.names[0]!r}, which would be "
            "equally likely everywhere. Add what else an image may show, or none='none'."
        )
    if negatives == "group" and len(group.concepts) < 2:
        raise InputError(
            f"Expected at least two concepts in a group for negatives='group', but {group.name!r} has only {group.concepts[0]!r}. "
            "Use negatives='random' or 'least_likely'."
        )


def cluster_types(vectors: npt.ArrayLike, *, n_types: int, seed: int) -> npt.NDArray[np.int64]:
    """Types of images for `control_labels`: k-means clusters of their embeddings.

    Parameters
    ----------
    vectors : array-like, [n_images, d]
        For example the concept source's image embeddings.
    n_types : int
        From 2 to the number of images.
    seed : int

    Returns
    -------
    ndarray of int, [n_images]
        From 0 to n_types - 1.

    Raises
    ------
    InputError
        As many types cannot be made.
    """
    from sklearn.cluster import KMeans

    rows = np.asarray(vectors, dtype=np.float64)
    if rows.ndim != 2 or not 2 <= n_types <= len(rows):
        raise InputError(f"Expected vectors [n_images, d] and from 2 to n_images types, but got shape {rows.shape} and {n_types} types.")
    return np.asarray(KMeans(n_types, n_init=4, random_state=seed).fit_predict(rows), dtype=np.int64)
