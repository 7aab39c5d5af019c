"""Recording a whole probing set: in memory, into a store on disk, or as summaries; once, or for a series of checkpoints."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuroprobe._core import __version__, check_choice, fingerprint_architecture, fingerprint_model, fingerprint_texts
from neuroprobe.exceptions import StoreError
from neuroprobe.images import (
    BatchRecord,
    Collected,
    Consumer,
    Images,
    Transform,
    check_images,
    collect,
    fingerprint_images,
    gather_bytes,
    rank_and_size,
)
from neuroprobe.recording._forward import ForwardPass, Keeper, Recorder, describe_recording
from neuroprobe.recording.activations import Activations, MemoryKeeper, ValueType, open_store
from neuroprobe.recording.store import StoreKeeper, locked
from neuroprobe.recording.summaries import ActivationSummary, LayerSummary


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


@contextmanager
def _keeping(
    recorder: Recorder,
    images: Images,
    transform: Transform,
    *,
    store: str | Path | None,
    dtype: ValueType,
    batch_size: int,
    distributed: bool,
    fingerprint: str,
) -> Iterator[Keeper]:
    """A keeper for one recording: in memory, or in the store, which is locked for as long as the ``with`` block lasts.

    Raises
    ------
    StoreError
        The store is of another recording, in use, or cannot be written.
    """
    if store is None:
        yield MemoryKeeper(recorder.layers, dtype=dtype)
        return
    folder, (rank, _) = Path(store), rank_and_size(distributed)
    identity = {
        "model": fingerprint,
        "architecture": fingerprint_architecture(recorder.model),
        **describe_recording(recorder, transform),
        "images": "a stream" if images.is_stream else fingerprint_texts(images.ids),
        "batch_size": batch_size,
        "neuroprobe": __version__,
    }
    with ExitStack() as stack:
        if rank == 0:
            stack.enter_context(locked(folder))
            keeper = StoreKeeper(folder, identity=identity, layers=recorder.layers, dtype=dtype)
        if distributed:
            torch.distributed.barrier()  # the first process makes the store, the others find it
        if rank > 0:
            keeper = StoreKeeper(folder, identity=identity, layers=recorder.layers, dtype=dtype, rank=rank)
        stack.callback(keeper.close)
        yield keeper


def record_beside(
    recorder: Recorder,
    images: Images,
    others: Sequence[Consumer],
    *,
    transform: Transform,
    store: str | Path | None = None,
    dtype: ValueType = "float32",
    batch_size: int = 64,
    workers: int = 0,
    distributed: bool = False,
    progress: bool | None = None,
) -> list[Any]:
    """Record a probing set in one pass with other consumers; a complete store is opened instead.

    Returns
    -------
    list
        The `Activations`, then what the others found.
    """
    check_images(images)
    check_choice("dtype", dtype, ("float32", "float16"))
    settings: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "distributed": distributed, "progress": progress}
    fingerprint = fingerprint_model(recorder.model)
    kept: dict[str, Any] = {"dtype": dtype, "batch_size": batch_size, "distributed": distributed, "fingerprint": fingerprint}
    with _keeping(recorder, images, transform, store=store, **kept) as keeper:
        if isinstance(keeper, StoreKeeper) and keeper.is_complete:
            return [_reopened(keeper.folder, images), *(collect(images, others, **settings) if others else [])]
        consumer = ForwardPass({"": recorder}, transform, keepers={"": keeper}, unwrap=True, fingerprint=fingerprint)
        return collect(images, [consumer, *others], description="record", **settings)


def _reopened(folder: Path, images: Images) -> Activations:
    """The recording that is there already, if the images still have the content they had."""
    activations = open_store(folder)
    skipped = activations.metadata["skipped"]
    now = {id_: digest() for id_, digest in _digests(images) if id_ not in skipped}
    if tuple(now) != activations.ids or fingerprint_images(now.values()) != activations.metadata["images"]:
        raise StoreError(
            f"Expected the images that were recorded into {str(folder)!r}, but the content of some has changed since. "
            "Choose another folder, or delete that one."
        )
    return activations


def _digests(images: Images) -> Iterator[tuple[str, Callable[[], str]]]:
    """Every image's id, and what gives its fingerprint."""
    if images.is_stream:
        return ((row.id, row.digest) for row in images.rows())
    return ((id_, partial(images.digest, i)) for i, id_ in enumerate(images.ids))
