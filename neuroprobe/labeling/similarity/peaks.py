"""Similarity functions that weigh images by how far a unit is above its mean: neuroprobe's own."""

from __future__ import annotations

import math

import torch

from neuroprobe._core import check_number
from neuroprobe.labeling.similarity._arrays import on_tensors
from neuroprobe.labeling.similarity.linear import LinearParts, centered_columns


def scaled(values: torch.Tensor) -> torch.Tensor:
    """Columns with the largest magnitude 1, so that no square or sum leaves float32's range."""
    largest = values.abs().amax(dim=0)
    return values / torch.where(largest > 0, largest, 1)


def of_length_1(values: torch.Tensor) -> torch.Tensor:
    """Columns of length 1, or of zeros; as `unit_columns`, but faster than torch.norm, which is slow along the rows."""
    lengths = values.square().sum(dim=0).sqrt()
    return values / torch.where(lengths > 0, lengths, 1)


def centered_units(values: torch.Tensor) -> torch.Tensor:
    """Columns about their mean, of length 1; zero where a column never varies, however small or large its values."""
    return of_length_1(scaled(centered_columns(scaled(values))))


#: What a unit's scores are divided by where even its best is no more.
SMALLEST_BEST = 1e-6


def standardized(values: torch.Tensor) -> torch.Tensor:
    """Columns with mean 0 and standard deviation 1; zero where a column never varies."""
    return centered_units(values) * math.sqrt(len(values))


def peaks(activations: torch.Tensor, power: float) -> torch.Tensor:
    """Standardized activations, zero below the mean, to a power, [n_images, n_units]."""
    return standardized(activations).clamp_min(0).pow(power)


def peak_weights(activations: torch.Tensor, power: float) -> torch.Tensor:
    """Half correlation, half peaks: the standardized activation and its peaks, each of length 1, summed, [n_images, n_units]."""
    centered = centered_units(activations)
    risen = (centered * math.sqrt(len(centered))).clamp_min_(0).pow_(power)  # as in `peaks`
    return of_length_1(centered + of_length_1(risen))


def peak_correlation_parts(*, power: float = 3.0) -> LinearParts:
    """`peak_correlation` without competition, as a matrix product."""
    check_number("power", power, low=1)
    return LinearParts(lambda activations: peak_weights(activations, power), standardized)


def peak_mean_parts(*, power: float = 4.0) -> LinearParts:
    """`peak_mean` as a matrix product."""
    check_number("power", power, low=0, above=True)

    def weights(activations: torch.Tensor) -> torch.Tensor:
        values = peaks(activations, power)
        return values / values.sum(dim=0).clamp_min(torch.finfo(values.dtype).tiny)

    return LinearParts(weights, standardized)


@on_tensors
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

    `neuroprobe.dissect` computes it from decorrelated embeddings (see `neuroprobe.labeling.similarity.embedding_scorers`), not from raw
    cosine similarities.

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
    check_number("competition", competition, low=0, high=1)
    check_number("temperature", temperature, low=0, above=True)
    raw = peak_correlation_parts(power=power)(activations, concept_scores)
    best = raw.amax(dim=1, keepdim=True).clamp_min(SMALLEST_BEST)
    relative = raw / best
    log_mean = torch.logsumexp(relative / temperature, dim=0) - math.log(len(raw))
    return best * (relative - competition * temperature * log_mean)


@on_tensors
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
    return peak_mean_parts(power=power)(activations, concept_scores)
