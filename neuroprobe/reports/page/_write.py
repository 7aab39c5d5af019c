"""The page: units and probes to look through in a browser, from disk, without a server.

A page is a folder: ``index.html``, ``data/`` (scripts that hand their data to the page) and ``images/`` (small pictures).
Nothing in it has an outside address, and a content security policy forbids it. What the reports and the image files are
called is text everywhere, never markup. It is made of tables: which report they come from is for the reports to know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from neuroprobe._core import Unit, check_count, fingerprint_texts
from neuroprobe.exceptions import InputError, shown
from neuroprobe.images import Images, check_images
from neuroprobe.recording import Activations
from neuroprobe.reports.base import units_of
from neuroprobe.reports.page._files import (
    INDEX,
    Pictures,
    as_json,
    as_script,
    check_folder,
    put_in_place,
    staging,
    write_thumbnails,
    write_visualizations,
)
from neuroprobe.reports.page._study import EFFECT_COLUMNS, best_units, effect_data, effect_units, study_data, unit_probes
from neuroprobe.reports.page._units import CHUNK, QUANTILES, UnitFacts, details, overview, unit_activities

if TYPE_CHECKING:
    from PIL import Image

#: The page's own scripts and style, in the order in which they run.
_SCRIPTS = ("page.js", "page_grid.js", "page_unit.js", "page_probes.js")
_STYLE = "page.css"

#: What the foot of the page says of how labels were made, by its name in the metadata.
_FACTS = {
    "similarity": "similarity function",
    "n_images": "images",
    "n_concepts": "concepts",
    "false_discovery_rate": "false discovery rate",
}


@dataclass(frozen=True, eq=False)
class Panel:
    """A further part of the pages of units: data of your own, drawn by a script of your own.

    Attributes
    ----------
    title : str
    data : mapping from (layer, unit) to anything JSON can hold
        A unit that is not in it has no such panel.
    script : str
        A JavaScript function from a unit's data to an element, a text or a list of such; ``neuroprobe.el(tag, attributes,
        ...children)`` makes elements: ``"(data) => neuroprobe.el('p', null, data)"``.
    """

    title: str
    data: Mapping[Unit, Any]
    script: str


@dataclass(frozen=True, eq=False)
class Content:
    """What a page is made of; for the rest see `neuroprobe.LabelReport.to_html`.

    Attributes
    ----------
    title : str
    units : DataFrame
        A row per unit: layer, unit, status, and whatever else a `LabelReport` holds.
    summaries : sequence of str
        A line on each of the reports.
    labels : mapping, optional
        The metadata of the labels; None if the units have none.
    study, probed : DataFrame, optional
        The `summary_table()` and the `units` of a `ProbeReport`.
    """

    title: str
    units: pd.DataFrame
    summaries: Sequence[str]
    labels: Mapping[str, Any] | None = None
    study: pd.DataFrame | None = None
    probed: pd.DataFrame | None = None
    images: Images | None = None
    activations: Activations | None = None
    visualizations: Mapping[Unit, Image.Image] | None = None
    effects: Sequence[Any] = ()
    panels: Sequence[Panel] = ()
    n_examples: int = 9
    thumbnail: int = 96


def write_page(folder: str | Path, content: Content) -> list[Path]:
    """Write a page that opens from disk, and return its files, ``index.html`` first.

    The page is made whole in a folder of its own and then put in the old one's place, so that what stops it leaves the old
    page. Of an old page nothing is left; what else is in the folder is not touched.

    Raises
    ------
    InputError
        Things that do not fit the units, their model or the recorded images; a stream; or a folder that cannot be written to or
        holds something else under the page's names. Nothing has been written then.
    UnreadableImageError
        An image that cannot be read, of `images` that do not skip such; the old page is still there then.
    """
    folder, content = Path(folder), _checked(content)
    old = check_folder(folder)
    with staging(folder) as stage:
        pictures = Pictures(stage / "images")
        data = _page_data(content, pictures)
        _write_scripts(stage, data, content, digests=pictures.digests)
        return put_in_place(stage, folder, old)


def _page_data(content: Content, pictures: Pictures) -> dict[str, str]:
    """Write the pictures, and return the page's data: JSON by the name of its script."""
    effects, of_unit = effect_data(content.effects)
    probed, checkpoint, n_probed = unit_probes(content.probed)
    panels = [panel.data for panel in content.panels]
    facts = UnitFacts(content.units, effects=of_unit, probed=probed, best=best_units(content.study), panels=panels)
    facts = _with_pictures(facts, content, pictures)
    data = {f"details-{start // CHUNK}": as_json(details(facts, start)) for start in range(0, len(facts.units), CHUNK)}
    if content.study is not None:
        data["probes"] = as_json(study_data(content.study))
    if content.effects:
        data["effects"] = as_json(effects)
    about = {
        **_about(content),
        "checkpoint": checkpoint,
        "n_probed": n_probed,
        "images": {"count": pictures.count, "size": pictures.size},
        "size": sum(map(len, data.values())),  # of what is loaded on demand; the page adds its own
    }
    data["units"] = as_json({**overview(facts), "about": about})
    return data


