"""Interventions: a layer's units set to a value, or its output moved along a direction, for as long as a ``with`` block lasts.

Rules that hold for all of them:

- Everything is undone at the end of the block, whatever happens in it.
- Whoever runs the model meets the change: plain calls, training, a recorder. Gradients flow through it. Only a recorder's own
  ``recording()`` that was entered before sees the layer itself as it was, and the layers after it changed.
- A layer that runs several times in a forward pass is changed every time.
- Several interventions, also on one layer, act in the order in which they were entered.
- At a unit with positions (a map, tokens), all of its positions are changed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from neuroprobe._core import check_units
from neuroprobe.exceptions import InputError, UnknownNameError, shown, suggest
from neuroprobe.models import (
    Direction,
    Layout,
    UnitAxisTracker,
    as_site,
    check_layers,
    check_layout,
    check_model,
    choices,
    describe_output,
    select_output,
)
from neuroprobe.recording import Activations

if TYPE_CHECKING:
    from neuroprobe.recording import ActivationSummary

#: Numbers of units of a layer; one, or several.
UnitNumbers: TypeAlias = "int | Sequence[int] | npt.NDArray[np.integer[Any]]"
#: "mean", "zero", or numbers: one, one for each of the units, or a map for each of them.
Value: TypeAlias = "Literal['mean', 'zero'] | float | npt.ArrayLike | torch.Tensor"
#: Changes the values of a layer in place: ``[n_images, n_units, *positions]``.
Change: TypeAlias = Callable[[torch.Tensor], None]

_VALUES = ("mean", "zero")
#: A spread below this share of the greatest activation is what summing leaves of equal rows.
_ROUNDING = 1e-12
_POOLINGS = {"pooled": "mean", "spatial": "none"}


@contextmanager
def ablate(
    model: nn.Module,
    layer: str,
    units: UnitNumbers,
    value: Value = "mean",
    *,
    activations: Activations | ActivationSummary | None = None,
    layout: Layout | None = None,
    select: Mapping[str, int | str] | None = None,
) -> Iterator[None]:
    """Set units of a layer to a value, for every image, as long as the ``with`` block lasts.

    Parameters
    ----------
    model : torch.nn.Module
        Itself, not a DataParallel, compiled or scripted version of it.
    layer : str
        A module's exact name.
    units : int or sequence of int
        Numbers of its units, each once, from 0.
    value : {"mean", "zero"} or array-like, default "mean"
        "mean" is every unit's own mean over images and positions, from `activations`; "zero" is 0. Else numbers: one for all units;
        one for each, [k], in the order of `units`; or a map for each, ``[k, *positions]``, with the positions in the order of the
        layer's axes ([k, height, width], [k, tokens]).
    activations : Activations or ActivationSummary, optional
        Of this layer of this model, pooled by "mean". Needed for value="mean".
    layout : {"nchw", "nhwc", "nlc", "lnc"}, optional
        Where the layer's units are, where that does not follow from its modules.
    select : mapping from layer to int or str, optional
        Which part is meant of an output that is a tuple or a dict.

    Raises
    ------
    UnknownNameError
        A layer that the model or the activations do not have; another name of a value or of a layout.
    InputError
        On entering: no units or one twice, values that do not fit them, means that are not there, of another model or not means over
        positions, or a model that hooks do not work in. In a forward pass: units that the layer does not have, or an output that is
        not a tensor. On leaving: the layer took no part in the forward passes made.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU()).eval()
    >>> with ablate(model, "0", [0, 2], "zero"), torch.no_grad():
    ...     print(model(torch.ones(1, 2))[0, [0, 2]])
    tensor([0., 0.])
    """
    numbers = check_units(layer, units)
    _check_place(model, layer)
    given, n_units = _values(model, layer, numbers, value, activations)
    with changed_output(model, layer, _setting(layer, numbers, given, n_units), layout=layout, select=select):
        yield


@contextmanager
def steer(
    model: nn.Module,
    layer: str,
    direction: Direction | npt.ArrayLike | torch.Tensor,
    strength: float,
    *,
    activations: Activations | None = None,
    layout: Layout | None = None,
    select: Mapping[str, int | str] | None = None,
) -> Iterator[None]:
    """Add a direction to what a layer gives, for every image, as long as the ``with`` block lasts.

    What is added is `strength` times the direction at length 1.

    Parameters
    ----------
    model, layer, layout, select
        As in `ablate`.
    direction : Direction or array-like, [n_units]
        A vector, or a Direction of pooled features, is added to every position alike; a Direction of spatial features, to every
        position its own part.
    strength : float
        Below 0 to move away from the concept. With `activations`, in standard deviations of the layer's activations along the
        direction; without, in the units of the activations themselves.
    activations : Activations, optional
        Of this layer of this model; for a direction of spatial features pooled by "none", otherwise by "mean".

    Raises
    ------
    UnknownNameError
        A layer that the model or the activations do not have.
    InputError
        On entering: a direction of another layer, of zeros or that does not fit the activations, activations that do not vary along
        it, a strength that is not finite, or a model that hooks do not work in. In a forward pass: a direction that does not fit the
        layer, or an output that is not a tensor. On leaving: the layer took no part in the forward passes made.
    """
    _check_place(model, layer)
    vector, features = _unit_vector(direction, layer)
    if isinstance(strength, bool) or not isinstance(strength, (int, float, np.number)) or not math.isfinite(strength):
        raise InputError(f"Expected the strength as a finite number, but got {shown(strength)}.")
    scale = 1.0 if activations is None else _spread_along(model, layer, vector, features, activations)
    added = torch.from_numpy(float(strength) * scale * vector)
    with changed_output(model, layer, _adding(layer, added, features), layout=layout, select=select):
        yield


def mean_values(model: nn.Module, layer: str, activations: Activations | ActivationSummary | None) -> npt.NDArray[np.float64]:
    """The mean of every unit of a layer over images and positions, [n_units].

    Raises
    ------
    UnknownNameError
        A layer that was not recorded.
    InputError
        No activations, or such as do not hold the layer's own means: of another model, pooled otherwise, of one call of several, or of
        what a function made of the layer's output.
    """
    from neuroprobe.recording import ActivationSummary

    if not isinstance(activations, (Activations, ActivationSummary)):
        raise InputError(
            f"Expected `activations` of {layer!r} to take the means from, but got {'none' if activations is None else shown(activations)}. "
            f"Record them: ActivationRecorder(model, [{layer!r}]).record(images, transform=transform). Or take value='zero', or numbers."
        )
    _check_recorded(model, layer, activations, pooling="mean")
    if isinstance(activations, Activations):
        return np.asarray(activations[layer].mean(axis=0, dtype=np.float64))
    return activations[layer].mean


def _check_recorded(model: nn.Module, layer: str, activations: Activations | ActivationSummary, *, pooling: str) -> None:
    from neuroprobe._core import fingerprint_model

    activations[as_site(layer)]  # an unknown layer is told, and another site of it
    known = activations.metadata
    if "pooling" in known and known["pooling"] != pooling:
        raise InputError(
            f"Expected activations of {layer!r} recorded with pooling={pooling!r}, but got some with {known['pooling']!r}. "
            "Record them so, or give your own numbers."
        )
    if "model" in known and known["model"] != fingerprint_model(model):
        raise InputError(f"Expected activations of {layer!r} of this model, but they were recorded from another, or from other weights.")


def _values(
    model: nn.Module, layer: str, units: list[int], value: Value, activations: Activations | ActivationSummary | None
) -> tuple[torch.Tensor, int | None]:
    """What the units are set to: a number, [k], or [k, *positions]; and how many units the layer had when it was recorded."""
    if isinstance(value, str):
        if value not in _VALUES:
            raise UnknownNameError(f"Expected value 'mean', 'zero' or numbers, but got {value!r}. {suggest(value, _VALUES)}")
        if value == "zero":
            return torch.zeros(()), None
        means = mean_values(model, layer, activations)
        if max(units) >= len(means):
            raise InputError(f"Expected units of {layer!r} from 0 to {len(means) - 1}, but got {max(units)}.")
        return torch.from_numpy(means[units]), len(means)
    try:
        array = np.asarray(_on_cpu(value))
        array = array.astype(np.float64, casting="unsafe" if array.dtype.kind in "iufO" else "no")  # no truth values, no texts
    except (TypeError, ValueError) as error:
        raise InputError(f"Expected value 'mean', 'zero' or numbers, but got {shown(value)}.") from error
    if not np.isfinite(array).all() or (array.ndim and len(array) != len(units)):
        raise InputError(
            f"Expected one finite number, or one or a map of them for each of {len(units)} units, but got the shape {array.shape}"
            f"{'' if np.isfinite(array).all() else ', not all finite'}."
        )
    return torch.from_numpy(array), None


def _on_cpu(numbers: Any) -> Any:
    """A tensor as numpy can take it, which knows no bfloat16; anything else as it is."""
    if not isinstance(numbers, torch.Tensor):
        return numbers
    return numbers.detach().cpu().double() if numbers.is_floating_point() else numbers.detach().cpu()


def _setting(layer: str, units: list[int], given: torch.Tensor, n_recorded: int | None) -> Change:
    def change(values: torch.Tensor) -> None:
        if n_recorded is not None and n_recorded != values.shape[1]:
            raise InputError(
                f"Expected activations of the {values.shape[1]} units of {layer!r}, but got some of {n_recorded}, of another model."
            )
        if max(units) >= values.shape[1]:
            raise InputError(f"Expected units of {layer!r} from 0 to {values.shape[1] - 1}, but got {max(units)}.")
        positions = tuple(values.shape[2:])
        if given.ndim > 1 and tuple(given.shape[1:]) != positions:
            raise InputError(f"Expected a map {positions} for each unit of {layer!r}, but got {tuple(given.shape[1:])}.")
        new = given.to(values) if given.ndim != 1 else given.to(values).reshape(-1, *(1 for _ in positions))
        values[:, torch.tensor(units, device=values.device)] = new

    return change


def _adding(layer: str, vector: torch.Tensor, features: str) -> Change:
    def change(values: torch.Tensor) -> None:
        n_units, positions = values.shape[1], values.shape[2:]
        expected = n_units * math.prod(positions) if features == "spatial" else n_units
        if len(vector) != expected:
            raise InputError(f"Expected a direction of {layer!r} with {expected} {features} features, but got one with {len(vector)}.")
        shape = (n_units, *positions) if features == "spatial" else (n_units, *(1 for _ in positions))
        values += vector.to(values).reshape(shape)

    return change


@contextmanager
def changed_output(
    model: nn.Module, layer: str, change: Change, *, layout: Layout | None, select: Mapping[str, int | str] | None
) -> Iterator[None]:
    """A layer's output changed by a function, as long as the block lasts; parameters and errors as of `ablate`."""
    _check_place(model, layer)
    if layout is not None:
        check_layout(layout)
    part = _checked_selection(layer, select)
    module, tracker, seen = dict(model.named_modules(remove_duplicate=False))[layer], UnitAxisTracker(), {"layer": 0, "model": 0}

    def replace(module: nn.Module, args: Any, output: Any) -> Any:
        tensor = _tensor(output, part, layer)
        axes = tracker.axes(tensor, layer=layer, layout=layout if tensor.ndim > 2 else None)
        new = tensor.clone()
        change(new.movedim((axes.images, axes.units), (0, 1)))  # [n_images, n_units, *positions], a view
        seen["layer"] += 1
        return new if part is None else _put_back(output, part, new)

    def count(module: nn.Module, args: Any, output: Any) -> None:
        seen["model"] += 1

    with ExitStack() as stack:
        stack.enter_context(tracker.following(model))
        stack.callback(module.register_forward_hook(replace).remove)
        stack.callback(model.register_forward_hook(count).remove)
        yield
    if seen["model"] and not seen["layer"]:
        raise InputError(f"Expected {layer!r} to run in a forward pass, but it does not, so nothing was changed.")


