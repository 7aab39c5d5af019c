"""ForwardPass: a consumer of a pass that runs a model once per batch for its recorders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from neuroprobe._core import fingerprint_model, identify_function
from neuroprobe.exceptions import InputError
from neuroprobe.images import BatchRecord, Collected, Transform
from neuroprobe.models import _placed, device_of
from neuroprobe.recording._hooks import Hooks
from neuroprobe.recording._keepers import Keeper, MemoryKeeper
from neuroprobe.recording.recorder import ActivationRecorder


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
    """

    def __init__(
        self,
        recorders: Mapping[str, ActivationRecorder],
        transform: Transform,
        *,
        keepers: Mapping[str, Keeper] | None = None,
        unwrap: bool = False,
    ) -> None:
        self.transform = transform
        self._recorders = dict(recorders)
        self._keepers = {name: MemoryKeeper(recorder.layers) for name, recorder in recorders.items()} if keepers is None else dict(keepers)
        self._unwrap = unwrap
        self._model = next(iter(self._recorders.values())).model
        self._hooks = Hooks(self._recorders, stop_early=True)
        self._fingerprint = fingerprint_model(self._model)

    def recorded(self) -> Mapping[int, BatchRecord]:
        """The batches that every keeper has already."""
        first, *others = (keeper.recorded() for keeper in self._keepers.values())
        return {number: record for number, record in first.items() if all(number in other for other in others)}

    def consume(self, batch: torch.Tensor, record: BatchRecord) -> None:
        for name, rows in self._hooks.run(_placed(batch, device_of(self._model))).items():
            self._keepers[name].keep(record, {layer: _checked_rows(rows[layer], len(batch), layer) for layer in rows})

    def finish(self, collected: Collected) -> Any:
        found = {name: keeper.finish(collected, self._metadata(self._recorders[name], collected)) for name, keeper in self._keepers.items()}
        return found[""] if self._unwrap else found

    def _metadata(self, recorder: ActivationRecorder, collected: Collected) -> dict[str, Any]:
        return {
            "model": self._fingerprint,
            "images": collected.fingerprint,
            **describe_recording(recorder, self.transform),
            "skipped": dict(collected.skipped),
        }


def describe_recording(recorder: ActivationRecorder, transform: Transform) -> dict[str, Any]:
    """What lies between the images and the recorded rows, apart from the model."""
    return {
        "transform": identify_function(transform),
        **recorder.metadata,
    }


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
