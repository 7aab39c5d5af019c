"""Fingerprints: short names for contents, so that a result says exactly what it was made from."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

_DIGEST_BYTES = 16


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
