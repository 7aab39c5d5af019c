"""Intervals of scores of probes, from one split of the images or from several.

Scores come with the probes on the leading axes and the seeds on the last; every leading axis is computed at once. Seeds
are splits of the same images, so that their training parts overlap and their scores hang together: no function here
takes them for independent measurements.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from neuroprobe._core import Floats, as_numbers, check_count, check_level, check_seed
from neuroprobe.exceptions import InputError

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
    check_level(level)
    right, total = np.broadcast_arrays(as_numbers("n_right", n_right), as_numbers("n", n))
    if np.any(total <= 0) or np.any(right < 0) or np.any(right > total):
        raise InputError(f"Expected 0 <= n_right <= n and n > 0, but got n_right = {right} and n = {total}.")
    z = stats.norm.ppf(0.5 + level / 2)
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
    check_level(level)
    values = _checked_seeds(scores)
    train, test = _checked_parts(n_train=n_train, n_test=n_test)
    n_seeds = values.shape[-1]
    mean = values.mean(axis=-1)
    if n_seeds == 1:
        return np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    quantile = stats.t.ppf(0.5 + level / 2, n_seeds - 1)
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
    train, test = _checked_parts(n_train=n_train, n_test=n_test)
    check_count("n_seeds", n_seeds)
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
    train, test = _checked_parts(n_train=n_train, n_test=n_test)
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
    train, positive, negative = _checked_parts(n_train=n_train, n_positive=n_positive, n_negative=n_negative)
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


def _checked_seeds(scores: npt.ArrayLike) -> Floats:
    values = as_numbers("scores", scores)
    if values.ndim == 0 or values.shape[-1] == 0:
        raise InputError(f"Expected scores [..., n_seeds] of at least one seed, but got the shape {values.shape}.")
    return values


def _checked_shares(accuracies: npt.ArrayLike) -> Floats:
    values = _checked_seeds(accuracies)
    if np.any((values < 0) | (values > 1)):
        raise InputError("Expected accuracies from 0 to 1, but got some outside.")
    return values


def _checked_parts(*, low: int = 1, **sizes: npt.ArrayLike) -> list[Floats]:
    found = {name: as_numbers(name, size) for name, size in sizes.items()}
    for name, size in found.items():
        if np.any(size < low):
            raise InputError(f"Expected `{name}` to be at least {low} everywhere, but got {size}.")
    return list(found.values())


def paired_interval(differences: npt.ArrayLike, *, level: float = 0.95) -> tuple[Floats, Floats]:
    """Student's t interval of the mean of paired differences.

    Parameters
    ----------
    differences : array-like, [n_pairs, ...]
    level : float, default 0.95

    Returns
    -------
    low, high : ndarray, [...]
        NaN for one pair, which says nothing about others.

    References
    ----------
    Student, The probable error of a mean, Biometrika 1908.
    """
    check_level(level)
    values = np.atleast_1d(as_numbers("differences", differences))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of one pair, and of differences that are all the same
        found = stats.ttest_1samp(values, 0.0).confidence_interval(level)
    return found.low, found.high


def auroc_interval(
    auc: npt.ArrayLike, n_positive: npt.ArrayLike, n_negative: npt.ArrayLike, *, level: float = 0.95
) -> tuple[Floats, Floats]:
    """Interval of an area under the ROC curve, by solving for the true area as Wilson's does for a share.

    It stays within [0, 1] and has a width at an area of 1 too, where intervals from the placements' variance have none.

    Parameters
    ----------
    auc, n_positive, n_negative : float or array
        Broadcast against each other; NaN stays NaN.
    level : float, default 0.95

    Returns
    -------
    low, high : ndarray

    References
    ----------
    Newcombe, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic. Part 2", Statistics
    in Medicine 25, 2006, method 5; the variance is Hanley and McNeil's (Radiology 143, 1982).
    """
    check_level(level)
    auc, m, n = np.broadcast_arrays(as_numbers("auc", auc), *_checked_parts(low=0, n_positive=n_positive, n_negative=n_negative))
    z = float(stats.norm.ppf((1 + level) / 2))
    return _solved(auc, m, n, -z), _solved(auc, m, n, z)


def bootstrap(
    values: npt.ArrayLike,
    *,
    level: float = 0.95,
    seed: int = 0,
    n_resamples: int = 1000,
    statistic: Callable[..., Any] = np.mean,
) -> tuple[float, float]:
    """Percentile interval of a statistic over resamples of the values with repetition.

    Parameters
    ----------
    values : array, [n]
        May hold inf, not NaN.
    level : float, default 0.95
    seed : int, default 0
    n_resamples : int, default 1000
    statistic : callable, default numpy.mean
        Called with ``axis=1``.

    Returns
    -------
    low, high : float
        NaN for a single value, which says nothing about others.

    References
    ----------
    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    check_level(level)
    check_seed(seed)
    check_count("n_resamples", n_resamples)
    known = as_numbers("values", values)
    n = len(known)
    if n < 2:
        return math.nan, math.nan
    generator = np.random.default_rng(seed)
    at_once = max(1, _DRAWN_AT_ONCE // n)
    sizes = [min(at_once, n_resamples - start) for start in range(0, n_resamples, at_once)]
    found = np.concatenate([statistic(known[generator.integers(n, size=(size, n))], axis=1) for size in sizes])
    # an order statistic: between two of them, infinite ranks have no difference to interpolate
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return float(low), float(high)


#: Numbers drawn at a time by `bootstrap`, so that 100,000 units take no more memory than 10.
_DRAWN_AT_ONCE = 4_000_000


def _solved(auc: Floats, m: Floats, n: Floats, z: float) -> Floats:
    """The area theta on one side of `auc` with theta - auc = z * its standard error at theta, by halving."""
    near, far = auc.copy(), np.where(np.isnan(auc), np.nan, 1.0 if z > 0 else 0.0)
    for _ in range(60):
        middle = (near + far) / 2
        inside = np.abs(middle - auc) <= abs(z) * _auroc_error(middle, m, n)
        near, far = np.where(inside, middle, near), np.where(inside, far, middle)
    return (near + far) / 2


def _auroc_error(theta: Floats, m: Floats, n: Floats) -> Floats:
    half = (m + n) / 2 - 1
    variance = theta * (1 - theta) * (1 + half * (1 - theta) / (2 - theta) + half * theta / (1 + theta)) / (m * n)
    return np.sqrt(variance)
