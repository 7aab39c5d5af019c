"""What composes a unit: its activation as a weighted sum of a few concepts, judged on images that were held out.

A label says what a unit answers to most. Many units answer to several things, to some of them by falling; a short sum says all of it,
and how well it predicts the unit on other images says how much of the unit it explains.

Concept values are how much of each concept is in each image, as numbers that can be added up. Cosine similarities of images and texts
lie close together, around another mean for every concept, and hardly tell "not there" from "not there at all". As a presence they are
near 0 for most images and near 1 for those that stand out: a sigmoid of how many standard deviations the similarity is above its mean.
So the weight of a concept is about what changes between an image without it and one with it.

References
----------
Oikarinen and Weng, "Linear Explanations for Individual Neurons", ICML 2024, arXiv 2405.06855. There, concepts are labels or SigLIP's
probabilities (a sigmoid of the cosine, calibrated on labels), candidates come from an elastic net, and a greedy search over ten of them
adds one while the correlation on validation images rises by 0.02, up to ten. Here, the sigmoid is of how many standard deviations the
similarity is above its mean, every concept is a candidate at every step, all units are searched at once, and after the number of
concepts is known, they are chosen and weighed on all images but those held out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy.special import expit

from neuroprobe._core import Floats, Rows, Unit, check_counts, check_level, check_seed, check_share
from neuroprobe.concepts import ConceptScores, check_same_images
from neuroprobe.exceptions import InputError, UnknownNameError, shown, suggest
from neuroprobe.labeling._figures import plot_two_scores
from neuroprobe.labeling._layer import Units, chosen_units
from neuroprobe.labeling._sum_search import Sums, SumSearch
from neuroprobe.recording import Activations, check_layers
from neuroprobe.reports import ALL_LAYERS, JudgmentReport, Labels, labeled_units, metadata_of, quantity
from neuroprobe.statistics import Quality, correlations, draw_counts, explained_shares, interval, quality, split_images

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Values: TypeAlias = Literal["presence", "similarity", "likelihood", "labels"]

#: Standard deviations above its mean at which a similarity is half a presence, and how steeply it becomes one. On the offline world
#: any middle from 1 to 2 with a steepness from 1 to 3 predicts units about equally well.
MIDDLE, STEEPNESS = 1.5, 2.0

_VALIDATION = 1 / 3  # of the images not held out, on which the number of concepts is decided


@dataclass(frozen=True, eq=False)
class ConceptValues:
    """How concept scores become values, learned from some images and applied to any."""

    kind: Values
    names: tuple[str, ...]  # of the concepts
    center: Floats  # mean of the similarities, [n_concepts]; used by "presence"
    spread: Floats  # their standard deviation, [n_concepts]; likewise
    encoder: str | None  # fingerprint of what the scores came from

    @classmethod
    def learned(cls, scores: ConceptScores, rows: Rows, kind: Values | None = None) -> ConceptValues:
        """From the images in `rows` of `scores`; `kind` None is "labels" for given labels and "presence" for others.

        Raises
        ------
        UnknownNameError
            No such kind.
        InputError
            A kind that the scores do not have, or scores that are not finite.
        """
        given = "labels" in scores.metadata
        if kind is not None and kind not in get_args(Values):
            raise UnknownNameError(f"Expected a kind of concept values, but got {kind!r}. {suggest(str(kind), get_args(Values))}")
        if kind is not None and (kind == "labels") is not given:
            what = "given labels" if given else "scores of an encoder"
            raise InputError(f"Expected a kind of values that {what} have, but got {kind!r}. Leave `values` out.")
        similarities = scores.similarities().numpy()
        _check_finite(similarities)
        similarities = similarities[rows]
        chosen: Values = kind or ("labels" if given else "presence")
        encoder = scores.metadata.get("encoder")
        return cls(chosen, scores.concepts, similarities.mean(axis=0, dtype=float), similarities.std(axis=0, dtype=float), encoder)

    def of(self, scores: ConceptScores) -> Floats:
        """The values, [n_images, n_concepts], columns as in `names`.

        Raises
        ------
        InputError
            No scores, or from another encoder, without one of the concepts, or not finite.
        """
        if not isinstance(scores, ConceptScores):
            raise InputError(f"Expected concept scores as ConceptSource or GivenLabels make them, but got {shown(scores)}.")
        if scores.metadata.get("encoder") != self.encoder:
            raise InputError(f"Expected scores of the encoder {self.encoder}, but got some of {scores.metadata.get('encoder')}.")
        missing = [name for name in self.names if name not in scores.concepts]
        if missing:
            raise InputError(f"Expected scores of all {len(self.names)} concepts, but {missing[0]!r} is missing.")
        places = {name: place for place, name in enumerate(scores.concepts)}
        columns = [places[name] for name in self.names]
        similarities = (scores.image_vectors @ scores.text_vectors[columns].T).numpy().astype(np.float64)
        _check_finite(similarities)
        if self.kind == "likelihood":
            return _likelihoods(scores)[:, columns]
        above = (similarities - self.center) / np.where(self.spread > 0, self.spread, 1)
        return similarities if self.kind != "presence" else np.asarray(expit(STEEPNESS * (above - MIDDLE)))

    def to_json(self, names: Iterable[str]) -> dict[str, Any]:
        """What `from_json` reads, of some of the concepts."""
        places = [self.names.index(name) for name in names]
        listed = {"names": [self.names[i] for i in places], "center": self.center[places].tolist(), "spread": self.spread[places].tolist()}
        return {"kind": self.kind, "encoder": self.encoder, **listed}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> ConceptValues:
        return cls(facts["kind"], tuple(facts["names"]), np.array(facts["center"]), np.array(facts["spread"]), facts["encoder"])


def _check_finite(similarities: npt.NDArray[Any]) -> None:
    if not np.isfinite(similarities).all():
        raise InputError("Expected finite concept scores, but got others. Check the encoder's vectors.")


def _likelihoods(scores: ConceptScores) -> Floats:
    """Softmax within every concept's group, [n_images, n_concepts]."""
    groups = np.array([concept.group for concept in scores.vocabulary.concepts])
    found = np.empty((len(scores.ids), len(groups)))
    for group in dict.fromkeys(groups.tolist()):
        found[:, groups == group] = scores.likelihoods(group).numpy()
    return found


