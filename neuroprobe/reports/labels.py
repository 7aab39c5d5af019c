"""Reports of labels: a row per unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase

from neuroprobe._core import Unit, axes_or_new, layer_ticks, shortened
from neuroprobe.exceptions import InputError, shown
from neuroprobe.reports.base import Report, UnitReport

if TYPE_CHECKING:
    from PIL import Image

    from neuroprobe.images import Images
    from neuroprobe.recording import Activations
    from neuroprobe.reports.probes import ProbeReport


def labeled_units(labels: LabelReport | Mapping[Unit, str]) -> dict[Unit, str]:
    """The label of every unit that has one."""
    if isinstance(labels, LabelReport):
        table = labels.table
        return {unit: str(concept) for unit, concept in zip(units_of(table), table["concept"], strict=True) if concept}
    if not isinstance(labels, Mapping) or not all(isinstance(unit, tuple) and len(unit) == 2 for unit in labels):
        raise InputError(f"Expected a LabelReport, or labels as {{(layer, unit): concept}}, but got {labels!r:.80}.")
    return {(str(layer), int(unit)): str(concept) for (layer, unit), concept in labels.items() if concept}


def check_labels(report: Any, what: str = "a LabelReport") -> None:
    """Raise `InputError` unless it is a `LabelReport`."""
    if not isinstance(report, LabelReport):
        raise InputError(f"Expected {what} as `neuroprobe.dissect` makes it, but got {shown(report)}.")


def units_of(table: pd.DataFrame) -> list[Unit]:
    """(layer, unit) of every row."""
    return [(str(layer), int(unit)) for layer, unit in zip(table["layer"], table["unit"], strict=True)]


def plot_labels(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Which share of each layer's units is named what.

    Parameters
    ----------
    table : DataFrame
        Of a `LabelReport`.
    ax : matplotlib Axes, optional
        By default those of a new figure.
    """
    named = table[table["status"] == "named"]
    layers = list(dict.fromkeys(table["layer"]))
    frequent = named["concept"].value_counts(sort=True).head(_MOST_CONCEPTS).index.tolist()
    counts = pd.crosstab(named["concept"], named["layer"]).reindex(index=frequent, columns=layers, fill_value=0)
    shares = counts / table.groupby("layer").size().reindex(layers)
    ax = axes_or_new(ax, 2.5 + 0.42 * len(layers), 1.6 + 0.24 * max(len(frequent), 1))
    if frequent:
        picture = ax.imshow(shares.to_numpy(), cmap="viridis", aspect="auto", vmin=0)
        _figure_of(ax).colorbar(picture, ax=ax, label="share of the layer's units")
    ax.set_yticks(range(len(frequent)), [shortened(concept) for concept in frequent])
    layer_ticks(ax, layers)
    ax.set_title(f"Labels of {len(table)} units" + (f", the {len(frequent)} most frequent" if len(frequent) == _MOST_CONCEPTS else ""))
    return ax


class LabelReport(UnitReport):
    """A concept for every unit, as `neuroprobe.dissect` finds them.

    Columns: layer, unit, concept ("" for a unit without a label), score (of the similarity function), status
    ("named", "never varies" or "not significant"), candidate (the best concept, whether or not it became the label),
    margin (score minus the second best's), p_value and q_value (see `neuroprobe.labeling._null`), stability (share of
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
            For pictures of every unit's examples.
        activations : Activations, optional
            For histograms, and for which images are examples: the ones the labels were made from.
        probes : ProbeReport, optional
            For the picture of what is read where and when.
        visualizations : mapping from (layer, unit) to PIL image, optional
        effects : sequence of EffectReport, optional
            Of interventions on units.
        n_examples : int, default 9
            Of the strongest activations, per unit; others stand about the quantiles 99 %, 90 % and 50 %.
        thumbnail : int, default 96
            Pixels of a picture's longer side.
        title : str, optional

        Returns
        -------
        list of Path

        Raises
        ------
        InputError
            Things that do not fit the report's units or the recorded images, or a folder that cannot be written to. Nothing has
            been written then.
        """
        from neuroprobe.reports.page._write import write_page

        return write_page(
            folder,
            labels=self,
            images=images,
            activations=activations,
            probes=probes,
            visualizations=visualizations,
            effects=effects,
            n_examples=n_examples,
            thumbnail=thumbnail,
            title=title,
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Which share of each layer's units is named what, for the most frequent concepts."""
        from neuroprobe.reports.labels import plot_labels

        return plot_labels(self._table, ax=ax)


Labels: TypeAlias = "LabelReport | Mapping[Unit, str]"

_MOST_CONCEPTS = 25


def _figure_of(ax: Axes) -> FigureBase:
    figure = ax.get_figure()
    if figure is None:
        raise ValueError("Expected axes that belong to a figure.")
    return figure
