"""What a module returned: described in words, and the one tensor of it that the user wants."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch

from neuroprobe.exceptions import InputError

#: A position, a key or a field's name, or a function from the whole output to the tensor.
Selection: TypeAlias = "int | str | Callable[[Any], torch.Tensor]"


def choices(output: Any) -> dict[int | str, Any]:
    """The parts of an output by what selects them: positions, keys, or a named tuple's fields."""
    if isinstance(output, Mapping):
        return dict(output)
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return dict(zip(output._fields, output, strict=True))
    return dict(enumerate(output)) if isinstance(output, (tuple, list)) else {}


def describe_output(output: Any) -> str:
    """An output in words: the shape of a tensor, the parts of a tuple or a dict.

    Examples
    --------
    >>> describe_output((torch.zeros(2, 3), None))
    'tuple (0: (2, 3), 1: None)'
    """
    if isinstance(output, torch.Tensor):
        return str(tuple(output.shape))
    parts = choices(output)
    if output is None or not parts:
        return "None" if output is None else type(output).__name__
    shown = [f"{key!r}: {describe_output(part)}" for key, part in list(parts.items())[:8]]
    return f"{type(output).__name__} ({', '.join(shown)}{', ...' if len(parts) > 8 else ''})"


def select_output(output: Any, selection: Selection | None, *, layer: str, side: str = "output") -> torch.Tensor:
    """The tensor that the user means of what `layer` returned; without a selection the output itself, or its one tensor beside None.

    With ``side="input"`` it is what the layer got, for messages.

    Raises
    ------
    InputError
        There is no such part, or what is there is no tensor; the message names the parts.
    """
    key = _key(output, selection, layer, side)
    part = output if key is None else key(output) if callable(key) else _parts(output)[key]
    if not isinstance(part, torch.Tensor):
        raise InputError(
            f"Expected the selection {selection!r} of {layer!r} to be a tensor, but it is {describe_output(part)} of "
            f"{describe_output(output)}. {_advice(output, layer, side)}"
        )
    return part


def put_back(output: Any, selection: Selection | None, new: torch.Tensor, *, layer: str) -> Any:
    """The same tuple or dict with another tensor in the selected place; the model's own stays as it is."""
    key = _key(output, selection, layer)
    if key is None:
        return new
    if isinstance(output, Mapping):
        changed: Any = copy.copy(output)
        changed[key] = new
        return changed
    keys = list(choices(output))
    place = keys.index(key) if key in keys else key  # a named tuple's field, or its position
    parts = [new if i == place else one for i, one in enumerate(output)]
    return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)


def _parts(output: Any) -> dict[Any, Any]:
    """What may be selected: the parts by key, and those of a named tuple by position too."""
    parts = choices(output)
    return parts if isinstance(output, Mapping) else {**dict(enumerate(parts.values())), **parts}


def _key(output: Any, selection: Selection | None, layer: str, side: str = "output") -> Any:
    """What selects the tensor: None for the output itself; where nothing is said, the only one beside None."""
    verb = "get" if side == "input" else "return"
    if selection is None:
        if isinstance(output, torch.Tensor):
            return None
        there = {key: part for key, part in choices(output).items() if part is not None}
        if len(there) == 1 and isinstance(next(iter(there.values())), torch.Tensor):
            return next(iter(there))
        raise InputError(f"Expected {layer!r} to {verb} a tensor, but it {verb}s {describe_output(output)}. {_advice(output, layer, side)}")
    if not callable(selection) and selection not in _parts(output):
        raise InputError(
            f"Expected a part of what {layer!r} {verb}s, but got {selection!r}; it {verb}s {describe_output(output)}. "
            f"{_advice(output, layer, side)}"
        )
    return selection


def _advice(output: Any, layer: str, side: str) -> str:
    site = f"Site({layer!r}, side='input', select=" if side == "input" else f"Site({layer!r}, select="
    tensors = [key for key, part in choices(output).items() if isinstance(part, torch.Tensor)]
    if isinstance(output, torch.Tensor):
        return "Leave `select` out."
    if not tensors:
        return f"Give a function that takes the tensor out of it, {site}function), or take a module inside it."
    return f"Say which part: {' or '.join(f'{site}{key!r})' for key in tensors[:4])}."
