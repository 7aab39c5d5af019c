"""The labels of one layer's units: the best concepts of each, how likely chance gives as good a one, and how stable it is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from neuroprobe._core import Floats
from neuroprobe.exceptions import InputError
from neuroprobe.labeling._null import joined, null_prior, null_sources, p_values
from neuroprobe.labeling._units import LayerUnits
from neuroprobe.labeling.similarity.peaks import SMALLEST_BEST
from neuroprobe.labeling.similarity.scoring import Scorer, UnitPart

#: Concepts per unit among which a resample's winner is looked for.
RIVALS = 20

_BLOCK_BYTES = 1 << 26  # of [units and null units, concepts] or [images, concepts], float32


@dataclass(frozen=True, eq=False)
class LayerLabels:
    """The best concepts of every unit of a layer.

    Attributes
    ----------
    scores : ndarray, [n_units, m]
        Highest first.
    concepts : ndarray of int, [n_units, m]
        Their concepts' columns; of equal scores the lower column comes first.
    p_values : ndarray, [n_units]
        NaN where not asked for.
    stability : ndarray, [n_units]
        Share of bootstrap resamples of the images in which the best concept stays the best; NaN where not known.
    """

    scores: npt.NDArray[np.float32]
    concepts: npt.NDArray[np.int64]
    p_values: Floats
    stability: Floats


def label_layer(
    layer: str,
    units: LayerUnits,
    scorer: Scorer,
    *,
    top: int,
    n_null: int,
    n_bootstrap: int,
    seed: int,
    controls: Sequence[LayerUnits] = (),
) -> LayerLabels:
    """Score all units by all concepts, in blocks of concepts.

    Parameters
    ----------
    layer : str
        Its name, for messages.
    units : LayerUnits
    scorer : Scorer
    top : int
        Concepts kept per unit, if there are as many.
    n_null : int
        Null units; 0 for no p-values.
    n_bootstrap : int
        Resamples; 0 for no stability.
    seed : int
    controls : sequence of LayerUnits, default ()
        Units that take the null units' place, each that varies as though it stood in the layer in place of one of its units.

    Returns
    -------
    LayerLabels

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
        of_all = joined([control.parts(scorer) for control in controls])
        null_part: UnitPart | None = tuple(tensor[torch.from_numpy(places).to(tensor.device)] for tensor in of_all)
        sources = places % len(units)
    else:
        sources = null_sources(units.varies, n_null, generator)
        null_part = units.null_parts(scorer, sources, generator) if len(sources) else None
    sweep = _Sweep(scorer, part, null_part, torch.from_numpy(sources), kept=max(top, RIVALS))
    stability = _stability(units, scorer, sweep, n_bootstrap, resampling)
    return LayerLabels(sweep.scores[:, :top].numpy(), sweep.concepts[:, :top].numpy(), sweep.p_values(), stability)


def check_prior(layer: str, n_units: int, scorer: Scorer) -> None:
    """Raise `InputError` if the prior of a layer of so many units leaves nothing of its scores."""
    if n_units == 1 and scorer.prior_weight == 1:
        raise InputError(
            f"Expected more than one unit in {layer!r}, since the prior over its units takes all of a single unit's scores away. "
            "Pass parameters={'prior': None}, or another similarity function."
        )


