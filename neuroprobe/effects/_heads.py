"""Heads: what reads classes from a layer's units by weights, as one thing, whatever it came as."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from neuroprobe.exceptions import InputError, UnknownNameError, shown, suggest
from neuroprobe.models import Direction

#: A linear layer (alone, or the only one in a Sequential), weights with a bias or None, a fitted linear probe, or a direction.
HeadLike: TypeAlias = "nn.Linear | nn.Sequential | tuple[Any, Any] | Direction | Any"

_DOES_NOTHING = (nn.Dropout, nn.Identity, nn.Flatten)  # in evaluation, to rows of units


@dataclass(frozen=True, eq=False)
class Head:
    """Scores of classes as weighted sums of units: ``activations @ weights.T + bias``.

    Attributes
    ----------
    weights : ndarray, [n_classes, n_units]
    bias : ndarray, [n_classes]
    names : tuple, [n_classes]
        What the classes are called: by default their numbers, of a probe its ``classes_``.
    """

    weights: npt.NDArray[np.float64]
    bias: npt.NDArray[np.float64]
    names: tuple[Any, ...]

    def number(self, class_: Any) -> int:
        """The row of a class, given by its name or its number; a name comes first.

        Raises
        ------
        UnknownNameError
            No such class.
        """
        if isinstance(class_, Hashable) and class_ in self.names:
            return self.names.index(class_)
        numbers_are_names = any(isinstance(name, Integral) for name in self.names)
        if isinstance(class_, Integral) and not numbers_are_names and 0 <= int(class_) < len(self.names):
            return int(class_)
        known = [str(name) for name in self.names]
        raise UnknownNameError(
            f"Expected a class of the head by its name or its number from 0 to {len(known) - 1}, but got {class_!r}. "
            f"{suggest(str(class_), known)}"
        )


def resolve_head(head: HeadLike, *, classes: Sequence[Any] | None = None) -> Head:
    """A head from whatever holds its weights.

    Parameters
    ----------
    head : nn.Linear, nn.Sequential, (weights, bias), probe or Direction
        - A linear layer, or a Sequential that has but one and dropout or flattening beside it.
        - Weights [n_classes, n_units] (of a 1x1 convolution too) and a bias [n_classes], or None.
        - A fitted linear probe with a class to tell: `LinearProbe`, `SparseProbe`, `MeanDifferenceProbe`, or a classifier of
          scikit-learn's with ``coef_``. Of two classes, the scores are the log-odds of the one and of the other.
        - A `Direction` of pooled features.
    classes : sequence, optional
        Names of the classes; of a probe and a direction they are known.

    Returns
    -------
    Head

    Raises
    ------
    InputError
        Something else, a probe that is not fitted, or names or weights that do not fit.
    """
    weights, bias, names = _parts(head)
    if names is not None and classes is not None:
        raise InputError(f"Expected no `classes` beside a head that knows its own, {list(names)[:5]}.")
    rows = _rows(weights)
    offset = np.zeros(len(rows)) if bias is None else _array(bias).reshape(-1)
    given: Any = names if classes is None else classes
    if given is not None and (isinstance(given, str) or not isinstance(given, Iterable)):
        raise InputError(f"Expected `classes` as a list of names, but got {shown(given)}.")
    known = tuple(range(len(rows)) if given is None else given)
    if len(offset) != len(rows) or not np.isfinite(offset).all():
        raise InputError(f"Expected a finite bias for each of the {len(rows)} classes, but got {offset.shape}.")
    if len(known) != len(rows) or not all(isinstance(name, Hashable) for name in known) or len(set(known)) < len(known):
        raise InputError(f"Expected a name of its own for each of the head's {len(rows)} classes, but got {len(known)}: {known[:5]}.")
    return Head(rows, offset, known)


def _parts(head: Any) -> tuple[Any, Any, tuple[Any, ...] | None]:
    if isinstance(head, nn.Module):
        linear = _only_linear(head)
        return linear.weight, linear.bias, None
    if isinstance(head, Direction):
        return _of_direction(head)
    if isinstance(head, tuple) and len(head) == 2:
        return head[0], head[1], None
    if hasattr(head, "get_params"):
        return _of_probe(head)
    raise InputError(
        f"Expected a head as a linear layer, (weights, bias), a fitted linear probe or a Direction, but got {shown(head)}. "
        "Of a model, give the linear layer that makes its scores, such as model.fc."
    )


def _only_linear(head: nn.Module) -> nn.Linear:
    modules = [m for m in (head if isinstance(head, nn.Sequential) else [head]) if not isinstance(m, _DOES_NOTHING)]
    if len(modules) != 1 or not isinstance(modules[0], nn.Linear):
        names = ", ".join(type(module).__name__ for module in modules)
        raise InputError(
            f"Expected one linear layer as the head, but got {type(head).__name__} with {names or 'none'}. Of several layers give the "
            "last one, and the activations of the layer before it; for what is not linear, see neuroprobe.effects.attribution."
        )
    return modules[0]


def _of_direction(head: Direction) -> tuple[Any, Any, tuple[Any, ...]]:
    if head.features != "pooled":
        raise InputError(f"Expected a direction of pooled features, a weight per unit, but got one of {head.features} features.")
    return head.weights[None], [head.bias], (head.concept,)


def _of_probe(probe: Any) -> tuple[Any, Any, tuple[Any, ...]]:
    if not all(hasattr(probe, name) for name in ("coef_", "intercept_", "classes_")):
        raise InputError(
            f"Expected a fitted probe with a weight per unit and classes, but got {shown(probe)}. Call its fit(), or take a LinearProbe "
            "or SparseProbe."
        )
    weights, bias = np.atleast_2d(probe.coef_), np.atleast_1d(probe.intercept_)
    if len(probe.classes_) == 2 and len(weights) == 1:  # the log-odds of the second class
        weights, bias = np.concatenate([-weights, weights]), np.concatenate([-bias, bias])
    return weights, bias, tuple(name.item() if isinstance(name, np.generic) else name for name in probe.classes_)


def _array(values: Any) -> npt.NDArray[np.float64]:
    array = values.detach().cpu().double().numpy() if isinstance(values, torch.Tensor) else values
    try:
        return np.asarray(array, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"Expected weights and bias as numbers, but got {shown(values)}.") from error


def _rows(weights: Any) -> npt.NDArray[np.float64]:
    matrix = _array(weights)
    if matrix.ndim > 2 and matrix.shape[2:] == (1,) * (matrix.ndim - 2):
        matrix = matrix.reshape(matrix.shape[:2])
    if matrix.ndim != 2 or matrix.size == 0 or not np.isfinite(matrix).all():
        raise InputError(f"Expected finite weights [n_classes, n_units], but got {matrix.shape}.")
    return matrix
