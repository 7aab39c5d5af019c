"""Intervals of scores of probes, from one split of the images or from several.

Scores come with the probes on the leading axes and the seeds on the last; every leading axis is computed at once. Seeds
are splits of the same images, so that their training parts overlap and their scores hang together: no function here
takes them for independent measurements.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import stats

from neuroprobe.exceptions import InputError

Floats = npt.NDArray[np.float64]
Interval = tuple[Floats, Floats]

#: Seeds that differ more than chance would make them with this probability are not taken for chance.
_OVERDISPERSED = 0.001


def wilson_interval(n_right: npt.ArrayLike, n: npt.ArrayLike, *, level: float = 0.95) -> Interval:
    """Wilson's score interval of a share.

    Parameters
    ----------
    n_right, n : array-like, broadcast against each other
        How many of how many; need not be whole numbers.
    level : float, default 0.95

    Returns
    -------
    low, high : ndarray, within [0, 1]

    Raises
    ------
    InputError
        Other than 0 <= n_right <= n, n = 0, or a level not between 0 and 1.

    References
    ----------
    Wilson, Probable inference, the law of succession, and statistical inference, JASA 1927.
    """
    right, total = np.broadcast_arrays(np.asarray(n_right, dtype=np.float64), np.asarray(n, dtype=np.float64))
    if np.any(total <= 0) or np.any(right < 0) or np.any(right > total):
        raise InputError(f"Expected 0 <= n_right <= n and n > 0, but got n_right = {right} and n = {total}.")
    z = stats.norm.ppf(0.5 + _checked_level(level) / 2)
    share, room = right / total, z**2 / total
    center = (share + room / 2) / (1 + room)
    half = z / (1 + room) * np.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    # without rounding at the ends
    return np.where(share == 0, 0, np.clip(center - half, 0, 1)), np.where(share == 1, 1, np.clip(center + half, 0, 1))


def corrected_interval(scores: npt.ArrayLike, *, n_train: npt.ArrayLike, n_test: npt.ArrayLike, level: float = 0.95) -> Interval:
    """Nadeau & Bengio's corrected t interval of a mean score over splits whose training parts overlap.

    For any score (AUROC, selectivity) that is about normal over splits. Accuracies near 1 are not, and all seeds
    may agree there: `accuracy_interval` is for them.

    Parameters
    ----------
    scores : array-like, [..., n_seeds]
    n_train, n_test : int or array-like, [...]
        Images in each part of a split.
    level : float, default 0.95

    Returns
    -------
    low, high : ndarray, [...]
        NaN for one seed, which says nothing about the spread of seeds.

    Raises
    ------
    InputError
        No seeds, empty parts, or a level not between 0 and 1.

    References
    ----------
    Nadeau & Bengio, Inference for the generalization error, Machine Learning 52, 2003: the variance of the mean is
    taken as (1 / J + n_test / n_train) s^2.
    """
    values = _checked_seeds(scores)
    train, test = _checked_parts(n_train, n_test)
    n_seeds = values.shape[-1]
    mean = values.mean(axis=-1)
    if n_seeds == 1:
        _checked_level(level)
        return np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    quantile = stats.t.ppf(0.5 + _checked_level(level) / 2, n_seeds - 1)
    half = quantile * np.sqrt((1 / n_seeds + test / train) * values.var(axis=-1, ddof=1))
    return mean - half, mean + half


def effective_size(n_test: npt.ArrayLike, *, n_train: npt.ArrayLike, n_seeds: int) -> Floats:
    """How many independent test images the test parts of several seeds are worth together.

    Two splits' scores correlate by about n_test / (n_train + n_test), the share of test images that they have in
    common (Nadeau & Bengio 2003, their heuristic). One seed is worth its n_test images; more seeds more, but never
    more than all images there are.

    Parameters
    ----------
    n_test, n_train : int or array-like
    n_seeds : int

    Returns
    -------
    ndarray
    """
    train, test = _checked_parts(n_train, n_test)
    if n_seeds < 1:
        raise InputError(f"Expected at least one seed, but got {n_seeds}.")
    return np.asarray(test / (1 / n_seeds + (1 - 1 / n_seeds) * test / (train + test)))


def accuracy_interval(accuracies: npt.ArrayLike, *, n_train: npt.ArrayLike, n_test: npt.ArrayLike, level: float = 0.95) -> Interval:
    """An interval of the accuracy on new images, from one split or several of the same images.

    Wilson's interval of the mean accuracy, on `effective_size` images; for one seed just Wilson's interval. Unlike
    the corrected t interval it needs no spread of a few seeds, so that it is narrower, and stays right where all
    seeds agree. Where the seeds differ more than the test images' chance explains (chi-squared test, 0.1 %), as
    probes do that sometimes fail to learn, the wider corrected t interval is taken, within [0, 1].

    Parameters
    ----------
    accuracies : array-like, [..., n_seeds]
    n_train, n_test : int or array-like, [...]
    level : float, default 0.95

    Returns
    -------
    low, high : ndarray, [...]

    Raises
    ------
    InputError
        Accuracies outside of [0, 1], and as `corrected_interval`.
    """
    values = _checked_shares(accuracies)
    train, test = _checked_parts(n_train, n_test)
    mean, size = values.mean(axis=-1), effective_size(test, n_train=train, n_seeds=values.shape[-1])
    low, high = _wilson_of_shares(mean, size, level=level)
    return _wider_where_unstable(values, mean * (1 - mean) / test, (low, high), train, test, level)


def balanced_accuracy_interval(
    sensitivity: npt.ArrayLike,
    specificity: npt.ArrayLike,
    *,
    n_train: npt.ArrayLike,
    n_positive: npt.ArrayLike,
    n_negative: npt.ArrayLike,
    level: float = 0.95,
) -> Interval:
    """An interval of the balanced accuracy on new images, from one split or several.

    Both shares have Wilson intervals as in `accuracy_interval`; their mean's interval is made of the distances to
    their ends (Newcombe's hybrid of scores).

    Parameters
    ----------
    sensitivity, specificity : array-like, [..., n_seeds]
        Share of the held-out positives, and of the negatives, that were told right.
    n_train, n_positive, n_negative : int or array-like, [...]
        Images in the training part; positives and negatives in the held-out part.
    level : float, default 0.95

    Returns
    -------
    low, high : ndarray, [...]

    Raises
    ------
    InputError
        As `accuracy_interval`.

    References
    ----------
    Newcombe, Interval estimation for the difference between independent proportions, Statistics in Medicine 1998.
    """
    shares = [_checked_shares(sensitivity), _checked_shares(specificity)]
    train, positive = _checked_parts(n_train, n_positive)
    _, negative = _checked_parts(n_train, n_negative)
    test = positive + negative
    seeds_are_worth = effective_size(test, n_train=train, n_seeds=shares[0].shape[-1]) / test
    means = [values.mean(axis=-1) for values in shares]
    ends = [_wilson_of_shares(mean, size * seeds_are_worth, level=level) for mean, size in zip(means, (positive, negative), strict=True)]
    center = (means[0] + means[1]) / 2
    low = center - np.hypot(means[0] - ends[0][0], means[1] - ends[1][0]) / 2
    high = center + np.hypot(ends[0][1] - means[0], ends[1][1] - means[1]) / 2
    chance = (means[0] * (1 - means[0]) / positive + means[1] * (1 - means[1]) / negative) / 4
    return _wider_where_unstable((shares[0] + shares[1]) / 2, chance, (low, high), train, test, level)


def _wilson_of_shares(share: Floats, size: Floats, *, level: float) -> Interval:
    known = ~np.isnan(share)
    low, high = wilson_interval(np.where(known, share, 0) * size, size, level=level)
    return np.where(known, low, np.nan), np.where(known, high, np.nan)


def _wider_where_unstable(values: Floats, chance: Floats, interval: Interval, train: Floats, test: Floats, level: float) -> Interval:
    """The corrected t interval where seeds vary more than `chance`, the variance of one split's score, makes them."""
    n_seeds = values.shape[-1]
    if n_seeds == 1:
        return interval
    within = chance * train / (train + test)  # splits share test images, so they differ less than independent ones
    limit = stats.chi2.isf(_OVERDISPERSED, n_seeds - 1) / (n_seeds - 1)
    unstable = values.var(axis=-1, ddof=1) > limit * within + 1e-12
    wide = corrected_interval(values, n_train=train, n_test=test, level=level)
    return (
        np.where(unstable, np.minimum(np.clip(wide[0], 0, 1), interval[0]), interval[0]),
        np.where(unstable, np.maximum(np.clip(wide[1], 0, 1), interval[1]), interval[1]),
    )


def _checked_level(level: float) -> float:
    if not 0 < level < 1:
        raise InputError(f"Expected `level` between 0 and 1, but got {level}.")
    return level


def _checked_seeds(scores: npt.ArrayLike) -> Floats:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim == 0 or values.shape[-1] == 0:
        raise InputError(f"Expected scores [..., n_seeds] of at least one seed, but got the shape {values.shape}.")
    return values


def _checked_shares(accuracies: npt.ArrayLike) -> Floats:
    values = _checked_seeds(accuracies)
    if np.any((values < 0) | (values > 1)):
        raise InputError("Expected accuracies from 0 to 1, but got some outside.")
    return values


def _checked_parts(n_train: npt.ArrayLike, n_test: npt.ArrayLike) -> tuple[Floats, Floats]:
    train, test = np.asarray(n_train, dtype=np.float64), np.asarray(n_test, dtype=np.float64)
    if np.any(train < 1) or np.any(test < 1):
        raise InputError(f"Expected at least one image in each part, but got n_train = {train} and n_test = {test}.")
    return train, test
