"""One layer's units and their labels.

The units are what a scorer needs of them: as they are, shuffled, and resampled; from activations or a summary. The labels are
the best concepts of each unit, how likely chance gives as good a one, and how stable it is.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from neuroprobe._core import BoolArray, Floats, Rows, check_units
from neuroprobe.exceptions import InputError, UnknownNameError
from neuroprobe.labeling._null import null_prior, null_sources, p_values, shuffled, shuffled_rows
from neuroprobe.labeling.similarity._scorer import Scorer, UnitPart, joined, some_units
from neuroprobe.recording import ActivationSummary, Recorded, UnitStatistics

#: Concepts per unit among which a resample's winner is looked for.
RIVALS = 20

_UNITS = 256  # whose activations are copied at a time


class LayerUnits(ABC):
    """The units of a layer."""

    varies: BoolArray  # whether a unit is not the same on every image, [n_units]

    def __len__(self) -> int:
        return len(self.varies)

    @abstractmethod
    def parts(self, scorer: Scorer[Any]) -> UnitPart:
        """What the scorer needs of all units."""

    @abstractmethod
    def null_parts(self, scorer: Scorer[Any], sources: Rows, generator: np.random.Generator) -> UnitPart:
        """The same of null units made from the units `sources`."""

    def resampled_parts(self, scorer: Scorer[Any], rows: Rows) -> UnitPart | None:
        """The same of all units on images drawn with repetition; None where that cannot be known."""
        return None


class RecordedUnits(LayerUnits):
    """Units whose activations were recorded, float32 [n_images, n_units].

    Raises
    ------
    InputError
        Values that are not finite: of a store changed since it was recorded, or beyond the range of float32.
    """

    def __init__(self, values: npt.NDArray[np.float32]) -> None:
        with np.errstate(over="ignore"):  # told below
            self._values = np.asarray(values, dtype=np.float32)
        highest, lowest = self._values.max(axis=0), self._values.min(axis=0)
        wrong = np.flatnonzero(~(np.isfinite(highest) & np.isfinite(lowest)))
        if len(wrong):
            raise InputError(f"Expected activations that are finite as float32, but some of unit {wrong[0]} are not. Record them again.")
        self.varies = highest != lowest

    def parts(self, scorer: Scorer[Any]) -> UnitPart:
        # copies: torch wants arrays that may be written to, and columns that lie together
        return _scored(scorer, (np.array(self._values[:, start : start + _UNITS]) for start in range(0, len(self), _UNITS)))

    def null_parts(self, scorer: Scorer[Any], sources: Rows, generator: np.random.Generator) -> UnitPart:
        return _scored(scorer, shuffled(self._values, sources, generator, size=_UNITS))

    def resampled_parts(self, scorer: Scorer[Any], rows: Rows) -> UnitPart:
        return _scored(scorer, (self._values[rows, start : start + _UNITS] for start in range(0, len(self), _UNITS)))


class SummarizedUnits(LayerUnits):
    """Units of which only the highest activations are known, and the mean and variance of all; `row_of` an id is that of the scores."""

    def __init__(self, statistics: UnitStatistics, row_of: Mapping[str, int]) -> None:
        rows = {number: row_of[id_] for number, id_ in statistics.image_ids.items() if id_ in row_of}
        if len(rows) < len(statistics.image_ids) or statistics.count != len(row_of):
            raise InputError(
                f"Expected a summary of the {len(row_of)} images that were scored, but it is of {statistics.count} images, not all of "
                "them among those. Make both in one pass (`neuroprobe.images.collect`)."
            )
        numbers, place = np.unique(statistics.top_rows, return_inverse=True)
        found = np.array([rows[int(number)] for number in numbers])[place].reshape(statistics.top_rows.shape)
        self._rows, self._values = torch.from_numpy(found), torch.from_numpy(statistics.top_values)
        self._mean = torch.from_numpy(statistics.mean).float()
        self._std = torch.from_numpy(np.sqrt(statistics.variance)).float()
        self.varies = statistics.maximum != statistics.minimum
        lowest = statistics.top_values[:, -1:]  # kept only for its low row, where all that was left out is as high
        self._n_tied = np.where(lowest[:, 0] == statistics.minimum, (statistics.top_values == lowest).sum(axis=1), 0)

    def parts(self, scorer: Scorer[Any]) -> UnitPart:
        found: UnitPart = scorer.units_from_top(self._rows, self._values, self._mean, self._std)
        return found

    def null_parts(self, scorer: Scorer[Any], sources: Rows, generator: np.random.Generator) -> UnitPart:
        rows = shuffled_rows(self._n_tied[sources], self._rows.shape[1], scorer.n_images, generator)
        found: UnitPart = scorer.units_from_top(rows, self._values[sources], self._mean[sources], self._std[sources])
        return found


#: Units asked for: the same numbers of every layer, or by layer.
Units: TypeAlias = "Iterable[int] | Mapping[str, Iterable[int]]"


def chosen_units(units: Units | None, sizes: Mapping[str, int]) -> dict[str, list[int]]:
    """The units asked for of every layer, all by default; `sizes` are the layers' numbers of units.

    Raises
    ------
    InputError
        A unit the layer does not have, or one twice.
    UnknownNameError
        Units of another layer.
    """
    by_layer = units if isinstance(units, Mapping) else {}
    if units is not None and not isinstance(units, Mapping):
        by_layer = dict.fromkeys(sizes, list(units) if isinstance(units, Iterator) else units)
    for layer in by_layer:
        if layer not in sizes:
            raise UnknownNameError(f"Expected `units` for the layers {list(sizes)}, but got {layer!r}.")
    none = [layer for layer, asked in by_layer.items() if isinstance(units, Mapping) and isinstance(asked, Sized) and not len(asked)]
    return {
        layer: [] if layer in none else check_units(layer, by_layer[layer], n_units) if layer in by_layer else list(range(n_units))
        for layer, n_units in sizes.items()
    }


def layer_units(recorded: Recorded, layer: str, ids: Sequence[str]) -> LayerUnits:
    """The units of a recorded layer, for scores of the images `ids`."""
    if isinstance(recorded, ActivationSummary):
        return SummarizedUnits(recorded[layer], {id_: row for row, id_ in enumerate(ids)})
    return RecordedUnits(recorded[layer])


def _scored(scorer: Scorer[Any], blocks: Iterable[npt.NDArray[np.float32] | torch.Tensor]) -> UnitPart:
    return joined([scorer.units(torch.as_tensor(block).to(scorer.image_vectors.device)) for block in blocks])


@dataclass(frozen=True, eq=False)
class LayerLabels:
    """The best concepts of every unit of a layer."""

    scores: npt.NDArray[np.float32]  # highest first, [n_units, m]
    concepts: Rows  # their concepts' columns, of equal scores the lower first, [n_units, m]
    p_values: Floats  # NaN where not asked for, [n_units]
    stability: Floats  # share of resamples of the images in which the best concept stays the best, NaN where not known, [n_units]


def label_layer(
    layer: str,
    units: LayerUnits,
    scorer: Scorer[Any],
    *,
    top: int,
    n_null: int,
    n_bootstrap: int,
    seed: int,
    controls: Sequence[LayerUnits] = (),
) -> LayerLabels:
    """Score all units by all concepts, in blocks of concepts; the numbers are those of `dissect`, the name is for messages.

    Of `controls`, which take the null units' place, each unit that varies stands in the layer in place of the one of its number.

    Raises
    ------
    InputError
        Scores that are not finite, a prior that cancels every score, or a control of which no unit varies.
    """
    check_prior(layer, len(units), scorer)
    generator, resampling = (np.random.default_rng((seed, i)) for i in range(2))  # the same for every layer, whatever its name
    part = units.parts(scorer)
    if controls and n_null:
        places = np.flatnonzero(np.concatenate([control.varies for control in controls]))  # as in the null from shuffled images
        if not len(places):
            raise InputError(f"Expected a control of which some units of {layer!r} vary, but each is the same on every image.")
        null_part: UnitPart | None = some_units(joined([control.parts(scorer) for control in controls]), torch.from_numpy(places))
        sources = places % len(units)
    else:
        sources = null_sources(units.varies, n_null, generator)
        null_part = units.null_parts(scorer, sources, generator) if len(sources) else None
    sweep = _Sweep(scorer, part, null_part, torch.from_numpy(sources), kept=max(top, RIVALS))
    p = np.full(len(units), np.nan) if null_part is None else _p_values(scorer, sweep, part, null_part)
    stability = _stability(units, scorer, sweep, n_bootstrap, resampling)
    return LayerLabels(sweep.scores[:, :top].numpy(), sweep.concepts[:, :top].numpy(), p, stability)


def check_prior(layer: str, n_units: int, scorer: Scorer[Any]) -> None:
    """Raise `InputError` if the prior of a layer of so many units leaves nothing of its scores."""
    if n_units == 1 and scorer.prior_weight == 1:
        raise InputError(
            f"Expected more than one unit in {layer!r}, since the prior over its units takes all of a single unit's scores away. "
            "Pass parameters={'prior': None}, or another similarity function."
        )


class _Sweep:
    """Each unit's best concepts, each null unit's best score, each concept's prior; in blocks of concepts."""

    def __init__(self, scorer: Scorer[Any], part: UnitPart, null_part: UnitPart | None, sources: torch.Tensor, *, kept: int) -> None:
        n_units, n_null = len(part[0]), len(sources)
        sources = sources.to(scorer.image_vectors.device)
        self.prior = torch.zeros(scorer.n_concepts)
        self.scores, self.concepts = torch.empty(n_units, 0), torch.empty(n_units, 0, dtype=torch.long)
        self.null_best = torch.full((n_null,), -torch.inf)
        self.scale = scorer.scales(part)
        null_scale = self.scale if null_part is None else scorer.scales(null_part)
        for columns in scorer.blocks(n_units + n_null):
            scaled = scorer.block(part, columns) / self.scale  # [n_units, n_columns]
            if not bool(torch.isfinite(scaled).all()):
                raise InputError(f"Expected finite similarities, but {type(scorer).__name__} returned some that are not.")
            prior = scorer.prior(scaled) if scorer.prior_weight else torch.zeros(1, device=scaled.device)
            self.prior[columns] = prior.cpu()
            self._keep_best((self.scale * (scaled - prior)).cpu(), columns.start, kept)
            if null_part is not None:
                null_scaled = scorer.block(null_part, columns) / null_scale
                met = null_prior(scorer, scaled, null_scaled, sources) if scorer.prior_weight else 0.0
                self.null_best = torch.maximum(self.null_best, (null_scale * (null_scaled - met)).amax(dim=1).cpu())

    def _keep_best(self, scores: torch.Tensor, first: int, kept: int) -> None:
        values, places = torch.topk(scores, min(kept, scores.shape[1]), dim=1)
        values, places = torch.cat([self.scores, values], dim=1), torch.cat([self.concepts, places + first], dim=1)
        by_place = torch.argsort(places, dim=1)  # so that of equal scores the lower column comes first
        values, places = values.gather(1, by_place), places.gather(1, by_place)
        order = torch.argsort(values, dim=1, descending=True, stable=True)[:, :kept]
        self.scores, self.concepts = values.gather(1, order), places.gather(1, order)


