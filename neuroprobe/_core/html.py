"""What objects look like in a notebook: a line, a small table, a line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from itertools import islice
from typing import Any

import numpy as np

#: Rows of a table in a notebook; of what follows, only the number is said.
SHOWN_ROWS = 10


def table_html(
    kind: str, summary: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, n_rows: int, notes: Sequence[str] = ()
) -> str:
    """A table for a notebook; every text is escaped.

    Parameters
    ----------
    kind : str
        The class's name.
    summary : str
    columns : sequence of str
    rows : iterable of rows
        The first `SHOWN_ROWS` are shown.
    n_rows : int
        How many there are.
    notes : sequence of str
        Lines below.

    Returns
    -------
    str
    """
    head = "".join(f"<th>{escape(str(column))}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(_text(value))}</td>" for value in row) + "</tr>" for row in islice(rows, SHOWN_ROWS))
    more = [f"and {n_rows - SHOWN_ROWS:,} more rows"] if n_rows > SHOWN_ROWS else []
    below = "".join(f"<p>{escape(note)}</p>" for note in (*more, *notes))
    return f"<p><b>{escape(kind)}</b>: {escape(summary)}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}"


def _text(value: Any) -> str:
    if isinstance(value, (float, np.floating)):
        return "" if value != value else f"{value:.4g}"
    return str(value)