def _with_pictures(facts: UnitFacts, content: Content, pictures: Pictures) -> UnitFacts:
    if content.activations is not None:
        activities = unit_activities(content.activations, content.units, n_examples=content.n_examples)
        facts = replace(facts, activities=activities, ids=content.activations.ids)
    facts = replace(facts, visualizations=write_visualizations(pictures, content.visualizations or {}))
    if content.images is None:
        return facts
    rows = sorted({shown.row for activity in facts.activities or () for shown in activity.examples})
    needed = [facts.ids[row] for row in rows]
    return replace(facts, thumbnails=write_thumbnails(pictures, content.images, needed, side=content.thumbnail))


def _about(content: Content) -> dict[str, Any]:
    known = content.labels or {}
    facts = [[text, str(known[name])] for name, text in _FACTS.items() if isinstance(known.get(name), (str, int, float))]
    versions = known.get("versions")
    if isinstance(versions, dict) and "neuroprobe" in versions:
        facts.append(["neuroprobe", str(versions["neuroprobe"])])
    return {
        "title": content.title,
        "summaries": list(content.summaries),
        "facts": facts,
        "labeled": content.labels is not None,
        "study": content.study is not None,
        "quantiles": list(QUANTILES),
        "thumbnail": content.thumbnail,
        "panels": [panel.title for panel in content.panels],
    }


def _write_scripts(stage: Path, data: Mapping[str, str], content: Content, *, digests: Sequence[str]) -> None:
    """The data, the page's own scripts and style, those of the panels, and the page."""
    from jinja2 import Environment, PackageLoader

    own = {name: files("neuroprobe.reports").joinpath("templates", name).read_text(encoding="utf-8") for name in (*_SCRIPTS, _STYLE)}
    own |= {f"panel-{i}.js": f"neuroprobe.panels[{i}] = (\n{panel.script}\n);\n" for i, panel in enumerate(content.panels)}
    # whatever is loaded later must be of this very page
    fingerprint = fingerprint_texts([content.title, *own.values(), *data.values(), *digests])[:16]
    for name, payload in data.items():
        (stage / "data" / f"{name}.js").write_bytes(as_script(name, fingerprint, payload))
    for name, text in own.items():
        (stage / "data" / name).write_text(text, encoding="utf-8", newline="\n")
    template = Environment(loader=PackageLoader("neuroprobe.reports"), autoescape=True).get_template("page.html")
    scripts = [name for name in own if name != _STYLE]
    page = template.render(title=content.title, fingerprint=fingerprint, scripts=scripts, style=_STYLE)
    (stage / INDEX).write_text(page, encoding="utf-8", errors="replace", newline="\n")


# --- what does not fit together is refused before anything is made


