"""What becomes of recorded rows: kept in memory, in a store on disk, or only summed up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import torch

from neuroprobe.activations import Activations
from neuroprobe.collection import BatchRecord, Collected

ValueType: TypeAlias = Literal["float32", "float16"]


class Keeper(Protocol):
    """Gets the rows of every batch, layer by layer, and gives the result of the recording."""

    def recorded(self) -> Mapping[int, BatchRecord]:
        """The batches it has from a run that was cut off."""
        ...

    def keep(self, record: BatchRecord, rows: Mapping[str, torch.Tensor]) -> None:
        """One batch: layer to [n_images_of_batch, n_units], float32, on the CPU."""
        ...

    def finish(self, collected: Collected, metadata: Mapping[str, Any]) -> Any:
        """The result, once every batch is kept."""
        ...


class MemoryKeeper:
    """Keeps everything; the result is `Activations` in memory."""

    def __init__(self, layers: tuple[str, ...], *, dtype: ValueType = "float32") -> None:
        self._dtype = dtype
        self._parts: dict[str, dict[int, torch.Tensor]] = {layer: {} for layer in layers}

    def recorded(self) -> Mapping[int, BatchRecord]:
        return {}

    def keep(self, record: BatchRecord, rows: Mapping[str, torch.Tensor]) -> None:
        for layer, values in rows.items():
            self._parts[layer][record.number] = values.to(getattr(torch, self._dtype))

    def finish(self, collected: Collected, metadata: Mapping[str, Any]) -> Activations:
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        for layer in list(self._parts):
            parts = self._parts.pop(layer)  # one layer is there twice at a time, not all of them
            width = tuple(next(iter(parts.values())).shape[1:]) if parts else (0,)
            arrays[layer] = collected.joined(parts, width=width, dtype=getattr(torch, self._dtype)).numpy()
        return Activations(arrays, collected.ids, {**metadata, "dtype": self._dtype})