def _check_place(model: nn.Module, layer: str) -> None:
    check_model(model)
    check_layers(model, [layer])


def _checked_selection(layer: str, select: Mapping[str, int | str] | None) -> int | str | None:
    if select is None:
        return None
    if not isinstance(select, Mapping) or set(select) != {layer} or not isinstance(select[layer], (int, str)):
        raise InputError(f"Expected `select` as {{{layer!r}: position or key}}, but got {shown(select)}.")
    return select[layer]


def _tensor(output: Any, part: int | str | None, layer: str) -> torch.Tensor:
    tensor = select_output(output, part, layer=layer)
    if not tensor.is_floating_point() or tensor.ndim < 2:
        raise InputError(
            f"Expected {layer!r} to give real numbers [n_images, n_units, ...], but got {tensor.dtype} {describe_output(tensor)}. "
            "Take another module."
        )
    return tensor


def _put_back(output: Any, part: int | str, new: torch.Tensor) -> Any:
    """The same tuple or dict with another tensor in one place; the model's own stays as it is."""
    if isinstance(output, Mapping):
        changed: Any = copy.copy(output)
        changed[part] = new
        return changed
    keys = list(choices(output))
    place = part if isinstance(part, int) and part not in keys else keys.index(part)  # a named tuple's field, by its position
    parts = [new if i == place else one for i, one in enumerate(output)]
    return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)


