"""Types that several rooms share."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]

Rows: TypeAlias = npt.NDArray[np.int64]

BoolArray: TypeAlias = npt.NDArray[np.bool_]

Unit: TypeAlias = tuple[str, int]
