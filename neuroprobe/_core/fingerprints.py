"""Fingerprints: short names for contents, so that a result says exactly what it was made from.

A function of the user's is known by its name, its code, and the weights and values it holds: a name alone would give two
sparse autoencoders, or two lambdas, one identity.
"""

from __future__ import annotations

import functools
import hashlib
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

_DIGEST_BYTES = 16

#: Functions of these count with their names; what they do does not change with the user's code.
_LIBRARIES = ("torch", "torchvision", "numpy", "scipy", "PIL")


def fingerprint_bytes(data: bytes) -> str:
    """32 hexadecimal digits (BLAKE2b) of the data."""
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()


def fingerprint_texts(texts: Iterable[str]) -> str:
    """Fingerprint of a sequence of texts, order included."""
    return fingerprint_bytes(b"".join(len(data := text.encode(errors="surrogatepass")).to_bytes(8, "little") + data for text in texts))


def fingerprint_tensors(tensors: Mapping[str, Any]) -> str:
    """Fingerprint of named tensors: names, types, shapes and values; the order of the names does not matter."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for name in sorted(tensors):
        value = tensors[name]
        if not isinstance(value, torch.Tensor):
            digest.update(f"{name} {value!r}".encode())
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()


def fingerprint_model(model: nn.Module, *, counters: bool = True) -> str:
    """Fingerprint of a model: its class and its weights and buffers, never its name or its file.

    Without `counters`, the numbers of batches that batch norms have seen are left out: no output in evaluation mode depends on them.
    """
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    counts = [] if counters else [name for name, module in model.named_modules(remove_duplicate=False) if isinstance(module, _NormBase)]
    left_out = {f"{name}.num_batches_tracked".removeprefix(".") for name in counts}
    tensors = {name: value for name, value in model.state_dict().items() if name not in left_out}
    return fingerprint_texts([kind, fingerprint_tensors(tensors)])


def fingerprint_architecture(model: nn.Module) -> str:
    """Fingerprint of what a model's ``repr`` says: its modules and their settings, which weights alone do not show."""
    return fingerprint_texts([re.sub(r" at 0x[0-9a-fA-F]+", "", repr(model))])


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


def identify_function(function: Callable[..., Any]) -> str:
    """A function's name and, behind a "#", the fingerprint of what it does.

    Parameters
    ----------
    function : callable
        A function, lambda, ``functools.partial``, method, module, or an object that can be called.

    Returns
    -------
    str
        Equal for equal code with equal values: of modules their weights, of tensors and arrays their content, of objects
        that can be called their attributes. What cannot be looked into (a C function, any other object of the user's)
        counts with its name or its ``repr``.

    Examples
    --------
    >>> import torch
    >>> first, second = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    >>> identify_function(first) == identify_function(second)
    False
    """
    name = type(function).__qualname__ if isinstance(function, nn.Module) else describe_function(function)
    return f"{name}#{fingerprint_texts(_contents(function, set()))}"


def _contents(value: Any, seen: set[int]) -> Iterator[str]:
    """Texts that together tell a value from others, without addresses."""
    if isinstance(value, (types.FunctionType, types.MethodType, functools.partial, list, tuple, dict)):
        if id(value) in seen:
            return
        seen.add(id(value))
    if isinstance(value, nn.Module):
        yield from (fingerprint_model(value), repr(value))
    elif isinstance(value, torch.Tensor):
        yield fingerprint_tensors({"": value})
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype} {value.shape} {fingerprint_bytes(np.ascontiguousarray(value).tobytes())}"
    elif isinstance(value, types.FunctionType):
        yield from _contents_of_function(value, seen)
    else:
        yield from _contents_of_parts(value, seen)


def _contents_of_parts(value: Any, seen: set[int]) -> Iterator[str]:
    if isinstance(value, types.MethodType):
        parts: list[Any] = [value.__func__, value.__self__]
    elif isinstance(value, functools.partial):
        parts = [value.func, value.args, value.keywords]
    elif isinstance(value, dict):
        parts = [part for item in value.items() for part in item]
    elif isinstance(value, (list, tuple)):
        parts = list(value)
    elif isinstance(value, (set, frozenset)):
        parts = sorted(map(_without_address, value))
    elif callable(value) and not isinstance(value, type) and hasattr(value, "__dict__"):
        yield _without_address(type(value))
        parts = [type(value).__call__, vars(value)]
    else:
        yield describe_function(value) if callable(value) else _without_address(value)
        return
    yield f"{type(value).__name__} of {len(parts)}"
    for part in parts:
        yield from _contents(part, seen)


def _contents_of_function(function: types.FunctionType, seen: set[int]) -> Iterator[str]:
    yield describe_function(function)
    if function.__module__ and function.__module__.partition(".")[0] in _LIBRARIES:
        return
    yield from _contents_of_code(function.__code__)
    for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).items()):
        yield from _contents(value, seen)
    for cell in function.__closure__ or ():
        yield from _contents(_cell_value(cell), seen)
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        if not isinstance(value, (types.ModuleType, type, types.BuiltinFunctionType)):
            yield from _contents(value, seen)


def _contents_of_code(code: types.CodeType) -> Iterator[str]:
    yield from (code.co_code.hex(), repr(code.co_names))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _contents_of_code(constant)
        else:  # a set's order differs from process to process
            yield repr(sorted(map(repr, constant))) if isinstance(constant, frozenset) else repr(constant)


def _cell_value(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name of the enclosing function that has no value yet
        return None


def _without_address(value: object) -> str:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return kind if type(value).__repr__ is object.__repr__ else f"{kind} {value!r}"
