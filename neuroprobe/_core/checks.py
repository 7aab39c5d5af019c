"""Checks of arguments, with one wording for each kind of mistake."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from neuroprobe.exceptions import InputError


def check_counts(**counts: Any) -> None:
    """Raise `InputError` for one that is no whole number of at least 1."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise InputError(f"Expected `{name}` to be a whole number of at least 1, but got {value!r:.60}.")


def check_level(level: float, seed: int = 0) -> None:
    """Raise `InputError` for a level that is no probability, or a seed that is no whole number from 0."""
    if not isinstance(level, (int, float, np.number)) or not 0 < level < 1:
        raise InputError(f"Expected `level` to be between 0 and 1, such as 0.95, but got {level!r:.60}.")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise InputError(f"Expected a seed of 0 or more, a whole number, but got {seed!r:.60}.")


def check_count(name: str, value: Any, *, low: int = 1) -> None:
    """Raise InputError unless it is a whole number of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < low:
        raise InputError(f"Expected `{name}` to be at least {low}, but got {value!r}. Give a whole number.")


def check_number(name: str, value: Any, *, low: float = -math.inf, high: float = math.inf, above: bool = False) -> None:
    """Raise InputError unless it is a finite number in [low, high]; with `above`, in (low, high]."""
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high or (above and value == low):
        bounds = "finite" if low == -math.inf else f"{'above' if above else 'at least'} {low:g}"
        bounds += "" if high == math.inf else f" and at most {high:g}"
        raise InputError(f"Expected `{name}` to be a number, {bounds}, but got {value!r}.")
