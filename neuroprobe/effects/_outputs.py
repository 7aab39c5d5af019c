"""Outputs of a model: which are meant, their gradients at a site, and what they are while a site is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import nn

from neuroprobe._core import Floats
from neuroprobe.exceptions import InputError, shown
from neuroprobe.images import BatchRecord, Collected, Images, Transform, collect
from neuroprobe.models import (
    FEATURES,
    Direction,
    Reading,
    Replacement,
    Run,
    Site,
    Taps,
    as_site,
    batch_to,
    device_of,
    evaluating,
    pool,
    tapped,
)

#: An output's number, or a function of what the model returns that gives one number per image.
Output: TypeAlias = "int | Callable[[Any], torch.Tensor]"


@runtime_checkable
class Probe(Protocol):
    """A fitted probe of two classes, such as `neuroprobe.LinearProbe`."""

    def decision_function(self, X: Any) -> Any: ...


#: An output of the model, a probe's direction, or a site and a direction or a probe of its mean-pooled activations.
Measured: TypeAlias = "Output | Direction | tuple[str | Site, Probe | Direction]"


@dataclass(frozen=True)
class _Decision:
    """A probe's log-odds of a site's activations."""

    site: Site
    features: str
    of: Callable[[Any], Any]


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
    pair = isinstance(output, tuple) and len(output) == 2 and isinstance(output[0], (str, Site))
    return isinstance(output, Direction) or (pair and isinstance(output[1], (Probe, Direction)))


def _decision(probe: Direction | tuple[str | Site, Probe | Direction]) -> _Decision:
    site, reader = (probe.layer, probe) if isinstance(probe, Direction) else probe
    if isinstance(reader, Direction):
        return _Decision(as_site(site), reader.features, reader.decision)
    return _Decision(as_site(site), "pooled", reader.decision_function)


@contextmanager
def moved(model: nn.Module, sites: Sequence[Site]) -> Iterator[tuple[Taps, dict[Site, torch.Tensor]]]:
    """Nothing is added to what some sites give, so that there is something to take the gradient with respect to.

    Each site runs once in a forward pass. What is added is [n_images, n_units, *positions], by site.
    """
    added: dict[Site, torch.Tensor] = {}

    def adding(site: Site) -> Replacement:
        def add_nothing(values: torch.Tensor) -> torch.Tensor:
            added[site] = torch.zeros_like(values, requires_grad=True)
            return values + added[site]

        return add_nothing

    with tapped(model, sites, replace={site: adding(site) for site in sites}) as taps:
        yield taps, added


def gradients(value: torch.Tensor, added: Mapping[Site, torch.Tensor]) -> dict[Site, torch.Tensor]:
    """The gradient of every image's value [n] with respect to what was added, by site.

    Raises
    ------
    InputError
        The value does not depend on a site.
    """
    tensors = list(added.values())
    found: Sequence[torch.Tensor | None] = [None] * len(tensors)
    if value.requires_grad:
        found = torch.autograd.grad(value.sum(), tensors, retain_graph=True, allow_unused=True)
    by_site = {}
    for site, gradient in zip(added, found, strict=True):
        if gradient is None:
            raise InputError(f"Expected an output that depends on {site.key!r}, but this one does not.")
        by_site[site] = gradient
    return by_site


def _nothing(values: torch.Tensor) -> torch.Tensor:
    return values


@dataclass(frozen=True, eq=False)
class Found:
    """Outputs on images: ``values[0]`` of the model as it is, ``values[i]`` under change i - 1; [n_images, n_outputs] each."""

    collected: Collected
    values: Floats

    def changes(self, ids: Sequence[str]) -> Floats:
        """How each change moves the outputs on these images, [n_changes, n_images, n_outputs]."""
        places = {id_: row for row, id_ in enumerate(self.collected.ids)}
        rows = [places[id_] for id_ in ids]
        return self.values[1:, rows] - self.values[0, rows]


class OutputsUnder:
    """Outputs of a model as it is, and under each of several changes of a site.

    Parameters
    ----------
    model : torch.nn.Module
    site : Site
    outputs : mapping from name to output
        As `named_outputs` gives them.
    transform : callable

    Attributes
    ----------
    n_units : int
        Of the site, once images were measured.
    """

    def __init__(self, model: nn.Module, site: Site, outputs: Mapping[str, Any], transform: Transform) -> None:
        self.transform = transform
        self.n_units = 0
        self._model, self._site, self._outputs = model, site, outputs
        self._decisions = {name: _decision(output) for name, output in outputs.items() if _is_probe(output)}
        self._sites = tuple(dict.fromkeys(decision.site for decision in self._decisions.values()))
        self._changes: Sequence[Replacement] = ()
        self._change: Replacement = _nothing
        self._found: list[Floats] = []

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Listen to the model, as long as the ``with`` block lasts.

        Raises
        ------
        InputError, UnknownNameError
            A site that cannot be changed, or a probe of one that the model does not have.
        """
        with ExitStack() as stack:
            stack.enter_context(tapped(self._model, replace={self._site: self._replaced}))
            # entered later, so that it reads what was changed
            reading = tapped(self._model, self._sites, stop=False, take=self._taken) if self._sites else None
            self._taps = None if reading is None else stack.enter_context(reading)
            yield

    def measure(self, images: Images, changes: Sequence[Replacement], **reading: Any) -> Found:
        """The outputs on images, inside of `hooked`; `reading` as in `neuroprobe.images.collect`.

        Raises
        ------
        InputError
            A layer that does not run, a change that does not fit it, outputs that are none or not finite, or a probe of a layer that
            ends before it.
        """
        self._changes, self._found = changes, []
        (found,) = collect(images, [self], **reading)
        return found  # type: ignore[no-any-return]

    def consume(self, batch: torch.Tensor, record: BatchRecord) -> None:
        modules = [module for site in (self._site, *self._sites) for module in site.modules]
        with torch.no_grad(), evaluating(self._model, *modules):
            placed, values = batch_to(batch, device_of(self._model)), []
            # the model as it is runs with the same hooks: without them torch may take another way, whose last bits differ
            for change in (_nothing, *self._changes):
                self._change, self._reached = change, False
                values.append(self._values(placed))
        self._found.append(np.stack(values))

    def _replaced(self, values: torch.Tensor) -> torch.Tensor:
        self.n_units, self._reached = values.shape[1], True
        return self._change(values)

    def _taken(self, site: Site, run: Run) -> Reading:
        if not self._reached:
            raise InputError(
                f"Expected a probe of a layer that comes after {self._site.key!r}, but {site.key!r} ends before it: nothing changes there."
            )
        return run.reading()

    def _values(self, batch: torch.Tensor) -> Floats:
        """The outputs of a batch now, [n_images, n_outputs]."""
        returned = self._model(batch)
        if not self._reached:
            raise InputError(f"Expected {self._site.layer!r} to run in a forward pass, but it does not, so nothing was changed.")
        columns = [
            self._read(self._decisions[name], name, len(batch))
            if name in self._decisions
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

    def _read(self, decision: _Decision, name: str, n: int) -> Floats:
        assert self._taps is not None
        key, reading = decision.site.key, self._taps[decision.site]
        rows = pool(reading.values, FEATURES[decision.features], unit_axis=reading.axes.units, image_axis=reading.axes.images, layer=key)
        try:
            values = np.asarray(decision.of(rows.cpu().numpy()), dtype=np.float64)
        except ValueError as error:
            raise InputError(
                f"Expected a probe {name!r} of the {rows.shape[1]} features of {key!r}, but: {str(error).rstrip('.')}."
            ) from error
        if values.shape != (n,):
            raise InputError(f"Expected the probe {name!r} to give one number for each of {n} images, but got {values.shape}.")
        return values

    def finish(self, collected: Collected) -> Found:
        return Found(collected, np.concatenate(self._found, axis=1))
