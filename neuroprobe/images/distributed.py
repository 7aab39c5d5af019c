"""Several processes on one pass: what torch.distributed does, and the little around it.

Start them with torchrun; here are only the process group's start and the exchange of results. Results travel as
arrays of numbers, never as pickles.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import distributed

from neuroprobe.exceptions import InputError


def rank_and_size(use: bool) -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) unless `use`, which without a process group raises `InputError`."""
    if not use:
        return 0, 1
    if not (distributed.is_available() and distributed.is_initialized()):
        raise InputError(
            "Expected a process group for distributed=True, but there is none. Start the program with torchrun and call "
            "torch.distributed.init_process_group first."
        )
    return distributed.get_rank(), distributed.get_world_size()


def started_by_torchrun() -> bool:
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


@contextmanager
def process_group() -> Iterator[bool]:
    """The process group of torchrun, for as long as the ``with`` block lasts; yields whether there is one.

    nccl where every process has a GPU of its own, gloo elsewhere. One that is there already is used and left.
    """
    running = distributed.is_available() and distributed.is_initialized()
    if running or not started_by_torchrun():
        yield running
        return
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    gpu = torch.cuda.is_available() and torch.cuda.device_count() > local_rank
    if gpu:
        torch.cuda.set_device(local_rank)
    distributed.init_process_group("nccl" if gpu else "gloo")
    try:
        yield True
    finally:
        distributed.destroy_process_group()


def gather_bytes(data: bytes) -> list[bytes]:
    """The data of every rank, in the order of the ranks."""
    tensor = torch.frombuffer(bytearray(data or b"\0"), dtype=torch.uint8)[: len(data)]
    return [part.numpy().tobytes() for part in gather_tensor(tensor)]


def gather_tensor(tensor: torch.Tensor) -> list[torch.Tensor]:
    """A tensor of every rank, on the CPU, in the order of the ranks; the first axes may differ in length.

    A rank without rows need not know what a row looks like.
    """
    tensor = tensor.contiguous().to(_exchange_device())
    shapes = [torch.zeros(tensor.ndim, dtype=torch.int64, device=tensor.device) for _ in range(distributed.get_world_size())]
    distributed.all_gather(shapes, torch.tensor(tensor.shape, device=tensor.device))
    lengths = [int(shape[0]) for shape in shapes]
    padded = tensor.new_zeros(max(shape.tolist() for shape in shapes))
    if len(tensor):
        padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in lengths]
    distributed.all_gather(parts, padded)
    return [part[:length].cpu() for part, length in zip(parts, lengths, strict=True)]


def in_batch_order(parts: Mapping[int, torch.Tensor], *, width: tuple[int, ...], dtype: torch.dtype, use: bool) -> torch.Tensor:
    """Rows kept by batch number, [n, ...] each, joined in the order of the batches; with `use` those of all ranks.

    A rank that has none knows a row by its shape, `width`, and `dtype`.
    """
    numbers = sorted(parts)
    rows = torch.cat([parts[number] for number in numbers]) if numbers else torch.empty(0, *width, dtype=dtype)
    if not use:
        return rows
    owners = torch.tensor([number for number in numbers for _ in range(len(parts[number]))], dtype=torch.int64)
    owner, all_rows = torch.cat(gather_tensor(owners)), torch.cat(gather_tensor(rows))
    return all_rows[torch.argsort(owner, stable=True)]


def _exchange_device() -> torch.device:
    return torch.device("cuda") if distributed.get_backend() == "nccl" else torch.device("cpu")
