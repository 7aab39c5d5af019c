"""Orders with one right answer: of equal values the lower row comes first.

A value and its row become one integer key: above, the float32's bits made to sort as numbers do; below, the row.
No two keys are equal, so that any method of sorting finds the same order.
"""

from __future__ import annotations

import torch

_ROW_BITS = 32
_ROW_MASK = (1 << _ROW_BITS) - 1
_BLOCK = 1 << 20  # keys held at a time


def highest_images(activations: torch.Tensor, k: int) -> torch.Tensor:
    """Rows of every unit's k highest activations, highest first.

    Parameters
    ----------
    activations : Tensor, [n_images, n_units], float32, finite
    k : int
        At most the number of images.

    Returns
    -------
    LongTensor, [n_units, k]
    """
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
