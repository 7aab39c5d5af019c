"""dissect(): a concept for every unit, with a confidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from neuroprobe._core import check_count, check_counts, check_seed, check_share
from neuroprobe.concepts import ConceptScores, check_same_images
from neuroprobe.exceptions import InputError, shown
from neuroprobe.labeling._layer import LayerLabels, LayerUnits, RecordedUnits, Units, check_prior, chosen_units, label_layer, layer_units
from neuroprobe.labeling._products import float64_device
from neuroprobe.labeling.similarity._registry import DEFAULT_SIMILARITY, SimilarityOrScorer, check_similarity, find_scorer, get_similarity
from neuroprobe.recording import Activations, ActivationSummary, check_layers
from neuroprobe.reports import LabelReport
from neuroprobe.statistics import benjamini_hochberg

#: Of Benjamini and Hochberg, over the units of a layer: the largest q-value with which a unit is named.
FALSE_DISCOVERY_RATE = 0.05

#: Fewest and most null units per layer; in between, one per unit.
N_NULL = (1000, 5000)

#: Resamples of the probing set for the stability of labels.
N_BOOTSTRAP = 20


def dissect(
    activations: Activations | ActivationSummary,
    scores: ConceptScores,
    *,
    similarity: SimilarityOrScorer = DEFAULT_SIMILARITY,
    parameters: Mapping[str, Any] | None = None,
    layers: Sequence[str] | None = None,
    units: Units | None = None,
    top: int = 5,
    false_discovery_rate: float = FALSE_DISCOVERY_RATE,
    n_null: int | None = None,
    n_bootstrap: int = N_BOOTSTRAP,
    control: Sequence[Activations] = (),
    seed: int = 0,
    device: str | torch.device = "auto",
) -> LabelReport:
    """Label every unit with the concept whose scores are most like its activations.

    A layer is always scored whole; `layers` and `units` only choose rows of the result, so that what else was asked
    never changes a label. Scores are made in blocks of concepts from the embeddings.

    A unit that is the same on every image gets no label, nor does one whose best score over the whole vocabulary is no
    better than chance. Its p-value compares its best score with those of null units, units of the layer whose activations are
    dealt to the images at random and that are scored like any other, in their source's place; the q-value corrects for the number
    of units in the layer.

    Parameters
    ----------
    activations : Activations or ActivationSummary
        One row per image (pooled). A summary is enough for functions of a unit's highest images, such as soft_wpmi and peak_mean,
        if it kept as many as they use.
    scores : ConceptScores
        Of the same images.
    similarity : str, Scorer class or callable, default "peak_correlation"
        A name of `neuroprobe.labeling.list_similarities`; or a subclass of `neuroprobe.labeling.Scorer`; or a function that is called
        as those of `neuroprobe.labeling.list_similarities` are, with whole matrices: its labels have neither p-values nor stability.
    parameters : mapping, optional
        Keyword arguments of the similarity function.
    layers : sequence of str, optional
        By default all that were recorded.
    units : sequence of int, or mapping from layer to units, optional
        The same of every layer, or some of each; by default all.
    top : int, default 5
        Concepts kept per unit.
    false_discovery_rate : float, default 0.05
        Units with a larger q-value stay without a label; 1 labels every unit that varies.
    n_null : int, optional
        Null units per layer: by default as many as it has units, at least 1,000 and at most 5,000; with 0 there are no
        p-values, and every unit that varies is named.
    n_bootstrap : int, default 20
        Resamples of the images for the labels' stability, each of which weighs every unit's images anew: on many images they
        take most of the time. 0 for none.
    control : sequence of Activations, default ()
        The same layers on the same images, of networks of the same architecture that have learned nothing (several
        seeds give finer p-values). Their units then take the null units' place. Against shuffled images a random
        filter that sees color is named, and rightly; against a control only what training has made is.
    seed : int, default 0
        Of shuffles and resamples.
    device : str or torch.device, default "auto"
        Where scores are computed; "auto" for the best there is.

    Returns
    -------
    LabelReport

    Raises
    ------
    InputError
        Activations and scores of different images, values that are not finite, a unit the layer does not have, a number out
        of its range, a control of another architecture, or a layer of one unit with a prior that takes all of its scores away.
    UnknownNameError
        A layer that was not recorded, or no such similarity function.

    References
    ----------
    Oikarinen and Weng, ICLR 2023, arXiv 2204.10965. Benjamini and Hochberg, J. R. Stat. Soc. B 57, 1995.
    """
    check_same_images(activations, scores)
    listed = isinstance(control, (list, tuple))
    for other in control if listed else [control]:
        if not (listed and isinstance(other, Activations)):
            raise InputError(f"Expected `control` to be a list of recorded activations, but got {shown(other)}. Use `record`.")
    name, make = find_scorer(similarity)
    check_similarity(similarity, {} if parameters is None else parameters)
    _check_finite(scores)
    check_numbers(top=top, false_discovery_rate=false_discovery_rate, n_null=n_null, n_bootstrap=n_bootstrap, seed=seed)
    if make is None and isinstance(activations, ActivationSummary):
        raise InputError("Expected recorded activations for a similarity function of your own, but got a summary. Use `record`.")
    layers = check_layers(activations, layers)
    for other in control:
        _check_control(activations, other, layers)
    if control and (make is None or n_null == 0):
        raise InputError("Expected p-values where there is a `control`, but `n_null` is 0 or the similarity function is one of your own.")
    chosen = chosen_units(units, {layer: _n_units(activations, layer) for layer in layers})
    scorer = None if make is None else make(on_device(scores, device), **(parameters or {}))
    if scorer is not None:
        for layer in layers:  # before the first one's long run
            check_prior(layer, _n_units(activations, layer), scorer)
    top = min(top, len(scores.concepts))
    tables, counts = [], dict.fromkeys(layers, 0)
    for layer in layers:
        found = layer_units(activations, layer, scores.ids)
        if scorer is not None:
            controls = [RecordedUnits(other[layer]) for other in control]
            counts[layer] = int(np.clip(len(found), *N_NULL)) if n_null is None else n_null
            labels = label_layer(layer, found, scorer, top=top, n_null=counts[layer], n_bootstrap=n_bootstrap, seed=seed, controls=controls)
        else:
            labels = _highest(similarities_by(similarity, parameters or {}, cast("Activations", activations)[layer], scores), top)
        tables.append(_label_table(layer, found, labels, scores.concepts, false_discovery_rate).iloc[chosen[layer]])
    metadata = {
        "similarity": name,
        "parameters": dict(parameters or {}),
        "n_images": len(scores.ids),
        "n_concepts": len(scores.concepts),
        "false_discovery_rate": false_discovery_rate,
        "n_null": counts if scorer is not None else 0,
        "n_bootstrap": n_bootstrap if scorer is not None else 0,
        "control": [dict(other.metadata) for other in control],
        "seed": seed,
        "activations": dict(activations.metadata),
        "concept_scores": dict(scores.metadata),
    }
    return LabelReport(pd.concat(tables, ignore_index=True), metadata)


def on_device(scores: ConceptScores, device: str | torch.device) -> ConceptScores:
    """The scores with their vectors on a device."""
    place = float64_device(device)
    return replace(scores, image_vectors=scores.image_vectors.to(place), text_vectors=scores.text_vectors.to(place))


def _highest(alike: torch.Tensor, top: int) -> LayerLabels:
    """Labels from similarities [n_units, n_concepts] alone."""
    order = torch.argsort(alike, dim=1, descending=True, stable=True)[:, :top]
    unknown = np.full(len(alike), np.nan)
    return LayerLabels(alike.gather(1, order).numpy(), order.numpy(), unknown, unknown)


def similarities_by(
    similarity: SimilarityOrScorer, parameters: Mapping[str, Any], values: npt.ArrayLike, scores: ConceptScores
) -> torch.Tensor:
    """What a function of one's own says of a layer [n_images, n_units] and all concepts, checked, [n_units, n_concepts]."""
    (name, function), activations = get_similarity(similarity), torch.from_numpy(np.array(values, dtype=np.float32))
    found, expected = function(activations, scores.similarities(), **parameters), (activations.shape[1], len(scores.concepts))
    try:
        alike = torch.as_tensor(found).float().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"Expected the similarity function {name!r} to return an array or a tensor, but got {shown(found)}.") from error
    if tuple(alike.shape) != expected:
        raise InputError(f"Expected the similarity function {name!r} to return {expected}, but got {tuple(alike.shape)}.")
    if not bool(torch.isfinite(alike).all()):
        raise InputError(f"Expected finite similarities, but {name!r} returned some that are not.")
    return alike


