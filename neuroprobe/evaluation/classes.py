"""Classes of an image named from the labels of its most active units."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from neuroprobe._core import Floats, check_counts, check_level, check_seed
from neuroprobe.concepts import TextEncoder, text_vectors
from neuroprobe.evaluation.truth import check_recorded
from neuroprobe.exceptions import InputError
from neuroprobe.models import Site, find_site
from neuroprobe.recording import Activations
from neuroprobe.reports import JudgmentReport, Labels, check_label_sites, labels_of_layer, metadata_of, quantity, share
from neuroprobe.statistics import permutation_p_value


class ClassReport(JudgmentReport):
    """How well classes are read from the labels of active units, as `classes_from_labels` finds it; accuracy is in `overall`.

    Columns: class, n_images, n_right, recall, low, high (its interval), n_predicted (images given this class).
    """

    name = "classes"
    title = "Classes from the labels of active units"
    required = ("class", "n_images", "n_right", "recall", "low", "high", "n_predicted")
    text_columns = ("class",)


def classes_from_labels(
    labels: Labels,
    activations: Activations,
    targets: Sequence[str],
    *,
    layer: str | Site,
    encoder: TextEncoder,
    classes: Sequence[str] | None = None,
    top: int = 5,
    n_permutations: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> ClassReport:
    """Predict the class of every image from nothing but the labels of its most active units.

    Activations are standardized over the images, so that no unit is always among the most active; the labels of the top
    units are embedded, averaged, and less their mean over all images compared with the names of the classes.

    Parameters
    ----------
    labels : LabelReport, or mapping from (layer, unit) to a concept
    activations : Activations
    targets : sequence of str, [n_images]
        The class of each image, by name.
    layer : str or Site
    encoder : encoder of texts
        Anything with ``encode_texts``.
    classes : sequence of str, optional
        Among which to choose; by default those that occur.
    top : int, default 5
        Units per image.
    n_permutations : int, default 1000
        Of the labels among the units: what labels that say nothing of their units would reach.
    level : float, default 0.95
    seed : int, default 0

    Returns
    -------
    ClassReport
        `overall`: accuracy with Wilson's interval, chance (mean accuracy with permuted labels), most_frequent (the share
        of the most frequent class) and p_value (the share of permutations with an accuracy at least as high).

    Raises
    ------
    InputError
        Targets that are not one per image or not among the classes, fewer than two classes, or too few labeled units.
    """
    check_level(level)
    check_seed(seed)
    check_counts(top=top, n_permutations=n_permutations)
    check_recorded(activations)
    names, truth = _class_numbers(targets, classes, len(activations.ids))
    key = find_site(layer, activations.sites)
    values = np.asarray(activations[key], dtype=float)
    check_label_sites(labels, activations.sites)
    units = labels_of_layer(labels, key, values.shape[1])
    active, chosen = _most_active(values, list(units), top)
    own = [list(units.values())[i] for i in chosen]
    vectors = text_vectors(encoder, [*own, *names])
    described, wanted = np.stack([vectors[label] for label in own]), np.stack([vectors[name] for name in names])
    predicted = _nearest(active, described, wanted)
    generator = np.random.default_rng(seed)
    null = np.array(
        [(_nearest(active, described[generator.permutation(len(described))], wanted) == truth).mean() for _ in range(n_permutations)]
    )
    right = predicted == truth
    overall = [
        share("accuracy", right, level=level),
        quantity("chance", float(null.mean()), n=n_permutations),
        quantity("most_frequent", np.bincount(truth).max() / len(truth), n=len(truth)),
        quantity("p_value", float(permutation_p_value(right.mean(), null)), n=n_permutations),
    ]
    metadata = {"layer": key, "top": top, "n_units": len(own), "n_permutations": n_permutations, "level": level, "seed": seed}
    metadata |= {"activations": dict(activations.metadata), "labels": metadata_of(labels)}
    return ClassReport(_class_table(names, truth, predicted, level), metadata, overall=overall)


def _class_numbers(targets: Sequence[str], classes: Sequence[str] | None, n_images: int) -> tuple[list[str], npt.NDArray[np.int64]]:
    if not isinstance(targets, Iterable) or not isinstance(classes, Iterable | None):
        raise InputError(f"Expected names of classes, a list with one for each image, but got {targets!r:.60} and {classes!r:.60}.")
    targets = [str(target) for target in targets]
    if len(targets) != n_images:
        raise InputError(f"Expected a class for each of the {n_images} images, but got {len(targets)}.")
    names = list(dict.fromkeys(targets if classes is None else (str(name) for name in classes)))
    unknown = sorted(set(targets) - set(names))
    if unknown or len(names) < 2 or not all(names):
        raise InputError(f"Expected targets among at least two classes with names, but got {unknown[:3] or names}.")
    numbers = {name: number for number, name in enumerate(names)}
    return names, np.array([numbers[target] for target in targets])


def _class_table(names: Sequence[str], truth: npt.NDArray[Any], predicted: npt.NDArray[Any], level: float) -> pd.DataFrame:
    rows = []
    for number, name in enumerate(names):
        right = predicted[truth == number] == number
        recall, low, high = (share("recall", right, level=level)[fact] for fact in ("value", "low", "high"))
        rows.append((name, len(right), int(right.sum()), recall, low, high, int((predicted == number).sum())))
    return pd.DataFrame(rows, columns=list(ClassReport.required))


def _most_active(values: Floats, units: Sequence[int], top: int) -> tuple[npt.NDArray[np.int64], list[int]]:
    """The `top` most active of the units for each image, [n_images, top], as places in the list of those that vary, and that list."""
    spread = values[:, list(units)].std(axis=0)
    chosen = [place for place, deviation in enumerate(spread) if deviation > 0]
    if len(chosen) <= top:
        raise InputError(f"Expected more than {top} units with a label that vary over the images, but got {len(chosen)}. Lower `top`.")
    varying = values[:, [units[place] for place in chosen]]
    standard = (varying - varying.mean(axis=0)) / spread[chosen]
    return np.argsort(-standard, axis=1, kind="stable")[:, :top], chosen


def _nearest(active: npt.NDArray[np.int64], described: Floats, classes: Floats) -> npt.NDArray[np.int64]:
    pooled = sum(described[units] for units in active.T) / active.shape[1]  # [n_images, d]
    return np.asarray(np.argmax((pooled - pooled.mean(axis=0)) @ classes.T, axis=1))
