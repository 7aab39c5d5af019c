"""What there is on this machine: versions, devices, optional packages, weights that need no download."""

from __future__ import annotations

import importlib.util
import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from neuroprobe.models import resolve_device

#: Packages that every installation has.
REQUIRED = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "pandas", "matplotlib", "pillow", "clip-anytorch")


@dataclass(frozen=True)
class Optional:
    """A package that adds something.

    Attributes
    ----------
    module, distribution, extra : str
        As imported, as installed, and the extra of ours that installs it.
    gives : str
        What it adds.
    """

    module: str
    distribution: str
    extra: str
    gives: str


OPTIONAL = (
    Optional("numba", "numba", "fast", "faster sums over top images, in soft_wpmi and its like"),
    Optional("open_clip", "open_clip_torch", "openclip", "open_clip's models as concept source"),
    Optional("transformers", "transformers", "transformers", "CLIP and SigLIP of transformers"),
    Optional("wordfreq", "wordfreq", "words", "vocabularies of frequent words"),
    Optional("datasets", "datasets", "sources", "images of Hugging Face datasets"),
    Optional("webdataset", "webdataset", "sources", "images in WebDataset archives"),
    Optional("safetensors", "safetensors", "sources", "weights in safetensors files"),
    Optional("captum", "captum", "attribution", "integrated gradients"),
    Optional("shtab", "shtab", "completion", "completion of commands in the shell"),
)


def examine() -> list[str]:
    """Lines of text on versions, devices, optional packages and cached weights; nothing is downloaded.

    Returns
    -------
    list of str
    """
    return [
        f"neuroprobe {_version('neuroprobe-clip')} on Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        *_namesakes(),
        "",
        "packages",
        *(f"  {name:<16} {_version(name)}" for name in REQUIRED),
        "",
        "devices",
        *(f"  {line}" for line in _devices()),
        "",
        "optional",
        *(f"  {line}" for line in _optional()),
        "",
        "weights on this machine",
        *(f"  {line}" for line in (*_clip_weights(), *_torchvision_weights(), *_world())),
    ]


def _namesakes() -> list[str]:
    """Another package on PyPI is called neuroprobe and owns the same import name."""
    other = _version("neuroprobe")
    if other == "missing":
        return []
    return [f"  beside it is another package, neuroprobe {other}, of the same import name: uninstall one, and install the other again"]


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "missing"


def _devices() -> list[str]:
    found = [f"auto: {resolve_device('auto')}", f"cpu: {os.cpu_count()} processors, {torch.get_num_threads()} threads"]
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    mps = "available" if torch.backends.mps.is_available() else "not available"
    return [*found, f"cuda: {', '.join(names) or 'not available'}", f"mps: {mps}"]


def _optional() -> list[str]:
    lines = []
    for package in OPTIONAL:
        there = importlib.util.find_spec(package.module) is not None
        state = _version(package.distribution) if there else f"missing: pip install 'neuroprobe-clip[{package.extra}]'"
        lines.append(f"{package.module:<16} {state} ({package.gives})")
    return lines


def _clip_weights() -> list[str]:
    from neuroprobe.concepts import import_clip

    folder = Path.home() / ".cache" / "clip"
    try:
        files = {name: folder / Path(url).name for name, url in import_clip().clip._MODELS.items()}
    except ImportError as error:  # what is broken is told, not a reason to end
        return [f"CLIP: the package cannot be imported ({error})"]
    cached = [f"{name} ({path.stat().st_size / 1e6:.0f} MB)" for name, path in files.items() if path.is_file()]
    return [f"CLIP: {', '.join(cached) or f'none of {len(files)}; each is downloaded once, when it is first named'}"]


def _torchvision_weights() -> list[str]:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    files = sorted(path.name for path in folder.glob("*.pth")) if folder.is_dir() else []
    return [f"torchvision: {', '.join(files) or 'none; each is downloaded once, when it is first named'}"]


def _world() -> list[str]:
    from neuroprobe.world import CLIP_PATH, target_checkpoints

    there = CLIP_PATH.is_file() and all(path.is_file() for path in target_checkpoints().values())
    return ["the offline world: " + ("there" if there else "missing, install neuroprobe-clip again")]
