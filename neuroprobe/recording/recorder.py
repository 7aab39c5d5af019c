"""ActivationRecorder: hooks on, hooks off; one pass over images.

The model is left exactly as found: hooks removed, training flags restored, the random state untouched, also after
an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import torch
from torch import nn

from neuroprobe._core import identify_function
from neuroprobe.exceptions import InputError, UnknownNameError, suggest
from neuroprobe.images import Images, Transform
from neuroprobe.models import (
    Layout,
    Pooling,
    Precision,
    Selection,
    Sites,
    UnitAxisTracker,
    check_layout,
    check_model,
    check_pooling,
    check_precision,
    describe_pooling,
    placed,
    pool,
    select_output,
)
from neuroprobe.models import check_layers as check_layers
from neuroprobe.recording._hooks import Hooks
from neuroprobe.recording._tape import Tape as Tape
from neuroprobe.recording.activations import Activations

if TYPE_CHECKING:
    from neuroprobe.recording._forward import ForwardPass
    from neuroprobe.recording._keepers import ValueType
    from neuroprobe.recording.summaries import ActivationSummary

#: A function (or module) from a module's output to units.
Units: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
_Value = TypeVar("_Value")


class ActivationRecorder:
    """Records the outputs of a model's modules.

    Parameters
    ----------
    model : torch.nn.Module
        Itself, not a DataParallel, compiled or scripted version of it.
    layers : sequence of str, or callable
        Exact names, as in ``model.named_modules()``, never a prefix or a pattern; or a function that says of a name and
        its module whether it is wanted. See `neuroprobe.block_layers` and `neuroprobe.all_layers`.
    pooling : {"mean", "max", "class_token", "mean_tokens", "none"}, ("token", i) or callable, default "mean"
        How a module's output becomes one row per image; see `neuroprobe.models.pooling.pool`. "none" keeps every
        position ("spatial" features).
    layout : {"nchw", "nhwc", "nlc", "lnc"} or mapping from layer, optional
        Where the units of outputs with more than two axes are; by default it follows from the modules' types.
    select : mapping from layer to int, str or callable, optional
        Which part is meant of an output that is a tuple or a dict.
    call : mapping from layer to int, optional
        Which call is meant, from 0, of a module that runs several times in a forward pass.
    units : callable or mapping from layer to callable, optional
        A function of a layer's output whose outputs are the units, such as a sparse autoencoder's encoder; a
        `torch.nn.Module` or any function, applied before pooling. What it gives has the layout [n, units] or as above.
    autocast : {"bfloat16", "float16"} or torch.dtype, optional
        Mixed precision of the forward pass. Pooling and `units` work in float32 all the same.

    Attributes
    ----------
    layers : tuple of str
    metadata : dict
        What tells this way of recording from others, apart from the model: all of the above by name, functions with
        a fingerprint of their code and weights.

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
        layout: Layout | Mapping[str, Layout] | None = None,
        select: Mapping[str, Selection] | None = None,
        call: Mapping[str, int] | None = None,
        units: Units | Mapping[str, Units] | None = None,
        autocast: Precision | None = None,
    ) -> None:
        check_pooling(pooling)
        check_model(model)
        self.model = model
        self.layers = check_layers(model, layers)
        self.pooling: Pooling = pooling
        self.layout = layout
        self.select = _by_layer(self.layers, "select", select)
        self.call = _by_layer(self.layers, "call", call)
        self.units = _by_layer(self.layers, "units", dict.fromkeys(self.layers, units) if callable(units) else units)
        self.autocast = check_precision(autocast)
        self._layouts = _by_layer(self.layers, "layout", dict.fromkeys(self.layers, layout) if isinstance(layout, str) else layout)
        for value in self._layouts.values():
            check_layout(value)
        _check_calls(self.call)
        _check_functions(self.units)

    @property
    def metadata(self) -> dict[str, Any]:
        """What tells this way of recording from others."""
        return {
            "pooling": identify_function(self.pooling) if callable(self.pooling) else describe_pooling(self.pooling),
            "layout": dict(self._layouts) if isinstance(self.layout, Mapping) else self.layout,
            "select": {layer: identify_function(s) if callable(s) else s for layer, s in self.select.items()},
            "call": dict(self.call),
            "units": {layer: identify_function(function) for layer, function in self.units.items()},
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
        hooks = Hooks({"": self}, stop_early=stop_early)
        with hooks.hooked():
            yield hooks.tapes[""]

    def rows(self, layer: str, output: Any, tracker: UnitAxisTracker) -> torch.Tensor:
        """The rows of units in what a layer returned just now, [n_images, n_units], float32."""
        values = select_output(output, self.select.get(layer), layer=layer).detach()
        if layer not in self.units:
            return self._pooled(layer, values, tracker)
        with tracker.aside():
            return self._pooled(layer, self._encoded(layer, values), tracker)

    def _pooled(self, layer: str, values: torch.Tensor, tracker: UnitAxisTracker) -> torch.Tensor:
        layout = self._layouts.get(layer)
        if callable(self.pooling):
            image_axis = layout.index("n") if layout and values.ndim > 2 else 0
            return pool(values, self.pooling, unit_axis=1, image_axis=image_axis, layer=layer)
        axes = tracker.axes(values, layer=layer, layout=layout)
        rows = pool(values, self.pooling, unit_axis=axes.units, image_axis=axes.images, layer=layer)
        return rows.cpu() if self.pooling == "none" else rows  # what is large does not wait on an accelerator

    def _encoded(self, layer: str, values: torch.Tensor) -> torch.Tensor:
        device = values.device.type
        values = values.float() if torch.is_autocast_enabled(device) else values
        with torch.no_grad(), torch.autocast(device, enabled=False):
            units = self.units[layer](values)
        if not isinstance(units, torch.Tensor):
            raise InputError(f"Expected the `units` function of {layer!r} to return a tensor, but got {type(units).__name__}.")
        return units

    def record(
        self,
        images: Images,
        *,
        transform: Transform,
        store: str | Path | None = None,
        dtype: ValueType = "float32",
        device: str | torch.device | None = None,
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
            A folder that keeps the activations, so that nothing has to fit in memory (see `neuroprobe.recording.store`). A
            recording that was cut off goes on from there; one that is complete is opened, not made again. By default
            everything stays in memory.
        dtype : {"float32", "float16"}, default "float32"
            Of the kept values.
        device : str or torch.device, optional
            Where to run; the model goes there and comes back afterward. "auto" takes cuda, then mps, then the CPU.
            By default it runs where the model is.
        batch_size, workers, distributed, progress
            As in `neuroprobe.images.passes.collect`.

        Returns
        -------
        Activations

        Raises
        ------
        StoreError
            The store is of another recording (the message says what differs), in use, or cannot be written.
        """
        from neuroprobe.recording._record import record

        with placed(self.model, device):
            return record(
                self, images, transform=transform, store=store, dtype=dtype,
                batch_size=batch_size, workers=workers, distributed=distributed, progress=progress,
            )  # fmt: skip

    def summarize(
        self,
        images: Images,
        *,
        transform: Transform,
        k: int = 100,
        device: str | torch.device | None = None,
        batch_size: int = 64,
        workers: int = 0,
        distributed: bool = False,
        progress: bool | None = None,
    ) -> ActivationSummary:
        """Keep only what is worth knowing of every unit, in memory that does not grow with the number of images.

        Parameters
        ----------
        images, transform
            As in `record`.
        k : int, default 100
            How many of the highest, and of the lowest, images of every unit are kept.
        device
            As in `record`.
        batch_size, workers, distributed, progress
            As in `neuroprobe.images.passes.collect`.

        Returns
        -------
        ActivationSummary
            Highest and lowest images with their values, count, mean, variance and fraction active of every unit.
        """
        from neuroprobe.recording._record import summarize

        with placed(self.model, device):
            return summarize(
                self, images, transform=transform, k=k,
                batch_size=batch_size, workers=workers, distributed=distributed, progress=progress,
            )  # fmt: skip

    def consumer(self, transform: Transform) -> ForwardPass:
        """This recorder as a consumer of `neuroprobe.images.passes.collect`, whose result is the `Activations`.

        So that images are decoded once for it and for whatever else wants them.
        """
        from neuroprobe.recording._forward import ForwardPass

        return ForwardPass({"": self}, transform, unwrap=True)


def _by_layer(layers: tuple[str, ...], parameter: str, given: Mapping[str, _Value] | None) -> dict[str, _Value]:
    """A parameter that is a mapping from layer, if it names recorded layers only."""
    if given is not None and not isinstance(given, Mapping):
        raise InputError(f"Expected `{parameter}` to be a mapping from layer, but got {given!r}. Write {{{layers[0]!r}: ...}}.")
    for layer in given or {}:
        if layer not in layers:
            raise UnknownNameError(f"Expected `{parameter}` to name recorded layers, but got {layer!r}. {suggest(str(layer), layers)}")
    return dict(given or {})


def _check_calls(call: Mapping[str, int]) -> None:
    for layer, number in call.items():
        if type(number) is not int or number < 0:
            raise InputError(f"Expected `call` to hold numbers from 0, but got {number!r} for {layer!r}. The first call is 0.")


def _check_functions(units: Mapping[str, Units]) -> None:
    for layer, function in units.items():
        if not callable(function):
            raise InputError(f"Expected `units` to be a function or a mapping to functions, but got {function!r} for {layer!r}.")
