"""Is a unit's best concept better than what shuffled images would give it?

A null unit is a unit of the layer with its activations dealt to the images at random. It is scored like any other, by
every concept, in place of the unit it was made from: so the search over the vocabulary, the competition within the
layer and the few images that carry most of a unit's weight are all in the null. The p-value of a unit compares its best
score with the best scores of null units whose weight is as concentrated as its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats

from neuroprobe._core import Floats
from neuroprobe.labeling.similarity._scorer import Scorer

#: No smaller p-value is given: a tail that was fitted to some tens of null units says nothing of what is so far out.
SMALLEST_P = 1e-8

#: Null units in the neighborhood (of like concentration) that a p-value is taken from.
NEIGHBORS = 500

#: Share of the null units in a neighborhood whose excesses make the tail beyond them.
_TAIL = 0.1

#: Relative difference of scores that is taken for rounding.
_ROUNDING = 1e-6


def null_sources(varies: npt.NDArray[np.bool_], n_null: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """The unit each null unit is made from, [n_null]: every unit that varies as often as any other, give or take one."""
    units = np.flatnonzero(varies)
    rounds = [generator.permutation(units) for _ in range(math.ceil(n_null / len(units)))] if len(units) else []
    return np.concatenate(rounds)[:n_null] if rounds else np.empty(0, np.int64)


def shuffled(
    activations: npt.NDArray[np.float32], sources: npt.NDArray[np.int64], generator: np.random.Generator, *, size: int = 256
) -> Iterator[torch.Tensor]:
    """The activations of null units, [n_images, at most `size`] at a time; every unit has a permutation of its own."""
    for start in range(0, len(sources), size):
        yield torch.from_numpy(generator.permuted(activations[:, sources[start : start + size]], axis=0))


def shuffled_rows(n_tied: npt.NDArray[np.int64], k: int, n_images: int, generator: np.random.Generator) -> torch.Tensor:
    """Where the k highest activations of null units come to lie, rows [n_units, k].

    Of every unit's k, `n_tied` [n_units] are no higher than the images that are not among them: of those the lowest rows are taken.
    """
    rows = np.stack([generator.choice(n_images, size=k, replace=False, shuffle=True) for _ in n_tied])
    for line, tied in zip(rows, n_tied, strict=True):
        if tied:
            line[k - tied :] = np.setdiff1d(np.arange(k), line[: k - tied])[:tied]
    return torch.from_numpy(rows)


def null_prior(scorer: Scorer[Any], scaled: torch.Tensor, null_scaled: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
    """The priors that null units meet, each in place of its source [n_null], [n_null, n_columns].

    From scaled raw scores of the whole layer [n_units, n_columns] and those of the null units [n_null, n_columns].
    """
    temperature = scorer.prior_temperature
    others = _log_sum_of_others(scaled / temperature, sources)
    log_mean = torch.logaddexp(others, null_scaled / temperature) - math.log(len(scaled))
    return scorer.prior_weight * temperature * log_mean


def _log_sum_of_others(values: torch.Tensor, left_out: torch.Tensor) -> torch.Tensor:
    """log sum exp over all rows but one, [n_left_out, n_columns].

    Subtracting exp(own) from the sum is exact enough but for the largest, whose rest is summed apart.
    """
    total = torch.logsumexp(values, dim=0)
    largest = values.argmax(dim=0)
    rest = torch.logsumexp(values.scatter(0, largest[None], -torch.inf), dim=0)
    own = values[left_out]
    without = total + torch.log1p(-torch.exp((own - total).clamp_max(-1e-7)))
    return torch.where(left_out[:, None] == largest, rest, without)


def p_values(
    best: npt.ArrayLike,
    null_best: npt.ArrayLike,
    *,
    concentration: npt.ArrayLike | None = None,
    null_concentration: npt.ArrayLike | None = None,
) -> Floats:
    """The probability that a null unit of like concentration scores at least as high.

    Within the null units it is (1 + number at least as high) / (1 + number of null units); beyond their highest tenth
    the excesses are taken to be exponential or heavier (a generalized Pareto tail whose shape is fitted, never below
    0), which keeps p-values from ending at 1 / (1 + number). Where the scores of a function can take so few values that
    most of that tenth are alike, they do end there.

    Parameters
    ----------
    best : array-like, [n_units]
        Highest score of every unit.
    null_best : array-like, [n_null]
        The same of the null units.
    concentration, null_concentration : array-like, [n_units] and [n_null], optional
        With them, every unit is compared with the `NEIGHBORS` null units nearest in concentration, and with all that have
        the same; else with all.

    Returns
    -------
    ndarray, [n_units], in [`SMALLEST_P`, 1]
    """
    best, null_best = np.asarray(best, float), np.asarray(null_best, float)
    if concentration is None or null_concentration is None or len(null_best) <= NEIGHBORS:
        return _tail_p_values(best, np.sort(null_best))
    ours, theirs = (_logs(x) for x in (concentration, null_concentration))
    order = np.argsort(theirs, kind="stable")
    theirs, null_best = theirs[order], null_best[order]
    starts, stops = _neighborhoods(ours, theirs)
    found = np.empty(len(best))
    for start, stop in np.unique(np.stack([starts, stops], axis=1), axis=0):
        here, near = (starts == start) & (stops == stop), slice(start, stop)
        # at the ends of the range the neighbors are less, or more, concentrated than the unit: along their trend
        slope, level = _trend(theirs[near], null_best[near])
        found[here] = _tail_p_values(best[here] - slope * (ours[here] - level), np.sort(null_best[near] - slope * (theirs[near] - level)))
    return found


def _neighborhoods(ours: Floats, theirs: Floats) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First and last of the sorted null units that each unit is compared with; all that are just like it are among them."""
    first, last = np.searchsorted(theirs, ours, side="left"), np.searchsorted(theirs, ours, side="right")
    starts = np.minimum(first, np.clip((first + last - NEIGHBORS) // 2, 0, len(theirs) - NEIGHBORS))
    return starts, np.maximum(last, starts + NEIGHBORS)


def _logs(concentration: npt.ArrayLike) -> Floats:
    """Rounded, lest a trend be seen along what is only rounding where all units are alike."""
    return np.asarray(np.log(np.maximum(np.asarray(concentration, float), np.finfo(float).tiny)).round(4))


def _trend(x: Floats, y: Floats) -> tuple[float, float]:
    """Slope of the least-squares line, 0 where y takes so few values that it would only tell ties apart; and the mean of x."""
    level = float(x.mean())
    spread = float(np.square(x - level).sum())
    return (float((x - level) @ y) / spread if spread > 0 and not _few_values(np.sort(y)) else 0.0), level


def _tail_p_values(best: Floats, null_best: Floats) -> Floats:
    """p-values from sorted null scores."""
    n = len(null_best)
    at_least = n - np.searchsorted(null_best, best - _ROUNDING * np.abs(best), side="left")
    p = (1 + at_least) / (1 + n)
    n_tail = int(n * _TAIL)
    if n_tail < 10 or _few_values(null_best):
        return np.asarray(p)
    threshold = null_best[-n_tail - 1]
    shape, scale = _pareto(null_best[-n_tail:] - threshold)
    beyond = (best > threshold) & (scale > 0)
    excess = (best[beyond] - threshold) / max(scale, np.finfo(float).tiny)
    p[beyond] = (1 + n_tail) / (1 + n) * stats.genpareto.sf(excess, shape)
    return np.asarray(np.maximum(p, SMALLEST_P))


def _few_values(ordered: Floats) -> bool:
    """Whether most of the highest tenth are alike but for rounding: then there is no tail to fit."""
    tail = ordered[-int(len(ordered) * _TAIL) - 1 :]
    return int((np.diff(tail) > _ROUNDING * np.abs(tail[1:])).sum()) < len(tail) / 2


def _pareto(excesses: Floats) -> tuple[float, float]:
    """Shape (never below 0) and scale of a generalized Pareto distribution by probability-weighted moments.

    References
    ----------
    Hosking and Wallis, "Parameter and Quantile Estimation for the Generalized Pareto Distribution", Technometrics 1987.
    """
    n = len(excesses)
    mean = float(excesses.mean())
    weighted = float(np.mean(excesses * (1 - (np.arange(1, n + 1) - 0.35) / n)))  # excesses are sorted, lowest first
    if mean <= 0 or mean <= 2 * weighted:
        return 0.0, mean
    shape = 2 - mean / (mean - 2 * weighted)
    return (shape, 2 * mean * weighted / (mean - 2 * weighted)) if shape > 0 else (0.0, mean)
