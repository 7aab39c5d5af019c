"""The search for sums of concepts: forward selection for many units at once, weights, and how many concepts a sum has.

The next column is always the one that, together with those chosen before, leaves the least squared error: what it shares with
them counts once. A column that they nearly make up is never chosen, so that two names of one thing cannot enter with weights
that cancel each other.

References
----------
Chen, Billings and Luo, "Orthogonal least squares methods and their application to non-linear system identification",
International Journal of Control 50, 1989.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import nnls

from neuroprobe._core import Floats, Rows
from neuroprobe.labeling._products import Products
from neuroprobe.statistics import correlations

#: Targets at a time, so that columns times targets are never all in memory.
_BLOCK = 256

#: A residual below this share of the target's variance is rounding.
_NOTHING_LEFT = 1e-12


def select_forward(
    X: npt.ArrayLike, Y: npt.ArrayLike, *, k: int, signed: bool = True, most_shared: float = 0.8, device: str | torch.device = "cpu"
) -> Rows:
    """Choose up to k columns of X for every column of Y.

    Parameters
    ----------
    X : array, [n_rows, n_columns]
        A column that never varies is not chosen.
    Y : array, [n_rows, n_targets]
    k, signed, most_shared, device
        As in `neuroprobe.explain_units`. Unless signed, a column is chosen only if the target, given those chosen before, rises with it.

    Returns
    -------
    ndarray of int, [n_targets, k]
        Every target's columns in the order in which they were chosen; -1 after the last one, where no other adds anything.

    Examples
    --------
    >>> X = np.array([[1.0, 1, 0], [0, 0, 1], [1, 1, 1], [0, 0, 0]])  # the second is the first again
    >>> select_forward(X, X @ [[3.0], [0], [-1]], k=3)
    array([[ 0,  2, -1]])
    """
    scaled, targets = _standardized(np.asarray(X)), _centered(np.asarray(Y, dtype=np.float64))
    blocks = [targets[:, start : start + _BLOCK] for start in range(0, targets.shape[1], _BLOCK)]
    products = Products(scaled, device, dtype=torch.float32)
    return np.concatenate([_select(scaled, products, block, k, signed, most_shared) for block in blocks])


def _select(X: npt.NDArray[np.float32], products: Products, Y: Floats, k: int, signed: bool, most_shared: float) -> Rows:
    """For one block of targets, [n_targets, k]; X has columns of length 1 or 0."""
    n_targets = Y.shape[1]
    with_target = products(Y.T).T  # of what is left of a column with what is left of a target
    left = np.repeat((X.astype(np.float64) ** 2).sum(axis=0)[:, None], n_targets, axis=1)  # of a column's own variance
    residual, basis, everyone = Y.copy(), np.zeros((k, *Y.shape)), np.arange(n_targets)
    enough = _NOTHING_LEFT * (Y**2).sum(axis=0)
    chosen = np.full((n_targets, k), -1)
    for step in range(k):
        allowed = (left > 1 - most_shared) & (with_target != 0) & (signed | (with_target > 0))
        gains = np.where(allowed, with_target**2 / np.maximum(left, 1e-9), 0)
        best = gains.argmax(axis=0)
        found = (gains[best, everyone] > enough) & ((residual**2).sum(axis=0) > enough)
        if not found.any():
            break
        chosen[found, step] = best[found]
        vector = _orthogonal(X[:, best].astype(np.float64), basis[:step]) * found  # [n_rows, n_targets]
        basis[step] = vector
        amount = (vector * residual).sum(axis=0)
        residual -= vector * amount
        explained = products(vector.T).T  # of every column
        with_target -= explained * amount
        left -= explained**2
    return chosen


def _orthogonal(vectors: Floats, basis: Floats) -> Floats:
    """What the basis of every target leaves of its vector, at length 1; twice, for what rounding leaves."""
    for _ in range(2):
        for earlier in basis:
            vectors = vectors - earlier * (earlier * vectors).sum(axis=0)
    lengths = np.linalg.norm(vectors, axis=0)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1))


def fit_weights(X: npt.ArrayLike, y: npt.ArrayLike, *, signed: bool = True) -> tuple[Floats, float]:
    """Weights [k] of a few columns [n_rows, k] and an intercept, by least squares; not below 0 unless `signed`."""
    columns, target = np.asarray(X, dtype=np.float64), np.asarray(y, dtype=np.float64)
    centered, distance = _centered(columns), target - target.mean()
    if columns.shape[1] == 0:
        return np.zeros(0), float(target.mean())
    weights = np.linalg.lstsq(centered, distance, rcond=None)[0] if signed else nnls(centered, distance)[0]
    return weights, float(target.mean() - columns.mean(axis=0) @ weights)


def _centered(values: Floats) -> Floats:
    return np.asarray(values - values.mean(axis=0))


def _standardized(X: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """Columns less their mean, at length 1; 0 for one that never varies."""
    centered = X - X.mean(axis=0, dtype=np.float64)
    lengths = np.linalg.norm(centered, axis=0)
    scale = np.abs(X).max(axis=0, initial=0) * np.sqrt(len(X))
    varies = lengths > 1e-6 * np.maximum(scale, np.finfo(np.float32).tiny)
    return np.asarray(np.where(varies, centered / np.where(varies, lengths, 1), 0), dtype=np.float32)


class Sums(NamedTuple):
    """The sums of a layer's units: which concepts, in which order, with which weights."""

    concepts: Rows  # [n_units, k], -1 after a unit's last one
    weights: Floats  # [n_units, k], 0 there
    intercepts: Floats  # [n_units]


