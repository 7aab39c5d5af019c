"""Forward passes of a model for one or several recorders: the tape of a loop of one's own, and the consumer of a whole set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import nn

from neuroprobe._core import fingerprint_model, identify_function
from neuroprobe.exceptions import InputError, UnknownNameError, suggest
from neuroprobe.images import BatchRecord, Collected, Transform
from neuroprobe.models import Pooling, Run, Site, Taps, as_site, batch_to, device_of, evaluating, pool
from neuroprobe.recording.activations import MemoryKeeper


class Recorder(Protocol):
    """What is recorded of a model, and how: a `neuroprobe.ActivationRecorder`."""

    model: nn.Module
    sites: tuple[Site, ...]
    pooling: Pooling
    autocast: torch.dtype | None

    @property
    def layers(self) -> tuple[str, ...]: ...

    @property
    def metadata(self) -> dict[str, Any]: ...


class Keeper(Protocol):
    """Gets the rows of every batch, site by site, and gives the result of the recording."""

    def recorded(self) -> Mapping[int, BatchRecord]:
        """The batches it has from a run that was cut off."""
        ...

    def keep(self, record: BatchRecord, rows: Mapping[str, torch.Tensor]) -> None:
        """One batch: a site's key to [n_images_of_batch, n_units], float32, on the CPU."""
        ...

    def finish(self, collected: Collected, metadata: Mapping[str, Any]) -> Any:
        """The result, once every batch is kept."""
        ...


class Tape(Mapping[str, torch.Tensor]):
    """What has been recorded so far: a site's key -> [n_images, n_units], float32, on the CPU.

    The rows of a forward pass come onto the tape together when it ends; one that fails leaves none.
    """

    def __init__(self, layers: tuple[str, ...], forward: Callable[[], AbstractContextManager[None]]) -> None:
        self._chunks: dict[str, list[torch.Tensor]] = {layer: [] for layer in layers}
        self._missed: dict[str, int] = dict.fromkeys(layers, 0)
        self._forward = forward

    def forward(self) -> AbstractContextManager[None]:
        """Say that the ``with`` block is one forward pass.

        Needed where that cannot be seen: where a part or another method of the model is called (``encode_image``,
        ``forward_features``) more than once, and where the recorder may stop the forward early or choose its precision.
        """
        return self._forward()

    def __getitem__(self, layer: str | Site) -> torch.Tensor:
        layer = as_site(layer).key
        if layer not in self._chunks:
            raise UnknownNameError(f"Expected a recorded layer, but got {layer!r}. {suggest(layer, self._chunks)}")
        chunks = self._chunks[layer]
        if not chunks:
            raise UnknownNameError(
                f"Expected a forward pass through {layer!r}, but it was never reached. Run the model inside the `with` block; "
                "if you did, this layer takes no part in its forward (an auxiliary head runs in training mode only)."
            )
        if self._missed[layer]:
            raise InputError(
                f"Expected every forward pass to reach {layer!r}, but it took no part in {self._missed[layer]} of them, so its rows "
                "would not be those of the other layers. Record it alone."
            )
        return torch.cat(chunks)

    def __iter__(self) -> Iterator[str]:
        return iter(self._chunks)

    def __len__(self) -> int:
        return len(self._chunks)

    def __contains__(self, layer: object) -> bool:
        return isinstance(layer, (str, Site)) and as_site(layer).key in self._chunks

    def _add(self, rows: Mapping[str, torch.Tensor], *, whole: bool) -> None:
        """The rows of a forward pass that has ended, or of a part of the model that was called alone."""
        for layer, chunks in self._chunks.items():
            if layer in rows:
                chunks.append(rows[layer].cpu())
            elif whole:
                self._missed[layer] += 1

    def _take(self) -> dict[str, torch.Tensor]:
        """Everything on the tape, which is empty then."""
        rows = {layer: self[layer] for layer in self}
        for layer, chunks in self._chunks.items():
            chunks.clear()
            self._missed[layer] = 0
        return rows


