"""What the tests of similarity functions share: inputs, slow formulas, and the published implementation's arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from helpers import scores_of

from neuroprobe.concepts import ConceptScores
from neuroprobe.labeling import Scorer, find_scorer

N, UNITS, CONCEPTS = 60, 7, 150


def random_inputs(n: int = 60, units: int = 7, concepts: int = 9, *, low: float = -0.3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    activations = generator.normal(size=(n, units)).astype(np.float32)
    return activations, generator.uniform(low, 0.4, size=(n, concepts)).astype(np.float32)


def by_pair(function: Callable[..., float], activations: np.ndarray, scores: np.ndarray) -> np.ndarray:
    units, concepts = activations.T.astype(np.float64), scores.T.astype(np.float64)
    return np.array([[function(list(unit), list(concept)) for concept in concepts] for unit in units])


def slow_cosine(x: list[float], y: list[float]) -> float:
    lengths = math.sqrt(sum(v * v for v in x)) * math.sqrt(sum(v * v for v in y))
    return sum(v * w for v, w in zip(x, y, strict=True)) / lengths


def centered(x: list[float]) -> list[float]:
    mean = sum(x) / len(x)
    return [v - mean for v in x]


def scores(n: int = N, *, d: int = 12, concepts: int = CONCEPTS, seed: int = 0) -> ConceptScores:
    return scores_of(n, [f"word {i}" for i in range(concepts)], d=d, seed=seed)


def layer(n: int = N, units: int = UNITS, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, units, generator=torch.Generator().manual_seed(seed))


def tied_layer(n: int = 150, n_units: int = 12) -> torch.Tensor:
    """Units of several kinds, among them ties, one constant and one that is never above zero twice."""
    activations = layer(n, n_units, seed=3)
    activations[:, 1] = activations[:, 1].clip(0)
    activations[:, 2] = (activations[:, 2] * 2).round()
    activations[:, 3] = 0.25
    activations[:, 4] = (activations[:, 4] > 2.2).float()
    return activations


def scorer_of(name: str, given: ConceptScores, **parameters: Any) -> Scorer[Any]:
    make = find_scorer(name)[1]
    assert make is not None
    return make(given, **parameters)


def whole(scorer: Scorer[Any], values: torch.Tensor, *, size: int = 10_000) -> torch.Tensor:
    """Scores with their prior, in blocks of `size` concepts."""
    part = scorer.units(values)
    blocks = [scorer.block(part, slice(start, min(start + size, scorer.n_concepts))) for start in range(0, scorer.n_concepts, size)]
    raw = torch.cat(blocks, dim=1)
    scale = raw.amax(dim=1, keepdim=True) if scorer.prior_relative else torch.ones(1)
    return scale * (raw / scale - scorer.prior(raw / scale)) if scorer.prior_weight else raw


def close(found: torch.Tensor, expected: torch.Tensor, *, atol: float = 2e-5) -> None:
    """Up to rounding: relative to the largest of the expected values."""
    torch.testing.assert_close(found, torch.as_tensor(expected), rtol=0, atol=atol * float(expected.abs().max()))


# --- the published implementation, one unit at a time in float32, in its order of sums: equal to the goldens


def published_wpmi(activations: np.ndarray, scores: np.ndarray, *, k: int = 28, a: float = 2.0, lam: float = 0.6) -> torch.Tensor:
    probabilities = torch.softmax(a * torch.from_numpy(scores), dim=1)
    log_p = torch.stack([torch.log(probabilities[top] + 1e-7).sum(dim=0) for top in _top(activations, k)])
    return log_p - lam * (torch.logsumexp(log_p, dim=0) - math.log(len(log_p)))


def published_soft_wpmi(activations: np.ndarray, scores: np.ndarray, *, k: int = 100, a: float = 10.0, lam: float = 1.0) -> torch.Tensor:
    probabilities = torch.softmax(a * torch.from_numpy(scores), dim=1)
    k = min(k, len(activations))
    certain = (0.998 - torch.arange(k) / k * (0.998 - 0.97))[:, None]
    log_p = torch.stack([torch.log(1 + certain * (probabilities[top] - 1) + 1e-7).sum(dim=0) for top in _top(activations, k)])
    return log_p - lam * (torch.logsumexp(log_p, dim=0) - math.log(len(log_p)))


def _top(activations: np.ndarray, k: int) -> torch.Tensor:
    return torch.from_numpy(np.argsort(-activations, axis=0, kind="stable")[:k].T.copy())
