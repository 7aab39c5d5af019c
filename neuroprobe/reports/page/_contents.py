"""What a page says: its facts, gathered, and these as scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from neuroprobe._core import Unit
from neuroprobe.images import Images
from neuroprobe.recording import Activations
from neuroprobe.reports.labels import LabelReport
from neuroprobe.reports.page._effects import effect_data
from neuroprobe.reports.page._examples import QUANTILES, unit_activities
from neuroprobe.reports.page._probes import best_units, study_data, unit_probes
from neuroprobe.reports.page._scripts import as_json
from neuroprobe.reports.page._thumbnails import Pictures, write_thumbnails, write_visualizations
from neuroprobe.reports.page._unit_data import CHUNK, UnitFacts, details, overview
from neuroprobe.reports.page._units import probed_units
from neuroprobe.reports.probes import ProbeReport

if TYPE_CHECKING:
    from PIL import Image

#: What the foot of the page says of how labels were made, by its name in the metadata.
_FACTS = {
    "similarity": "similarity function",
    "n_images": "images",
    "n_concepts": "concepts",
    "false_discovery_rate": "false discovery rate",
}


@dataclass(frozen=True, eq=False)
class Sources:
    """What a page is made of, checked; see `neuroprobe.reports.page._write.write_page`. `effects` are tables."""

    units: pd.DataFrame
    title: str
    labels: LabelReport | None
    probes: ProbeReport | None
    images: Images | None
    activations: Activations | None
    visualizations: Mapping[Unit, Image.Image]
    effects: Sequence[pd.DataFrame]
    n_examples: int
    thumbnail: int


def page_data(sources: Sources, folder: Path) -> tuple[dict[str, str], Pictures]:
    """Write the pictures into a folder, and return the page's data: JSON by the name of its script."""
    pictures = Pictures(folder)
    effects, of_unit = effect_data(sources.effects)
    probed, checkpoint, n_probed = unit_probes(probed_units(sources.probes))
    facts = UnitFacts(sources.units, effects=of_unit, probed=probed, best=best_units(sources.probes))
    facts = _with_pictures(facts, sources, pictures)
    data = {f"details-{start // CHUNK}": as_json(details(facts, start)) for start in range(0, len(facts.units), CHUNK)}
    if sources.probes is not None:
        data["probes"] = as_json(study_data(sources.probes))
    if sources.effects:
        data["effects"] = as_json(effects)
    about = {
        **_about(sources),
        "checkpoint": checkpoint,
        "n_probed": n_probed,
        "images": {"count": pictures.count, "size": pictures.size},
        "size": sum(map(len, data.values())),  # of what is loaded on demand; the page adds its own
    }
    data["units"] = as_json({**overview(facts), "about": about})
    return data, pictures


def _with_pictures(facts: UnitFacts, sources: Sources, pictures: Pictures) -> UnitFacts:
    if sources.activations is not None:
        activities = unit_activities(sources.activations, sources.units, n_examples=sources.n_examples)
        facts = replace(facts, activities=activities, ids=sources.activations.ids)
    facts = replace(facts, visualizations=write_visualizations(pictures, sources.visualizations))
    if sources.images is None:
        return facts
    rows = sorted({shown.row for activity in facts.activities or () for shown in activity.examples})
    needed = [facts.ids[row] for row in rows]
    return replace(facts, thumbnails=write_thumbnails(pictures, sources.images, needed, side=sources.thumbnail))


def _about(sources: Sources) -> dict[str, Any]:
    known = {} if sources.labels is None else sources.labels.metadata
    facts = [[text, str(known[name])] for name, text in _FACTS.items() if isinstance(known.get(name), (str, int, float))]
    versions = known.get("versions")
    if isinstance(versions, dict) and "neuroprobe" in versions:
        facts.append(["neuroprobe", str(versions["neuroprobe"])])
    return {
        "title": sources.title,
        "summaries": [report.summary() for report in (sources.labels, sources.probes) if report is not None],
        "facts": facts,
        "labeled": sources.labels is not None,
        "study": sources.probes is not None,
        "quantiles": list(QUANTILES),
        "thumbnail": sources.thumbnail,
    }