def _label_table(layer: str, units: LayerUnits, labels: LayerLabels, concepts: Sequence[str], false_discovery_rate: float) -> pd.DataFrame:
    scores = np.where(units.varies[:, None], labels.scores, np.nan)  # [n_units, top]
    names = np.where(units.varies[:, None], np.asarray(concepts, dtype=object)[labels.concepts], "")
    p = np.where(units.varies, labels.p_values, np.nan)
    q = benjamini_hochberg(p)
    status = np.where(units.varies, np.where(q > false_discovery_rate, "not significant", "named"), "never varies")
    columns = {
        "layer": layer,
        "unit": np.arange(len(units)),
        "concept": np.where(status == "named", names[:, 0], ""),
        "score": scores[:, 0],
        "status": status,
        "candidate": names[:, 0],
        "margin": scores[:, 0] - scores[:, 1] if scores.shape[1] > 1 else np.nan,
        "p_value": p,
        "q_value": q,
        "stability": np.where(units.varies, labels.stability, np.nan),
    }
    for rank in range(1, scores.shape[1]):
        columns[f"concept_{rank + 1}"], columns[f"score_{rank + 1}"] = names[:, rank], scores[:, rank]
    return pd.DataFrame(columns)


def check_numbers(*, top: int, false_discovery_rate: float, n_null: int | None, n_bootstrap: int, seed: int) -> None:
    """Raise `InputError` for a number that `dissect` does not take."""
    check_count("top", top)
    check_share("false_discovery_rate", false_discovery_rate, one=True)
    check_counts(low=0, n_null=0 if n_null is None else n_null, n_bootstrap=n_bootstrap)
    check_seed(seed)
    if n_null is not None and 0 < n_null < 100:
        raise InputError(f"Expected at least 100 null units, or 0 for no p-values, but got `n_null` {n_null}.")


