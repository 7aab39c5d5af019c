"""Checks of arguments, with one wording for each kind of mistake: what was expected, what came."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroprobe.exceptions import InputError


def is_whole(value: Any) -> bool:
    """Whether it is a whole number, Python's or numpy's, and no bool."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def check_count(name: str, value: Any, *, low: int = 1) -> None:
    """Raise `InputError` unless it is a whole number of at least `low`."""
    if not is_whole(value) or value < low:
        raise InputError(f"Expected `{name}` to be a whole number of at least {low}, but got {value!r:.60}.")


def check_counts(*, low: int = 1, **counts: Any) -> None:
    """Raise `InputError` for the first of these that is no whole number of at least `low`."""
    for name, value in counts.items():
        check_count(name, value, low=low)


def check_seed(seed: Any, name: str = "seed") -> None:
    """Raise `InputError` unless it is a whole number of at least 0."""
    check_count(name, seed, low=0)


def check_number(
    name: str, value: Any, *, low: float = -math.inf, high: float = math.inf, above: bool = False, below: bool = False
) -> None:
    """Raise `InputError` unless it is a finite number in [low, high]; with `above` greater than `low`, with `below` less than `high`."""
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high or (above and value == low) or (below and value == high):
        bounds = [f"{'above' if above else 'at least'} {low:g}"] if low > -math.inf else []
        bounds += [f"{'below' if below else 'at most'} {high:g}"] if high < math.inf else []
        raise InputError(f"Expected `{name}` to be a number, {' and '.join(bounds) or 'finite'}, but got {value!r:.60}.")


def as_numbers(name: str, values: Any) -> npt.NDArray[np.float64]:
    """Numbers as a float64 array, which may hold NaN, of a list, an array or a tensor; `InputError` for what are none, as truth values."""
    given = values.detach().cpu() if hasattr(values, "detach") else values
    if hasattr(given, "is_floating_point") and given.is_floating_point():
        given = given.double()  # numpy knows no bfloat16
    try:
        array = np.asarray(given)
        if values is not None and array.dtype.kind in "iufO":
            return array.astype(np.float64)
    except (TypeError, ValueError):
        pass
    raise InputError(f"Expected `{name}` to be numbers, but got {values!r:.60}.")


def check_share(name: str, value: Any, *, zero: bool = False, one: bool = False) -> None:
    """Raise `InputError` unless it is a number between 0 and 1; those two only where `zero` or `one` allows them."""
    check_number(name, value, low=0, high=1, above=not zero, below=not one)


def check_level(level: Any) -> None:
    """Raise `InputError` unless it is a level of confidence: above 0 and below 1."""
    check_share("level", level)


def check_choice(name: str, value: Any, choices: Iterable[str | None]) -> None:
    """Raise `InputError` unless it is one of the choices."""
    known = [repr(choice) for choice in choices]
    if not (value is None or isinstance(value, str)) or repr(value) not in known:
        listed = " or ".join(filter(None, (", ".join(known[:-1]), known[-1])))
        raise InputError(f"Expected `{name}` to be {listed}, but got {value!r:.60}.")


def check_unit(layer: str, unit: Any, n_units: int | None = None) -> None:
    """Raise `InputError` unless it is the number of a unit of this layer, which may not have told yet how many it has."""
    if not is_whole(unit) or unit < 0 or (n_units is not None and unit >= n_units):
        numbers = "0 on" if n_units is None else f"0 to {n_units - 1}"
        mask = " Of a mask of booleans, pass np.flatnonzero(mask)." if isinstance(unit, (bool, np.bool_)) else ""
        raise InputError(f"Expected a unit from {numbers} of {layer!r}, but got {unit!r:.60}.{mask}")


def check_units(layer: str, units: Any, n_units: int | None = None) -> list[int]:
    """The numbers of units of this layer, one or several, each once.

    Raises
    ------
    InputError
        None at all, one twice, or anything but numbers of its units.
    """
    given = units.tolist() if hasattr(units, "tolist") else units
    found = list(given) if isinstance(given, Iterable) and not isinstance(given, (str, Mapping)) else [given]
    for unit in found:
        check_unit(layer, unit, n_units)
    if not found or len(set(found)) < len(found):
        raise InputError(f"Expected each of some units of {layer!r} once, but got {'none' if not found else repr(found)[:60]}.")
    return [int(unit) for unit in found]
