"""What is known of the units that are judged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any, TypeAlias

from neuroprobe._core import Unit
from neuroprobe.exceptions import InputError, UnknownNameError, suggest
from neuroprobe.reports import LabelReport, labeled_units

Labels = LabelReport | Mapping[Unit, str]


def _facts(labels: Labels) -> dict[str, Any]:
    return {"labels": labels.metadata if isinstance(labels, LabelReport) else {}}


def _labels_of(labels: Labels, layer: str, n_units: int) -> dict[int, str]:
    found = {unit: concept for (owner, unit), concept in labeled_units(labels).items() if owner == layer}
    if not found:
        raise InputError(f"Expected labels of units of {layer!r}, but there are none.")
    if max(found) >= n_units:
        raise InputError(
            f"Expected labels of the {n_units} units of {layer!r}, but got one of unit {max(found)}. Check the order of the axes."
        )
    return found


Names: TypeAlias = "str | Iterable[str] | None"

Truth: TypeAlias = "Mapping[Unit, Names] | Mapping[str, Sequence[Names]] | Mapping[str, Mapping[int, Names]]"


def true_concepts(truth: Truth, units: Iterable[Unit]) -> dict[Unit, tuple[str, ...]]:
    """The accepted names of those of `units` whose truth is given; () for a unit that is known to have no concept.

    Raises
    ------
    InputError
        Not a mapping, a truth that is no name and no names, a list shorter than its layer, or truth of none of these units.
    UnknownNameError
        A layer that none of these units is in.
    """
    units = list(units)
    given = _by_unit(truth)
    layers = list(dict.fromkeys(layer for layer, _ in units))
    for layer in dict.fromkeys(layer for layer, _ in given):
        if layer not in layers:
            raise UnknownNameError(f"Expected the truth about units of the report's layers, but got {layer!r}. {suggest(layer, layers)}")
    _check_lists(truth, units)
    found = {unit: given[unit] for unit in units if unit in given}
    if not found:
        raise InputError(f"Expected the truth about at least one of the {len(units)} units, but got it about none of them.")
    return found


def _check_lists(truth: Truth, units: Iterable[Unit]) -> None:
    """A list that is too short may be several names of one concept, or in another order than that of the units."""
    for layer, unit in units:
        listed = truth.get(layer)  # type: ignore[call-overload]
        if isinstance(listed, Sized) and not isinstance(listed, (str, Mapping)) and unit >= len(listed):
            raise InputError(
                f"Expected the truth about {layer!r} as a list with a concept, or several, of every unit, but it has {len(listed)} and "
                f"there is a unit {unit}. Of some units only, give {{({layer!r}, unit): concept}}."
            )


def _by_unit(truth: Truth) -> dict[Unit, tuple[str, ...]]:
    if not isinstance(truth, Mapping):
        raise InputError(f"Expected the truth as a mapping from (layer, unit) to a concept, but got {type(truth).__name__}.")
    given: dict[Unit, tuple[str, ...]] = {}
    for key, value in truth.items():
        if isinstance(key, str) and isinstance(value, Mapping):
            given.update({(key, int(unit)): _names(v, key, unit) for unit, v in value.items()})
        elif isinstance(key, str) and isinstance(value, Iterable) and not isinstance(value, str):
            given.update({(key, unit): _names(v, key, unit) for unit, v in enumerate(value)})
        elif isinstance(key, tuple) and len(key) == 2 and isinstance(key[0], str):
            given[key[0], int(key[1])] = _names(value, *key)
        else:
            raise InputError(
                f"Expected the truth as {{(layer, unit): concept}} or {{layer: [concept of unit 0, ...]}}, but got {key!r}: {value!r:.80}."
            )
    return given


def _names(value: Any, layer: str, unit: int) -> tuple[str, ...]:
    names = (
        (value,) if isinstance(value, str) else tuple(() if value is None else value) if isinstance(value, Iterable | None) else (value,)
    )
    if not all(isinstance(name, str) for name in names):
        raise InputError(f"Expected a concept's name, or several, as the truth about unit {unit} of {layer!r}, but got {value!r:.80}.")
    return tuple(str(name) for name in names if name)
