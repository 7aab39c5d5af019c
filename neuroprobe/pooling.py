"""Pooling: how a module's output becomes one row of units per image.

Which axis holds the units is never guessed from a shape. It follows from the modules that made the output (a
convolution's channels are axis 1, a linear layer's features the last axis), or the user says it with ``layout``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torchvision.models.convnext import LayerNorm2d
from torchvision.ops import FrozenBatchNorm2d, Permute, SqueezeExcitation

from neuroprobe.exceptions import InputError, UnknownNameError, suggest

PoolingName: TypeAlias = Literal["mean", "max", "none"]
Pooling: TypeAlias = "PoolingName | Callable[[torch.Tensor], torch.Tensor]"
Layout: TypeAlias = Literal["nchw", "nhwc", "nlc"]

#: The axis of the units in every layout.
UNIT_AXES: dict[str, int] = {"nchw": 1, "nhwc": 3, "nlc": 2}
_DIMENSIONS = {"nchw": 4, "nhwc": 4, "nlc": 3}

# [n, units, positions] -> [n, units'], by name
_POOLINGS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": lambda values: values.mean(dim=2),
    "max": lambda values: values.amax(dim=2),
    "none": lambda values: values.flatten(1),
}


def check_pooling(pooling: Pooling) -> None:
    """Raise `UnknownNameError` for a name that is none of "mean", "max" and "none"."""
    if isinstance(pooling, str) and pooling not in _POOLINGS:
        raise UnknownNameError(f"Expected a pooling's name or a function, but got {pooling!r}. {suggest(pooling, _POOLINGS)}")


def describe_pooling(pooling: Pooling) -> str:
    """The name under which a result remembers its pooling."""
    return pooling if isinstance(pooling, str) else describe_function(pooling)


def describe_function(function: Callable[..., Any]) -> str:
    """The name under which a result remembers a function of the user's, with its parameters where it shows them."""
    if isinstance(function, functools.partial):
        bound = [repr(a) for a in function.args] + [f"{key}={value!r}" for key, value in function.keywords.items()]
        return f"{describe_function(function.func)}({', '.join(bound)})"
    if hasattr(function, "__qualname__"):
        return f"{function.__module__}.{function.__qualname__}"
    if type(function).__repr__ is not object.__repr__:  # type: ignore[comparison-overlap]
        return repr(function)
    return f"{type(function).__module__}.{type(function).__qualname__}"


def pool(output: torch.Tensor, pooling: Pooling, *, unit_axis: int) -> torch.Tensor:
    """One row of units per image.

    Parameters
    ----------
    output : Tensor, [n, ...]
        A module's output.
    pooling : {"mean", "max", "none"} or callable
        Over all positions: their mean, their maximum, or every position kept as a unit of its own (units vary
        slowest: [n, units * positions]). A function gets the output as it is and returns [n, units].
    unit_axis : int
        The axis of the units in `output`.

    Returns
    -------
    Tensor, [n, units], float32
        Never a view of `output`, which a later in-place operation may overwrite.
    """
    if callable(pooling):
        rows = pooling(output)
        if not isinstance(rows, torch.Tensor) or rows.ndim != 2 or rows.shape[0] != output.shape[0]:
            shape = tuple(rows.shape) if isinstance(rows, torch.Tensor) else type(rows).__name__
            raise InputError(f"Expected the pooling function to return [{output.shape[0]}, units], but got {shape}.")
    else:
        values = output.movedim(unit_axis, 1)  # [n, ..., units, ...] -> [n, units, ...]
        rows = values if values.ndim == 2 else _POOLINGS[pooling](values.flatten(2))
    rows = rows.to(torch.float32)
    shares = rows.untyped_storage().data_ptr() == output.untyped_storage().data_ptr()
    return rows.clone() if shares else rows


@dataclass(frozen=True)
class _Origin:
    """What the last module that fixed where the units are returned: the axis of its units, and its shape."""

    axis: int
    shape: tuple[int, ...]

    def axis_in(self, shape: tuple[int, ...]) -> int | None:
        """The axis of the units in a tensor made from that output; None if the shapes leave it open."""
        axis, n_units = self.axis % len(shape), self.shape[self.axis]
        if len(shape) == len(self.shape) and _without(shape, axis) == _without(self.shape, axis):
            return axis  # as it was, or units concatenated or split
        return axis if shape[axis] == n_units and shape[1:].count(n_units) == 1 else None


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


class UnitAxisTracker:
    """Follows a forward pass and knows which axis of the current tensor holds the units.

    Convolutions, batch norms and the like put them on axis 1; linear layers and layer norms on the last axis;
    `torchvision.ops.Permute` moves them; other modules (activations, dropout) leave them where they are.
    """

    def __init__(self) -> None:
        self._last: _Origin | None = None

    @contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """Hooks on the modules that decide; removed whatever happens."""
        handles = [m.register_forward_hook(self._note) for m in model.modules() if isinstance(m, Permute) or _units_axis(m) is not None]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _note(self, module: nn.Module, args: Any, output: Any) -> None:
        axis = self._permuted(module, args[0]) if isinstance(module, Permute) else _units_axis(module)
        self._last = None if axis is None else _Origin(axis, tuple(output.shape))

    def _permuted(self, module: Permute, before: torch.Tensor) -> int | None:
        axis = self._axis_in(tuple(before.shape))
        return None if axis is None else [d % before.ndim for d in module.dims].index(axis)

    def _axis_in(self, shape: tuple[int, ...]) -> int | None:
        return None if self._last is None or not 3 <= len(shape) <= 5 else self._last.axis_in(shape)

    def unit_axis(self, output: torch.Tensor, *, layer: str, layout: Layout | None) -> int:
        """The axis of the units in the output of `layer`, which has just run.

        Raises
        ------
        InputError
            It cannot be known, or what the user said does not fit the shape.
        """
        shape = tuple(output.shape)
        if layout is not None and output.ndim > 2:
            if output.ndim != _DIMENSIONS[layout]:
                raise InputError(
                    f"Expected the output of {layer!r} to have {_DIMENSIONS[layout]} axes ({layout}), but its shape is {shape}."
                )
            return UNIT_AXES[layout]
        if output.ndim == 2:
            return 1
        axis = self._axis_in(shape)
        if axis is not None:
            return axis
        raise InputError(
            f"Expected an output [n, units] or one whose units' axis follows from its modules, but {layer!r} gives {shape}. "
            f"Say where its units are: layout='nchw', 'nhwc' or 'nlc', or pass a pooling function."
        )


_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    _NormBase,
    nn.GroupNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    FrozenBatchNorm2d,
    LayerNorm2d,
    SqueezeExcitation,
)
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding)


def _units_axis(module: nn.Module) -> int | None:
    """The axis on which a module of this type puts its units; None if it leaves them where they are."""
    if isinstance(module, _CHANNELS_FIRST):  # before channels last: LayerNorm2d is a LayerNorm
        return 1
    if len(getattr(module, "normalized_shape", ())) > 1:
        return None  # a norm over several axes says nothing about which of them holds the units
    return -1 if isinstance(module, _CHANNELS_LAST) else None
