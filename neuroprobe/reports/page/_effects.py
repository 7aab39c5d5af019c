"""Causal effects as data: what happened to the outputs when some units were set to another value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from neuroprobe._core import Unit
from neuroprobe.reports.page._scripts import Texts, number
from neuroprobe.reports.page._units import units_of

_TEXTS = ("intervention", "concept", "output")
_NUMBERS = ("effect", "low", "high", "random", "random_low", "random_high", "n_pairs")


def effect_data(tables: Sequence[pd.DataFrame]) -> tuple[dict[str, Any], dict[Unit, list[int]]]:
    """All effects, those of the same units together; and which of them are of a unit.

    Parameters
    ----------
    tables : sequence of DataFrame
        With the columns of `neuroprobe.reports.page._units.EFFECT_COLUMNS`, and where they are known random, random_low, random_high (the same
        of random units of the layer) and n_pairs.
    """
    texts, groups = Texts(), list[dict[str, Any]]()
    of_unit: dict[Unit, list[int]] = {}
    for table in tables:
        for (layer, units), rows in table.groupby(["layer", "units"], sort=False):
            numbers = units_of(units)
            for unit in dict.fromkeys(numbers):
                of_unit.setdefault((str(layer), unit), []).append(len(groups))
            groups.append({"units": numbers, "rows": _rows(rows, texts)})
    return {"texts": texts.all, "groups": groups}, of_unit


def _rows(rows: pd.DataFrame, texts: Texts) -> list[list[Any]]:
    """Of each effect its three texts and seven numbers; None for what the table does not have."""
    named = [[texts.number(value) for value in rows[name]] for name in _TEXTS]
    numbers = [[number(value) for value in rows[name]] if name in rows else [None] * len(rows) for name in _NUMBERS]
    return [list(row) for row in zip(*named, *numbers, strict=True)]
