"""Ranking: the likeliest images of a concept within its group, and others to tell them from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias, TypedDict, get_args

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from neuroprobe._core import check_choice, check_counts, check_share
from neuroprobe.concepts.sets import ConceptSet, generator_of
from neuroprobe.concepts.vocabulary import ConceptGroup, Vocabulary
from neuroprobe.exceptions import InputError
from neuroprobe.images import near_duplicate_vectors

#: Which images are taken as negatives: random others, the least likely ones, or the likeliest of the group's other concepts.
Negatives: TypeAlias = Literal["random", "least_likely", "group"]

_IMAGES_PER_TYPE = 5


class RankingOptions(TypedDict, total=False):
    """The keyword arguments of a ranking, which `Ranking` describes."""

    n_positive: int
    n_negative: int
    seed: int
    negatives: Negatives
    gap: int
    near_duplicates: Mapping[str, int] | float | None
    n_types: int


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
    near_duplicates : mapping from id to group, or float, optional
        Groups as from `neuroprobe.images.near_duplicates`, or the cosine similarity of embeddings from which on two images are
        near-duplicates. No near-duplicate of a positive becomes a negative, and a split keeps them together. By default no two
        images are taken for near-duplicates.
    n_types : int, default 20
        Clusters of the set's own image embeddings (k-means), which become the images' types; fewer where a type would hold
        fewer than five images on average, and none where there would be fewer than two. 0 for no types.

    Raises
    ------
    InputError
        A number that is out of range or not whole, another word for `negatives`, or a cosine that is not between 0 and 1.
    """

    n_positive: int = 100
    n_negative: int = 200
    seed: int = 0
    negatives: Negatives = "random"
    gap: int = 0
    near_duplicates: Mapping[str, int] | float | None = None
    n_types: int = 20

    def __post_init__(self) -> None:
        check_counts(n_positive=self.n_positive, n_negative=self.n_negative)
        check_counts(low=0, seed=self.seed, gap=self.gap, n_types=self.n_types)
        check_choice("negatives", self.negatives, get_args(Negatives))
        if not (self.near_duplicates is None or isinstance(self.near_duplicates, Mapping)):
            check_share("near_duplicates", self.near_duplicates)

    def check(self, vocabulary: Vocabulary, n_images: int | None) -> None:
        """Raise `InputError` before an image is read: for too few images (None: not known), or groups that cannot be ranked."""
        for group in vocabulary.groups:
            if len(group.names) < 2:
                raise InputError(
                    f"Expected at least two names in a group that is ranked, but {group.name!r} has only {group.names[0]!r}, which would "
                    "be equally likely everywhere. Add what else an image may show, or none='none'."
                )
            if self.negatives == "group" and len(group.concepts) < 2:
                raise InputError(
                    f"Expected at least two concepts in a group for negatives='group', but {group.name!r} has only "
                    f"{group.concepts[0]!r}. Use negatives='random' or 'least_likely'."
                )
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
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**given, "near_duplicates": "given"} if isinstance(self.near_duplicates, Mapping) else given


def rank_groups(
    vocabulary: Vocabulary, likelihoods: Mapping[str, npt.NDArray[Any]], ids: Sequence[str], vectors: npt.NDArray[Any], ranking: Ranking
) -> dict[str, ConceptSet]:
    """A set for every concept of the vocabulary, from each group's likelihoods [n_images, n_concepts_of_group].

    `ids` are the images, and `vectors` [n_images, d] their embeddings, of which types are made. `InputError` if too few images are left
    for the negatives, or one has no group of near-duplicates.
    """
    ranking.check(vocabulary, len(ids))
    groups = _near_duplicates(ids, vectors, ranking)
    sets = {}
    for group in vocabulary.groups:
        for column, name in enumerate(group.concepts):
            own = likelihoods[group.name][:, column]
            order = np.argsort(-own, kind="stable")
            positives, negatives = order[: ranking.n_positive], _negatives(group, column, likelihoods[group.name], order, groups, ranking)
            rows = np.concatenate([positives, negatives])
            sets[name] = ConceptSet(
                name,
                group.name,
                tuple(ids[row] for row in positives),
                tuple(ids[row] for row in negatives),
                duplicates=() if groups is None else tuple(groups[rows].tolist()),
                types=embedding_types(vectors, rows, n_types=ranking.n_types, seed=ranking.seed),
                likelihoods=tuple(own[rows].tolist()),
                ranks=tuple(np.argsort(order)[rows].tolist()),
            )
    return sets


def embedding_types(vectors: npt.NDArray[Any], rows: npt.NDArray[np.int64], *, n_types: int, seed: int) -> tuple[int, ...]:
    """Types of some images: k-means clusters of their embeddings [n_images, d], whatever the order of the rows; one per row.

    At most `n_types`, and at most one for five images; none where there would be fewer than two.
    """
    from sklearn.cluster import KMeans

    order = np.argsort(rows, kind="stable")
    own = vectors[rows[order]].astype(np.float64)
    n_clusters = min(n_types, len(rows) // _IMAGES_PER_TYPE, len(np.unique(own, axis=0)))
    if n_clusters < 2:
        return ()
    found = np.empty(len(rows), dtype=np.int64)
    with threadpool_limits(1):  # the same bits on every machine's setting
        found[order] = KMeans(n_clusters, n_init=4, random_state=seed).fit_predict(own)
    return tuple(found.tolist())


def _negatives(
    group: ConceptGroup,
    column: int,
    likelihoods: npt.NDArray[Any],
    order: npt.NDArray[np.int64],
    groups: npt.NDArray[np.int64] | None,
    ranking: Ranking,
) -> npt.NDArray[np.int64]:
    """Rows of a concept's negatives, given all rows from its likeliest image on."""
    n, others = ranking.n_negative, order[ranking.n_positive + ranking.gap :]
    if groups is not None:
        others = others[~np.isin(groups[others], groups[order[: ranking.n_positive]])]
    if len(others) < n:
        raise InputError(
            f"Expected at least {n} images that are no near-duplicates of the positives of {group.concepts[column]!r}, "
            f"but {len(others)} are left. Give more images, or smaller n_positive and n_negative (--positives, --negatives)."
        )
    if ranking.negatives == "least_likely":
        return others[::-1][:n]
    if ranking.negatives == "group":
        # the likeliest of the first other concept, of the second, ..., of the first again, no image twice
        rows, competing = np.sort(others), [i for i in range(len(group.concepts)) if i != column]
        orders = rows[np.argsort(-likelihoods[rows][:, competing], axis=0, kind="stable")]  # [n_others, n_competing]
        return np.array(list(dict.fromkeys(orders.reshape(-1).tolist()))[:n], dtype=np.int64)
    # sorted, so that rounding, which can turn neighbors round, changes no draw
    return generator_of(group.concepts[column], group.name, ranking.seed).choice(np.sort(others), size=n, replace=False)


def _near_duplicates(ids: Sequence[str], vectors: npt.NDArray[Any], ranking: Ranking) -> npt.NDArray[np.int64] | None:
    """Every image's group of near-duplicates, [n_images]; None if nobody asked."""
    groups = ranking.near_duplicates
    if groups is None:
        return None
    if not isinstance(groups, Mapping):
        groups = near_duplicate_vectors(ids, vectors, min_cosine=groups)
    missing = next((id_ for id_ in ids if id_ not in groups), None)
    if missing is not None:
        raise InputError(f"Expected a group of near-duplicates for every image, but {missing!r} has none.")
    return np.array([groups[id_] for id_ in ids], dtype=np.int64)
