"""Concept sets: images that show a concept, and others that do not."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroprobe.exceptions import InputError, UnknownNameError, suggest
from neuroprobe.vocabulary import Vocabulary


@dataclass(frozen=True)
class ConceptSet:
    """Ids of images that show a concept (`positives`) and of others (`negatives`).

    Raises
    ------
    InputError
        An image on both sides or twice on one, or an empty side.
    """

    concept: str
    group: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]

    def __post_init__(self) -> None:
        for side in (self.positives, self.negatives):
            if not side or len(set(side)) < len(side):
                raise InputError(
                    f"Expected positives and negatives of {self.concept!r}, each image once, but a side is empty or repeats one."
                )
        both = set(self.positives) & set(self.negatives)
        if both:
            raise InputError(f"Expected no image on both sides of {self.concept!r}, but {sorted(both)[0]!r} is.")

    @property
    def ids(self) -> tuple[str, ...]:
        """Positives, then negatives."""
        return self.positives + self.negatives

    @property
    def targets(self) -> npt.NDArray[np.int64]:
        """1 for every positive, 0 for every negative, in the order of `ids`."""
        return np.repeat([1, 0], [len(self.positives), len(self.negatives)])


@dataclass(frozen=True, eq=False)
class ConceptSets(Mapping[str, ConceptSet]):
    """A `ConceptSet` per concept, and what they were made from."""

    sets: Mapping[str, ConceptSet]
    metadata: Mapping[str, Any]

    def __getitem__(self, concept: str) -> ConceptSet:
        if concept not in self.sets:
            raise UnknownNameError(f"Expected a concept with sets, but got {concept!r}. {suggest(concept, self.sets)}")
        return self.sets[concept]

    def __contains__(self, concept: object) -> bool:
        return concept in self.sets

    def __iter__(self) -> Iterator[str]:
        return iter(self.sets)

    def __len__(self) -> int:
        return len(self.sets)


def rank_groups(
    vocabulary: Vocabulary,
    likelihoods: Mapping[str, npt.NDArray[Any]],
    ids: Sequence[str],
    *,
    n_positive: int,
    n_negative: int,
    seed: int,
) -> dict[str, ConceptSet]:
    """A set for every concept: the likeliest images within its group, and random others.

    Parameters
    ----------
    vocabulary : Vocabulary
    likelihoods : mapping from a group's name to [n_images, n_concepts_of_group]
        In the order of the group's names.
    ids : sequence of str
        The images: the rows.
    n_positive, n_negative, seed
        As in `ConceptScores.rank`.

    Raises
    ------
    InputError
    """
    check_ranking(vocabulary, len(ids), n_positive=n_positive, n_negative=n_negative, seed=seed)
    sets = {}
    for group in vocabulary.groups:
        for column, name in enumerate(group.concepts):
            ranking = np.argsort(-likelihoods[group.name][:, column], kind="stable")
            generator = np.random.default_rng((seed, zlib.crc32(f"{group.name}/{name}".encode())))
            others = np.sort(ranking[n_positive:])  # so that rounding, which can turn neighbours round, changes no draw
            negatives = generator.choice(others, size=n_negative, replace=False)
            sets[name] = ConceptSet(name, group.name, _ids_of(ids, ranking[:n_positive]), _ids_of(ids, negatives))
    return sets


def _ids_of(ids: Sequence[str], rows: npt.NDArray[Any]) -> tuple[str, ...]:
    return tuple(ids[int(row)] for row in rows)


def _check_groups(vocabulary: Vocabulary) -> None:
    for group in vocabulary.groups:
        if len(group.names) < 2:
            raise InputError(
                f"Expected at least two names in a group that is ranked, but {group.name!r} has only {group.names[0]!r}, which would be "
                "equally likely everywhere. Add what else an image may show, or none='none'."
            )


def check_ranking(vocabulary: Vocabulary, n_images: int, *, n_positive: int, n_negative: int, seed: int) -> None:
    """Raise what is wrong with a ranking before an image is read.

    Raises
    ------
    InputError
    """
    _check_groups(vocabulary)
    if seed < 0:
        raise InputError(f"Expected a seed of 0 or more, but got {seed}.")
    if n_positive < 1 or n_negative < 1:
        raise InputError(f"Expected at least one positive and one negative, but got {n_positive} and {n_negative}.")
    if n_images < n_positive + n_negative:
        raise InputError(
            f"Expected at least {n_positive + n_negative} images ({n_positive} positives and {n_negative} negatives), "
            f"but got {n_images}. Give more images, or ask for smaller sets."
        )
