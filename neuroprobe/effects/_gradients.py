"""Gradients: how outputs of a model change when what a layer gives is moved along a direction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from numbers import Integral
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from neuroprobe.exceptions import InputError, UnknownNameError
from neuroprobe.images import BatchRecord, Collected, Images, Transform, collect
from neuroprobe.models import Axes, Direction, Layout, UnitAxisTracker, check_layers, check_layout, device_of, evaluating, pool

#: An output's number, or a function of what the model returns that gives one number per image.
Output: TypeAlias = "int | Callable[[Any], torch.Tensor]"

_FEATURES = ("pooled", "spatial")


def directional_derivatives(
    model: nn.Module,
    images: Images,
    directions: Sequence[Direction],
    *,
    outputs: Mapping[str, Output],
    transform: Transform,
    layout: Layout | None = None,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool | None = None,
) -> npt.NDArray[np.float64]:
    """How fast each output rises when a layer's activations move along a direction, at the activations of every image.

    A direction of pooled features moves every position alike; one of spatial features moves each position by its own weights.
    In evaluation mode; the model is left as it was found, its gradients too.

    Parameters
    ----------
    model, images, directions, outputs, transform, layout, batch_size, workers, progress
        As in `neuroprobe.effects._tcav.tcav`.

    Returns
    -------
    ndarray, [n_directions, n_outputs, n_images]
        Of the directions at length 1.

    Raises
    ------
    InputError
        Directions that do not fit their layer, a layer that runs never or several times or gives no tensor, an output that does
        not depend on it, or outputs that the model does not have.
    UnknownNameError
        A layer that the model does not have.
    """
    if not directions or not outputs:
        raise InputError(f"Expected at least one direction and one output, but got {len(directions)} and {len(outputs)}.")
    if layout is not None:
        check_layout(layout)
    consumer = _Derivatives(model, directions, outputs, transform, layout)
    (found,) = collect(images, [consumer], batch_size=batch_size, workers=workers, progress=progress, description="gradients")
    return np.asarray(found)


class _Derivatives:
    """A consumer that takes the gradients of the outputs with respect to layers, and multiplies them with the directions."""

    def __init__(
        self, model: nn.Module, directions: Sequence[Direction], outputs: Mapping[str, Output], transform: Transform, layout: Layout | None
    ) -> None:
        self.transform = transform
        self._model, self._outputs, self._layout, self._n = model, dict(outputs), layout, len(directions)
        self._layers = check_layers(model, list(dict.fromkeys(direction.layer for direction in directions)))
        self._places: dict[tuple[str, str], list[int]] = {}
        for i, direction in enumerate(directions):
            if direction.features not in _FEATURES:
                raise UnknownNameError(f"Expected features 'pooled' or 'spatial', but got {direction.features!r}.")
            self._places.setdefault((direction.layer, direction.features), []).append(i)
        self._vectors = {key: _stacked([directions[i] for i in places]) for key, places in self._places.items()}
        self._found: list[npt.NDArray[np.float64]] = []

    def consume(self, batch: torch.Tensor, record: BatchRecord) -> None:
        found = np.empty((self._n, len(self._outputs), len(batch)))
        with torch.inference_mode(False), torch.enable_grad(), evaluating(self._model):
            moved = MovedOutputs(self._model, self._layers, self._layout)
            with moved.following():
                # a batch made in inference mode cannot be saved for a gradient
                returned = self._model((batch.clone() if batch.is_inference() else batch).to(device_of(self._model)))
            for o, (name, output) in enumerate(self._outputs.items()):
                value = output_values(returned, output, name, len(batch))
                for layer, gradient in moved.gradients(value).items():
                    self._multiply(layer, gradient, moved.axes[layer], found[:, o])
        self._found.append(found)

    def _multiply(self, layer: str, gradient: torch.Tensor, axes: Axes, found: npt.NDArray[np.float64]) -> None:
        rows = pool(gradient, "none", unit_axis=axes.units, image_axis=axes.images, layer=layer)  # [n, units * positions]
        n_units = gradient.shape[axes.units]
        for (of, features), places in self._places.items():
            if of != layer:
                continue
            part = rows.reshape(len(rows), n_units, -1).sum(-1) if features == "pooled" else rows
            vectors = self._vectors[of, features].to(part)
            if vectors.shape[1] != part.shape[1]:
                raise InputError(
                    f"Expected directions of {layer!r} with {part.shape[1]} {features} features, but got one with {vectors.shape[1]}: "
                    "they are of another layer, another model or another size of image."
                )
            found[places] = (vectors @ part.T).double().cpu().numpy()

    def finish(self, collected: Collected) -> npt.NDArray[np.float64]:
        return np.concatenate(self._found, axis=2)


class MovedOutputs:
    """Nothing is added to what some layers give, so that there is something to take the gradient with respect to."""

    def __init__(self, model: nn.Module, layers: Sequence[str], layout: Layout | None) -> None:
        self._model, self._layers, self._layout = model, layers, layout
        self._added: dict[str, torch.Tensor] = {}
        self.axes: dict[str, Axes] = {}

    @contextmanager
    def following(self) -> Iterator[None]:
        """Hooks on the layers; removed whatever happens."""
        modules, tracker = dict(self._model.named_modules(remove_duplicate=False)), UnitAxisTracker()
        with ExitStack() as stack:
            stack.enter_context(tracker.following(self._model))
            for layer in self._layers:
                stack.callback(modules[layer].register_forward_hook(self._hook(layer, tracker)).remove)
            yield
        missing = [layer for layer in self._layers if layer not in self._added]
        if missing:
            raise InputError(f"Expected {missing[0]!r} to run in a forward pass, but it does not.")

    def _hook(self, layer: str, tracker: UnitAxisTracker) -> Callable[[nn.Module, Any, Any], torch.Tensor]:
        def add_nothing(module: nn.Module, args: Any, output: Any) -> torch.Tensor:
            if not isinstance(output, torch.Tensor):
                raise InputError(f"Expected {layer!r} to return a tensor, but it gives a {type(output).__name__}. Take a module inside it.")
            if layer in self._added:
                raise InputError(f"Expected {layer!r} to run once in a forward pass, but it runs again. Take a module around it.")
            self.axes[layer] = tracker.axes(output, layer=layer, layout=self._layout if output.ndim > 2 else None)
            self._added[layer] = torch.zeros_like(output, requires_grad=True)
            return output + self._added[layer]

        return add_nothing

    def gradients(self, value: torch.Tensor) -> dict[str, torch.Tensor]:
        """The gradient of every image's value [n], by layer, in the layer's shape."""
        tensors = list(self._added.values())
        if not value.requires_grad:
            found: Sequence[torch.Tensor | None] = [None] * len(tensors)
        else:
            found = torch.autograd.grad(value.sum(), tensors, retain_graph=True, allow_unused=True)
        for layer, gradient in zip(self._added, found, strict=True):
            if gradient is None:
                raise InputError(f"Expected an output that depends on {layer!r}, but this one does not.")
        return {layer: gradient for layer, gradient in zip(self._added, found, strict=True) if gradient is not None}


def _stacked(directions: Sequence[Direction]) -> torch.Tensor:
    """Unit vectors [n_directions, n_features]."""
    lengths = {len(direction.weights) for direction in directions}
    if len(lengths) > 1:
        one = directions[0]
        raise InputError(f"Expected directions of {one.layer!r} with equally many {one.features} features, but got {sorted(lengths)}.")
    return torch.from_numpy(np.stack([direction.unit_vector for direction in directions]))


def output_values(returned: Any, output: Output, name: str, n: int) -> torch.Tensor:
    """An output of a model for each of n images, [n].

    Raises
    ------
    InputError
        The model has no such output, or the function gives anything but a number for each image.
    """
    if not callable(output) and (isinstance(output, bool) or not isinstance(output, Integral)):
        raise InputError(f"Expected an output's number or a function of what the model returns, but got {name} = {output!r:.60}.")
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
