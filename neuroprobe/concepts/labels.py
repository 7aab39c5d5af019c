"""Given labels: a table of booleans or scores as a source of concepts, beside the encoders.

Attributes somebody annotated, classes, masks turned into shares of the picture, another model's scores: whatever says of every
image how much of each concept is in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image

from neuroprobe._core import BoolArray, fingerprint_bytes, fingerprint_texts
from neuroprobe.concepts._tables import LabelTable, not_boolean, read_table, rows_of, truth_of
from neuroprobe.concepts.scores import ConceptScores
from neuroprobe.concepts.sets import ConceptSets
from neuroprobe.concepts.vocabulary import ConceptGroup, Vocabulary
from neuroprobe.exceptions import InputError, shown
from neuroprobe.images import BatchRecord, Collected, Images, Transform, check_images, collect
from neuroprobe.recording import Activations


class GivenLabels:
    """A table that says how much of every concept is in every image, as a source of `ConceptScores`.

    Parameters
    ----------
    table : DataFrame, path of a CSV file, mapping, array, or other given labels
        [n_images, n_concepts], booleans or numbers. A DataFrame has the images' ids as its index and the concepts as its columns; a
        CSV file has them as its first column and its first line; a mapping has a mapping from concept to value for every id. The
        order of the images does not matter, and there may be more than are asked for. A table without ids (an array, a mapping
        from concept to an array, a DataFrame whose index only counts its rows) is in the order of the images, one row for each.
    ids : sequence of str, optional
        The images, in this order: of a table without ids, all its rows; of others, those to keep.
    concepts : sequence of str, optional
        The columns of an array, which needs them; of the other kinds, those to keep, in this order.
    groups : mapping from group to concepts, optional
        By default one group, "labels", of all concepts.

    Attributes
    ----------
    table : DataFrame, [n_images, n_concepts]
        Its index is that of the table given: the ids, or a count of the rows.
    is_boolean : bool
        Whether all values are true or false, or 1 or 0.

    Raises
    ------
    InputError
        An image or concept twice, an image without labels, a value that is missing, infinite or no number, or concepts that the
        table does not have.

    Notes
    -----
    Their `ConceptScores` hold the labels as image vectors and the unit matrix as text vectors, so that similarities, blocks,
    `dissect` and every similarity function see the labels themselves.

    Examples
    --------
    >>> table = pd.DataFrame({"red": [True, False], "big": [False, False]}, index=["b.png", "a.png"])
    >>> labels = GivenLabels(table)
    >>> labels.concepts, labels.is_boolean
    (('red', 'big'), True)
    >>> labels.truth.tolist()
    [[True, False], [False, False]]
    """

    def __init__(
        self,
        table: LabelTable,
        *,
        ids: Sequence[str] | None = None,
        concepts: Sequence[str] | None = None,
        groups: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        frame = read_table(table, ids=ids, concepts=concepts)
        parts = {"labels": frame.columns} if groups is None else groups
        self.vocabulary = Vocabulary([ConceptGroup(name, tuple(members), templates=("{}",)) for name, members in parts.items()])
        odd = sorted(set(self.vocabulary.names) ^ set(frame.columns))
        if odd:
            raise InputError(
                f"Expected `groups` to hold every concept of the labels once and no other, but {odd[0]!r} is in one of them alone."
            )
        self.table = frame[list(self.vocabulary.names)]
        self.is_boolean = not not_boolean(self.table).any()
        self._values = np.ascontiguousarray(self.table.to_numpy(dtype=np.float32))  # [n_images, n_concepts]

    @property
    def ids(self) -> tuple[str, ...]:
        """The images: the rows. Of a table without ids, the rows' numbers."""
        return tuple(map(str, self.table.index))

    @property
    def concepts(self) -> tuple[str, ...]:
        """The concepts: the columns."""
        return self.vocabulary.names

    @property
    def fingerprint(self) -> str:
        """Fingerprint of ids, concepts and values."""
        return fingerprint_texts([str(len(self)), *self.ids, *self.concepts, fingerprint_bytes(self._values.astype("<f4").tobytes())])

    @property
    def truth(self) -> npt.NDArray[np.bool_]:
        """Which concept is in which image, [n_images, n_concepts], in the table's order; `InputError` unless all are true or false."""
        return truth_of(self.table)

    def score(
        self, images: Images, *, batch_size: int = 64, workers: int = 0, distributed: bool = False, progress: bool | None = None
    ) -> ConceptScores:
        """The labels of a probing set, in its order.

        Parameters
        ----------
        images : Images
        batch_size, workers, distributed, progress
            As in `neuroprobe.images.collect`, which reads the images once to know them by content.

        Raises
        ------
        InputError
            An image that has no labels.
        """
        check_images(images)
        labels = self
        if not images.is_stream:
            rows_of(self.table.index, images.ids)
            labels = GivenLabels(self, ids=images.ids) if self._is_in_order else self  # an image that is skipped has a row too
        reading: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "distributed": distributed, "progress": progress}
        (scores,) = collect(images, [labels.consumer()], description="labels", **reading)
        return scores  # type: ignore[no-any-return]

    def score_like(self, activations: Activations | ConceptScores) -> ConceptScores:
        """The labels of images that were recorded or scored already, in that order; no image is read.

        Parameters
        ----------
        activations : Activations or ConceptScores
            Whose ids and images are taken over.

        Raises
        ------
        InputError
            An image that has no labels, or a summary, which does not know all its images.
        """
        if not isinstance(activations, (Activations, ConceptScores)):
            raise InputError(f"Expected activations or concept scores, but got {shown(activations)}. Of images: labels.score(images).")
        return self._scores(activations.ids, images=activations.metadata.get("images"), skipped=activations.metadata.get("skipped") or {})

    def consumer(self) -> LabelPass:
        """This source as a consumer of `neuroprobe.images.collect`, whose result is the `ConceptScores`."""
        return LabelPass(self)

    def _scores(self, ids: Sequence[str], *, images: Any, skipped: Mapping[str, str]) -> ConceptScores:
        return ConceptScores(
            image_vectors=torch.from_numpy(self._values[rows_of(self.table.index, ids)]),
            text_vectors=torch.eye(len(self.concepts)),
            vocabulary=self.vocabulary,
            ids=tuple(ids),
            temperature=None,
            metadata={
                "labels": self.fingerprint,
                "boolean_labels": self.is_boolean,
                "vocabulary": self.vocabulary.fingerprint,
                "images": images,
                "skipped": dict(skipped),
            },
        )

    @property
    def _is_in_order(self) -> bool:
        return isinstance(self.table.index, pd.RangeIndex)

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        return f"GivenLabels({len(self)} images, {len(self.concepts)} concepts)"


