"""This library's version, and the versions a result was made with."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

__version__ = "0.1.0"


def versions() -> dict[str, str]:
    """The versions of what numbers depend on."""
    found = {"python": platform.python_version()}
    for name, distribution in (("neuroprobe", "neuroprobe-clip"), *((n, n) for n in ("torch", "torchvision", "numpy", "scikit-learn"))):
        try:
            found[name] = version(distribution)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found