class UnitCompositionReport(JudgmentReport):
    """Units as weighted sums of concepts, as `explain_units` finds them; the means over units are in `overall`.

    Columns: layer, unit, formula (the sum in words), n_concepts; on held-out images correlation of the sum with the unit, low and high
    (its interval), r2, first_correlation (of the first concept alone), gain (of all concepts over the first) with gain_low and
    gain_high; intercept; for each concept, in the order they were chosen, concept_1, weight_1 (of its values as they are) and effect_1
    (in standard deviations of the unit, for one of the concept's). If labels were given: label, label_correlation, gain_over_label
    with gain_over_label_low and gain_over_label_high.
    """

    name = "unit_composition"
    title = "Units as sums of concepts"
    required = ("layer", "unit", "formula", "n_concepts", "correlation", "low", "high", "r2", "first_correlation", "gain", "intercept")
    text_columns = ("layer", "formula", "label")
    text_prefixes = ("concept_",)

    def formula(self, layer: str, unit: int) -> str:
        """The sum of one unit in words; "" for one that never varies.

        Raises
        ------
        InputError
            The report holds no such unit.
        """
        return self._text_of(layer, unit, "formula")

    def predict(self, scores: ConceptScores, layer: str) -> Floats:
        """What the sums say of images, seen or unseen: the activation expected of every unit of a layer, [n_images, n_rows].

        Parameters
        ----------
        scores : ConceptScores
            Of any images, with the same concepts from the same source.
        layer : str

        Raises
        ------
        InputError
            No such layer, scores of another kind, or a concept that they do not have.
        """
        rows = self._table[self._table["layer"] == layer]
        if rows.empty:
            raise InputError(f"Expected a layer of this report, but got {layer!r}.")
        scale = ConceptValues.from_json(self.metadata["concept_values"])
        values, places = scale.of(scores), {concept: place for place, concept in enumerate(scale.names)}
        found = np.repeat(rows["intercept"].to_numpy(dtype=float)[None], len(values), axis=0)
        for i in range(1, self.metadata["k"] + 1):
            for column, (concept, weight) in enumerate(zip(rows[f"concept_{i}"], rows[f"weight_{i}"], strict=True)):
                found[:, column] += weight * values[:, places[concept]] if concept else 0
        return found

    def plot(self, ax: Axes | None = None) -> Axes:
        """Of every unit, the held-out correlation of its first concept against that of all."""
        names = ("held-out correlation of one concept", "of all chosen concepts")
        return plot_two_scores(self._table, "first_correlation", "correlation", names=names, title=self.title, ax=ax)


