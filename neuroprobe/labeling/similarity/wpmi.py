"""Similarity functions that look at a unit's most active images only (CLIP-Dissect's WPMI, soft WPMI and rank reorder)."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch

from neuroprobe._core import check_count, check_number
from neuroprobe.exceptions import InputError
from neuroprobe.labeling.similarity._arrays import on_tensors, share_of
from neuroprobe.labeling.similarity._ordering import highest_images, ranks_within

#: Whose average a concept's score is compared with: the units passed, or nothing.
Prior: TypeAlias = 'Literal["cohort"] | None'


@on_tensors
def wpmi(
    activations: torch.Tensor,
    concept_scores: torch.Tensor,
    *,
    k: int = 28,
    a: float = 2.0,
    lam: float = 0.6,
    min_prob: float = 1e-7,
    prior: Prior = "cohort",
) -> torch.Tensor:
    """Weighted pointwise mutual information (CLIP-Dissect, section 3.2).

    log p(concept | the unit's top images) - lam * log p(concept), where the first is the sum over the unit's k most
    active images of log P_i, and P is the softmax over concepts of ``a`` times the scores.

    Parameters
    ----------
    activations : array or Tensor, [n_images, n_units]
    concept_scores : array or Tensor, [n_images, n_concepts]
        Cosine similarities.
    k : int, default 28
        Most active images used; all of them if there are fewer.
    a : float, default 2
        Factor of the softmax over concepts.
    lam : float, default 0.6
        Weight of the prior.
    min_prob : float, default 1e-7
        Added inside the logarithm, as the published code does; in [0, 1].
    prior : {"cohort", None}, default "cohort"
        As in `soft_wpmi`.

    Returns
    -------
    array or Tensor, [n_units, n_concepts]
        Nats.

    Raises
    ------
    InputError
        A parameter out of its range.
    """
    check_wpmi(k=k, a=a, lam=lam, min_prob=min_prob, prior=prior)
    probabilities = torch.softmax(a * concept_scores, dim=1)
    top = highest_images(activations, min(k, len(activations)))
    log_p = torch.stack([torch.log(probabilities[images] + min_prob).sum(dim=0) for images in top])
    return log_p if prior is None else log_p - lam * log_mean_exp(log_p)


@on_tensors
def soft_wpmi(
    activations: torch.Tensor,
    concept_scores: torch.Tensor,
    *,
    k: int = 100,
    a: float = 10.0,
    lam: float = 1.0,
    p_start: float = 0.998,
    p_end: float = 0.97,
    min_prob: float = 1e-7,
    prior: Prior = "cohort",
) -> torch.Tensor:
    """Soft weighted pointwise mutual information (CLIP-Dissect, section 3.2), its default function.

    log p(concept | the unit's top images, softly) - lam * log p(concept), where the first is the sum over the
    unit's k most active images of log(1 + p_i (P_i - 1)), P is the softmax over concepts of ``a`` times the
    scores, and p_i, the probability that image i really is an example, falls from p_start toward p_end.

    Parameters
    ----------
    activations : array or Tensor, [n_images, n_units]
    concept_scores : array or Tensor, [n_images, n_concepts]
        Cosine similarities.
    k : int, default 100
        Most active images used; all of them if there are fewer.
    a : float, default 10
        Factor of the softmax over concepts.
    lam : float, default 1
        Weight of the prior.
    p_start, p_end : float, default 0.998 and 0.97
        In [0, 1].
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
    check_wpmi(k=k, a=a, lam=lam, min_prob=min_prob, prior=prior, p_start=p_start, p_end=p_end)
    k = min(k, len(activations))
    probabilities = torch.softmax(a * concept_scores, dim=1)
    p_example = example_probabilities(k, p_start, p_end).to(probabilities.device)
    log_p = torch.stack([_log_p_of_top(probabilities[images], p_example, min_prob) for images in highest_images(activations, k)])
    return log_p if prior is None else log_p - lam * log_mean_exp(log_p)


def _log_p_of_top(probabilities: torch.Tensor, p_example: torch.Tensor, min_prob: float) -> torch.Tensor:
    """log p(concept | a unit's top images): [k, n_concepts] -> [n_concepts].

    Scores near zero are differences of sums near -500, so their last digits depend on the order of the sum; this
    is the published one.
    """
    return torch.log(1 + p_example[:, None] * (probabilities - 1) + min_prob).sum(dim=0)


def example_probabilities(k: int, p_start: float, p_end: float) -> torch.Tensor:
    """p_i of soft WPMI: falls from p_start toward p_end with the rank, float32 [k]."""
    return p_start - torch.arange(k) / k * (p_start - p_end)


def log_mean_exp(log_p: torch.Tensor) -> torch.Tensor:
    """log of the mean probability over units, [n_units, n_concepts] -> [n_concepts]."""
    return torch.logsumexp(log_p, dim=0) - math.log(len(log_p))


def check_wpmi(*, k: int, a: float, lam: float, min_prob: float, prior: Prior, p_start: float = 1.0, p_end: float = 1.0) -> None:
    """Raise InputError if a parameter of `wpmi` or `soft_wpmi` is out of its range."""
    if prior not in ("cohort", None):
        raise InputError(f"Expected `prior` to be 'cohort' or None, but got {prior!r}.")
    check_count("k", k)
    check_number("a", a)
    check_number("lam", lam)
    for name, value in (("min_prob", min_prob), ("p_start", p_start), ("p_end", p_end)):
        check_number(name, value, low=0, high=1)


@on_tensors
def rank_reorder(
    activations: torch.Tensor,
    concept_scores: torch.Tensor,
    *,
    top_fraction: float = 0.05,
    p: float = 3.0,
    scale: float = 0.5,
    min_mean: float = 1e-3,
) -> torch.Tensor:
    """How well a concept orders a unit's most active images (CLIP-Dissect, appendix), negated.

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
    activations : array or Tensor, [n_images, n_units]
    concept_scores : array or Tensor, [n_images, n_concepts]
        Cosine similarities.
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
    check_rank_reorder(top_fraction=top_fraction, p=p, scale=scale, min_mean=min_mean)
    top = highest_images(activations, share_of(len(activations), top_fraction))
    values = unit_interval(activations.T.gather(1, top))
    ranks = ranks_within(concept_scores.T.contiguous()).T  # distinct: one order of the images for every concept
    found = [_error_of_unit(x, ranks[images], p) for x, images in zip(values, top, strict=True)]
    means = torch.stack([concept_scores[images].mean(dim=0) for images in top]).clip(min_mean)
    return -torch.stack(found) / means**scale


def _error_of_unit(values: torch.Tensor, ranks: torch.Tensor, p: float) -> torch.Tensor:
    """Error of the order by concept relative to a random order: [k], highest first, and [k, n_concepts] -> [n_concepts]."""
    if values[0] == values[-1]:
        return torch.ones(ranks.shape[1], device=values.device)
    within = torch.argsort(torch.argsort(ranks, dim=0), dim=0)
    reordered = values.flip(0)[within]  # [k, n_concepts]
    return powers(values[:, None] - reordered, p).mean(dim=0) / powers(values[:, None] - values, p).mean()


def unit_interval(values: torch.Tensor) -> torch.Tensor:
    """Lines, highest first, shifted and scaled to [0, 1], which changes no ratio of errors but keeps powers in range."""
    values = values / values.abs().amax(dim=1, keepdim=True).clip(torch.finfo(values.dtype).tiny)  # no range overflows
    low, high = values[:, -1:], values[:, :1]
    return (values - low) / torch.where(high > low, high - low, 1)


def powers(differences: torch.Tensor, p: float) -> torch.Tensor:
    """|difference|^p; in place."""
    size = differences.abs_()
    return size.mul_(size * size) if p == 3 else size.pow_(p)


def check_rank_reorder(*, top_fraction: float, p: float, scale: float, min_mean: float) -> None:
    """Raise InputError if a parameter of `rank_reorder` is out of its range."""
    check_number("top_fraction", top_fraction, low=0, high=1, above=True)
    check_number("p", p, low=0, above=True)
    check_number("scale", scale, low=0)
    check_number("min_mean", min_mean, low=0, above=True)
