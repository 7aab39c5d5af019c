"""Statistics beside every score: how sure it is, and what it has to be compared with.

Pure functions of arrays. Scores of many probes come with the probes on the leading axes and the images on the last; every
leading axis is computed at once. Intervals are in `neuroprobe.intervals`, and can be imported from here too.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from neuroprobe.exceptions import InputError
from neuroprobe.intervals import accuracy_interval as accuracy_interval
from neuroprobe.intervals import balanced_accuracy_interval as balanced_accuracy_interval
from neuroprobe.intervals import corrected_interval as corrected_interval
from neuroprobe.intervals import effective_size as effective_size
from neuroprobe.intervals import wilson_interval as wilson_interval

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
#: Shares of the images at which Voita & Titov's online code trains a new probe.
CODELENGTH_SHARES = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)


# --- scores


def balanced_accuracy(predicted: npt.ArrayLike, targets: npt.ArrayLike) -> Floats:
    """The mean of the shares told right among the positives and among the negatives; 0.5 is chance.

    Parameters
    ----------
    predicted : array-like of bool, [..., n_images]
    targets : array-like of bool, [n_images] or as `predicted`

    Returns
    -------
    ndarray, [...]

    Raises
    ------
    InputError
        Targets of one class, or that do not fit.
    """
    found, truth = _paired(predicted, targets)
    found = found.astype(bool)
    return np.asarray(((found & truth).sum(-1) / truth.sum(-1) + (~found & ~truth).sum(-1) / (~truth).sum(-1)) / 2)


def auroc(decision: npt.ArrayLike, targets: npt.ArrayLike) -> Floats:
    """Area under the ROC curve: how often a positive's decision value is above a negative's, a tie counting half.

    Parameters
    ----------
    decision : array-like, [..., n_images]
    targets : array-like of bool, [n_images] or as `decision`

    Returns
    -------
    ndarray, [...]

    Raises
    ------
    InputError
        As `balanced_accuracy`, or decision values that are NaN.
    """
    values, truth = _paired(decision, targets)
    positives = truth.sum(-1)
    ranks = stats.rankdata(values, axis=-1)  # ties share their mean rank
    return np.asarray(((ranks * truth).sum(-1) - positives * (positives + 1) / 2) / (positives * (~truth).sum(-1)))


def average_precision(decision: npt.ArrayLike, targets: npt.ArrayLike) -> Floats:
    """The mean, over the positives, of the precision among all images with decision values as high or higher.

    Parameters
    ----------
    decision : array-like, [..., n_images]
    targets : array-like of bool, [n_images] or as `decision`

    Returns
    -------
    ndarray, [...]
        As scikit-learn's `average_precision_score`, tied images coming in together.

    Raises
    ------
    InputError
        As `auroc`.
    """
    values, truth = _paired(decision, targets)
    order = np.argsort(-values, axis=-1, kind="stable")
    values, truth = np.take_along_axis(values, order, -1), np.take_along_axis(truth, order, -1)
    n = values.shape[-1]
    is_last = np.concatenate([values[..., 1:] != values[..., :-1], np.ones((*values.shape[:-1], 1), dtype=bool)], axis=-1)
    last = np.where(is_last, np.arange(n), n)  # of every image's ties
    last = np.minimum.accumulate(last[..., ::-1], axis=-1)[..., ::-1]
    precision = np.take_along_axis(truth.cumsum(-1), last, -1) / (last + 1)
    return np.asarray((precision * truth).sum(-1) / truth.sum(-1))


# --- what a score has to be compared with


def control_labels(types: npt.ArrayLike, *, seed: int, share: float) -> Bools:
    """Labels of a control task: every type of image is positive or negative as a whole, at random.

    A probe can learn them only by knowing the types by heart, which then works on held-out images too. Selectivity is
    the accuracy on the concept minus that on the control labels.

    Parameters
    ----------
    types : array-like of int, [n_images]
        The type of every image: given classes, or clusters (`cluster_types`).
    seed : int
    share : float
        Wanted share of positives, as in the concept's set; types are drawn until the share is as near as may be.

    Returns
    -------
    ndarray of bool, [n_images]

    Raises
    ------
    InputError
        Fewer than two types, or a share not between 0 and 1.

    References
    ----------
    Hewitt & Liang, Designing and interpreting probes with control tasks, EMNLP 2019.
    """
    names, inverse, counts = np.unique(np.asarray(types), return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise InputError(f"Expected images of at least two types, so that a label can be random per type, but got {len(names)}.")
    if not 0 < share < 1:
        raise InputError(f"Expected `share` between 0 and 1, but got {share}.")
    order = np.random.default_rng(seed).permutation(len(names))
    reached = counts[order].cumsum()[:-1]  # never all types
    n_chosen = int(np.argmin(np.abs(reached - share * len(inverse)))) + 1
    chosen = np.zeros(len(names), dtype=bool)
    chosen[order[:n_chosen]] = True
    return np.asarray(chosen[inverse.reshape(-1)])


def cluster_types(vectors: npt.ArrayLike, *, n_types: int, seed: int) -> npt.NDArray[np.int64]:
    """Types of images for `control_labels`: k-means clusters of their embeddings.

    Parameters
    ----------
    vectors : array-like, [n_images, d]
        For example the concept source's image embeddings.
    n_types : int
        From 2 to the number of images.
    seed : int

    Returns
    -------
    ndarray of int, [n_images]
        From 0 to n_types - 1.

    Raises
    ------
    InputError
        As many types cannot be made.
    """
    from sklearn.cluster import KMeans

    rows = np.asarray(vectors, dtype=np.float64)
    if rows.ndim != 2 or not 2 <= n_types <= len(rows):
        raise InputError(f"Expected vectors [n_images, d] and from 2 to n_images types, but got shape {rows.shape} and {n_types} types.")
    return np.asarray(KMeans(n_types, n_init=4, random_state=seed).fit_predict(rows), dtype=np.int64)


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
    score, shuffled = np.asarray(observed, dtype=np.float64), np.asarray(null, dtype=np.float64)
    if shuffled.ndim == 0 or shuffled.shape[-1] == 0:
        raise InputError("Expected at least one score under shuffled labels, but got none.")
    as_high = (shuffled >= score[..., None]).sum(-1)
    return np.where(np.isnan(score), np.nan, (as_high + 1) / (shuffled.shape[-1] + 1))


def binomial_p_value(n_right: npt.ArrayLike, n: npt.ArrayLike, baseline: npt.ArrayLike) -> Floats:
    """The chance of as many right or more, if every image were told right with the baseline's probability.

    Parameters
    ----------
    n_right, n : array-like of int
    baseline : array-like, within [0, 1]

    Returns
    -------
    ndarray
    """
    return np.asarray(stats.binom.sf(np.asarray(n_right) - 1, n, baseline))


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
    values, truth = _paired(decision, np.asarray(targets).reshape(-1))
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
    p = np.asarray(p_values, dtype=np.float64)
    made = ~np.isnan(p)
    if np.any((p[made] < 0) | (p[made] > 1)):
        raise InputError("Expected p-values from 0 to 1, but got some outside.")
    q = np.full_like(p, np.nan)
    if made.any():
        q[made] = stats.false_discovery_control(p[made])
    return q


# --- online codelength


def codelength_ends(n: int, *, fewest: int = 8) -> tuple[int, ...]:
    """Where the blocks of the online code end: at `CODELENGTH_SHARES` of the images, the first with at least `fewest`.

    Parameters
    ----------
    n : int
        Images in all.
    fewest : int, default 8

    Returns
    -------
    tuple of int
        Rising, the last is `n`.

    Raises
    ------
    InputError
        Fewer images than twice `fewest`.
    """
    if fewest < 1 or n < 2 * fewest:
        raise InputError(f"Expected at least {2 * fewest} images for blocks of at least {fewest}, but got {n}.")
    return tuple(sorted({end for end in (round(share * n) for share in CODELENGTH_SHARES) if end >= fewest}))


def online_codelength(decision: npt.ArrayLike, targets: npt.ArrayLike, *, ends: tuple[int, ...]) -> Floats:
    """Bits that it takes to send the labels to somebody who has the images, a probe trained anew after every block.

    The first block is sent with the uniform code, a bit per image. Every later block costs -log2 of what the probe
    trained on all blocks before it says of its labels. `len(targets)` bits are what sending them without a probe
    costs; a concept that is easily read takes far fewer.

    Parameters
    ----------
    decision : array-like, [..., n_images]
        Log-odds of every image by the probe trained on the blocks before its own; those of the first block are not
        looked at. In a random order.
    targets : array-like of bool, [n_images]
    ends : tuple of int
        Where blocks end (`codelength_ends`); the last is `n_images`.

    Returns
    -------
    ndarray, [...], bits

    Raises
    ------
    InputError
        Ends that do not rise to the number of images, or a first block with one class, on which nothing can be trained.

    References
    ----------
    Voita & Titov, Information-theoretic probing with minimum description length, EMNLP 2020, section 3.2.
    """
    truth, log_odds = np.asarray(targets, dtype=bool), np.asarray(decision, dtype=np.float64)
    if log_odds.shape[-1:] != truth.shape or not ends or ends[-1] != len(truth) or any(b <= a for a, b in pairwise((0, *ends))):
        raise InputError(f"Expected ends that rise to the number of images, {truth.size}, but got {ends}.")
    if len(set(truth[: ends[0]].tolist())) < 2:
        raise InputError(f"Expected both classes among the first {ends[0]} images, but they have one. Use another order or a larger block.")
    later = log_odds[..., ends[0] :]
    bits = np.logaddexp(0, np.where(truth[ends[0] :], -later, later)) / np.log(2)
    return np.asarray(ends[0] + bits.sum(-1))


def _paired(values: npt.ArrayLike, targets: npt.ArrayLike) -> tuple[npt.NDArray[Any], Bools]:
    array, truth = np.asarray(values), np.asarray(targets).astype(bool)
    if array.ndim == 0 or truth.ndim == 0 or array.shape[-1] != truth.shape[-1] or truth.ndim > array.ndim:
        raise InputError(f"Expected values [..., n_images] and targets [n_images], but got the shapes {array.shape} and {truth.shape}.")
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise InputError("Expected a decision value of every image, but some are NaN.")
    truth = np.broadcast_to(truth, array.shape)
    if np.any(truth.all(-1) | ~truth.any(-1)):
        raise InputError("Expected positives and negatives among the targets, but they have one class.")
    return array, truth