def explain_units(
    activations: Activations,
    scores: ConceptScores,
    *,
    labels: Labels | None = None,
    layers: Sequence[str] | None = None,
    units: Units | None = None,
    k: int = 4,
    signed: bool = True,
    min_gain: float = 0.02,
    most_shared: float = 0.8,
    values: Values | None = None,
    held_out: float | Iterable[str] = 0.3,
    near_duplicates: Mapping[str, int] | None = None,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    device: str | torch.device = "auto",
) -> UnitCompositionReport:
    """Every unit as a weighted sum of a few concepts, and how well that predicts it on held-out images.

    Parameters
    ----------
    activations : Activations
    scores : ConceptScores
        Of the same images.
    labels : LabelReport, or mapping from (layer, unit) to a concept, optional
        To compare with: what a unit's one label predicts on the same held-out images. If these were among the images of the labels,
        the comparison favors the labels.
    layers, units
        As in `neuroprobe.dissect`.
    k : int, default 4
        Most concepts per unit.
    signed : bool, default True
        Whether a unit may fall with a concept; otherwise no weight is below 0.
    min_gain : float, default 0.02
        A further concept has to raise the correlation by this, on a third of the images that are not held out.
    most_shared : float, default 0.8
        The share of a concept's variance that the concepts before it may explain, so that no two names of one thing enter.
    values : {"presence", "similarity", "likelihood", "labels"}, optional
        What of a concept is added up: "presence", a sigmoid that is near 0 for most images and near 1 for those far above a concept's
        mean similarity; the cosine "similarity" as it is; the "likelihood" within its group; given "labels". By default "presence",
        and "labels" of given labels.
    held_out : float or iterable of str, default 0.3
        Share of the images to judge on, or their ids.
    near_duplicates : mapping from id to group, optional
        Kept on one side; as from `neuroprobe.images.near_duplicates`.
    n_resamples : int, default 1000
        Of the bootstrap over images.
    level : float, default 0.95
    seed : int, default 0
        Of what is held out and drawn again.
    device : str or torch.device, default "auto"
        Where concepts and units are multiplied.

    Returns
    -------
    UnitCompositionReport
        `overall`: means over the units, of all layers and of each: mean_correlation, mean_first_correlation, mean_gain,
        mean_n_concepts and, with labels, mean_label_correlation and mean_gain_over_label; intervals are over images.

    Raises
    ------
    InputError
        Other images, too few of them, scores that are not finite, labels of none of the units, or parameters that make no sense.
    UnknownNameError
        No such layer, or kind of values.

    Notes
    -----
    The values of all concepts on all images are held in memory, 8 bytes each, and their training part a few times over.
    """
    check_same_images(activations, scores)
    if not isinstance(activations, Activations):
        raise InputError("Expected activations with every value kept, but got a summary. Record without `summary`.")
    if not isinstance(signed, (bool, np.bool_)):
        raise InputError(f"Expected `signed` to be True or False, but got {signed!r:.60}.")
    check_share("min_gain", min_gain, zero=True)
    check_share("most_shared", most_shared, zero=True)
    check_counts(k=k, n_resamples=n_resamples)
    check_level(level)
    check_seed(seed)
    chosen = chosen_units(units, {layer: activations[layer].shape[1] for layer in check_layers(activations, layers)})
    named = None if labels is None else _named_units(labels, chosen)
    train, test = split_images(activations.ids, held_out=held_out, near_duplicates=near_duplicates, seed=seed)
    inner = split_images([activations.ids[row] for row in train], held_out=_VALIDATION, near_duplicates=near_duplicates, seed=seed + 1)
    scale = ConceptValues.learned(scores, train, values)
    search = SumSearch(
        values=scale.of(scores), train=train, test=test, inner=inner,
        k=k, signed=signed, min_gain=min_gain, most_shared=most_shared, device=device,
    )  # fmt: skip
    counts = draw_counts(len(test), n_resamples=n_resamples, seed=seed)
    tables, judged = [], {}
    for layer, columns in chosen.items():
        measured = np.asarray(activations[layer][:, columns], dtype=np.float64)
        found = search.layer(measured)
        own = None if named is None else [named.get((layer, unit), "") for unit in columns]
        judged[layer] = _judged(search, found, measured, labels=own, concepts=scores.concepts, counts=counts, level=level)
        r2 = explained_shares(search.predicted(found, test), measured[test])
        whole = {**_sum_columns(search, found, measured, scores.concepts), **_quality_columns(judged[layer]), "r2": r2}
        table = pd.DataFrame({"layer": layer, "unit": columns, **whole})
        tables.append(table if own is None else table.assign(label=own))
    joined = pd.concat(tables, ignore_index=True)
    used = dict.fromkeys(name for i in range(k) for name in joined[f"concept_{i + 1}"] if name)
    metadata = {
        "k": k, "signed": signed, "min_gain": min_gain, "most_shared": most_shared, "level": level, "seed": seed,
        "n_resamples": n_resamples, "n_train": len(train), "n_held_out": len(test), "concept_values": scale.to_json(used),
        "activations": dict(activations.metadata), "scores": dict(scores.metadata),
        "labels": metadata_of(labels),
    }  # fmt: skip
    return UnitCompositionReport(joined, metadata, overall=_overall(judged, joined, level))


