"""What is measured of a probe: its scores on images it has not seen, and beside them what it learns of labels that mean nothing.

A statistic is one function here, with `statistic` above it: its columns, for which probes, at which option of the study, and what the
concept sets must know for it. Whatever it gives stands in the study's table, and summaries average it over seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import rankdata

from neuroprobe._core import BoolArray, Floats
from neuroprobe.concepts import ConceptSet
from neuroprobe.exceptions import InputError
from neuroprobe.probing._problems import AnyProbe, Problems, decisions
from neuroprobe.statistics import auroc, average_precision, balanced_accuracy, permutation_p_value

Row: TypeAlias = dict[str, Any]

#: Columns [n_problems] of a table of probes.
Columns: TypeAlias = Mapping[str, npt.ArrayLike]

#: Shares of the images at which Voita & Titov's online code trains a new probe.
CODELENGTH_SHARES = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)

#: The online code needs two blocks.
_FEWEST_CODED = 16


@dataclass(frozen=True)
class Options:
    """What is measured beside the scores; as in `neuroprobe.probing.ProbingStudy`."""

    controls: int = 0
    permutations: int = 0
    codelength: bool = False
    keep_directions: bool = False


@dataclass(frozen=True, eq=False)
class Measured:
    """A probe fitted on a batch of problems: the decision values of all images, [n_problems, n_images], as `decisions` gives them."""

    probe: AnyProbe
    problems: Problems
    values: npt.NDArray[np.float64]
    options: Options

    @cached_property
    def targets(self) -> BoolArray:
        """Which images show the concept, [n_problems, n_images]."""
        return np.asarray(self.problems.targets.cpu().numpy() > 0)

    def held_out(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """[n_problems, n_images] -> [n_problems, n_test]"""
        return np.take_along_axis(values, self.problems.test.cpu().numpy(), 1)

    @cached_property
    def decision(self) -> npt.NDArray[np.float64]:
        """Of the held-out images, [n_problems, n_test]."""
        return self.held_out(self.values)

    @cached_property
    def truth(self) -> BoolArray:
        """Which of the held-out images show the concept, [n_problems, n_test]."""
        return self.held_out(self.targets)

    @property
    def accuracy(self) -> npt.NDArray[np.float64]:
        """On the held-out part, [n_problems]."""
        return np.asarray(((self.decision > 0) == self.truth).mean(axis=1))

    @property
    def balanced_accuracy(self) -> npt.NDArray[np.float64]:
        """On the held-out part, [n_problems]."""
        return balanced_accuracy(self.decision > 0, self.truth)

    def again(self, targets: npt.NDArray[Any]) -> Measured:
        """The probe fitted anew, on other targets [n_problems, n_images]."""
        problems = replace(self.problems, targets=_like(targets, self.problems))
        return Measured(self.probe, problems, decisions(self.probe, problems), self.options)


def _like(array: npt.NDArray[Any], problems: Problems) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.int64)).to(problems.Z.device)


# --- one entry each


Compute: TypeAlias = Callable[[Measured], Columns]


@dataclass(frozen=True)
class Statistic:
    """Columns of a table of probes, computed from what was measured.

    Attributes
    ----------
    compute : callable
    predicts : {"class", "number"} or None
        Only of probes that predict this.
    option : str, optional
        The field of `Options` that asks for it; without one it is always there.
    needs : callable, optional
        Raises `InputError` for a concept set that does not know enough for it.
    """

    compute: Compute
    predicts: str | None = None
    option: str | None = None
    needs: Callable[[ConceptSet], None] | None = None

    def is_of(self, probe: AnyProbe, options: Options) -> bool:
        """Whether it is measured of this probe with these options."""
        return self.predicts in (None, probe.predicts) and (self.option is None or bool(getattr(options, self.option)))


#: Everything that is measured, in the order of the columns.
STATISTICS: list[Statistic] = []


def statistic(**options: Any) -> Callable[[Compute], Compute]:
    """Make a function one of `STATISTICS`; options as in `Statistic`."""

    def registered(compute: Compute) -> Compute:
        STATISTICS.append(Statistic(compute, **options))
        return compute

    return registered


def measure(probe: AnyProbe, problems: Problems, values: npt.NDArray[np.float64], *, options: Options) -> list[Row]:
    """Everything that is measured of every problem, [n_problems]."""
    measured, columns = Measured(probe, problems, values, options), dict[str, Any]()
    for one in STATISTICS:
        if one.is_of(probe, options):
            columns |= {name: np.asarray(column) for name, column in one.compute(measured).items()}
    return [{name: column[i].item() for name, column in columns.items()} for i in range(len(values))]


def check_needs(concept_set: ConceptSet, probe: AnyProbe, options: Options) -> None:
    """Raise `InputError` if the concept set does not know enough for what is to be measured of the probe."""
    for one in STATISTICS:
        if one.needs is not None and one.is_of(probe, options):
            one.needs(concept_set)


# --- scores


@statistic()
def sizes(measured: Measured) -> Columns:
    """Images of the parts; accuracies stand here, so that a regression has the columns too."""
    problems, share = measured.problems, measured.truth.mean(axis=1)
    seen = np.take_along_axis((measured.values > 0) == measured.targets, problems.train.cpu().numpy(), 1).mean(axis=1)
    known = 1 if measured.probe.predicts == "class" else np.nan
    return {
        "n_train": np.full(len(share), problems.train.shape[1]),
        "n_test": np.full(len(share), problems.test.shape[1]),
        "n_test_positive": measured.truth.sum(axis=1),
        "train_accuracy": known * seen,
        "test_accuracy": known * measured.accuracy,
        "baseline": np.maximum(share, 1 - share),
    }


@statistic(predicts="class")
def balanced(measured: Measured) -> Columns:
    """Accuracy of both classes with the same weight, and of the positives."""
    found = (measured.decision > 0) & measured.truth
    return {"balanced_accuracy": measured.balanced_accuracy, "sensitivity": found.sum(axis=1) / measured.truth.sum(axis=1)}


@statistic()
def ranking(measured: Measured) -> Columns:
    """How well decision values rank the held-out images."""
    pair = measured.decision, measured.truth
    return {"auroc": auroc(*pair), "average_precision": average_precision(*pair)}


def _needs_likelihoods(concept_set: ConceptSet) -> None:
    if not concept_set.likelihoods:
        raise InputError(
            f"Expected likelihoods of {concept_set.concept!r} for a regression, but its set has none. Make the sets with "
            "ConceptScores.rank, or leave the kind 'regression' out."
        )


@statistic(predicts="number", needs=_needs_likelihoods)
def regression(measured: Measured) -> Columns:
    """How much of the held-out numbers is explained, and Spearman's correlation with them."""
    predicted, wanted = measured.decision, measured.held_out(measured.problems.likelihoods)
    missed, spread = ((predicted - wanted) ** 2).sum(axis=1), ((wanted - wanted.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    ranks = [rankdata(v, axis=1) - (wanted.shape[1] + 1) / 2 for v in (predicted, wanted)]
    lengths = np.sqrt((ranks[0] ** 2).sum(axis=1) * (ranks[1] ** 2).sum(axis=1))
    return {
        "r2": 1 - missed / np.where(spread > 0, spread, np.nan),
        "rank_correlation": (ranks[0] * ranks[1]).sum(axis=1) / np.where(lengths > 0, lengths, np.nan),
    }


# --- control labels


def _needs_types(concept_set: ConceptSet) -> None:
    if len(set(concept_set.types)) < 2:
        raise InputError(
            f"Expected types of the images of {concept_set.concept!r} for control labels, but its set knows none. Make the sets with "
            "ConceptScores.rank, give classes with ConceptSets.with_types, or leave controls=0."
        )


@statistic(predicts="class", option="controls", needs=_needs_types)
def selectivity(measured: Measured) -> Columns:
    """Accuracy beyond the mean one on labelings that are random per type of image."""
    n, problems = measured.options.controls, measured.problems
    accuracies = []
    for i in range(n):
        drawn = [
            control_labels(concept_set.types, seed=seed * n + i, share=float(concept_set.targets.mean()))
            for concept_set, seed in zip(problems.concept_sets, problems.seeds, strict=True)
        ]
        accuracies.append(measured.again(np.stack(drawn)).accuracy)
    control = np.mean(accuracies, axis=0)
    return {"selectivity": measured.accuracy - control, "control_accuracy": control}


def control_labels(types: npt.ArrayLike, *, seed: int, share: float) -> BoolArray:
    """Labels of a control task, [n_images]: every type of image is positive or negative as a whole, at random.

    A probe can learn them only by knowing the types by heart, which then works on held-out images too. Selectivity is
    the accuracy on the concept minus that on the control labels. Types [n_images], of two or more, are drawn until the share of
    positives is as near to the wanted one as may be.

    References
    ----------
    Hewitt & Liang, Designing and interpreting probes with control tasks, EMNLP 2019.
    """
    names, inverse, counts = np.unique(np.asarray(types), return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    reached = counts[order].cumsum()[:-1]  # never all types
    n_chosen = int(np.argmin(np.abs(reached - share * len(inverse)))) + 1
    return np.isin(inverse, order[:n_chosen])


# --- permutations


@statistic(predicts="class", option="permutations")
def permutation_test(measured: Measured) -> Columns:
    """Balanced accuracy against those with the targets of each part shuffled among its images."""
    problems, null = measured.problems, []
    for number in range(measured.options.permutations):
        targets = measured.targets.copy()
        for row, seed, *parts in zip(targets, problems.seeds, problems.train.cpu().numpy(), problems.test.cpu().numpy(), strict=True):
            generator = np.random.default_rng((seed, number))
            for part in parts:
                row[part] = row[generator.permutation(part)]
        null.append(measured.again(targets).balanced_accuracy)
    return {"p_value": permutation_p_value(measured.balanced_accuracy, np.stack(null, axis=1))}


# --- codelength


def _needs_images(concept_set: ConceptSet) -> None:
    if len(concept_set.ids) < _FEWEST_CODED:
        raise InputError(
            f"Expected at least {_FEWEST_CODED} images of {concept_set.concept!r} for an online codelength, but its set has "
            f"{len(concept_set.ids)}. Give more images, or leave codelength=False."
        )


@statistic(predicts="class", option="codelength", needs=_needs_images)
def codelength(measured: Measured) -> Columns:
    """Bits of the online code over all images, in an order of the seed's, and how many times as many the bare labels take."""
    problems, n = measured.problems, measured.targets.shape[1]
    ends = codelength_ends(n)
    orders = np.stack([_order(targets, seed, ends[0]) for targets, seed in zip(measured.targets, problems.seeds, strict=True)])
    found = np.zeros(orders.shape)
    for start, end in pairwise(ends):
        values = decisions(measured.probe, replace(problems, train=_like(orders[:, :start], problems)))
        found[:, start:end] = np.take_along_axis(values, orders[:, start:end], 1)
    bits = online_codelength(found, np.take_along_axis(measured.targets, orders, 1), first=ends[0])
    return {"codelength": bits, "compression": n / bits}


def _order(targets: BoolArray, seed: int, first: int) -> npt.NDArray[np.int64]:
    """A random order of the images in which the first block holds both classes."""
    generator = np.random.default_rng(seed)
    one_of_each = [generator.choice(np.flatnonzero(targets == c)) for c in (0, 1)]
    others = generator.permutation(np.setdiff1d(np.arange(len(targets)), one_of_each))
    block = generator.permutation(np.concatenate([one_of_each, others[: first - 2]]))
    return np.concatenate([block, others[first - 2 :]])


def codelength_ends(n: int) -> tuple[int, ...]:
    """Where the blocks of the online code end: at `CODELENGTH_SHARES` of the images, the first of half of `_FEWEST_CODED` or more."""
    return tuple(sorted({end for end in (round(share * n) for share in CODELENGTH_SHARES) if end >= _FEWEST_CODED // 2}))


def online_codelength(decision: npt.ArrayLike, targets: npt.ArrayLike, *, first: int) -> Floats:
    """Bits, [...], that it takes to send labels to somebody who has the images, a probe trained anew after every block.

    The first block is sent with the uniform code, a bit per image. Every later block costs -log2 of what the probe trained on all blocks
    before it, whose log-odds [..., n_images] these are, says of its labels. A bit per image is what sending all labels without a probe
    costs; a concept that is easily read takes far fewer.

    References
    ----------
    Voita & Titov, Information-theoretic probing with minimum description length, EMNLP 2020, section 3.2.
    """
    later = np.where(np.asarray(targets, dtype=bool), -1, 1)[..., first:] * np.asarray(decision, dtype=np.float64)[..., first:]
    return np.asarray(first + np.logaddexp(0, later).sum(axis=-1) / np.log(2))
