"""The k highest values of every unit with the rows they came from, whatever the order in which rows arrive."""

from __future__ import annotations

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
    finite value's) is an empty place.
    """

    def __init__(self, n_units: int, k: int) -> None:
        self.keys = np.zeros((n_units, k), np.uint64)  # ascending

    def add(self, values: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], highest: npt.NDArray[np.float32]) -> None:
        """Add rows of finite values, [n, n_units], given each unit's highest among them, [n_units]."""
        entering = np.flatnonzero(_keys(highest, rows.min()) > self.keys[:, 0])  # the others' best is not enough
        for start in range(0, len(entering), _UNITS):
            units = entering[start : start + _UNITS]
            self.keys[units] = self._best(self.keys[units], _keys(values[:, units].T, rows))

    def merge(self, other: Extremes) -> Extremes:
        """The highest of what is in either."""
        merged = Extremes(*self.keys.shape)
        merged.keys = self._best(self.keys, other.keys)
        return merged

    @staticmethod
    def _best(held: npt.NDArray[np.uint64], new: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        keys = np.concatenate([held, new], axis=1)  # [n_units, k + n]
        keys.sort(axis=1)
        return np.ascontiguousarray(keys[:, -held.shape[1] :])

    @classmethod
    def from_array(cls, keys: npt.NDArray[np.uint64]) -> Extremes:
        """The inverse of the attribute ``keys``."""
        if keys.dtype != np.uint64 or keys.ndim != 2 or (keys[:, 1:] < keys[:, :-1]).any():
            raise InputError(f"Expected keys as uint64 [n_units, k], ascending, but got {keys.dtype} {keys.shape}.")
        extremes = cls(*keys.shape)
        extremes.keys = keys.copy()
        return extremes

    def decode(self, count: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Values and rows, highest first, [n_units, min(k, count)], after ``count`` rows."""
        keys = self.keys[:, ::-1][:, : min(count, self.keys.shape[1])]
        ordered = (keys >> np.uint64(32)).astype(np.uint32)
        bits = np.where(ordered & _SIGN, ordered ^ _SIGN, ~ordered)
        return bits.view(np.float32), _LOW_WORD - (keys & np.uint64(_LOW_WORD)).astype(np.int64)


def _keys(values: npt.NDArray[np.float32], rows: npt.NDArray[np.int64] | np.int64) -> npt.NDArray[np.uint64]:
    """Keys of values [..., n] and rows [n] (or one row); negative zero counts as zero."""
    bits = (values + np.float32(0)).view(np.uint32)
    ordered = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    return (ordered.astype(np.uint64) << np.uint64(32)) | np.asarray(_LOW_WORD - rows).astype(np.uint64)
