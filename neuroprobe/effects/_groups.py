"""Groups of units: those with one label, as one line of a table; their sums, and in which order these make up the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from neuroprobe._core import Floats, check_choice
from neuroprobe.reports import Labels, labels_of_layer

Unnamed: TypeAlias = Literal["together", "apart"]

#: What the units without a label are called where they are one line.
UNNAMED = "(unnamed)"

_BLOCK = 4096  # images at a time


class UnitGroup(NamedTuple):
    """Units that are one line of a table: those with one label, or without any."""

    name: str
    named: bool
    units: tuple[int, ...]


def unit_groups(labels: Labels, layer: str, *, n_units: int, unnamed: Unnamed = "together") -> list[UnitGroup]:
    """The units of a site by their label, concepts in the order of their first units, and after them those without one.

    Parameters
    ----------
    labels : LabelReport, or mapping from (layer, unit) to a concept
    layer : str
        The site's key, as labels have it.
    n_units : int
        Of the site.
    unnamed : {"together", "apart"}, default "together"
        One group of all units without a label, or one of each.

    Returns
    -------
    list of UnitGroup
        Every unit is in exactly one.

    Raises
    ------
    InputError
        No labels of this site, or of a unit that it does not have; or another word for `unnamed`.
    """
    check_choice("unnamed", unnamed, get_args(Unnamed))
    concepts = labels_of_layer(labels, layer, n_units)
    members: dict[str, list[int]] = {}
    for unit in sorted(concepts):
        members.setdefault(concepts[unit], []).append(unit)
    rest = [unit for unit in range(n_units) if unit not in concepts]
    named = [UnitGroup(concept, True, tuple(units)) for concept, units in members.items()]
    if unnamed == "apart":
        return [*named, *(UnitGroup(f"(unit {unit})", False, (unit,)) for unit in rest)]
    return [*named, UnitGroup(UNNAMED, False, tuple(rest))] if rest else named


def group_sums(values: npt.ArrayLike, weights: npt.ArrayLike, groups: Sequence[UnitGroup]) -> Floats:
    """Sums of weight times value within every group, float64 [n_images, n_groups].

    Parameters
    ----------
    values : array, [n_images, n_units]
    weights : array, [n_units]
    groups : sequence of UnitGroup
    """
    rows, each = np.asarray(values), np.asarray(weights, dtype=np.float64)
    units = np.array([unit for group in groups for unit in group.units], dtype=np.int64)
    owner = np.repeat(np.arange(len(groups)), [len(group.units) for group in groups])
    matrix = csr_array((each[units], (owner, units)), shape=(len(groups), rows.shape[1]))  # every unit is in one group
    # in blocks, so that a recording on disk is never whole in memory
    return np.concatenate([(matrix @ rows[i : i + _BLOCK].T.astype(np.float64)).T for i in range(0, len(rows), _BLOCK)])


def forward_order(parts: Floats, among: Sequence[int], *, first: int | None = None) -> list[int]:
    """The order in which columns are added up so that each leaves the least variance of the sum of all columns unexplained.

    Parameters
    ----------
    parts : ndarray, [n_images, n_columns]
    among : sequence of int
        The columns to put in order; ties by the lower place in it.
    first : int, optional
        How many to take; by default all.
    """
    centered = parts - parts.mean(axis=0)
    left = centered.T @ centered.sum(axis=1)  # of every column with what is not yet explained
    sizes = (centered**2).sum(axis=0)
    products = centered.T @ centered if first is None else None  # [n_columns, n_columns]; for a few, their own rows are quicker
    order: list[int] = []
    candidates = list(among)
    for _ in range(len(candidates) if first is None else min(first, len(candidates))):
        gains = 2 * left[candidates] - sizes[candidates]
        best = candidates.pop(int(np.argmax(gains)))
        left = left - (centered.T @ centered[:, best] if products is None else products[best])
        order.append(best)
    return order
