"""The probing study as data: what is read where and when, and what every unit carries by itself."""

from __future__ import annotations

from typing import Any

import pandas as pd

from neuroprobe._core import Unit
from neuroprobe.reports.page._scripts import Texts, column
from neuroprobe.reports.page._unit_data import N_PROBES, Record
from neuroprobe.reports.probes import ProbeReport

_PROBE = ("scope", "kind", "features", "measure")
_NUMBERS = ("value", "low", "high", "baseline", "n_seeds", "n_test", "auroc", "balanced_accuracy", "selectivity", "q_value")


def study_data(probes: ProbeReport) -> dict[str, Any]:
    """A list per fact, an entry per cell (concept, checkpoint, layer, probe); concepts and so on are numbers of lists of texts."""
    table = _measured(probes.summary_table())
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
    """Every unit's best probes by itself at the last checkpoint; the name of that; and how many concepts were probed.

    Parameters
    ----------
    units : DataFrame or None
        `neuroprobe.ProbeReport.units`.
    """
    if units is None or units.empty:
        return {}, "", 0
    last = str(_checkpoints(units).iloc[-1])
    rows = units[_checkpoints(units) == last]
    gain = rows["test_accuracy"] - rows["baseline"]
    rows = rows.assign(_by=rows["auroc"].fillna(-1) if "auroc" in rows else gain, _gain=gain)
    rows = rows.sort_values(["_by", "_gain"], ascending=False, kind="stable")
    return _by_unit(rows.groupby(["layer", "unit"], sort=False).head(N_PROBES)), last, int(rows["concept"].nunique())


def best_units(probes: ProbeReport | None) -> dict[Unit, list[Record]]:
    """The probes of scope neuron by the unit that most seeds chose."""
    if probes is None or "unit" not in probes.table:
        return {}
    table = probes.summary_table()
    return _by_unit(table[(table["scope"] == "neuron") & table["unit"].notna() & table["test_accuracy"].notna()])


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
