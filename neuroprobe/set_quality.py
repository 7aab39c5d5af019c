"""How good concept sets are: measured where the truth is known, estimated where it is not, and made worse on purpose."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from neuroprobe.concept_sets import ConceptSet, ConceptSets, check_labels
from neuroprobe.exceptions import InputError
from neuroprobe.splits import fitting_groups
from neuroprobe.statistics import wilson_interval


def set_quality(concept_sets: ConceptSets, truth: pd.DataFrame, *, level: float = 0.95) -> pd.DataFrame:
    """Which share of each side is right, where it is known what every image shows.

    Parameters
    ----------
    concept_sets : ConceptSets
    truth : DataFrame, [n_images, n_concepts]
        Index: ids; columns: concepts; values: True or False, or 1 or 0. More ids and concepts do not matter.
    level : float, default 0.95
        Of the intervals.

    Returns
    -------
    DataFrame
        A row per concept and side: concept, side ("positives" or "negatives"), n, n_right, precision (n_right / n; of
        negatives: the share that does not show the concept), low, high (Wilson's interval).

    Raises
    ------
    InputError
        An image or a concept of the sets that the truth does not have, or other values.

    Examples
    --------
    >>> truth = pd.DataFrame({"red": [True, True, False, False]}, index=["a", "b", "c", "d"])
    >>> sets = ConceptSets({"red": ConceptSet("red", "colour", ("a", "c"), ("d",))}, {})
    >>> set_quality(sets, truth)["precision"].tolist()
    [0.5, 1.0]
    """
    shown = pd.DataFrame(check_labels(truth), index=[str(id_) for id_ in truth.index], columns=[str(c) for c in truth.columns])
    rows: list[dict[str, Any]] = []
    for concept, set_ in concept_sets.items():
        right = _truth_of(set_, shown) == set_.targets
        for side, rights in zip(("positives", "negatives"), np.split(right, [len(set_.positives)]), strict=True):
            rows.append({"concept": concept, "side": side, "n": len(rights), "n_right": int(rights.sum())})
    table = pd.DataFrame(rows, columns=["concept", "side", "n", "n_right"])
    low, high = wilson_interval(table["n_right"].to_numpy(), table["n"].to_numpy(), level=level)
    return table.assign(precision=table["n_right"] / table["n"], low=low, high=high)


def estimate_set_quality(concept_sets: ConceptSets) -> pd.DataFrame:
    """An estimate of each side's precision from the encoder's own likelihoods, where nobody knows the truth.

    The mean likelihood of the positives, and one minus that of the negatives: the expected precision if the softmax
    within the group is calibrated. It is an estimate: an encoder that is sure and wrong is believed. How far it is off on
    the offline world stands in the documentation, "Concept sets". To know, look at some images (`contact_sheet`).

    Parameters
    ----------
    concept_sets : ConceptSets
        From a ranking.

    Returns
    -------
    DataFrame
        A row per concept and side: concept, side, n, estimated_precision, and margin, the gap between the least likely
        positive and the likeliest negative (below 0 where they overlap; the same in both rows).

    Raises
    ------
    InputError
        Sets without likelihoods.
    """
    rows = []
    for concept, set_ in concept_sets.items():
        if not set_.likelihoods:
            raise InputError(
                f"Expected sets from a ranking, which have likelihoods, but those of {concept!r} have none. "
                "Where labels are known, use set_quality(sets, truth)."
            )
        positives, negatives = np.split(np.asarray(set_.likelihoods), [len(set_.positives)])
        for side, precision, n in (("positives", positives.mean(), len(positives)), ("negatives", 1 - negatives.mean(), len(negatives))):
            rows.append(
                {
                    "concept": concept,
                    "side": side,
                    "n": n,
                    "estimated_precision": float(precision),
                    "margin": float(positives.min() - negatives.max()),
                }
            )
    return pd.DataFrame(rows, columns=["concept", "side", "n", "estimated_precision", "margin"])


def with_label_noise(concept_sets: ConceptSets, rate: float, *, seed: int) -> ConceptSets:
    """The same images with a share of each side put on the other: what wrong labels do to a probe.

    Parameters
    ----------
    concept_sets : ConceptSets
    rate : float
        Share of each side, in [0, 1]; rounded to whole images. Near-duplicates go together, as long as they fit.
    seed : int
        What is drawn for a concept depends on the seed, its group and its name alone.

    Returns
    -------
    ConceptSets
        Its metadata gain an entry "label_noise".

    Raises
    ------
    InputError
        A rate that is no share, or a negative seed.
    """
    if not 0 <= rate <= 1:
        raise InputError(f"Expected a rate from 0 to 1, but got {rate}.")
    if seed < 0:
        raise InputError(f"Expected a seed of 0 or more, but got {seed}.")
    sets = {concept: _noisy(set_, rate, seed) for concept, set_ in concept_sets.items()}
    return ConceptSets(sets, {**concept_sets.metadata, "label_noise": {"rate": rate, "seed": seed}})


def _noisy(concept_set: ConceptSet, rate: float, seed: int) -> ConceptSet:
    name = f"{concept_set.group}/{concept_set.concept}".encode(errors="surrogatepass")
    generator = np.random.default_rng((seed, zlib.crc32(name)))
    targets = concept_set.targets
    groups = np.asarray(concept_set.duplicates) if concept_set.duplicates else np.arange(len(targets))
    moved = np.zeros(len(targets), dtype=bool)
    for target in (1, 0):
        rows = np.flatnonzero(targets == target)
        moved[fitting_groups(rows, groups, round(rate * len(rows)), generator)] = True
    return concept_set.reordered(np.flatnonzero((targets == 1) ^ moved), np.flatnonzero((targets == 0) ^ moved))


def _truth_of(concept_set: ConceptSet, shown: pd.DataFrame) -> npt.NDArray[np.bool_]:
    if concept_set.concept not in shown.columns:
        raise InputError(f"Expected a truth for every concept of the sets, but there is no column {concept_set.concept!r}.")
    missing = next((id_ for id_ in concept_set.ids if id_ not in shown.index), None)
    if missing is not None:
        raise InputError(f"Expected a truth for every image of the sets, but there is no row {missing!r}.")
    truths: npt.NDArray[np.bool_] = shown.loc[list(concept_set.ids), concept_set.concept].to_numpy()
    return truths
