"""The highest images of every unit, and scorers that need no others.

Orders have one right answer: of equal values the lower row comes first.

A value and its row become one integer key: above, the float32's bits made to sort as numbers do; below, the row.
No two keys are equal, so that any method of sorting finds the same order.
"""

from __future__ import annotations

from abc import abstractmethod

import torch

from neuroprobe.exceptions import InputError
from neuroprobe.labeling.similarity._scorer import Scorer, _Units

_ROW_BITS = 32
_ROW_MASK = (1 << _ROW_BITS) - 1
_BLOCK = 1 << 20  # keys held at a time

#: Units whose images are sorted at a time: as many as the cache holds.
UNITS = 64


def share_of(n_images: int, share: float) -> int:
    """The number of images in a share of them: rounded down, as published, and at least 1."""
    return max(1, int(n_images * share))


def highest_images(activations: torch.Tensor, k: int) -> torch.Tensor:
    """Rows of every unit's k highest activations, highest first, [n_images, n_units] (float32, finite) -> int64 [n_units, k]."""
    n_images, n_units = activations.shape
    backward = _ROW_MASK - torch.arange(n_images, device=activations.device)  # the lower row has the higher key
    size = max(1, _BLOCK // n_images)
    found = []
    for start in range(0, n_units, size):
        keys = _ordered_bits(activations[:, start : start + size].T) + backward  # [n_units, n_images]
        found.append(_ROW_MASK - (torch.topk(keys, k, dim=1).values & _ROW_MASK))
    return torch.cat(found)


def ranks_within(values: torch.Tensor) -> torch.Tensor:
    """Rank of every value within its line, 0 for the lowest, int64, [n, n_images] -> [n, n_images]."""
    places = torch.arange(values.shape[1], device=values.device)
    order = sort_integers(_ordered_bits(values) + places) & _ROW_MASK
    return torch.empty_like(order).scatter_(1, order, places.expand_as(order))


def sort_integers(keys: torch.Tensor) -> torch.Tensor:
    """Every line of integers in ascending order; the keys' own memory may be used for it."""
    if keys.device.type != "cpu":
        return torch.sort(keys, dim=1).values
    keys.numpy().sort(axis=1)  # vectorized for integers, some twenty times as fast as torch.sort on a CPU
    return keys


def _ordered_bits(values: torch.Tensor) -> torch.Tensor:
    """Integers that sort as the finite float32 values do, in the upper half of int64; negative zero counts as zero."""
    bits = (values + 0.0).contiguous().view(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << _ROW_BITS


class TopImageScorer(Scorer[_Units]):
    """A function of the highest images of every unit."""

    @property
    @abstractmethod
    def k(self) -> int:
        """How many images of a unit are needed."""

    @abstractmethod
    def _kept(self, rows: torch.Tensor, values: torch.Tensor) -> _Units:
        """What is needed of units, from the rows of their k highest images and these images' values, [n_units, k]."""

    def units(self, activations: torch.Tensor) -> _Units:
        rows = highest_images(activations, self.k)
        return self.units_from_top(rows, activations.T.gather(1, rows))

    def units_from_top(
        self, rows: torch.Tensor, values: torch.Tensor, mean: torch.Tensor | None = None, std: torch.Tensor | None = None
    ) -> _Units:
        """What is needed of units, from at least k of their highest images; `mean` and `std` are not needed."""
        _check_top(rows, values, self.k, self.n_images)
        device = self.image_vectors.device
        return self._kept(rows[:, : self.k].long().to(device).contiguous(), values[:, : self.k].float().to(device))


def _check_top(rows: torch.Tensor, values: torch.Tensor, k: int, n_images: int) -> None:
    if rows.ndim != 2 or rows.shape != values.shape or rows.is_floating_point():
        raise InputError(
            f"Expected rows and values of the units' highest images, both [n_units, k], but got {rows.dtype} {tuple(rows.shape)} "
            f"and {tuple(values.shape)}."
        )
    if rows.shape[1] < k:
        raise InputError(
            f"Expected the {k} highest images of every unit, but the summary kept {rows.shape[1]}. "
            f"Summarize with k={k} or more, or ask for fewer images."
        )
    if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < n_images:
        raise InputError(
            f"Expected rows from 0 to {n_images - 1}, the images of the scores, but got {int(rows.min())} to {int(rows.max())}."
        )
