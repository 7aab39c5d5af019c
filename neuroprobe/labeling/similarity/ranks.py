"""Rank reorder: how well a concept orders a unit's most active images (CLIP-Dissect's appendix)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn.functional import embedding_bag

from neuroprobe._core import check_number
from neuroprobe.labeling.similarity._registry import whole
from neuroprobe.labeling.similarity._scorer import Columns
from neuroprobe.labeling.similarity._top_images import UNITS, TopImageScorer, ranks_within, share_of, sort_integers

if TYPE_CHECKING:
    from neuroprobe.concepts import ConceptScores


class OrderedUnits(NamedTuple):
    """Units by the order of their highest images."""

    rows: torch.Tensor  # [n_units, k], highest first
    values: torch.Tensor  # the images' activations, from 0 to 1, [n_units, k]
    baselines: torch.Tensor  # what a random order's error is expected to be, [n_units]


class RankReorderScorer(TopImageScorer[OrderedUnits]):
    """How well a concept orders a unit's most active images (CLIP-Dissect, appendix), negated; of cosine similarities.

    The unit's highest activations are put in the order of the concept's scores; the mean of `|difference|^p` from the
    unit's own order is divided by what a random order would give, and by the concept's mean score on these images to
    the power `scale`.

    What a random order gives is its exact expectation: of the published code's baseline, the mean over images of
    `|x_i - x_r(i)|^p` for random orders r of the unit's highest activations x, the mean over all pairs i, j (i = j
    included) of `|x_i - x_j|^p`. The published code draws five orders anew for every unit, so that its scores, all of a
    unit's by one common factor, differ from run to run (by some 10 to 20 %), and are on average slightly further from
    0 than these, because the mean of a reciprocal is more than the reciprocal of the mean.

    Parameters
    ----------
    top_fraction : float, default 0.05
        Share of the images used, the unit's most active ones, rounded down; at least one image.
    p : float, default 3
    scale : float, default 0.5
    min_mean : float, default 1e-3
        Mean scores below this count as this; the published function has no value where the mean is negative.

    Returns
    -------
    array or Tensor, [n_units, n_concepts]
        Below 0, without unit. A unit that is the same on all its images counts as ordered at random.

    Raises
    ------
    InputError
        A parameter out of its range.
    """

    def __init__(
        self, scores: ConceptScores, *, top_fraction: float = 0.05, p: float = 3.0, scale: float = 0.5, min_mean: float = 1e-3
    ) -> None:
        check_number("top_fraction", top_fraction, low=0, high=1, above=True)
        check_number("p", p, low=0, above=True)
        check_number("scale", scale, low=0)
        check_number("min_mean", min_mean, low=0, above=True)
        super().__init__(scores)
        self._top_fraction, self._p, self._scale, self._min_mean = top_fraction, p, scale, min_mean

    @property
    def k(self) -> int:
        return share_of(self.n_images, self._top_fraction)

    def _kept(self, rows: torch.Tensor, values: torch.Tensor) -> OrderedUnits:
        values = _unit_interval(values)
        baselines = torch.stack([_powers(x[:, None] - x, self._p).mean() for x in values])
        return OrderedUnits(rows, values, baselines)

    def concentration(self, units: OrderedUnits) -> torch.Tensor:
        """Sum of the fourth powers of the values, scaled to length 1: how few of the images decide the error, [n_units]."""
        squares = units.values.square()
        return squares.square().sum(dim=1) / squares.sum(dim=1).square().clip(1e-12)

    def comparable(self, best: torch.Tensor) -> torch.Tensor:
        """The logarithm of the error: where one image decides, it falls to a tiny share of the usual by chance alone."""
        return best.neg().clamp_min(1e-12).log().neg()

    def block(self, units: OrderedUnits, columns: Columns) -> torch.Tensor:
        return torch.cat([self._part(units, part) for part in self.parts(columns)], dim=1)

    def _part(self, units: OrderedUnits, columns: Columns) -> torch.Tensor:
        rows, values, baselines = units
        scores = self.matrix(columns)
        means = embedding_bag(rows, scores, mode="mean").clip_(self._min_mean)
        errors = torch.empty_like(means)
        for column, ranks in enumerate(self._keys(scores)):
            for start in range(0, len(rows), UNITS):
                some = slice(start, start + UNITS)
                errors[some, column] = self._errors(rows[some], values[some], ranks)
        relative = torch.where(baselines[:, None] > 0, errors / baselines[:, None], 1)
        return relative.div_(means.pow_(self._scale)).neg_()

    def _keys(self, scores: torch.Tensor) -> torch.Tensor:
        """The images' ranks by every concept's scores, times the power of two that leaves room for k, [n_columns, n_images]."""
        ranks = ranks_within(scores.T.contiguous()) * self._room
        return ranks.int() if self.n_images * self._room < 1 << 31 else ranks

    @property
    def _room(self) -> int:
        return 1 << (self.k - 1).bit_length()

    def _errors(self, rows: torch.Tensor, values: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Mean |difference|^p of every unit's own order of values and that by one concept, [n_units]."""
        place = torch.arange(self.k, device=keys.device, dtype=keys.dtype)
        drawn = keys.index_select(0, rows.flatten()).view_as(rows)
        by_concept = sort_integers(drawn.add_(place)) & (self._room - 1)  # places in the unit's order, lowest score first
        return _powers(values.gather(1, by_concept.long()) - values.flip(1), self._p).mean(dim=1)


def _unit_interval(values: torch.Tensor) -> torch.Tensor:
    """Lines, highest first, shifted and scaled to [0, 1], which changes no ratio of errors but keeps powers in range."""
    values = values / values.abs().amax(dim=1, keepdim=True).clip(torch.finfo(values.dtype).tiny)  # no range overflows
    low, high = values[:, -1:], values[:, :1]
    return (values - low) / torch.where(high > low, high - low, 1)


def _powers(differences: torch.Tensor, p: float) -> torch.Tensor:
    """|difference|^p; in place."""
    size = differences.abs_()
    return size.mul_(size * size) if p == 3 else size.pow_(p)


rank_reorder = whole("rank_reorder", RankReorderScorer)
