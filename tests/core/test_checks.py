"""Checks of arguments: what is taken, what is refused, and in which words."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from neuroprobe._core import (
    as_numbers,
    check_choice,
    check_count,
    check_counts,
    check_level,
    check_number,
    check_seed,
    check_share,
    check_unit,
    check_units,
)
from neuroprobe.exceptions import InputError

NUMBER = partial(check_number, "x", low=0, high=2)


@pytest.mark.parametrize("value", [1, 7, np.int64(2), np.uint8(3), 10**30])
def test_whole_numbers(value: Any) -> None:
    check_count("n", value)
    check_counts(n=value, k=value)
    check_seed(value)


@pytest.mark.parametrize("value", [None, "x", "1", -1, 2.5, 2.0, True, np.True_, np.float64(1), math.nan, [1], np.array([1, 2])])
@pytest.mark.parametrize("low", [0, 3])
def test_what_is_no_whole_number_of_at_least(value: Any, low: int) -> None:
    words = f"Expected `n` to be a whole number of at least {low}, but got {value!r}."
    for call in (lambda: check_count("n", value, low=low), lambda: check_counts(low=low, ok=low, n=value)):
        with pytest.raises(InputError, match=re.escape(words)):
            call()
    if low == 0:
        with pytest.raises(InputError, match="Expected `random_state` to be a whole number of at least 0, but got"):
            check_seed(value, "random_state")


def test_bounds_of_whole_numbers() -> None:
    check_counts(low=0, n=0)
    check_seed(0)
    with pytest.raises(InputError, match="`n` to be a whole number of at least 1, but got 0"):
        check_counts(k=1, n=0)


@pytest.mark.parametrize(
    ("check", "taken", "refused", "words"),
    [
        (NUMBER, [0, 2, 0.5, np.float32(1)], [-0.1, 2.1], "`x` to be a number, at least 0 and at most 2"),
        (partial(NUMBER, above=True), [1e-9, 2], [0], "`x` to be a number, above 0 and at most 2"),
        (partial(NUMBER, below=True), [0, 1.9], [2, 2.0], "`x` to be a number, at least 0 and below 2"),
        (partial(check_number, "x"), [-1e300, 3], [], "`x` to be a number, finite"),
        (partial(check_share, "x"), [0.5, np.float64(1e-9)], [0, 1, 1.5, -1], "`x` to be a number, above 0 and below 1"),
        (partial(check_share, "x", one=True), [1, 0.5], [0, 1.01], "`x` to be a number, above 0 and at most 1"),
        (partial(check_share, "x", zero=True), [0, 0.5], [1, -0.01], "`x` to be a number, at least 0 and below 1"),
        (check_level, [0.95], [0, 1], "`level` to be a number, above 0 and below 1"),
    ],
)
def test_numbers(check: Callable[[Any], None], taken: list[Any], refused: list[Any], words: str) -> None:
    for value in taken:
        check(value)
    for value in [*refused, None, "x", "0.5", True, math.nan, math.inf, [0.5], 1j]:
        with pytest.raises(InputError, match=f"Expected {words}, but got {re.escape(repr(value))}"):
            check(value)


def test_choices() -> None:
    check_choice("side", "left", ("left", "right"))
    check_choice("side", None, ("left", None))
    for value in ("Left", None, 1, True, ["left"], np.array(["left", "right"])):
        with pytest.raises(InputError, match=re.escape(f"Expected `side` to be 'left', 'right' or 'both', but got {value!r}.")):
            check_choice("side", value, ("left", "right", "both"))
    with pytest.raises(InputError, match="Expected `side` to be 'left', but got 'x'"):
        check_choice("side", "x", ("left",))


@pytest.mark.parametrize("unit", [-1, 8, True, 1.0, "1", None, [1]])
def test_a_unit_is_a_number_that_the_layer_has(unit: Any) -> None:
    check_unit("fc", np.int64(7), 8)
    check_unit("fc", 10**6)
    with pytest.raises(InputError, match=re.escape(f"Expected a unit from 0 to 7 of 'fc', but got {unit!r}.")):
        check_unit("fc", unit, 8)
    if unit != 8:
        with pytest.raises(InputError, match="Expected a unit from 0 on of 'fc', but got"):
            check_unit("fc", unit)


def test_units_are_numbers_each_once() -> None:
    assert check_units("fc", 3, 8) == [3]
    assert check_units("fc", range(2), 8) == [0, 1]
    found = check_units("fc", np.array([5, 1]), 8)
    assert found == [5, 1]
    assert all(type(unit) is int for unit in found)
    for units, words in (
        ([], "each of some units of 'fc' once, but got none"),
        ([1, np.int64(1)], "each of some units of 'fc' once, but got \\[1"),
        ([1, 8], "a unit from 0 to 7 of 'fc', but got 8"),
        ([True], "a unit from 0 to 7 of 'fc', but got True"),
        ("1", "a unit from 0 to 7 of 'fc', but got '1'"),
        (None, "a unit from 0 to 7 of 'fc', but got None"),
        (np.zeros((1, 2), int), "a unit from 0 to 7 of 'fc', but got \\[0, 0\\]"),
        (2.5, "a unit from 0 to 7 of 'fc', but got 2.5"),
        (np.ones(8, bool), r"but got True\. Of a mask of booleans, pass np\.flatnonzero\(mask\)"),
    ):
        with pytest.raises(InputError, match=words):
            check_units("fc", units, 8)


def test_numbers_come_from_lists_arrays_and_tensors() -> None:
    weights = torch.tensor([1.5, 2], dtype=torch.bfloat16, requires_grad=True)
    for given in ([1.5, 2], np.array([1.5, 2], np.float32), weights, torch.tensor([1.5, 2])):
        found = as_numbers("scores", given)
        assert found.tolist() == [1.5, 2]
        assert found.dtype == np.float64
    assert as_numbers("scores", torch.tensor([3, 4])).tolist() == [3, 4]
    for wrong in (None, True, [True, False], torch.tensor([True]), "1", ["1"], object(), [[1], [1, 2]], np.array([1j])):
        with pytest.raises(InputError, match="Expected `scores` to be numbers, but got"):
            as_numbers("scores", wrong)
