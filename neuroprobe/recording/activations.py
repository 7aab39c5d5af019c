"""Activations: what the units of some layers did on a probing set, and what they were recorded from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from neuroprobe._core import table_html
from neuroprobe.exceptions import InputError, StoreError
from neuroprobe.images import BatchRecord, Collected
from neuroprobe.models import Site, find_site
from neuroprobe.recording.summaries import ActivationSummary

ValueType: TypeAlias = Literal["float32", "float16"]


@dataclass(frozen=True, eq=False)
class Activations:
    """Recorded activations, one array per layer.

    Attributes
    ----------
    arrays : mapping from layer to ndarray, [n_images, n_units], float32
        Also reached as ``activations[layer]``; a site that is no plain layer under its `key`, or as ``activations[site]``.
    ids : tuple of str
        The images: the rows.
    metadata : mapping
        Fingerprints of the model, of the images and of the way between them (transform, pooling), and what was
        skipped. Two results with the same metadata are of the same thing.

    Raises
    ------
    InputError
        Arrays that do not fit the ids, or values that are not finite (a broken model).
    """

    arrays: Mapping[str, npt.NDArray[np.float32]]
    ids: tuple[str, ...]
    metadata: Mapping[str, Any]

    def __post_init__(self) -> None:
        for layer, array in self.arrays.items():
            if array.ndim != 2 or len(array) != len(self.ids):
                raise InputError(f"Expected {layer!r} to be [{len(self.ids)}, n_units], but got {array.shape}.")
            if isinstance(array, np.memmap):
                continue  # a store is checked batch by batch as it is written; here nothing is read before it is used
            finite = np.isfinite(array)
            if not finite.all():
                row, unit = (int(i) for i in np.argwhere(~finite)[0])
                raise InputError(
                    f"Expected finite activations, but unit {unit} of {layer!r} is {array[row, unit]} on {self.ids[row]!r}. "
                    "Check the model's weights and its transform."
                )

    def __getitem__(self, layer: str | Site) -> npt.NDArray[np.float32]:
        """The activations of a layer or site, [n_images, n_units]."""
        return self.arrays[find_site(layer, self.sites)]

    def __contains__(self, layer: object) -> bool:
        return layer in self.arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    @property
    def sites(self) -> dict[str, str]:
        """The identity of the site that every array is of, by its key."""
        return {key: self.metadata.get("sites", {}).get(key, key) for key in self.arrays}

    @classmethod
    def open(cls, folder: str | Path) -> Activations:
        """The activations of a complete store, memory-mapped: nothing is read before it is used.

        Parameters
        ----------
        folder : path
            What was given as ``store`` to `neuroprobe.ActivationRecorder.record`.

        Raises
        ------
        StoreError
            There is no store, it is not complete, or its files do not have the sizes they should.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        if not manifest["complete"]:
            raise StoreError(
                f"Expected a complete store, but the recording into {str(folder)!r} was cut off. Record into the same store again to go on."
            )
        try:
            images = json.loads((folder / "images.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StoreError(
                f"Expected a complete store, but {str(folder / 'images.json')!r} cannot be read ({error}). Record it again."
            ) from error
        dtype = np.dtype(manifest["identity"]["dtype"])
        arrays = {}
        for i, (layer, shape) in enumerate(manifest["shapes"].items()):
            path = folder / _layer_file(i)
            size = path.stat().st_size if path.is_file() else 0
            if size != shape[0] * shape[1] * dtype.itemsize:
                raise StoreError(f"Expected {str(path)!r} to hold {shape} values of {dtype}, but it has {size} bytes. Record it again.")
            arrays[layer] = np.memmap(path, dtype=dtype, mode="r", shape=tuple(shape))
        return cls(arrays, tuple(images["ids"]), {**manifest["metadata"], "dtype": manifest["identity"]["dtype"]})

    @property
    def layers(self) -> tuple[str, ...]:
        """The recorded layers, in the order they were asked for."""
        return tuple(self.arrays)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{layer}: {array.shape[1]}" for layer, array in self.arrays.items())
        return f"Activations({len(self.ids)} images; units {shapes})"

    def _repr_html_(self) -> str:
        """Sizes and what it was recorded with; no value is read."""
        rows = [(layer, array.shape[1], f"{array.nbytes / 1e6:.1f}") for layer, array in self.arrays.items()]
        n_units = sum(row[1] for row in rows)
        summary = f"{len(self.ids):,} images, {n_units:,} units in {len(rows)} layers"
        known = {name: self.metadata.get(name) for name in ("pooling", "model", "images")}
        notes = [", ".join(f"{name} {value}" for name, value in known.items() if value is not None)]
        skipped = self.metadata.get("skipped")
        notes += [f"{len(skipped)} images were skipped"] if skipped else []
        return table_html("Activations", summary, ("layer", "units", "MB"), rows, n_rows=len(rows), notes=[note for note in notes if note])


class MemoryKeeper:
    """Keeps everything that is recorded; the result is `Activations` in memory."""

    def __init__(self, layers: tuple[str, ...], *, dtype: ValueType = "float32") -> None:
        self._dtype = dtype
        self._parts: dict[str, dict[int, torch.Tensor]] = {layer: {} for layer in layers}

    def recorded(self) -> Mapping[int, BatchRecord]:
        return {}

    def keep(self, record: BatchRecord, rows: Mapping[str, torch.Tensor]) -> None:
        for layer, values in rows.items():
            self._parts[layer][record.number] = converted(values, self._dtype, layer=layer)

    def finish(self, collected: Collected, metadata: Mapping[str, Any]) -> Activations:
        arrays: dict[str, npt.NDArray[Any]] = {}
        for layer in list(self._parts):
            parts = self._parts.pop(layer)  # one layer is there twice at a time, not all of them
            width = tuple(next(iter(parts.values())).shape[1:]) if parts else (0,)
            arrays[layer] = collected.joined(parts, width=width, dtype=getattr(torch, self._dtype)).numpy()
        return Activations(arrays, collected.ids, {**metadata, "dtype": self._dtype})


def converted(values: torch.Tensor, dtype: ValueType, *, layer: str) -> torch.Tensor:
    """The values as they are kept; `InputError` for one too large for the type, which would become infinite."""
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


Recorded: TypeAlias = "Activations | ActivationSummary"


def check_layers(recorded: Recorded, layers: Sequence[str | Site] | None) -> list[str]:
    """The keys of the layers or sites asked for, by default all; each is there and named once."""
    asked = recorded.layers if layers is None else layers
    chosen = [find_site(layer, recorded.sites) for layer in asked] if isinstance(asked, Iterable) and not isinstance(asked, str) else []
    if not chosen or len(set(chosen)) < len(chosen):
        raise InputError(f"Expected `layers` to be a list that names at least one layer, each once, but got {layers!r}.")
    return chosen


_FORMAT = 1


def _layer_file(number: int) -> str:
    return f"layer-{number:03d}.bin"  # by number: a layer's name may hold what a file's must not


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a store; `StoreError` where there is none, or it is damaged or of another format."""
    try:
        manifest = dict(json.loads((folder / "manifest.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise StoreError(f"Expected a store of activations, but {str(folder / 'manifest.json')!r} cannot be read ({error}).") from error
    if manifest.get("format") != _FORMAT:
        raise StoreError(f"Expected a store of format {_FORMAT}, but {str(folder)!r} has {manifest.get('format')!r}. Record it again.")
    return manifest
