"""Causal effects: what setting a layer's units to a value does to the outputs, on images with a concept and on matched ones without.

A label says "correlates". Whether the model uses the units for the concept shows when they are taken away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import pandas as pd
from torch import nn

from neuroprobe._core import Floats, as_numbers, check_choice, check_count, check_level, check_seed, check_units, fingerprint_model
from neuroprobe.concepts import ConceptScores, ConceptSet
from neuroprobe.effects._outputs import Found, Measured, OutputsUnder, named_outputs
from neuroprobe.effects.interventions import UnitNumbers, Value, resolve_value, setting
from neuroprobe.effects.matching import Match, MatchedImages, Sides, concept_sides, match_images, random_units
from neuroprobe.exceptions import InputError, UnknownNameError, suggest
from neuroprobe.images import Images, Transform, check_images, first_readable
from neuroprobe.models import Site, check_site, find_site
from neuroprobe.recording import Activations, ActivationSummary
from neuroprobe.reports import LabelReport, Report, check_labels, label_sites
from neuroprobe.statistics import paired_interval, permutation_p_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Random units of the layer, or such as are about as active.
Control: TypeAlias = Literal["random", "magnitude"]


class EffectReport(Report):
    """What taking units away does to each output, a row per concept and output, as `causal_effect` finds it.

    Columns: layer, units (their numbers, joined by spaces), intervention (what was done to them), concept, output; `effect` (the mean
    over pairs of the output's change on the image with the concept minus its change on the matched image without), `low` and `high`
    (its paired t interval); `random` (the mean effect of random sets of units), `random_low` and `random_high` (between which the
    middle of these effects lies); n_pairs; `change_with` and `change_without` (the mean changes on the images with the concept and
    on the matched ones); `p_value` (the share of random sets whose effect is as far from 0, the units' own counted among them);
    n_random (how many random sets). What was not measured is NaN.
    """

    name = "effects"
    title = "What taking units away does"
    required = (
        "layer", "units", "intervention", "concept", "output", "effect", "low", "high", "random", "random_low", "random_high", "n_pairs",
    )  # fmt: skip
    text_columns = ("layer", "units", "intervention", "concept", "output")

    def hurts_most(self, output: str, *, concept: str | None = None) -> bool:
        """Whether this output falls more than every other on images with the concept, its interval below all of theirs.

        Parameters
        ----------
        output : str
        concept : str, optional
            May be left out if the report is about one.

        Raises
        ------
        UnknownNameError
            No such output or concept.
        InputError
            Several concepts and none named, no other output, or a table put together from several interventions.
        """
        if len(self._table[["layer", "units", "intervention"]].drop_duplicates()) > 1:
            raise InputError("Expected a report on one intervention, but its table is of several. Ask the report of each.")
        concepts = list(dict.fromkeys(self._table["concept"]))
        if concept is None and len(concepts) > 1:
            raise InputError(f"Expected the concept to be named, because the report is about several: {', '.join(concepts[:6])}.")
        rows = self._table[self._table["concept"] == (concepts[0] if concept is None else _known(concept, concepts, "a concept"))]
        ours = rows["output"] == _known(output, list(rows["output"]), "an output")
        if ours.all():
            raise InputError(f"Expected other outputs than {output!r} to compare with, but the report has none.")
        return bool(rows.loc[ours, "high"].iloc[0] < rows.loc[~ours, "low"].min(skipna=False))

    def summary(self) -> str:
        if self._table.empty:
            return "0 rows"
        most = self._table.loc[self._table["effect"].abs().idxmax()]
        return (
            f"{_in_words(most)}; {len(self)} rows; most changed: output "
            f"{most['output']} on images with {most['concept']}, {most['effect']:+.3g} [{most['low']:+.3g}, {most['high']:+.3g}]"
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """The effect on each output with its interval, beside that of random units."""
        from neuroprobe.effects._figures import plot_effects

        done, concepts = self._table[["layer", "units", "intervention"]].drop_duplicates(), self._table["concept"].unique()
        title = "" if done.empty else _in_words(done.iloc[0]) if len(done) == 1 else "Several interventions"
        return plot_effects(self._table, title=title + (f"; images with {concepts[0]}" if len(concepts) == 1 else ""), ax=ax)


def causal_effect(
    model: nn.Module,
    images: Images,
    concepts: ConceptSet | Mapping[str, Sides],
    *,
    layer: str | Site,
    units: UnitNumbers,
    outputs: int | Mapping[str, Measured],
    transform: Transform,
    value: Value = "mean",
    activations: Activations | ActivationSummary | None = None,
    match: Match = "nearest",
    scores: ConceptScores | None = None,
    n_random: int = 20,
    control: Control = "random",
    level: float = 0.95,
    seed: int = 0,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool | None = None,
) -> EffectReport:
    """What setting units of a layer to a value does to outputs, on images with a concept against matched ones without.

    Parameters
    ----------
    model : torch.nn.Module
        Left as it was found; it runs in evaluation mode.
    images : Images
        All that the concepts name; others are not read. Take others than those from which the units got their names.
    concepts : ConceptSet, or mapping from name to ConceptSet or (ids with, ids without)
        Such as a `ConceptSets`; all are measured in the same pass.
    layer, units, value, activations
        As in `neuroprobe.effects.ablate`.
    outputs : int, or mapping from name to output
        What is measured: the number of an output of the model; a function of what the model returns that gives a number per
        image; or, of a probe of a later layer, its log-odds: its `Direction`, or (layer or Site, probe or Direction); a probe that was
        fitted to mean-pooled activations.
    match, scores
        How every image with a concept gets one without; see `neuroprobe.effects.match_images`.
    n_random : int, default 20
        Random sets of as many other units of the layer to compare with, all different; fewer if there are not so many. The model
        runs once for each on every image.
    control : {"random", "magnitude"}, default "random"
        "magnitude": random units that are about as active as those they stand for, by the root of the mean square in `activations`.
    level : float, default 0.95
        Of the intervals.
    seed : int, default 0
        Of random sets and random pairs.
    transform, batch_size, workers, progress
        As in `neuroprobe.ActivationRecorder.record`.

    Raises
    ------
    InputError
        Before the pass: what `ablate` and `match_images` refuse, units or values that do not fit the layer, outputs that the model does
        not have, a probe of a layer before this one, too few other units. After it: no pair of which both images could be read.
    UnknownNameError
        A layer, an image or a concept that is not known.

    Notes
    -----
    The interval is Student's of the mean of the pairs' differences, with n_pairs - 1 degrees of freedom. It is about new pairs of
    images for these units; p-values are not corrected for the number of outputs and concepts.
    """
    check_level(level)
    check_seed(seed)
    check_choice("control", control, get_args(Control))
    check_count("n_random", n_random, low=0)
    check_images(images)
    site = check_site(model, layer)
    numbers, names = check_units(site.key, units), named_outputs(outputs, probes=True)
    pairs = [match_images(sides, scores, match=match, seed=seed) for sides in concept_sides(concepts).values()]
    chosen = _images_of(pairs, images)
    given = resolve_value(model, site, numbers, value, activations)
    reader = OutputsUnder(model, site, names, transform)
    with reader.hooked():
        # what is wrong shows with the first image
        reader.measure(first_readable(chosen), [setting(site, numbers, given)], progress=False)
        magnitudes = None if control == "random" else _magnitudes(site, activations, reader.n_units)
        others = random_units(reader.n_units, numbers, n_random=n_random, seed=seed, magnitudes=magnitudes)
        changes = [setting(site, set_, given) for set_ in (numbers, *map(list, others))]
        found = reader.measure(chosen, changes, batch_size=batch_size, workers=workers, progress=progress, description="effects")
    facts = {"layer": site.key, "units": " ".join(map(str, numbers)), "intervention": _intervention(value)}
    rows, kept = _rows(found, pairs, list(names), facts, level)
    metadata = {
        "model": fingerprint_model(model), "sites": {site.key: site.identity}, "images": found.collected.fingerprint,
        "skipped": dict(found.collected.skipped),
        "match": match, "pairs": kept, "control": control, "random_units": [list(set_) for set_ in others],
        "level": level, "seed": seed,
    }  # fmt: skip
    return EffectReport(pd.DataFrame(rows), metadata)


def units_named(labels: LabelReport, layer: str | Site, concept: str) -> list[int]:
    """The units of a layer that a report names with a concept; none if the report knows the concept, but names none with it.

    Parameters
    ----------
    labels : LabelReport
    layer : str or Site
    concept : str

    Raises
    ------
    UnknownNameError
        A layer that the report is not about, or a concept that is no unit's label or candidate in any layer.
    InputError
        The report is about another site of the layer.
    """
    check_labels(labels)
    table = labels.table
    known = label_sites(labels)
    key = find_site(layer, {name: known.get(name, name) for name in table["layer"].unique()})
    columns = [column for column in table if column in ("concept", "candidate") or str(column).startswith("concept_")]
    _known(concept, sorted({str(name) for column in columns for name in table[column]} - {""}), "a concept of the report")
    return [int(unit) for unit in table.loc[(table["layer"] == key) & (table["concept"] == concept), "unit"]]


def _in_words(row: pd.Series[Any]) -> str:
    """What was done, such as "2 units of fc set to zero"."""
    n = len(str(row["units"]).split())
    return f"{n} unit{'s' * (n > 1)} of {row['layer']} {row['intervention']}"


def _images_of(pairs: Sequence[MatchedImages], images: Images) -> Images:
    wanted = {id_ for pair in pairs for id_ in (*pair.with_concept, *pair.without)}
    known = [id_ for id_ in images.ids if id_ in wanted]
    return images.subset([*known, *sorted(wanted.difference(known))])  # an id that is not there is told


def _rows(
    found: Found, pairs: Sequence[MatchedImages], names: list[str], facts: dict[str, str], level: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The table's rows, and what is to be known of the pairs."""
    rows, kept, read = [], [], set(found.collected.ids)
    for pair in pairs:
        both = [(one, other) for one, other in zip(pair.with_concept, pair.without, strict=True) if one in read and other in read]
        if not both:
            raise InputError(f"Expected a pair of images of {pair.concept!r} that can be read, but in all {len(pair.without)} one cannot.")
        changed = [found.changes(side) for side in zip(*both, strict=True)]  # [n_interventions, n_pairs, n_outputs] with, and without
        for o, name in enumerate(names):
            rows.append({**facts, "concept": pair.concept, "output": name, **_effect(changed[0][..., o], changed[1][..., o], level)})
        kept.append(
            {
                "concept": pair.concept, "n_pairs": len(both), "n_unreadable": len(pair.without) - len(both), "n_left_out": pair.left_out,
                "distance": _or_none(pair.distance), "any_distance": _or_none(pair.any_distance),
            }
        )  # fmt: skip
    return rows, kept


def _effect(with_concept: Floats, without: Floats, level: float) -> dict[str, Any]:
    """One row's numbers from the changes [1 + n_random, n_pairs] by the units and by random sets."""
    differences = with_concept - without
    low, high = paired_interval(differences[0], level=level)
    effect, random = float(differences[0].mean()), differences[1:].mean(axis=1)
    ends = np.quantile(random, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf") if len(random) else (math.nan, math.nan)
    return {
        "effect": effect, "low": float(low), "high": float(high),
        "random": float(random.mean()) if len(random) else math.nan, "random_low": float(ends[0]), "random_high": float(ends[1]),
        "n_pairs": differences.shape[1],
        "change_with": float(with_concept[0].mean()), "change_without": float(without[0].mean()),
        "p_value": float(permutation_p_value(abs(effect), np.abs(random))) if len(random) else math.nan, "n_random": len(random),
    }  # fmt: skip


def _magnitudes(site: Site, activations: Activations | ActivationSummary | None, n_units: int) -> Floats:
    """The root of the mean square of every unit."""
    if isinstance(activations, Activations):
        squares = np.square(activations[site], dtype=np.float64).mean(axis=0)
    elif isinstance(activations, ActivationSummary):
        squares = np.square(activations[site].mean) + activations[site].variance
    else:
        raise InputError(
            f"Expected `activations` of {site.key!r} to find units that are as active, but got none. Or take control='random'."
        )
    if len(squares) != n_units:
        raise InputError(f"Expected activations of the {n_units} units of {site.key!r}, but got some of {len(squares)}, of another model.")
    return np.asarray(np.sqrt(squares))


def _intervention(value: Value) -> str:
    if isinstance(value, str):
        return {"mean": "set to the mean", "zero": "set to zero"}[value]
    array = as_numbers("value", value)
    return f"set to {float(array):g}" if array.ndim == 0 else "set to given values"


def _known(name: str, known: Sequence[str], what: str) -> str:
    if name not in known:
        raise UnknownNameError(f"Expected {what}, but got {name!r}. {suggest(str(name), known)}")
    return name


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
