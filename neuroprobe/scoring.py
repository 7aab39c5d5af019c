"""Scorers: similarity functions over one probing set, evaluated in blocks of concepts, starting from the embeddings.

What `neuroprobe.dissect` runs. The definitions are the pure functions of `neuroprobe.similarity`; a scorer gives the
same numbers (up to rounding) and never holds [n_images, n_concepts] or [n_units, n_concepts] whole.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import TypeAlias

import torch
from typing_extensions import Self

from neuroprobe.concepts import ConceptScores

#: What a scorer keeps of the units; the first axis of every tensor is the units.
UnitPart: TypeAlias = tuple[torch.Tensor, ...]

#: Which concepts: all in a row, or some.
Columns: TypeAlias = "slice | torch.Tensor"


class Scorer(ABC):
    """A similarity function over one probing set.

    Parameters
    ----------
    scores : ConceptScores
    """

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

    @abstractmethod
    def block(self, units: UnitPart, columns: Columns) -> torch.Tensor:
        """Scores of units and some concepts, [n_units, n_columns], before the prior is taken off."""

    def prior(self, raw: torch.Tensor) -> torch.Tensor | None:
        """What is taken off each concept's scores, [n_columns], from the scores [n_units, n_columns] of a whole layer; or None."""
        return None

    def matrix(self, columns: Columns) -> torch.Tensor:
        """Cosine similarities of images and some concepts, [n_images, n_columns]."""
        return self.image_vectors @ self.text_vectors[columns].T
