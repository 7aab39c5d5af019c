"""The units of one layer as a scorer wants them: as they are, shuffled, and resampled; from activations or a summary."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from neuroprobe.exceptions import InputError
from neuroprobe.labeling._null import joined, shuffled, shuffled_rows
from neuroprobe.labeling.similarity.scoring import Scorer, UnitPart
from neuroprobe.recording import ActivationSummary, Recorded, UnitStatistics

_BLOCK = 256  # units whose activations are copied at a time


class LayerUnits(ABC):
    """The units of a layer.

    Attributes
    ----------
    varies : ndarray of bool, [n_units]
        Whether a unit is not the same on every image.
    """

    varies: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.varies)

    @abstractmethod
    def parts(self, scorer: Scorer) -> UnitPart:
        """What the scorer needs of all units."""

    @abstractmethod
    def null_parts(self, scorer: Scorer, sources: npt.NDArray[np.int64], generator: np.random.Generator) -> UnitPart:
        """The same of null units made from the units `sources`."""

    def resampled_parts(self, scorer: Scorer, rows: npt.NDArray[np.int64]) -> UnitPart | None:
        """The same of all units on images drawn with repetition; None where that cannot be known."""
        return None


class RecordedUnits(LayerUnits):
    """Units whose activations were recorded, float32 [n_images, n_units].

    Raises
    ------
    InputError
        Values that are not finite: of a store changed since it was recorded, or beyond the range of float32.
    """

    def __init__(self, values: npt.NDArray[np.float32]) -> None:
        with np.errstate(over="ignore"):  # told below
            self._values = np.asarray(values, dtype=np.float32)
        highest, lowest = self._values.max(axis=0), self._values.min(axis=0)
        wrong = np.flatnonzero(~(np.isfinite(highest) & np.isfinite(lowest)))
        if len(wrong):
            raise InputError(f"Expected activations that are finite as float32, but some of unit {wrong[0]} are not. Record them again.")
        self.varies = highest != lowest

    def parts(self, scorer: Scorer) -> UnitPart:
        # copies: torch wants arrays that may be written to, and columns that lie together
        blocks = (np.array(self._values[:, start : start + _BLOCK]) for start in range(0, len(self), _BLOCK))
        return joined([scorer.units(_on(scorer, block)) for block in blocks])

    def null_parts(self, scorer: Scorer, sources: npt.NDArray[np.int64], generator: np.random.Generator) -> UnitPart:
        return joined([scorer.units(_on(scorer, block)) for block in shuffled(self._values, sources, generator, size=_BLOCK)])

    def resampled_parts(self, scorer: Scorer, rows: npt.NDArray[np.int64]) -> UnitPart:
        blocks = (self._values[rows, start : start + _BLOCK] for start in range(0, len(self), _BLOCK))
        return joined([scorer.units(_on(scorer, block)) for block in blocks])


class SummarizedUnits(LayerUnits):
    """Units of which only the highest activations are known, and the mean and variance of all.

    Parameters
    ----------
    statistics : UnitStatistics
    row_of : mapping from image id to row of the concept scores
    """

    def __init__(self, statistics: UnitStatistics, row_of: Mapping[str, int]) -> None:
        rows = {number: row_of[id_] for number, id_ in statistics.image_ids.items() if id_ in row_of}
        if len(rows) < len(statistics.image_ids) or statistics.count != len(row_of):
            raise InputError(
                f"Expected a summary of the {len(row_of)} images that were scored, but it is of {statistics.count} images, not all of "
                "them among those. Make both in one pass (neuroprobe.images.passes.collect)."
            )
        numbers, place = np.unique(statistics.top_rows, return_inverse=True)
        found = np.array([rows[int(number)] for number in numbers])[place].reshape(statistics.top_rows.shape)
        self._rows, self._values = torch.from_numpy(found), torch.from_numpy(statistics.top_values)
        self._mean = torch.from_numpy(statistics.mean).float()
        self._std = torch.from_numpy(np.sqrt(statistics.variance)).float()
        self.varies = statistics.maximum != statistics.minimum
        lowest = statistics.top_values[:, -1:]  # kept only for its low row, where all that was left out is as high
        self._n_tied = np.where(lowest[:, 0] == statistics.minimum, (statistics.top_values == lowest).sum(axis=1), 0)

    def parts(self, scorer: Scorer) -> UnitPart:
        return scorer.units_from_top(self._rows, self._values, self._mean, self._std)

    def null_parts(self, scorer: Scorer, sources: npt.NDArray[np.int64], generator: np.random.Generator) -> UnitPart:
        rows = shuffled_rows(self._n_tied[sources], self._rows.shape[1], scorer.n_images, generator)
        return scorer.units_from_top(rows, self._values[sources], self._mean[sources], self._std[sources])


def layer_units(recorded: Recorded, layer: str, ids: Sequence[str]) -> LayerUnits:
    """The units of a recorded layer, for scores of the images `ids`."""
    if isinstance(recorded, ActivationSummary):
        return SummarizedUnits(recorded[layer], {id_: row for row, id_ in enumerate(ids)})
    return RecordedUnits(recorded[layer])


def _on(scorer: Scorer, values: npt.NDArray[np.float32] | torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(values).to(scorer.image_vectors.device)
