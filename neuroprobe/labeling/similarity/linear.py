"""Similarity functions that are a matrix product: of something of each unit and something of each concept.

Where the concept's side is its scores, scaled, the product happens among the embeddings (`EmbeddingScorer`):
sum_i w[i, u] (v_i - center) . t_c / length_c is [n_units, d] x [d, n_concepts], and the matrix of images by concepts is never
made. Any other product (`LinearScorer`) makes what it needs of each concept from a block of the concept's scores.

Decorrelated image vectors (`decorrelate`): image embeddings share a few directions that say little about which concept
an image shows. About their mean they are multiplied by (C + shrinkage * mean variance)^-1/2, with C their covariance
over the probing set.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Self

import torch

from neuroprobe._core import check_number
from neuroprobe.labeling.similarity._registry import similarity, whole
from neuroprobe.labeling.similarity._scorer import Columns, Scorer
from neuroprobe.statistics import decorrelated, inner_products

if TYPE_CHECKING:
    from neuroprobe.concepts import ConceptScores

#: Below this share of a vector's possible length a concept's scores over the images are taken to be rounding.
_ROUNDING = 1e-6


def unit_columns(values: torch.Tensor, *, min_norm: float = 0.0) -> torch.Tensor:
    """Columns of unit length; columns shorter than `min_norm` are divided by that, and columns of zeros stay zero."""
    lengths = values.square().sum(dim=0).sqrt().clip(min_norm)  # several times as fast as torch.norm along the rows
    return values / torch.where(lengths > 0, lengths, 1)


def centered_columns(values: torch.Tensor) -> torch.Tensor:
    """Columns minus their means; exactly zero where a column never varies, which rounding would turn into noise."""
    varies = values.amax(dim=0) > values.amin(dim=0)
    return torch.where(varies, values - values.mean(dim=0), 0)


def scaled_columns(values: torch.Tensor) -> torch.Tensor:
    """Columns with the largest magnitude 1, so that no square or sum leaves float32's range."""
    largest = values.abs().amax(dim=0)
    return values / torch.where(largest > 0, largest, 1)


def centered_units(values: torch.Tensor) -> torch.Tensor:
    """Columns about their mean, of length 1; zero where a column never varies, however small or large its values."""
    return unit_columns(scaled_columns(centered_columns(scaled_columns(values))))


def standardized(values: torch.Tensor) -> torch.Tensor:
    """Columns with mean 0 and standard deviation 1; zero where a column never varies."""
    return centered_units(values) * math.sqrt(len(values))


class WeightedUnits(NamedTuple):
    """Units as weights of the images."""

    vectors: torch.Tensor  # [n_units, n_images], or summed over the images' vectors [n_units, d]
    concentration: torch.Tensor  # sum of the fourth powers of the weights, scaled to length 1, [n_units]


def concentration_of(weights: torch.Tensor) -> torch.Tensor:
    """From weights [n_images, n_units]: 1 / n where all images weigh the same, 1 where one has all weight, [n_units]."""
    return unit_columns(weights).square_().square_().sum(dim=0)


class EmbeddingScorer(Scorer[WeightedUnits]):
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
        self._inner_products = inner_products(self._vectors, torch.zeros(d, dtype=torch.float64, device=vectors.device)) if d <= n else None

    def units(self, activations: torch.Tensor) -> WeightedUnits:
        weights = self._weights(activations)
        return WeightedUnits(weights.T @ self._vectors, concentration_of(weights))

    def block(self, units: WeightedUnits, columns: Columns) -> torch.Tensor:
        return units.vectors @ self._directions(columns).T

    def candidates(self, units: WeightedUnits, columns: torch.Tensor) -> torch.Tensor:
        concepts, place = torch.unique(columns, return_inverse=True)
        return torch.einsum("ud,umd->um", units.vectors, self._directions(concepts)[place])

    def concentration(self, units: WeightedUnits) -> torch.Tensor:
        return units.concentration

    def _directions(self, columns: Columns) -> torch.Tensor:
        """The concepts' vectors, scaled as their scores over the images are to be; 0 for a concept that never varies."""
        texts = self.text_vectors[columns]
        lengths = self._lengths(texts)
        varies = lengths > _ROUNDING * math.sqrt(len(self._vectors)) * self._vectors.norm(dim=1).amax()
        scale = math.sqrt(len(self._vectors)) if self._standard else 1.0
        return texts * (scale / torch.where(varies, lengths, torch.inf))[:, None]

    def _lengths(self, texts: torch.Tensor) -> torch.Tensor:
        if self._inner_products is None:
            lengths: torch.Tensor = (self._vectors @ texts.T).norm(dim=0)
            return lengths
        return ((texts.double() @ self._inner_products) * texts).sum(dim=1).clamp_min(0).sqrt().float()


