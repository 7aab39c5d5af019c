"""The one loop of the scorers for which torch's operators are several times too slow: on a CPU numba runs it, if installed."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

_SMALLEST_PRODUCT = 1e-36  # a normal float32
_WORTH_COMPILING = 30_000_000  # factors; to compile takes as long as torch takes for some times as many
_UNITS = 4096  # worked on at a time
_LONGEST_PRODUCT = 64  # a factor is at most 2, so that these do not overflow


def sum_of_logs(
    probabilities: torch.Tensor, rows: torch.Tensor, *, slopes: torch.Tensor, floors: torch.Tensor, numba: bool | None = None
) -> torch.Tensor:
    """sum_i log(floors[i] + slopes[i] * probabilities[rows[u, i], c]) for every unit u and column c.

    As many factors as stay in float32's range are multiplied before their logarithm is taken. Numba does it, by default, where it is
    installed, the tensors are on the CPU and the factors are many.

    Parameters
    ----------
    probabilities : Tensor, float32 [n_images, n_columns]
        In [0, 1].
    rows : LongTensor, [n_units, k]
    slopes, floors : Tensor, float64 [k]
        Each at least 0, and at most 2 together.

    Returns
    -------
    Tensor, float32 [n_units, n_columns]
    """
    if len(rows) > _UNITS:
        parts = [rows[start : start + _UNITS] for start in range(0, len(rows), _UNITS)]
        return torch.cat([sum_of_logs(probabilities, part, slopes=slopes, floors=floors, numba=numba) for part in parts])
    ends = _group_ends(floors.tolist())
    if numba is None:
        worth = rows.numel() * probabilities.shape[1] >= _WORTH_COMPILING and probabilities.device.type == "cpu"
        numba = worth and importlib.util.find_spec("numba") is not None
    if numba:
        return _by_numba(probabilities, rows, slopes, floors, ends)
    return _by_torch(probabilities, rows, slopes.tolist(), floors.tolist(), ends)


def _group_ends(lowest: list[float]) -> list[bool]:
    """After which factors the logarithm is due, so that no product underflows, given the lowest value of each."""
    ends = [False] * len(lowest)
    product, length = 1.0, 0
    for i, value in enumerate(lowest):
        product, length = product * value, length + 1
        following = lowest[i + 1] if i + 1 < len(lowest) else 0.0
        if product * following < _SMALLEST_PRODUCT or length == _LONGEST_PRODUCT:
            ends[i], product, length = True, 1.0, 0
    return ends


def _by_torch(probabilities: torch.Tensor, rows: torch.Tensor, slopes: list[float], floors: list[float], ends: list[bool]) -> torch.Tensor:
    by_rank = rows.T.contiguous()  # [k, n_units]
    total = probabilities.new_zeros(by_rank.shape[1], probabilities.shape[1])
    product, factor = torch.ones_like(total), torch.empty_like(total)
    for images, slope, floor, end in zip(by_rank, slopes, floors, ends, strict=True):
        torch.index_select(probabilities, 0, images, out=factor)
        product.mul_(factor.mul_(slope).add_(floor))
        if end:
            total += product.log_()
            product.fill_(1)
    return total


def _by_numba(
    probabilities: torch.Tensor, rows: torch.Tensor, slopes: torch.Tensor, floors: torch.Tensor, ends: list[bool]
) -> torch.Tensor:
    """Products whose powers of two are kept apart, one logarithm at the end; the threads share the units."""
    mantissas = np.empty((len(rows), probabilities.shape[1]), np.float32)
    exponents = np.empty(mantissas.shape, np.int32)
    factors = (slopes.float().numpy(), floors.float().numpy(), np.array(ends))
    kernel = _compiled()
    inputs = (probabilities.contiguous().numpy(), rows.contiguous().numpy(), *factors, mantissas, exponents)
    n_threads = torch.get_num_threads()
    cuts = [len(rows) * i // n_threads for i in range(n_threads + 1)]
    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(lambda i: kernel(*inputs, cuts[i], cuts[i + 1]), range(n_threads)))
    return torch.from_numpy(mantissas).log_().add_(torch.from_numpy(exponents), alpha=float(np.log(2)))


@functools.cache
def _compiled() -> Callable[..., None]:
    import numba

    compiled: Callable[..., None] = numba.njit(nogil=True)(_products)
    return compiled


def _products(
    probabilities: Any, rows: Any, slopes: Any, floors: Any, ends: Any, mantissas: Any, exponents: Any, first: int, last: int
) -> None:
    """Products of factors [n_units, n_columns] of the units from `first` to `last`, as mantissa * 2 ** exponent."""
    n_columns = probabilities.shape[1]
    product = np.empty(n_columns, np.float32)
    bits = product.view(np.int32)
    for unit in range(first, last):
        exponent = exponents[unit]
        for j in range(n_columns):
            product[j] = np.float32(1)
            exponent[j] = 0
        for i in range(rows.shape[1]):
            row, slope, floor = probabilities[rows[unit, i]], slopes[i], floors[i]
            for j in range(n_columns):
                product[j] *= floor + slope * row[j]
            if ends[i]:
                for j in range(n_columns):
                    exponent[j] += (bits[j] >> 23) - 127
                    bits[j] = (bits[j] & 0x7FFFFF) | 0x3F800000
        for j in range(n_columns):
            mantissas[unit, j] = product[j]
