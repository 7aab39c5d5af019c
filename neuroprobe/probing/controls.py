"""Control labels and codelengths: what a probe learns of labels that mean nothing."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from neuroprobe._core import BoolArray, Floats, check_share
from neuroprobe.exceptions import InputError

#: Shares of the images at which Voita & Titov's online code trains a new probe.
CODELENGTH_SHARES = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)


def codelength_ends(n: int, *, fewest: int = 8) -> tuple[int, ...]:
    """Where the blocks of the online code end: at `CODELENGTH_SHARES` of the images, the first with at least `fewest`.

    Parameters
    ----------
    n : int
        Images in all.
    fewest : int, default 8

    Returns
    -------
    tuple of int
        Rising, the last is `n`.

    Raises
    ------
    InputError
        Fewer images than twice `fewest`.
    """
    if fewest < 1 or n < 2 * fewest:
        raise InputError(f"Expected at least {2 * fewest} images for blocks of at least {fewest}, but got {n}.")
    return tuple(sorted({end for end in (round(share * n) for share in CODELENGTH_SHARES) if end >= fewest}))


def control_labels(types: npt.ArrayLike, *, seed: int, share: float) -> BoolArray:
    """Labels of a control task: every type of image is positive or negative as a whole, at random.

    A probe can learn them only by knowing the types by heart, which then works on held-out images too. Selectivity is
    the accuracy on the concept minus that on the control labels.

    Parameters
    ----------
    types : array-like of int, [n_images]
        The type of every image: given classes, or clusters of their embeddings, as a ranking finds them.
    seed : int
    share : float
        Wanted share of positives, as in the concept's set; types are drawn until the share is as near as may be.

    Returns
    -------
    ndarray of bool, [n_images]

    Raises
    ------
    InputError
        Fewer than two types, or a share not between 0 and 1.

    References
    ----------
    Hewitt & Liang, Designing and interpreting probes with control tasks, EMNLP 2019.
    """
    names, inverse, counts = np.unique(np.asarray(types), return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise InputError(f"Expected images of at least two types, so that a label can be random per type, but got {len(names)}.")
    check_share("share", share)
    order = np.random.default_rng(seed).permutation(len(names))
    reached = counts[order].cumsum()[:-1]  # never all types
    n_chosen = int(np.argmin(np.abs(reached - share * len(inverse)))) + 1
    chosen = np.zeros(len(names), dtype=bool)
    chosen[order[:n_chosen]] = True
    return np.asarray(chosen[inverse.reshape(-1)])


def online_codelength(decision: npt.ArrayLike, targets: npt.ArrayLike, *, ends: tuple[int, ...]) -> Floats:
    """Bits that it takes to send the labels to somebody who has the images, a probe trained anew after every block.

    The first block is sent with the uniform code, a bit per image. Every later block costs -log2 of what the probe
    trained on all blocks before it says of its labels. `len(targets)` bits are what sending them without a probe
    costs; a concept that is easily read takes far fewer.

    Parameters
    ----------
    decision : array-like, [..., n_images]
        Log-odds of every image by the probe trained on the blocks before its own; those of the first block are not
        looked at. In a random order.
    targets : array-like of bool, [n_images]
    ends : tuple of int
        Where blocks end (`codelength_ends`); the last is `n_images`.

    Returns
    -------
    ndarray, [...], bits

    Raises
    ------
    InputError
        Ends that do not rise to the number of images, or a first block with one class, on which nothing can be trained.

    References
    ----------
    Voita & Titov, Information-theoretic probing with minimum description length, EMNLP 2020, section 3.2.
    """
    truth, log_odds = np.asarray(targets, dtype=bool), np.asarray(decision, dtype=np.float64)
    if log_odds.shape[-1:] != truth.shape or not ends or ends[-1] != len(truth) or any(b <= a for a, b in pairwise((0, *ends))):
        raise InputError(f"Expected ends that rise to the number of images, {truth.size}, but got {ends}.")
    if len(set(truth[: ends[0]].tolist())) < 2:
        raise InputError(f"Expected both classes among the first {ends[0]} images, but they have one. Use another order or a larger block.")
    later = log_odds[..., ends[0] :]
    bits = np.logaddexp(0, np.where(truth[ends[0] :], -later, later)) / np.log(2)
    return np.asarray(ends[0] + bits.sum(-1))
