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
    """Where the model's parameters and buffers are; the CPU if it has none."""
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def resolve_device(device: str | torch.device) -> torch.device:
    """A torch device; "auto" is cuda, mps or cpu, the first there is.

    Raises
    ------
    InputError
        No such device.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if not isinstance(device, (str, torch.device)):
        raise InputError(f"Expected `device` to be a device of this machine such as 'cpu', 'cuda' or 'auto', but got {device!r:.60}.")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"Expected `device` to be a device of this machine such as 'cpu', 'cuda' or 'auto', but got {device!r} ({reason})."
        ) from error
    if resolved.type == "meta":
        raise InputError("Expected a device that computes such as 'cpu', 'cuda' or 'auto', but got 'meta', which holds no values.")
    return resolved


@contextmanager
def placed(model: nn.Module, device: str | torch.device) -> Iterator[None]:
    """The model on a device for a while, and then where it was.

    "auto" leaves it where it is, unless that is the CPU and there is an accelerator.

    Raises
    ------
    InputError
        No such device, or a model that is on several.
    """
    before, found = device_of(model), {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    if device == "auto" and (len(found) > 1 or before.type != "cpu"):
        yield
        return
    target = resolve_device(device)
    if len(found) > 1:
        raise InputError(f"Expected a model on one device, but it is on {sorted(map(str, found))}. Leave `device` out.")
    model.to(target)
    try:
        yield
    finally:
        model.to(before)


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
    """The type of number that `autocast` names; `InputError` if it is neither bfloat16 nor float16."""
    dtype = _PRECISIONS.get(autocast) if isinstance(autocast, str) else autocast
    if autocast is not None and dtype not in _PRECISIONS.values():
        raise InputError(f"Expected `autocast` to be 'bfloat16', 'float16' or None, but got {autocast!r}.")
    return dtype


def autocasting(model: nn.Module, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Mixed precision on the model's device for a while; nothing at all if `dtype` is None."""
    return nullcontext() if dtype is None else torch.autocast(device_of(model).type, dtype=dtype)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Every thread of ours computes alone, where threads would wait for each other: small matrices, small models.

    The bits of results do not depend on how many threads there are, either.
    """
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def batch_to(batch: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A batch on a device."""
    # images with their channels last make many convolutions faster (MobileNetV2 on a CPU: 1.6 times), and no model changes
    return batch.to(device, memory_format=torch.channels_last) if batch.ndim == 4 else batch.to(device)
