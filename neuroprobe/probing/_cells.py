"""Cells of a probing study: a batch of problems is fitted at once and scored on images it has not seen.

A problem is one concept, one split, one layer. Problems of one batch have parts of the same sizes; a problem's result is the same in any
batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import rankdata

from neuroprobe.probing._estimators import EstimatorProbe
from neuroprobe.probing._gram import reduced
from neuroprobe.probing._linear_models import choose_C, class_means, least_C, roughly_sparse, solve_linear, solve_ridge, solve_sparse
from neuroprobe.probing._logistic import HiddenLayer, fit_hidden_layer
from neuroprobe.probing._probe_parameters import strengths
from neuroprobe.probing.probes import LinearProbe, NonlinearProbe, Probe, RegressionProbe, SparseProbe
from neuroprobe.statistics import auroc, average_precision, balanced_accuracy

Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Split:
    """Rows of the training part and of the held-out part; they share none. In both, the images without the concept come first."""

    train: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Problems:
    """A batch of problems.

    Attributes
    ----------
    Z : Tensor, [n_problems, n_images, r], float64
        Features, scaled by the training part.
    targets : LongTensor, [n_problems, n_images]
        0 or 1.
    train, test : LongTensor, [n_problems, n_train] and [n_problems, n_test]
        Rows of the parts.
    seeds : tuple of int, [n_problems]
        Of the first weights and of cross-validation.
    n_features : float
        How many features the r coordinates stand for.
    values : Tensor, [n_problems, n_images], or None
        The numbers that a regression predicts.
    """

    Z: torch.Tensor
    targets: torch.Tensor
    train: torch.Tensor
    test: torch.Tensor
    seeds: tuple[int, ...]
    n_features: float
    values: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.Z)

    @property
    def training(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Features [n_problems, n_train, r] and targets [n_problems, n_train] of the training part."""
        return self.Z.take_along_dim(self.train[..., None], dim=1), self.targets.gather(1, self.train)

    def subset(self, rows: slice) -> Problems:
        values = None if self.values is None else self.values[rows]
        return Problems(
            self.Z[rows], self.targets[rows], self.train[rows], self.test[rows], self.seeds[rows], self.n_features, values
        )  # fmt: skip

    def with_targets(self, targets: torch.Tensor) -> Problems:
        return replace(self, targets=targets)

    def trained_on(self, train: torch.Tensor) -> Problems:
        return replace(self, train=train)


#: One of our probes, or a classifier of the user's.
AnyProbe: TypeAlias = "Probe | EstimatorProbe"

#: From a probe and a batch to the decision value of every image, [n_problems, n_images].
Decide: TypeAlias = Callable[[Any, Problems], torch.Tensor]


def decisions(probe: AnyProbe, problems: Problems, *, at_a_time: int = 48) -> npt.NDArray[np.float64]:
    """The log-odds (of a regression: the number) that the probe, fitted on each problem's training part, gives every image.

    Parameters
    ----------
    probe : a probe
        Its parameters; it is not fitted itself.
    problems : Problems
    at_a_time : int, default 48
        Problems that are solved together.

    Returns
    -------
    ndarray, [n_problems, n_images]
    """
    decide = _estimator if isinstance(probe, EstimatorProbe) else _DECIDE[probe.kind]
    parts = [decide(probe, problems.subset(slice(i, i + at_a_time))) for i in range(0, len(problems), at_a_time)]
    return np.asarray(torch.cat(parts).double().cpu().numpy())


def _linear(probe: LinearProbe, problems: Problems) -> torch.Tensor:
    problems = replace(problems, Z=reduced(problems.Z))
    Z, targets = problems.training
    C, _ = choose_C(Z, targets, strengths(probe.C, "C"), solve_linear, n_folds=probe.cv, seed=probe.random_state)
    return _values(problems.Z, *solve_linear(Z, targets, C))


def _sparse(probe: SparseProbe, problems: Problems) -> torch.Tensor:
    Z, targets = problems.training
    chosen = []
    for i in range(len(problems)):
        path = [factor * least_C(Z[i : i + 1], targets[i : i + 1], 2) for factor in strengths(probe.path, "path")]
        chosen.append(choose_C(Z[i : i + 1], targets[i : i + 1], path, roughly_sparse(2), n_folds=probe.cv, seed=probe.random_state)[0])
    return _values(problems.Z, *solve_sparse(Z, targets, torch.cat(chosen)))


def _mean_difference(probe: Probe, problems: Problems) -> torch.Tensor:
    return _values(problems.Z, *class_means(*problems.training))


def _regression(probe: RegressionProbe, problems: Problems) -> torch.Tensor:
    if problems.values is None:
        raise ValueError("A regression needs values.")
    Z, _ = problems.training
    weights, offsets, _ = solve_ridge(Z, problems.values.gather(1, problems.train), strengths(probe.alpha, "alpha"))
    return _values(problems.Z, weights[..., None], offsets[:, None])


