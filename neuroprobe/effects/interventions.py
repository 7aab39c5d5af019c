"""Interventions: units set to a value, or what a layer gives moved along a direction, for as long as a ``with`` block lasts.

Rules that hold for all of them:

- Everything is undone at the end of the block, whatever happens in it.
- Whoever runs the model meets the change: plain calls, training, a recorder. Gradients flow through it. Only a recorder's own
  ``recording()`` that was entered before sees the layer itself as it was, and the layers after it changed.
- A layer that runs several times in a forward pass is changed every time, unless the site says which `call`.
- Several interventions, also on one layer, act in the order in which they were entered.
- At a unit with positions (a map, tokens), all of its positions are changed.
- Units of a basis are set in that basis: the layer then gives what the basis decodes, and beside it what the basis had left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from neuroprobe._core import Floats, as_numbers, check_number, check_units, fingerprint_model
from neuroprobe.exceptions import InputError, UnknownNameError, shown, suggest
from neuroprobe.models import FEATURES, Direction, Replacement, Site, check_site, tapped
from neuroprobe.recording import Activations, ActivationSummary

#: Numbers of units of a site; one, or several.
UnitNumbers: TypeAlias = "int | Sequence[int] | npt.NDArray[np.integer[Any]]"
#: "mean", "zero", or numbers: one, one for each of the units, or a map for each of them.
Value: TypeAlias = "Literal['mean', 'zero'] | float | npt.ArrayLike | torch.Tensor"

_VALUES = ("mean", "zero")
#: A spread below this share of the greatest activation is what summing leaves of equal rows.
_ROUNDING = 1e-12


@contextmanager
def ablate(
    model: nn.Module,
    layer: str | Site,
    units: UnitNumbers,
    value: Value = "mean",
    *,
    activations: Activations | ActivationSummary | None = None,
) -> Iterator[None]:
    """Set units to a value, for every image, as long as the ``with`` block lasts.

    Parameters
    ----------
    model : torch.nn.Module
        Itself, not a DataParallel, compiled or scripted version of it.
    layer : str or Site
        A module's exact name, or the site whose units are set; a basis must have `decode` for that.
    units : int or sequence of int
        Numbers of its units, each once, from 0.
    value : {"mean", "zero"} or array-like, default "mean"
        "mean" is every unit's own mean over images and positions, from `activations`; "zero" is 0. Else numbers: one for all units;
        one for each, [k], in the order of `units`; or a map for each, ``[k, *positions]``, with the positions in the order of the
        layer's axes ([k, height, width], [k, tokens]).
    activations : Activations or ActivationSummary, optional
        Of this site of this model, pooled by "mean". Needed for value="mean".

    Raises
    ------
    UnknownNameError
        A layer that the model or the activations do not have; another name of a value.
    InputError
        On entering: no units or one twice, values that do not fit them, activations of another site, means that are not there, of
        another model or not over positions, a basis that cannot decode, or a model that hooks do not work in. In a forward pass:
        units that the site does not have, or an output that is not a tensor. On leaving: the layer took no part in the forward
        passes made.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU()).eval()
    >>> with ablate(model, "0", [0, 2], "zero"), torch.no_grad():
    ...     print(model(torch.ones(1, 2))[0, [0, 2]])
    tensor([0., 0.])
    """
    site = check_site(model, layer)
    numbers = check_units(site.key, units)
    with tapped(model, replace={site: setting(site, numbers, resolve_value(model, site, numbers, value, activations))}):
        yield


@contextmanager
def steer(
    model: nn.Module,
    layer: str | Site,
    direction: Direction | npt.ArrayLike | torch.Tensor,
    strength: float,
    *,
    activations: Activations | None = None,
) -> Iterator[None]:
    """Add a direction to what a layer gives, for every image, as long as the ``with`` block lasts.

    What is added is `strength` times the direction at length 1.

    Parameters
    ----------
    model, layer
        As in `ablate`.
    direction : Direction or array-like, [n_units]
        A vector, or a Direction of pooled features, is added to every position alike; a Direction of spatial features, to every
        position its own part.
    strength : float
        Below 0 to move away from the concept. With `activations`, in standard deviations of the site's activations along the
        direction; without, in the units of the activations themselves.
    activations : Activations, optional
        Of this site of this model; for a direction of spatial features pooled by "none", otherwise by "mean".

    Raises
    ------
    UnknownNameError
        A layer that the model or the activations do not have.
    InputError
        On entering: a direction of another site, of zeros or that does not fit the activations, activations of another site or that
        do not vary along it, a strength that is not finite, a basis that cannot decode, or a model that hooks do not work in. In a
        forward pass: a direction that does not fit the site, or an output that is not a tensor. On leaving: the layer took no part
        in the forward passes made.
    """
    site = check_site(model, layer)
    vector, features = _unit_vector(direction, site)
    check_number("strength", strength)
    scale = 1.0 if activations is None else _spread_along(model, site, vector, features, activations)
    added = torch.from_numpy(float(strength) * scale * vector)
    with tapped(model, replace={site: _adding(site, added, features)}):
        yield


@dataclass(frozen=True, eq=False)
class Given:
    """What units are set to: a number, [k] or [k, *positions] of the k units that are set; or [n_units] of all units of the site."""

    values: torch.Tensor
    of_all: bool = False


def resolve_value(
    model: nn.Module, site: Site, units: list[int], value: Value, activations: Activations | ActivationSummary | None
) -> Given:
    """What units are set to; parameters and errors as of `ablate`."""
    if activations is not None:
        _check_recorded(site, activations)
    if isinstance(value, str):
        if value not in _VALUES:
            raise UnknownNameError(f"Expected value 'mean', 'zero' or numbers, but got {value!r}. {suggest(value, _VALUES)}")
        if value == "zero":
            return Given(torch.zeros(()))
        means = _means(model, site, activations)
        check_units(site.key, units, len(means))
        return Given(torch.from_numpy(means), of_all=True)
    array = as_numbers("value", value)
    if not np.isfinite(array).all() or (array.ndim and len(array) != len(units)):
        raise InputError(
            f"Expected one finite number, or one or a map of them for each of {len(units)} units, but got the shape {array.shape}"
            f"{'' if np.isfinite(array).all() else ', not all finite'}."
        )
    return Given(torch.from_numpy(array))


def _means(model: nn.Module, site: Site, activations: Activations | ActivationSummary | None) -> Floats:
    """The mean of every unit of a site over images and positions, [n_units]."""
    if activations is None:
        raise InputError(
            f"Expected `activations` of {site.key!r} to take the means from, but got none. Record them: "
            f"ActivationRecorder(model, [{site.key!r}]).record(images, transform=transform). Or take value='zero', or numbers."
        )
    _check_source(model, site, activations, pooling="mean")
    if isinstance(activations, Activations):
        return np.asarray(activations[site].mean(axis=0, dtype=np.float64))
    return activations[site].mean


def setting(site: Site, units: list[int], given: Given) -> Replacement:
    """The change that sets units to what `resolve_value` gives."""

    def change(values: torch.Tensor) -> torch.Tensor:
        n_units, positions = values.shape[1], tuple(values.shape[2:])
        if given.of_all and len(given.values) != n_units:
            raise InputError(
                f"Expected activations of the {n_units} units of {site.key!r}, but got some of {len(given.values)}, of another model."
            )
        check_units(site.key, units, n_units)
        new = (given.values[units] if given.of_all else given.values).to(values)
        if new.ndim > 1 and tuple(new.shape[1:]) != positions:
            raise InputError(f"Expected a map {positions} for each unit of {site.key!r}, but got {tuple(new.shape[1:])}.")
        new = new if new.ndim != 1 else new.reshape(-1, *(1 for _ in positions))
        values[:, torch.tensor(units, device=values.device)] = new
        return values

    return change


def _adding(site: Site, vector: torch.Tensor, features: str) -> Replacement:
    def change(values: torch.Tensor) -> torch.Tensor:
        n_units, positions = values.shape[1], values.shape[2:]
        expected = n_units * math.prod(positions) if features == "spatial" else n_units
        if len(vector) != expected:
            raise InputError(f"Expected a direction of {site.key!r} with {expected} {features} features, but got one with {len(vector)}.")
        shape = (n_units, *positions) if features == "spatial" else (n_units, *(1 for _ in positions))
        return values + vector.to(values).reshape(shape)

    return change


def _check_recorded(site: Site, activations: Any) -> None:
    if not isinstance(activations, (Activations, ActivationSummary)):
        raise InputError(f"Expected `activations` of {site.key!r} as ActivationRecorder makes them, but got {shown(activations)}.")
    activations[site]  # an unknown site, or another one of the layer, is told


def _check_source(model: nn.Module, site: Site, activations: Activations | ActivationSummary, *, pooling: str) -> None:
    known = activations.metadata
    if "pooling" in known and known["pooling"] != pooling:
        raise InputError(
            f"Expected activations of {site.key!r} recorded with pooling={pooling!r}, but got some with {known['pooling']!r}. "
            "Record them so, or give your own numbers."
        )
    if "model" in known and known["model"] != fingerprint_model(model):
        raise InputError(f"Expected activations of {site.key!r} of this model, but they were recorded from another, or from other weights.")


def _unit_vector(direction: Direction | npt.ArrayLike | torch.Tensor, site: Site) -> tuple[Floats, str]:
    """The direction at length 1, and its features."""
    features = "pooled"
    if isinstance(direction, Direction):
        if direction.layer != site.key:
            raise InputError(f"Expected a direction of {site.key!r}, but got one of {direction.layer!r}.")
        features, direction = direction.features, direction.weights
    vector = as_numbers("direction", direction)
    if vector.ndim != 1 or not np.isfinite(vector).all() or not vector.any():
        raise InputError(f"Expected a direction of finite numbers [n_units] that are not all zero, but got {shown(direction)}.")
    vector = vector / np.abs(vector).max()  # so that no square is too great or too small
    return vector / np.linalg.norm(vector), features


def _spread_along(model: nn.Module, site: Site, vector: Floats, features: str, activations: Activations) -> float:
    """The standard deviation of activations along a direction."""
    if not isinstance(activations, Activations):
        raise InputError(
            f"Expected `activations` as ActivationRecorder.record makes them, but got {shown(activations)}: a summary does not know "
            "how units vary together."
        )
    _check_recorded(site, activations)
    _check_source(model, site, activations, pooling=FEATURES[features])
    rows = activations[site]
    if rows.shape[1] != len(vector):
        raise InputError(f"Expected a direction of {site.key!r} with {rows.shape[1]} {features} features, but got one with {len(vector)}.")
    spread = float(np.std(rows @ vector))
    if spread <= _ROUNDING * float(np.abs(rows).max()) * math.sqrt(len(vector)):
        raise InputError(
            f"Expected activations of {site.key!r} that vary along the direction, but all are the same. Leave `activations` out."
        )
    return spread
