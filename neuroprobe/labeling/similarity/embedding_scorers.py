"""Scorers whose score is a weighted sum over the images of a concept's scaled similarities.

Such a sum happens among the embeddings: sum_i w[i, u] (v_i - center) . t_c / length_c is one product
[n_units, d] x [d, n_concepts], and the matrix of images by concepts is never made. The functions are defined, on that
matrix, in `neuroprobe.labeling.similarity._similarity`.

Decorrelated image vectors (`decorrelated`): image embeddings share a few directions that say little about which concept
an image shows. About their mean they are multiplied by (C + shrinkage * mean variance)^-1/2, with C their covariance
over the probing set.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self

import torch

from neuroprobe._core import check_number
from neuroprobe.concepts import ConceptScores
from neuroprobe.labeling.similarity.linear import LinearParts, cos_similarity_parts, pearson_parts
from neuroprobe.labeling.similarity.peaks import of_length_1, peak_correlation_parts, peak_mean_parts
from neuroprobe.labeling.similarity.scoring import Columns, Scorer, UnitPart
from neuroprobe.statistics import decorrelated, inner_products

#: Below this share of a vector's possible length a concept's scores over the images are taken to be rounding.
_ROUNDING = 1e-6


class EmbeddingScorer(Scorer):
    """A weighted sum over images of concept scores, scaled per concept.

    Parameters
    ----------
    scores : ConceptScores
    weights : callable
        From activations [n_images, n_units] to the weights of the images, of the same shape.
    centered : bool, default True
        Whether concept scores are taken about their mean over the images.
    standard : bool, default False
        Whether each concept's scores are scaled to standard deviation 1 over the images, and not to length 1.
    decorrelate : bool, default False
        Whether image vectors are decorrelated first; see the module's docstring.
    """

    def __init__(
        self,
        scores: ConceptScores,
        *,
        weights: Callable[[torch.Tensor], torch.Tensor],
        centered: bool = True,
        standard: bool = False,
        decorrelate: bool = False,
    ) -> None:
        super().__init__(scores)
        self._weights, self._centered, self._standard = weights, centered, standard
        if decorrelate:
            self.image_vectors = decorrelated(self.image_vectors)
        self._prepare()

    def resampled(self, rows: torch.Tensor) -> Self:
        other = super().resampled(rows)
        other._prepare()
        return other

    def _prepare(self) -> None:
        vectors = self.image_vectors
        self._vectors = vectors - vectors.mean(dim=0) if self._centered else vectors
        n, d = vectors.shape
        self.inner_products = inner_products(self._vectors, torch.zeros(d, dtype=torch.float64, device=vectors.device)) if d <= n else None

    def units(self, activations: torch.Tensor) -> UnitPart:
        weights = self._weights(activations)
        return weights.T @ self._vectors, _concentration(weights)

    def block(self, units: UnitPart, columns: Columns) -> torch.Tensor:
        return units[0] @ self._directions(columns).T

    def candidates(self, units: UnitPart, columns: torch.Tensor) -> torch.Tensor:
        concepts, place = torch.unique(columns, return_inverse=True)
        return torch.einsum("ud,umd->um", units[0], self._directions(concepts)[place])

    def concentration(self, units: UnitPart) -> torch.Tensor:
        return units[1]

    def _directions(self, columns: Columns) -> torch.Tensor:
        """The concepts' vectors, scaled as their scores over the images are to be; 0 for a concept that never varies."""
        texts = self.text_vectors[columns]
        lengths = self._lengths(texts)
        varies = lengths > _ROUNDING * math.sqrt(len(self._vectors)) * self._vectors.norm(dim=1).amax()
        scale = math.sqrt(len(self._vectors)) if self._standard else 1.0
        return texts * (scale / torch.where(varies, lengths, torch.inf))[:, None]

    def _lengths(self, texts: torch.Tensor) -> torch.Tensor:
        if self.inner_products is None:
            lengths: torch.Tensor = (self._vectors @ texts.T).norm(dim=0)
            return lengths
        return ((texts.double() @ self.inner_products) * texts).sum(dim=1).clamp_min(0).sqrt().float()


def _concentration(weights: torch.Tensor) -> torch.Tensor:
    """Sum of the fourth powers of weights of length 1: 1 / n where all images weigh the same, 1 where one has all weight."""
    return of_length_1(weights).square_().square_().sum(dim=0)


class CosScorer(EmbeddingScorer):
    """`neuroprobe.labeling.similarity._similarity.cos_similarity`."""

    def __init__(self, scores: ConceptScores) -> None:
        super().__init__(scores, weights=cos_similarity_parts().units, centered=False)


class PearsonScorer(EmbeddingScorer):
    """`neuroprobe.labeling.similarity._similarity.pearson`."""

    def __init__(self, scores: ConceptScores) -> None:
        super().__init__(scores, weights=pearson_parts().units)


class PeakCorrelationScorer(EmbeddingScorer):
    """`neuroprobe.labeling.similarity._similarity.peak_correlation`, of decorrelated concept scores.

    Parameters
    ----------
    scores : ConceptScores
    power, competition, temperature
        As in `neuroprobe.labeling.similarity._similarity.peak_correlation`.
    decorrelate : bool, default True
        Whether image vectors are decorrelated first.
    """

    prior_relative = True

    def __init__(
        self, scores: ConceptScores, *, power: float = 3.0, competition: float = 0.75, temperature: float = 0.1, decorrelate: bool = True
    ) -> None:
        check_number("competition", competition, low=0, high=1)
        check_number("temperature", temperature, low=0, above=True)
        self.prior_weight, self.prior_temperature = competition, temperature
        super().__init__(scores, weights=peak_correlation_parts(power=power).units, standard=True, decorrelate=decorrelate)


class PeakMeanScorer(EmbeddingScorer):
    """`neuroprobe.labeling.similarity._similarity.peak_mean`, of decorrelated concept scores.

    Parameters
    ----------
    scores : ConceptScores
    power
        As in `neuroprobe.labeling.similarity._similarity.peak_mean`.
    decorrelate : bool, default True
        Whether image vectors are decorrelated first.
    """

    def __init__(self, scores: ConceptScores, *, power: float = 4.0, decorrelate: bool = True) -> None:
        super().__init__(scores, weights=peak_mean_parts(power=power).units, standard=True, decorrelate=decorrelate)
        self._power = power

    def units_from_top(self, rows: torch.Tensor, values: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> UnitPart:
        """As `units`, with the images that the summary left out at weight 0."""
        deviations = (values - mean[:, None]) / torch.where(std > 0, std, torch.inf)[:, None]
        weights = deviations.clamp_min(0).pow(self._power)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
        summed = torch.stack([w @ self._vectors[r] for w, r in zip(weights, rows, strict=True)])  # [n_units, d]
        return summed, _concentration(weights.T)


class LinearScorer(Scorer):
    """Any function that is one matrix product, with what is needed of each concept made from a block of its scores.

    Parameters
    ----------
    scores : ConceptScores
    parts : LinearParts
    """

    def __init__(self, scores: ConceptScores, parts: LinearParts) -> None:
        super().__init__(scores)
        self._parts = parts

    def units(self, activations: torch.Tensor) -> UnitPart:
        weights = self._parts.units(activations).T.contiguous()  # [n_units, n_images]
        return weights, _concentration(weights.T)

    def block(self, units: UnitPart, columns: Columns) -> torch.Tensor:
        return torch.addmm(torch.tensor(self._parts.offset), units[0], self._parts.concepts(self.matrix(columns)))

    def concentration(self, units: UnitPart) -> torch.Tensor:
        return units[1]
