"""Reports of labels: a row per unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pandas as pd

from neuroprobe._core import Unit, check_unit
from neuroprobe.exceptions import InputError, shown
from neuroprobe.models import check_same_site
from neuroprobe.reports.base import Report, UnitReport, units_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL import Image

    from neuroprobe.images import Images
    from neuroprobe.recording import Activations
    from neuroprobe.reports.page._write import Panel
    from neuroprobe.reports.probes import ProbeReport


#: Concepts in the figure of a report.
_MOST_CONCEPTS = 25


class LabelReport(UnitReport):
    """A concept for every unit, as `neuroprobe.dissect` finds them.

    Columns: layer, unit, concept ("" for a unit without a label), score (of the similarity function), status
    ("named", "never varies" or "not significant"), candidate (the best concept, whether or not it became the label),
    margin (score minus the second best's), p_value and q_value (see `neuroprobe.dissect`), stability (share of
    bootstrap resamples of the images in which the candidate stays the best), and the next best as concept_2, score_2,
    ... What a report does not know of a unit is NaN.
    """

    name = "labels"
    title = "What the units respond to"
    required = ("layer", "unit", "concept", "score", "status")
    text_columns = ("layer", "concept", "status", "candidate")
    notebook_columns = ("layer", "unit", "concept", "score", "margin", "q_value", "stability", "candidate")

    def summary(self) -> str:
        named = self._table[self._table["status"] == "named"]
        return (
            f"{len(named)} of {len(self._table)} units named, in {self._table['layer'].nunique()} layers, "
            f"with {named['concept'].nunique()} concepts"
        )

    def to_html(
        self,
        folder: str | Path,
        *,
        images: Images | None = None,
        activations: Activations | None = None,
        probes: ProbeReport | None = None,
        visualizations: Mapping[tuple[str, int], Image.Image] | None = None,
        effects: Sequence[Report] = (),
        panels: Sequence[Panel] = (),
        n_examples: int = 9,
        thumbnail: int = 96,
        title: str | None = None,
    ) -> list[Path]:
        """Write a page to look through in a browser: every unit, with what is known of it. It opens from disk, without a server.

        Parameters
        ----------
        folder : path
            Gets ``index.html`` and the folders ``data`` and ``images``; what else is there stays.
        images : Images, optional
            For pictures of every unit's examples, by their ids; needs `activations`. A stream cannot be read again.
        activations : Activations, optional
            For histograms, and for which images are examples: the ones the labels were made from.
        probes : ProbeReport, optional
            For the picture of what is read where and when. Where every unit was probed by itself, the units' pages tell of it.
        visualizations : mapping from (layer, unit) to PIL image, optional
        effects : sequence of EffectReport, optional
            Of interventions on units: anything with a `table` with the columns layer, units (numbers with spaces between them),
            intervention, concept, output, effect, low and high, and where they are known random, random_low, random_high, n_pairs.
        panels : sequence of `neuroprobe.reports.Panel`, optional
            Further parts of the units' pages.
        n_examples : int, default 9
            Of the strongest activations, per unit; others stand about the quantiles 99 %, 90 % and 50 %.
        thumbnail : int, default 96
            Pixels of a picture's longer side.
        title : str, optional

        Returns
        -------
        list of Path
            All files of the page, ``index.html`` first.

        Raises
        ------
        InputError
            Things that do not fit the report's units, model or recorded images; a stream; or a folder that cannot be written to or
            holds something else under the page's names. Nothing has been written then.
        UnreadableImageError
            An image that cannot be read, of `images` that do not skip such; an earlier page is still there then.
        """
        from neuroprobe.recording import Activations
        from neuroprobe.reports.page._write import Content, write_page
        from neuroprobe.reports.probes import ProbeReport

        if probes is not None and not isinstance(probes, ProbeReport):
            raise InputError(f"Expected `probes` to be a ProbeReport, but got {shown(probes)}.")
        if isinstance(activations, Activations):
            check_label_sites(self, activations.sites)
        content = Content(
            title=self.title if title is None else str(title),
            units=self.table,
            labels=self.metadata,
            summaries=[self.summary()],
            images=images,
            activations=activations,
            visualizations=visualizations,
            effects=effects,
            panels=panels,
            n_examples=n_examples,
            thumbnail=thumbnail,
        )
        return write_page(folder, content if probes is None else probes._on_page(content))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Which share of each layer's units is named what, for the most frequent concepts."""
        from neuroprobe._core import axes_or_new, layer_ticks, shortened

        named = self._table[self._table["status"] == "named"]
        layers = list(dict.fromkeys(self._table["layer"]))
        frequent = named["concept"].value_counts(sort=True).head(_MOST_CONCEPTS).index.tolist()
        counts = pd.crosstab(named["concept"], named["layer"]).reindex(index=frequent, columns=layers, fill_value=0)
        shares = counts / self._table.groupby("layer").size().reindex(layers)
        ax = axes_or_new(ax, 2.5 + 0.42 * len(layers), 1.6 + 0.24 * max(len(frequent), 1))
        if frequent:
            picture = ax.imshow(shares.to_numpy(), cmap="viridis", aspect="auto", vmin=0)
            ax.figure.colorbar(picture, ax=ax, label="share of the layer's units")
        ax.set_yticks(range(len(frequent)), [shortened(concept) for concept in frequent])
        layer_ticks(ax, layers)
        most = f", the {len(frequent)} most frequent" if len(frequent) == _MOST_CONCEPTS else ""
        ax.set_title(f"Labels of {len(self._table)} units{most}")
        return ax


