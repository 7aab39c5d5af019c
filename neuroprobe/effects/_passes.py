"""What outputs of a model are on every image: as the model is, and under each of several interventions, in one pass over the images."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import nn

from neuroprobe._core import FloatArray
from neuroprobe.effects._gradients import Output, output_values
from neuroprobe.effects.interventions import changed_output
from neuroprobe.exceptions import InputError, UnknownNameError, shown
from neuroprobe.images import BatchRecord, Collected, Transform
from neuroprobe.models import Direction, Layout, check_layers, device_of, evaluating
from neuroprobe.recording import ActivationRecorder

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
    InputError
        No outputs, or what is none.
    UnknownNameError
        A probe of a layer that the model does not have.
    """

    def __init__(
        self,
        model: nn.Module,
        interventions: Sequence[Intervention],
        outputs: Mapping[str, Measured],
        transform: Transform,
        *,
        plain: Intervention = nullcontext,
        layout: Layout | None = None,
    ) -> None:
        self.transform = transform
        self._model, self._all = model, [plain, *interventions]
        self._own, self._readings = _sorted_out(outputs)
        self._names = list(outputs)
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
            output_values(returned, self._own[name], name, len(batch)).double().cpu().numpy()
            if name in self._own
            else _read(self._readings[name], tapes[self._readings[name].features], name, len(batch))
            for name in self._names
        ]
        for name, column in zip(self._names, columns, strict=True):
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


def named_outputs(outputs: Any) -> dict[str, Measured]:
    """Outputs by name; of a number alone, the number.

    Raises
    ------
    InputError
        Neither a number nor a mapping with something in it, or names that as texts are the same.
    """
    if isinstance(outputs, Integral) and not isinstance(outputs, bool):
        return {str(outputs): int(outputs)}
    if not isinstance(outputs, Mapping) or not outputs:
        raise InputError(f"Expected `outputs` to be the number of an output, or a mapping from names to outputs, but got {shown(outputs)}.")
    named = {str(name): output for name, output in outputs.items()}
    if len(named) < len(outputs):
        raise InputError(f"Expected outputs of different names, but as texts some are the same: {list(outputs)!r:.80}.")
    return named


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


def random_units(
    n_units: int, units: Sequence[int], *, n_random: int, seed: int, magnitudes: FloatArray | None = None
) -> list[tuple[int, ...]]:
    """Sets of as many other units of the layer, all different; all that there are, if they are not more than `n_random`.

    Parameters
    ----------
    n_units : int
        Of the layer.
    units : sequence of int
        Never among them.
    n_random : int
    seed : int
    magnitudes : ndarray, [n_units], optional
        Draw for each unit one of the others that are nearest to it in this: of as many as `n_random`, and at least of 10.

    Raises
    ------
    InputError
        Fewer other units than there are in the set.
    """
    others = [unit for unit in range(n_units) if unit not in set(units)]
    if n_random and len(others) < len(units):
        raise InputError(
            f"Expected at least {len(units)} other units to compare with, but the layer has {n_units} of which {len(others)} are others. "
            "Take n_random=0."
        )
    if math.comb(len(others), len(units)) <= n_random:
        return list(itertools.combinations(others, len(units)))
    generator, found = np.random.default_rng(seed), dict[tuple[int, ...], None]()
    for _ in range(100 * n_random):  # more than enough: sets are many, and few of them alike
        if len(found) == n_random:
            break
        if magnitudes is None:
            drawn = generator.choice(others, len(units), replace=False).tolist()
        else:
            drawn = _alike(units, others, magnitudes, n_random, generator)
        found[tuple(sorted(drawn))] = None
    return list(found)


def _alike(units: Sequence[int], others: Sequence[int], magnitudes: FloatArray, n_random: int, generator: np.random.Generator) -> list[int]:
    """One other unit for each, drawn among those nearest in magnitude that are left."""
    left, drawn = np.array(others), []
    for unit in generator.permutation(sorted(units)):
        distances = np.abs(magnitudes[left] - magnitudes[unit])
        near = np.argsort(distances, kind="stable")[: max(10, n_random)]
        place = int(generator.choice(near))
        drawn.append(int(left[place]))
        left = np.delete(left, place)
    return drawn


def _placed(batch: torch.Tensor, device: torch.device) -> torch.Tensor:
    # as in a recording: images with their channels last make many convolutions faster
    return batch.to(device, memory_format=torch.channels_last) if batch.ndim == 4 else batch.to(device)


def _sorted_out(outputs: Mapping[str, Measured]) -> tuple[dict[str, Output], dict[str, _Reading]]:
    """The model's own outputs, and readings of probes."""
    plain: dict[str, Output] = {}
    readings: dict[str, _Reading] = {}
    for name, output in outputs.items():
        if isinstance(output, Direction):
            if output.features not in _POOLINGS:
                raise UnknownNameError(f"Expected features 'pooled' or 'spatial', but got {output.features!r}.")
            readings[name] = _Reading(output.layer, output.features, output.decision)
        elif isinstance(output, tuple) and len(output) == 2 and isinstance(output[0], str) and isinstance(output[1], Probe):
            readings[name] = _Reading(output[0], "pooled", output[1].decision_function)
        elif callable(output) or (isinstance(output, Integral) and not isinstance(output, bool)):
            plain[name] = output if callable(output) else int(output)
        else:
            raise InputError(
                f"Expected output {name!r} as the number of an output, a function of what the model returns, a Direction, or "
                f"(layer, probe), but got {shown(output)}."
            )
    return plain, readings


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
