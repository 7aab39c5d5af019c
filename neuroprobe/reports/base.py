"""Reports: the only things that know about tables, plots and pages.

A report is a table and the facts it was made from. Saved, it is a folder that people and programs can read.
"""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pandas as pd

from neuroprobe._core import Unit, check_unit, check_writable, fingerprint_bytes, table_html, versions, write_whole
from neuroprobe.exceptions import InputError, shown, suggest

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Report:
    """A table and how it came about; it never changes.

    Parameters
    ----------
    table : pandas.DataFrame
    metadata : mapping
        Seeds, fingerprints, parameters; anything JSON can hold. The installed `versions` are added, unless they are there.

    Raises
    ------
    InputError
        No table, columns are missing, or the metadata cannot be written as JSON.
    """

    #: Stem of the files that `save` writes.
    name: ClassVar[str] = "report"
    title: ClassVar[str] = "Report"
    #: Columns every table of this kind has.
    required: ClassVar[tuple[str, ...]] = ()
    #: Columns that hold text; whatever stands in them ("none", "NA", "1") stays text when a file is read.
    text_columns: ClassVar[tuple[str, ...]] = ()
    #: Beginnings of the names of further columns of text.
    text_prefixes: ClassVar[tuple[str, ...]] = ()
    #: Columns that a notebook shows, of those that are there; all of them by default.
    notebook_columns: ClassVar[tuple[str, ...]] = ()

    def __init__(self, table: pd.DataFrame, metadata: Mapping[str, Any]) -> None:
        if not isinstance(table, pd.DataFrame):
            raise InputError(f"Expected a table, a pandas.DataFrame, but got {shown(table)}.")
        missing = [column for column in self.required if column not in table.columns]
        if missing:
            raise InputError(f"Expected a table with the columns {', '.join(self.required)}, but {', '.join(missing)} is missing.")
        self._table = in_double_precision(table)
        try:
            self._metadata = json.dumps({**metadata, "versions": metadata.get("versions", versions())}, default=_plain)
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(f"Expected metadata that JSON can hold: {error}.") from error

    @property
    def table(self) -> pd.DataFrame:
        """A copy of the table."""
        return self._table.copy()

    @property
    def metadata(self) -> dict[str, Any]:
        """A copy of the metadata, as JSON keeps it."""
        return dict(json.loads(self._metadata))

    def to_csv(self, path: str | Path | None = None) -> str:
        """The table as CSV, also written to `path` if one is given."""
        text = self._table.to_csv(index=False, lineterminator="\n")
        if "\r" in text:  # left unquoted by csv, and a line end to its readers
            text = self._table.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        return written(text, path)

    def to_markdown(self, path: str | Path | None = None) -> str:
        """The table as Markdown, also written to `path` if one is given."""
        rows = [self._table.columns.tolist(), ["---"] * self._table.shape[1], *self._table.itertuples(index=False)]
        lines = ["| " + " | ".join(markdown_cell(value) for value in row) + " |" for row in rows]
        return written("\n".join(lines) + "\n", path)

    def to_single_html(self, path: str | Path | None = None) -> str:
        """The figure, the table and the metadata as one self-contained file, also written to `path` if one is given."""
        from jinja2 import Environment, PackageLoader

        template = Environment(loader=PackageLoader("neuroprobe.reports"), autoescape=True).get_template("report.html")
        shown = self._page_table()
        text = template.render(
            title=self.title,
            summary=self.summary(),
            figure=base64.b64encode(self._png or b"").decode(),
            columns=shown.columns.tolist(),
            rows=[[_cell(value) for value in row] for row in shown.itertuples(index=False)],
            metadata=json.dumps(self.metadata, indent=2, ensure_ascii=False),
        )
        return written(text, path)

    def to_html(self, folder: str | Path) -> list[Path]:
        """Write a page, ``index.html``, into a folder, and return its files.

        Raises
        ------
        InputError
            The folder cannot be made or written to.
        """
        check_writable(folder)
        page = Path(folder) / "index.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        self.to_single_html(page)
        return [page]

    def _page_table(self) -> pd.DataFrame:
        """The table that the page shows."""
        return self._table

    def summary(self) -> str:
        """One line on what the report holds."""
        return f"{len(self._table)} rows"

    def plot(self, ax: Axes | None = None) -> Axes:
        """The report's main figure."""
        raise InputError(f"Expected a report with a figure of its own, but {type(self).__name__} has none.")

    def save(self, folder: str | Path) -> list[Path]:
        """Write the CSV, the Markdown table, the figure (if it has one), the page and the metadata into a folder; return their paths.

        Every file is written whole or not at all; the metadata come last and hold the table's fingerprint, so
        that `load` reads nothing half-written.

        Raises
        ------
        InputError
            The folder cannot be made or written to.
        """
        folder = Path(folder)
        check_writable(folder)
        folder.mkdir(parents=True, exist_ok=True)
        facts = folder / f"{self.name}.json"
        facts.unlink(missing_ok=True)
        paths = []
        for suffix, write in FORMATS.items():
            path, data = folder / f"{self.name}.{suffix}", write(self)
            if data is None:
                path.unlink(missing_ok=True)
            else:
                write_whole(path, data if isinstance(data, bytes) else _encoded(data))
                paths.append(path)
        described = {"report": type(self).__name__, "table": fingerprint_bytes(_encoded(self.to_csv())), "metadata": self.metadata}
        written(json.dumps(described, indent=2, ensure_ascii=False) + "\n", facts)
        return [*paths, facts]

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save` wrote.

        Raises
        ------
        InputError
            There is no complete report of this kind in the folder.
        """
        folder = Path(folder)
        try:
            facts = json.loads((folder / f"{cls.name}.json").read_text(encoding="utf-8"))
            kind, fingerprint, metadata = facts["report"], facts["table"], facts["metadata"]
            text = (folder / f"{cls.name}.csv").read_bytes().decode()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"Expected a complete {cls.__name__} in {str(folder)!r}, but it cannot be read: {error}.") from error
        if fingerprint != fingerprint_bytes(text.encode()) or kind != cls.__name__:
            raise InputError(
                f"Expected the {cls.__name__} that was saved in {str(folder)!r}, but {cls.name}.csv is not the table that {cls.name}.json "
                "describes. Make the report again, or read an edited table with pandas."
            )
        return cls(cls._read_table(text), metadata)

    @classmethod
    def _read_table(cls, text: str) -> pd.DataFrame:
        # "" is the only missing value, and never in a text column: a concept may be called "NA"
        table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
        return table.assign(**{column: _values(table[column]) for column in table if not cls._holds_text(column)})

    @classmethod
    def _holds_text(cls, column: str) -> bool:
        return column in cls.text_columns or column.startswith(cls.text_prefixes)

    def _text_of(self, layer: str, unit: int, column: str) -> str:
        """What a report with a row per unit holds of one, in a column of text."""
        check_unit(layer, unit)
        rows = self._table[(self._table["layer"] == layer) & (self._table["unit"] == unit)]
        if rows.empty:
            raise InputError(f"Expected a unit of this report, but got unit {unit} of {layer!r}. {self._there_is(layer)}")
        return str(rows[column].iloc[0])

    def _there_is(self, layer: str) -> str:
        """The end of the message about a unit that is not there: the layer's units, or the layers."""
        units = self._table.loc[self._table["layer"] == layer, "unit"]
        if len(units):
            return f"It has {len(units)} of this layer, {units.min()} to {units.max()}."
        return suggest(str(layer), self._table["layer"].unique().tolist())

    @cached_property
    def _png(self) -> bytes | None:
        """The main figure, drawn once, so that a picture and a page show the same; None if there is none."""
        if type(self).plot is Report.plot:
            return None
        buffer, figure = io.BytesIO(), self._main_figure()
        figure.savefig(buffer, format="png", dpi=110, bbox_inches=None if figure.get_layout_engine() else "tight")
        return buffer.getvalue()

    def _main_figure(self) -> Any:
        return self.plot().get_figure()

    def _repr_html_(self) -> str:
        shown = self._table[[c for c in self.notebook_columns or self._table.columns if c in self._table]]
        rows = shown.itertuples(index=False)
        return table_html(type(self).__name__, self.summary(), [str(c) for c in shown.columns], rows, n_rows=len(shown))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.summary()})"

    def __len__(self) -> int:
        return len(self._table)


def in_double_precision(table: pd.DataFrame) -> pd.DataFrame:
    """The table with rows numbered anew, and with what a CSV file would give back: double precision."""
    return table.reset_index(drop=True).astype(dict.fromkeys(table.select_dtypes(("float16", "float32")), "float64"))


def units_of(table: pd.DataFrame) -> list[Unit]:
    """(layer, unit) of every row."""
    return [(str(layer), int(unit)) for layer, unit in zip(table["layer"], table["unit"], strict=True)]


class UnitReport(Report):
    """A report with a row per unit and its name in the column `concept`; further names stand in columns called ``concept_...``"""

    required: ClassVar[tuple[str, ...]] = ("layer", "unit", "concept")
    text_prefixes: ClassVar[tuple[str, ...]] = ("concept_",)

    def label(self, layer: str, unit: int) -> str:
        """The name of one unit; "" if it has none.

        Raises
        ------
        InputError
            The report holds no such unit.
        """
        return self._text_of(layer, unit, "concept")


#: What `Report.save` writes beside the metadata, by suffix; None for a file that this report does not have.
FORMATS: dict[str, Callable[[Report], str | bytes | None]] = {
    "csv": lambda report: report.to_csv(),
    "md": lambda report: report.to_markdown(),
    "png": lambda report: report._png,
    "html": lambda report: report.to_single_html(),
}


def _values(texts: pd.Series[str]) -> pd.Series[Any]:
    """What a column held, to the last digit (read_csv of pandas 2 loses some)."""
    if len(texts) and texts.isin(("True", "False")).all():
        return texts == "True"
    try:
        return texts.astype("int64") if texts.str.fullmatch(r"-?\d+").all() else texts.replace("", "nan").astype("float64")
    except ValueError:
        return texts.replace("", np.nan)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # arrays, tensors and their scalars
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.4g}"
    return str(value)


def markdown_cell(value: Any) -> str:
    text = _cell(value).replace("\\", "\\\\").replace("|", "\\|").replace("[", "\\[").replace("<", "&lt;")
    return text.replace("\n", " ").replace("\r", " ")


def _encoded(text: str) -> bytes:
    # a file's name that is no UTF-8 has surrogates; JSON reads them back from their escapes
    return text.encode(errors="backslashreplace")


def written(text: str, path: str | Path | None) -> str:
    if path is not None:
        write_whole(Path(path), _encoded(text))
    return text
