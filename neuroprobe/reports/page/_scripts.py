"""Data as scripts: a browser that opens a page from disk runs scripts beside it, and refuses to fetch anything else."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from typing import Any

#: JSON stands in a script, and a script may come to stand in a page: nothing in it can end either.
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def as_json(value: Any) -> str:
    """JSON of ASCII alone (so U+2028, and halves of surrogate pairs, are escapes), which cannot end a script.

    Parameters
    ----------
    value : lists, dicts with keys of our own, texts, numbers that are finite, None

    Examples
    --------
    >>> as_json(["</script>", None, 1.5])
    '["\\\\u003c/script\\\\u003e",null,1.5]'
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character, escape in _ESCAPES.items():  # outside texts, JSON has none of these
        text = text.replace(character, escape)
    return text


def as_script(name: str, fingerprint: str, payload: str) -> bytes:
    """A script that hands the JSON `payload` to the page, unless it belongs to another page."""
    return f"neuroprobe.take({as_json(name)},{as_json(fingerprint)},{payload});\n".encode("ascii")


def number(value: Any, digits: int = 4) -> float | int | None:
    """A number with so many significant digits; None for what is not finite.

    Examples
    --------
    >>> number(0.123456), number(3.0), number(float("nan"))
    (0.1235, 3, None)
    """
    value = float(value)
    if not math.isfinite(value):
        return None
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


class Texts:
    """Texts that stand once in a script, and are named by their number elsewhere."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: Any) -> int:
        """The number of a text, new or not."""
        return self._numbers.setdefault(str(text), len(self._numbers))

    @property
    def all(self) -> list[str]:
        """The texts in the order of their numbers."""
        return list(self._numbers)


def column(values: Iterable[Any], form: Callable[[Any], Any] = number) -> list[Any]:
    """A column of a table as JSON takes it."""
    return [form(value) for value in values]
