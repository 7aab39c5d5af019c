"""What becomes of recorded rows: kept in memory, in a store on disk, or only summed up."""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import reduce
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import torch

from neuroprobe.exceptions import InputError
from neuroprobe.images import BatchRecord, Collected, gather_bytes
from neuroprobe.recording.activations import Activations
from neuroprobe.recording.summaries import ActivationSummary, LayerSummary

ValueType: TypeAlias = Literal["float32", "float16"]


def converted(values: torch.Tensor, dtype: ValueType, *, layer: str) -> torch.Tensor:
    """The values as they are kept.

    Raises
    ------
    InputError
        A value is too large for the type: it would become infinite.
    """
    if dtype == "float32":
        return values
    kept = values.to(getattr(torch, dtype))
    if not torch.isfinite(kept).all():
        largest = float(values.abs().max())
        raise InputError(
            f"Expected activations that fit into {dtype} (at most {torch.finfo(kept.dtype).max:g}), but {layer!r} gives {largest:g}. "
            "Keep them with dtype='float32'."
        )
    return kept


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
            self._parts[layer][record.number] = converted(values, self._dtype, layer=layer)

    def finish(self, collected: Collected, metadata: Mapping[str, Any]) -> Activations:
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        for layer in list(self._parts):
            parts = self._parts.pop(layer)  # one layer is there twice at a time, not all of them
            width = tuple(next(iter(parts.values())).shape[1:]) if parts else (0,)
            arrays[layer] = collected.joined(parts, width=width, dtype=getattr(torch, self._dtype)).numpy()
        return Activations(arrays, collected.ids, {**metadata, "dtype": self._dtype})


class SummaryKeeper:
    """Keeps summaries only; the result is an `ActivationSummary`."""

    def __init__(self, layers: tuple[str, ...], *, k: int) -> None:
        self._layers, self._k = layers, k
        self._summaries: dict[str, LayerSummary] = {}

    def recorded(self) -> Mapping[int, BatchRecord]:
        return {}

    def keep(self, record: BatchRecord, rows: Mapping[str, torch.Tensor]) -> None:
        for layer, values in rows.items():
            if layer not in self._summaries:
                self._summaries[layer] = LayerSummary(layer, values.shape[1], k=self._k)
            self._summaries[layer].update(values.cpu(), rows=record.rows, batch=record.number)

    def finish(self, collected: Collected, metadata: Mapping[str, Any]) -> ActivationSummary:
        ids = dict(zip(collected.rows, collected.ids, strict=True))
        statistics = {layer: self._of_all(layer, collected).statistics(ids.__getitem__) for layer in self._layers}
        return ActivationSummary(statistics, {**metadata, "k": self._k})

    def _of_all(self, layer: str, collected: Collected) -> LayerSummary:
        """The summary of all processes' batches; exact sums make it the same in any order."""
        if not collected.distributed:
            return self._summaries[layer]
        data = io.BytesIO()
        if layer in self._summaries:
            np.savez(data, **self._summaries[layer].to_arrays())  # type: ignore[arg-type]
        parts = [LayerSummary.from_arrays(np.load(io.BytesIO(part), allow_pickle=False)) for part in gather_bytes(data.getvalue()) if part]
        return reduce(LayerSummary.merge, parts)
