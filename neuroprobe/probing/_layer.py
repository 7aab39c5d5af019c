"""What a study measures of a layer: every probe on every concept's images, with control labels, permutations and codelengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from neuroprobe.concepts import ConceptSet
from neuroprobe.probing._cells import AnyProbe, Problems, Row, Split, decisions, score
from neuroprobe.probing._estimators import EstimatorProbe
from neuroprobe.probing._gram import coordinates, gram_matrix, layer_scaled, reduced, unit_scaled
from neuroprobe.probing._unit_cells import UnitScores, fit_units, summarize_units
from neuroprobe.probing.controls import codelength_ends, control_labels, online_codelength
from neuroprobe.statistics import permutation_p_value

Features: TypeAlias = Literal["pooled", "spatial"]
Scope: TypeAlias = Literal["neuron", "layer", "full"]

#: Kinds whose weights lie in the span of the training images, so that their decision values tell them.
LINEAR_KINDS = ("linear", "mean_difference")


@dataclass(frozen=True)
class Task:
    """One probe in one scope on one kind of features."""

    scope: Scope
    probe: AnyProbe
    features: Features

    @property
    def name(self) -> str:
        """As in "prob-layer-linear"."""
        return f"prob-{self.scope}-{self.probe.kind}"

    @property
    def sees_units(self) -> bool:
        """Whether the probe must see the units themselves; the others see what no rotation of them changes."""
        return self.probe.kind == "sparse" or isinstance(self.probe, EstimatorProbe)


@dataclass(frozen=True)
class Options:
    """What is measured beside the scores; as in `neuroprobe.ProbingStudy`."""

    controls: int = 0
    permutations: int = 0
    codelength: bool = False
    keep_directions: bool = False


@dataclass(frozen=True, eq=False)
class Sample:
    """One concept's images, by their rows among all recorded features of a layer (in the order of the set's ids), and splits by seed."""

    concept_set: ConceptSet
    splits: Mapping[int, Split]
    recorded: npt.NDArray[np.float32]
    rows: npt.NDArray[np.int64]

    @property
    def X(self) -> npt.NDArray[np.float32]:
        """The features, [n_images, n_features]; copied when they are asked for, because they can be large."""
        return np.asarray(self.recorded[self.rows])


@dataclass(frozen=True, eq=False)
class CellResult:
    """Of one concept, layer and task: a row per seed; every unit's scores in scope neuron; weights and bias per seed if kept."""

    rows: list[Row]
    units: UnitScores | None = None
    directions: dict[int, tuple[npt.NDArray[np.float32], float]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Batch:
    """Problems with what they are about."""

    problems: Problems
    concepts: list[ConceptSet]


def fit_layer(
    samples: Sequence[Sample], tasks: Sequence[tuple[Task, Sequence[str]]], *, options: Options, device: torch.device
) -> dict[tuple[str, Task], CellResult]:
    """Fit all probes on one layer's features; the result of a concept is the same whichever others are there.

    Parameters
    ----------
    samples : sequence of Sample
        All with features of one kind from one layer.
    tasks : sequence of (Task, concepts)
        Of scope neuron or layer, with the concepts that are wanted; all of one kind of features.
    options : Options
    device : torch.device

    Returns
    -------
    dict from (concept, task) to CellResult
    """
    found: dict[tuple[str, Task], CellResult] = {}
    batches: list[_Batch] | None = None
    for task, concepts in tasks:
        wanted = [sample for sample in samples if sample.concept_set.concept in concepts]
        if task.scope == "neuron":
            found.update({(s.concept_set.concept, task): _fit_units(s, task, device) for s in wanted})
            continue
        if batches is None or len(wanted) < len(samples):
            batches = [batch for sample in wanted for batch in scaled_problems(sample, task.features, device)]
        rows = fit_batches(task, batches, options=options)
        for sample in wanted:
            concept = sample.concept_set.concept
            kept = _directions(sample, task, rows[concept]) if options.keep_directions and task.probe.kind in LINEAR_KINDS else {}
            found[concept, task] = CellResult([row for _, (row, _) in sorted(rows[concept].items())], directions=kept)
        if len(wanted) < len(samples):
            batches = None
    return found


def scaled_problems(sample: Sample, features: Features, device: torch.device) -> list[_Batch]:
    """A sample's splits as batches of problems, those with parts of the same sizes together."""
    n_features = sample.recorded.shape[1]
    if features == "spatial":
        Z = coordinates(gram_matrix(torch.from_numpy(sample.recorded), rows=torch.from_numpy(sample.rows), device=device))
    else:
        Z = torch.from_numpy(sample.X).to(device)
    batches = []
    for seeds in _by_size(sample):
        train, _ = _rows_of(sample, seeds, device)
        scaled = layer_scaled(Z, train, n_features=n_features) if features == "spatial" else unit_scaled(Z, train)
        batches.append(_batch(sample, scaled, seeds, n_features=n_features))
    return batches


def _batch(sample: Sample, Z: torch.Tensor, seeds: Sequence[int], *, n_features: float) -> _Batch:
    concept_set, device = sample.concept_set, Z.device
    train, test = _rows_of(sample, seeds, device)
    targets = torch.from_numpy(concept_set.targets).to(device).expand(len(seeds), -1)
    likelihoods = concept_set.likelihoods
    values = torch.tensor(likelihoods, dtype=torch.float64, device=device).expand(len(seeds), -1) if likelihoods else None
    return _Batch(Problems(Z, targets, train, test, tuple(seeds), n_features, values), [concept_set] * len(seeds))


def _rows_of(sample: Sample, seeds: Sequence[int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    parts = ([sample.splits[seed].train for seed in seeds], [sample.splits[seed].test for seed in seeds])
    return torch.from_numpy(np.stack(parts[0])).to(device), torch.from_numpy(np.stack(parts[1])).to(device)


def _by_size(sample: Sample) -> list[list[int]]:
    """Seeds whose parts have the same sizes; near-duplicates that stay together can make some differ."""
    targets, groups = sample.concept_set.targets, dict[tuple[int, ...], list[int]]()
    for seed, split in sample.splits.items():
        key = (len(split.train), len(split.test), int(targets[split.train].sum()), int(targets[split.test].sum()))
        groups.setdefault(key, []).append(seed)
    return list(groups.values())


def fit_batches(task: Task, batches: Sequence[_Batch], *, options: Options) -> dict[str, dict[int, tuple[Row, npt.NDArray[np.float64]]]]:
    """Row and decision values [n_images] of every concept and seed; batches of one shape are solved together."""
    found: dict[str, dict[int, tuple[Row, npt.NDArray[np.float64]]]] = {}
    for batch in _joined(batches, rotated=not task.sees_units):
        values = decisions(task.probe, batch.problems)
        rows = score(values, batch.problems, kind=task.probe.kind)
        _add_extras(rows, task.probe, batch, options)
        for row, value, concept_set, seed in zip(rows, values, batch.concepts, batch.problems.seeds, strict=True):
            found.setdefault(concept_set.concept, {})[seed] = ({"seed": seed, **row}, value)
    return found


def _joined(batches: Sequence[_Batch], *, rotated: bool) -> list[_Batch]:
    groups: dict[tuple[Any, ...], list[_Batch]] = {}
    for batch in batches:
        p = batch.problems
        sizes = (p.Z.shape[1:], p.train.shape[1], p.test.shape[1], int(p.targets[0, p.test[0]].sum()), p.values is None, p.n_features)
        groups.setdefault(sizes, []).append(batch)
    return [_concatenated(group, rotated=rotated) for group in groups.values()]


def _concatenated(batches: Sequence[_Batch], *, rotated: bool) -> _Batch:
    parts = [batch.problems for batch in batches]
    values = None if parts[0].values is None else torch.cat([p.values for p in parts if p.values is not None])
    Z = torch.cat([reduced(p.Z) if rotated else p.Z for p in parts])
    targets, train, test = (torch.cat([getattr(p, name) for p in parts]) for name in ("targets", "train", "test"))
    problems = Problems(Z, targets, train, test, tuple(s for p in parts for s in p.seeds), parts[0].n_features, values)
    return _Batch(problems, [concept_set for batch in batches for concept_set in batch.concepts])


def _add_extras(rows: list[Row], probe: AnyProbe, batch: _Batch, options: Options) -> None:
    if probe.kind == "regression":
        return
    if options.controls:
        accuracy = _control_accuracy(probe, batch, options.controls)
        for row, control in zip(rows, accuracy, strict=True):
            row["control_accuracy"], row["selectivity"] = float(control), row["test_accuracy"] - float(control)
    if options.permutations:
        null = np.stack([_permuted_score(probe, batch.problems, i) for i in range(options.permutations)], axis=1)
        for row, p in zip(rows, permutation_p_value([row["balanced_accuracy"] for row in rows], null), strict=True):
            row["p_value"] = float(p)
    if options.codelength:
        for row, bits in zip(rows, _codelengths(probe, batch.problems), strict=True):
            row["codelength"], row["compression"] = float(bits), batch.problems.targets.shape[1] / float(bits)


def _control_accuracy(probe: AnyProbe, batch: _Batch, n: int) -> npt.NDArray[np.float64]:
    """Mean held-out accuracy on n labelings that are random per type of image, [n_problems]."""
    accuracies = []
    for i in range(n):
        drawn = [
            control_labels(s.types, seed=seed * n + i, share=float(s.targets.mean()))
            for s, seed in zip(batch.concepts, batch.problems.seeds, strict=True)
        ]
        accuracies.append(_accuracy(probe, batch.problems.with_targets(_like(np.stack(drawn), batch.problems))))
    return np.asarray(np.mean(accuracies, axis=0))


def _accuracy(probe: AnyProbe, problems: Problems) -> npt.NDArray[np.float64]:
    right = (decisions(probe, problems) > 0) == (problems.targets.cpu().numpy() > 0)
    return np.asarray(np.take_along_axis(right, problems.test.cpu().numpy(), 1).mean(axis=1))


def _permuted_score(probe: AnyProbe, problems: Problems, number: int) -> npt.NDArray[np.float64]:
    """Balanced accuracy with the targets of each part shuffled among its images, [n_problems]."""
    targets = problems.targets.cpu().numpy().copy()
    for row, seed, *parts in zip(targets, problems.seeds, problems.train.cpu().numpy(), problems.test.cpu().numpy(), strict=True):
        generator = np.random.default_rng((seed, number))
        for part in parts:
            row[part] = row[generator.permutation(part)]
    shuffled = problems.with_targets(_like(targets, problems))
    rows = score(decisions(probe, shuffled), shuffled, kind=probe.kind)
    return np.array([row["balanced_accuracy"] for row in rows])


def _codelengths(probe: AnyProbe, problems: Problems) -> list[float]:
    """Bits of the online code over all images, in an order of the seed's, [n_problems]."""
    n = problems.targets.shape[1]
    ends = codelength_ends(n)
    orders = np.stack([_order(t, seed, ends[0]) for t, seed in zip(problems.targets.cpu().numpy(), problems.seeds, strict=True)])
    found = np.zeros(orders.shape)
    for start, end in pairwise(ends):
        values = decisions(probe, problems.trained_on(_like(orders[:, :start], problems)))
        found[:, start:end] = np.take_along_axis(values, orders[:, start:end], 1)
    truth = np.take_along_axis(problems.targets.cpu().numpy(), orders, 1) > 0
    return [float(online_codelength(row, targets, ends=ends)) for row, targets in zip(found, truth, strict=True)]


def _order(targets: npt.NDArray[np.int64], seed: int, first: int) -> npt.NDArray[np.int64]:
    """A random order of the images in which the first block holds both classes."""
    generator = np.random.default_rng(seed)
    one_of_each = [generator.choice(np.flatnonzero(targets == c)) for c in (0, 1)]
    others = generator.permutation(np.setdiff1d(np.arange(len(targets)), one_of_each))
    block = generator.permutation(np.concatenate([one_of_each, others[: first - 2]]))
    return np.concatenate([block, others[first - 2 :]])


def _like(array: npt.NDArray[Any], problems: Problems) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.int64)).to(problems.Z.device)


def _fit_units(sample: Sample, task: Task, device: torch.device) -> CellResult:
    values = sample.X
    X, targets = torch.from_numpy(values).to(device), torch.from_numpy(sample.concept_set.targets).to(device)
    rows: list[Row] = []
    scores: list[npt.NDArray[np.float64]] = []
    for seeds in _by_size(sample):
        found, part = fit_units(task.probe, X, targets, *_rows_of(sample, seeds, device), tuple(seeds))
        rows += [{"seed": seed, **row} for seed, row in zip(seeds, found, strict=True)]
        scores += part
    units = summarize_units(values, sample.concept_set.targets, scores)
    for row in rows:
        row["p_value"] = float(units.p_value[row["unit"]])
    return CellResult(sorted(rows, key=lambda row: row["seed"]), units=units)


def _directions(
    sample: Sample, task: Task, rows: Mapping[int, tuple[Row, npt.NDArray[np.float64]]]
) -> dict[int, tuple[npt.NDArray[np.float32], float]]:
    """Weights for the units as they came, and biases, from the probes' decision values."""
    X = sample.X
    return {seed: _direction(X, sample.splits[seed].train, values, task.features) for seed, (_, values) in rows.items()}


def _direction(
    X: npt.NDArray[np.float32], train: npt.NDArray[np.int64], values: npt.NDArray[np.float64], features: Features
) -> tuple[npt.NDArray[np.float32], float]:
    """The shortest weights (of scaled units) with these decision values on the training part: a probe's own lie in its span."""
    part = X[train].astype(np.float64)
    mean = part.mean(axis=0)
    part -= mean
    scale = part.std(axis=0) if features == "pooled" else np.full(X.shape[1], np.sqrt(np.square(part).mean()))
    scale = np.where(scale > 1e-13 * np.abs(mean), scale, 1)
    part /= scale
    center = values[train].mean()
    inner = np.linalg.pinv(part @ part.T, rcond=1e-10, hermitian=True)
    weights = (part.T @ (inner @ (values[train] - center))) / scale
    return weights.astype(np.float32), float(center - weights @ mean)


@dataclass
class FullScope:
    """Adds up the layers' Gram matrices of one concept, each with the same weight."""

    total: list[torch.Tensor] = field(default_factory=list)
    n_features: int = 0
    n_layers: int = 0

    def add(self, grams: Sequence[torch.Tensor], n_features: int) -> None:
        """One layer: a matrix [n_splits, n_images, n_images] for every size of splits, with a mean square of 1 on its diagonal."""
        self.total = [a + b for a, b in zip(self.total, grams, strict=True)] if self.total else list(grams)
        self.n_features += n_features
        self.n_layers += 1

    def fit(self, sample: Sample, task: Task, *, options: Options) -> CellResult:
        """Fit one task of scope full; `sample` needs no features."""
        batches = []
        for seeds, gram in zip(_by_size(sample), self.total, strict=True):
            Z = coordinates(gram * (self.n_features / self.n_layers))
            batches.append(_batch(sample, Z, seeds, n_features=self.n_features))
        rows = fit_batches(task, batches, options=options)[sample.concept_set.concept]
        return CellResult([row for _, (row, _) in sorted(rows.items())])


def layer_grams(sample: Sample, features: Features, device: torch.device) -> list[torch.Tensor]:
    """One layer's part in scope full, for every size of splits, [n_splits, n_images, n_images]."""
    return [batch.problems.Z @ batch.problems.Z.mT / batch.problems.n_features for batch in scaled_problems(sample, features, device)]
