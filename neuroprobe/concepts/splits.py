"""Splits: which images of a concept set train a probe, and which test it.

Nothing here needs torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from neuroprobe._core import check_seed, check_share
from neuroprobe.exceptions import InputError
from neuroprobe.statistics import fitting_groups

if TYPE_CHECKING:
    from neuroprobe.concepts.concept_sets import ConceptSet


def split_set(concept_set: ConceptSet, *, held_out: float, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Hold out a share of each class; near-duplicates stay together.

    Parameters
    ----------
    concept_set : ConceptSet
    held_out : float
        Share of the images of each class, in (0, 1). A group of near-duplicates that would go over it stays in the
        training part.
    seed : int

    Returns
    -------
    train, test : ndarray of int, [n_train], [n_test]
        Rows: positions in ``concept_set.ids``.

    Raises
    ------
    InputError
        `held_out` is not between 0 and 1, or leaves a part with one class.
    """
    check_share("held_out", held_out)
    check_seed(seed)
    targets = concept_set.targets
    rows = np.arange(len(targets))
    from sklearn.model_selection import train_test_split

    try:
        if len(set(concept_set.duplicates)) == len(concept_set.duplicates):
            train, test = train_test_split(rows, test_size=held_out, stratify=targets, random_state=seed)
        else:
            train, test = _split_groups(targets, np.asarray(concept_set.duplicates), held_out, np.random.default_rng(seed))
    except ValueError as error:
        raise InputError(_too_few(concept_set, held_out)) from error
    if len(set(targets[train])) < 2 or len(set(targets[test])) < 2:
        raise InputError(_too_few(concept_set, held_out))
    return train, test


def _split_groups(
    targets: npt.NDArray[np.int64], groups: npt.NDArray[np.int64], held_out: float, generator: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Of each class, whole groups in random order, as long as they fit into the share that is held out."""
    held = np.zeros(len(targets), dtype=bool)
    for target in (0, 1):
        rows = np.flatnonzero(targets == target)
        held[fitting_groups(rows, groups, round(held_out * len(rows)), generator)] = True
    return generator.permutation(np.flatnonzero(~held)), generator.permutation(np.flatnonzero(held))


def _too_few(concept_set: ConceptSet, held_out: float) -> str:
    n, groups = len(concept_set.positives), concept_set.duplicates
    together = len(set(groups)) < len(groups)
    sizes = (
        f" (in {len(set(groups[:n]))} and {len(set(groups[n:]))} groups of near-duplicates, which are not taken apart)" if together else ""
    )
    return (
        f"Expected both classes of {concept_set.concept!r} in the training and in the held-out part, but "
        f"{n} positives and {len(concept_set.negatives)} negatives{sizes} with {held_out:g} of them held out leave one "
        "with a single class. Give more images, or hold out another share."
    )
