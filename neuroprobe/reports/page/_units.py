"""Which units are on the page, and in which order; what does not fit together is refused before anything is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from neuroprobe._core import Unit
from neuroprobe.exceptions import InputError, shown
from neuroprobe.images import Images
from neuroprobe.recording import Activations
from neuroprobe.reports.labels import LabelReport
from neuroprobe.reports.probes import ProbeReport

#: What an effect's table must tell.
EFFECT_COLUMNS = ("layer", "units", "intervention", "concept", "output", "effect", "low", "high")


def page_units(labels: LabelReport | None, probes: ProbeReport | None) -> pd.DataFrame:
    """The page's units: a row per unit of the labels, or else of the units that were probed.

    Returns
    -------
    DataFrame
        The labels' table; or layer and unit, with the status "not labeled". The layers stand together, in the order of the report.

    Raises
    ------
    InputError
        Neither report is there, or a unit stands twice in the labels.
    """
    if labels is None and probes is None:
        raise InputError("Expected at least one report to make a page of, but got neither `labels` nor `probes`.")
    for name, report, kind in (("labels", labels, LabelReport), ("probes", probes, ProbeReport)):
        if report is not None and not isinstance(report, kind):
            raise InputError(f"Expected `{name}` to be a {kind.__name__}, but got {shown(report)}.")
    table = _probed_units(probes) if labels is None else labels.table
    twice = table.duplicated(["layer", "unit"])
    if twice.any():
        layer, unit = table.loc[twice.idxmax(), ["layer", "unit"]]
        raise InputError(f"Expected every unit once, but unit {unit} of {layer!r} is twice in the labels. Make the report without repeats.")
    place = table["layer"].map({layer: i for i, layer in enumerate(dict.fromkeys(table["layer"]))})
    return table.assign(_place=place).sort_values(["_place", "unit"], kind="stable").drop(columns="_place").reset_index(drop=True)


def probed_units(probes: ProbeReport | None) -> pd.DataFrame | None:
    """The table of every unit by itself, if the study had one."""
    try:
        return None if probes is None else probes.units
    except InputError:
        return None


def _probed_units(probes: ProbeReport | None) -> pd.DataFrame:
    units = probed_units(probes)
    if units is None:
        return pd.DataFrame({"layer": pd.Series(dtype=str), "unit": pd.Series(dtype=int), "status": pd.Series(dtype=str)})
    return units[["layer", "unit"]].drop_duplicates(ignore_index=True).assign(status="not labeled")


def check_activations(activations: Any, units: pd.DataFrame) -> None:
    """Raise `InputError` unless the activations hold these units."""
    if not isinstance(activations, Activations):
        raise InputError(
            f"Expected `activations` to be recorded Activations, but got {shown(activations)}. Use `ActivationRecorder.record`."
        )
    if not activations.ids:
        raise InputError("Expected activations of at least one image, but there is none.")
    for layer, highest in units.groupby("layer", sort=False)["unit"].max().items():
        if layer not in activations.arrays:
            raise InputError(
                f"Expected activations of every layer of the report, but {layer!r} was not recorded. "
                f"Recorded: {', '.join(activations.layers[:12])}. Give the activations that the report was made from."
            )
        if highest >= activations[layer].shape[1]:
            raise InputError(
                f"Expected activations of unit {highest} of {layer!r}, but {activations[layer].shape[1]} units were recorded. "
                "Give the activations that the report was made from."
            )


def check_same_model(activations: Activations, labels: LabelReport | None) -> None:
    """Raise `InputError` if labels and activations are known to be of different models; their images may differ."""
    made_from = {} if labels is None else labels.metadata.get("activations")
    ours = made_from.get("model") if isinstance(made_from, dict) else None
    theirs = activations.metadata.get("model")
    if ours is not None and theirs is not None and ours != theirs:
        raise InputError(
            "Expected activations of the model that the labels are of, but they were recorded with other weights. Record that model's."
        )


def check_images(images: Any, activations: Activations | None) -> None:
    """Raise `InputError` unless the images can be read by the ids of the activations."""
    if not isinstance(images, Images):
        raise InputError(f"Expected `images` to be neuroprobe.Images, but got {shown(images)}. Write Images(...).")
    if images.is_stream:
        raise InputError(
            "Expected images that can be read again by their id, but got a stream. Save its images to a folder, or make a list of them, "
            "and give that."
        )
    if activations is None:
        raise InputError("Expected `activations` beside `images`: they say which images belong to a unit. Give both, or neither.")
    known = set(images.ids)
    missing = [id_ for id_ in activations.ids if id_ not in known]
    if missing:
        raise InputError(
            f"Expected the images that were recorded, but {len(missing)} of {len(activations.ids)} ids are not among `images`, "
            f"such as {missing[0]!r}. Give the images that the activations were recorded on."
        )


def check_visualizations(visualizations: Any, units: pd.DataFrame) -> dict[Unit, Any]:
    """The visualizations by unit; `InputError` for one of a unit that is not on the page, or that is no image."""
    from PIL import Image

    if not isinstance(visualizations, Mapping):
        raise InputError(f"Expected `visualizations` to map (layer, unit) to images, but got {shown(visualizations)}.")
    there = _keys(units)
    for key, image in visualizations.items():
        if key not in there:
            raise InputError(f"Expected visualizations of units of the report, as (layer, unit), but got {key!r}.")
        if not isinstance(image, Image.Image):
            raise InputError(f"Expected the visualization of {key!r} to be a PIL image, but got {shown(image)}.")
    return {(layer, int(unit)): image for (layer, unit), image in visualizations.items()}


def check_effects(effects: Any, units: pd.DataFrame) -> list[pd.DataFrame]:
    """The effects' tables; `InputError` for one that lacks columns, or of no unit on the page."""
    if isinstance(effects, str) or not isinstance(effects, Sequence):
        raise InputError(f"Expected `effects` to be a list of reports of effects, but got {shown(effects)}. Write [effect].")
    there, tables = _keys(units), []
    for effect in effects:
        table = getattr(effect, "table", None)
        if not isinstance(table, pd.DataFrame):
            raise InputError(f"Expected effects as `causal_effect` gives them, with a table, but got {shown(effect)}.")
        missing = [name for name in EFFECT_COLUMNS if name not in table]
        if missing:
            raise InputError(f"Expected effects with the columns {', '.join(EFFECT_COLUMNS)}, but {', '.join(missing)} is missing.")
        for layer, text in table[["layer", "units"]].drop_duplicates().itertuples(index=False):
            if not any((layer, unit) in there for unit in units_of(text)):
                raise InputError(f"Expected effects of units of the report, but got {layer!r}, units {str(text)[:60]!r}.")
        tables.append(table)
    return tables


def units_of(text: Any) -> list[int]:
    """The units that a cell of an effect's table names: numbers with spaces between them.

    Raises
    ------
    InputError
        There is something else in it.
    """
    try:
        return [int(part) for part in str(text).split()]
    except ValueError as error:
        raise InputError(
            f"Expected the units of an effect as whole numbers with spaces between them, but got {str(text)[:60]!r}."
        ) from error


def _keys(units: pd.DataFrame) -> set[Unit]:
    return {(str(layer), int(unit)) for layer, unit in zip(units["layer"], units["unit"], strict=True)}
