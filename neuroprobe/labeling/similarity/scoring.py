"""Scorers: similarity functions over one probing set, evaluated in blocks of concepts, starting from the embeddings.

What `neuroprobe.dissect` runs. The definitions are the pure functions of `neuroprobe.labeling.similarity._similarity`; a scorer gives the
same numbers (up to rounding) and never holds [n_images, n_concepts] or [n_units, n_concepts] whole.

A score is a raw one, which depends on one unit and one concept alone, minus the concept's prior in the unit's layer:

    score[u, c] = raw[u, c] - scale[u] * weight * temperature * log mean_v exp(raw[v, c] / scale[v] / temperature)

with the mean over all units v of the layer: units compete for a concept. The scale is 1, or where the prior is relative
the unit's best raw score. Without a prior the weight is 0.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from typing import Self, TypeAlias

import torch

from neuroprobe.concepts import ConceptScores
from neuroprobe.exceptions import InputError

#: What a scorer keeps of the units; the first axis of every tensor is the units.
UnitPart: TypeAlias = tuple[torch.Tensor, ...]

#: Which concepts: all in a row, or some.
Columns: TypeAlias = "slice | torch.Tensor"


class Scorer(ABC):
    """A similarity function over one probing set.

    A subclass's `__init__` takes the concept scores and the function's parameters as keyword arguments; it may go
    through the embeddings once, in blocks, for what all blocks share.

    Parameters
    ----------
    scores : ConceptScores

    Attributes
    ----------
    prior_weight, prior_temperature : float
        Of the prior; the weight is 0 for a function without one.
    prior_relative : bool
        Whether raw scores enter the prior as shares of their unit's best.
    """

    prior_weight: float = 0.0
    prior_temperature: float = 1.0
    prior_relative: bool = False

    def __init__(self, scores: ConceptScores) -> None:
        self.image_vectors = scores.image_vectors
        self.text_vectors = scores.text_vectors

    @property
    def n_images(self) -> int:
        return len(self.image_vectors)

    @property
    def n_concepts(self) -> int:
        return len(self.text_vectors)

    def resampled(self, rows: torch.Tensor) -> Self:
        """The same function on some images, which may repeat; what is known of each image is kept.

        Parameters
        ----------
        rows : LongTensor, [n_rows]
        """
        other = copy.copy(self)
        other.image_vectors = self.image_vectors[rows]
        return other

    @abstractmethod
    def units(self, activations: torch.Tensor) -> UnitPart:
        """What is needed of units, from float32 [n_images, n_units]."""

    def units_from_top(self, rows: torch.Tensor, values: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> UnitPart:
        """What is needed of units, from what a recording summary knows of them.

        Parameters
        ----------
        rows : LongTensor, [n_units, k]
            The images with the highest activations, highest first.
        values : Tensor, [n_units, k]
            Those activations.
        mean, std : Tensor, [n_units]
            Over all images.

        Raises
        ------
        InputError
            The function needs every activation, or more images than the summary kept.
        """
        raise InputError(
            f"Expected a similarity function that needs only a unit's highest activations, but {type(self).__name__} needs all of them. "
            "Record the activations themselves, or choose soft_wpmi, wpmi, rank_reorder or peak_mean."
        )

    @abstractmethod
    def block(self, units: UnitPart, columns: Columns) -> torch.Tensor:
        """Raw scores of units and some concepts, [n_units, n_columns]."""

    def candidates(self, units: UnitPart, columns: torch.Tensor) -> torch.Tensor:
        """Raw scores of every unit and concepts of its own, [n_units, m] for concepts [n_units, m]."""
        concepts, place = torch.unique(columns, return_inverse=True)
        found = torch.empty(columns.shape, dtype=torch.float32, device=columns.device)
        for start in range(0, len(concepts), 256):
            inside = (place >= start) & (place < start + 256)
            owners = inside.any(dim=1).nonzero()[:, 0]
            raw = self.block(tuple(part[owners] for part in units), concepts[start : start + 256])  # [n_owners, 256]
            picked = raw.gather(1, (place[owners] - start).clamp(0, raw.shape[1] - 1))
            found[owners] = torch.where(inside[owners], picked, found[owners])
        return found

    def concentration(self, units: UnitPart) -> torch.Tensor | None:
        """How few images carry a unit's score, or are not tied: whatever the scores of a random unit depend on, [n_units]; else None."""
        return None

    def comparable(self, best: torch.Tensor) -> torch.Tensor:
        """Best scores on a scale on which those of noise spread alike whatever their concentration; the order stays."""
        return best

    def prior(self, scaled: torch.Tensor) -> torch.Tensor:
        """The prior of every concept, [n_columns], from the scaled raw scores [n_units, n_columns] of a whole layer."""
        log_mean = torch.logsumexp(scaled / self.prior_temperature, dim=0) - math.log(len(scaled))
        return self.prior_weight * self.prior_temperature * log_mean

    def matrix(self, columns: Columns) -> torch.Tensor:
        """Cosine similarities of images and some concepts, [n_images, n_columns]."""
        return self.image_vectors @ self.text_vectors[columns].T