def _unit_vector(direction: Direction | npt.ArrayLike | torch.Tensor, layer: str) -> tuple[npt.NDArray[np.float64], str]:
    """The direction at length 1, and its features."""
    features = "pooled"
    if isinstance(direction, Direction):
        if direction.layer != layer:
            raise InputError(f"Expected a direction of {layer!r}, but got one of {direction.layer!r}.")
        if direction.features not in _POOLINGS:
            raise UnknownNameError(f"Expected features 'pooled' or 'spatial', but got {direction.features!r}.")
        features, direction = direction.features, direction.weights
    try:
        vector = np.asarray(_on_cpu(direction), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"Expected a Direction or numbers [n_units], but got {shown(direction)}.") from error
    if vector.ndim != 1 or not np.isfinite(vector).all() or not vector.any():
        raise InputError(f"Expected a direction of finite numbers [n_units] that are not all zero, but got {shown(direction)}.")
    vector = vector / np.abs(vector).max()  # so that no square is too great or too small
    return vector / np.linalg.norm(vector), features


def _spread_along(model: nn.Module, layer: str, vector: npt.NDArray[np.float64], features: str, activations: Activations) -> float:
    """The standard deviation of activations along a direction."""
    if not isinstance(activations, Activations):
        raise InputError(
            f"Expected `activations` as ActivationRecorder.record makes them, but got {shown(activations)}: a summary does not know "
            "how units vary together."
        )
    _check_recorded(model, layer, activations, pooling=_POOLINGS[features])
    rows = activations[layer]
    if rows.shape[1] != len(vector):
        raise InputError(f"Expected a direction of {layer!r} with {rows.shape[1]} {features} features, but got one with {len(vector)}.")
    spread = float(np.std(rows @ vector))
    if spread <= _ROUNDING * float(np.abs(rows).max()) * math.sqrt(len(vector)):
        raise InputError(f"Expected activations of {layer!r} that vary along the direction, but all are the same. Leave `activations` out.")
    return spread
