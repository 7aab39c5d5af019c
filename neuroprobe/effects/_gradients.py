"""Gradients of outputs with respect to what layers give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from neuroprobe.exceptions import InputError
from neuroprobe.models import Axes, Layout, UnitAxisTracker


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