class Listening:
    """The forward passes of one model, for its recorders. What several of them want of a site is read once.

    Parameters
    ----------
    recorders : mapping from name to ActivationRecorder
        All of one model, in one precision.
    stop_early : bool, default False
        End a forward pass made in a tape's `forward` after the last module that is wanted; the first goes on to its end.

    Attributes
    ----------
    tapes : mapping from name to Tape

    Raises
    ------
    InputError
        Recorders of several models, or with several precisions.
    """

    def __init__(self, recorders: Mapping[str, Recorder], *, stop_early: bool = False) -> None:
        first, *others = recorders.values()
        if any(other.model is not first.model or other.autocast != first.autocast for other in others):
            raise InputError("Expected recorders of one model with one `autocast`, but got several. Give each its own pass.")
        self._takers: dict[Site, list[tuple[str, Pooling]]] = {}
        for name, recorder in recorders.items():
            for site in recorder.sites:
                self._takers.setdefault(site, []).append((name, recorder.pooling))
        options: dict[str, Any] = {"autocast": first.autocast, "take": self._rows, "keep": self._keep}
        self.taps = Taps(first.model, tuple(self._takers), stop=stop_early, **options)
        self.tapes = {name: Tape(recorder.layers, self.taps.forward) for name, recorder in recorders.items()}

    def _rows(self, site: Site, run: Run) -> dict[str, torch.Tensor]:
        return {name: _pooled(run, pooling) for name, pooling in self._takers[site]}

    def _keep(self, found: Mapping[Site, dict[str, torch.Tensor]], whole: bool) -> None:
        for name, tape in self.tapes.items():
            tape._add({site.key: rows[name] for site, rows in found.items() if name in rows}, whole=whole)

    def run(self, batch: torch.Tensor) -> dict[str, dict[str, torch.Tensor]]:
        """One forward pass in evaluation mode and without gradients: the rows by recorder and site."""
        with torch.no_grad(), evaluating(self.taps.model, *self.taps.modules), self.taps.hooked(), self.taps.forward():
            self.taps.model(batch)
        return {name: tape._take() for name, tape in self.tapes.items()}


def _pooled(run: Run, pooling: Pooling) -> torch.Tensor:
    """The rows of units in what a site gives just now, [n_images, n_units], float32."""
    values, site = run.values, run.site
    if callable(pooling):
        image_axis = site.layout.index("n") if site.layout and values.ndim > 2 else 0
        return pool(values, pooling, unit_axis=1, image_axis=image_axis, layer=site.layer)
    axes = run.axes
    rows = pool(values, pooling, unit_axis=axes.units, image_axis=axes.images, layer=site.layer)
    return rows.cpu() if pooling == "none" else rows  # what is large does not wait on an accelerator


class ForwardPass:
    """A consumer that runs a model once per batch for one or several recorders of it.

    Its result is a mapping from the recorders' names to what their keepers give: `Activations`, unless said otherwise.

    Parameters
    ----------
    recorders : mapping from name to ActivationRecorder
        All of one model.
    transform : callable
        From a PIL image to the model's input.
    keepers : mapping from name to Keeper, optional
        By default everything is kept in memory.
    unwrap : bool, default False
        For a single recorder: give its result instead of a mapping.
    fingerprint : str, optional
        Of the model, where it is known already.
    """

    def __init__(
        self,
        recorders: Mapping[str, Recorder],
        transform: Transform,
        *,
        keepers: Mapping[str, Keeper] | None = None,
        unwrap: bool = False,
        fingerprint: str | None = None,
    ) -> None:
        self.transform = transform
        self._recorders, self._unwrap = dict(recorders), unwrap
        self._keepers = dict(keepers or {name: MemoryKeeper(recorder.layers) for name, recorder in recorders.items()})
        self._listening = Listening(self._recorders, stop_early=True)
        self._model = self._listening.taps.model
        self._fingerprint = fingerprint_model(self._model) if fingerprint is None else fingerprint

    def recorded(self) -> Mapping[int, BatchRecord]:
        """The batches that every keeper has already."""
        first, *others = (keeper.recorded() for keeper in self._keepers.values())
        return {number: record for number, record in first.items() if all(number in other for other in others)}

    def consume(self, batch: torch.Tensor, record: BatchRecord) -> None:
        for name, rows in self._listening.run(batch_to(batch, device_of(self._model))).items():
            self._keepers[name].keep(record, {layer: _checked_rows(rows[layer], len(batch), layer) for layer in rows})

    def finish(self, collected: Collected) -> Any:
        found = {name: keeper.finish(collected, self._metadata(self._recorders[name], collected)) for name, keeper in self._keepers.items()}
        return found[""] if self._unwrap else found

    def _metadata(self, recorder: Recorder, collected: Collected) -> dict[str, Any]:
        return {
            "model": self._fingerprint,
            "images": collected.fingerprint,
            **describe_recording(recorder, self.transform),
            "skipped": dict(collected.skipped),
        }


def describe_recording(recorder: Recorder, transform: Transform) -> dict[str, Any]:
    """What lies between the images and the recorded rows, apart from the model."""
    return {"transform": identify_function(transform), **recorder.metadata}


def _checked_rows(rows: torch.Tensor, n_images: int, layer: str) -> torch.Tensor:
    if len(rows) != n_images:
        raise InputError(
            f"Expected one row per image ({n_images}) from {layer!r}, but got {len(rows)}: the first axis of its output does not hold "
            "the images. Record a module around it instead."
        )
    if not torch.isfinite(rows).all():
        raise InputError(
            f"Expected finite activations, but {layer!r} gives some that are not. "
            "Check the model's weights, its transform and the precision."
        )
    return rows
