"""A concept that no image of the probing set shows, or that the vocabulary lacks: what are its units named then, and how surely?

Every label is the best of what was asked on the images there were. Here a concept that is known to be there is taken
away, so that what labeling does without it can be seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from neuroprobe._core import Unit, fingerprint_texts
from neuroprobe.concepts import ConceptScores, ConceptSets, LabelTable, TextEncoder, Vocabulary, shown_concepts
from neuroprobe.evaluation.truth import Truth, check_recorded, cosines, true_concepts
from neuroprobe.exceptions import InputError, UnknownNameError, shown, suggest
from neuroprobe.labeling import dissect
from neuroprobe.recording import Activations
from neuroprobe.reports import JudgmentReport, LabelReport, average, interval_options, labeled_units, share, units_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Dropped: TypeAlias = Literal["images", "word", "both"]

_FACTS = ("status", "candidate", "score", "margin", "p_value", "q_value", "stability")


class MissingConceptReport(JudgmentReport):
    """What units are named while their concept is missing, as `dissect_without` finds it.

    Columns: concept (the missing one), dropped ("images", "word" or "both"), n_images (left), layer, unit, before and after
    (its label with everything there and with the concept missing, "" without one), cosine (of the label after and
    the missing concept), and status, candidate, score, margin, p_value, q_value and stability of both labels (..._before, ..._after)
    where the labels have them.
    """

    name = "missing_concepts"
    title = "Labels while the concept is missing"
    required = ("concept", "dropped", "n_images", "layer", "unit", "before", "after", "cosine")
    text_columns = ("concept", "dropped", "layer", "before", "after")
    text_prefixes = ("status_", "candidate_")

    def plot(self, ax: Axes | None = None) -> Axes:
        """For what was dropped, the shares of units that keep the name, get another one, and lose theirs."""
        from neuroprobe.reports import plot_shares

        kinds = np.select(
            [self._table["after"] == "", self._table["after"] == self._table["concept"]], ["no label", "named after it"], "another label"
        )
        shares = pd.crosstab(self._table["dropped"], kinds, normalize="index")
        return plot_shares(shares.reindex(columns=["named after it", "another label", "no label"], fill_value=0.0), title=self.title, ax=ax)


def dissect_without(
    activations: Activations,
    scores: ConceptScores,
    concepts: Sequence[str],
    *,
    given_labels: LabelTable | ConceptSets | None = None,
    dropped: Sequence[Dropped] = ("images", "word"),
    truth: Truth | None = None,
    encoder: TextEncoder | None = None,
    options: Mapping[str, Any] | None = None,
    level: float = 0.95,
    seed: int = 0,
    n_resamples: int = 1000,
) -> MissingConceptReport:
    """Label again without the images that show a concept, or without its word, one concept at a time.

    Parameters
    ----------
    activations : Activations
    scores : ConceptScores
        Of the same images.
    concepts : sequence of str
        Those to take away, each by itself.
    given_labels : GivenLabels, DataFrame, mapping, ConceptScores of given labels, or ConceptSets, optional
        Which images show which concept, as in `neuroprobe.concepts.as_labels`; needed where images are dropped. Of concept sets, the
        positives go.
    dropped : sequence of {"images", "word", "both"}, default ("images", "word")
        What to take away: the images that show the concept, the concept from the vocabulary, or both.
    truth : mapping, optional
        Whose units to report: those whose true concept it is, as in `evaluate_labels`. By default those that are
        labeled with it when nothing is missing.
    encoder : encoder of texts, optional
        For the cosine of the label after and the missing concept.
    options : mapping, optional
        Further arguments of `neuroprobe.dissect`, such as ``similarity``.
    level, seed, n_resamples
        Of the intervals: Wilson's for shares, bootstrap over units for the mean cosine.

    Returns
    -------
    MissingConceptReport
        `overall`, for each of `dropped`: named and named_after_the_concept (shares), named_before, and the mean cosine of
        those still named.

    Raises
    ------
    InputError
        No unit has one of the concepts, images cannot be dropped because nobody said which show it, or too few are left.
    UnknownNameError
        A concept that is not in the vocabulary, or not in `given_labels`.
    """
    given = interval_options(level, seed, n_resamples)
    check_recorded(activations)
    if not isinstance(scores, ConceptScores) or not isinstance(options, Mapping | None):
        raise InputError(f"Expected ConceptScores, and `options` by their names, but got {shown(scores)} and {options!r:.60}.")
    options = dict(options or {})
    _check_asked(concepts, dropped, given_labels, scores)
    known = {} if given_labels is None else shown_concepts(given_labels, activations.ids)
    masks = {name: mask for name, (mask, _) in known.items()}
    _check_left(concepts, dropped, masks)
    before = dissect(activations, scores, **options)
    owners = _owners(before, truth, concepts)
    parts = []
    for concept, units in owners.items():
        for way in dropped:
            kept = np.ones(len(activations.ids), dtype=bool) if way == "word" else ~masks[concept]
            after = _dissect_rest(activations, scores, kept, None if way == "images" else concept, options)
            parts.append(_both(before, after, units).assign(concept=concept, dropped=way, n_images=int(kept.sum())))
    table = pd.concat(parts, ignore_index=True)
    names = [[concept] for concept in table["concept"]]
    table["cosine"] = math.nan if encoder is None else cosines(encoder, table["after"].tolist(), names)
    table = table[[*MissingConceptReport.required, *(column for column in table if column not in MissingConceptReport.required)]]
    overall = [row for way in dropped for row in _overall(table[table["dropped"] == way], way, given)]
    metadata = {
        **given, "concepts": list(owners), "without_units": [c for c in concepts if c not in owners], "labels": before.metadata,
        "options": {k: v if isinstance(v, str | int | float) else repr(v) for k, v in options.items()},
    }  # fmt: skip
    return MissingConceptReport(table, metadata, overall=overall)


def _without_images(activations: Activations, scores: ConceptScores, kept: npt.ArrayLike) -> tuple[Activations, ConceptScores]:
    """Activations and scores of the images that are True in `kept`, [n_images]; both know that they are of fewer."""
    rows = np.flatnonzero(np.asarray(kept, dtype=bool))
    ids = tuple(activations.ids[row] for row in rows)
    images = fingerprint_texts([str(activations.metadata.get("images")), *ids])
    fewer = Activations({layer: activations[layer][rows] for layer in activations.layers}, ids, {**activations.metadata, "images": images})
    return fewer, replace(scores, image_vectors=scores.image_vectors[rows], ids=ids, metadata={**scores.metadata, "images": images})


def _without_concept(scores: ConceptScores, concept: str) -> ConceptScores:
    """The scores as if the concept had never been in the vocabulary."""
    groups = [
        replace(group, concepts=tuple(name for name in group.concepts if name != concept)) if concept in group.concepts else group
        for group in scores.vocabulary.groups
        if set(group.concepts) != {concept}
    ]
    if not groups:
        raise InputError(f"Expected a vocabulary with concepts besides {concept!r}, but there is nothing left to name units with.")
    owner, kept = scores.vocabulary.group_of(concept).name, {group.name for group in groups}
    left = [i for i, c in enumerate(scores.vocabulary.concepts) if c.group in kept and (c.name, c.group) != (concept, owner)]
    vocabulary = Vocabulary(groups)
    metadata = {**scores.metadata, "vocabulary": vocabulary.fingerprint}
    return replace(scores, text_vectors=scores.text_vectors[left], vocabulary=vocabulary, metadata=metadata)


def _dissect_rest(
    activations: Activations, scores: ConceptScores, kept: npt.NDArray[np.bool_], concept: str | None, options: Mapping[str, Any]
) -> LabelReport:
    if not kept.all():
        activations, scores = _without_images(activations, scores, kept)
    return dissect(activations, scores if concept is None else _without_concept(scores, concept), **options)


def _check_asked(concepts: Sequence[str], dropped: Sequence[Dropped], given_labels: object, scores: ConceptScores) -> None:
    if isinstance(concepts, str) or not isinstance(concepts, Sequence) or not concepts or len(set(concepts)) < len(concepts):
        raise InputError(f"Expected a list of concepts to take away, each once, but got {concepts!r:.80}.")
    if isinstance(dropped, str) or not isinstance(dropped, Sequence) or not dropped or not set(dropped) <= set(get_args(Dropped)):
        raise InputError(f"Expected `dropped` to be a list of 'images', 'word' and 'both', but got {dropped!r}.")
    if given_labels is None and set(dropped) != {"word"}:
        raise InputError("Expected `given_labels`, which images show the concepts, to drop them. Or ask for dropped=['word'].")
    for concept in concepts if set(dropped) != {"images"} else ():
        if concept not in scores.concepts:
            raise UnknownNameError(f"Expected a concept of the vocabulary, but got {concept!r}. {suggest(concept, scores.concepts)}")


def _check_left(concepts: Sequence[str], dropped: Sequence[Dropped], masks: Mapping[str, npt.NDArray[np.bool_]]) -> None:
    for concept in concepts if set(dropped) != {"word"} else ():
        if concept not in masks:
            raise UnknownNameError(
                f"Expected to know which images show {concept!r}, but `given_labels` does not say. {suggest(concept, masks)}"
            )
        if (~masks[concept]).sum() < 2:
            raise InputError(f"Expected at least two images that do not show {concept!r}, but there are {int((~masks[concept]).sum())}.")


def _owners(before: LabelReport, truth: Truth | None, concepts: Sequence[str]) -> dict[str, list[Unit]]:
    truth = labeled_units(before) if truth is None else truth
    names = true_concepts(truth, units_of(before.table))
    owners = {concept: [unit for unit, accepted in names.items() if concept in accepted] for concept in concepts}
    owners = {concept: units for concept, units in owners.items() if units}
    if not owners:
        raise InputError(f"Expected units whose concept is one of {list(concepts)[:5]}, but there are none.")
    return owners


def _both(before: LabelReport, after: LabelReport, units: Sequence[Unit]) -> pd.DataFrame:
    """A row per unit with both labels and what is known of them."""
    old, new = (labels.table.set_index(["layer", "unit"]).loc[list(units)] for labels in (before, after))
    facts = {f"{fact}_{when}": rows[fact] for fact in _FACTS if fact in old for when, rows in (("before", old), ("after", new))}
    return pd.DataFrame({"before": old["concept"], "after": new["concept"], **facts}).reset_index()


def _overall(rows: pd.DataFrame, way: str, given: Mapping[str, Any]) -> list[dict[str, Any]]:
    level = float(given["level"])
    return [
        share(f"named_before, {way} dropped", rows["before"] != "", level=level),
        share(f"named, {way} dropped", rows["after"] != "", level=level),
        share(f"named_after_the_concept, {way} dropped", rows["after"] == rows["concept"], level=level),
        average(f"cosine, {way} dropped", rows["cosine"], **given),
    ]
