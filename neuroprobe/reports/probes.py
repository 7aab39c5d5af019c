"""ProbeReport: how well probes read concepts from layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import pandas as pd

from neuroprobe._core import fingerprint_bytes, write_whole
from neuroprobe.exceptions import InputError, UnknownNameError, suggest
from neuroprobe.models import Direction, directions_from_npz, directions_to_npz, mean_direction
from neuroprobe.reports._probe_tables import blog_tables, compare_scopes, summarize_seeds
from neuroprobe.reports.base import Report, in_double_precision, written

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase
    from PIL import Image

    from neuroprobe._core import Unit
    from neuroprobe.images import Images
    from neuroprobe.recording import Activations
    from neuroprobe.reports.page._write import Content, Panel

#: What is saved beside the table, by its name in the metadata.
_BESIDE = {"units": "probes_units.csv", "directions": "probes_directions.npz"}


#: A report of more concepts than this is saved with the figure of their mean.
_MOST_PANELS = 24
_UNIT_COLUMNS = ("concept", "layer", "unit", "kind", "test_accuracy", "baseline")


class ProbeReport(Report):
    """How well probes read concepts from layers, as `neuroprobe.ProbingStudy` measures it: a row per cell and seed.

    Columns: concept, checkpoint, layer, probe (its full name), scope, kind, features, seed, n_train, n_test,
    train_accuracy, test_accuracy (on the held-out part, which the probe has not seen) and baseline (the share of the more
    frequent class in that part). A study adds balanced_accuracy, auroc and others, and for scope neuron the unit, which is
    the best of its layer on the training part.

    Parameters
    ----------
    table, metadata
        As in `neuroprobe.Report`.
    directions : sequence of Direction, optional
        The linear probes themselves, where a study keeps them.
    units : DataFrame, optional
        Every unit by itself, of scope neuron: concept, layer, unit, kind, test_accuracy, baseline, and where they are known
        checkpoint, auroc, p_value and q_value.

    Notes
    -----
    Figures with a panel per concept (`plot_what_where_when`, `plot_layers`, `plot_units`) are drawn into `figure`, a matplotlib Figure
    or SubFigure, by default a new one; those of one `checkpoint` are of the last by default. They raise an `InputError` if there
    is no such checkpoint or probe, or, for `plot_units`, if the study had no scope neuron.
    """

    name = "probes"
    title = "Which layers know a concept"
    required = (
        "concept", "layer", "scope", "kind", "features", "seed", "n_train", "n_test", "train_accuracy", "test_accuracy", "baseline",
    )  # fmt: skip
    text_columns = ("concept", "checkpoint", "layer", "probe", "scope", "kind", "features")
    notebook_columns = ("concept", "checkpoint", "layer", "probe", "features", "seed", "test_accuracy", "baseline", "selectivity", "r2")

    def __init__(
        self,
        table: pd.DataFrame,
        metadata: Mapping[str, Any],
        *,
        directions: Sequence[Direction] = (),
        units: pd.DataFrame | None = None,
    ) -> None:
        self._directions = tuple(directions)
        self._units = None if units is None else in_double_precision(units)
        missing = [column for column in _UNIT_COLUMNS if units is not None and column not in units]
        if missing:
            raise InputError(f"Expected units with the columns {', '.join(_UNIT_COLUMNS)}, but {', '.join(missing)} is missing.")
        super().__init__(table, {**metadata, **{name: fingerprint_bytes(data) for name, data in self._beside().items()}})

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Every kept direction: one per concept, checkpoint, layer, features, kind and seed."""
        return self._directions

    @property
    def units(self) -> pd.DataFrame:
        """A copy of the table of every unit by itself.

        Raises
        ------
        InputError
            The study had no scope neuron.
        """
        if self._units is None:
            raise InputError("Expected a report with units, but this one has none. Make the study with the scope 'neuron'.")
        return self._units.copy()

    def direction(
        self,
        concept: str,
        layer: str,
        *,
        checkpoint: str | None = None,
        features: str = "pooled",
        kind: str = "linear",
        seed: int | None = None,
    ) -> Direction:
        """The concept activation vector of a concept, in a layer's own coordinates.

        Parameters
        ----------
        concept, layer : str
        checkpoint : str, optional
            By default the last that the table names.
        features : {"pooled", "spatial"}, default "pooled"
        kind : str, default "linear"
        seed : int, optional
            By default the mean over all seeds, whose log-odds are the mean of theirs.

        Returns
        -------
        Direction
            With the weights as they are, and `unit_vector`, which has the length 1.

        Raises
        ------
        InputError
            The study kept no directions.
        UnknownNameError
            There is no such direction; the message says what there is.
        """
        if not self._directions:
            raise InputError("Expected a report with directions, but this one has none. Make the study with keep_directions=True.")
        if checkpoint is None and "checkpoint" in self._table:
            checkpoint = str(self._table["checkpoint"].iloc[-1])
        found = list(self._directions)
        wanted = {"concept": concept, "layer": layer, "checkpoint": checkpoint, "features": features, "kind": kind, "seed": seed}
        for name, value in wanted.items():
            if value is None and name in ("checkpoint", "seed"):
                continue
            known = list(dict.fromkeys(str(getattr(direction, name)) for direction in found))
            found = [direction for direction in found if getattr(direction, name) == value]
            if not found:
                raise UnknownNameError(f"Expected a direction whose {name} is known, but got {value!r}. {suggest(str(value), known)}")
        return mean_direction(found)

    def summary(self) -> str:
        columns = [c for c in ("concept", "layer", "checkpoint") if c in self._table]
        counts = ", ".join(f"{self._table[column].nunique()} {column}s" for column in columns)
        scored = self._table[self._table["test_accuracy"].notna()]
        if scored.empty and "r2" in self._table:  # regressions alone
            return f"{len(self._table)} probes: {counts}; mean R2 {self._table['r2'].mean():.3f}"
        accuracy, baseline = scored["test_accuracy"].mean(), scored["baseline"].mean()
        return f"{len(self._table)} probes: {counts}; mean test accuracy {accuracy:.3f}, mean baseline {baseline:.3f}"

    def summary_table(self, *, level: float = 0.95) -> pd.DataFrame:
        """One row per cell: means over its seeds, with intervals.

        Parameters
        ----------
        level : float, default 0.95

        Returns
        -------
        DataFrame
            What tells the cell (concept to features), n_seeds, the means of the table's scores, and beside them:

            - test_accuracy_low and test_accuracy_high, as `neuroprobe.statistics.accuracy_interval`;
            - balanced_accuracy_low and ..._high, as `balanced_accuracy_interval`, where the study counted positives;
            - selectivity_low and ..._high, as `corrected_interval` (NaN for one seed);
            - above_baseline, the test accuracy above the baseline;
            - unit, of scope neuron: the one that most seeds chose;
            - p_value, with several seeds twice their median (Meinshausen, Meier & Bühlmann 2009, valid however they hang
              together), and q_value, the false discovery rate among all cells of a checkpoint and probe.
        """
        return summarize_seeds(self._table, level=level)

    def _page_table(self) -> pd.DataFrame:
        return self.summary_table()

    def compare_scopes(self, *, kind: str = "linear", features: str = "pooled", level: float = 0.95) -> pd.DataFrame:
        """The best single unit of every layer beside the whole layer: does a concept live in a unit, or in a direction?

        The unit was chosen on the training part, seed by seed, and is compared on the held-out part; the best on the held-out
        part would be the luckiest of many.

        Parameters
        ----------
        kind : str, default "linear"
        features : str, default "pooled"
        level : float, default 0.95

        Returns
        -------
        DataFrame
            A row per concept, checkpoint and layer: `unit` (the one chosen most often), baseline, neuron_accuracy and
            layer_accuracy on the held-out parts with intervals (neuron_low, ...), `difference` (layer less neuron, of the same
            splits) with Nadeau & Bengio's corrected interval, which needs at least two seeds, and `where`:

            - "one unit": it is above the baseline, and the layer is not above it;
            - "direction": the layer is above the baseline and above its best unit, which is not above the baseline;
            - "several units": the unit is above the baseline, and the layer above the unit;
            - "not found": neither is above the baseline; "undecided": the layer is, but not surely above its best unit.

        Raises
        ------
        InputError
            The study did not probe both scopes.
        """
        return compare_scopes(self._table, kind=kind, features=features, level=level)

    def to_markdown(self, path: str | Path | None = None, *, style: Literal["rows", "blog"] = "rows") -> str:
        """The table as Markdown, also written to `path` if one is given.

        Parameters
        ----------
        path : path, optional
        style : {"rows", "blog"}, default "rows"
            "rows" is the table as it is. "blog" has one table per concept (and checkpoint), layers down, and across linear_gap
            and non_linear_gap (pooled features) and non_linear_non_gap (spatial features): mean test accuracies, the best of
            each column in bold; baseline, numbers of images and the intervals' size stand below.

        Raises
        ------
        UnknownNameError
            Another style.
        InputError
            For "blog": none of its probes is in the table.
        """
        if style == "rows":
            return super().to_markdown(path)
        if style != "blog":
            raise UnknownNameError(f"Expected a style, but got {style!r}. {suggest(str(style), ('rows', 'blog'))}")
        return written(blog_tables(self._table), path)

    def save(self, folder: str | Path) -> list[Path]:
        """As `Report.save`, with the units as CSV and the directions as an npz file where there are any."""
        paths = super().save(folder)
        for name, file in _BESIDE.items():
            (Path(folder) / file).unlink(missing_ok=True)
            if name in (beside := self._beside()):
                write_whole(Path(folder) / file, beside[name])
                paths.append(Path(folder) / file)
        return paths

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """As `Report.load`, with units and directions.

        Raises
        ------
        InputError
            There is no complete report of this kind in the folder.
        """
        report = super().load(folder)
        found = {name: _read_beside(Path(folder) / file, report.metadata.get(name)) for name, file in _BESIDE.items()}
        directions = directions_from_npz(found["directions"]) if found["directions"] else ()
        units = cls._read_table(found["units"].decode()) if found["units"] else None
        return cls(report._table, report.metadata, directions=directions, units=units)

    def _beside(self) -> dict[str, bytes]:
        """What is saved beside the table, by its name in the metadata."""
        found = {} if self._units is None else {"units": self._units.to_csv(index=False, lineterminator="\n").encode()}
        return found | ({"directions": directions_to_npz(self._directions)} if self._directions else {})

    def to_html(
        self,
        folder: str | Path,
        *,
        images: Images | None = None,
        activations: Activations | None = None,
        visualizations: Mapping[Unit, Image.Image] | None = None,
        effects: Sequence[Report] = (),
        panels: Sequence[Panel] = (),
        n_examples: int = 9,
        thumbnail: int = 96,
        title: str | None = None,
    ) -> list[Path]:
        """Write a page to look through in a browser: what is read where and when, and every unit that was probed by itself.

        It opens from disk, without a server. With labels of the units, `LabelReport.to_html` shows both; parameters (but for
        `probes`), files and errors are the same as there.
        """
        from neuroprobe.reports.page._write import Content, write_page

        units = pd.DataFrame({"layer": [], "unit": []}) if self._units is None else self._units[["layer", "unit"]].drop_duplicates()
        units = units.astype({"layer": str, "unit": int}).assign(status="not labeled")
        content = Content(
            title=self.title if title is None else str(title),
            units=units,
            summaries=[],
            images=images,
            activations=activations,
            visualizations=visualizations,
            effects=effects,
            panels=panels,
            n_examples=n_examples,
            thumbnail=thumbnail,
        )
        return write_page(folder, self._on_page(content))

    def _on_page(self, content: Content) -> Content:
        """The content of a page with this study on it."""
        summaries = [*content.summaries, self.summary()]
        return replace(content, summaries=summaries, study=self.summary_table(), probed=self._units)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Mean test accuracy over concepts along the layers: a color per probe, darker for later checkpoints, and the baseline.

        Of regressions alone, the R2. With one or two checkpoints, bands are the means of the concepts' 95 % intervals, as wide
        as if all concepts erred together.
        """
        from neuroprobe.reports._probe_figures import plot_mean_layers

        return plot_mean_layers(self._table, ax=ax)

    def plot_what_where_when(
        self, *, kind: str = "linear", features: str = "pooled", scope: str = "layer", figure: FigureBase | None = None
    ) -> FigureBase:
        """What is known where and when: a panel per concept, layers across, checkpoints up, color = accuracy above the baseline.

        The scale's white is the baseline. A dot marks what cannot be told from it: the 95 % interval reaches down to it.

        Parameters
        ----------
        kind, features, scope : str
            Which of the probes.
        """
        from neuroprobe.reports._probe_figures import plot_what_where_when

        return plot_what_where_when(self._table, kind=kind, features=features, scope=scope, figure=figure)

    def plot_layers(self, *, checkpoint: str | None = None, figure: FigureBase | None = None) -> FigureBase:
        """Test accuracy along the layers: a panel per concept, a line with its interval per probe, and the baseline."""
        from neuroprobe.reports._probe_figures import plot_layers

        return plot_layers(self._table, checkpoint=checkpoint, figure=figure)

    def plot_units(
        self,
        *,
        checkpoint: str | None = None,
        kind: str = "linear",
        false_discovery_rate: float = 0.05,
        figure: FigureBase | None = None,
    ) -> FigureBase:
        """Which units carry a concept: a panel per concept, layers across, a dot per unit at its held-out score.

        The score is the AUROC if the units have it, else the accuracy. Of the units in color, the three best are named; without
        discovery rates, the three best are named and none is in color.

        Parameters
        ----------
        kind : str, default "linear"
        false_discovery_rate : float, default 0.05
            Units whose q-value is at most this are in color.
        """
        from neuroprobe.reports._probe_figures import plot_units

        return plot_units(self.units, checkpoint=checkpoint, kind=kind, false_discovery_rate=false_discovery_rate, figure=figure)

    def _main_figure(self) -> Any:
        """What where when of the first probe if there are several checkpoints, else a panel per concept; many concepts: their mean."""
        scored = self._table[self._table["test_accuracy"].notna()]
        if not 0 < scored["concept"].nunique() <= _MOST_PANELS:
            return self.plot().get_figure()
        if "checkpoint" in scored and scored["checkpoint"].nunique() > 1:
            return self.plot_what_where_when(**scored.iloc[0][["kind", "features", "scope"]])
        return self.plot_layers()


def _read_beside(path: Path, fingerprint: str | None) -> bytes:
    """What was saved beside the table, if the metadata name it."""
    if fingerprint is None:
        return b""
    data = path.read_bytes() if path.is_file() else b""
    if fingerprint_bytes(data) != fingerprint:
        raise InputError(f"Expected {path.name} as it was saved with the report, but it is missing or another. Make the report again.")
    return data
