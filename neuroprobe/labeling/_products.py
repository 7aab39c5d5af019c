"""Matrix products on a device, for the parts of this room that work on arrays."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from neuroprobe._core import Floats
from neuroprobe.models import resolve_device

_VALUES = 1 << 23  # of the matrix, converted at a time: 64 MB of float64


def float64_device(device: str | torch.device) -> torch.device:
    """The device, "auto" for the best there is; the CPU in place of one without float64 (mps)."""
    resolved = resolve_device(device)
    return torch.device("cpu") if resolved.type == "mps" else resolved


class Products:
    """Rows times one matrix [n, m] of any type, which stays on a device as it is and is converted to `dtype` some columns at a time."""

    def __init__(self, matrix: npt.NDArray[np.generic], device: str | torch.device, *, dtype: torch.dtype = torch.float64) -> None:
        self._device = float64_device(device)
        self._matrix, self._dtype = torch.from_numpy(np.ascontiguousarray(matrix)).to(self._device), dtype

    def __call__(self, rows: npt.ArrayLike) -> Floats:
        """Rows [r, n] times the matrix, float64 [r, m]."""
        left = torch.from_numpy(np.ascontiguousarray(rows)).to(self._device, self._dtype)
        size = max(1, _VALUES // max(1, len(self._matrix)))
        parts = [left @ self._matrix[:, i : i + size].to(self._dtype) for i in range(0, self._matrix.shape[1], size)]
        return torch.cat(parts, dim=1).double().cpu().numpy()