def _checked(content: Content) -> Content:
    """The content with its units in order: layers together as they come, units by number; `effects` are tables then."""
    check_count("n_examples", content.n_examples)
    check_count("thumbnail", content.thumbnail, low=16)
    table = content.units
    twice = table.duplicated(["layer", "unit"])
    if twice.any():
        layer, unit = table.loc[twice.idxmax(), ["layer", "unit"]]
        raise InputError(f"Expected every unit once, but unit {unit} of {layer!r} is twice in the labels. Make the report without repeats.")
    if content.activations is not None:
        _check_activations(content.activations, table)
        _check_same_model(content.activations, content.labels or {})
    if content.images is not None:
        _check_images(content.images, content.activations)
    there = set(units_of(table))
    place = table["layer"].map({layer: i for i, layer in enumerate(dict.fromkeys(table["layer"]))})
    return replace(
        content,
        units=table.assign(_place=place).sort_values(["_place", "unit"], kind="stable").drop(columns="_place").reset_index(drop=True),
        visualizations=_checked_visualizations({} if content.visualizations is None else content.visualizations, there),
        effects=_checked_effects(content.effects, there),
        panels=_checked_panels(content.panels, there),
    )


def _check_activations(activations: Any, units: pd.DataFrame) -> None:
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


def _check_same_model(activations: Activations, labels: Mapping[str, Any]) -> None:
    """Raise `InputError` if labels and activations are known to be of different models; their images may differ."""
    made_from = labels.get("activations")
    ours = made_from.get("model") if isinstance(made_from, dict) else None
    theirs = activations.metadata.get("model")
    if ours is not None and theirs is not None and ours != theirs:
        raise InputError(
            "Expected activations of the model that the labels are of, but they were recorded with other weights. Record that model's."
        )


def _check_images(images: Any, activations: Activations | None) -> None:
    """Raise `InputError` unless the images can be read by the ids of the activations."""
    check_images(images)
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


def _checked_visualizations(visualizations: Any, there: set[Unit]) -> dict[Unit, Any]:
    from PIL import Image

    _check_units("visualizations", visualizations, "images", there)
    for key, image in visualizations.items():
        if not isinstance(image, Image.Image):
            raise InputError(f"Expected the visualization of {key!r} to be a PIL image, but got {shown(image)}.")
    return {(layer, int(unit)): image for (layer, unit), image in visualizations.items()}


def _checked_panels(panels: Any, there: set[Unit]) -> list[Panel]:
    if isinstance(panels, str) or not isinstance(panels, Sequence) or not all(isinstance(panel, Panel) for panel in panels):
        raise InputError(f"Expected `panels` to be a list of neuroprobe.reports.Panel, but got {shown(panels)}.")
    for panel in panels:
        _check_units("panels", panel.data, "data", there)
        try:
            as_json(list(panel.data.values()))
        except (TypeError, ValueError) as error:
            raise InputError(f"Expected data of the panel {panel.title!r} that JSON can hold, but: {error}.") from error
    return [replace(panel, data={(layer, int(unit)): data for (layer, unit), data in panel.data.items()}) for panel in panels]


def _check_units(name: str, given: Any, what: str, there: set[Unit]) -> None:
    if not isinstance(given, Mapping):
        raise InputError(f"Expected `{name}` to map (layer, unit) to {what}, but got {shown(given)}.")
    for key in given:
        if key not in there:
            raise InputError(f"Expected {name} of units of the report, as (layer, unit), but got {key!r}.")


def _checked_effects(effects: Any, there: set[Unit]) -> list[pd.DataFrame]:
    if isinstance(effects, str) or not isinstance(effects, Sequence):
        raise InputError(f"Expected `effects` to be a list of reports of effects, but got {shown(effects)}. Write [effect].")
    tables = []
    for effect in effects:
        table = getattr(effect, "table", None)
        if not isinstance(table, pd.DataFrame):
            raise InputError(f"Expected effects as `causal_effect` gives them, with a table, but got {shown(effect)}.")
        missing = [name for name in EFFECT_COLUMNS if name not in table]
        if missing:
            raise InputError(f"Expected effects with the columns {', '.join(EFFECT_COLUMNS)}, but {', '.join(missing)} is missing.")
        for layer, text in table[["layer", "units"]].drop_duplicates().itertuples(index=False):
            if not any((layer, unit) in there for unit in effect_units(text)):
                raise InputError(f"Expected effects of units of the report, but got {layer!r}, units {str(text)[:60]!r}.")
        tables.append(table)
    return tables
