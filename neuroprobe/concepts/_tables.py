"""Tables of which image shows which concept: one rule and one error for every function that takes one.

Rows are found by the images' ids. A table without ids of its own (an array, a mapping from concepts to arrays, a DataFrame
whose index only counts its rows) is in the order of the images, and has one row for each of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from neuroprobe._core import BoolArray
from neuroprobe.exceptions import InputError, suggest


class HasTable(Protocol):
    """Given labels, and concept scores made of them."""

    @property
    def table(self) -> pd.DataFrame: ...


#: Which image shows which concept, as booleans, or as numbers that say how much of it: given labels or their `ConceptScores`; a
#: DataFrame (index: ids, columns: concepts); the path of a CSV file (ids in its first column); a mapping from id to {concept: value};
#: or, in the order of the images, a mapping from concept to one value per image, or an array [n_images, n_concepts].
LabelTable: TypeAlias = (
    "HasTable | pd.DataFrame | str | Path | Mapping[str, Mapping[str, float]] | Mapping[str, npt.ArrayLike] | npt.NDArray[Any]"
)

_NUMBERS = (bool, int, float, np.integer, np.floating, np.bool_)


def read_table(table: LabelTable, *, ids: Sequence[str] | None = None, concepts: Sequence[str] | None = None) -> pd.DataFrame:
    """A table of finite numbers or booleans, each image and each concept once; without ids, its index is a RangeIndex.

    `ids` are the images, in the order that is wanted; `concepts` the columns of an array, or those to keep, in this order.
    `InputError` for what is no table, an image or concept twice, an image without labels, or a value that is missing, infinite or no
    number.
    """
    frame = _as_frame(table, concepts)
    _check_once(frame.index, "image")
    _check_once(frame.columns, "concept")
    frame = frame.set_axis(frame.columns.map(str), axis=1)
    if not isinstance(frame.index, pd.RangeIndex):
        frame = frame.set_axis(frame.index.map(str), axis=0)
    if concepts is not None:
        if isinstance(concepts, str):
            raise InputError(f"Expected a list of `concepts`, but got the single text {concepts!r}. Write [{concepts!r}].")
        missing = [concept for concept in concepts if concept not in frame.columns]
        if missing:
            raise InputError(f"Expected `concepts` of the table, but got {missing[0]!r}. {suggest(missing[0], frame.columns)}")
        frame = frame[list(concepts)]
    if ids is not None:
        if isinstance(ids, str):
            raise InputError(f"Expected a list of ids, but got the single id {ids!r}. Write [{ids!r}].")
        in_order = isinstance(table, np.ndarray) and len(ids) == len(table)
        frame = frame.iloc[slice(None) if in_order else rows_of(frame.index, ids)].set_axis([str(id_) for id_ in ids], axis=0)
        _check_once(frame.index, "image")
    _check_numbers(frame)
    return frame


def rows_of(index: pd.Index, ids: Sequence[str]) -> npt.NDArray[np.int64]:
    """The rows of images in a table with this index, [n_ids]: by id, or in order if it has none; `InputError` if one lacks its row."""
    texts = index.map(str)
    if isinstance(index, pd.RangeIndex):
        # ids that are the rows' own numbers, in another order, may mean either: such a table is refused
        if len(ids) == len(index) and (list(ids) == list(texts) or set(ids) != set(texts)):
            return np.arange(len(index))
        raise InputError(
            f"Expected labels with ids, or a row for each of the {len(ids)} images in their order, but got {len(index)} rows without ids. "
            "Give the table the images' ids as its index."
        )
    rows: npt.NDArray[np.int64] = texts.get_indexer(pd.Index(list(ids), dtype=object))
    missing = np.flatnonzero(rows < 0)
    if len(missing):
        raise InputError(
            f"Expected labels of all {len(ids)} images, but {len(missing)} have none, such as {ids[missing[0]]!r}. "
            f"The table has {len(index)} ids, such as {texts[0]!r}."
        )
    return rows


def truth_of(frame: pd.DataFrame) -> BoolArray:
    """Which concept is in which image, [n_images, n_concepts]; `InputError` for a value that is not true or false, 1 or 0."""
    wrong = not_boolean(frame)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise InputError(
            f"Expected labels that are all true or false, or 1 or 0, but {str(frame.index[row])!r} has {frame.iat[row, column]} for "
            f"{frame.columns[column]!r}. Compare scores with a threshold first, and leave out images that nobody labeled."
        )
    return np.ascontiguousarray(frame.to_numpy(), dtype=bool)


def not_boolean(frame: pd.DataFrame) -> BoolArray:
    """Which values are not true or false, or 1 or 0, [n_images, n_concepts]."""
    boolean: BoolArray = ((frame == 0) | (frame == 1)).to_numpy(dtype=bool)
    return ~boolean


def _as_frame(table: Any, concepts: Sequence[str] | None) -> pd.DataFrame:
    if isinstance(table, (str, Path)):
        return _read_csv(Path(table))
    if isinstance(table, np.ndarray):
        n_names = 0 if concepts is None else len(concepts)
        if table.ndim != 2 or table.shape[1] != n_names:
            raise InputError(
                f"Expected an array [n_images, n_concepts] and `concepts` that name its columns, but got {table.shape} and {n_names} names."
            )
        return pd.DataFrame(table, columns=list(concepts or ()))
    if isinstance(table, Mapping) and all(isinstance(row, Mapping) for row in table.values()):
        return pd.DataFrame.from_dict({str(id_): dict(row) for id_, row in table.items()}, orient="index")
    if isinstance(table, Mapping):
        try:
            return pd.DataFrame({name: column if isinstance(column, pd.Series) else np.asarray(column) for name, column in table.items()})
        except ValueError:  # no column, or columns of several lengths
            table = dict(table)
    frame = table if isinstance(table, pd.DataFrame) else getattr(table, "table", None)
    if not isinstance(frame, pd.DataFrame):
        raise InputError(
            "Expected which image shows which concept, as given labels, a DataFrame, the path of a CSV file, an array, or a mapping from "
            f"id to {{concept: value}} or from concept to one value per image, but got {table!r:.80}."
        )
    return frame


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


def _check_once(names: pd.Index, what: str) -> None:
    if not len(names):
        raise InputError(f"Expected labels of at least one {what}, but got none.")
    texts = names.map(str)
    if not texts.is_unique:
        raise InputError(f"Expected every {what} once in the labels, but {texts[texts.duplicated()][0]!r} occurs twice.")


def _check_numbers(frame: pd.DataFrame) -> None:
    for name, column in frame.items():
        known = pd.api.types.is_bool_dtype(column) or (pd.api.types.is_numeric_dtype(column) and column.dtype.kind in "iuf")
        odd = [] if known else [value for value in column if not (isinstance(value, _NUMBERS) or pd.isna(value))]
        if odd:
            raise InputError(f"Expected labels that are booleans or numbers, but {name!r} has {odd[0]!r:.60}.")
        lacking = column.index[column.isna()]
        if len(lacking):
            raise InputError(f"Expected a label for every image, but {name!r} lacks that of {str(lacking[0])!r}. Fill it or drop it.")
        if not np.isfinite(column.to_numpy(dtype=np.float32)).all():
            raise InputError(f"Expected finite labels, but {name!r} has an infinite one.")
