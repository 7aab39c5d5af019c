"""Pooling: how a module's output becomes one row of units per image.

Which axis holds the units is the matter of `axes.py`. Means are computed in float32 whatever the
model's precision, so that values of bfloat16 do not collapse into ties.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch

from neuroprobe._core import describe_function
from neuroprobe.exceptions import InputError, UnknownNameError, suggest
from neuroprobe.models.axes import Axes

PoolingName: TypeAlias = Literal["mean", "max", "class_token", "mean_tokens", "none"]
#: A name, ``("token", i)`` for the i-th token, or a function of the user's.
Pooling: TypeAlias = "PoolingName | tuple[Literal['token'], int] | Callable[[torch.Tensor], torch.Tensor]"

_NARROW = (torch.float16, torch.bfloat16)


def check_pooling(pooling: Pooling) -> None:
    """Raise `UnknownNameError` for an unknown name, `InputError` for what is no pooling at all."""
    if isinstance(pooling, str):
        if pooling not in POOLINGS:
            raise UnknownNameError(f"Expected a pooling's name or a function, but got {pooling!r}. {suggest(pooling, POOLINGS)}")
    elif not callable(pooling) and not _is_token(pooling):
        raise InputError(f"Expected a pooling's name, ('token', 3) or a function, but got {pooling!r}. Names: {', '.join(POOLINGS)}.")


def _is_token(pooling: object) -> bool:
    return isinstance(pooling, tuple) and len(pooling) == 2 and pooling[0] == "token" and type(pooling[1]) is int and pooling[1] >= 0


def describe_pooling(pooling: Pooling) -> str:
    """The name under which a result remembers its pooling, with its parameters."""
    if isinstance(pooling, tuple):
        return f"token {pooling[1]}"
    return pooling if isinstance(pooling, str) else describe_function(pooling)


def pool(output: torch.Tensor, pooling: Pooling, *, unit_axis: int, image_axis: int = 0, layer: str = "the module") -> torch.Tensor:
    """One row of units per image.

    Parameters
    ----------
    output : Tensor, [n, ...]
        A module's output.
    pooling : {"mean", "max", "class_token", "mean_tokens", "none"}, ("token", i) or callable
        "mean" and "max" are over all positions; "none" keeps every position as a unit of its own (units vary
        slowest: [n, units * positions]). Of tokens [n, tokens, d], "class_token" is the first (``("token", 0)``),
        ``("token", i)`` the i-th, and "mean_tokens" the mean over all but the first, the image's patches in a network
        with a class token ("mean" takes the class token in). Rows [n, units] stay as they are. A function gets the
        output as it is and returns [n, units].
    unit_axis : int
        The axis of the units in `output`.
    image_axis : int, default 0
        The axis of the images; 1 in [tokens, n, d].
    layer : str
        What errors call the module.

    Returns
    -------
    Tensor, [n, units], float32
        Never a view of `output`, which a later in-place operation may overwrite.

    Raises
    ------
    InputError
        A token that is not there, an output without tokens, or a function that returns anything but rows.
    """
    if output.is_complex():
        raise InputError(f"Expected real values from {layer!r}, but got {output.dtype}. Give a pooling function that takes its abs().")
    if callable(pooling):
        rows = _checked(pooling(output), output.shape[image_axis])
    else:
        named, axes = output.transpose(0, image_axis), Axes(unit_axis)
        if output.ndim == 2:
            rows = output
        elif isinstance(pooling, tuple):
            rows = tokens_of(named, f"token {pooling[1]}", axes, layer=layer)
        else:
            rows = POOLINGS[pooling](named, axes, layer)
    rows = rows.to(torch.float32)
    shares = rows.untyped_storage().data_ptr() == output.untyped_storage().data_ptr()
    return rows.clone() if shares else rows


def _checked(rows: object, n: int) -> torch.Tensor:
    if not isinstance(rows, torch.Tensor) or rows.ndim != 2 or rows.shape[0] != n:
        shape = tuple(rows.shape) if isinstance(rows, torch.Tensor) else type(rows).__name__
        raise InputError(f"Expected the pooling function to return [{n}, units], but got {shape}.")
    return rows


def _mean(output: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    """Of positions added half by half: unlike those of `torch.mean`, a unit's bits depend neither on its number nor on how memory lies."""
    values = output.movedim(axes, tuple(range(1, 1 + len(axes)))).flatten(1, len(axes))  # [n, positions, ...]
    if output.dtype in _NARROW or not output.is_floating_point():
        values = values.to(torch.float32)
    n_positions = n_left = values.shape[1]
    while n_left > 1:
        n_left, half = n_left - n_left // 2, n_left // 2
        added = values[:, :half] + values[:, n_left : n_left + half]
        values = added if half == n_left else torch.cat([added, values[:, half:n_left]], dim=1)
    return values.sum(1) / n_positions


def tokens_of(output: torch.Tensor, tokens: str, axes: Axes, *, layer: str) -> torch.Tensor:
    """Some of the tokens of an output [n, tokens, units] or [tokens, n, units], a view of it: one is [n, units], several keep their axis.

    They are called as in `neuroprobe.Site`. `InputError` for an output without tokens, or a token that is not there.
    """
    shape, axis = tuple(output.shape), 1 - axes.images
    if output.ndim != 3 or axes.units % 3 != 2:
        raise InputError(
            f"Expected tokens [n, tokens, units] from {layer!r} to take {tokens!r}, but got {shape}. "
            "Take 'mean' or 'max' for it, or leave the layer out."
        )
    if tokens == "patches":
        if shape[axis] < 2:
            raise InputError(f"Expected tokens beside the class token in {layer!r} to take 'patches', but got {shape}.")
        return output.narrow(axis, 1, shape[axis] - 1)
    index = 0 if tokens == "class_token" else int(tokens.split()[1])
    if index >= shape[axis]:
        raise InputError(f"Expected a token from 0 to {shape[axis] - 1} of {layer!r}, but got {index}: its output's shape is {shape}.")
    return output.select(axis, index)


def _positions(output: torch.Tensor, axes: Axes) -> tuple[int, ...]:
    return tuple(axis for axis in range(1, output.ndim) if axis != axes.units % output.ndim)


#: By name, how an output of more than two axes, images first, becomes rows: a function of it, its axes, and the layer for messages.
POOLINGS: dict[str, Callable[[torch.Tensor, Axes, str], torch.Tensor]] = {
    "mean": lambda output, axes, layer: _mean(output, _positions(output, axes)),
    "max": lambda output, axes, layer: output.amax(_positions(output, axes)),
    "class_token": lambda output, axes, layer: tokens_of(output, "class_token", axes, layer=layer),
    "mean_tokens": lambda output, axes, layer: _mean(tokens_of(output, "patches", axes, layer=layer), (1,)),
    "none": lambda output, axes, layer: output.movedim(axes.units, 1).flatten(1),
}

#: How each kind of features is recorded.
FEATURES: dict[str, PoolingName] = {"pooled": "mean", "spatial": "none"}
