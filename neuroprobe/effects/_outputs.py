"""Outputs of a model: which are meant, and what they are on every image, as the model is and under each of several interventions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import nn

from neuroprobe._core import FloatArray
from neuroprobe.effects.interventions import changed_output
from neuroprobe.exceptions import InputError, UnknownNameError, shown
from neuroprobe.images import BatchRecord, Collected, Transform
from neuroprobe.models import Direction, Layout, _placed, check_layers, device_of, evaluating
from neuroprobe.recording import ActivationRecorder

#: An output's number, or a function of what the model returns that gives one number per image.
Output: TypeAlias = "int | Callable[[Any], torch.Tensor]"
Intervention: TypeAlias = "Callable[[], AbstractContextManager[None]]"


@runtime_checkable
class Probe(Protocol):
    """A fitted probe of two classes, such as `neuroprobe.LinearProbe`."""

    def decision_function(self, X: Any) -> Any: ...


#: An output of the model, a probe's direction, or a layer and a probe of its mean-pooled activations.
Measured: TypeAlias = "Output | Direction | tuple[str, Probe]"

_POOLINGS = {"pooled": "mean", "spatial": "none"}


@dataclass(frozen=True)
class _Reading:
    """A probe's log-odds of a layer's activations."""

    layer: str
    features: str
    decision: Callable[[Any], Any]


def named_outputs(outputs: Any, *, probes: bool = False) -> dict[str, Any]:
    """Outputs by name; of a number alone, the number. Probes of layers are among them if `probes`.

    Raises
    ------
    InputError
        Neither a number nor a mapping with something in it, names that as texts are the same, or what is no output.
    """
    if _is_number(outputs):
        return {str(outputs): int(outputs)}
    if not isinstance(outputs, Mapping) or not outputs:
        raise InputError(f"Expected `outputs` to be the number of an output, or a mapping from names to outputs, but got {shown(outputs)}.")
    named = {str(name): output for name, output in outputs.items()}
    if len(named) < len(outputs):
        raise InputError(f"Expected outputs of different names, but as texts some are the same: {list(outputs)!r:.80}.")
    for name, output in named.items():
        if not (probes and _is_probe(output)):
            check_output(name, output, " (or a Direction, or (layer, probe))" if probes else "")
    return named


def check_output(name: str, output: Any, more: str = "") -> None:
    """Raise `InputError` unless it is the number of an output, or a function of what a model returns."""
    if not _is_number(output) and not callable(output):
        raise InputError(f"Expected output {name!r} as its number or a function of what the model returns{more}, but got {shown(output)}.")


def output_values(returned: Any, output: Output, name: str, n: int) -> torch.Tensor:
    """An output of a model for each of n images, [n].

    Raises
    ------
    InputError
        The model has no such output, or the function gives anything but a number for each image.
    """
    if callable(output):
        value = output(returned)
    elif not isinstance(returned, torch.Tensor) or returned.ndim != 2 or not 0 <= output < returned.shape[1]:
        shape = tuple(returned.shape) if isinstance(returned, torch.Tensor) else type(returned).__name__
        raise InputError(f"Expected an output of the model by its number, but got {name} = {output}: the model returns {shape}.")
    else:
        value = returned[:, output]
    if not isinstance(value, torch.Tensor) or value.shape != (n,):
        shape = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise InputError(f"Expected the function of output {name!r} to give one number for each of {n} images, but got {shape}.")
    return value


def _is_number(output: Any) -> bool:
    return isinstance(output, Integral) and not isinstance(output, bool)


def _is_probe(output: Any) -> bool:
    pair = isinstance(output, tuple) and len(output) == 2 and isinstance(output[0], str) and isinstance(output[1], Probe)
    return pair or isinstance(output, Direction)


class OutputsUnder:
    """A consumer that runs a model as it is, and under each intervention; its result is `Found`.

    Parameters
    ----------
    model : torch.nn.Module
    interventions : sequence of callables that give context managers
    outputs : mapping from name to int, callable, Direction or (layer, probe)
    transform : callable
    plain : callable that gives a context manager, optional
        What the model runs in as it is; one that puts hooks on it as the interventions do and changes nothing keeps torch from taking
        another way through it, whose last bits differ.
    layout : optional
        Of the layers of probes.

    Raises
    ------
    UnknownNameError
        A probe of a layer that the model does not have, or of other features than there are.
    """

    def __init__(
        self,
        model: nn.Module,
        interventions: Sequence[Intervention],
        outputs: Mapping[str, Any],
        transform: Transform,
        *,
        plain: Intervention = nullcontext,
        layout: Layout | None = None,
    ) -> None:
        self.transform = transform
        self._model, self._all = model, [plain, *interventions]
        self._outputs = outputs
        self._readings = {name: _reading(output) for name, output in outputs.items() if _is_probe(output)}
        self.probe_layers = tuple(dict.fromkeys(reading.layer for reading in self._readings.values()))
        self._recorders: dict[str, ActivationRecorder] = {}
        for features in dict.fromkeys(reading.features for reading in self._readings.values()):
            layers = dict.fromkeys(reading.layer for reading in self._readings.values() if reading.features == features)
            pooling: Any = _POOLINGS[features]
            self._recorders[features] = ActivationRecorder(model, list(layers), pooling=pooling, layout=layout)
        self._found: list[FloatArray] = []

    def consume(self, batch: torch.Tensor, record: BatchRecord) -> None:
        with torch.no_grad(), evaluating(self._model):
            placed = _placed(batch, device_of(self._model))
            values = []
            for intervention in self._all:
                with intervention():
                    values.append(self._values(placed))
        self._found.append(np.stack(values))

    def _values(self, batch: torch.Tensor) -> FloatArray:
        """The outputs of a batch now, [n_images, n_outputs]."""
        with ExitStack() as stack:
            tapes = {features: stack.enter_context(recorder.recording()) for features, recorder in self._recorders.items()}
            returned = self._model(batch)
        columns = [
            _read(self._readings[name], tapes[self._readings[name].features], name, len(batch))
            if name in self._readings
            else output_values(returned, output, name, len(batch)).double().cpu().numpy()
            for name, output in self._outputs.items()
        ]
        for name, column in zip(self._outputs, columns, strict=True):
            if not np.isfinite(column).all():
                raise InputError(
                    f"Expected finite outputs, but {name!r} is {column[~np.isfinite(column)][0]} on an image. Check the model's weights "
                    "and its transform, or set the units to other values."
                )
        return np.stack(columns, axis=1)

    def finish(self, collected: Collected) -> Found:
        return Found(collected, np.concatenate(self._found, axis=1))


@dataclass(frozen=True, eq=False)
class Found:
    """Outputs on images: ``values[0]`` of the model as it is, ``values[i]`` under intervention i - 1; [n_images, n_outputs] each."""

    collected: Collected
    values: FloatArray

    def changes(self, ids: Sequence[str]) -> FloatArray:
        """What each intervention changed on these images, [n_interventions, n_images, n_outputs]."""
        places = {id_: row for row, id_ in enumerate(self.collected.ids)}
        rows = [places[id_] for id_ in ids]
        return self.values[1:, rows] - self.values[0, rows]


class TryOut:
    """A consumer that runs everything on a batch and tells what is wrong before the long run; its result is the layer's number of units.

    Parameters
    ----------
    reader : OutputsUnder
    model : torch.nn.Module
    layer : str
        Where the interventions are.
    settings
        `layout` and `select` of the interventions.

    Raises
    ------
    InputError
        When a batch comes: a layer that does not run or whose units are not known, an intervention that does not fit it, outputs that are
        none or not finite, or a probe of a layer that ends before it.
    """

    def __init__(self, reader: OutputsUnder, model: nn.Module, layer: str, **settings: Any) -> None:
        self.transform = reader.transform
        self._reader, self._model, self._layer, self._settings = reader, model, layer, settings
        self._sizes: list[int] = []
        self._ended: list[str] = []

    def consume(self, batch: torch.Tensor, record: BatchRecord) -> None:
        self._sizes.clear()
        self._ended.clear()
        modules = dict(self._model.named_modules(remove_duplicate=False))
        with ExitStack() as stack:
            stack.enter_context(changed_output(self._model, self._layer, self._measure, **self._settings))
            for name in check_layers(self._model, list(dict.fromkeys((self._layer, *self._reader.probe_layers)))):
                stack.callback(modules[name].register_forward_hook(functools.partial(self._note, name)).remove)
            self._reader.consume(batch, record)
        for name in self._reader.probe_layers:
            if name not in self._ended[self._ended.index(self._layer) :]:
                raise InputError(
                    f"Expected a probe of a layer that comes after {self._layer!r}, but {name!r} ends before it: nothing changes there."
                )

    def _measure(self, values: torch.Tensor) -> None:
        self._sizes.append(values.shape[1])

    def _note(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        if name not in self._ended:  # of the first of several passes
            self._ended.append(name)

    def finish(self, collected: Collected) -> int:
        return self._sizes[0]


def _reading(probe: Direction | tuple[str, Probe]) -> _Reading:
    if not isinstance(probe, Direction):
        return _Reading(probe[0], "pooled", probe[1].decision_function)
    if probe.features not in _POOLINGS:
        raise UnknownNameError(f"Expected features 'pooled' or 'spatial', but got {probe.features!r}.")
    return _Reading(probe.layer, probe.features, probe.decision)


def _read(reading: _Reading, tape: Mapping[str, torch.Tensor], name: str, n: int) -> FloatArray:
    rows = tape[reading.layer].numpy()
    try:
        values = np.asarray(reading.decision(rows), dtype=np.float64)
    except ValueError as error:
        raise InputError(
            f"Expected a probe {name!r} of the {rows.shape[1]} features of {reading.layer!r}, but: {str(error).rstrip('.')}."
        ) from error
    if values.shape != (n,):
        raise InputError(f"Expected the probe {name!r} to give one number for each of {n} images, but got {values.shape}.")
    return values
