"""What recorded activations show of a unit: how they are spread, and images along their whole range."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from neuroprobe._core import places_at
from neuroprobe.recording import Activations

#: Bins of a histogram, of equal width over the unit's own range.
N_BINS = 24

#: Below the strongest images, so many about each of these shares of all images.
QUANTILES = (0.99, 0.9, 0.5)
N_AT_QUANTILE = 3

#: Units whose columns are copied at once; the activations may be a file larger than memory.
_BLOCK = 256


@dataclass(frozen=True)
class Shown:
    """An image shown for a unit.

    Attributes
    ----------
    group : int
        0 for the strongest, then the places in `QUANTILES`, from 1.
    row : int
        Of the activations.
    value : float
        The activation.
    share : float
        Of all images, those with at most this activation, in [0, 1].
    """

    group: int
    row: int
    value: float
    share: float


@dataclass(frozen=True, eq=False)
class UnitActivity:
    """What a unit did on all images.

    Attributes
    ----------
    low, high : float
        Its range.
    counts : ndarray of int, [N_BINS], or [0] for a unit that is the same on every image
        Images in each bin; the last one holds its upper edge.
    examples : tuple of Shown
        None for a unit that is the same on every image.
    """

    low: float
    high: float
    counts: npt.NDArray[np.int64]
    examples: tuple[Shown, ...]


def unit_activities(activations: Activations, units: pd.DataFrame, *, n_examples: int) -> list[UnitActivity]:
    """One per row of `units`, whose layers stand together."""
    found: list[UnitActivity] = []
    for layer, part in units.groupby("layer", sort=False):
        array, numbers = activations[str(layer)], part["unit"].to_numpy()
        for start in range(0, len(numbers), _BLOCK):
            block = np.asarray(array[:, numbers[start : start + _BLOCK]], dtype=np.float64)  # [n_images, n_block]
            found += [unit_activity(values, n_examples=n_examples) for values in np.ascontiguousarray(block.T)]
    return found


def unit_activity(values: npt.NDArray[np.float64], *, n_examples: int) -> UnitActivity:
    """Of one unit's activations, [n_images]."""
    values = values + 0.0  # negative zero is zero
    low, high = float(values.min()), float(values.max())
    if low == high:
        return UnitActivity(low, high, np.zeros(0, dtype=np.int64), ())
    counts = np.histogram(values, bins=N_BINS, range=(low, high))[0]
    return UnitActivity(low, high, counts, tuple(_examples(values, n_examples)))


def _examples(values: npt.NDArray[np.float64], n_examples: int) -> Iterator[Shown]:
    order = np.argsort(-values, kind="stable")  # strongest first, ties by row
    ascending, n = values[order[::-1]], len(values)
    for group, (quantile, k) in enumerate([(1.0, n_examples), *((quantile, N_AT_QUANTILE) for quantile in QUANTILES)]):
        for place in places_at(ascending, quantile, k):
            value = values[order[place]]
            share = np.searchsorted(ascending, value, side="right") / n
            yield Shown(group, int(order[place]), float(value), float(share))
