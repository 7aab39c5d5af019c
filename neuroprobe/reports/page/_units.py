"""Units as data: a column per fact for all of them at once, and the details of a few at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from neuroprobe._core import Unit, places_at
from neuroprobe.recording import Activations
from neuroprobe.reports.base import units_of
from neuroprobe.reports.page._files import Texts, column, number
from neuroprobe.reports.page._study import Record

#: Units in one script of details: what opening a unit loads.
CHUNK = 40

#: Images on a card.
N_ON_CARD = 4

#: Concepts of a unit on its page.
N_CONCEPTS = 5

#: Numbers of a unit's probe by itself, and of one for which it is the best of its layer.
_PROBED = ("auroc", "test_accuracy", "baseline", "q_value")
_BEST = ("test_accuracy", "test_accuracy_low", "test_accuracy_high", "baseline")

#: The heights of a card's histogram, a character each.
_LEVELS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"

#: Bins of a histogram, of equal width over the unit's own range.
N_BINS = 24

#: Below the strongest images, so many about each of these shares of all images.
QUANTILES = (0.99, 0.9, 0.5)
N_AT_QUANTILE = 3

#: Units whose columns are copied at once; the activations may be a file larger than memory.
_BLOCK = 256


@dataclass(frozen=True, eq=False)
class UnitFacts:
    """All that is known of the units: everything belongs to the rows of `units`, see `Content`.

    Pictures and effects are their numbers; `ids` are the images of the activations. `probed` are the probes of a unit by itself,
    `best` those for which it is the best of its layer, `panels` their data by unit.
    """

    units: pd.DataFrame
    activities: Sequence[UnitActivity] | None = None
    ids: tuple[str, ...] = ()
    thumbnails: Mapping[str, int] = field(default_factory=dict)
    visualizations: Mapping[Unit, int] = field(default_factory=dict)
    effects: Mapping[Unit, list[int]] = field(default_factory=dict)
    probed: Mapping[Unit, list[Record]] = field(default_factory=dict)
    best: Mapping[Unit, list[Record]] = field(default_factory=dict)
    panels: Sequence[Mapping[Unit, Any]] = ()

    @cached_property
    def keys(self) -> list[Unit]:
        """(layer, unit) of every row."""
        return units_of(self.units)

    @cached_property
    def records(self) -> list[Record]:
        """The rows by their columns' names; far quicker to go through than the table."""
        found: list[Record] = self.units.to_dict("records")
        return found


def overview(facts: UnitFacts) -> dict[str, Any]:
    """What the grid needs of every unit: a list per fact, with texts as numbers of lists of texts."""
    layers, concepts, statuses = Texts(), Texts(), Texts()
    table, keys = facts.units, facts.keys
    found = {
        "layer": column(table["layer"], layers.number),
        "unit": column(table["unit"], int),
        "concept": _texts(table, "concept", concepts),
        "candidate": _texts(table, "candidate", concepts),
        "status": column(table["status"], statuses.number),
        **{
            short: column(table[name])
            for name, short in (("score", "score"), ("q_value", "q"), ("stability", "stability"))
            if name in table
        },
        "seen": [int(key in facts.visualizations) + 2 * int(key in facts.effects) for key in keys],
    }
    if facts.activities is not None:
        found["bars"] = [bars(activity.counts) for activity in facts.activities]
    if facts.thumbnails:
        found["thumbs"] = [_on_card(activity, facts) for activity in facts.activities or ()]
    return {"layers": layers.all, "concepts": concepts.all, "statuses": statuses.all, "chunk": CHUNK, "columns": found}


def bars(counts: npt.NDArray[np.int64]) -> str:
    """A character per bin, from "0" (empty) to "_": square roots of counts, so that rare strong activations are seen.

    Examples
    --------
    >>> bars(np.array([100, 0, 25, 1]))
    '_0V6'
    """
    if not len(counts):
        return ""
    heights = np.sqrt(counts / counts.max()) * (len(_LEVELS) - 1)
    # no image: no height; any image: at least some
    return "".join(_LEVELS[max(int(height), 1) if count else 0] for height, count in zip(heights, counts, strict=True))


def details(facts: UnitFacts, start: int) -> dict[str, Any]:
    """What the pages of the units from `start`, `CHUNK` of them, need."""
    texts, keys = Texts(), facts.keys[start : start + CHUNK]
    rows = range(start, start + len(keys))
    return {"start": start, "units": [_detail(facts, row, key, texts) for row, key in zip(rows, keys, strict=True)], "texts": texts.all}


def _detail(facts: UnitFacts, row: int, key: Unit, texts: Texts) -> dict[str, Any]:
    record = facts.records[row]
    found: dict[str, Any] = {"concepts": _concepts(record, texts)}
    found |= {name: number(record[name]) for name in ("margin", "p_value") if name in record}
    if facts.activities is not None:
        activity = facts.activities[row]
        found |= {"low": number(activity.low), "high": number(activity.high), "counts": activity.counts.tolist()}
        found["examples"] = _examples(activity, facts, texts)
    if key in facts.visualizations:
        found["visualization"] = facts.visualizations[key]
    if key in facts.effects:
        found["effects"] = facts.effects[key]
    if key in facts.probed:
        found["probes"] = [_numbered(probe, texts, "kind", _PROBED) for probe in facts.probed[key]]
    if key in facts.best:
        found["best"] = [_numbered(probe, texts, "checkpoint", _BEST) for probe in facts.best[key]]
    if panels := [[at, data[key]] for at, data in enumerate(facts.panels) if key in data]:
        found["panels"] = panels
    return found


