"""The units of a layer as probes see them: centered, scaled, and rotated into few dimensions where there are fewer images."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from neuroprobe.exceptions import InputError

Scaling: TypeAlias = Literal["unit", "layer"]

_Array: TypeAlias = npt.NDArray[Any]

#: Eigenvalues (squared singular values) below this share of the greatest are rounding.
_RELATIVE_RANK = 1e-10


class Coordinates:
    """Centered and scaled units, rotated into the span of the training images if there are fewer images than units.

    Everything is learned from the training part alone, and computed in float64, some columns at a time: spatial
    features are large, and a float64 copy of them all would be twice as large.
    """

    def __init__(self, X: _Array, scaling: Scaling, *, rotate: bool = True) -> None:
        if scaling not in ("unit", "layer"):
            raise InputError(f"Expected `scaling` to be 'unit' or 'layer', but got {scaling!r}.")
        self.mean: _Array = X.mean(axis=0, dtype=np.float64)
        self.scale: _Array = np.ones(X.shape[1])
        self.scale = self._spread(X, scaling)
        self.basis: _Array | None = None
        self.training = self._rotate(X) if rotate and X.shape[1] > X.shape[0] else self(X)

    def _spread(self, X: _Array, scaling: Scaling) -> _Array:
        squares = np.concatenate([np.square(self.part(X, columns)).mean(axis=0) for columns in column_blocks(X.shape[1])])
        if scaling == "layer":
            squares, size = np.full_like(squares, squares.mean()), np.sqrt(np.mean(self.mean**2))
        else:
            size = np.abs(self.mean)
        varies = np.sqrt(squares) > len(X) * np.finfo(float).eps * size  # what is left of a constant is rounding
        return np.where(varies, np.sqrt(squares), 1)

    def _rotate(self, X: _Array) -> _Array:
        """Find the basis, and return the coordinates of the training images."""
        gram = sum(part @ part.T for part in (self.part(X, columns) for columns in column_blocks(X.shape[1])))
        values, vectors = np.linalg.eigh(gram)
        kept = values > max(values[-1], np.finfo(float).tiny) * _RELATIVE_RANK
        if not kept.any():
            return self(X)
        values, vectors = values[kept], vectors[:, kept]
        self.basis = np.empty((X.shape[1], len(values)), dtype=X.dtype)  # orthonormal
        for columns in column_blocks(X.shape[1]):
            self.basis[columns] = self.part(X, columns).T @ (vectors / np.sqrt(values))
        return np.asarray(vectors * np.sqrt(values))

    def part(self, X: _Array, columns: slice) -> _Array:
        """Some columns, centered and scaled."""
        return np.asarray((X[:, columns].astype(np.float64) - self.mean[columns]) / self.scale[columns])

    def __call__(self, X: _Array) -> _Array:
        if self.basis is None:
            return self.part(X, slice(None))
        return np.asarray(sum(self.part(X, columns) @ self.basis[columns] for columns in column_blocks(X.shape[1])))

    def in_units(self, weights: _Array) -> _Array:
        """Weights [k, rank] of these coordinates as weights [k, n_units] of the units as they came."""
        return np.asarray((weights if self.basis is None else weights @ self.basis.T) / self.scale)


def column_blocks(n_units: int, size: int = 8192) -> list[slice]:
    """Columns that are worked on at a time."""
    return [slice(start, min(start + size, n_units)) for start in range(0, n_units, size)]
