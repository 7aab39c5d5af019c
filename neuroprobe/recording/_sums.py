"""Sums that lose nothing, so that they do not depend on the order or the grouping of what is added.

A sum of floating-point numbers depends on its order. Here each unit has a wide fixed-point number instead, as long
as the whole range of float32 (or of its squares), kept as 32-bit words in int64 with lazy carries: a long accumulator
(Kulisch & Miranker, 1981). To be fast, a batch is first cut into slices of at most 46 bits per number, whose column
sums float64 holds exactly (the error-free splitting of Rump, Ogita & Oishi, 2008); only these sums reach the words.

Sums per batch, added in the order of the batches, would give the same bits too, but only if each batch's are kept until the
last process has its own: for the images of ImageNet and 2,048 units 650 MB a layer, where these are 128 bytes a unit.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

_LOWEST_BIT, _HIGHEST_BIT = -149, 128  # every finite float32 is a multiple of 2**-149 and below 2**128
_COUNT_BITS = 33  # room for 2**32 terms, and a sign
_SLICE_BITS = 46
_ROWS = 1 << (53 - _SLICE_BITS)  # so many slices add up within the 53 bits of float64
_COLUMNS = 1024  # a block of float64 stays in the processor's cache
_WORD = 32
_LAZY_ADDITIONS = 1 << 30  # words grow by less than 2**32 each time, and int64 holds 2**63


class ExactSums:
    """The exact sum of float32 numbers, or with a `power` of 2 of their squares, for every unit."""

    def __init__(self, n_units: int, *, power: int) -> None:
        self.power = power
        n_words = -(-(power * (_HIGHEST_BIT - _LOWEST_BIT) + _COUNT_BITS) // _WORD)
        self._words = np.zeros((n_words, n_units), np.int64)  # least significant first
        self._additions = 0

    def add(self, values: npt.NDArray[np.float32], largest: npt.NDArray[np.float32]) -> None:
        """Add rows of finite values, [n, n_units], given each unit's largest magnitude among them, [n_units]."""
        exponents = np.frexp(largest)[1]  # largest < 2**exponents
        for rows in _blocks(values.shape[0], _ROWS):
            for columns in _blocks(values.shape[1], _COLUMNS):
                block = values[rows, columns].astype(np.float64)
                block = block if self.power == 1 else np.square(block, out=block)  # 48 bits: exact
                self._add_block(block, self.power * exponents[columns], np.arange(columns.start, columns.stop))

    def _add_block(self, rest: npt.NDArray[np.float64], exponents: npt.NDArray[np.int32], columns: npt.NDArray[np.int64]) -> None:
        while True:
            anchor = np.ldexp(1.5, exponents + 52 - _SLICE_BITS)  # its last bit is the slice's last bit
            part = rest + anchor
            part -= anchor
            rest -= part
            self._add_sums(part.sum(axis=0), columns)
            wide = rest.any(axis=0)
            if not wide.any():
                return
            exponents = exponents - _SLICE_BITS - 1  # rounding to nearest leaves half of the last bit
            if 2 * np.count_nonzero(wide) < wide.size:
                rest, exponents, columns = rest[:, wide], exponents[wide], columns[wide]

    def _add_sums(self, sums: npt.NDArray[np.float64], columns: npt.NDArray[np.int64]) -> None:
        scaled = np.ldexp(sums, -self.power * _LOWEST_BIT)  # whole numbers
        word = np.maximum(np.frexp(scaled)[1] - 53, 0) // _WORD
        scaled = np.ldexp(scaled, -_WORD * word)  # whole still, and below 2**85: three words
        flat, n_units = self._words.reshape(-1), self._words.shape[1]
        for place in (2, 1, 0):
            digit = np.trunc(scaled * 2.0 ** (-_WORD * place))
            scaled -= digit * 2.0 ** (_WORD * place)
            flat[(word + place) * n_units + columns] += digit.astype(np.int64)  # a view: each unit once
        self._additions += 1
        if self._additions >= _LAZY_ADDITIONS:
            self._carry()

    def _carry(self) -> None:
        for low, high in zip(self._words[:-1], self._words[1:], strict=True):
            high += low >> _WORD
            low &= (1 << _WORD) - 1
        self._additions = 1

    def merge(self, other: ExactSums) -> ExactSums:
        """The sums over what is in either."""
        merged = ExactSums(self._words.shape[1], power=self.power)
        merged._words = self.words_as_integers() + other.words_as_integers()
        merged._carry()
        return merged

    def words_as_integers(self) -> npt.NDArray[np.int64]:
        """The words after all carries, [n_words, n_units]; the last one has the sign."""
        self._carry()
        return self._words

    def to_array(self) -> npt.NDArray[np.uint32]:
        """The sums in two's complement, least significant word first, [n_units, n_words]; equal sums give equal words."""
        return np.ascontiguousarray(self.words_as_integers().T.astype(np.uint32))

    @classmethod
    def from_array(cls, array: npt.NDArray[np.uint32], *, power: int) -> ExactSums:
        """The inverse of `to_array`."""
        sums = cls(len(array), power=power)
        sums._words = np.ascontiguousarray(array.T.astype(np.int64))
        sums._words[-1] = array[:, -1].astype(np.int32)
        return sums

    def to_integers(self) -> list[int]:
        """The sums in units of 2**-149 (2**-298 for squares)."""
        return [int.from_bytes(row.astype("<u4").tobytes(), "little", signed=True) for row in self.to_array()]


def exact_moments(sums: ExactSums, squares: ExactSums, count: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and population variance (divided by ``count``) of every unit, each the float64 nearest to the true one."""
    means, variances = [], []
    for total, total_of_squares in zip(sums.to_integers(), squares.to_integers(), strict=True):
        means.append(total / (count << -_LOWEST_BIT))  # Python divides whole numbers of any length correctly rounded
        variances.append((count * total_of_squares - total**2) / (count**2 << -2 * _LOWEST_BIT))
    return np.array(means, np.float64), np.array(variances, np.float64)


def _blocks(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))
