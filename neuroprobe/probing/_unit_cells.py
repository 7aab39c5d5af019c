"""Scope neuron: a probe on every unit of a layer by itself, all of them at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from neuroprobe.probing._cells import AnyProbe, Problems, Row, decisions, score
from neuroprobe.probing._gram import unit_scaled
from neuroprobe.probing._logistic import solve_units
from neuroprobe.probing._probe_parameters import strengths
from neuroprobe.probing.probes import LinearProbe
from neuroprobe.statistics import auroc, auroc_p_value, balanced_accuracy

#: Kinds that have a scope neuron.
UNIT_KINDS = ("linear", "nonlinear", "mean_difference")


@dataclass(frozen=True, eq=False)
class UnitScores:
    """Every unit by itself: means over the splits, on held-out parts.

    Attributes
    ----------
    test_accuracy, balanced_accuracy, auroc : ndarray, [n_units]
    p_value : ndarray, [n_units]
        Two-sided Mann-Whitney test of the unit's values over all the concept's images: nothing is fitted to them.
    """

    test_accuracy: npt.NDArray[np.float64]
    balanced_accuracy: npt.NDArray[np.float64]
    auroc: npt.NDArray[np.float64]
    p_value: npt.NDArray[np.float64]


def fit_units(
    probe: AnyProbe, X: torch.Tensor, targets: torch.Tensor, train: torch.Tensor, test: torch.Tensor, seeds: tuple[int, ...]
) -> tuple[list[Row], list[npt.NDArray[np.float64]]]:
    """Fit the probe on every unit with every split.

    Parameters
    ----------
    probe : a probe of a kind in `UNIT_KINDS`
    X : Tensor, [n_images, n_units]
    targets : LongTensor, [n_images]
    train, test : LongTensor, [n_splits, n_train] and [n_splits, n_test]
    seeds : tuple of int, [n_splits]

    Returns
    -------
    rows : list of dict, [n_splits]
        What `neuroprobe.probing._cells.score` measures, of the unit with the least log-loss on the training part, which is named.
    scores : list of ndarray, [n_splits], each [3, n_units]
        Accuracy, balanced accuracy and area under the ROC curve of every unit on the held-out part.
    """
    Z = unit_scaled(X, train)  # [n_splits, n_images, n_units]
    rows, scores = [], []
    for i, seed in enumerate(seeds):
        values = _unit_decisions(probe, Z[i].T, targets, train[i], test[i], seed)  # [n_units, n_images]
        truth = targets.cpu().numpy()
        seen, held_out = (part[i].cpu().numpy() for part in (train, test))
        best = int(np.argmin(np.logaddexp(0, np.where(truth[seen] == 1, -values[:, seen], values[:, seen])).sum(axis=1)))
        problem = Problems(Z[i : i + 1, :, best : best + 1], targets[None], train[i : i + 1], test[i : i + 1], (seed,), 1)
        rows.append({"unit": best, **score(values[best : best + 1], problem, kind=probe.kind)[0]})
        decision, wanted = values[:, held_out], truth[held_out] == 1
        right = ((decision > 0) == wanted).mean(axis=1)
        scores.append(np.stack([right, balanced_accuracy(decision > 0, wanted), auroc(decision, wanted)]))
    return rows, scores


def _unit_decisions(
    probe: AnyProbe, values: torch.Tensor, targets: torch.Tensor, train: torch.Tensor, test: torch.Tensor, seed: int
) -> npt.NDArray[np.float64]:
    """Decision values [n_units, n_images] of one split, of values [n_units, n_images]."""
    if isinstance(probe, LinearProbe) and len(strengths(probe.C, "C")) == 1:
        weights, offsets = solve_units(values[:, train].contiguous(), targets[train], C=strengths(probe.C, "C")[0])
        return np.asarray((weights[:, None] * values + offsets[:, None]).cpu().numpy())
    n = len(values)
    problems = Problems(values[..., None], targets.expand(n, -1), train.expand(n, -1), test.expand(n, -1), (seed,) * n, 1)
    return decisions(probe, problems, at_a_time=1024)


def summarize_units(X: npt.NDArray[np.float32], targets: npt.NDArray[np.int64], scores: list[npt.NDArray[np.float64]]) -> UnitScores:
    """Means of every split's scores, and what the units say of the concept without any probe.

    Parameters
    ----------
    X : ndarray, [n_images, n_units]
    targets : ndarray, [n_images]
    scores : list of ndarray, each [3, n_units]
        As `fit_units` gives them.

    Returns
    -------
    UnitScores
    """
    one_sided = np.minimum(auroc_p_value(X.T, targets == 1), auroc_p_value(-X.T, targets == 1))
    accuracy, balanced, area = np.mean(scores, axis=0)
    return UnitScores(accuracy, balanced, area, np.minimum(2 * one_sided, 1))