def _judged(
    search: SumSearch, sums: Sums, measured: Floats, *, labels: Sequence[str] | None, concepts: Sequence[str], counts: Floats, level: float
) -> dict[str, Quality]:
    """Correlations with the units on held-out images, of the sums, of their first concepts and of labels, and gains in the same draws."""
    truth = measured[search.test]

    def judged(predicted: Floats) -> Quality:
        return quality(correlations, predicted, truth, counts=counts, level=level)

    def gain(other: Quality) -> Quality:
        draws = found["correlation"].draws - other.draws
        return Quality(found["correlation"].value - other.value, *interval(draws, level=level), draws)

    found = {"correlation": judged(search.predicted(sums, search.test))}
    first = search.weighed(sums.concepts, 1, measured)
    found["first_correlation"] = judged(search.predicted(first, search.test))
    found["gain"] = gain(found["first_correlation"])
    if labels is not None:
        places = {concept: place for place, concept in enumerate(concepts)}
        values = search.values[search.test][:, [places.get(label, 0) for label in labels]]
        known = [label in places for label in labels]  # without a label, or of another vocabulary: a constant, which predicts nothing
        found["label_correlation"] = judged(np.where(known, values, 0.0))
        found["gain_over_label"] = gain(found["label_correlation"])
    return found


def _quality_columns(judged: Mapping[str, Quality]) -> dict[str, Floats]:
    """The columns of the table that say how good the sums are."""
    columns = {name: found.value for name, found in judged.items()}
    columns |= {"low": judged["correlation"].low, "high": judged["correlation"].high}
    for name in judged:
        if name.startswith("gain"):
            columns |= {f"{name}_low": judged[name].low, f"{name}_high": judged[name].high}
    return columns


def _sum_columns(search: SumSearch, sums: Sums, measured: Floats, names: Sequence[str]) -> dict[str, Any]:
    """The columns of the table that say what the sums are."""
    spread, deviations = measured[search.train].std(axis=0), search.values[search.train].std(axis=0)
    there, texts = sums.concepts >= 0, np.array([*names, ""], dtype=object)
    with np.errstate(invalid="ignore", divide="ignore"):  # units that never vary
        effects = np.where(there, sums.weights * deviations[sums.concepts] / spread[:, None], np.nan)
    columns: dict[str, Any] = {
        "formula": [_formula(chosen, weights, names) for chosen, weights in zip(sums.concepts, sums.weights, strict=True)],
        "n_concepts": there.sum(axis=1),
        "intercept": sums.intercepts,
    }
    for i in range(there.shape[1]):
        columns[f"concept_{i + 1}"] = texts[sums.concepts[:, i]]
        columns[f"weight_{i + 1}"] = np.where(there[:, i], sums.weights[:, i], np.nan)
        columns[f"effect_{i + 1}"] = effects[:, i]
    return columns


def _formula(concepts: Rows, weights: Floats, names: Sequence[str]) -> str:
    """Such as "2 * red - 0.5 * striped"."""
    there = [(i, weight) for i, weight in zip(concepts, weights, strict=True) if i >= 0]
    terms = [f"{'-' if weight < 0 else '+'} {abs(weight):.3g} * {names[i]}" for i, weight in there]
    text = " ".join(terms)
    return text[2:] if text.startswith("+ ") else text.replace("- ", "-", 1)


def _overall(judged: Mapping[str, Mapping[str, Quality]], table: pd.DataFrame, level: float) -> list[dict[str, Any]]:
    """Means over the units of all layers, and of each; units without a value are left out."""
    rows = []
    for layer in [ALL_LAYERS, *judged] if len(judged) > 1 else [ALL_LAYERS]:
        parts = [found for owner, found in judged.items() if layer in (ALL_LAYERS, owner)]
        for name in parts[0]:
            value = np.concatenate([part[name].value for part in parts])
            draws = np.concatenate([part[name].draws for part in parts], axis=1)
            known = ~np.isnan(value)
            if not known.any():
                continue
            low, high = interval(np.nanmean(draws[:, known], axis=1)[:, None], level=level)
            rows.append(quantity(f"mean_{name}", value[known].mean(), interval=(low[0], high[0]), n=int(known.sum()), layer=layer))
        lengths = table["n_concepts"] if layer == ALL_LAYERS else table.loc[table["layer"] == layer, "n_concepts"]
        rows.append(quantity("mean_n_concepts", lengths.mean(), n=len(lengths), layer=layer))
    return rows


def _named_units(labels: Labels, chosen: Mapping[str, Sequence[int]]) -> dict[Unit, str]:
    named = labeled_units(labels)
    if not any((layer, unit) in named for layer, units in chosen.items() for unit in units):
        layers = ", ".join(repr(name) for name in dict.fromkeys(owner for owner, _ in named)) or "no layer"
        raise InputError(f"Expected labels of units that are explained, of {', '.join(map(repr, chosen))}, but got some of {layers}.")
    return named
