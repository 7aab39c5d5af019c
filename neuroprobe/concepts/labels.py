"""Given labels: a table of booleans or scores as a source of concepts, beside the encoders.

Attributes somebody annotated, classes, masks turned into shares of the picture, another model's scores: whatever says of every
image how much of each concept is in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image

from neuroprobe._core import BoolArray, fingerprint_bytes, fingerprint_texts
from neuroprobe.concepts.concept_sets import ConceptSets
from neuroprobe.concepts.scores import ConceptScores
from neuroprobe.concepts.vocabulary import ConceptGroup, Vocabulary
from neuroprobe.exceptions import InputError
from neuroprobe.images import BatchRecord, Collected, Images, Transform, collect

#: What labels can be made from.
Table: TypeAlias = "pd.DataFrame | str | Path | Mapping[str, Mapping[str, float]] | npt.NDArray[Any]"


_NUMBERS = (bool, int, float, np.integer, np.floating, np.bool_)


class OfImages(Protocol):
    """Whatever has rows of images: a recording, its summary, other scores."""

    @property
    def ids(self) -> tuple[str, ...]: ...

    @property
    def metadata(self) -> Mapping[str, Any]: ...


class GivenLabels:
    """A table that says how much of every concept is in every image, as a source of `ConceptScores`.

    Parameters
    ----------
    table : DataFrame, path of a CSV file, mapping, or array
        [n_images, n_concepts], booleans or numbers. A DataFrame has the images' ids as its index and the concepts as its columns; a
        CSV file has them as its first column and its first line; a mapping has a mapping from concept to value for every id. An
        array needs `ids` and `concepts`. The order of the images does not matter, and there may be more than are asked for.
    ids : sequence of str, optional
        The rows of an array.
    concepts : sequence of str, optional
        The columns of an array; of the other kinds, those to keep, in this order.
    groups : mapping from group to concepts, optional
        By default one group, "labels", of all concepts.

    Attributes
    ----------
    table : DataFrame, [n_images, n_concepts]
        For what takes a table: ``ConceptSets.from_labels(labels.table)``.
    is_boolean : bool
        Whether all values are true or false, or 1 or 0.

    Raises
    ------
    InputError
        An image or concept twice, a value that is missing, infinite or no number, or ids and concepts that do not fit.

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
        table: Table,
        *,
        ids: Sequence[str] | None = None,
        concepts: Sequence[str] | None = None,
        groups: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        frame = _as_frame(table, ids, concepts)
        _check_once(frame.index, "image")
        _check_once(frame.columns, "concept")
        self.vocabulary = _vocabulary([str(name) for name in frame.columns], groups)
        self.table = frame[list(self.vocabulary.names)]
        self._values = _numbers(self.table)  # [n_images, n_concepts]
        self.is_boolean = bool(((self._values == 0) | (self._values == 1)).all())
        self._rows = {str(id_): row for row, id_ in enumerate(self.table.index)}

    @property
    def ids(self) -> tuple[str, ...]:
        """The images: the rows."""
        return tuple(self._rows)

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
        """Which concept is in which image, [n_images, n_concepts], in the table's order.

        Raises
        ------
        InputError
            Not all values are true or false.
        """
        if not self.is_boolean:
            raise InputError("Expected labels that are all true or false, but they are scores. Compare them with a threshold first.")
        return np.equal(self._values, 1)

    def score(self, images: Images, *, batch_size: int = 64, workers: int = 0, progress: bool | None = None) -> ConceptScores:
        """The labels of a probing set, in its order.

        Parameters
        ----------
        images : Images
        batch_size, workers, progress
            As in `neuroprobe.images.passes.collect`, which reads the images once to know them by content.

        Raises
        ------
        InputError
            An image that has no labels.
        """
        if not images.is_stream:
            self._rows_of(images.ids)
        (scores,) = collect(images, [self.consumer()], batch_size=batch_size, workers=workers, progress=progress, description="labels")
        return scores  # type: ignore[no-any-return]

    def score_like(self, recorded: OfImages) -> ConceptScores:
        """The labels of images that were recorded or scored already, in that order; no image is read.

        Parameters
        ----------
        recorded : Activations, ActivationSummary or ConceptScores
            Anything with ``ids`` and ``metadata``, whose "images" is taken over.

        Raises
        ------
        InputError
            An image that has no labels.
        """
        return self._scores(recorded.ids, images=recorded.metadata.get("images"), skipped=recorded.metadata.get("skipped") or {})

    def consumer(self) -> LabelPass:
        """This source as a consumer of `neuroprobe.images.passes.collect`, whose result is the `ConceptScores`."""
        return LabelPass(self)

    def _scores(self, ids: Sequence[str], *, images: Any, skipped: Mapping[str, str]) -> ConceptScores:
        return ConceptScores(
            image_vectors=torch.from_numpy(self._values[self._rows_of(ids)]),
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

    def _rows_of(self, ids: Sequence[str]) -> list[int]:
        missing = [id_ for id_ in ids if id_ not in self._rows]
        if missing:
            raise InputError(
                f"Expected labels of all {len(ids)} images, but {len(missing)} have none, such as {missing[0]!r}. "
                f"The table has {len(self._rows)} ids, such as {next(iter(self._rows))!r}."
            )
        return [self._rows[id_] for id_ in ids]

    def __len__(self) -> int:
        return len(self._rows)

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
        self._labels._rows_of(record.ids)  # a stream's missing labels show here, not at its end

    def finish(self, collected: Collected) -> ConceptScores:
        return self._labels._scores(collected.ids, images=collected.fingerprint, skipped=collected.skipped)


def _nothing(image: Image.Image) -> torch.Tensor:
    return torch.empty(0)


def _as_frame(table: Any, ids: Sequence[str] | None, concepts: Sequence[str] | None) -> pd.DataFrame:
    if isinstance(table, np.ndarray):
        return _frame_of_array(table, ids, concepts)
    if ids is not None:
        raise InputError(f"Expected no `ids` for a {type(table).__name__}, which has its own, but got some.")
    if isinstance(table, (str, Path)):
        frame = _read_csv(Path(table))
    elif isinstance(table, pd.DataFrame):
        frame = table
    elif isinstance(table, Mapping) and all(isinstance(row, Mapping) for row in table.values()):
        frame = pd.DataFrame.from_dict({str(id_): dict(row) for id_, row in table.items()}, orient="index")
    else:
        raise InputError(
            f"Expected a table, the path of a CSV file, a mapping from id to {{concept: value}}, or an array, but got {table!r:.80}."
        )
    frame = frame.set_axis(frame.index.map(str), axis=0).set_axis(frame.columns.map(str), axis=1)
    return frame if concepts is None else frame[_known(frame, concepts)]


def _frame_of_array(values: npt.NDArray[Any], ids: Sequence[str] | None, concepts: Sequence[str] | None) -> pd.DataFrame:
    if ids is None or concepts is None:
        raise InputError("Expected `ids` and `concepts` with an array: GivenLabels(array, ids=images.ids, concepts=[...]).")
    if values.shape != (len(ids), len(concepts)):
        raise InputError(f"Expected an array [{len(ids)} ids, {len(concepts)} concepts], but got {values.shape}.")
    return pd.DataFrame(values, index=list(ids), columns=list(concepts))


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        header = pd.read_csv(path, header=None, nrows=1, dtype=str).iloc[0, 1:]
        _check_once(pd.Index(header), "concept")  # pandas would give the second another name
        frame = pd.read_csv(path, index_col=0, dtype={0: str}, keep_default_na=False, na_values=[""])
        frame.columns = pd.Index(header, name=None)
    except OSError as error:
        raise InputError(f"Expected a CSV file of labels, but {str(path)!r} cannot be read: {error.strerror}.") from error
    except InputError:
        raise
    except (UnicodeDecodeError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise InputError(f"Expected a CSV file of labels, but {str(path)!r} is none: {str(error).strip()}") from error
    return frame


def _known(frame: pd.DataFrame, concepts: Sequence[str]) -> list[str]:
    missing = [concept for concept in concepts if concept not in frame.columns]
    if isinstance(concepts, str) or missing:
        raise InputError(f"Expected `concepts` to be columns of the table, but got {missing[0] if missing else concepts!r}.")
    return list(concepts)


def _check_once(names: pd.Index, what: str) -> None:
    if not len(names):
        raise InputError(f"Expected labels of at least one {what}, but got none.")
    texts = names.map(str)
    if not texts.is_unique:
        raise InputError(f"Expected every {what} once in the labels, but {texts[texts.duplicated()][0]!r} occurs twice.")


def _vocabulary(concepts: Sequence[str], groups: Mapping[str, Sequence[str]] | None) -> Vocabulary:
    if groups is None:
        return Vocabulary([ConceptGroup("labels", tuple(concepts), templates=("{}",))])
    vocabulary = Vocabulary([ConceptGroup(name, tuple(members), templates=("{}",)) for name, members in groups.items()])
    if set(vocabulary.names) != set(concepts):
        odd = sorted(set(vocabulary.names) ^ set(concepts))[0]
        raise InputError(f"Expected `groups` to hold every concept of the labels once and no other, but {odd!r} is in one of the two only.")
    return vocabulary


def _numbers(frame: pd.DataFrame) -> npt.NDArray[np.float32]:
    for name, column in frame.items():
        known = pd.api.types.is_bool_dtype(column) or (pd.api.types.is_numeric_dtype(column) and column.dtype.kind in "iuf")
        odd = [] if known else [value for value in column if not (isinstance(value, _NUMBERS) or pd.isna(value))]
        if odd:
            raise InputError(f"Expected labels that are booleans or numbers, but {name!r} has {odd[0]!r:.60}.")
        lacking = column.index[column.isna()]
        if len(lacking):
            raise InputError(f"Expected a label for every image, but {name!r} lacks that of {lacking[0]!r}. Fill it or drop it.")
    values = np.ascontiguousarray(frame.to_numpy(dtype=np.float32))
    if not np.isfinite(values).all():
        raise InputError("Expected finite labels, but one is infinite.")
    return values


#: Booleans [n_images, n_concepts]: given labels, a table with the images' ids as its index, or an array in the order of the activations.
Labels: TypeAlias = "GivenLabels | pd.DataFrame | npt.NDArray[np.bool_]"

#: Which images show which concept: a boolean per image under each concept's name, such as a dict of arrays in the order of
#: the activations; a DataFrame, in that order or with the images' ids as its index; given labels, or their `ConceptScores`;
#: or concept sets, whose images are found by their ids.
Shown: TypeAlias = "Mapping[str, npt.ArrayLike] | pd.DataFrame | GivenLabels | ConceptScores | ConceptSets"


def shown_concepts(shown: Shown, ids: Iterable[str]) -> dict[str, tuple[BoolArray, BoolArray]]:
    """For every concept, which images show it and which are its control: two masks over the images.

    Raises
    ------
    InputError
        A column that is not one boolean per image, or an image that a table's index lacks.
    """
    ids = list(ids)
    if isinstance(shown, ConceptSets):
        places = {name: place for place, name in enumerate(ids)}
        sets = {concept: shown[concept] for concept in shown}
        return {name: (_mask(s.positives, places), _mask(s.negatives, places)) for name, s in sets.items()}
    if isinstance(shown, GivenLabels):
        shown = pd.DataFrame(shown.truth, index=list(shown.ids), columns=list(shown.concepts))
    if isinstance(shown, ConceptScores):
        shown = pd.DataFrame(shown.truth.cpu().numpy(), index=list(shown.ids), columns=list(shown.concepts))
    if isinstance(shown, pd.DataFrame):
        shown = _in_order(shown, ids)
    elif not isinstance(shown, Mapping):
        raise InputError(f"Expected which image shows which concept, as a mapping, a table, given labels or sets, but got {shown!r:.80}.")
    known = {}
    for concept in shown:
        column = np.asarray(shown[concept])
        if column.shape != (len(ids),) or not (column.dtype == bool or np.isin(column, (0, 1)).all()):
            raise InputError(
                f"Expected one True or False for each of the {len(ids)} images under {concept!r}, but got {column.dtype} {column.shape}."
            )
        known[str(concept)] = (column.astype(bool), ~column.astype(bool))
    return known


def _in_order(table: pd.DataFrame, ids: list[str]) -> pd.DataFrame:
    """The rows of the images, by their ids; a table without an index of its own is in their order."""
    if isinstance(table.index, pd.RangeIndex):
        return table
    missing = [name for name in ids if name not in table.index]
    if missing or not table.index.is_unique:
        raise InputError(
            f"Expected a table whose index has every image's id once, but {f'{missing[0]!r} is missing' if missing else 'an id is twice'}. "
            "Or give one in the order of the images, with reset_index(drop=True)."
        )
    return table.loc[ids]


def _mask(members: Iterable[str], places: Mapping[str, int]) -> BoolArray:
    mask = np.zeros(len(places), dtype=bool)
    mask[[places[name] for name in members if name in places]] = True
    return mask
