"""Similarity functions that are one matrix product of something of each unit and something of each concept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from neuroprobe._core import check_number
from neuroprobe.labeling.similarity._arrays import on_tensors


@dataclass(frozen=True)
class LinearParts:
    """A function of the form ``units(activations).T @ concepts(concept_scores) + offset``.

    Attributes
    ----------
    units : callable, [n_images, n_units] -> [n_images, n_units]
        Each column depends on that unit alone.
    concepts : callable, [n_images, n_concepts] -> [n_images, n_concepts]
        Each column depends on that concept alone.
    offset : float, default 0
    """

    units: Callable[[torch.Tensor], torch.Tensor]
    concepts: Callable[[torch.Tensor], torch.Tensor]
    offset: float = 0.0

    def __call__(self, activations: torch.Tensor, concept_scores: torch.Tensor) -> torch.Tensor:
        """The scores, [n_units, n_concepts]."""
        product = self.units(activations).T @ self.concepts(concept_scores)
        return product + self.offset if self.offset else product


def unit_columns(values: torch.Tensor, *, min_norm: float = 0.0) -> torch.Tensor:
    """Columns of unit length; columns shorter than `min_norm` are divided by that, and columns of zeros stay zero."""
    lengths = torch.norm(values, p=2, dim=0, keepdim=True).clip(min_norm)
    return values / torch.where(lengths > 0, lengths, 1)


def centered_columns(values: torch.Tensor) -> torch.Tensor:
    """Columns minus their means; exactly zero where a column never varies, which rounding would turn into noise."""
    varies = values.amax(dim=0) > values.amin(dim=0)
    return torch.where(varies, values - values.mean(dim=0), 0)


def cos_similarity_parts() -> LinearParts:
    """`cos_similarity` as a matrix product."""
    return LinearParts(unit_columns, unit_columns)


def cos_similarity_cubed_parts(*, min_norm: float = 1e-3) -> LinearParts:
    """`cos_similarity_cubed` as a matrix product."""
    check_number("min_norm", min_norm, low=0)

    def cubed(values: torch.Tensor) -> torch.Tensor:
        return unit_columns(centered_columns(values) ** 3, min_norm=min_norm)

    return LinearParts(cubed, cubed)


def pearson_parts() -> LinearParts:
    """`pearson` as a matrix product."""

    def standardized(values: torch.Tensor) -> torch.Tensor:
        return unit_columns(_scaled(centered_columns(values)))

    return LinearParts(standardized, standardized)


def _scaled(values: torch.Tensor) -> torch.Tensor:
    """Columns with the largest magnitude 1, so that no square leaves float32's range."""
    largest = values.abs().amax(dim=0)
    return values / torch.where(largest > 0, largest, 1)


@on_tensors
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
    return cos_similarity_parts()(activations, concept_scores)


@on_tensors
def cos_similarity_cubed(activations: torch.Tensor, concept_scores: torch.Tensor, *, min_norm: float = 1e-3) -> torch.Tensor:
    """Cosine of the third powers of centered activations and centered concept scores, as published.

    The third power lets the highest (and lowest) images carry most of the weight.

    Parameters
    ----------
    activations : array or Tensor, [n_images, n_units]
    concept_scores : array or Tensor, [n_images, n_concepts]
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
    return cos_similarity_cubed_parts(min_norm=min_norm)(activations, concept_scores)


@on_tensors
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
    return pearson_parts()(activations, concept_scores)
