"""Similarity functions that weigh images by how far a unit is above its mean: neuroprobe's own."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch

from neuroprobe._core import check_number
from neuroprobe.labeling.similarity._registry import similarity
from neuroprobe.labeling.similarity._scorer import SMALLEST_BEST
from neuroprobe.labeling.similarity.linear import (
    EmbeddingScorer,
    WeightedUnits,
    centered_units,
    concentration_of,
    standardized,
    unit_columns,
)

if TYPE_CHECKING:
    from neuroprobe.concepts import ConceptScores


def _peak_correlation_weights(activations: torch.Tensor, *, power: float) -> torch.Tensor:
    """Half correlation, half peaks: the standardized activation and its peaks, each of length 1, summed, [n_images, n_units]."""
    centered = centered_units(activations)
    risen = (centered * math.sqrt(len(centered))).clamp_min_(0).pow_(power)
    return unit_columns(centered + unit_columns(risen))


class PeakCorrelationScorer(EmbeddingScorer):
    """`peak_correlation`, whose parameters it takes, of decorrelated concept scores unless `decorrelate` is False."""

    prior_relative = True

    def __init__(
        self, scores: ConceptScores, *, power: float = 3.0, competition: float = 0.75, temperature: float = 0.1, decorrelate: bool = True
    ) -> None:
        _check_peak_correlation(power=power, competition=competition, temperature=temperature)
        self.prior_weight, self.prior_temperature = competition, temperature
        weights = partial(_peak_correlation_weights, power=power)
        super().__init__(scores, weights=weights, standard=True, decorrelate=decorrelate)


def _check_peak_correlation(*, power: float, competition: float, temperature: float) -> None:
    check_number("power", power, low=1)
    check_number("competition", competition, low=0, high=1)
    check_number("temperature", temperature, low=0, above=True)


@similarity(PeakCorrelationScorer)
def peak_correlation(
    activations: torch.Tensor,
    concept_scores: torch.Tensor,
    *,
    power: float = 3.0,
    competition: float = 0.75,
    temperature: float = 0.1,
) -> torch.Tensor:
    """Correlation of a unit with a concept in which the unit's peaks count extra, and units compete for a concept.

    raw[u, c] = sum_i w[i, u] z[i, c]: z are the concept's scores, standardized over the images; w is the unit's
    standardized activation plus the third power of its positive part, each scaled to length 1, and their sum too.
    Were the images shuffled, raw would have mean 0 and standard deviation 1. The first half of w finds a faint
    concept on many images, the second a clear one on few. Then, with best[u] = max_c raw[u, c] and
    relative[u, c] = raw[u, c] / best[u],

    score[u, c] = best[u] (relative[u, c] - competition * temperature * log mean_v exp(relative[v, c] / temperature))

    over all units v: what every unit likes as much as its own best concept says little. Being relative, the
    competition does not let strong units take a concept from faint ones; being less than 1, it does not let the units of
    a layer that agree cancel each other.

    `neuroprobe.dissect` computes it from decorrelated embeddings, not from raw cosine similarities: image embeddings share a few
    directions that say little about which concept an image shows.

    Parameters
    ----------
    activations : array or Tensor, [n_images, n_units]
    concept_scores : array or Tensor, [n_images, n_concepts]
    power : float, default 3
        Of the peaks; at least 1.
    competition : float, default 0.75
        From 0, with which no score depends on the other units, to 1.
    temperature : float, default 0.1
        Of the mean over units, as a share of a unit's best; above 0.

    Returns
    -------
    array or Tensor, [n_units, n_concepts]
        raw is 0 for a unit or a concept that never varies.

    Raises
    ------
    InputError
        A parameter out of its range.
    """
    _check_peak_correlation(power=power, competition=competition, temperature=temperature)
    raw = _peak_correlation_weights(activations, power=power).T @ standardized(concept_scores)
    best = raw.amax(dim=1, keepdim=True).clamp_min(SMALLEST_BEST)
    relative = raw / best
    log_mean = torch.logsumexp(relative / temperature, dim=0) - math.log(len(raw))
    return best * (relative - competition * temperature * log_mean)


def _peaks(deviations: torch.Tensor, power: float, *, images: int) -> torch.Tensor:
    """Weights of the images from their deviations from a unit's mean, along the axis of the images: zero below it, summing to 1."""
    values = deviations.clamp_min(0).pow(power)
    return values / values.sum(dim=images, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)


class PeakMeanScorer(EmbeddingScorer):
    """`peak_mean`, whose parameter it takes, of decorrelated concept scores unless `decorrelate` is False."""

    def __init__(self, scores: ConceptScores, *, power: float = 4.0, decorrelate: bool = True) -> None:
        check_number("power", power, low=0, above=True)
        super().__init__(scores, weights=lambda a: _peaks(standardized(a), power, images=0), standard=True, decorrelate=decorrelate)
        self._power = power

    def units_from_top(self, rows: torch.Tensor, values: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> WeightedUnits:
        """As `units`, with the images that the summary left out at weight 0."""
        rows, values, mean, std = (tensor.to(self._vectors.device) for tensor in (rows, values, mean, std))
        deviations = (values - mean[:, None]) / torch.where(std > 0, std, torch.inf)[:, None]
        weights = _peaks(deviations, self._power, images=1)  # [n_units, k]
        summed = torch.stack([w @ self._vectors[r] for w, r in zip(weights, rows, strict=True)])  # [n_units, d]
        return WeightedUnits(summed, concentration_of(weights.T))


@similarity(PeakMeanScorer)
def peak_mean(activations: torch.Tensor, concept_scores: torch.Tensor, *, power: float = 4.0) -> torch.Tensor:
    """Mean of a concept's standardized scores over the images, weighted by the unit's peaks.

    An image's weight is the unit's standardized activation, zero below the mean, to the `power`; the weights sum to 1.
    No score depends on the other units. A recording summary is enough for it, up to the images it left out.

    Parameters
    ----------
    activations : array or Tensor, [n_images, n_units]
    concept_scores : array or Tensor, [n_images, n_concepts]
    power : float, default 4
        Above 0.

    Returns
    -------
    array or Tensor, [n_units, n_concepts]
        In standard deviations of the concept's scores; 0 for a unit or a concept that never varies.

    Raises
    ------
    InputError
        A power that is not above 0.
    """
    check_number("power", power, low=0, above=True)
    return _peaks(standardized(activations), power, images=0).T @ standardized(concept_scores)
