"""Temporary states of a model's forward: evaluation mode, mixed precision; and where a model is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, TypeAlias

import torch
from torch import nn

from neuroprobe.exceptions import InputError

Precision: TypeAlias = 'torch.dtype | Literal["bfloat16", "float16"]'

_PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters are; the CPU if it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; every module's own training flag comes back."""
    flags = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, training in flags:
            module.training = training


def check_precision(autocast: Precision | None) -> torch.dtype | None:
    """The type of number that `autocast` names.

    Raises
    ------
    InputError
        It is neither bfloat16 nor float16.
    """
    dtype = _PRECISIONS.get(autocast) if isinstance(autocast, str) else autocast
    if autocast is not None and dtype not in _PRECISIONS.values():
        raise InputError(f"Expected `autocast` to be 'bfloat16', 'float16' or None, but got {autocast!r}.")
    return dtype


def autocasting(model: nn.Module, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Mixed precision on the model's device for a while; nothing at all if `dtype` is None."""
    return nullcontext() if dtype is None else torch.autocast(device_of(model).type, dtype=dtype)
