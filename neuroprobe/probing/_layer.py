"""What a study measures of a layer: every probe on every concept's images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from neuroprobe.concepts import ConceptSet
from neuroprobe.probing._coordinates import Coordinates, Scaling, coordinates, feature_blocks, gram_matrix, scaled
from neuroprobe.probing._problems import AnyProbe, Problems, Split, decisions, joined
from neuroprobe.probing._statistics import Options, Row, measure
from neuroprobe.statistics import auroc, auroc_p_value, balanced_accuracy

Features: TypeAlias = Literal["pooled", "spatial"]
Scope: TypeAlias = Literal["neuron", "layer", "full"]

#: How features are scaled: each by its own number, or all by one.
SCALINGS: dict[Features, Scaling] = {"pooled": "unit", "spatial": "layer"}


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
    def fits(self) -> bool:
        """Whether the probe can read these features in this scope."""
        if self.scope == "neuron":
            return self.features == "pooled" and self.probe.per_unit
        return self.probe.rotates or (self.scope == "layer" and self.features == "pooled")


@dataclass(frozen=True, eq=False)
class Sample:
    """One concept's images, by their rows among all of a layer's activations (in the order of the set's ids), and splits by seed."""

    concept_set: ConceptSet
    splits: Mapping[int, Split]
    activations: npt.NDArray[np.float32]
    rows: npt.NDArray[np.int64]

    @property
    def X(self) -> npt.NDArray[np.float32]:
        """The features, [n_images, n_features]; copied when they are asked for, because they can be large."""
        return np.asarray(self.activations[self.rows])


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


@dataclass(frozen=True, eq=False)
class CellResult:
    """Of one concept, layer and task: a row per seed; every unit's scores in scope neuron; weights and bias per seed if kept."""

    rows: list[Row]
    units: UnitScores | None = None
    directions: dict[int, tuple[npt.NDArray[np.float32], float]] = field(default_factory=dict)


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
    shared: list[Problems] | None = None  # of all samples; made once, when a task wants them
    for task, concepts in tasks:
        wanted = [sample for sample in samples if sample.concept_set.concept in concepts]
        if task.scope == "neuron":
            found.update({(sample.concept_set.concept, task): _fit_units(sample, task, device) for sample in wanted})
            continue
        if len(wanted) < len(samples):
            batches = [batch for sample in wanted for batch in scaled_problems(sample, task.features, device)]
        else:
            batches = shared = shared or [batch for sample in samples for batch in scaled_problems(sample, task.features, device)]
        rows = _fit_batches(task, batches, options=options)
        for sample in wanted:
            concept = sample.concept_set.concept
            kept = _directions(sample, task, rows[concept]) if options.keep_directions and task.probe.linear else {}
            found[concept, task] = CellResult([row for _, (row, _) in sorted(rows[concept].items())], directions=kept)
    return found


def scaled_problems(sample: Sample, features: Features, device: torch.device) -> list[Problems]:
    """A sample's splits as batches of problems, those with parts of the same sizes together."""
    X, n_features = torch.from_numpy(sample.activations), sample.activations.shape[1]
    if features == "spatial":
        Z = coordinates(gram_matrix(feature_blocks(X, torch.from_numpy(sample.rows), device)))
    else:
        Z = torch.from_numpy(sample.X).to(device)
    batches = []
    for seeds in _by_size(sample):
        train, _ = _rows_of(sample, seeds, device)
        batches.append(_problems(sample, scaled(Z, train, SCALINGS[features], n_features=n_features), seeds, n_features=n_features))
    return batches


def _problems(sample: Sample, Z: torch.Tensor, seeds: Sequence[int], *, n_features: float) -> Problems:
    targets = torch.from_numpy(sample.concept_set.targets).to(Z.device).expand(len(seeds), -1)
    return Problems(Z, targets, *_rows_of(sample, seeds, Z.device), tuple(seeds), n_features, (sample.concept_set,) * len(seeds))


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


def _fit_batches(task: Task, batches: Sequence[Problems], *, options: Options) -> dict[str, dict[int, tuple[Row, npt.NDArray[np.float64]]]]:
    """Row and decision values [n_images] of every concept and seed; batches of one shape are solved together."""
    found: dict[str, dict[int, tuple[Row, npt.NDArray[np.float64]]]] = {}
    for problems in joined(batches, rotated=task.probe.rotates):
        values = decisions(task.probe, problems)
        rows = measure(task.probe, problems, values, options=options)
        for row, value, concept_set, seed in zip(rows, values, problems.concept_sets, problems.seeds, strict=True):
            found.setdefault(concept_set.concept, {})[seed] = ({"seed": seed, **row}, value)
    return found


def _directions(
    sample: Sample, task: Task, rows: Mapping[int, tuple[Row, npt.NDArray[np.float64]]]
) -> dict[int, tuple[npt.NDArray[np.float32], float]]:
    """Weights for the units as they came, and biases, from the probes' decision values."""
    X, found = sample.X, {}
    for seed, (_, values) in rows.items():
        train = sample.splits[seed].train
        (weights,), (bias,) = Coordinates(X[train], SCALINGS[task.features]).weights_of(torch.from_numpy(values[train]))
        found[seed] = (weights.astype(np.float32), float(bias))
    return found


# --- scope neuron: a probe on every unit by itself, all of them at once


def _fit_units(sample: Sample, task: Task, device: torch.device) -> CellResult:
    X, targets = sample.X, sample.concept_set.targets
    rows: list[Row] = []
    scores: list[npt.NDArray[np.float64]] = []
    for seeds in _by_size(sample):
        parts = _rows_of(sample, seeds, device)
        Z = scaled(torch.from_numpy(X).to(device), parts[0], SCALINGS["pooled"])  # [n_splits, n_images, n_units]
        for i, seed in enumerate(seeds):
            row, score = _fit_split(sample, task.probe, Z[i], parts[0][i], parts[1][i], seed)
            rows.append({"seed": seed, **row})
            scores.append(score)
    one_sided = np.minimum(auroc_p_value(X.T, targets == 1), auroc_p_value(-X.T, targets == 1))
    accuracy, balanced, area = np.mean(scores, axis=0)
    units = UnitScores(accuracy, balanced, area, np.minimum(2 * one_sided, 1))
    for row in rows:
        row["p_value"] = float(units.p_value[row["unit"]])
    return CellResult(sorted(rows, key=lambda row: row["seed"]), units=units)


def _fit_split(
    sample: Sample, probe: AnyProbe, Z: torch.Tensor, train: torch.Tensor, test: torch.Tensor, seed: int
) -> tuple[Row, npt.NDArray[np.float64]]:
    """The row of the unit with the least log-loss on the training part, and [3, n_units]: scores of every unit on the held-out part."""
    truth, n_units = sample.concept_set.targets, Z.shape[1]
    targets = torch.from_numpy(truth).to(Z.device)

    def problems(columns: slice, n: int) -> Problems:
        parts = tuple(part.expand(n, -1) for part in (targets, train, test))
        return Problems(Z[:, columns].T[..., None], parts[0], parts[1], parts[2], (seed,) * n, 1, (sample.concept_set,) * n)

    values = decisions(probe, problems(slice(None), n_units), at_a_time=1024)  # [n_units, n_images]
    seen, held_out = train.cpu().numpy(), test.cpu().numpy()
    best = int(np.argmin(np.logaddexp(0, np.where(truth[seen] == 1, -values[:, seen], values[:, seen])).sum(axis=1)))
    one = slice(best, best + 1)
    (row,) = measure(probe, problems(one, 1), values[one], options=Options())
    decision, wanted = values[:, held_out], truth[held_out] == 1
    right = ((decision > 0) == wanted).mean(axis=1)
    return {"unit": best, **row}, np.stack([right, balanced_accuracy(decision > 0, wanted), auroc(decision, wanted)])


# --- scope full


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
            batches.append(_problems(sample, Z, seeds, n_features=self.n_features))
        rows = _fit_batches(task, batches, options=options)[sample.concept_set.concept]
        return CellResult([row for _, (row, _) in sorted(rows.items())])


def layer_grams(sample: Sample, features: Features, device: torch.device) -> list[torch.Tensor]:
    """One layer's part in scope full, for every size of splits, [n_splits, n_images, n_images]."""
    return [batch.Z @ batch.Z.mT / batch.n_features for batch in scaled_problems(sample, features, device)]
