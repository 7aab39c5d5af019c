"""Similarity functions that ask how well a unit detects the images with a concept.

They need to know which images have the concept. From real-valued scores those are the images at least as high as the
concept's highest `share` of the images (ties at that place all count), unless they are the concept's lowest. Given
labels, 0 and 1 or False and True, that is: exactly the images labeled 1 where these are at least that share, and where
they are fewer too, because the others are the lowest. A concept that is the same on all images is on none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from neuroprobe._core import check_share
from neuroprobe.labeling.similarity._registry import whole
from neuroprobe.labeling.similarity._scorer import Columns, Scorer
from neuroprobe.labeling.similarity._top_images import UNITS, share_of, sort_integers
from neuroprobe.labeling.similarity.linear import LinearScorer, standardized

if TYPE_CHECKING:
    from neuroprobe.concepts import ConceptScores


def images_with(concept_scores: torch.Tensor, share: float) -> torch.Tensor:
    """Which images have which concept, bool [n_images, n_concepts]; see the module's docstring."""
    lines = concept_scores.T.contiguous()  # [n_concepts, n_images]: the selection wants its line in one piece
    threshold = torch.topk(lines, share_of(lines.shape[1], share), dim=1, sorted=False).values.amin(dim=1)
    return (concept_scores >= threshold) & (concept_scores > lines.amin(dim=1))


class AucScorer(LinearScorer):
    """Area under the ROC curve of a unit as a detector of the images with a concept (INVERT).

    The probability that the unit is higher on a random image with the concept than on a random one without, ties
    counting half. Every unit's images are ranked once, for all concepts.

    Parameters
    ----------
    share : float, default 0.05
        Of real-valued scores: an image has a concept if its score is among the concept's highest `share` (at least one
        image). Labels (0 and 1, or booleans) are taken as they are, whatever the share.

    Returns
    -------
    array or Tensor, [n_units, n_concepts]
        In [0, 1]; 0.5 for a unit or a concept that never varies.

    Raises
    ------
    InputError
        A share that is not in (0, 1].

    References
    ----------
    Bykov et al., NeurIPS 2023, arXiv 2311.13594, section 3. The share, for scores that are not labels, is ours.
    """

    def __init__(self, scores: ConceptScores, *, share: float = 0.05) -> None:
        check_share("share", share, one=True)

        def weights(scores: torch.Tensor) -> torch.Tensor:
            labels = images_with(scores, share)
            count = labels.sum(dim=0)  # the AUC is the sum of their centered ranks over both counts, plus a half
            return labels / (count * (len(labels) - count)).clip(1) * len(labels)

        super().__init__(scores, units=_centered_ranks, concepts=weights, offset=0.5)


def _centered_ranks(activations: torch.Tensor) -> torch.Tensor:
    """Ranks among the images, ties at their mean, as shares of the images about 0, [n_images, n_units]."""
    lines = activations.T.contiguous()  # [n_units, n_images]
    ordered = torch.sort(lines, dim=1).values
    below = torch.searchsorted(ordered, lines)
    not_above = torch.searchsorted(ordered, lines, right=True)
    n_images = lines.shape[1]
    return ((below + not_above - n_images) / (2 * n_images)).T


auc = whole("auc", AucScorer)


class MeanDifferenceScorer(LinearScorer):
    """A unit's mean activation on images with a concept minus that on images without, in its standard deviations.

    Parameters
    ----------
    share : float, default 0.05
        As in `auc`.

    Returns
    -------
    array or Tensor, [n_units, n_concepts]
        In standard deviations of the unit over all images (the population's); 0 for a unit or a concept that never
        varies.

    Raises
    ------
    InputError
        A share that is not in (0, 1].
    """

    def __init__(self, scores: ConceptScores, *, share: float = 0.05) -> None:
        check_share("share", share, one=True)

        def weights(scores: torch.Tensor) -> torch.Tensor:
            labels = images_with(scores, share)
            count = labels.sum(dim=0)
            return (count > 0).float() * (labels / count.clip(1) - ~labels / (len(labels) - count))

        super().__init__(scores, units=standardized, concepts=weights)


mean_difference = whole("mean_difference", MeanDifferenceScorer)


class RankedUnits(NamedTuple):
    """Units by the ranks of their images."""

    at_least: torch.Tensor  # the number of images at least as high as each, int32 [n_units, n_images]


class AveragePrecisionScorer(Scorer[RankedUnits]):
    """Average precision of a unit as a detector of the images with a concept.

    The mean, over the images with the concept, of the share of such images among those on which the unit is at least
    as high. Of a random unit it is about the share of images with the concept.

    Parameters
    ----------
    share : float, default 0.05
        As in `auc`.

    Returns
    -------
    array or Tensor, [n_units, n_concepts]
        In [0, 1]; 0 for a concept that no image has, or that never varies.

    Raises
    ------
    InputError
        A share that is not in (0, 1].
    """

    def __init__(self, scores: ConceptScores, *, share: float = 0.05) -> None:
        check_share("share", share, one=True)
        super().__init__(scores)
        self._share = share

    def units(self, activations: torch.Tensor) -> RankedUnits:
        return RankedUnits(_images_at_least(activations).int())

    def concentration(self, units: RankedUnits) -> torch.Tensor:
        """Mean share of the images that are at least as high as one of them, [n_units]: the more, the more are tied."""
        return units.at_least.float().mean(dim=1) / self.n_images

    def block(self, units: RankedUnits, columns: Columns) -> torch.Tensor:
        by_image = units.at_least.T.contiguous()  # [n_images, n_units]
        found = []
        for part in self.parts(columns):
            labels = images_with(self.matrix(part), self._share)
            found += [_precisions(by_image, images.nonzero()[:, 0]) for images in labels.unbind(1)]
        return torch.stack(found, dim=1)


def _precisions(by_image: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Average precision of units [n_images, n_units] for one concept's images [n_with] -> [n_units]."""
    if not len(images):
        return torch.zeros(by_image.shape[1], device=by_image.device)
    chosen = by_image.index_select(0, images).T.contiguous()  # [n_units, n_with]
    return torch.cat([_precision(chosen[start : start + UNITS]) for start in range(0, len(chosen), UNITS)])


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


def _images_at_least(activations: torch.Tensor) -> torch.Tensor:
    """For every unit and image, the number of images on which the unit is at least as high, [n_units, n_images]."""
    lines = activations.T.contiguous()  # [n_units, n_images]
    return lines.shape[1] - torch.searchsorted(torch.sort(lines, dim=1).values, lines)


average_precision = whole("average_precision", AveragePrecisionScorer)
