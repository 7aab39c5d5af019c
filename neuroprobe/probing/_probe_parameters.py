"""Parameters of probes, checked before anything is fitted with them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from neuroprobe._core import check_count
from neuroprobe.exceptions import InputError


def strengths(given: float | Sequence[float], name: str) -> tuple[float, ...]:
    """One strength of regularization, or several to choose from, as a tuple.

    Raises
    ------
    InputError
        None, or one that is no finite number above 0.
    """
    values = list(given) if isinstance(given, (Sequence, np.ndarray)) and not isinstance(given, str) else [given]
    if not values or not all(isinstance(value, Real) and 0 < value < math.inf for value in values):
        raise InputError(f"Expected `{name}` to be a number above 0, or several to choose from, but got {given!r}.")
    return tuple(float(value) for value in values)


def check_parameters(parameters: Mapping[str, Any]) -> None:
    """Raise what would go wrong, or silently do nothing, in a fit of a probe with these parameters.

    Parameters
    ----------
    parameters : mapping
        As a probe's `get_params` gives them.

    Raises
    ------
    InputError
    """
    unpenalized = "hidden" in parameters and parameters["alpha"] == 0  # a hidden layer can do without
    for name in ("C", "alpha", "path"):
        if name in parameters and not unpenalized:
            strengths([parameters[name]] if "hidden" in parameters else parameters[name], name)
    for name, fewest in (("cv", 2), ("hidden", 1), ("max_iter", 1)):
        check_count(name, parameters.get(name, fewest), low=fewest)