@dataclass(frozen=True, eq=False, kw_only=True)
class SumSearch:
    """Concepts chosen and weighed on some images, for the units of one layer after the other."""

    values: Floats  # [n_images, n_concepts]
    train: Rows  # of the images to choose on
    test: Rows  # of those held out
    inner: tuple[Rows, Rows]  # places among the former: those on which lengths are tried, and those on which they are compared
    k: int  # this and the rest as in `neuroprobe.explain_units`
    signed: bool
    min_gain: float
    most_shared: float
    device: str | torch.device = "cpu"

    def layer(self, measured: Floats) -> Sums:
        """The sums of all units [n_images, n_units]: their lengths from a part of the training images, the rest from all."""
        return self.weighed(self._selected(self.train, measured), self._lengths(measured), measured)

    def _selected(self, rows: Rows, measured: Floats) -> Rows:
        X, Y = self.values[rows], measured[rows]
        return select_forward(X, Y, k=self.k, signed=self.signed, most_shared=self.most_shared, device=self.device)

    def _lengths(self, measured: Floats) -> Rows:
        """After how many concepts another one no longer raises the correlation on the validation images enough, [n_units]."""
        fit, validation = (self.train[rows] for rows in self.inner)
        selected = self._selected(fit, measured)
        lengths, going, before = np.ones(len(selected), dtype=np.int64), np.ones(len(selected), dtype=bool), None
        for length in range(1, self.k + 1):
            sums = self.weighed(selected, np.full(len(selected), length), measured, rows=fit)
            found = np.nan_to_num(correlations(self.predicted(sums, validation), measured[validation]))
            if before is not None:
                going &= found - before >= self.min_gain
                lengths[going] = length
            before = found
        return lengths

    def weighed(self, selected: Rows, lengths: npt.ArrayLike, measured: Floats, *, rows: Rows | None = None) -> Sums:
        """Sums of each unit's first concepts, at most as many as its length, weighed on some images, by default all to choose on."""
        rows = self.train if rows is None else rows
        concepts = np.where(np.arange(selected.shape[1]) < np.asarray(lengths)[..., None], selected, -1)
        weights, intercepts = np.zeros(concepts.shape), np.zeros(len(concepts))
        for unit, chosen in enumerate(concepts):
            there = chosen >= 0
            fitted = fit_weights(self.values[np.ix_(rows, chosen[there])], measured[rows, unit], signed=self.signed)
            weights[unit, there], intercepts[unit] = fitted
        return Sums(concepts, weights, intercepts)

    def predicted(self, sums: Sums, rows: Rows) -> Floats:
        """What the sums say of images, [n_rows, n_units]."""
        values = self.values[rows]
        terms = (values[:, chosen] * weights for chosen, weights in zip(sums.concepts.T, sums.weights.T, strict=True))
        return sum(terms, np.broadcast_to(sums.intercepts, (len(rows), len(sums.intercepts))))
