"""Problems of a probing study: a batch of them is solved at once and scored on images it has not seen.

A problem is one concept, one split, one layer. Problems of one batch have parts of the same sizes; a problem's result is the same in any
batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from neuroprobe.concepts import ConceptSet
from neuroprobe.probing._coordinates import reduced
from neuroprobe.probing._estimators import EstimatorProbe
from neuroprobe.probing.probes import Probe, Training

#: One of our probes, or a classifier of the user's.
AnyProbe: TypeAlias = "Probe | EstimatorProbe"


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
        Of the first weights, and of whatever else is drawn.
    n_features : float
        How many features the r coordinates stand for.
    concept_sets : tuple of ConceptSet, [n_problems]
        What the problems are about; their images stand as in the rows.
    """

    Z: torch.Tensor
    targets: torch.Tensor
    train: torch.Tensor
    test: torch.Tensor
    seeds: tuple[int, ...]
    n_features: float
    concept_sets: tuple[ConceptSet, ...]

    @property
    def likelihoods(self) -> npt.NDArray[np.float64]:
        """What a regression predicts, [n_problems, n_images]."""
        return np.array([concept_set.likelihoods for concept_set in self.concept_sets], dtype=np.float64)

    @property
    def shape(self) -> tuple[Any, ...]:
        """Problems with this in common can be solved together."""
        n_positive = int(self.targets[0, self.test[0]].sum())
        return self.Z.shape[1:], self.train.shape[1], self.test.shape[1], n_positive, self.n_features


def joined(batches: Sequence[Problems], *, rotated: bool) -> list[Problems]:
    """Batches of one shape as one, rotated into as few dimensions as there are images."""
    groups: dict[tuple[Any, ...], list[Problems]] = {}
    for batch in batches:
        groups.setdefault(batch.shape, []).append(batch)
    return [_concatenated(group, rotated=rotated) for group in groups.values()]


def _concatenated(group: Sequence[Problems], *, rotated: bool) -> Problems:
    Z = torch.cat([reduced(batch.Z) if rotated else batch.Z for batch in group])
    targets, train, test = (torch.cat([getattr(batch, name) for batch in group]) for name in ("targets", "train", "test"))
    seeds, concept_sets = (tuple(one for batch in group for one in getattr(batch, name)) for name in ("seeds", "concept_sets"))
    return Problems(Z, targets, train, test, seeds, group[0].n_features, concept_sets)


def decisions(probe: AnyProbe, problems: Problems, *, at_a_time: int = 48) -> npt.NDArray[np.float64]:
    """The log-odds (of a regression: the number) that the probe, fitted on each problem's training part, gives every image.

    [n_problems, n_images]. The probe gives its parameters, and is not fitted itself; `at_a_time` problems are solved together.
    """
    targets = torch.from_numpy(problems.likelihoods).to(problems.Z.device) if probe.predicts == "number" else problems.targets
    parts = []
    for start in range(0, len(problems.Z), at_a_time):
        rows = slice(start, start + at_a_time)
        Z, train = problems.Z[rows].to(probe.dtype), problems.train[rows]
        seen = Z.take_along_dim(train[..., None], dim=1), targets[rows].gather(1, train)
        solution = probe.solve(Training(*seen, problems.seeds[rows], problems.n_features))
        parts.append(solution.function.values(Z)[..., 0])
    return np.asarray(torch.cat(parts).double().cpu().numpy())
