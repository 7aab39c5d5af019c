"""Vectors of length one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from neuroprobe._core.types import Floats


def unit_length(vectors: npt.ArrayLike) -> Floats:
    """Vectors [..., d] divided by their lengths, in float64; one of length zero stays as it is."""
    vectors = np.asarray(vectors, np.float64)
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    found: Floats = vectors / np.where(lengths > 0, lengths, 1)
    return found