class _Sweep:
    """Each unit's best concepts, each null unit's best score, each concept's prior; in blocks of concepts."""

    def __init__(self, scorer: Scorer, part: UnitPart, null_part: UnitPart | None, sources: torch.Tensor, *, kept: int) -> None:
        self._scorer, self._part, self._null_part = scorer, part, null_part
        n_units, n_null = len(part[0]), len(sources)
        self._sources = sources.to(scorer.image_vectors.device)
        self.prior = torch.zeros(scorer.n_concepts)
        self.scores, self.concepts = torch.empty(n_units, 0), torch.empty(n_units, 0, dtype=torch.long)
        self._null_best = torch.full((n_null,), -torch.inf)
        blocks = list(_blocks(scorer, n_units + n_null))
        self.scale, self._null_scale = self._scales(part, blocks), self._scales(null_part, blocks)
        for columns in blocks:
            self._take(columns, kept)

    def _scales(self, part: UnitPart | None, blocks: list[slice]) -> torch.Tensor:
        """Of every unit: its best raw score where the prior is relative, else 1; [n_units, 1]."""
        device = self._scorer.image_vectors.device
        if part is None or not (self._scorer.prior_weight and self._scorer.prior_relative):
            return torch.ones(1, 1, device=device)
        best = torch.full((len(part[0]),), SMALLEST_BEST, device=device)
        for columns in blocks:
            best = torch.maximum(best, self._scorer.block(part, columns).amax(dim=1))
        return best[:, None]

    def _take(self, columns: slice, kept: int) -> None:
        scaled = self._scorer.block(self._part, columns) / self.scale  # [n_units, n_columns]
        if not bool(torch.isfinite(scaled).all()):
            raise InputError(f"Expected finite similarities, but {type(self._scorer).__name__} returned some that are not.")
        prior = self._scorer.prior(scaled) if self._scorer.prior_weight else torch.zeros(1, device=scaled.device)
        if self._null_part is not None:
            null_scaled = self._scorer.block(self._null_part, columns) / self._null_scale
            met = null_prior(self._scorer, scaled, null_scaled, self._sources) if self._scorer.prior_weight else 0.0
            best = (self._null_scale * (null_scaled - met)).amax(dim=1)
            self._null_best = torch.maximum(self._null_best, best.cpu())
        self.prior[columns] = prior.cpu()
        self._keep_best((self.scale * (scaled - prior)).cpu(), columns.start, kept)

    def _keep_best(self, scores: torch.Tensor, first: int, kept: int) -> None:
        values, places = torch.topk(scores, min(kept, scores.shape[1]), dim=1)
        values, places = torch.cat([self.scores, values], dim=1), torch.cat([self.concepts, places + first], dim=1)
        by_place = torch.argsort(places, dim=1)  # so that of equal scores the lower column comes first
        values, places = values.gather(1, by_place), places.gather(1, by_place)
        order = torch.argsort(values, dim=1, descending=True, stable=True)[:, :kept]
        self.scores, self.concepts = values.gather(1, order), places.gather(1, order)

    def log_sum_of_others(self) -> torch.Tensor:
        """log sum exp of the other units' scaled scores, by each unit's kept concepts, [n_units, kept].

        Where the unit's own makes all of the sum, what is left is rounding, and nothing beside the unit's own.
        """
        temperature, scale = self._scorer.prior_temperature, self.scale.cpu()
        log_mean = self.prior[self.concepts] / (self._scorer.prior_weight * temperature)
        total = log_mean + math.log(len(self.scores))
        own = (self.scores / scale + self.prior[self.concepts]) / temperature
        return total + torch.log1p(-torch.exp((own - total).clamp_max(-1e-6)))

    def prior_beside(self, others: torch.Tensor, raw: torch.Tensor) -> torch.Tensor:
        """What is taken off raw scores [n_units, kept] by the kept concepts, beside the other units."""
        temperature, scale = self._scorer.prior_temperature, self.scale.cpu()
        log_mean = torch.logaddexp(others, raw / scale / temperature) - math.log(len(raw))
        return scale * self._scorer.prior_weight * temperature * log_mean

    def p_values(self) -> Floats:
        if self._null_part is None:
            return np.full(len(self.scores), np.nan)
        ours, theirs = self._scorer.concentration(self._part), self._scorer.concentration(self._null_part)
        return p_values(
            self._scorer.comparable(self.scores[:, 0]).numpy(),
            self._scorer.comparable(self._null_best).numpy(),
            concentration=None if ours is None else ours.cpu().numpy(),
            null_concentration=None if theirs is None else theirs.cpu().numpy(),
        )


def _blocks(scorer: Scorer, n_rows: int) -> Iterator[slice]:
    size = max(64, min(1024, _BLOCK_BYTES // (4 * max(n_rows, scorer.n_images))))
    for start in range(0, scorer.n_concepts, size):
        yield slice(start, min(start + size, scorer.n_concepts))


def _stability(units: LayerUnits, scorer: Scorer, sweep: _Sweep, n_bootstrap: int, generator: np.random.Generator) -> Floats:
    """Share of resamples in which a unit's best concept beats its rivals; the other units stay as they are on all images."""
    kept, columns = np.zeros(len(units)), sweep.concepts.to(scorer.image_vectors.device)
    others = sweep.log_sum_of_others() if scorer.prior_weight else None
    for _ in range(n_bootstrap):
        rows = generator.integers(scorer.n_images, size=scorer.n_images)
        resampled = scorer.resampled(torch.from_numpy(rows).to(scorer.image_vectors.device))
        part = units.resampled_parts(resampled, rows)
        if part is None:
            return np.full(len(units), np.nan)
        scores = resampled.candidates(part, columns).cpu()
        if others is not None:
            scores = scores - sweep.prior_beside(others, scores)
        kept += (scores[:, :1] >= scores).all(dim=1).numpy()
    return kept / n_bootstrap if n_bootstrap else np.full(len(units), np.nan)
