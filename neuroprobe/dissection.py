"""dissect(): a concept for every unit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from neuroprobe.activations import Activations
from neuroprobe.concepts import ConceptScores
from neuroprobe.exceptions import InputError, UnknownNameError
from neuroprobe.report import LabelReport, versions
from neuroprobe.similarity import Similarity, get_similarity

DEFAULT_SIMILARITY = "soft_wpmi"


def dissect(
    activations: Activations,
    scores: ConceptScores,
    *,
    similarity: str | Similarity = DEFAULT_SIMILARITY,
    parameters: Mapping[str, Any] | None = None,
    layers: Sequence[str] | None = None,
    units: Mapping[str, Iterable[int]] | None = None,
    top: int = 5,
) -> LabelReport:
    """Label every unit with the concept whose scores are most like its activations.

    A layer is always scored whole; `layers` and `units` only choose rows of the result, so that what else was
    asked never changes a label. A unit that is the same on every image gets no label.

    Parameters
    ----------
    activations : Activations
        One row per image (pooled).
    scores : ConceptScores
        Of the same images.
    similarity : str or callable, default "soft_wpmi"
        A name of `neuroprobe.similarity.list_similarities`, or a function that is called as those are.
    parameters : mapping, optional
        Keyword arguments of the similarity function.
    layers : sequence of str, optional
        By default all that were recorded.
    units : mapping from layer to units, optional
        By default all units of every layer.
    top : int, default 5
        Concepts kept per unit.

    Returns
    -------
    LabelReport

    Raises
    ------
    InputError
        Activations and scores of different images, or a unit the layer does not have.
    UnknownNameError
        A layer that was not recorded, or no such similarity function.

    References
    ----------
    Oikarinen and Weng, ICLR 2023, arXiv 2204.10965.
    """
    name, function = get_similarity(similarity)
    _check_same_images(activations, scores)
    if top < 1:
        raise InputError(f"Expected `top` to be at least 1, but got {top}.")
    layers = _checked_layers(activations, layers)
    chosen = _chosen_units(activations, layers, {} if units is None else units)
    matrix = scores.similarities()
    tables = []
    for layer in layers:
        values = torch.from_numpy(np.array(activations[layer], dtype=np.float32))
        alike = torch.as_tensor(function(values, matrix, **(parameters or {})))
        _check_result(alike, values.shape[1], len(scores.concepts), name)
        table = _label_table(layer, alike, _never_varies(values), scores.concepts, min(top, len(scores.concepts)))
        tables.append(table.iloc[chosen[layer]])
    metadata = {
        "similarity": name,
        "parameters": dict(parameters or {}),
        "n_images": len(scores.ids),
        "n_concepts": len(scores.concepts),
        "activations": dict(activations.metadata),
        "concept_scores": dict(scores.metadata),
        "versions": versions(),
    }
    return LabelReport(pd.concat(tables, ignore_index=True), metadata)


def _never_varies(values: torch.Tensor) -> npt.NDArray[np.bool_]:
    return (values.amax(dim=0) == values.amin(dim=0)).numpy()


def _label_table(layer: str, alike: torch.Tensor, constant: npt.NDArray[np.bool_], concepts: Sequence[str], top: int) -> pd.DataFrame:
    best, columns = (x.numpy() for x in torch.topk(alike, top, dim=1))  # [n_units, top] each
    names = np.asarray(concepts, dtype=object)[columns]
    names[constant], best[constant] = "", np.nan
    table = pd.DataFrame({"layer": layer, "unit": np.arange(len(best)), "concept": names[:, 0], "score": best[:, 0]})
    table["status"] = np.where(constant, "never varies", "named")
    for rank in range(1, top):
        table[f"concept_{rank + 1}"], table[f"score_{rank + 1}"] = names[:, rank], best[:, rank]
    return table


def _check_same_images(activations: Activations, scores: ConceptScores) -> None:
    ours, theirs = activations.metadata.get("images"), scores.metadata.get("images")
    if activations.ids != scores.ids or ours != theirs:
        raise InputError(
            f"Expected activations and concept scores of the same images in the same order, but got {len(activations.ids)} and "
            f"{len(scores.ids)} images with fingerprints {ours} and {theirs}. Make both in one pass (neuroprobe.collection.collect)."
        )


def _checked_layers(activations: Activations, layers: Sequence[str] | None) -> list[str]:
    chosen = list(activations.layers if layers is None else layers)
    if isinstance(layers, str) or not chosen or len(set(chosen)) < len(chosen):
        raise InputError(f"Expected `layers` to be a list that names at least one layer, each once, but got {layers!r}.")
    return chosen


def _chosen_units(activations: Activations, layers: Sequence[str], units: Mapping[str, Iterable[int]]) -> dict[str, list[int]]:
    for layer in units:
        if layer not in layers:
            raise UnknownNameError(f"Expected `units` for the layers {list(layers)}, but got {layer!r}.")
    chosen = {}
    for layer in layers:
        n_units = activations[layer].shape[1]
        chosen[layer] = [int(unit) for unit in units.get(layer, range(n_units))]
        wrong = [unit for unit in chosen[layer] if not 0 <= unit < n_units]
        if wrong:
            raise InputError(f"Expected units of {layer!r} from 0 to {n_units - 1}, but got {wrong[0]}.")
    return chosen


def _check_result(alike: torch.Tensor, n_units: int, n_concepts: int, name: str) -> None:
    if tuple(alike.shape) != (n_units, n_concepts):
        raise InputError(f"Expected the similarity function {name!r} to return {(n_units, n_concepts)}, but got {tuple(alike.shape)}.")
    if not bool(torch.isfinite(alike).all()):
        raise InputError(f"Expected finite similarities, but {name!r} returned some that are not.")
