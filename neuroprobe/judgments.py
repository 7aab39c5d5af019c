"""What every judgment of labels is made of: the truth about units, shares and means with their intervals, and the report that holds both.

Truth is given as a mapping, of either kind:

- from (layer, unit) to the unit's true concept;
- from layer to the true concepts of its units, as a list by unit or as a mapping from unit.

A true concept is a name, or several names that are all accepted. "" (or no names) says that the unit has no concept,
and is right to have no label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy.stats import norm

from neuroprobe.exceptions import InputError, UnknownNameError, shown, suggest
from neuroprobe.report import LabelReport, Report
from neuroprobe.statistics import wilson_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Unit: TypeAlias = tuple[str, int]
Names: TypeAlias = "str | Iterable[str] | None"
Truth: TypeAlias = "Mapping[Unit, Names] | Mapping[str, Sequence[Names]] | Mapping[str, Mapping[int, Names]]"
FloatArray: TypeAlias = npt.NDArray[np.float64]

#: The `layer` of a quantity over all of them.
ALL_LAYERS = "all layers"

#: Numbers drawn at a time by `bootstrap`, so that 100,000 units take no more memory than 10.
_DRAWN_AT_ONCE = 4_000_000


@runtime_checkable
class TextEncoder(Protocol):
    """Texts as vectors [n, d], of any length; every `neuroprobe.ImageTextEncoder` is one."""

    def encode_texts(self, texts: list[str]) -> Any: ...


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
        from neuroprobe.judgment_plots import plot_quantities

        return plot_quantities(self.overall, title=self.title, ax=ax)


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
    n_resamples: int = 2000,
    statistic: Callable[..., Any] = np.mean,
    layer: str = ALL_LAYERS,
) -> dict[str, Any]:
    """A mean (or `statistic`) over units with its bootstrap interval; NaN among the values is left out and not counted."""
    known: FloatArray = np.asarray(values, dtype=float)
    known = known[~np.isnan(known)]
    if len(known) == 0:
        return quantity(name, math.nan, n=0, layer=layer)
    interval = bootstrap(known, level=level, seed=seed, n_resamples=n_resamples, statistic=statistic)
    return quantity(name, float(statistic(known)), interval=interval, n=len(known), layer=layer)


def bootstrap(
    values: npt.ArrayLike,
    *,
    level: float = 0.95,
    seed: int = 0,
    n_resamples: int = 2000,
    statistic: Callable[..., Any] = np.mean,
) -> tuple[float, float]:
    """Percentile interval of a statistic over resamples of the values with repetition.

    Parameters
    ----------
    values : array, [n]
        May hold inf, not NaN.
    level : float, default 0.95
    seed : int, default 0
    n_resamples : int, default 2000
    statistic : callable, default numpy.mean
        Called with ``axis=1``.

    Returns
    -------
    low, high : float
        NaN for a single value, which says nothing about others.

    References
    ----------
    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    known: FloatArray = np.asarray(values, dtype=float)
    n = len(known)
    if n < 2:
        return math.nan, math.nan
    generator = np.random.default_rng(seed)
    at_once = max(1, _DRAWN_AT_ONCE // n)
    sizes = [min(at_once, n_resamples - start) for start in range(0, n_resamples, at_once)]
    found = np.concatenate([statistic(known[generator.integers(n, size=(size, n))], axis=1) for size in sizes])
    # an order statistic: between two of them, infinite ranks have no difference to interpolate
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return float(low), float(high)


def auroc_interval(
    auc: npt.ArrayLike, n_positive: npt.ArrayLike, n_negative: npt.ArrayLike, *, level: float = 0.95
) -> tuple[FloatArray, FloatArray]:
    """Interval of an area under the ROC curve, by solving for the true area as Wilson's does for a share.

    It stays within [0, 1] and has a width at an area of 1 too, where intervals from the placements' variance have none.

    Parameters
    ----------
    auc, n_positive, n_negative : float or array
        Broadcast against each other; NaN stays NaN.
    level : float, default 0.95

    Returns
    -------
    low, high : ndarray

    References
    ----------
    Newcombe, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic. Part 2", Statistics
    in Medicine 25, 2006, method 5; the variance is Hanley and McNeil's (Radiology 143, 1982).
    """
    auc, m, n = np.broadcast_arrays(np.asarray(auc, dtype=float), np.asarray(n_positive, dtype=float), np.asarray(n_negative, dtype=float))
    z = float(norm.ppf((1 + level) / 2))
    return _solved(auc, m, n, -z), _solved(auc, m, n, z)


def _solved(auc: FloatArray, m: FloatArray, n: FloatArray, z: float) -> FloatArray:
    """The area theta on one side of `auc` with theta - auc = z * its standard error at theta, by halving."""
    near, far = auc.copy(), np.where(np.isnan(auc), np.nan, 1.0 if z > 0 else 0.0)
    for _ in range(60):
        middle = (near + far) / 2
        inside = np.abs(middle - auc) <= abs(z) * _auroc_error(middle, m, n)
        near, far = np.where(inside, middle, near), np.where(inside, far, middle)
    return (near + far) / 2


def _auroc_error(theta: FloatArray, m: FloatArray, n: FloatArray) -> FloatArray:
    half = (m + n) / 2 - 1
    variance = theta * (1 - theta) * (1 + half * (1 - theta) / (2 - theta) + half * theta / (1 + theta)) / (m * n)
    return np.sqrt(variance)


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


def units_of(table: pd.DataFrame) -> list[Unit]:
    """(layer, unit) of every row."""
    return [(str(layer), int(unit)) for layer, unit in zip(table["layer"], table["unit"], strict=True)]


def text_vectors(encoder: TextEncoder, texts: Iterable[str]) -> dict[str, FloatArray]:
    """A unit vector for every text that occurs, each embedded once; "" has none.

    Raises
    ------
    InputError
        No encoder of texts, or vectors that are not one per text, not finite, or zero.
    """
    if not isinstance(encoder, TextEncoder):
        raise InputError(f"Expected an encoder with encode_texts(texts), but got {encoder!r:.80}.")
    names = [text for text in dict.fromkeys(texts) if text]
    if not names:
        return {}
    vectors = torch.as_tensor(encoder.encode_texts(names)).detach().cpu().double().numpy()
    if vectors.ndim != 2 or len(vectors) != len(names):
        raise InputError(f"Expected `encode_texts` to return [{len(names)}, d], but got {vectors.shape}.")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise InputError("Expected `encode_texts` to return finite vectors that are not zero, but one is not.")
    return dict(zip(names, vectors / lengths, strict=True))


def check_labels(report: Any, what: str = "a LabelReport") -> None:
    """Raise `InputError` unless it is a `LabelReport`."""
    if not isinstance(report, LabelReport):
        raise InputError(f"Expected {what} as `neuroprobe.dissect` makes it, but got {shown(report)}.")


def check_level(level: float, seed: int = 0) -> None:
    """Raise `InputError` for a level that is no probability, or a seed that is no whole number from 0."""
    if not isinstance(level, (int, float, np.number)) or not 0 < level < 1:
        raise InputError(f"Expected `level` to be between 0 and 1, such as 0.95, but got {level!r:.60}.")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise InputError(f"Expected a seed of 0 or more, a whole number, but got {seed!r:.60}.")


def check_counts(**counts: Any) -> None:
    """Raise `InputError` for one that is no whole number of at least 1."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise InputError(f"Expected `{name}` to be a whole number of at least 1, but got {value!r:.60}.")


def _to_json(value: Any) -> Any:
    """JSON has no infinity and no NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _from_json(value: Any) -> float:
    return math.nan if value is None else float(value)
