"""The page: units and probes to look through in a browser, from disk, without a server.

A page is a folder: ``index.html``, ``data/`` (scripts that hand their data to the page, since a browser refuses to fetch
anything for a page that was opened from disk) and ``images/`` (small pictures). Nothing in it has an outside address, and a
content security policy forbids it. What the reports and the image files are called is text everywhere, never markup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroprobe._core import Unit, check_count, fingerprint_texts
from neuroprobe.images import Images
from neuroprobe.recording import Activations
from neuroprobe.reports.labels import LabelReport
from neuroprobe.reports.page._contents import Sources, page_data
from neuroprobe.reports.page._folder import INDEX, check_folder, put_in_place, staging
from neuroprobe.reports.page._scripts import as_script
from neuroprobe.reports.page._units import (
    check_activations,
    check_effects,
    check_images,
    check_same_model,
    check_visualizations,
    page_units,
)
from neuroprobe.reports.probes import ProbeReport

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["write_page"]

#: The page's own scripts and style, in the order in which they run.
_SCRIPTS = ("page.js", "page_grid.js", "page_unit.js", "page_probes.js")
_STYLE = "page.css"


def write_page(
    folder: str | Path,
    *,
    labels: LabelReport | None = None,
    probes: ProbeReport | None = None,
    images: Images | None = None,
    activations: Activations | None = None,
    visualizations: Mapping[Unit, Image.Image] | None = None,
    effects: Sequence[Any] | None = None,
    n_examples: int = 9,
    thumbnail: int = 96,
    title: str | None = None,
) -> list[Path]:
    """Write a page of units and probes that opens from disk.

    The page is made whole in a folder of its own and then put in the old one's place, so that what stops it leaves the old
    page. Of an old page nothing is left; what else is in the folder is not touched.

    Parameters
    ----------
    folder : path
        Gets ``index.html``, ``data`` and ``images``. Made if it is not there.
    labels : LabelReport, optional
        The units: a card and a page for each.
    probes : ProbeReport, optional
        The picture of what is read where and when. Where every unit was probed by itself, the units' pages tell of it; without
        `labels`, these are the page's units.
    images : Images, optional
        Pictures of the examples, by their ids; needs `activations`. Streams cannot be read again.
    activations : Activations, optional
        Histograms, and which images are a unit's examples.
    visualizations : mapping from (layer, unit) to PIL image, optional
    effects : sequence of reports of effects, optional
        Anything with a `table` with the columns layer, units (numbers with spaces between them), intervention, concept, output,
        effect, low and high, and where they are known random, random_low, random_high and n_pairs.
    n_examples : int, default 9
        Strongest images per unit; three more stand about each of the quantiles 0.99, 0.9 and 0.5.
    thumbnail : int, default 96
        Longer side of an image's picture in pixels.
    title : str, optional
        By default the title of the report.

    Returns
    -------
    list of Path
        All files of the page, ``index.html`` first.

    Raises
    ------
    InputError
        Neither report; things that do not fit the report's units, model or recorded images; a stream; or a folder that cannot be
        written to or holds something else under the page's names. Nothing has been written then.
    UnreadableImageError
        An image that cannot be read, of `images` that do not skip such; the old page is still there then.
    """
    folder = Path(folder)
    check_count("n_examples", n_examples)
    check_count("thumbnail", thumbnail, low=16)
    units = page_units(labels, probes)
    if activations is not None:
        check_activations(activations, units)
        check_same_model(activations, labels)
    if images is not None:
        check_images(images, activations)
    report: Any = probes if labels is None else labels
    sources = Sources(
        units=units,
        title=str(report.title if title is None else title),
        labels=labels,
        probes=probes,
        images=images,
        activations=activations,
        visualizations=check_visualizations({} if visualizations is None else visualizations, units),
        effects=check_effects([] if effects is None else effects, units),
        n_examples=n_examples,
        thumbnail=thumbnail,
    )
    old = check_folder(folder)
    with staging(folder) as stage:
        data, pictures = page_data(sources, stage / "images")
        _write_scripts(stage, data, title=sources.title, digests=pictures.digests)
        return put_in_place(stage, folder, old)


def _write_scripts(stage: Path, data: Mapping[str, str], *, title: str, digests: Sequence[str]) -> None:
    """The data, the page's own scripts and style, and the page."""
    from jinja2 import Environment, PackageLoader

    own = {name: files("neuroprobe.reports").joinpath("templates", name).read_text(encoding="utf-8") for name in (*_SCRIPTS, _STYLE)}
    # whatever is loaded later must be of this very page
    fingerprint = fingerprint_texts([title, *own.values(), *data.values(), *digests])[:16]
    for name, payload in data.items():
        (stage / "data" / f"{name}.js").write_bytes(as_script(name, fingerprint, payload))
    for name, text in own.items():
        (stage / "data" / name).write_text(text, encoding="utf-8", newline="\n")
    template = Environment(loader=PackageLoader("neuroprobe.reports"), autoescape=True).get_template("page.html")
    page = template.render(title=title, fingerprint=fingerprint, scripts=_SCRIPTS, style=_STYLE)
    (stage / INDEX).write_text(page, encoding="utf-8", errors="replace", newline="\n")
