"""What the similarity functions share: kinds of arrays, and checks of inputs and parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch

from neuroprobe.exceptions import InputError

_Array = TypeVar("_Array", bound="np.ndarray[Any, Any] | torch.Tensor")

#: ``f(activations [n_images, n_units], concept_scores [n_images, n_concepts], **parameters)`` -> [n_units, n_concepts].
Similarity: TypeAlias = Callable[..., Any]


def on_tensors(function: Callable[..., torch.Tensor]) -> Callable[..., Any]:
    """Checks the inputs, computes on float32 tensors, and returns the kind of array that came."""

    @functools.wraps(function)
    def call(activations: _Array, concept_scores: _Array, **parameters: Any) -> _Array:
        a, p = (torch.as_tensor(x).float() for x in (activations, concept_scores))
        _check_inputs(a, p)
        result = function(a, p, **parameters)
        return result.numpy() if isinstance(activations, np.ndarray) else result  # type: ignore[return-value]

    return call


def _check_inputs(activations: torch.Tensor, concept_scores: torch.Tensor) -> None:
    shapes = tuple(activations.shape), tuple(concept_scores.shape)
    if any(len(shape) != 2 or 0 in shape for shape in shapes) or shapes[0][0] != shapes[1][0]:
        raise InputError(
            "Expected activations [n_images, n_units] and concept scores [n_images, n_concepts] over the same images, "
            f"but got {shapes[0]} and {shapes[1]}."
        )
    for name, values in (("activations", activations), ("concept scores", concept_scores)):
        if not bool(torch.isfinite(values).all()):
            row, column = (int(i) for i in (~torch.isfinite(values)).nonzero()[0])
            raise InputError(f"Expected finite {name}, but row {row}, column {column} is {values[row, column]}. Leave that image out.")


def share_of(n_images: int, share: float) -> int:
    """The number of images in a share of them: rounded down, as published, and at least 1."""
    return max(1, int(n_images * share))
