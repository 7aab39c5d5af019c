"""Optional packages."""

from __future__ import annotations

import importlib
from typing import Any

from neuroprobe.exceptions import MissingDependencyError


def import_extra(package: str, *, wanted_by: str, extra: str, distribution: str | None = None) -> Any:
    """Import a package of one of our extras.

    Raises
    ------
    MissingDependencyError
        It is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingDependencyError(
            f"Expected the package {distribution or package} for {wanted_by}. Install it: pip install 'neuroprobe-clip[{extra}]'"
        ) from error
