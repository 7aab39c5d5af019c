"""Scorers of the similarity functions that are no matrix product: sums over a unit's, or a concept's, highest images.

Each scores blocks of concepts from the embeddings; what they have in common:

- of a unit they need the rows of its highest images (and their values), which a recording's summary keeps too
  (`units_from_top`); `average_precision` needs all of the unit's activations;
- the softmax over concepts takes two sweeps over blocks of concepts: one for the logarithms of its denominators, one per
  image, when the scorer is made; the other when blocks are asked for;
- a block is cut into parts of the width that fits the cache.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Self

import torch
from torch.nn.functional import embedding_bag

from neuroprobe.concepts import ConceptScores
from neuroprobe.exceptions import InputError
from neuroprobe.labeling.similarity._arrays import share_of
from neuroprobe.labeling.similarity._kernels import sum_of_logs
from neuroprobe.labeling.similarity._ordering import highest_images, ranks_within, sort_integers
from neuroprobe.labeling.similarity._softmax import BlockedSoftmax, split_columns
from neuroprobe.labeling.similarity.detection import check_share, images_at_least, images_with
from neuroprobe.labeling.similarity.scoring import Columns, Scorer, UnitPart
from neuroprobe.labeling.similarity.wpmi import (
    Prior,
    check_rank_reorder,
    check_wpmi,
    example_probabilities,
    powers,
    unit_interval,
)

_FEW = 0.6  # the share of images in use below which the others are left out
_UNITS = 64  # whose highest images are sorted at a time: as many as the cache holds


class TopImageScorer(Scorer):
    """A function of the highest images of every unit."""

    @property
    @abstractmethod
    def k(self) -> int:
        """How many images of a unit are needed."""

    def units(self, activations: torch.Tensor) -> UnitPart:
        """The rows of the highest images and their values, from float32 [n_images, n_units]."""
        rows = highest_images(activations, self.k)
        return self.units_from_top(rows, activations.T.gather(1, rows))

    def units_from_top(
        self, rows: torch.Tensor, values: torch.Tensor, mean: torch.Tensor | None = None, std: torch.Tensor | None = None
    ) -> UnitPart:
        """What is needed of units, from their highest images alone; `mean` and `std` are not needed.

        Parameters
        ----------
        rows : LongTensor, [n_units, at least k]
            Row numbers, highest first.
        values : Tensor, the same shape
            Their activations.

        Raises
        ------
        InputError
            Fewer images than the function needs, or rows that are not among the images.
        """
        _check_top(rows, values, self.k, self.n_images)
        device = self.image_vectors.device
        return self._unit_part(rows[:, : self.k].long().to(device), values[:, : self.k].float().to(device))

    def _unit_part(self, rows: torch.Tensor, values: torch.Tensor) -> UnitPart:
        return rows.contiguous(), (values == values[:, -1:]).float().mean(dim=1)

    def concentration(self, units: UnitPart) -> torch.Tensor:
        """Share of the highest images that are there only because their rows are low: tied with the lowest of them, [n_units]."""
        return units[1]


class WpmiScorer(TopImageScorer):
    """`neuroprobe.labeling.similarity._similarity.wpmi`, whose parameters it takes.

    The logarithm of a part of P is taken once, for all units, and their rows summed.
    """

    def __init__(
        self, scores: ConceptScores, *, k: int = 28, a: float = 2.0, lam: float = 0.6, min_prob: float = 1e-7, prior: Prior = "cohort"
    ) -> None:
        check_wpmi(k=k, a=a, lam=lam, min_prob=min_prob, prior=prior)
        super().__init__(scores)
        self._k, self._a, self._min_prob = k, a, min_prob
        self.prior_weight = 0.0 if prior is None else lam
        self._softmax = BlockedSoftmax(self.image_vectors, self.text_vectors, a)

    @property
    def k(self) -> int:
        """How many images of a unit are needed."""
        return min(self._k, self.n_images)

    def resampled(self, rows: torch.Tensor) -> Self:
        """The same function on some images, which may repeat; the denominators of the softmax are gathered."""
        other = super().resampled(rows)
        other._softmax = self._softmax.of_images(rows)
        return other

    def block(self, units: UnitPart, columns: Columns) -> torch.Tensor:
        """Raw scores of units and some concepts, [n_units, n_columns]."""
        rows, softmax = units[0], self._softmax
        images, places = _images_in_use(rows, self.n_images)
        if len(images) < _FEW * self.n_images:
            rows, softmax = places, softmax.of_images(images)
        parts = split_columns(columns, self.n_concepts, self.n_images)
        return torch.cat([self._log_p(rows, softmax, part) for part in parts], dim=1)

    def _log_p(self, rows: torch.Tensor, softmax: BlockedSoftmax, columns: Columns) -> torch.Tensor:
        """log p(concept | a unit's top images), [n_units, n_columns], from the units' rows among the softmax's images."""
        return embedding_bag(rows, softmax.part(columns, log_of_sum_with=self._min_prob), mode="sum")


class SoftWpmiScorer(WpmiScorer):
    """`neuroprobe.labeling.similarity._similarity.soft_wpmi`, whose parameters it takes.

    Of the terms log(1 + p_i (P - 1) + min_prob) as many as stay in float32's range are multiplied before the logarithm
    is taken.
    """

    def __init__(
        self,
        scores: ConceptScores,
        *,
        k: int = 100,
        a: float = 10.0,
        lam: float = 1.0,
        p_start: float = 0.998,
        p_end: float = 0.97,
        min_prob: float = 1e-7,
        prior: Prior = "cohort",
    ) -> None:
        check_wpmi(k=k, a=a, lam=lam, min_prob=min_prob, prior=prior, p_start=p_start, p_end=p_end)
        super().__init__(scores, k=k, a=a, lam=lam, min_prob=min_prob, prior=prior)
        self._p_start, self._p_end = p_start, p_end

    def _log_p(self, rows: torch.Tensor, softmax: BlockedSoftmax, columns: Columns) -> torch.Tensor:
        slopes = example_probabilities(self.k, self._p_start, self._p_end).double()
        return sum_of_logs(softmax.part(columns), rows, slopes=slopes, floors=1 - slopes + self._min_prob)


class RankReorderScorer(TopImageScorer):
    """`neuroprobe.labeling.similarity._similarity.rank_reorder`, whose parameters it takes.

    The images are sorted once per concept; a unit's highest images are then put in that order by sorting whole numbers,
    their ranks.
    """

    def __init__(
        self, scores: ConceptScores, *, top_fraction: float = 0.05, p: float = 3.0, scale: float = 0.5, min_mean: float = 1e-3
    ) -> None:
        check_rank_reorder(top_fraction=top_fraction, p=p, scale=scale, min_mean=min_mean)
        super().__init__(scores)
        self._top_fraction, self._p, self._scale, self._min_mean = top_fraction, p, scale, min_mean

    @property
    def k(self) -> int:
        """How many images of a unit are needed."""
        return share_of(self.n_images, self._top_fraction)

    def _unit_part(self, rows: torch.Tensor, values: torch.Tensor) -> UnitPart:
        values = unit_interval(values)
        baselines = torch.stack([powers(x[:, None] - x, self._p).mean() for x in values])
        return rows.contiguous(), values, baselines

    def concentration(self, units: UnitPart) -> torch.Tensor:
        """Sum of the fourth powers of the values, scaled to length 1: how few of the images decide the error, [n_units]."""
        squares = units[1].square()
        return squares.square().sum(dim=1) / squares.sum(dim=1).square().clip(1e-12)

    def comparable(self, best: torch.Tensor) -> torch.Tensor:
        """The logarithm of the error: where one image decides, it falls to a tiny share of the usual by chance alone."""
        return best.neg().clamp_min(1e-12).log().neg()

    def block(self, units: UnitPart, columns: Columns) -> torch.Tensor:
        """Scores of units and some concepts, [n_units, n_columns]."""
        return torch.cat([self._part(units, part) for part in split_columns(columns, self.n_concepts, self.n_images)], dim=1)

    def _part(self, units: UnitPart, columns: Columns) -> torch.Tensor:
        rows, values, baselines = units
        scores = self.matrix(columns)
        means = embedding_bag(rows, scores, mode="mean").clip_(self._min_mean)
        errors = torch.empty_like(means)
        for column, ranks in enumerate(self._keys(scores)):
            for start in range(0, len(rows), _UNITS):
                some = slice(start, start + _UNITS)
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
        return powers(values.gather(1, by_concept.long()) - values.flip(1), self._p).mean(dim=1)


class AveragePrecisionScorer(Scorer):
    """`neuroprobe.labeling.similarity._similarity.average_precision`, whose parameters it takes.

    Every unit's images are ranked once; a concept's images are then put in the unit's order by sorting their ranks.
    """

    def __init__(self, scores: ConceptScores, *, share: float = 0.05) -> None:
        check_share(share)
        super().__init__(scores)
        self._share = share

    def units(self, activations: torch.Tensor) -> UnitPart:
        """The number of images at least as high as each, int32 [n_units, n_images], from float32 [n_images, n_units]."""
        return (images_at_least(activations).int(),)

    def concentration(self, units: UnitPart) -> torch.Tensor:
        """Mean share of the images that are at least as high as one of them, [n_units]: the more, the more are tied."""
        return units[0].float().mean(dim=1) / self.n_images

    def block(self, units: UnitPart, columns: Columns) -> torch.Tensor:
        """Scores of units and some concepts, [n_units, n_columns]."""
        by_image = units[0].T.contiguous()  # [n_images, n_units]
        found = []
        for part in split_columns(columns, self.n_concepts, self.n_images):
            labels = images_with(self.matrix(part), self._share)
            found += [_precisions(by_image, images.nonzero()[:, 0]) for images in labels.unbind(1)]
        return torch.stack(found, dim=1)


def _precisions(by_image: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Average precision of units [n_images, n_units] for one concept's images [n_with] -> [n_units]."""
    if not len(images):
        return torch.zeros(by_image.shape[1], device=by_image.device)
    chosen = by_image.index_select(0, images).T.contiguous()  # [n_units, n_with]
    return torch.cat([_precision(chosen[start : start + _UNITS]) for start in range(0, len(chosen), _UNITS)])


def _precision(counts: torch.Tensor) -> torch.Tensor:
    """Average precision from each positive's number of images at least as high, [n_units, n_with] -> [n_units]."""
    counts = sort_integers(counts)
    hits = torch.arange(1, counts.shape[1] + 1, device=counts.device, dtype=counts.dtype)
    tied = counts[:, 1:] == counts[:, :-1]  # with the next
    if bool(tied.any()):
        beyond = torch.full_like(counts, counts.shape[1])
        beyond[:, :-1] = torch.where(tied, counts.shape[1], hits[:-1])
        hits = beyond.flip(1).cummin(dim=1).values.flip(1)  # the place of the last that is tied with it
    return (hits / counts).mean(dim=1)


#: The scorer of every function that is no matrix product.
TOP_IMAGE_SCORERS: dict[str, type[Scorer]] = {
    "rank_reorder": RankReorderScorer,
    "wpmi": WpmiScorer,
    "soft_wpmi": SoftWpmiScorer,
    "average_precision": AveragePrecisionScorer,
}


def _images_in_use(rows: torch.Tensor, n_images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The images among some units' highest, and the rows as places in these."""
    used = torch.zeros(n_images, dtype=torch.bool, device=rows.device)
    used[rows.flatten()] = True
    places = used.cumsum(dim=0) - 1
    return used.nonzero()[:, 0], places.index_select(0, rows.flatten()).view_as(rows)


def _check_top(rows: torch.Tensor, values: torch.Tensor, k: int, n_images: int) -> None:
    if rows.ndim != 2 or rows.shape != values.shape or rows.is_floating_point():
        raise InputError(
            f"Expected rows and values of the units' highest images, both [n_units, k], but got {rows.dtype} {tuple(rows.shape)} "
            f"and {tuple(values.shape)}."
        )
    if rows.shape[1] < k:
        raise InputError(
            f"Expected the {k} highest images of every unit, but the summary kept {rows.shape[1]}. "
            f"Summarize with k={k} or more, or ask for fewer images."
        )
    if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < n_images:
        raise InputError(
            f"Expected rows from 0 to {n_images - 1}, the images of the scores, but got {int(rows.min())} to {int(rows.max())}."
        )
