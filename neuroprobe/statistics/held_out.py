"""Images held out: which they are, and how well numbers that were predicted for them agree with those that were measured.

Predictions come with the images on the first axis and one column per thing predicted; intervals are of the images, drawn
again with repetition, the same draws for every column, so that columns can be compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroprobe._core import Floats, Rows, check_counts, check_level, check_seed, check_share
from neuroprobe.exceptions import InputError, shown

#: Fewer images say nothing of a correlation.
FEWEST = 3

#: A variance below this share of what it is of counts as none.
_NO_VARIANCE = 1e-12


def split_images(
    ids: Sequence[str], *, held_out: float | Iterable[str] = 0.3, near_duplicates: Mapping[str, int] | None = None, seed: int = 0
) -> tuple[Rows, Rows]:
    """The images to learn from, and those to judge on.

    Parameters
    ----------
    ids : sequence of str, [n_images]
    held_out : float or iterable of str, default 0.3
        The share to hold out, in (0, 1), drawn at random; or the ids themselves.
    near_duplicates : mapping from id to group, optional
        As from `neuroprobe.images.near_duplicates`; a group is not taken apart. Not with ids of your own.
    seed : int, default 0

    Returns
    -------
    train, test : ndarray of int
        Rows, in their order.

    Raises
    ------
    InputError
        A share not between 0 and 1, ids that are not among the images, no group for an image, or fewer than 3 images in a part.

    Examples
    --------
    >>> split_images(["a", "b", "c", "d", "e", "f"], held_out=["f", "b", "c"])
    (array([0, 3, 4]), array([1, 2, 5]))
    """
    if isinstance(held_out, (int, float, np.number)):
        check_share("held_out", held_out)
        check_seed(seed)
        test = _drawn(ids, held_out, near_duplicates, seed)
    else:
        test = _asked_for(ids, held_out, near_duplicates)
    train = np.setdiff1d(np.arange(len(ids)), test)
    if min(len(train), len(test)) < FEWEST:
        raise InputError(
            f"Expected at least {FEWEST} images to learn from and {FEWEST} to judge on, but of {len(ids)} there are {len(train)} and "
            f"{len(test)}. Give more images, or hold out another share."
        )
    return train, test


def _drawn(ids: Sequence[str], share: Any, near_duplicates: Mapping[str, int] | None, seed: int) -> Rows:
    missing = [name for name in ids if near_duplicates is not None and name not in near_duplicates]
    if missing:
        raise InputError(f"Expected `near_duplicates` with a group for every image, but {missing[0]!r} has none.")
    groups = np.arange(len(ids)) if near_duplicates is None else np.unique([near_duplicates[name] for name in ids], return_inverse=True)[1]
    return np.sort(fitting_groups(np.arange(len(ids)), groups, round(share * len(ids)), np.random.default_rng(seed)))


def _asked_for(ids: Sequence[str], held_out: Any, near_duplicates: Mapping[str, int] | None) -> Rows:
    if isinstance(held_out, str) or not isinstance(held_out, Iterable) or near_duplicates is not None:
        raise InputError(f"Expected `held_out` as a share, or as ids and then without `near_duplicates`, but got {shown(held_out)}.")
    wanted = {str(name) for name in held_out}
    unknown = sorted(wanted - set(ids))
    if unknown:
        raise InputError(f"Expected `held_out` to be ids of the images, but {len(unknown)} are not, such as {unknown[0]!r}.")
    return np.array([row for row, name in enumerate(ids) if name in wanted], dtype=np.int64)


def correlations(predicted: npt.ArrayLike, measured: npt.ArrayLike, counts: npt.ArrayLike | None = None) -> Floats:
    """Pearson's correlation of every column; NaN for one in which either side never varies.

    Parameters
    ----------
    predicted : array, [n_images, n_columns]
    measured : array, [n_images, n_columns] or [n_images, 1]
    counts : array, [n_draws, n_images], optional
        How often each image is in a draw; by default once.

    Returns
    -------
    ndarray, [n_columns], or [n_draws, n_columns]
    """
    x, y, weights = _centered(predicted), _centered(measured), _weights(counts, len(np.asarray(measured)))
    mean_x, mean_y = weights @ x, weights @ y
    variances = _variance(x, mean_x, weights) * _variance(y, mean_y, weights)
    found = (weights @ (x * y) - mean_x * mean_y) / np.sqrt(variances)
    return np.asarray(found[0] if counts is None else found)


def explained_shares(predicted: npt.ArrayLike, measured: npt.ArrayLike, counts: npt.ArrayLike | None = None) -> Floats:
    """R2 of every column: 1 minus the squared errors as a share of the measured values' squared distances from their mean.

    Below 0 where the mean would have been the better prediction; NaN where what was measured never varies.

    Parameters
    ----------
    predicted, measured, counts
        As in `correlations`.

    Returns
    -------
    ndarray, [n_columns], or [n_draws, n_columns]
    """
    truth = np.asarray(measured, dtype=np.float64)
    y, weights = _centered(truth), _weights(counts, len(truth))
    errors = weights @ (np.asarray(predicted, dtype=np.float64) - truth) ** 2
    found = 1 - errors / _variance(y, weights @ y, weights)
    return np.asarray(found[0] if counts is None else found)


@dataclass(frozen=True, eq=False)
class Quality:
    """One measure of agreement for every column, with its interval and what it was in every draw of the images.

    Attributes
    ----------
    value, low, high : ndarray, [n_columns]
    draws : ndarray, [n_draws, n_columns]
    """

    value: Floats
    low: Floats
    high: Floats
    draws: Floats


def quality(measure: Any, predicted: npt.ArrayLike, measured: npt.ArrayLike, *, counts: Floats, level: float = 0.95) -> Quality:
    """`correlations` or `explained_shares` with percentile intervals over draws of the images.

    Parameters
    ----------
    measure : callable
    predicted, measured
        As in `correlations`.
    counts : ndarray, [n_draws, n_images]
        As `draw_counts` makes them.
    level : float, default 0.95

    Returns
    -------
    Quality

    References
    ----------
    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    draws = measure(predicted, measured, counts)
    low, high = interval(draws, level=level)
    return Quality(measure(predicted, measured), low, high, draws)


