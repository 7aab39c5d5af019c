"""Errors a user can meet. Each is a `NeuroprobeError` and the standard class that fits it.

Every message says what was expected, what came, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NeuroprobeError(Exception):
    """Whatever this library raises about its input."""


class InputError(NeuroprobeError, ValueError):
    """An argument or a file's content is not what is needed."""


class UnknownNameError(NeuroprobeError, KeyError):
    """A layer, concept, similarity function or the like that does not exist.

    A `KeyError`, so that ``get`` and ``in`` of our mappings work; its text is the message, not a quotation of it.
    """

    __str__ = Exception.__str__


class UnreadableImageError(NeuroprobeError, OSError):
    """A file that is no image, or a damaged one."""


class CheckpointError(NeuroprobeError, ValueError):
    """A file of weights that cannot be read safely, or does not fit the model."""


class StoreError(NeuroprobeError, RuntimeError):
    """A recording on disk that is of something else, not complete, in use, or cannot be written."""


class MissingDependencyError(NeuroprobeError, ImportError):
    """An optional package is needed and not installed."""


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of an "unknown name" message: the nearest known names, or all of them if they are few."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return f"Did you mean {' or '.join(repr(n) for n in near)}?"
    shown = ", ".join(repr(n) for n in names[:12])
    return f"Known: {shown}{', ...' if len(names) > 12 else ''}."


def shown(value: object) -> str:
    """A value as an error message shows it: its type, and the beginning of what it prints."""
    return f"{type(value).__name__} {value!r:.60}"
