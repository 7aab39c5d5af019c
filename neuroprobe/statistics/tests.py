"""p-values, and rates of false discoveries."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import stats

from neuroprobe._core import Floats, as_numbers
from neuroprobe.exceptions import InputError
from neuroprobe.statistics.scores import with_targets


def auroc_p_value(decision: npt.ArrayLike, targets: npt.ArrayLike) -> Floats:
    """The chance of an AUROC as far above 0.5 or farther, if positives and negatives were alike (Mann & Whitney).

    Parameters
    ----------
    decision : array-like, [..., n_images]
    targets : array-like of bool, [n_images]

    Returns
    -------
    ndarray, [...]
        From the normal approximation with its correction for ties; 1 where all decision values are equal.
    """
    values, truth = with_targets(decision, np.asarray(targets).reshape(-1))
    row = np.broadcast_to(truth, values.shape).reshape(-1, values.shape[-1])[0]
    constant = np.ptp(values, axis=-1) == 0
    with np.errstate(invalid="ignore", divide="ignore"):
        found = stats.mannwhitneyu(values[..., row], values[..., ~row], alternative="greater", method="asymptotic", axis=-1)
    return np.where(constant, 1.0, found.pvalue)


def benjamini_hochberg(p_values: npt.ArrayLike) -> Floats:
    """False discovery rates: the smallest rate at which each test would be called a discovery among all of these.

    Parameters
    ----------
    p_values : array-like, any shape
        All of one family of tests. NaN, a test that was not made, stays NaN and is not counted.

    Returns
    -------
    ndarray, of the same shape

    Raises
    ------
    InputError
        Values outside of [0, 1].

    References
    ----------
    Benjamini & Hochberg, Controlling the false discovery rate, JRSS B 1995.
    """
    p = as_numbers("p_values", p_values)
    made = ~np.isnan(p)
    if np.any((p[made] < 0) | (p[made] > 1)):
        raise InputError("Expected p-values from 0 to 1, but got some outside.")
    q = np.full_like(p, np.nan)
    if made.any():
        q[made] = stats.false_discovery_control(p[made])
    return q


def permutation_p_value(observed: npt.ArrayLike, null: npt.ArrayLike) -> Floats:
    """The share of scores under shuffled labels that are at least as high, the observed one counted among them.

    Parameters
    ----------
    observed : array-like, [...]
    null : array-like, [..., n_shuffles]

    Returns
    -------
    ndarray, [...]
        (b + 1) / (m + 1), never 0; NaN where the observed score is.

    Raises
    ------
    InputError
        No shuffles.

    References
    ----------
    Phipson & Smyth, Permutation p-values should never be zero, 2010.
    """
    score, shuffled = as_numbers("observed", observed), as_numbers("null", null)
    if shuffled.ndim == 0 or shuffled.shape[-1] == 0:
        raise InputError("Expected at least one score under shuffled labels, but got none.")
    as_high = (shuffled >= score[..., None]).sum(-1)
    return np.where(np.isnan(score), np.nan, (as_high + 1) / (shuffled.shape[-1] + 1))
