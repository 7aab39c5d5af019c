"""Concept sets: images that show a concept, and others that do not.

They come from a ranking (`neuroprobe.ConceptSource.rank`), from labels, or from two folders of images; no image is on both
sides, and no image or group of near-duplicate images is in two parts of one split.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from neuroprobe._core import check_counts, check_seed, check_share, table_html
from neuroprobe.exceptions import InputError, UnknownNameError, suggest
from neuroprobe.images import Images
from neuroprobe.statistics import fitting_groups

if TYPE_CHECKING:
    from neuroprobe.concepts._tables import LabelTable

#: Fields of a `ConceptSet` that hold one value per image.
_PER_IMAGE = ("duplicates", "types", "likelihoods", "ranks")


@dataclass(frozen=True, repr=False)
class ConceptSet:
    """Ids of images that show a concept (`positives`) and of others (`negatives`), and what is known of each image.

    The last four fields hold one value per image in the order of `ids`, or nothing where nothing is known.

    Attributes
    ----------
    concept, group : str
    positives, negatives : tuple of str
    duplicates : tuple of int
        The image's group of near-duplicates. Images of one group stay in one part of a split.
    types : tuple of int
        What kind of image it is, whatever the concept: a given class or a cluster of embeddings. A control label is
        random per type.
    likelihoods : tuple of float
        Softmax within the concept's group, in (0, 1).
    ranks : tuple of int
        The image's place in the concept's ranking, from 0.

    Raises
    ------
    InputError
        An image on both sides or twice on one, an empty side, near-duplicates on both sides, or values that do not fit.
    """

    concept: str
    group: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    duplicates: tuple[int, ...] = ()
    types: tuple[int, ...] = dataclasses.field(default=(), compare=False)
    likelihoods: tuple[float, ...] = dataclasses.field(default=(), compare=False)
    ranks: tuple[int, ...] = dataclasses.field(default=(), compare=False)

    def __post_init__(self) -> None:
        for side in (self.positives, self.negatives):
            if not side or len(set(side)) < len(side):
                raise InputError(
                    f"Expected positives and negatives of {self.concept!r}, each image once, but a side is empty or repeats one."
                )
        both = set(self.positives) & set(self.negatives)
        if both:
            raise InputError(f"Expected no image on both sides of {self.concept!r}, but {sorted(both)[0]!r} is.")
        for name in _PER_IMAGE:
            values = getattr(self, name)
            if values and len(values) != len(self.ids):
                raise InputError(f"Expected one of the {name} of {self.concept!r} per image ({len(self.ids)}), but got {len(values)}.")
        n = len(self.positives)
        shared = set(self.duplicates[:n]) & set(self.duplicates[n:])
        if shared:
            image, other = (self.ids[self.duplicates.index(min(shared), start)] for start in (0, n))
            raise InputError(
                f"Expected near-duplicates on one side of {self.concept!r}, but {image!r} is a positive and {other!r} a negative. "
                "Use ConceptSets.with_near_duplicates(...), which leaves such negatives out."
            )

    @property
    def ids(self) -> tuple[str, ...]:
        """Positives, then negatives."""
        return self.positives + self.negatives

    @property
    def targets(self) -> npt.NDArray[np.int64]:
        """1 for every positive, 0 for every negative, in the order of `ids`."""
        return np.repeat([1, 0], [len(self.positives), len(self.negatives)])

    def without(self, ids: Collection[str]) -> ConceptSet:
        """The same set with these images left out; `InputError` if a side would be empty."""
        gone = set(ids)
        for name, side in (("positives", self.positives), ("negatives", self.negatives)):
            if gone.issuperset(side):
                raise InputError(f"Expected some of the {name} of {self.concept!r} to be left, but all {len(side)} are to go.")
        n = len(self.positives)
        kept = [row for row, id_ in enumerate(self.ids) if id_ not in gone]
        return self.reordered([row for row in kept if row < n], [row for row in kept if row >= n])

    def reordered(self, positives: Iterable[int], negatives: Iterable[int]) -> ConceptSet:
        """A set of these rows (positions in `ids`) of this one, on the sides told; everything known of an image goes with it."""
        sides = [[int(row) for row in rows] for rows in (positives, negatives)]
        known: dict[str, Any] = {
            name: tuple(getattr(self, name)[row] for row in (*sides[0], *sides[1])) for name in _PER_IMAGE if getattr(self, name)
        }
        ids = [tuple(self.ids[row] for row in rows) for rows in sides]
        return dataclasses.replace(self, positives=ids[0], negatives=ids[1], **known)

    def split(self, *, held_out: float, seed: int = 0) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Hold out a share of each class; near-duplicates stay together.

        Parameters
        ----------
        held_out : float
            Share of the images of each class, in (0, 1). A group of near-duplicates that would go over it stays in the
            training part.
        seed : int, default 0

        Returns
        -------
        train, test : ndarray of int, [n_train], [n_test]
            Rows: positions in `ids`.

        Raises
        ------
        InputError
            `held_out` is not between 0 and 1, or leaves a part with one class.
        """
        from sklearn.model_selection import train_test_split

        check_share("held_out", held_out)
        check_seed(seed)
        targets, groups, n = self.targets, self.duplicates, len(self.positives)
        try:
            if len(set(groups)) == len(groups):
                train, test = train_test_split(np.arange(len(targets)), test_size=held_out, stratify=targets, random_state=seed)
            else:
                generator = np.random.default_rng(seed)
                held = groups_of_each_class(targets, np.asarray(groups), held_out, generator, classes=(0, 1))
                train, test = generator.permutation(np.flatnonzero(~held)), generator.permutation(np.flatnonzero(held))
            have_both = all(len(set(targets[rows])) == 2 for rows in (train, test))
        except ValueError:  # fewer images than parts, or of a class
            have_both = False
        if not have_both:
            together = f" (in {len(set(groups[:n]))} and {len(set(groups[n:]))} groups of near-duplicates, which are not taken apart)"
            raise InputError(
                f"Expected both classes of {self.concept!r} in the training and in the held-out part, but {n} positives and "
                f"{len(self.negatives)} negatives{together if len(set(groups)) < len(groups) else ''} with {held_out:g} of them held out "
                "leave one with a single class. Give more images, or hold out another share."
            )
        return train, test

    def __repr__(self) -> str:
        return f"ConceptSet({self.concept!r}, {len(self.positives)} positives, {len(self.negatives)} negatives)"


