"""Pointwise mutual information of a concept and a unit's most active images: CLIP-Dissect's WPMI and soft WPMI.

The softmax over concepts takes two sweeps over blocks of concepts: one for the logarithms of its denominators, one per image,
when the scorer is made; the other when blocks are asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, Self, TypeAlias

import torch
from torch.nn.functional import embedding_bag

from neuroprobe._core import check_count, check_number
from neuroprobe.exceptions import InputError
from neuroprobe.labeling.similarity._kernels import sum_of_logs
from neuroprobe.labeling.similarity._registry import whole
from neuroprobe.labeling.similarity._scorer import Columns
from neuroprobe.labeling.similarity._softmax import BlockedSoftmax
from neuroprobe.labeling.similarity._top_images import TopImageScorer

if TYPE_CHECKING:
    from neuroprobe.concepts import ConceptScores

#: Whose average a concept's score is compared with: the units passed, or nothing.
Prior: TypeAlias = Literal["cohort"] | None

_FEW = 0.6  # the share of images in use below which the others are left out


class TopUnits(NamedTuple):
    """Units by their highest images."""

    rows: torch.Tensor  # [n_units, k]
    tied: torch.Tensor  # share of these images that are there only because their rows are low: tied with the lowest of them, [n_units]


class WpmiScorer(TopImageScorer[TopUnits]):
    """Weighted pointwise mutual information (CLIP-Dissect, section 3.2), of cosine similarities.

    log p(concept | the unit's top images) - lam * log p(concept), where the first is the sum over the unit's k most
    active images of log P_i, and P is the softmax over concepts of ``a`` times the scores.

    Parameters
    ----------
    k : int, default 28
        Most active images used; all of them if there are fewer.
    a : float, default 2
        Factor of the softmax over concepts.
    lam : float, default 0.6
        Weight of the prior.
    min_prob : float, default 1e-7
        Added inside the logarithm, as the published code does; in [0, 1].
    prior : {"cohort", None}, default "cohort"
        "cohort": the mean probability of the concept over the units passed (published); with one unit alone every
        score is then 0. None: no prior, and no score depends on the other units.

    Returns
    -------
    array or Tensor, [n_units, n_concepts]
        Nats.

    Raises
    ------
    InputError
        A parameter out of its range.
    """

    def __init__(
        self, scores: ConceptScores, *, k: int = 28, a: float = 2.0, lam: float = 0.6, min_prob: float = 1e-7, prior: Prior = "cohort"
    ) -> None:
        if prior not in ("cohort", None):
            raise InputError(f"Expected `prior` to be 'cohort' or None, but got {prior!r}.")
        check_count("k", k)
        check_number("a", a)
        check_number("lam", lam)
        check_number("min_prob", min_prob, low=0, high=1)
        super().__init__(scores)
        self._k, self._a, self._min_prob = k, a, min_prob
        self.prior_weight = 0.0 if prior is None else lam
        self._softmax = BlockedSoftmax(self.image_vectors, self.text_vectors, a)

    @property
    def k(self) -> int:
        return min(self._k, self.n_images)

    def _kept(self, rows: torch.Tensor, values: torch.Tensor) -> TopUnits:
        return TopUnits(rows, (values == values[:, -1:]).float().mean(dim=1))

    def concentration(self, units: TopUnits) -> torch.Tensor:
        return units.tied

    def resampled(self, rows: torch.Tensor) -> Self:
        other = super().resampled(rows)
        other._softmax = self._softmax.of_images(rows)
        return other

    def block(self, units: TopUnits, columns: Columns) -> torch.Tensor:
        rows, softmax = units.rows, self._softmax
        images, places = _images_in_use(rows, self.n_images)
        if len(images) < _FEW * self.n_images:
            rows, softmax = places, softmax.of_images(images)
        return torch.cat([self._log_p(rows, softmax, part) for part in self.parts(columns)], dim=1)

    def _log_p(self, rows: torch.Tensor, softmax: BlockedSoftmax, columns: Columns) -> torch.Tensor:
        """log p(concept | a unit's top images), [n_units, n_columns], from the units' rows among the softmax's images."""
        return embedding_bag(rows, softmax.part(columns, log_of_sum_with=self._min_prob), mode="sum")


class SoftWpmiScorer(WpmiScorer):
    """Soft weighted pointwise mutual information (CLIP-Dissect, section 3.2), its default function, of cosine similarities.

    log p(concept | the unit's top images, softly) - lam * log p(concept), where the first is the sum over the
    unit's k most active images of log(1 + p_i (P_i - 1)), P is the softmax over concepts of ``a`` times the
    scores, and p_i, the probability that image i really is an example, falls from p_start toward p_end.

    Parameters
    ----------
    k, a, lam, min_prob, prior
        As in `wpmi`; by default 100, 10, 1, 1e-7 and "cohort".
    p_start, p_end : float, default 0.998 and 0.97
        In [0, 1].

    Returns
    -------
    array or Tensor, [n_units, n_concepts]
        Nats.

    Raises
    ------
    InputError
        A parameter out of its range.
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
        check_number("p_start", p_start, low=0, high=1)
        check_number("p_end", p_end, low=0, high=1)
        super().__init__(scores, k=k, a=a, lam=lam, min_prob=min_prob, prior=prior)
        self._p_start, self._p_end = p_start, p_end

    def _log_p(self, rows: torch.Tensor, softmax: BlockedSoftmax, columns: Columns) -> torch.Tensor:
        slopes = (self._p_start - torch.arange(self.k) / self.k * (self._p_start - self._p_end)).double()  # p_i
        return sum_of_logs(softmax.part(columns), rows, slopes=slopes, floors=1 - slopes + self._min_prob)


wpmi = whole("wpmi", WpmiScorer)
soft_wpmi = whole("soft_wpmi", SoftWpmiScorer)


def _images_in_use(rows: torch.Tensor, n_images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The images among some units' highest, and the rows as places in these."""
    used = torch.zeros(n_images, dtype=torch.bool, device=rows.device)
    used[rows.flatten()] = True
    places = used.cumsum(dim=0) - 1
    return used.nonzero()[:, 0], places.index_select(0, rows.flatten()).view_as(rows)
