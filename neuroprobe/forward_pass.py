"""ForwardPass: a consumer of a pass that runs a model once per batch for its recorders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from neuroprobe.activations import Activations
from neuroprobe.collection import Collected, Transform
from neuroprobe.exceptions import InputError
from neuroprobe.fingerprints import fingerprint_model
from neuroprobe.pooling import describe_function, describe_pooling
from neuroprobe.recorder import ActivationRecorder


class ForwardPass:
    """A consumer that runs a model once per batch for one or several recorders of it.

    Its result is a mapping from the recorders' names to their `Activations`.
    """

    def __init__(self, recorders: Mapping[str, ActivationRecorder], transform: Transform, *, unwrap: bool = False) -> None:
        self.transform = transform
        self._recorders = dict(recorders)
        self._unwrap = unwrap
        self._model = next(iter(self._recorders.values())).model
        self._chunks: dict[str, dict[str, list[torch.Tensor]]] = {
            name: {layer: [] for layer in recorder.layers} for name, recorder in self._recorders.items()
        }

    def consume(self, batch: torch.Tensor) -> None:
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(evaluating(self._model))
            tapes = {name: stack.enter_context(recorder.recording()) for name, recorder in self._recorders.items()}
            self._model(batch.to(device_of(self._model)))
        for name, tape in tapes.items():
            for layer, chunks in self._chunks[name].items():
                chunks.append(_checked_rows(tape[layer], len(batch), layer))

    def finish(self, collected: Collected) -> Any:
        results = {name: self._activations(name, collected) for name in self._recorders}
        return results[""] if self._unwrap else results

    def _activations(self, name: str, collected: Collected) -> Activations:
        recorder = self._recorders[name]
        arrays = {layer: torch.cat(chunks).numpy() for layer, chunks in self._chunks[name].items()}
        metadata = {
            "model": fingerprint_model(recorder.model),
            "images": collected.fingerprint,
            "transform": describe_function(self.transform),
            "pooling": describe_pooling(recorder.pooling),
            "layout": recorder.layout,
            "skipped": dict(collected.skipped),
        }
        return Activations(arrays, collected.ids, metadata)


def _checked_rows(rows: torch.Tensor, n_images: int, layer: str) -> torch.Tensor:
    if len(rows) != n_images:
        raise InputError(
            f"Expected one row per image ({n_images}) from {layer!r}, but got {len(rows)}: the first axis of its output does not hold "
            "the images. Record a module around it instead."
        )
    return rows


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters are; the CPU if it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; every module's own training flag comes back."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