def _check_finite(scores: ConceptScores) -> None:
    if not len(scores.ids):
        raise InputError("Expected at least one image, but there is none.")
    for name, vectors in (("image", scores.image_vectors), ("text", scores.text_vectors)):
        if not bool(torch.isfinite(vectors).all()):
            raise InputError(f"Expected finite concept scores, but some of the {name} vectors are not. Check the encoder's weights.")


def _check_control(activations: Activations | ActivationSummary, control: Activations, layers: Sequence[str]) -> None:
    ours, theirs = activations.metadata, control.metadata
    if ours.get("images") != theirs.get("images") or (isinstance(activations, Activations) and activations.ids != control.ids):
        raise InputError("Expected a control that was recorded on the same images in the same order, but it was recorded on others.")
    if ours.get("model") is not None and ours.get("model") == theirs.get("model"):
        raise InputError("Expected a control with other weights than the model's, but they are the same. Use an untrained network.")
    for layer in layers:
        n_units, n_control = _n_units(activations, layer), _n_units(control, layer)  # raises for a layer that was not recorded
        if n_units != n_control:
            raise InputError(
                f"Expected a control of the same architecture, with {n_units} units in {layer!r}, but it has {n_control}. "
                "Record the same layers of the same network with random weights."
            )


def _n_units(activations: Activations | ActivationSummary, layer: str) -> int:
    return activations[layer].shape[1] if isinstance(activations, Activations) else len(activations[layer].mean)
