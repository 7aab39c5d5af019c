"""Scorers: similarity functions over one probing set, evaluated in blocks of concepts, starting from the embeddings.

What `neuroprobe.dissect` runs. The definitions are the functions of `neuroprobe.labeling.list_similarities`; a scorer gives the
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
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Self, TypeAlias, TypeVar, cast

import torch

from neuroprobe.exceptions import InputError

if TYPE_CHECKING:
    from neuroprobe.concepts import ConceptScores

#: What a scorer keeps of some units: tensors, each with the units as its first axis; a plain tuple, or one with names.
UnitPart: TypeAlias = tuple[torch.Tensor, ...]

_Units = TypeVar("_Units", bound=UnitPart)

#: Which concepts: all in a row, or some.
Columns: TypeAlias = "slice | torch.Tensor"

#: What a unit's scores are divided by where the prior is relative and even the unit's best is no more.
SMALLEST_BEST = 1e-6

_BLOCK_BYTES = 1 << 26  # of [units, concepts] or [images, concepts], float32
_PART_BYTES = 1 << 26  # of one [n_images, n_columns] of float32
_COLUMNS = 512


class Vectors(NamedTuple):
    """Concept scores as far as scorers read them: image_vectors @ text_vectors.T."""

    image_vectors: torch.Tensor  # [n_images, d]
    text_vectors: torch.Tensor  # [n_concepts, d]


class Scorer(ABC, Generic[_Units]):
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

    def __init__(self, scores: ConceptScores | Vectors) -> None:
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
    def units(self, activations: torch.Tensor) -> _Units:
        """What is needed of units, from float32 [n_images, n_units]."""

    def units_from_top(self, rows: torch.Tensor, values: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> _Units:
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
            "Record the activations themselves, or choose a function such as soft_wpmi or peak_mean."
        )

    @abstractmethod
    def block(self, units: _Units, columns: Columns) -> torch.Tensor:
        """Raw scores of units and some concepts, [n_units, n_columns]."""

    def candidates(self, units: _Units, columns: torch.Tensor) -> torch.Tensor:
        """Raw scores of every unit and concepts of its own, [n_units, m] for concepts [n_units, m]."""
        concepts, place = torch.unique(columns, return_inverse=True)
        found = torch.empty(columns.shape, dtype=torch.float32, device=columns.device)
        for start in range(0, len(concepts), 256):
            inside = (place >= start) & (place < start + 256)
            owners = inside.any(dim=1).nonzero()[:, 0]
            raw = self.block(some_units(units, owners), concepts[start : start + 256])  # [n_owners, 256]
            picked = raw.gather(1, (place[owners] - start).clamp(0, raw.shape[1] - 1))
            found[owners] = torch.where(inside[owners], picked, found[owners])
        return found

    def concentration(self, units: _Units) -> torch.Tensor | None:
        """How few images carry a unit's score, or are not tied: whatever the scores of a random unit depend on, [n_units]; else None."""
        return None

    def comparable(self, best: torch.Tensor) -> torch.Tensor:
        """Best scores on a scale on which those of noise spread alike whatever their concentration; the order stays."""
        return best

    def prior(self, scaled: torch.Tensor) -> torch.Tensor:
        """The prior of every concept, [n_columns], from the scaled raw scores [n_units, n_columns] of a whole layer."""
        log_mean = torch.logsumexp(scaled / self.prior_temperature, dim=0) - math.log(len(scaled))
        return self.prior_weight * self.prior_temperature * log_mean

    def scales(self, units: _Units) -> torch.Tensor:
        """What raw scores enter the prior as shares of, [n_units, 1]: every unit's best where the prior is relative; else 1, [1, 1]."""
        if not (self.prior_weight and self.prior_relative):
            return torch.ones(1, 1, device=self.image_vectors.device)
        best = torch.full((len(units[0]),), SMALLEST_BEST, device=self.image_vectors.device)
        for columns in self.blocks(len(best)):
            best = torch.maximum(best, self.block(units, columns).amax(dim=1))
        return best[:, None]

    def matrix(self, columns: Columns) -> torch.Tensor:
        """Cosine similarities of images and some concepts, [n_images, n_columns]."""
        return self.image_vectors @ self.text_vectors[columns].T

    def blocks(self, n_rows: int) -> Iterator[slice]:
        """All concepts in blocks of as many as there is memory for, for so many units."""
        size = max(64, min(1024, _BLOCK_BYTES // (4 * max(n_rows, self.n_images))))
        yield from self._split(slice(None), size)

    def parts(self, columns: Columns) -> Iterator[Columns]:
        """The columns in parts whose scores of all images fit the cache."""
        yield from self._split(columns, min(max(_PART_BYTES // (4 * self.n_images), 64), _COLUMNS))

    def _split(self, columns: Columns, width: int) -> Iterator[Any]:
        if isinstance(columns, torch.Tensor):
            yield from (columns[start : start + width] for start in range(0, len(columns), width))
            return
        start, stop, step = columns.indices(self.n_concepts)
        for first in range(start, stop, step * width):
            yield slice(first, min(first + step * width, stop), step)


def some_units(units: _Units, rows: torch.Tensor | Sequence[int]) -> _Units:
    """The same of some units, in the order of `rows`."""
    return _like(units, [tensor[rows] for tensor in units])


def joined(parts: Sequence[_Units]) -> _Units:
    """The parts of several blocks of units as one."""
    return _like(parts[0], [torch.cat(tensors) for tensors in zip(*parts, strict=True)])


def _like(units: _Units, tensors: list[torch.Tensor]) -> _Units:
    """The tensors under the names of the fields of `units`, where these have any."""
    make: Any = getattr(type(units), "_make", tuple)
    return cast("_Units", make(tensors))