def _concepts(record: Record, texts: Texts) -> list[list[Any]]:
    """The best concepts with their scores; none of a unit that has no candidate."""
    first = next((record[name] for name in ("candidate", "concept") if is_text(record.get(name))), "")
    ranks = range(2, N_CONCEPTS + 1)
    names = [(first, record.get("score", math.nan))] + [(record.get(f"concept_{r}"), record.get(f"score_{r}", math.nan)) for r in ranks]
    return [[texts.number(name), number(score)] for name, score in names if is_text(name)]


def _numbered(record: Record, texts: Texts, second: str, columns: Sequence[str]) -> list[Any]:
    """A probe: its concept, another text, and its numbers."""
    return [
        texts.number(record["concept"]),
        texts.number(record.get(second, "")),
        *(number(record.get(name, math.nan)) for name in columns),
    ]


def _examples(activity: UnitActivity, facts: UnitFacts, texts: Texts) -> list[list[Any]]:
    """Of each example: its group, its picture's number or None, its id, the activation, the share of images up to it."""
    found = [(shown, facts.ids[shown.row]) for shown in activity.examples]
    return [[s.group, facts.thumbnails.get(id_), texts.number(id_), number(s.value), number(s.share)] for s, id_ in found]


def _on_card(activity: UnitActivity, facts: UnitFacts) -> list[int]:
    strongest = [facts.ids[shown.row] for shown in activity.examples if shown.group == 0]
    return [facts.thumbnails[id_] for id_ in strongest if id_ in facts.thumbnails][:N_ON_CARD]


def _texts(table: pd.DataFrame, name: str, texts: Texts) -> list[int | None]:
    """Numbers of texts; None for an empty one."""
    values = table[name] if name in table else [""] * len(table)
    return [texts.number(value) if is_text(value) else None for value in values]


def is_text(value: Any) -> bool:
    """Whether a cell of a table holds a text that is not empty."""
    return isinstance(value, str) and bool(value)


# --- activations: how they are spread, and images along their whole range


@dataclass(frozen=True)
class Shown:
    """An image shown for a unit.

    Attributes
    ----------
    group : int
        0 for the strongest, then the places in `QUANTILES`, from 1.
    row : int
        Of the activations.
    value : float
        The activation.
    share : float
        Of all images, those with at most this activation, in [0, 1].
    """

    group: int
    row: int
    value: float
    share: float


@dataclass(frozen=True, eq=False)
class UnitActivity:
    """What a unit did on all images.

    Attributes
    ----------
    low, high : float
        Its range.
    counts : ndarray of int, [N_BINS], or [0] for a unit that is the same on every image
        Images in each bin; the last one holds its upper edge.
    examples : tuple of Shown
        None for a unit that is the same on every image.
    """

    low: float
    high: float
    counts: npt.NDArray[np.int64]
    examples: tuple[Shown, ...]


def unit_activities(activations: Activations, units: pd.DataFrame, *, n_examples: int) -> list[UnitActivity]:
    """One per row of `units`, whose layers stand together."""
    found: list[UnitActivity] = []
    for layer, part in units.groupby("layer", sort=False):
        array, numbers = activations[str(layer)], part["unit"].to_numpy()
        for start in range(0, len(numbers), _BLOCK):
            block = np.asarray(array[:, numbers[start : start + _BLOCK]], dtype=np.float64)  # [n_images, n_block]
            found += [unit_activity(values, n_examples=n_examples) for values in np.ascontiguousarray(block.T)]
    return found


def unit_activity(values: npt.NDArray[np.float64], *, n_examples: int) -> UnitActivity:
    """Of one unit's activations, [n_images]."""
    values = values + 0.0  # negative zero is zero
    low, high = float(values.min()), float(values.max())
    if low == high:
        return UnitActivity(low, high, np.zeros(0, dtype=np.int64), ())
    counts = np.histogram(values, bins=N_BINS, range=(low, high))[0]
    return UnitActivity(low, high, counts, tuple(_shown(values, n_examples)))


def _shown(values: npt.NDArray[np.float64], n_examples: int) -> Iterator[Shown]:
    order = np.argsort(-values, kind="stable")  # strongest first, ties by row
    ascending, n = values[order[::-1]], len(values)
    for group, (quantile, k) in enumerate([(1.0, n_examples), *((quantile, N_AT_QUANTILE) for quantile in QUANTILES)]):
        for place in places_at(ascending, quantile, k):
            value = values[order[place]]
            share = np.searchsorted(ascending, value, side="right") / n
            yield Shown(group, int(order[place]), float(value), float(share))