@dataclass(frozen=True, eq=False, repr=False)
class ConceptSets(Mapping[str, ConceptSet]):
    """A `ConceptSet` per concept, and what they were made from.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"red": [True, True, False, False]}, index=["a", "b", "c", "d"])
    >>> ConceptSets.from_labels(table)["red"].positives
    ('a', 'b')
    """

    sets: Mapping[str, ConceptSet]
    metadata: Mapping[str, Any]

    @classmethod
    def from_labels(
        cls,
        given_labels: LabelTable,
        *,
        ids: Sequence[str] | None = None,
        n_positive: int | None = None,
        n_negative: int | None = None,
        seed: int = 0,
        group: str = "labels",
    ) -> ConceptSets:
        """Sets from a table that says which image shows which concept.

        Parameters
        ----------
        given_labels : GivenLabels, DataFrame, path of a CSV file, mapping, or ConceptScores of given labels
            Index: the images' ids; columns: the concepts; values: True or False, or 1 or 0. As in `neuroprobe.concepts.GivenLabels`.
        ids : sequence of str, optional
            The images, in this order: of a table without ids, all its rows; of others, those to take. By default all.
        n_positive, n_negative : int, optional
            Draw so many at random of each side; by default all are taken.
        seed : int, default 0
            Of the draw; what is drawn for a concept does not depend on the other columns.
        group : str, default "labels"
            The group that all concepts are in.

        Raises
        ------
        InputError
            Ids or concepts that occur twice, other values, or fewer images on a side than asked for.
        """
        from neuroprobe.concepts._tables import read_table, truth_of  # pandas with it, which sets do without

        check_seed(seed)
        check_counts(**{name: n for name, n in (("n_positive", n_positive), ("n_negative", n_negative)) if n is not None})
        table = read_table(given_labels, ids=ids)
        shown, ids = truth_of(table), [str(id_) for id_ in table.index]
        sets = {}
        for concept, column in zip(table.columns, shown.T, strict=True):
            generator, sides = generator_of(concept, group, seed), []
            for rows, n, what in ((np.flatnonzero(column), n_positive, "show"), (np.flatnonzero(~column), n_negative, "do not show")):
                if len(rows) < (n or 1):
                    raise InputError(f"Expected at least {n or 1} images that {what} {concept!r}, but the labels have {len(rows)}.")
                drawn = rows if n is None else generator.choice(rows, size=n, replace=False)
                sides.append(tuple(ids[row] for row in drawn))
            sets[concept] = ConceptSet(concept, group, sides[0], sides[1])
        return cls(sets, {"made_from": "labels", "n_images": len(ids), "n_positive": n_positive, "n_negative": n_negative, "seed": seed})

    @classmethod
    def from_folders(
        cls, positives: str | Path, negatives: str | Path, *, concept: str, group: str = "folders"
    ) -> tuple[ConceptSets, Images]:
        """One concept's set from two folders of images, and the images of both.

        Parameters
        ----------
        positives, negatives : folder
            Searched recursively. An image's id is "positives/" or "negatives/" and its path in the folder.
        concept : str
        group : str, default "folders"

        Returns
        -------
        sets : ConceptSets
        images : Images
            What to record and probe.

        Raises
        ------
        InputError
            A folder without images, or one picture in both folders (the same file content).
        UnreadableImageError
            A file that does not begin like an image.
        """
        ours, others = Images(positives), Images(negatives)
        seen = {ours.digest(i): id_ for i, id_ in enumerate(ours.ids)}
        for i, id_ in enumerate(others.ids):
            twin = seen.get(others.digest(i))
            if twin is not None:
                raise InputError(f"Expected no picture in both folders, but {id_!r} of the negatives is {twin!r} of the positives.")
        images, n = Images.concat(ours, others, names=["positives", "negatives"]), len(ours)
        sets = {concept: ConceptSet(concept, group, images.ids[:n], images.ids[n:])}
        return cls(sets, {"made_from": "folders", "images": images.fingerprint}), images

    def with_types(self, types: Mapping[str, Hashable]) -> ConceptSets:
        """The same sets, with the type of every image: its given class, say.

        `types` is a mapping from id to type, of all images of the sets at least; `InputError` if one has none.
        """
        numbers = {type_: i for i, type_ in enumerate(dict.fromkeys(types[id_] for id_ in sorted(types)))}
        sets = {}
        for concept, set_ in self.items():
            _check_known(types, set_, "a type")
            sets[concept] = dataclasses.replace(set_, types=tuple(numbers[types[id_]] for id_ in set_.ids))
        return ConceptSets(sets, {**self.metadata, "types": "given"})

    def with_near_duplicates(self, groups: Mapping[str, int]) -> ConceptSets:
        """The same sets, knowing which images are near-duplicates; negatives that nearly equal a positive are left out.

        `groups` is a mapping from id to group, as from `neuroprobe.images.near_duplicates`, of all images of the sets at least;
        `InputError` if one has none, or if all negatives of a concept nearly equal a positive.
        """
        sets, left_out = {}, {}
        for concept, set_ in self.items():
            _check_known(groups, set_, "a group of near-duplicates")
            ours = {groups[id_] for id_ in set_.positives}
            left_out[concept] = [id_ for id_ in set_.negatives if groups[id_] in ours]
            kept = dataclasses.replace(set_, duplicates=()).without(left_out[concept])
            sets[concept] = dataclasses.replace(kept, duplicates=tuple(groups[id_] for id_ in kept.ids))
        return ConceptSets(sets, {**self.metadata, "near_duplicates": {"left_out": {c: ids for c, ids in left_out.items() if ids}}})

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

    def __repr__(self) -> str:
        return f"ConceptSets({len(self)} concepts: {', '.join(self)})"

    def _repr_html_(self) -> str:
        rows = [
            (s.concept, s.group, len(s.positives), len(s.negatives), len(s.ids) - len(set(s.duplicates)) if s.duplicates else "unknown")
            for s in self.values()
        ]
        images = {id_ for concept_set in self.values() for id_ in concept_set.ids}
        columns = ("concept", "group", "positives", "negatives", "near-duplicates")
        return table_html("ConceptSets", f"{len(rows)} concepts on {len(images):,} images", columns, rows, n_rows=len(rows))


def generator_of(concept: str, group: str, seed: int) -> np.random.Generator:
    """What is drawn for a concept: it depends on the seed, its group and its name, and on nothing else that is asked."""
    return np.random.default_rng((seed, zlib.crc32(f"{group}/{concept}".encode(errors="surrogatepass"))))


def groups_of_each_class(
    targets: npt.NDArray[np.int64], groups: npt.NDArray[Any], share: float, generator: np.random.Generator, *, classes: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """Which images are taken, [n_images]: of each class in turn, whole groups at random, as long as they fit into its share."""
    taken = np.zeros(len(targets), dtype=bool)
    for target in classes:
        rows = np.flatnonzero(targets == target)
        taken[fitting_groups(rows, groups, round(share * len(rows)), generator)] = True
    return taken


def _check_known(known: Mapping[str, Any], concept_set: ConceptSet, what: str) -> None:
    missing = next((id_ for id_ in concept_set.ids if id_ not in known), None)
    if missing is not None:
        raise InputError(f"Expected {what} for every image of {concept_set.concept!r}, but {missing!r} has none.")