def _estimator(probe: EstimatorProbe, problems: Problems) -> torch.Tensor:
    parts = (problems.Z, problems.targets, problems.train)
    values = [
        probe.decide(Z, targets, train, seed)
        for Z, targets, train, seed in zip(*(p.cpu().numpy() for p in parts), problems.seeds, strict=True)
    ]
    return torch.from_numpy(np.stack(values))


def _values(Z: torch.Tensor, weights: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    return (Z @ weights)[..., 0] + offsets


def _nonlinear(probe: NonlinearProbe, problems: Problems) -> torch.Tensor:
    problems = replace(problems, Z=reduced(problems.Z).float())
    start = first_weights(problems.seeds, problems.Z.shape[2], probe.hidden, n_features=problems.n_features, device=problems.Z.device)
    if start.first.shape[1] > problems.Z.shape[2]:  # the directions in which no image varies, as one coordinate
        problems = replace(problems, Z=torch.cat([problems.Z, torch.zeros_like(problems.Z[:, :, :1])], dim=2))
    Z, targets = problems.training
    layer, _, _ = fit_hidden_layer(Z, targets, start, alpha=probe.alpha, max_iter=probe.max_iter)
    return layer.logits(problems.Z)[..., 0]


def first_weights(seeds: Sequence[int], r: int, hidden: int, *, n_features: float, device: torch.device | str = "cpu") -> HiddenLayer:
    """First weights of a hidden layer on r coordinates, with the variance that the layer would have on all n_features.

    With more features than coordinates there is one coordinate more, for what is left: no image varies along it, but L-BFGS
    feels the weights there through their penalty, as it would on the features.

    Parameters
    ----------
    seeds : sequence of int
        One per problem; what is drawn depends on it alone.
    r, hidden : int
    n_features : float
    device : optional

    Returns
    -------
    HiddenLayer, float32
    """
    firsts, seconds = [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        first = torch.randn(r, hidden, generator=generator)
        if n_features > r:  # the length of as many normal numbers as there are directions left
            left = np.sqrt(np.random.default_rng(seed).chisquare(n_features - r, size=(1, hidden)))
            first = torch.cat([first, torch.from_numpy(left).float()])
        firsts.append(first / n_features**0.5)
        seconds.append(torch.randn(hidden, 1, generator=generator) / hidden**0.5)
    first, second = torch.stack(firsts).to(device), torch.stack(seconds).to(device)
    return HiddenLayer(first, first.new_zeros(len(seeds), hidden), second, first.new_zeros(len(seeds), 1))


_DECIDE: dict[str, Decide] = {
    "linear": _linear,
    "nonlinear": _nonlinear,
    "sparse": _sparse,
    "mean_difference": _mean_difference,
    "regression": _regression,
}


def score(values: npt.NDArray[np.float64], problems: Problems, *, kind: str) -> list[Row]:
    """Everything that is measured of every problem: on the held-out part, and the accuracy on the training part too.

    Parameters
    ----------
    values : ndarray, [n_problems, n_images]
        As `decisions` gives them.
    problems : Problems
    kind : str
        Of the probe.

    Returns
    -------
    list of dict, [n_problems]
    """
    train, test, targets = (t.cpu().numpy() for t in (problems.train, problems.test, problems.targets))
    held_out = np.take_along_axis(targets, test, 1).astype(bool)
    decision = np.take_along_axis(values, test, 1)
    share = held_out.mean(axis=1)
    columns: dict[str, Any] = {
        "n_train": np.full(len(values), train.shape[1]),
        "n_test": np.full(len(values), test.shape[1]),
        "n_test_positive": held_out.sum(axis=1),
        "baseline": np.maximum(share, 1 - share),
        "auroc": auroc(decision, held_out),
        "average_precision": average_precision(decision, held_out),
    }
    if kind == "regression" and problems.values is not None:
        columns |= _regression_scores(decision, np.take_along_axis(problems.values.cpu().numpy(), test, 1))
    else:
        right = (values > 0) == targets.astype(bool)
        columns |= {
            "train_accuracy": np.take_along_axis(right, train, 1).mean(axis=1),
            "test_accuracy": np.take_along_axis(right, test, 1).mean(axis=1),
            "balanced_accuracy": balanced_accuracy(decision > 0, held_out),
            "sensitivity": ((decision > 0) & held_out).sum(axis=1) / held_out.sum(axis=1),
        }
    return [{name: column[i].item() for name, column in columns.items()} for i in range(len(values))]


def _regression_scores(predicted: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64]) -> dict[str, Any]:
    missed, spread = ((predicted - wanted) ** 2).sum(axis=1), ((wanted - wanted.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    nothing = np.full(len(wanted), np.nan)
    ranks = [rankdata(v, axis=1) - (wanted.shape[1] + 1) / 2 for v in (predicted, wanted)]
    lengths = np.sqrt((ranks[0] ** 2).sum(axis=1) * (ranks[1] ** 2).sum(axis=1))
    return {
        "train_accuracy": nothing,
        "test_accuracy": nothing,
        "r2": 1 - missed / np.where(spread > 0, spread, np.nan),
        "rank_correlation": (ranks[0] * ranks[1]).sum(axis=1) / np.where(lengths > 0, lengths, np.nan),
    }
