"""Rows by what a unit does on them: the k highest values of every unit in whatever order rows arrive, and those at a quantile."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroprobe.exceptions import InputError

N_ROWS = 1 << 32  # row numbers below this fit into a key
_LOW_WORD = N_ROWS - 1
_SIGN = np.uint32(1 << 31)
_UNITS = 1024  # sorted at a time


class Extremes:
    """The k highest values of every unit; of equal values, those of the lowest rows.

    A value and its row are one 64-bit key: above, the float32's bits made to sort as numbers do; below, the row,
    lower rows higher. No two keys are equal, so that there is exactly one right answer. The key 0 (below every
    finite value's) is an empty place. Values that beat a unit's k-th highest wait in k places more, so that keys
    are sorted now and then only.
    """

    def __init__(self, n_units: int, k: int) -> None:
        self.k = k
        self._keys = np.zeros((n_units, 2 * k), np.uint64)  # waiting, then the k highest in ascending order
        self._waiting = np.zeros(n_units, np.int64)

    def add(self, values: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], highest: npt.NDArray[np.float32]) -> None:
        """Add rows of finite values, [n, n_units], given each unit's highest among them, [n_units]."""
        bars = _bars(self._keys[:, self.k], rows.min())
        entering = np.flatnonzero(highest > bars)  # the others' best is not enough
        for start in range(0, len(entering), _UNITS):
            units = entering[start : start + _UNITS]
            self._add_units(units, values[:, units].T, rows, bars[units])

    def _add_units(
        self, units: npt.NDArray[np.int64], values: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], bars: npt.NDArray[np.float32]
    ) -> None:
        unit, column = np.divmod(np.flatnonzero(np.ascontiguousarray(values > bars[:, None])), len(rows))  # by unit
        counts = np.bincount(unit, minlength=len(units))
        waiting = self._waiting[units]
        if (waiting + counts).max() > self.k:
            self._settle(units, _keys(values, rows))
            return
        place = np.arange(len(unit)) + (waiting + counts - np.cumsum(counts))[unit]  # each unit's follow those that wait
        self._keys[units[unit], self.k - 1 - place] = _keys(values[unit, column], rows[column])
        self._waiting[units] += counts

    def _settle(self, units: npt.NDArray[np.int64], new: npt.NDArray[np.uint64]) -> None:
        first = self.k - self._waiting[units].max(initial=0)
        keys = np.concatenate([self._keys[units, first:], new], axis=1)  # [n_units, waiting + k + n]
        keys.sort(axis=1)
        self._keys[units, : self.k] = 0
        self._keys[units, self.k :] = keys[:, -self.k :]
        self._waiting[units] = 0

    def merge(self, other: Extremes) -> Extremes:
        """The highest of what is in either."""
        merged = Extremes.from_array(self.to_array())
        theirs = other.to_array()
        for start in range(0, len(theirs), _UNITS):
            units = np.arange(start, min(start + _UNITS, len(theirs)))
            merged._settle(units, theirs[units])
        return merged

    def to_array(self) -> npt.NDArray[np.uint64]:
        """The keys of the k highest in ascending order, [n_units, k]."""
        late = np.flatnonzero(self._waiting)
        self._settle(late, np.zeros((len(late), 0), np.uint64))
        return self._keys[:, self.k :].copy()

    @classmethod
    def from_array(cls, keys: npt.NDArray[np.uint64]) -> Extremes:
        """The inverse of `to_array`."""
        if keys.dtype != np.uint64 or keys.ndim != 2 or (keys[:, 1:] < keys[:, :-1]).any():
            raise InputError(f"Expected keys as uint64 [n_units, k], ascending, but got {keys.dtype} {keys.shape}.")
        extremes = cls(*keys.shape)
        extremes._keys[:, extremes.k :] = keys
        return extremes

    def decode(self, count: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Values and rows, highest first, [n_units, min(k, count)], after ``count`` rows."""
        return _decoded(self.to_array()[:, ::-1][:, : min(count, self.k)])


def _keys(values: npt.NDArray[np.float32], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Keys of values [..., n] of rows [n]; negative zero counts as zero."""
    bits = (values + np.float32(0)).view(np.uint32)
    ordered = bits ^ ((bits.view(np.int32) >> 31).view(np.uint32) | _SIGN)  # negative: every bit; positive: the sign
    keys = ordered.astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= (_LOW_WORD - rows).astype(np.uint64)
    return keys


def _decoded(keys: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    ordered = (keys >> np.uint64(32)).astype(np.uint32)
    bits = np.where(ordered & _SIGN, ordered ^ _SIGN, ~ordered)
    return bits.view(np.float32), _LOW_WORD - (keys & np.uint64(_LOW_WORD)).astype(np.int64)


def _bars(keys: npt.NDArray[np.uint64], first_row: np.int64) -> npt.NDArray[np.float32]:
    """What a value must be above, to beat a key from row ``first_row`` on or later; minus infinity where the key is empty."""
    values, rows = _decoded(keys)
    with np.errstate(over="ignore", under="ignore"):  # below the lowest float32 is minus infinity, which is right
        below: npt.NDArray[np.float32] = np.nextafter(values, np.float32(-np.inf))
    return np.where(keys == 0, np.float32(-np.inf), np.where(rows > first_row, below, values))


def places_at(ascending: npt.NDArray[Any], quantile: float, k: int) -> list[int]:
    """The k of n sorted values whose ranks are nearest to ``quantile * (n - 1)``, as places counted from the highest.

    Equal values share their ranks; if only some of them are wanted, they are taken evenly. At the quantile 1 they are the k highest.

    Examples
    --------
    >>> places_at(np.arange(101.0), 0.9, 3), places_at(np.zeros(100), 0.5, 2), places_at(np.zeros(100), 1, 2)
    ([9, 10, 11], [25, 75], [0, 1])
    """
    if quantile == 1:
        return list(range(min(k, len(ascending))))
    n = len(ascending)

    def distance(place: int) -> float:  # of its rank, counted from the lowest
        return abs(n - 1 - place - quantile * (n - 1)) if 0 <= place < n else math.inf

    nearest = round((1 - quantile) * (n - 1))
    start = min(range(max(nearest - 1, 0), min(nearest + 2, n)), key=distance)  # of equally near ones the higher
    first, end = _tied(ascending, start)
    places = _evenly(first, end, k)
    while len(places) < min(k, n):
        higher = distance(first - 1) <= distance(end)
        low, high = _tied(ascending, first - 1 if higher else end)
        first, end = min(first, low), max(end, high)
        places += _evenly(low, high, k - len(places))
    return sorted(places)


def _tied(ascending: npt.NDArray[Any], place: int) -> tuple[int, int]:
    """The first place of the values equal to the one at this place, and the one after their last."""
    n, value = len(ascending), ascending[len(ascending) - 1 - place]
    return n - int(np.searchsorted(ascending, value, side="right")), n - int(np.searchsorted(ascending, value, side="left"))


def _evenly(first: int, end: int, k: int) -> list[int]:
    """k places from `first` to before `end`, or all of them: from the middles of equal parts."""
    k = min(k, end - first)
    return [first + int((i + 0.5) * (end - first) / k) for i in range(k)]
