"""Where the units are: the axis of a module's output that holds them.

It is never guessed from a shape. It follows from the modules that made the output (a convolution's channels are
axis 1, a linear layer's features the last axis), or the user says it with ``layout``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torchvision.models import maxvit, swin_transformer, vision_transformer
from torchvision.models.convnext import LayerNorm2d
from torchvision.ops import FrozenBatchNorm2d, Permute, SqueezeExcitation

from neuroprobe.exceptions import InputError, UnknownNameError, suggest

#: n images, c or d units, h and w or l positions; in "lnc" the tokens come before the images.
Layout: TypeAlias = Literal["nchw", "nhwc", "nlc", "lnc"]

#: The axis of the units in every layout.
UNIT_AXES: dict[str, int] = {"nchw": 1, "nhwc": 3, "nlc": 2, "lnc": 2}

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
    maxvit.MBConv,
    maxvit.WindowDepartition,
    maxvit.PartitionAttentionLayer,
    maxvit.MaxVitLayer,
    maxvit.MaxVitBlock,
)
_CHANNELS_LAST = (
    nn.Linear,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.Embedding,
    nn.MultiheadAttention,
    vision_transformer.EncoderBlock,
    swin_transformer.ShiftedWindowAttention,
    swin_transformer.SwinTransformerBlock,
    swin_transformer.PatchMerging,
    maxvit.WindowPartition,
    maxvit.RelativePositionalMultiHeadAttention,
)
#: Modules that get their input with the units on the last axis, whatever ran before them.
_TAKES_CHANNELS_LAST = (vision_transformer.Encoder,)


def check_layout(layout: object) -> None:
    """Raise `UnknownNameError` for what is no layout's name."""
    if not isinstance(layout, str) or layout not in UNIT_AXES:
        raise UnknownNameError(f"Expected a layout, but got {layout!r}. {suggest(str(layout), UNIT_AXES)}")


class Axes(NamedTuple):
    """The axes of the units and of the images in a tensor."""

    units: int
    images: int = 0


