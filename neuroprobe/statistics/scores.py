"""Scores of probes, which come with the probes on the leading axes and the images on the last; all are computed at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from neuroprobe._core import BoolArray, Floats
from neuroprobe.exceptions import InputError


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
    found, truth = with_targets(predicted, targets)
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
    values, truth = with_targets(decision, targets)
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
    values, truth = with_targets(decision, targets)
    order = np.argsort(-values, axis=-1, kind="stable")
    values, truth = np.take_along_axis(values, order, -1), np.take_along_axis(truth, order, -1)
    n = values.shape[-1]
    is_last = np.concatenate([values[..., 1:] != values[..., :-1], np.ones((*values.shape[:-1], 1), dtype=bool)], axis=-1)
    last = np.where(is_last, np.arange(n), n)  # of every image's ties
    last = np.minimum.accumulate(last[..., ::-1], axis=-1)[..., ::-1]
    precision = np.take_along_axis(truth.cumsum(-1), last, -1) / (last + 1)
    return np.asarray((precision * truth).sum(-1) / truth.sum(-1))


def with_targets(values: npt.ArrayLike, targets: npt.ArrayLike) -> tuple[npt.NDArray[Any], BoolArray]:
    array, truth = np.asarray(values), np.asarray(targets).astype(bool)
    if array.ndim == 0 or truth.ndim == 0 or array.shape[-1] != truth.shape[-1] or truth.ndim > array.ndim:
        raise InputError(f"Expected values [..., n_images] and targets [n_images], but got the shapes {array.shape} and {truth.shape}.")
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise InputError("Expected a decision value of every image, but some are NaN.")
    truth = np.broadcast_to(truth, array.shape)
    if np.any(truth.all(-1) | ~truth.any(-1)):
        raise InputError("Expected positives and negatives among the targets, but they have one class.")
    return array, truth
