"""Summaries of activations: what is worth knowing of every unit, in memory that does not grow with the images.

`LayerSummary` takes batches as they come; `ActivationSummary` is what it has found, for all layers. Everything in a
summary follows from the set of images alone: summaries of parts merge, in any order, to the very bits of the summary
of the whole. Sums are exact (`_sums.py`), and of equal values the one with the lower row comes first.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from neuroprobe._core import Extremes, table_html, write_whole
from neuroprobe.exceptions import InputError
from neuroprobe.models import Site, find_site
from neuroprobe.recording._sums import ExactSums, exact_moments

_FORMAT = "neuroprobe.ActivationSummary 1"


class LayerSummary:
    """Takes the batches of one layer, and keeps the k highest and lowest images of every unit: O(units x k) and one bit per batch."""

    def __init__(self, layer: str, n_units: int, *, k: int) -> None:
        if k < 1 or n_units < 1:
            raise InputError(f"Expected `k` and `n_units` of {layer!r} to be at least 1, but got {k} and {n_units}.")
        self.layer, self.n_units, self.k = layer, n_units, k
        self.count = 0
        self._batches = 0  # bit i: batch i is in
        self._highest, self._lowest = Extremes(n_units, k), Extremes(n_units, k)
        self._sums, self._squares = ExactSums(n_units, power=1), ExactSums(n_units, power=2)
        self._active = np.zeros(n_units, np.int64)

    def update(self, values: torch.Tensor, *, rows: npt.ArrayLike, batch: int) -> None:
        """Take in one batch by its number in the one grid of batches; a refused one changes nothing.

        Values are float32 [n, n_units] and finite, as those of every forward pass are checked to be; rows are the images' [n] row numbers
        in the whole probing set, each another, below 2**32. `InputError` for a batch taken before, or values of another shape or type.
        """
        if values.dtype != torch.float32 or values.ndim != 2 or values.shape[1] != self.n_units:
            raise InputError(
                f"Expected values of {self.layer!r} as float32 [n, {self.n_units}], but got {values.dtype} {tuple(values.shape)}. "
                "Pool them to one row per image and convert them with `.float()`."
            )
        if batch < 0 or self._batches >> batch & 1:
            raise InputError(
                f"Expected a batch of {self.layer!r} that is not in the summary yet, but got batch {batch}. Take each batch once."
            )
        array: npt.NDArray[np.float32] = values.detach().cpu().numpy()
        if len(array):
            numbers, low, high = np.asarray(rows, np.int64), array.min(axis=0), array.max(axis=0)
            largest = np.maximum(high, -low)
            self._sums.add(array, largest)
            self._squares.add(array, largest)
            self._highest.add(array, numbers, high)
            self._lowest.add(-array, numbers, -low)
            self._active += np.count_nonzero(array > 0, axis=0)
        self._batches |= 1 << batch
        self.count += len(array)

    @property
    def batches(self) -> tuple[int, ...]:
        """The numbers of the batches taken in."""
        return _bits(self._batches)

    def merge(self, other: LayerSummary) -> LayerSummary:
        """The summary of what is in either; neither is changed. `InputError` for other layers, sizes or k, or a batch in both."""
        mine, theirs = (self.layer, self.n_units, self.k), (other.layer, other.n_units, other.k)
        if mine != theirs:
            raise InputError(f"Expected summaries of one layer, n_units and k, but got {mine} and {theirs}. Merge like with like.")
        if self._batches & other._batches:
            shared = _bits(self._batches & other._batches)
            raise InputError(f"Expected parts of {self.layer!r} without a common batch, but both have {shared[:5]}. Merge each part once.")
        merged = LayerSummary(self.layer, self.n_units, k=self.k)
        merged.count, merged._batches = self.count + other.count, self._batches | other._batches
        merged._highest, merged._lowest = self._highest.merge(other._highest), self._lowest.merge(other._lowest)
        merged._sums, merged._squares = self._sums.merge(other._sums), self._squares.merge(other._squares)
        merged._active = self._active + other._active
        return merged

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All of its state, for a file or another process; equal summaries give equal bytes."""
        return {
            "layer": np.array(self.layer),
            "count": np.array(self.count, np.int64),
            "batches": np.frombuffer(self._batches.to_bytes(-(-self._batches.bit_length() // 8), "little"), np.uint8),
            "highest": self._highest.to_array(),
            "lowest": self._lowest.to_array(),
            "sums": self._sums.to_array(),
            "squares": self._squares.to_array(),
            "active": self._active.copy(),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> LayerSummary:
        """The inverse of `to_arrays`."""
        n_units, k = arrays["highest"].shape
        summary = cls(str(arrays["layer"]), n_units, k=k)
        summary.count, summary._active = int(arrays["count"]), arrays["active"].astype(np.int64)
        summary._batches = int.from_bytes(arrays["batches"].tobytes(), "little")
        summary._highest, summary._lowest = Extremes.from_array(arrays["highest"]), Extremes.from_array(arrays["lowest"])
        summary._sums = ExactSums.from_array(arrays["sums"], power=1)
        summary._squares = ExactSums.from_array(arrays["squares"], power=2)
        return summary

    def statistics(self, image_id: Callable[[int], str]) -> UnitStatistics:
        """What has been found, given the id of a row number; asked only for rows among the highest and lowest."""
        if not self.count:
            raise InputError(f"Expected images in the summary of {self.layer!r}, but it has none. Update it with a batch first.")
        top_values, top_rows = self._highest.decode(self.count)
        lowest_values, lowest_rows = self._lowest.decode(self.count)
        mean, variance = exact_moments(self._sums, self._squares, self.count)
        ids = {int(row): image_id(int(row)) for row in np.union1d(top_rows, lowest_rows)}
        return UnitStatistics(
            top_values, top_rows, 0 - lowest_values, lowest_rows, mean, variance, self._active / self.count, self.count, ids
        )


@dataclass(frozen=True, eq=False)
class UnitStatistics:
    """What every unit of a layer did on a probing set.

    Attributes
    ----------
    top_values, lowest_values : ndarray, [n_units, k], float32
        The k highest values, highest first, and the k lowest, lowest first; fewer where there are fewer images.
    top_rows, lowest_rows : ndarray, [n_units, k], int64
        Their images' row numbers in the probing set. Of equal values the lower row comes first.
    mean, variance : ndarray, [n_units], float64
        Exact, then rounded once. The variance is the population's (divided by the number of images).
    active : ndarray, [n_units], float64
        The fraction of images on which the unit is above zero.
    count : int
        The number of images.
    image_ids : mapping from row number to id
        Of the images in `top_rows` and `lowest_rows`.
    """

    top_values: npt.NDArray[np.float32]
    top_rows: npt.NDArray[np.int64]
    lowest_values: npt.NDArray[np.float32]
    lowest_rows: npt.NDArray[np.int64]
    mean: npt.NDArray[np.float64]
    variance: npt.NDArray[np.float64]
    active: npt.NDArray[np.float64]
    count: int
    image_ids: Mapping[int, str]

    @property
    def top_ids(self) -> npt.NDArray[np.object_]:
        """The ids of the images with the highest values, [n_units, k]."""
        return self._ids(self.top_rows)

    @property
    def lowest_ids(self) -> npt.NDArray[np.object_]:
        """The ids of the images with the lowest values, [n_units, k]."""
        return self._ids(self.lowest_rows)

    def _ids(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.object_]:
        known, where = np.unique(rows, return_inverse=True)
        ids = np.array([self.image_ids[int(row)] for row in known], dtype=object)
        return ids[where].reshape(rows.shape)

    @property
    def maximum(self) -> npt.NDArray[np.float32]:
        """The highest value of every unit, [n_units]."""
        return self.top_values[:, 0]

    @property
    def minimum(self) -> npt.NDArray[np.float32]:
        """The lowest value of every unit, [n_units]."""
        return self.lowest_values[:, 0]

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays by name."""
        return {field.name: value for field in fields(self) if isinstance(value := getattr(self, field.name), np.ndarray)}

    def equals(self, other: UnitStatistics) -> bool:
        """Whether both are the same to the last bit."""
        same = all(_identical(mine, theirs) for mine, theirs in zip(self.arrays().values(), other.arrays().values(), strict=True))
        return same and self.count == other.count and dict(self.image_ids) == dict(other.image_ids)


@dataclass(frozen=True, eq=False)
class ActivationSummary:
    """What the units of some layers did on a probing set, without the activations themselves.

    Attributes
    ----------
    statistics : mapping from layer to UnitStatistics
        Also reached as ``summary[layer]``.
    metadata : mapping
        As in `neuroprobe.recording.Activations`; what JSON can hold.
    """

    statistics: Mapping[str, UnitStatistics]
    metadata: Mapping[str, Any]

    def __getitem__(self, layer: str | Site) -> UnitStatistics:
        """The statistics of a layer or site."""
        return self.statistics[find_site(layer, self.sites)]

    @property
    def sites(self) -> dict[str, str]:
        """The identity of the site that every layer's statistics are of, by its key."""
        return {key: self.metadata.get("sites", {}).get(key, key) for key in self.statistics}

    @property
    def layers(self) -> tuple[str, ...]:
        """The recorded layers, in the order they were asked for."""
        return tuple(self.statistics)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{layer}: {len(found.mean)}" for layer, found in self.statistics.items())
        count = next((found.count for found in self.statistics.values()), 0)
        return f"ActivationSummary({count} images; units {shapes})"

    def _repr_html_(self) -> str:
        columns = ("layer", "units", "active on average", "highest value")
        rows = [(layer, len(s.mean), float(s.active.mean()), float(s.maximum.max())) for layer, s in self.statistics.items()]
        count = next((found.count for found in self.statistics.values()), 0)
        return table_html("ActivationSummary", f"{count:,} images, {len(rows)} layers", columns, rows, n_rows=len(rows))

    def equals(self, other: ActivationSummary) -> bool:
        """Whether both are the same to the last bit, metadata included."""
        same = self.layers == other.layers and all(self[layer].equals(other[layer]) for layer in self.layers)
        return same and dict(self.metadata) == dict(other.metadata)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one file (an .npz with the rest as JSON inside); it is there whole or not at all.

        Raises
        ------
        InputError
            Metadata that JSON cannot hold.
        """
        manifest = {  # ids as pairs: JSON's keys would be texts
            "format": _FORMAT,
            "layers": [{"name": name, "count": one.count, "ids": sorted(one.image_ids.items())} for name, one in self.statistics.items()],
            "metadata": dict(self.metadata),
        }
        arrays = {f"{i}/{name}": array for i, one in enumerate(self.statistics.values()) for name, array in one.arrays().items()}
        arrays["manifest"] = _as_json(manifest)
        write_whole(Path(path), lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ActivationSummary:
        """Read what `save` has written.

        Raises
        ------
        InputError
            A file that is damaged or something else.
        """
        data = Path(path).read_bytes()
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as stored:
                return cls._from_stored(stored)
        except Exception as error:  # a flipped byte can surface as almost anything
            raise InputError(f"Expected a file of `ActivationSummary.save`, but got {str(path)!r}: {error}. Make it anew.") from error

    @classmethod
    def _from_stored(cls, stored: Mapping[str, npt.NDArray[Any]]) -> ActivationSummary:
        manifest = json.loads(stored["manifest"].tobytes())
        if manifest["format"] != _FORMAT:
            raise ValueError(f"its format is {manifest['format']!r}, not {_FORMAT!r}")
        names = [field.name for field in fields(UnitStatistics) if field.name not in ("count", "image_ids")]
        statistics = {
            layer["name"]: UnitStatistics(
                **{name: stored[f"{i}/{name}"] for name in names}, count=layer["count"], image_ids=dict(layer["ids"])
            )
            for i, layer in enumerate(manifest["layers"])
        }
        return cls(statistics, manifest["metadata"])


def _bits(number: int) -> tuple[int, ...]:
    return tuple(i for i, bit in enumerate(reversed(f"{number:b}")) if bit == "1")


def _identical(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def _as_json(manifest: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
    try:
        return np.frombuffer(json.dumps(manifest).encode(), np.uint8)
    except TypeError as error:
        raise InputError(
            f"Expected metadata that JSON can hold, but got {manifest['metadata']}: {error}. Use texts and numbers."
        ) from error