class LabelPass:
    """A consumer that wants to know which images there are, and nothing of their pixels."""

    def __init__(self, labels: GivenLabels) -> None:
        self._labels = labels

    @property
    def transform(self) -> Transform:
        return _nothing

    def consume(self, batch: torch.Tensor, record: BatchRecord) -> None:
        if not self._labels._is_in_order:
            rows_of(self._labels.table.index, record.ids)  # a stream's missing labels show here, not at its end

    def finish(self, collected: Collected) -> ConceptScores:
        return self._labels._scores(collected.ids, images=collected.fingerprint, skipped=collected.skipped)


def _nothing(image: Image.Image) -> torch.Tensor:
    return torch.empty(0)


def as_labels(given_labels: LabelTable, ids: Sequence[str] | None = None, *, concepts: Sequence[str] | None = None) -> GivenLabels:
    """Given labels of these images in this order, from a table of any kind.

    `ids` and `concepts` are as in `GivenLabels`, which refuses what does not fit: with the same `InputError` in every function that takes
    such a table.
    """
    if ids is None and concepts is None and isinstance(given_labels, GivenLabels):
        return given_labels
    return GivenLabels(given_labels, ids=ids, concepts=concepts)


def shown_concepts(given_labels: LabelTable | ConceptSets, ids: Sequence[str]) -> dict[str, tuple[BoolArray, BoolArray]]:
    """For every concept, which images show it and which are its control: two masks over the images, [n_images].

    Of a table, the control is all others; of concept sets, whose images are found by their ids, the negatives. `InputError` as from
    `as_labels`, or for labels that are not all true or false.
    """
    if isinstance(given_labels, ConceptSets):
        index = pd.Index(list(ids))
        return {concept: (index.isin(set_.positives), index.isin(set_.negatives)) for concept, set_ in given_labels.items()}
    labels = as_labels(given_labels, ids)
    return {concept: (mask, ~mask) for concept, mask in zip(labels.concepts, labels.truth.T, strict=True)}