class UnitAxisTracker:
    """Follows a forward pass and knows which axis of the current tensor holds the units.

    Convolutions, batch norms and the like put them on axis 1; linear layers and layer norms on the last axis;
    `torchvision.ops.Permute` and MaxViT's SwapAxes move them; other modules (activations, dropout) leave them where they are.
    """

    def __init__(self) -> None:
        self._axis: int | None = None  # of the units in the last output of a module that fixes it, which has this shape
        self._shape: tuple[int, ...] = ()
        self._tokens_first = False

    @contextmanager
    def following(self, *models: nn.Module) -> Iterator[None]:
        """Hooks on the modules that decide; removed whatever happens."""
        modules = [module for model in models for module in model.modules()]
        # whether such a model keeps the images on axis 0 or 1 cannot be seen in a tensor of three axes
        self._tokens_first = any(isinstance(m, nn.MultiheadAttention) and not m.batch_first for m in modules)
        with ExitStack() as stack:
            for module in modules:
                if isinstance(module, _TAKES_CHANNELS_LAST):
                    stack.callback(module.register_forward_pre_hook(self._note_input).remove)
                hook = self._note_permuted if isinstance(module, (Permute, maxvit.SwapAxes)) else self._note(module)
                if hook is not None:
                    stack.callback(module.register_forward_hook(hook).remove)
            yield

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Follow something beside the forward pass, such as a function of an output, and come back to it."""
        state = self._axis, self._shape
        try:
            yield
        finally:
            self._axis, self._shape = state

    def _note(self, module: nn.Module) -> Callable[[nn.Module, Any, Any], None] | None:
        """The hook of a module that puts the units on a certain axis; a few instructions, as it runs in every forward."""
        if not isinstance(module, _CHANNELS_FIRST + _CHANNELS_LAST):
            return None
        axis = 1 if isinstance(module, _CHANNELS_FIRST) else -1  # channels first before last: LayerNorm2d is a LayerNorm
        if axis == -1 and len(getattr(module, "normalized_shape", ())) > 1:
            return None  # a norm over several axes says nothing about which of them holds the units
        own = _has_own_forward(module)

        def note(module: nn.Module, args: Any, output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output
            if isinstance(output, torch.Tensor) and output.ndim > 1:
                self._axis, self._shape = _seen_axis(module, output) if own and output.ndim > 3 else axis, output.shape
            else:  # of somebody's subclass
                self._axis = None

        return note

    def _note_input(self, module: nn.Module, args: Any) -> None:
        self._axis, self._shape = (-1, args[0].shape) if args else (None, ())

    def _note_permuted(self, module: nn.Module, args: Any, output: torch.Tensor) -> None:
        axis = self._axis_in(tuple(args[0].shape)) if args else None
        self._axis = None if axis is None else _order(module, output.ndim).index(axis)
        self._shape = output.shape

    def _axis_in(self, shape: tuple[int, ...]) -> int | None:
        """The axis of the units in a tensor made from the last output; None if the shapes leave it open."""
        if self._axis is None or not 3 <= len(shape) <= 5:
            return None
        axis, before = self._axis % len(shape), tuple(self._shape)
        n_units = before[self._axis]
        if len(shape) == len(before) and _without(shape, axis) == _without(before, axis):
            return axis  # as it was, or units concatenated or split
        return axis if shape[axis] == n_units and shape[1:].count(n_units) == 1 else None

    def _is_certain(self, shape: tuple[int, ...]) -> bool:
        """Whether only one axis of the shape can be the one the modules say."""
        return self._axis is not None and shape[1:].count(self._shape[self._axis]) == 1

    def axes(self, output: torch.Tensor, *, layer: str, layout: Layout | None = None) -> Axes:
        """The axes of the units and of the images in the output of `layer`, which has just run.

        Raises
        ------
        InputError
            They cannot be known, or what the user said does not fit.
        """
        if output.ndim == 2:
            return Axes(1)
        shape = tuple(output.shape)
        known = self._axis_in(shape)
        if layout is not None:
            return self._said(layout, known, shape, layer)
        if known is not None and not (self._tokens_first and output.ndim == 3):
            return Axes(known)
        raise InputError(
            f"Expected an output [n, units] or one whose axes follow from its modules, but {layer!r} gives {shape}. "
            f"Say where its units are: layout='nchw', 'nhwc', 'nlc' or 'lnc', or pass a pooling function."
        )

    def _said(self, layout: Layout, known: int | None, shape: tuple[int, ...], layer: str) -> Axes:
        if len(shape) != len(layout):
            raise InputError(f"Expected the output of {layer!r} to have {len(layout)} axes ({layout}), but its shape is {shape}.")
        if known is not None and known != UNIT_AXES[layout] and self._is_certain(shape):
            raise InputError(
                f"Expected a layout that fits {layer!r}, but got {layout!r}: its shape is {shape}, and by its modules the units are on "
                f"axis {known}. Leave `layout` out for it."
            )
        return Axes(UNIT_AXES[layout], layout.index("n"))


def _order(module: nn.Module, n_axes: int) -> list[int]:
    """Which axis of its input stands where in the output of a module that permutes axes."""
    order: Any = list(range(n_axes))
    if isinstance(module, maxvit.SwapAxes):
        order[module.a], order[module.b] = order[module.b], order[module.a]
        return list(order)
    dims: Any = module.dims
    return [order[dim] for dim in dims]


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def _has_own_forward(module: nn.Module) -> bool:
    """Whether it is somebody's layer norm, which may be one of maps with channels first, such as timm's LayerNorm2d."""
    return isinstance(module, nn.LayerNorm | nn.RMSNorm) and type(module).forward not in (
        nn.LayerNorm.forward,
        nn.RMSNorm.forward,
        LayerNorm2d.forward,
    )


def _seen_axis(module: nn.Module, output: torch.Tensor) -> int | None:
    """The axis of as many units as are normalized; None if it could be the second or the last."""
    (n_units,) = module.normalized_shape  # type: ignore[misc]
    found = [axis for axis in (1, -1) if output.shape[axis] == n_units]
    return found[0] if len(found) == 1 else None