class LinearScorer(Scorer[WeightedUnits]):
    """Any function of the form units(activations).T @ concepts(concept_scores) + offset.

    Parameters
    ----------
    scores : ConceptScores
    units : callable, [n_images, n_units] -> [n_images, n_units]
        Each column depends on that unit alone.
    concepts : callable, [n_images, n_concepts] -> [n_images, n_concepts]
        Each column depends on that concept alone.
    offset : float, default 0
    """

    def __init__(
        self,
        scores: ConceptScores,
        *,
        units: Callable[[torch.Tensor], torch.Tensor],
        concepts: Callable[[torch.Tensor], torch.Tensor],
        offset: float = 0.0,
    ) -> None:
        super().__init__(scores)
        self._unit_side, self._concept_side, self._offset = units, concepts, offset

    def units(self, activations: torch.Tensor) -> WeightedUnits:
        weights = self._unit_side(activations).T.contiguous()  # [n_units, n_images]
        return WeightedUnits(weights, concentration_of(weights.T))

    def block(self, units: WeightedUnits, columns: Columns) -> torch.Tensor:
        return units.vectors @ self._concept_side(self.matrix(columns)) + self._offset

    def concentration(self, units: WeightedUnits) -> torch.Tensor:
        return units.concentration


@similarity(lambda scores: EmbeddingScorer(scores, weights=unit_columns, centered=False))
def cos_similarity(activations: torch.Tensor, concept_scores: torch.Tensor) -> torch.Tensor:
    """Cosine of a unit's activations and a concept's scores over the images; neither is centered, as published.

    Parameters
    ----------
    activations : array or Tensor, [n_images, n_units]
    concept_scores : array or Tensor, [n_images, n_concepts]

    Returns
    -------
    array or Tensor, [n_units, n_concepts]
        In [-1, 1]; 0 where one of the two is zero on every image.
    """
    return unit_columns(activations).T @ unit_columns(concept_scores)


class CubedScorer(LinearScorer):
    """Cosine of the third powers of centered activations and centered concept scores, as published.

    The third power lets the highest (and lowest) images carry most of the weight.

    Parameters
    ----------
    min_norm : float, default 1e-3
        Vectors of third powers that are shorter are divided by this instead of by their length, as the published code
        does: scores of units with small activations, and of concepts whose scores hardly vary, are then less than a
        cosine. With 0 it is a cosine always, and no unit's scale matters.

    Returns
    -------
    array or Tensor, [n_units, n_concepts]
        In [-1, 1]; 0 where one of the two never varies.

    Raises
    ------
    InputError
        `min_norm` below 0.
    """

    def __init__(self, scores: ConceptScores, *, min_norm: float = 1e-3) -> None:
        check_number("min_norm", min_norm, low=0)

        def cubed(values: torch.Tensor) -> torch.Tensor:
            return unit_columns(centered_columns(values) ** 3, min_norm=min_norm)

        super().__init__(scores, units=cubed, concepts=cubed)


cos_similarity_cubed = whole("cos_similarity_cubed", CubedScorer)


@similarity(lambda scores: EmbeddingScorer(scores, weights=centered_units))
def pearson(activations: torch.Tensor, concept_scores: torch.Tensor) -> torch.Tensor:
    """Pearson's correlation of a unit's activations and a concept's scores over the images.

    Parameters
    ----------
    activations : array or Tensor, [n_images, n_units]
    concept_scores : array or Tensor, [n_images, n_concepts]

    Returns
    -------
    array or Tensor, [n_units, n_concepts]
        In [-1, 1]; 0 where one of the two never varies.
    """
    return centered_units(activations).T @ centered_units(concept_scores)
