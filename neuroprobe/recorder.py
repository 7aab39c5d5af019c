"""ActivationRecorder: hooks on, hooks off; one pass over images.

The model is left exactly as found: hooks removed, training flags restored, the random state untouched, also after
an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from neuroprobe.activations import Activations
from neuroprobe.collection import Transform, collect
from neuroprobe.exceptions import InputError, UnknownNameError, suggest
from neuroprobe.images import Images
from neuroprobe.pooling import UNIT_AXES, Layout, Pooling, UnitAxisTracker, check_pooling, pool

if TYPE_CHECKING:
    from neuroprobe.forward_pass import ForwardPass


class Tape(Mapping[str, torch.Tensor]):
    """What has been recorded so far: layer -> [n_images, n_units], float32, on the CPU."""

    def __init__(self, layers: Sequence[str]) -> None:
        self._chunks: dict[str, list[torch.Tensor]] = {layer: [] for layer in layers}
        self._in_forward = False
        self._reached: set[str] = set()

    def __getitem__(self, layer: str) -> torch.Tensor:
        if layer not in self._chunks:
            raise UnknownNameError(f"Expected a recorded layer, but got {layer!r}. {suggest(layer, self._chunks)}")
        if not self._chunks[layer]:
            raise UnknownNameError(
                f"Expected a forward pass through {layer!r}, but it was never reached. Run the model inside the `with` block; "
                "if you did, this layer takes no part in its forward."
            )
        return torch.cat(self._chunks[layer])

    def __iter__(self) -> Iterator[str]:
        return iter(self._chunks)

    def __len__(self) -> int:
        return len(self._chunks)

    def __contains__(self, layer: object) -> bool:
        return layer in self._chunks

    def _start_forward(self) -> None:
        self._in_forward = True
        self._reached.clear()

    def _append(self, layer: str, rows: torch.Tensor) -> None:
        if self._in_forward and layer in self._reached:
            raise InputError(
                f"Expected {layer!r} to run once in a forward pass, but it runs several times. Record the modules around it instead."
            )
        self._reached.add(layer)
        self._chunks[layer].append(rows)


class ActivationRecorder:
    """Records the outputs of a model's modules.

    Parameters
    ----------
    model : torch.nn.Module
    layers : sequence of str
        Exact names, as in ``model.named_modules()``; never a prefix or a pattern.
    pooling : {"mean", "max", "none"} or callable, default "mean"
        How a module's output becomes one row per image; see `neuroprobe.pooling.pool`. "none" keeps every
        position ("spatial" features).
    layout : {"nchw", "nhwc", "nlc"}, optional
        Where the units of outputs with more than two axes are; by default it follows from the modules' types.

    Raises
    ------
    UnknownNameError
        A layer the model does not have; the message names the nearest ones.
    InputError
        No layers, or one twice.

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

    def __init__(self, model: nn.Module, layers: Sequence[str], *, pooling: Pooling = "mean", layout: Layout | None = None) -> None:
        check_pooling(pooling)
        if layout is not None and layout not in UNIT_AXES:
            raise UnknownNameError(f"Expected a layout, but got {layout!r}. {suggest(str(layout), UNIT_AXES)}")
        self.model = model
        self.layers = check_layers(model, layers)
        self.pooling: Pooling = pooling
        self.layout: Layout | None = layout

    @contextmanager
    def recording(self) -> Iterator[Tape]:
        """Record every forward pass made inside the ``with`` block, whoever makes it.

        Rows of several forward passes follow each other. Gradients are not recorded.
        """
        tape, tracker = Tape(self.layers), UnitAxisTracker()
        modules = dict(self.model.named_modules())
        with ExitStack() as stack:
            stack.enter_context(tracker.following(self.model))
            stack.callback(self.model.register_forward_pre_hook(lambda module, args: tape._start_forward()).remove)
            for layer in self.layers:
                stack.callback(modules[layer].register_forward_hook(self._hook(layer, tape, tracker)).remove)
            yield tape

    def _hook(self, layer: str, tape: Tape, tracker: UnitAxisTracker) -> Callable[[nn.Module, Any, Any], None]:
        def record(module: nn.Module, args: Any, output: Any) -> None:
            if not isinstance(output, torch.Tensor):
                raise InputError(
                    f"Expected {layer!r} to return a tensor, but it returns {type(output).__name__}. Record a module inside it instead."
                )
            output = output.detach()
            axis = 1 if callable(self.pooling) else tracker.unit_axis(output, layer=layer, layout=self.layout)
            tape._append(layer, pool(output, self.pooling, unit_axis=axis).cpu())

        return record

    def record(
        self,
        images: Images,
        *,
        transform: Transform,
        batch_size: int = 64,
        workers: int = 0,
        progress: bool | None = None,
    ) -> Activations:
        """Record a whole probing set, in evaluation mode and without gradients, on the model's own device.

        Parameters
        ----------
        images : Images
        transform : callable
            From a PIL image to the model's input, without the batch axis; for torchvision's pretrained models,
            ``weights.transforms()``.
        batch_size, workers, progress
            As in `neuroprobe.collection.collect`.

        Returns
        -------
        Activations
        """
        (activations,) = collect(
            images, [self.consumer(transform)], batch_size=batch_size, workers=workers, progress=progress, description="record"
        )
        return activations  # type: ignore[no-any-return]

    def consumer(self, transform: Transform) -> ForwardPass:
        """This recorder as a consumer of `neuroprobe.collection.collect`, whose result is the `Activations`.

        So that images are decoded once for it and for whatever else wants them.
        """
        from neuroprobe.forward_pass import ForwardPass

        return ForwardPass({"": self}, transform, unwrap=True)


def check_layers(model: nn.Module, layers: Sequence[str]) -> tuple[str, ...]:
    """The layers as a tuple, if every one is a module of the model and none is there twice.

    Raises
    ------
    UnknownNameError, InputError
    """
    if isinstance(layers, str):
        raise InputError(f"Expected `layers` to be a list of names, but got the single name {layers!r}. Write [{layers!r}].")
    layers = tuple(layers)
    known = [name for name, _ in model.named_modules() if name]
    for layer in layers:
        if layer not in known:
            raise UnknownNameError(
                f"Expected `layers` to be module names of {type(model).__name__}, but got {layer!r}. {suggest(str(layer), known)}"
            )
    if not layers or len(set(layers)) < len(layers):
        raise InputError(f"Expected `layers` to name at least one layer, each once, but got {list(layers)}.")
    return layers
