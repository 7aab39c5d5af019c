"""What probes and effects tell of units, and the study as a picture of what is read where and when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import pandas as pd

from neuroprobe._core import Unit
from neuroprobe.exceptions import InputError
from neuroprobe.reports.page._files import Texts, column, number

Record: TypeAlias = Mapping[str, Any]

#: Probes of a unit on its page.
N_PROBES = 10

#: What an effect's table must tell.
EFFECT_COLUMNS = ("layer", "units", "intervention", "concept", "output", "effect", "low", "high")

_PROBE = ("scope", "kind", "features", "measure")
_NUMBERS = ("value", "low", "high", "baseline", "n_seeds", "n_test", "auroc", "balanced_accuracy", "selectivity", "q_value")


def study_data(summary: pd.DataFrame) -> dict[str, Any]:
    """Of `ProbeReport.summary_table`: a list per fact, an entry per cell; concepts, layers and so on are numbers of lists of texts."""
    table = _measured(summary)
    concepts, checkpoints, layers = Texts(), Texts(), Texts()
    names = table["probe"] if "probe" in table else pd.Series("", index=table.index)
    keys = list(zip(names, *(table[name] for name in _PROBE), strict=True))
    kinds = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    found = {
        "concept": column(table["concept"], concepts.number),
        "checkpoint": column(_checkpoints(table), checkpoints.number),
        "layer": column(table["layer"], layers.number),
        "probe": [kinds[key] for key in keys],
        **{name: column(table[name]) for name in _NUMBERS if name in table},
    }
    if "unit" in table:
        found["unit"] = [None if unit != unit else int(unit) for unit in table["unit"]]
    return {
        "concepts": concepts.all,
        "checkpoints": checkpoints.all,
        "layers": layers.all,
        "probes": [dict(zip(("name", *_PROBE), map(str, key), strict=True)) for key in kinds],
        "columns": found,
    }


def unit_probes(units: pd.DataFrame | None) -> tuple[dict[Unit, list[Record]], str, int]:
    """Of `ProbeReport.units`: every unit's best probes at the last checkpoint; the name of that; and how many concepts were probed."""
    if units is None or units.empty:
        return {}, "", 0
    last = str(_checkpoints(units).iloc[-1])
    rows = units[_checkpoints(units) == last]
    gain = rows["test_accuracy"] - rows["baseline"]
    rows = rows.assign(_by=rows["auroc"].fillna(-1) if "auroc" in rows else gain, _gain=gain)
    rows = rows.sort_values(["_by", "_gain"], ascending=False, kind="stable")
    return _by_unit(rows.groupby(["layer", "unit"], sort=False).head(N_PROBES)), last, int(rows["concept"].nunique())


def best_units(summary: pd.DataFrame | None) -> dict[Unit, list[Record]]:
    """The probes of scope neuron by the unit that most seeds chose."""
    if summary is None or "unit" not in summary:
        return {}
    return _by_unit(summary[(summary["scope"] == "neuron") & summary["unit"].notna() & summary["test_accuracy"].notna()])


def _by_unit(rows: pd.DataFrame) -> dict[Unit, list[Record]]:
    found: dict[Unit, list[Record]] = {}
    for record in rows.to_dict("records"):
        found.setdefault((str(record["layer"]), int(record["unit"])), []).append(record)
    return found


def _measured(table: pd.DataFrame) -> pd.DataFrame:
    """With `value` and `measure`: the accuracy; of a regression its R2, above a baseline of 0 and without an interval."""
    regression = table["test_accuracy"].isna() & table["r2"].notna() if "r2" in table else pd.Series(False, index=table.index)
    table = table.rename(columns={"test_accuracy": "value", "test_accuracy_low": "low", "test_accuracy_high": "high"})
    table = table.assign(measure=regression.map({True: "R2", False: "accuracy"}))
    if regression.any():
        table.loc[regression, "value"] = table.loc[regression, "r2"]
        table.loc[regression, "baseline"] = 0.0
    return table[table["value"].notna()].reset_index(drop=True)


def _checkpoints(table: pd.DataFrame) -> pd.Series[Any]:
    return table["checkpoint"].astype(str) if "checkpoint" in table else pd.Series("", index=table.index)


# --- effects

_EFFECT_TEXTS = ("intervention", "concept", "output")
_EFFECT_NUMBERS = ("effect", "low", "high", "random", "random_low", "random_high", "n_pairs")


def effect_data(tables: Sequence[pd.DataFrame]) -> tuple[dict[str, Any], dict[Unit, list[int]]]:
    """All effects, those of the same units together; and which of them are of a unit."""
    texts, groups = Texts(), list[dict[str, Any]]()
    of_unit: dict[Unit, list[int]] = {}
    for table in tables:
        for (layer, units), rows in table.groupby(["layer", "units"], sort=False):
            numbers = effect_units(units)
            for unit in dict.fromkeys(numbers):
                of_unit.setdefault((str(layer), unit), []).append(len(groups))
            groups.append({"units": numbers, "rows": _rows(rows, texts)})
    return {"texts": texts.all, "groups": groups}, of_unit


def _rows(rows: pd.DataFrame, texts: Texts) -> list[list[Any]]:
    """Of each effect its three texts and seven numbers; None for what the table does not have."""
    named = [[texts.number(value) for value in rows[name]] for name in _EFFECT_TEXTS]
    numbers = [[number(value) for value in rows[name]] if name in rows else [None] * len(rows) for name in _EFFECT_NUMBERS]
    return [list(row) for row in zip(*named, *numbers, strict=True)]


def effect_units(text: Any) -> list[int]:
    """The units that a cell of an effect's table names: numbers with spaces between them.

    Raises
    ------
    InputError
        There is something else in it.
    """
    try:
        return [int(part) for part in str(text).split()]
    except ValueError as error:
        raise InputError(
            f"Expected the units of an effect as whole numbers with spaces between them, but got {str(text)[:60]!r}."
        ) from error
