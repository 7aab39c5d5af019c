"""Activations: what they hold and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from neuroprobe import Activations
from neuroprobe.exceptions import InputError, UnknownNameError


def activations(**arrays: np.ndarray) -> Activations:
    return Activations(arrays, ("x", "y", "z"), {"model": "1"})


def test_layers_in_order_and_by_name() -> None:
    b, a = np.ones((3, 2), dtype=np.float32), np.zeros((3, 4), dtype=np.float32)
    recorded = activations(b=b, a=a)
    assert recorded.layers == ("b", "a")
    np.testing.assert_array_equal(recorded["b"], b)
    assert repr(recorded) == "Activations(3 images; units b: 2, a: 4)"


@pytest.mark.parametrize(
    ("array", "shape"),
    [(np.zeros((2, 4)), r"\(2, 4\)"), (np.zeros((4, 3)), r"\(4, 3\)"), (np.zeros(3), r"\(3,\)"), (np.zeros((3, 4, 1)), r"\(3, 4, 1\)")],
)
def test_wrong_shapes(array: np.ndarray, shape: str) -> None:
    with pytest.raises(InputError, match=rf"Expected 'late' to be \[3, n_units\], but got {shape}"):
        activations(early=np.zeros((3, 1)), late=array)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named(value: float) -> None:
    array = np.zeros((3, 5), dtype=np.float32)
    array[1, 4] = value
    with pytest.raises(InputError, match=f"Expected finite activations, but unit 4 of 'late' is {value} on 'y'. Check the model's weights"):
        activations(early=np.zeros((3, 1)), late=array)


@pytest.mark.parametrize("name", ["layer", "layer3", 0, None])
def test_unknown_layer(name: str) -> None:
    with pytest.raises(UnknownNameError, match=rf"Expected a recorded layer, but got {name!r}. (Did you mean|Known:) 'layer4'"):
        activations(layer4=np.zeros((3, 2)))[name]