def interval(draws: Floats, *, level: float) -> tuple[Floats, Floats]:
    """Percentiles over the first axis; a draw without a value is left out, a column without any has NaN."""
    check_level(level)
    known = np.where(np.isnan(draws).all(axis=0), 0.0, draws)
    low, high = np.nanquantile(known, [(1 - level) / 2, (1 + level) / 2], axis=0)
    empty = np.isnan(draws).all(axis=0)
    return np.where(empty, np.nan, low), np.where(empty, np.nan, high)


def draw_counts(n_images: int, *, n_resamples: int, seed: int) -> Floats:
    """How often each image is in each of `n_resamples` draws with repetition, [n_resamples, n_images]."""
    check_counts(n_images=n_images, n_resamples=n_resamples)
    check_seed(seed)
    drawn = np.random.default_rng(seed).multinomial(n_images, np.full(n_images, 1 / n_images), size=n_resamples)
    return np.asarray(drawn, dtype=np.float64)


def _centered(values: npt.ArrayLike) -> Floats:
    """Less their mean, so that sums of squares lose no digits."""
    array = np.asarray(values, dtype=np.float64)
    return np.asarray(array - array.mean(axis=0))


def _weights(counts: npt.ArrayLike | None, n_images: int) -> Floats:
    given = np.ones((1, n_images)) if counts is None else np.asarray(counts, dtype=np.float64)
    return np.asarray(given / given.sum(axis=1, keepdims=True))


def _variance(centered: Floats, means: Floats, weights: Floats) -> Floats:
    """[n_draws, n_columns]; NaN where there is none."""
    squares = weights @ centered**2
    variance = squares - means**2
    scale = np.maximum(squares, (centered**2).mean(axis=0))
    return np.where(variance > _NO_VARIANCE * scale, variance, np.nan)


def fitting_groups(rows: Rows, groups: Rows, room: int, generator: np.random.Generator) -> Rows:
    """At most `room` of the rows, in whole groups: those that still fit, in random order; `groups` is of all rows there are."""
    members: dict[int, list[int]] = {}
    for row in rows.tolist():
        members.setdefault(int(groups[row]), []).append(row)
    chosen: list[int] = []
    for group in generator.permutation(sorted(members)).tolist():
        if len(chosen) + len(members[group]) <= room:
            chosen += members[group]
    return np.array(chosen, dtype=np.int64)
