"""How good concept sets are: measured where the truth is known, estimated where it is not, and made worse on purpose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special
from sklearn.mixture import GaussianMixture

from neuroprobe._core import check_seed, check_share
from neuroprobe.concepts._tables import LabelTable, read_table, rows_of, truth_of
from neuroprobe.concepts.sets import ConceptSet, ConceptSets, generator_of, groups_of_each_class
from neuroprobe.exceptions import InputError
from neuroprobe.statistics import wilson_interval

if TYPE_CHECKING:
    from neuroprobe.concepts.scores import ConceptScores


def set_quality(concept_sets: ConceptSets, truth: LabelTable, *, level: float = 0.95) -> pd.DataFrame:
    """Which share of each side is right, where it is known what every image shows.

    Parameters
    ----------
    concept_sets : ConceptSets
    truth : GivenLabels, DataFrame, path of a CSV file, mapping, or ConceptScores of given labels
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
    >>> sets = ConceptSets({"red": ConceptSet("red", "color", ("a", "c"), ("d",))}, {})
    >>> set_quality(sets, truth)["precision"].tolist()
    [0.5, 1.0]
    """
    known = read_table(truth, concepts=list(concept_sets))
    shown, index = truth_of(known), known.index.map(str)  # found by id alone: the images of sets are in no order
    rows: list[dict[str, Any]] = []
    for column, set_ in enumerate(concept_sets.values()):
        right = shown[rows_of(index, set_.ids), column] == set_.targets
        for side, rights in zip(("positives", "negatives"), np.split(right, [len(set_.positives)]), strict=True):
            rows.append({"concept": set_.concept, "side": side, "n": len(rights), "n_right": int(rights.sum())})
    table = pd.DataFrame(rows, columns=["concept", "side", "n", "n_right"])
    low, high = wilson_interval(table["n_right"].to_numpy(), table["n"].to_numpy(), level=level)
    return table.assign(precision=table["n_right"] / table["n"], low=low, high=high)


def estimate_set_quality(concept_sets: ConceptSets, scores: ConceptScores) -> pd.DataFrame:
    """An estimate of each side's precision from the margins, where nobody knows the truth.

    An image's margin is the log-odds of the concept within its group: how much nearer the image is to the concept than to
    all the others. Two Gaussians are fitted to the margins of all images; the estimate is the mean posterior of the upper one
    among the positives, and of the lower one among the negatives. It is an estimate: where the encoder is sure and wrong, or
    hardly any image shows the concept, it is too good. How far it is off on the offline world stands in the documentation,
    "Concept sets". To know, look at some images (`neuroprobe.concepts.contact_sheet`).

    Parameters
    ----------
    concept_sets : ConceptSets
    scores : ConceptScores
        What the sets were ranked from: of all images, not of those in the sets alone.

    Returns
    -------
    DataFrame
        A row per concept and side: concept, side, n, estimated_precision, mean_likelihood (softmax within the group).

    Raises
    ------
    UnknownNameError
        A group that the scores do not have.
    InputError
        A concept or an image of the sets that the scores do not have, or margins that are all the same.
    """
    row_of = {id_: row for row, id_ in enumerate(scores.ids)}
    table = []
    for concept, set_ in concept_sets.items():
        missing = next((id_ for id_ in set_.ids if id_ not in row_of), None)
        if missing is not None:
            raise InputError(f"Expected the scores that the sets were ranked from, but they have no image {missing!r}.")
        margins = _margins(scores, set_)
        upper = _upper_posterior(margins, concept)
        for side, ids in (("positives", set_.positives), ("negatives", set_.negatives)):
            rows = [row_of[id_] for id_ in ids]
            shown, likelihood = upper[rows].mean(), special.expit(margins[rows]).mean()
            estimate = shown if side == "positives" else 1 - shown
            table.append((concept, side, len(ids), float(estimate), float(likelihood)))
    return pd.DataFrame(table, columns=["concept", "side", "n", "estimated_precision", "mean_likelihood"])


def with_label_noise(concept_sets: ConceptSets, rate: float, *, seed: int = 0) -> ConceptSets:
    """The same images with a share of each side put on the other: what wrong labels do to a probe.

    Parameters
    ----------
    concept_sets : ConceptSets
    rate : float
        Share of each side, in [0, 1]; rounded to whole images. Near-duplicates go together, as long as they fit.
    seed : int, default 0
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
    check_share("rate", rate, zero=True, one=True)
    check_seed(seed)
    sets = {}
    for concept, set_ in concept_sets.items():
        targets = set_.targets
        groups = np.asarray(set_.duplicates) if set_.duplicates else np.arange(len(targets))
        moved = groups_of_each_class(targets, groups, rate, generator_of(set_.concept, set_.group, seed), classes=(1, 0))
        sets[concept] = set_.reordered(np.flatnonzero((targets == 1) ^ moved), np.flatnonzero((targets == 0) ^ moved))
    return ConceptSets(sets, {**concept_sets.metadata, "label_noise": {"rate": rate, "seed": seed}})


def _margins(scores: ConceptScores, concept_set: ConceptSet) -> npt.NDArray[np.float64]:
    """The log-odds of the concept's likelihood, [n_images]; from similarities, as a likelihood of almost 1 is rounded."""
    scores.likelihoods(concept_set.group)  # raises what is wrong with the group or the temperature
    columns = scores.vocabulary.rows_of(concept_set.group)
    names = [scores.concepts[i] for i in columns]
    if concept_set.concept not in names:
        raise InputError(f"Expected the scores that the sets were ranked from, but {concept_set.group!r} has no {concept_set.concept!r}.")
    logits = (scores.image_vectors @ scores.text_vectors[columns].T).double().numpy() / scores.temperature
    own = names.index(concept_set.concept)
    margins: npt.NDArray[np.float64] = logits[:, own] - special.logsumexp(np.delete(logits, own, axis=1), axis=1)
    return margins


def _upper_posterior(margins: npt.NDArray[np.float64], concept: str) -> npt.NDArray[np.float64]:
    """Posterior of the upper of two Gaussians fitted to the margins, [n_images]."""
    spread = float(margins.std())
    if not spread > 0 or len(margins) < 4:
        raise InputError(f"Expected margins that differ between at least four images, but for {concept!r} they do not.")
    standard = ((margins - margins.mean()) / spread)[:, None]
    start = np.quantile(standard, [0.3, 0.95])[:, None]  # most images do not show the concept
    mixture = GaussianMixture(2, means_init=start, random_state=0, tol=1e-6, max_iter=2000).fit(standard)
    posterior: npt.NDArray[np.float64] = mixture.predict_proba(standard)[:, int(mixture.means_.argmax())]
    return posterior
