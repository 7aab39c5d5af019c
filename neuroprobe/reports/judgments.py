"""What every judgment of labels is made of: shares and means with their intervals, and the report that holds them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from neuroprobe._core import Floats, check_count, check_level, check_seed
from neuroprobe.exceptions import UnknownNameError, suggest
from neuroprobe.reports.base import Report
from neuroprobe.statistics import bootstrap, wilson_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes


#: The `layer` of a quantity over all of them.
ALL_LAYERS = "all layers"


class JudgmentReport(Report):
    """A table of what was judged one by one, and `overall`: what that says as a whole, each value with its interval.

    Parameters
    ----------
    table, metadata
        As in `neuroprobe.Report`.
    overall : sequence of dict, optional
        Made by `quantity`. By default those that the metadata hold.
    """

    def __init__(self, table: pd.DataFrame, metadata: Mapping[str, Any], *, overall: Sequence[Mapping[str, Any]] | None = None) -> None:
        stated = metadata.get("overall", []) if overall is None else [{k: _to_json(v) for k, v in row.items()} for row in overall]
        super().__init__(table, {"overall": stated, **{k: v for k, v in metadata.items() if k != "overall"}})

    @property
    def overall(self) -> pd.DataFrame:
        """One row per quantity: layer ("all layers", or one of several), quantity, value, low, high (its interval) and n."""
        rows = [{k: _from_json(v) if k in ("value", "low", "high") else v for k, v in row.items()} for row in self.metadata["overall"]]
        return pd.DataFrame(rows, columns=["layer", "quantity", "value", "low", "high", "n"])

    def value(self, name: str, *, layer: str = ALL_LAYERS) -> float:
        """The value of one quantity, over all layers or in one.

        Raises
        ------
        UnknownNameError
            No such quantity, or no such layer.
        """
        rows = self.overall
        rows = rows[rows["layer"] == layer]
        found = rows.loc[rows["quantity"] == name, "value"]
        if found.empty:
            raise UnknownNameError(f"Expected a quantity of {layer!r} in this report, but got {name!r}. {suggest(name, rows['quantity'])}")
        return float(found.iloc[0])

    def summary(self) -> str:
        rows = self.overall
        stated = [
            f"{r.quantity} {r.value:.3g}" + ("" if math.isnan(r.low) else f" [{r.low:.3g}, {r.high:.3g}]")
            for r in rows[rows["layer"] == ALL_LAYERS].itertuples()
            if not math.isnan(r.value)
        ]
        return f"{len(self)} rows; " + ", ".join(stated)

    def plot(self, ax: Axes | None = None) -> Axes:
        """The quantities with their intervals."""
        from neuroprobe.reports._judgment_figures import plot_quantities

        return plot_quantities(self.overall, title=self.title, ax=ax)


def interval_options(level: float, seed: int, n_resamples: int = 1) -> dict[str, Any]:
    """What `average` needs for its interval, checked."""
    check_level(level)
    check_seed(seed)
    check_count("n_resamples", n_resamples)
    return {"level": level, "seed": seed, "n_resamples": n_resamples}


def quantity(
    name: str, value: float, *, interval: tuple[Any, Any] = (math.nan, math.nan), n: int, layer: str = ALL_LAYERS
) -> dict[str, Any]:
    """One row of `JudgmentReport.overall`."""
    low, high = (float(end) for end in interval)
    return {"layer": layer, "quantity": name, "value": float(value), "low": low, "high": high, "n": int(n)}


def share(name: str, right: npt.ArrayLike, *, level: float, layer: str = ALL_LAYERS) -> dict[str, Any]:
    """The share of True with its Wilson interval; NaN of nothing."""
    right = np.asarray(right, dtype=bool)
    n = len(right)
    if n == 0:
        return quantity(name, math.nan, n=0, layer=layer)
    return quantity(name, float(right.mean()), interval=wilson_interval(int(right.sum()), n, level=level), n=n, layer=layer)


def average(
    name: str,
    values: npt.ArrayLike,
    *,
    level: float,
    seed: int,
    n_resamples: int = 1000,
    statistic: Callable[..., Any] = np.mean,
    layer: str = ALL_LAYERS,
) -> dict[str, Any]:
    """A mean (or `statistic`) over units with its bootstrap interval; NaN among the values is left out and not counted."""
    known: Floats = np.asarray(values, dtype=float)
    known = known[~np.isnan(known)]
    if len(known) == 0:
        return quantity(name, math.nan, n=0, layer=layer)
    interval = bootstrap(known, level=level, seed=seed, n_resamples=n_resamples, statistic=statistic)
    return quantity(name, float(statistic(known)), interval=interval, n=len(known), layer=layer)


def layer_parts(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows that the quantities of each `layer` are of: all of them, and with several layers those of each."""
    layers = dict.fromkeys(table["layer"])
    return {ALL_LAYERS: table, **({layer: table[table["layer"] == layer] for layer in layers} if len(layers) > 1 else {})}


def _to_json(value: Any) -> Any:
    """JSON has no infinity and no NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _from_json(value: Any) -> float:
    return math.nan if value is None else float(value)
