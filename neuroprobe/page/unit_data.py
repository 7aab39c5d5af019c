"""Units as data: a column per fact for all of them at once, and the details of a few at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from neuroprobe.page.examples import UnitActivity
from neuroprobe.page.scripts import Texts, column, number
from neuroprobe.page.units import Unit

#: Units in one script of details: what opening a unit loads.
CHUNK = 40

#: Images on a card.
N_ON_CARD = 4

#: Concepts of a unit, and probes of a unit, on its page.
N_CONCEPTS, N_PROBES = 5, 10

#: The heights of a card's histogram, a character each.
_LEVELS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"


@dataclass(frozen=True, eq=False)
class UnitFacts:
    """All that is known of the units.

    Attributes
    ----------
    units : DataFrame
        See `neuroprobe.page.units.page_units`; everything else belongs to its rows.
    activities : sequence of UnitActivity, or None
    ids : tuple of str
        The images of the activations.
    thumbnails : mapping from id to int
        Numbers of the pictures; an id without one has no picture.
    visualizations : mapping from unit to int
        Numbers of the pictures.
    effects : mapping from unit to list of int
        Numbers of the effects, see `neuroprobe.page.effect_data`.
    probed, best : mapping from unit to rows
        See `neuroprobe.page.probe_data`.
    """

    units: pd.DataFrame
    activities: Sequence[UnitActivity] | None = None
    ids: tuple[str, ...] = ()
    thumbnails: Mapping[str, int] = field(default_factory=dict)
    visualizations: Mapping[Unit, int] = field(default_factory=dict)
    effects: Mapping[Unit, list[int]] = field(default_factory=dict)
    probed: Mapping[Unit, pd.DataFrame] = field(default_factory=dict)
    best: Mapping[Unit, pd.DataFrame] = field(default_factory=dict)

    @property
    def keys(self) -> list[Unit]:
        """(layer, unit) of every row."""
        return [(str(layer), int(unit)) for layer, unit in zip(self.units["layer"], self.units["unit"], strict=True)]


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
    found: dict[str, Any] = {"concepts": _concepts(facts.units.iloc[row], texts)}
    for name in ("margin", "p_value"):
        if name in facts.units:
            found[name] = number(facts.units[name].iloc[row])
    if facts.activities is not None:
        activity = facts.activities[row]
        found["low"], found["high"] = number(activity.low), number(activity.high)
        found["counts"] = activity.counts.tolist()
        found["examples"] = _examples(activity, facts, texts)
    if key in facts.visualizations:
        found["visualization"] = facts.visualizations[key]
    if key in facts.effects:
        found["effects"] = facts.effects[key]
    if key in facts.probed:
        found["probes"] = _probes(facts.probed[key], texts)
    if key in facts.best:
        found["best"] = _best(facts.best[key], texts)
    return found


def _concepts(row: pd.Series[Any], texts: Texts) -> list[list[Any]]:
    """The best concepts with their scores; none of a unit that has no candidate."""
    first = next((row[name] for name in ("candidate", "concept") if isinstance(row.get(name), str) and row[name]), "")
    names = [(first, row.get("score"))] + [(row.get(f"concept_{rank}"), row.get(f"score_{rank}")) for rank in range(2, N_CONCEPTS + 1)]
    known = [(name, math.nan if score is None else score) for name, score in names if isinstance(name, str) and name]
    return [[texts.number(name), number(score)] for name, score in known]


def _examples(activity: UnitActivity, facts: UnitFacts, texts: Texts) -> list[list[Any]]:
    """Of each example: its group, its picture's number or None, its id, the activation, the share of images up to it."""
    found = [(shown, facts.ids[shown.row]) for shown in activity.examples]
    return [[s.group, facts.thumbnails.get(id_), texts.number(id_), number(s.value), number(s.share)] for s, id_ in found]


def _on_card(activity: UnitActivity, facts: UnitFacts) -> list[int]:
    strongest = [facts.ids[shown.row] for shown in activity.examples if shown.group == 0]
    return [facts.thumbnails[id_] for id_ in strongest if id_ in facts.thumbnails][:N_ON_CARD]


def _probes(rows: pd.DataFrame, texts: Texts) -> list[list[Any]]:
    """Of each probe: concept, kind, AUROC, accuracy, baseline, q-value."""
    columns = ("auroc", "test_accuracy", "baseline", "q_value")
    numbers = [[number(value) for value in rows[name]] if name in rows else [None] * len(rows) for name in columns]
    return [[texts.number(c), texts.number(k), *values] for c, k, *values in zip(rows["concept"], rows["kind"], *numbers, strict=True)]


def _best(rows: pd.DataFrame, texts: Texts) -> list[list[Any]]:
    """Of each probe for which the unit is the best of its layer: concept, checkpoint, accuracy, interval, baseline."""
    columns = ("test_accuracy", "test_accuracy_low", "test_accuracy_high", "baseline")
    numbers = [[number(value) for value in rows[name]] for name in columns]
    checkpoints = rows["checkpoint"] if "checkpoint" in rows else [""] * len(rows)
    return [[texts.number(c), texts.number(k), *values] for c, k, *values in zip(rows["concept"], checkpoints, *numbers, strict=True)]


def _texts(table: pd.DataFrame, name: str, texts: Texts) -> list[int | None]:
    """Numbers of texts; None for an empty one."""
    values = table[name] if name in table else [""] * len(table)
    return [texts.number(value) if isinstance(value, str) and value else None for value in values]
