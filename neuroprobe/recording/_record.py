"""Recording a whole probing set: in memory, into a store on disk, or as summaries; once, or for a series of checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from neuroprobe._core import __version__, check_count, fingerprint_architecture, fingerprint_model, fingerprint_texts
from neuroprobe.exceptions import InputError, StoreError
from neuroprobe.images import Consumer, Images, Transform, collect, fingerprint_images, rank_and_size
from neuroprobe.recording._forward import ForwardPass, describe_recording
from neuroprobe.recording._keepers import Keeper, MemoryKeeper, SummaryKeeper, ValueType
from neuroprobe.recording.activations import Activations, open_store
from neuroprobe.recording.recorder import ActivationRecorder
from neuroprobe.recording.store import StoreKeeper, locked
from neuroprobe.recording.summaries import ActivationSummary


@contextmanager
def keeping(
    recorder: ActivationRecorder,
    images: Images,
    transform: Transform,
    *,
    store: str | Path | None,
    dtype: ValueType = "float32",
    batch_size: int = 64,
    distributed: bool = False,
) -> Iterator[Keeper]:
    """A keeper for one recording: in memory, or in the store, which is locked for as long as the ``with`` block lasts.

    Raises
    ------
    StoreError
        The store is of another recording, in use, or cannot be written.
    """
    check_value_type(dtype)
    if store is None:
        yield MemoryKeeper(recorder.layers, dtype=dtype)
        return
    folder, (rank, _) = Path(store), rank_and_size(distributed)
    identity = {
        "model": fingerprint_model(recorder.model),
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


def record(
    recorder: ActivationRecorder,
    images: Images,
    *,
    transform: Transform,
    store: str | Path | None = None,
    dtype: ValueType = "float32",
    batch_size: int = 64,
    workers: int = 0,
    distributed: bool = False,
    progress: bool | None = None,
) -> Activations:
    """Record a whole probing set; see `neuroprobe.ActivationRecorder.record`."""
    (activations,) = record_beside(
        recorder, images, [], transform=transform, store=store, dtype=dtype,
        batch_size=batch_size, workers=workers, distributed=distributed, progress=progress,
    )  # fmt: skip
    return activations  # type: ignore[no-any-return]


def record_beside(
    recorder: ActivationRecorder,
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
    settings: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "distributed": distributed, "progress": progress}
    with keeping(recorder, images, transform, store=store, dtype=dtype, batch_size=batch_size, distributed=distributed) as keeper:
        if isinstance(keeper, StoreKeeper) and keeper.is_complete:
            return [_reopened(keeper.folder, images), *(collect(images, others, **settings) if others else [])]
        consumer = ForwardPass({"": recorder}, transform, keepers={"": keeper}, unwrap=True)
        return collect(images, [consumer, *others], description="record", **settings)


def summarize(
    recorder: ActivationRecorder,
    images: Images,
    *,
    transform: Transform,
    k: int = 100,
    batch_size: int = 64,
    workers: int = 0,
    distributed: bool = False,
    progress: bool | None = None,
) -> ActivationSummary:
    """Keep summaries of a whole probing set; see `neuroprobe.ActivationRecorder.summarize`."""
    check_count("k", k)
    consumer = ForwardPass({"": recorder}, transform, keepers={"": SummaryKeeper(recorder.layers, k=k)}, unwrap=True)
    (summary,) = collect(
        images, [consumer], batch_size=batch_size, workers=workers, distributed=distributed, progress=progress, description="summarize"
    )
    return summary  # type: ignore[no-any-return]


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


def check_value_type(dtype: str) -> None:
    """Raise `InputError` unless values of this type can be kept."""
    if dtype not in ("float32", "float16"):
        raise InputError(f"Expected `dtype` to be 'float32' or 'float16', but got {dtype!r}.")
