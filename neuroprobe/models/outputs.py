"""What a module returned: described in words, and the one tensor of it that the user wants."""

from __future__ import annotations

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


def select_output(output: Any, selection: Selection | None, *, layer: str) -> torch.Tensor:
    """The tensor that the user means.

    Parameters
    ----------
    output : object
        What the module `layer` returned.
    selection : int, str, callable or None
        None where the output is a tensor itself.

    Raises
    ------
    InputError
        There is no such part, or what is there is no tensor; the message names the parts.
    """
    if selection is None and isinstance(output, torch.Tensor):
        return output
    if selection is None:
        raise InputError(f"Expected {layer!r} to return a tensor, but it returns {describe_output(output)}. {_advice(output, layer)}")
    part = selection(output) if callable(selection) else _part(output, selection, layer)
    if not isinstance(part, torch.Tensor):
        raise InputError(
            f"Expected the selection {selection!r} of {layer!r} to be a tensor, but it is {describe_output(part)} of "
            f"{describe_output(output)}. {_advice(output, layer)}"
        )
    return part


def _part(output: Any, selection: int | str, layer: str) -> Any:
    parts = choices(output)
    positions = dict(enumerate(parts.values()))
    if selection in parts:
        return parts[selection]
    if isinstance(selection, int) and not isinstance(output, Mapping) and selection in positions:  # a named tuple, by position
        return positions[selection]
    raise InputError(
        f"Expected a part of what {layer!r} returns, but got {selection!r}; it returns {describe_output(output)}. {_advice(output, layer)}"
    )


def _advice(output: Any, layer: str) -> str:
    tensors = [key for key, part in choices(output).items() if isinstance(part, torch.Tensor)]
    if isinstance(output, torch.Tensor):
        return f"Leave {layer!r} out of `select`."
    if not tensors:
        return f"Give a function that takes the tensor out of it, select={{{layer!r}: function}}, or record a module inside it."
    return f"Say which part: {' or '.join(f'select={{{layer!r}: {key!r}}}' for key in tensors[:4])}."
