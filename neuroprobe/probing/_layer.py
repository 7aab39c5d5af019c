"""What a study measures of a layer: every probe on every concept's images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from neuroprobe.concepts import ConceptSet
from neuroprobe.probing._coordinates import Coordinates, Scaler, Scaling, coordinates, feature_blocks, gram_matrix
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
        elif len(wanted) < len(samples):
            found.update(_fit_problems(task, wanted, _scaled(wanted, task.features, device), options))
        else:
            shared = shared or _scaled(samples, task.features, device)
            found.update(_fit_problems(task, samples, shared, options))
    return found


def _scaled(samples: Sequence[Sample], features: Features, device: torch.device) -> list[Problems]:
    return [problem for sample in samples for problem in scaled_problems(sample, features, device)]


def scaled_problems(sample: Sample, features: Features, device: torch.device) -> list[Problems]:
    """A sample's splits, each as a batch of one problem."""
    X, n_features = torch.from_numpy(sample.activations), sample.activations.shape[1]
    if features == "spatial":
        Z = coordinates(gram_matrix(feature_blocks(X, torch.from_numpy(sample.rows), device)))
    else:
        Z = torch.from_numpy(sample.X).to(device)
    scalers = {seed: Scaler(Z[split.train], SCALINGS[features], n_features=n_features) for seed, split in sample.splits.items()}
    return [_problem(sample, scaler(Z), seed, n_features) for seed, scaler in scalers.items()]


def _problem(sample: Sample, Z: torch.Tensor, seed: int, n_features: float) -> Problems:
    rows = (sample.concept_set.targets, sample.splits[seed].train, sample.splits[seed].test)
    targets, train, test = (torch.from_numpy(one)[None].to(Z.device) for one in rows)
    return Problems(Z[None], targets, train, test, (seed,), n_features, (sample.concept_set,))


def _fit_problems(
    task: Task, samples: Sequence[Sample], problems: Sequence[Problems], options: Options
) -> dict[tuple[str, Task], CellResult]:
    """The samples' cells; problems of one shape are solved together."""
    rows: dict[str, dict[int, Row]] = {sample.concept_set.concept: {} for sample in samples}
    values: dict[tuple[str, int], npt.NDArray[np.float64]] = {}
    for batch in joined(problems, rotated=task.probe.rotates):
        decided = decisions(task.probe, batch)
        for row, value, concept_set, seed in zip(
            measure(task.probe, batch, decided, options=options), decided, batch.concept_sets, batch.seeds, strict=True
        ):
            rows[concept_set.concept][seed] = {"seed": seed, **row}
            values[concept_set.concept, seed] = value
    keeps = options.keep_directions and task.probe.linear and task.scope == "layer"
    return {
        (concept, task): CellResult(
            [row for _, row in sorted(rows[concept].items())],
            directions={seed: _direction(sample, task, seed, values[concept, seed]) for seed in rows[concept]} if keeps else {},
        )
        for sample, concept in zip(samples, rows, strict=True)
    }


def _direction(sample: Sample, task: Task, seed: int, values: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float32], float]:
    """Weights for the units as they came, and a bias, from a probe's decision values."""
    train = sample.splits[seed].train
    part = sample.activations[sample.rows[train]]
    (weights,), (bias,) = Coordinates(part, SCALINGS[task.features]).weights_of(torch.from_numpy(values[train]))
    return weights.astype(np.float32), float(bias)


# --- scope neuron: a probe on every unit by itself, all of them at once


def _fit_units(sample: Sample, task: Task, device: torch.device) -> CellResult:
    X, targets = sample.X, sample.concept_set.targets
    there = torch.from_numpy(X).to(device)
    rows, scores = zip(*(_fit_split(sample, task.probe, there, seed) for seed in sample.splits), strict=True)
    one_sided = np.minimum(auroc_p_value(X.T, targets == 1), auroc_p_value(-X.T, targets == 1))
    accuracy, balanced, area = np.mean(scores, axis=0)
    units = UnitScores(accuracy, balanced, area, np.minimum(2 * one_sided, 1))
    for row in rows:
        row["p_value"] = float(units.p_value[row["unit"]])
    return CellResult(sorted(rows, key=lambda row: row["seed"]), units=units)


def _fit_split(sample: Sample, probe: AnyProbe, X: torch.Tensor, seed: int) -> tuple[Row, npt.NDArray[np.float64]]:
    """The row of the unit with the least log-loss on the training part, and [3, n_units]: scores of every unit on the held-out part."""
    truth, split = sample.concept_set.targets, sample.splits[seed]
    whole = _problem(sample, Scaler(X[split.train], SCALINGS["pooled"])(X), seed, 1)

    def problems(columns: slice, n: int) -> Problems:
        targets, train, test = (part.expand(n, -1) for part in (whole.targets, whole.train, whole.test))
        return Problems(whole.Z[0, :, columns].T[..., None], targets, train, test, (seed,) * n, 1, (sample.concept_set,) * n)

    n_units, seen, held_out = X.shape[1], split.train, split.test
    values = decisions(probe, problems(slice(None), n_units), at_a_time=1024)  # [n_units, n_images]
    best = int(np.argmin(np.logaddexp(0, np.where(truth[seen] == 1, -values[:, seen], values[:, seen])).sum(axis=1)))
    one = slice(best, best + 1)
    (row,) = measure(probe, problems(one, 1), values[one], options=Options())
    decision, wanted = values[:, held_out], truth[held_out] == 1
    right = ((decision > 0) == wanted).mean(axis=1)
    return {"seed": seed, "unit": best, **row}, np.stack([right, balanced_accuracy(decision > 0, wanted), auroc(decision, wanted)])


# --- scope full


@dataclass
class FullScope:
    """Adds up the layers' Gram matrices of one concept, each with the same weight."""

    total: list[torch.Tensor] = field(default_factory=list)
    n_features: int = 0
    n_layers: int = 0

    def add(self, grams: Sequence[torch.Tensor], n_features: int) -> None:
        """One layer: a matrix [n_images, n_images] for every split, with a mean square of 1 on its diagonal."""
        self.total = [a + b for a, b in zip(self.total, grams, strict=True)] if self.total else list(grams)
        self.n_features += n_features
        self.n_layers += 1

    def fit(self, sample: Sample, task: Task, *, options: Options) -> CellResult:
        """Fit one task of scope full; `sample` needs no features."""
        Z = [coordinates(gram * (self.n_features / self.n_layers)) for gram in self.total]
        problems = [_problem(sample, rows, seed, self.n_features) for rows, seed in zip(Z, sample.splits, strict=True)]
        return _fit_problems(task, [sample], problems, options)[sample.concept_set.concept, task]


def layer_grams(sample: Sample, features: Features, device: torch.device) -> list[torch.Tensor]:
    """One layer's part in scope full, for every split, [n_images, n_images]."""
    return [problem.Z[0] @ problem.Z[0].T / problem.n_features for problem in scaled_problems(sample, features, device)]