def _p_values(scorer: Scorer[Any], sweep: _Sweep, part: UnitPart, null_part: UnitPart) -> Floats:
    ours, theirs = scorer.concentration(part), scorer.concentration(null_part)
    return p_values(
        scorer.comparable(sweep.scores[:, 0]).numpy(),
        scorer.comparable(sweep.null_best).numpy(),
        concentration=None if ours is None else ours.cpu().numpy(),
        null_concentration=None if theirs is None else theirs.cpu().numpy(),
    )


class _OtherUnits:
    """The prior of each unit's kept concepts where the unit's own scores change and the other units' stay.

    Where a unit's own score makes all of the sum over units, what is left is rounding, and nothing beside the unit's own.
    """

    def __init__(self, scorer: Scorer[Any], sweep: _Sweep) -> None:
        self._weight, self._temperature, self._scale = scorer.prior_weight, scorer.prior_temperature, sweep.scale.cpu()
        prior = sweep.prior[sweep.concepts]  # [n_units, kept]
        total = prior / (self._weight * self._temperature) + math.log(len(prior))
        own = (sweep.scores / self._scale + prior) / self._temperature
        self._log_sum = total + torch.log1p(-torch.exp((own - total).clamp_max(-1e-6)))

    def prior(self, raw: torch.Tensor) -> torch.Tensor:
        """What is taken off raw scores by the kept concepts, [n_units, kept]."""
        log_mean = torch.logaddexp(self._log_sum, raw / self._scale / self._temperature) - math.log(len(raw))
        return self._scale * self._weight * self._temperature * log_mean


def _stability(units: LayerUnits, scorer: Scorer[Any], sweep: _Sweep, n_bootstrap: int, generator: np.random.Generator) -> Floats:
    """Share of resamples in which a unit's best concept beats its rivals; the other units stay as they are on all images."""
    kept, columns = np.zeros(len(units)), sweep.concepts.to(scorer.image_vectors.device)
    others = _OtherUnits(scorer, sweep) if scorer.prior_weight else None
    for _ in range(n_bootstrap):
        rows = generator.integers(scorer.n_images, size=scorer.n_images)
        resampled = scorer.resampled(torch.from_numpy(rows).to(scorer.image_vectors.device))
        part = units.resampled_parts(resampled, rows)
        if part is None:
            return np.full(len(units), np.nan)
        scores = resampled.candidates(part, columns).cpu()
        if others is not None:
            scores = scores - others.prior(scores)
        kept += (scores[:, :1] >= scores).all(dim=1).numpy()
    return kept / n_bootstrap if n_bootstrap else np.full(len(units), np.nan)