#: Labels of units: a report of them, or a mapping from (layer, unit) to a concept.
Labels: TypeAlias = "LabelReport | Mapping[Unit, str]"


def labeled_units(labels: Labels) -> dict[Unit, str]:
    """The label of every unit that has one."""
    if isinstance(labels, LabelReport):
        table = labels.table
        return {unit: str(concept) for unit, concept in zip(units_of(table), table["concept"], strict=True) if concept}
    if not isinstance(labels, Mapping) or not all(isinstance(unit, tuple) and len(unit) == 2 for unit in labels):
        raise InputError(f"Expected a LabelReport, or labels as {{(layer, unit): concept}}, but got {labels!r:.80}.")
    for layer, unit in labels:
        check_unit(layer, unit)
    return {(str(layer), int(unit)): str(concept) for (layer, unit), concept in labels.items() if concept}


def labels_of_layer(labels: Labels, layer: str, n_units: int) -> dict[int, str]:
    """The label of every unit of one layer that has one; `InputError` if none has, or one that the layer does not have."""
    named = labeled_units(labels)
    found = {unit: concept for (owner, unit), concept in named.items() if owner == layer}
    if not found:
        layers = ", ".join(repr(name) for name in dict.fromkeys(owner for owner, _ in named)) or "no layer"
        raise InputError(f"Expected labels of units of {layer!r}, but there are only some of {layers}.")
    check_unit(layer, max(found), n_units)
    return found


def label_sites(labels: Labels) -> dict[str, str]:
    """The identity of the site that each layer's labels are known to be of."""
    facts = metadata_of(labels).get("activations")
    return dict(facts.get("sites", {})) if isinstance(facts, Mapping) else {}


def check_label_sites(labels: Labels, sites: Mapping[str, str]) -> None:
    """Raise `InputError` for labels that are known to be of units of another site than is called so in `sites`, by key its identity."""
    known = label_sites(labels)
    for layer in set(known) & set(sites):
        check_same_site(sites[layer], known[layer], what="these labels")


def metadata_of(labels: Labels | None) -> dict[str, Any]:
    """What is known of how labels were made: nothing of a mapping, or of none."""
    return labels.metadata if isinstance(labels, LabelReport) else {}


def check_labels(labels: Any, what: str = "a LabelReport") -> None:
    """Raise `InputError` unless it is a `LabelReport`."""
    if not isinstance(labels, LabelReport):
        raise InputError(f"Expected {what} as `neuroprobe.dissect` makes it, but got {shown(labels)}.")
