"""ActivationRecorder: hooks on, hooks off; one pass over images, into memory, a store on disk or summaries; a series of checkpoints.

The model is left exactly as found: hooks removed, training flags restored, the random state untouched, also after
an exception.
"""

from __future__ import annotations

import copy
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from neuroprobe._core import (
    __version__,
    check_choice,
    check_count,
    fingerprint_architecture,
    fingerprint_model,
    fingerprint_texts,
    identify_function,
)
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
from neuroprobe.models import (
    Checkpoint,
    Checkpoints,
    Layout,
    Pooling,
    Precision,
    Sites,
    check_pooling,
    check_precision,
    check_sites,
    describe_pooling,
    placed,
)
from neuroprobe.recording._forward import ForwardPass, Keeper, Listening, Tape, describe_recording
from neuroprobe.recording.activations import Activations, MemoryKeeper, ValueType
from neuroprobe.recording.store import StoreKeeper, locked
from neuroprobe.recording.summaries import ActivationSummary, LayerSummary

_log = logging.getLogger(__name__)


class ActivationRecorder:
    """Records the outputs of a model's modules.

    Parameters
    ----------
    model : torch.nn.Module
        Itself, not a DataParallel, compiled or scripted version of it.
    layers : sequence of str or Site, or callable
        Exact names, as in ``model.named_modules()``, never a prefix or a pattern; `neuroprobe.Site` for what is no layer's plain output,
        several of one layer if need be; or a function that says of a name and its module whether it is wanted. See
        `neuroprobe.block_layers` and `neuroprobe.all_layers`.
    pooling : {"mean", "max", "class_token", "mean_tokens", "none"}, ("token", i) or callable, default "mean"
        How a module's output becomes one row per image; see `neuroprobe.models.pool`. "none" keeps every position ("spatial" features).
    layout : {"nchw", "nhwc", "nlc", "lnc"}, optional
        Of all sites that do not say their own.
    autocast : {"bfloat16", "float16"} or torch.dtype, optional
        Mixed precision of the forward pass. Pooling and a site's basis work in float32 all the same.

    Attributes
    ----------
    sites : tuple of Site
    layers : tuple of str
        The sites' keys, under which their activations are found; a layer's name for a plain site.
    metadata : dict
        What tells this way of recording from others, apart from the model: all of the above by name, functions and bases with a
        fingerprint of their code and weights.

    Raises
    ------
    UnknownNameError
        A layer the model does not have; the message names the nearest ones.
    InputError
        No layers, or one twice, or a model that hooks do not work in.

    Examples
    --------
    >>> import torch, torchvision
    >>> model = torchvision.models.resnet18().eval()
    >>> recorder = ActivationRecorder(model, ["layer1", "layer4"])
    >>> with recorder.recording() as tape, torch.no_grad():
    ...     _ = model(torch.rand(2, 3, 64, 64))
    >>> tape["layer4"].shape
    torch.Size([2, 512])
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sites,
        *,
        pooling: Pooling = "mean",
        layout: Layout | None = None,
        autocast: Precision | None = None,
    ) -> None:
        check_pooling(pooling)
        self.model = model
        self.sites = tuple(replace(site, layout=layout) if layout and not site.layout else site for site in check_sites(model, layers))
        self.pooling: Pooling = pooling
        self.autocast = check_precision(autocast)

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(site.key for site in self.sites)

    @property
    def metadata(self) -> dict[str, Any]:
        return {
            "pooling": identify_function(self.pooling) if callable(self.pooling) else describe_pooling(self.pooling),
            "sites": {site.key: site.identity for site in self.sites},
            "autocast": None if self.autocast is None else str(self.autocast).removeprefix("torch."),
        }

    @contextmanager
    def recording(self, *, stop_early: bool = False) -> Iterator[Tape]:
        """Record every forward pass made inside the ``with`` block, whoever makes it.

        Rows of several forward passes follow each other. Gradients are not recorded.

        Parameters
        ----------
        stop_early : bool, default False
            End every forward pass but the first after the last module that is wanted. Each must then be in a block
            ``with tape.forward():``, which is left at that point.
        """
        listening = Listening({"": self}, stop_early=stop_early)
        with listening.taps.hooked():
            yield listening.tapes[""]

    def record(
        self,
        images: Images,
        *,
        transform: Transform,
        store: str | Path | None = None,
        dtype: ValueType = "float32",
        device: str | torch.device = "auto",
        batch_size: int = 64,
        workers: int = 0,
        distributed: bool = False,
        progress: bool | None = None,
    ) -> Activations:
        """Record a whole probing set, in evaluation mode and without gradients.

        Parameters
        ----------
        images : Images
        transform : callable
            From a PIL image to the model's input, without the batch axis; for torchvision's pretrained models,
            ``weights.transforms()``.
        store : path, optional
            A folder that keeps the activations, so that nothing has to fit in memory (see `neuroprobe.recording.Activations.open`). A
            recording that was cut off goes on from there; one that is complete is opened, not made again. By default
            everything stays in memory.
        dtype : {"float32", "float16"}, default "float32"
            Of the kept values.
        device : str or torch.device, default "auto"
            Where to run; the model goes there and comes back afterward. "auto" is where the model is, unless that is the CPU and there
            is an accelerator.
        batch_size, workers, distributed, progress
            As in `neuroprobe.images.collect`.

        Returns
        -------
        Activations

        Raises
        ------
        StoreError
            The store is of another recording (the message says what differs), in use, or cannot be written.
        """
        with placed(self.model, device):
            (activations,) = record_beside(
                self, images, [], transform=transform, store=store, dtype=dtype,
                batch_size=batch_size, workers=workers, distributed=distributed, progress=progress,
            )  # fmt: skip
        return activations  # type: ignore[no-any-return]

    def summarize(
        self,
        images: Images,
        *,
        transform: Transform,
        k: int = 100,
        device: str | torch.device = "auto",
        batch_size: int = 64,
        workers: int = 0,
        distributed: bool = False,
        progress: bool | None = None,
    ) -> ActivationSummary:
        """Keep only what is worth knowing of every unit, in memory that does not grow with the number of images.

        Parameters
        ----------
        k : int, default 100
            How many of the highest, and of the lowest, images of every unit are kept.
        images, transform, device, batch_size, workers, distributed, progress
            As in `record`.

        Returns
        -------
        ActivationSummary
            Highest and lowest images with their values, count, mean, variance and fraction active of every unit.
        """
        check_count("k", k)
        keeper = _SummaryKeeper(self.layers, k=k)
        settings: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "distributed": distributed, "progress": progress}
        with placed(self.model, device):
            consumer = ForwardPass({"": self}, transform, keepers={"": keeper}, unwrap=True)
            (summary,) = collect(images, [consumer], description="summarize", **settings)
        return summary  # type: ignore[no-any-return]

    def consumer(self, transform: Transform, *, fingerprint: str | None = None) -> ForwardPass:
        """This recorder as a consumer of `neuroprobe.images.collect`, whose result is the `Activations`.

        So that images are decoded once for it and for whatever else wants them. `fingerprint` is the model's, where it is known.
        """
        return ForwardPass({"": self}, transform, unwrap=True, fingerprint=fingerprint)


class _SummaryKeeper:
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
    folder: Path, identity: Mapping[str, Any], layers: tuple[str, ...], *, dtype: ValueType, distributed: bool
) -> Iterator[StoreKeeper]:
    """The keeper of a store, which is locked for as long as the ``with`` block lasts."""
    rank, _ = rank_and_size(distributed)
    with ExitStack() as stack:
        if rank == 0:
            stack.enter_context(locked(folder))
            keeper = StoreKeeper(folder, identity=identity, layers=layers, dtype=dtype)
        if distributed:
            torch.distributed.barrier()  # the first process makes the store, the others find it
        if rank > 0:
            keeper = StoreKeeper(folder, identity=identity, layers=layers, dtype=dtype, rank=rank)
        stack.callback(keeper.close)
        yield keeper


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
    """Record a probing set in one pass with other consumers; as `neuroprobe.ActivationRecorder.record`, where the model is.

    Returns
    -------
    list
        The `Activations`, then what the others found.
    """
    check_images(images)
    check_choice("dtype", dtype, ("float32", "float16"))
    settings: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "distributed": distributed, "progress": progress}
    fingerprint = fingerprint_model(recorder.model)
    keeper: Keeper = MemoryKeeper(recorder.layers, dtype=dtype)
    with ExitStack() as stack:
        if store is not None:
            identity = {
                "model": fingerprint,
                "architecture": fingerprint_architecture(recorder.model),
                **describe_recording(recorder, transform),
                "images": "a stream" if images.is_stream else fingerprint_texts(images.ids),
                "batch_size": batch_size,
                "neuroprobe": __version__,
            }
            opened = stack.enter_context(_keeping(Path(store), identity, recorder.layers, dtype=dtype, distributed=distributed))
            if opened.is_complete:
                return [_reopened(opened.folder, images), *(collect(images, others, **settings) if others else [])]
            keeper = opened
        consumer = ForwardPass({"": recorder}, transform, keepers={"": keeper}, unwrap=True, fingerprint=fingerprint)
        return collect(images, [consumer, *others], description="record", **settings)


def _reopened(folder: Path, images: Images) -> Activations:
    """The recording that is there already, if the images still have the content they had."""
    activations = Activations.open(folder)
    skipped = activations.metadata["skipped"]
    now = {id_: digest() for id_, digest in images.digests() if id_ not in skipped}
    if tuple(now) != activations.ids or fingerprint_images(now.values()) != activations.metadata["images"]:
        raise StoreError(
            f"Expected the images that were recorded into {str(folder)!r}, but the content of some has changed since. "
            "Choose another folder, or delete that one."
        )
    return activations


def record_checkpoints(
    model: nn.Module,
    checkpoints: Mapping[str, Checkpoint] | Checkpoints,
    images: Images,
    *,
    layers: Sites,
    transform: Transform,
    pooling: Pooling = "mean",
    layout: Layout | None = None,
    models_in_memory: int = 8,
    batch_size: int = 64,
    workers: int = 0,
    distributed: bool = False,
    progress: bool | None = None,
) -> dict[str, Activations]:
    """Record a series of checkpoints of one model.

    Every file is read once, and the weights are hashed once. Several models are held at once, so that the images are decoded once for
    all of them. Checkpoints with equal weights are recorded once; a warning names them, and their results are the same object.

    Parameters
    ----------
    model : torch.nn.Module
        Never changed.
    checkpoints : mapping from name to state dict or file, or Checkpoints
    images, transform, layers, pooling, layout
        As in `neuroprobe.ActivationRecorder` and its `record`.
    models_in_memory : int, default 8
        Copies of the model held at once; each round of so many decodes the images anew.
    batch_size, workers, distributed, progress
        As in `neuroprobe.images.collect`.

    Returns
    -------
    dict from name to Activations

    Raises
    ------
    CheckpointError
        A file that cannot be read safely or does not fit the model; all are checked before the first is recorded.
    UnknownNameError, InputError
        As `neuroprobe.ActivationRecorder`.
    """
    check_count("models_in_memory", models_in_memory)
    options: dict[str, Any] = {"pooling": pooling, "layout": layout}
    ActivationRecorder(model, layers, **options)  # whatever is wrong with it shows before anything is read
    series = Checkpoints.of(model, checkpoints)
    for name, first in series.firsts.items():
        if first != name:
            _log.warning("The checkpoints %r and %r have the same weights.", first, name)
    distinct = list(dict.fromkeys(series.firsts.values()))
    found: dict[str, Activations] = {}
    for start in range(0, len(distinct), models_in_memory):
        part = distinct[start : start + models_in_memory]
        recorders = [ActivationRecorder(series.load(name, copy.deepcopy(model)), layers, **options) for name in part]
        consumers = [r.consumer(transform, fingerprint=series.fingerprints[name]) for name, r in zip(part, recorders, strict=True)]
        recorded = collect(
            images, consumers, batch_size=batch_size, workers=workers, distributed=distributed, progress=progress, description="record"
        )
        found.update(zip(part, recorded, strict=True))
    return {name: found[first] for name, first in series.firsts.items()}
