"""neuroprobe: probe and name the neurons of any PyTorch vision model with concepts from CLIP."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuroprobe.activations import Activations
    from neuroprobe.concepts import ConceptScores, ConceptSets, ConceptSource
    from neuroprobe.dissection import dissect
    from neuroprobe.encoders import ClipEncoder, ImageTextEncoder
    from neuroprobe.images import Images
    from neuroprobe.layers import all_layers, block_layers, list_layers
    from neuroprobe.probes import LinearProbe, NonlinearProbe
    from neuroprobe.recorder import ActivationRecorder
    from neuroprobe.recording import record_checkpoints
    from neuroprobe.report import LabelReport, ProbeReport, Report
    from neuroprobe.study import ProbingStudy
    from neuroprobe.summaries import ActivationSummary
    from neuroprobe.vocabulary import ConceptGroup, Vocabulary

__version__ = "0.1.0"

__all__ = [
    "ActivationRecorder",
    "ActivationSummary",
    "Activations",
    "ClipEncoder",
    "ConceptGroup",
    "ConceptScores",
    "ConceptSets",
    "ConceptSource",
    "ImageTextEncoder",
    "Images",
    "LabelReport",
    "LinearProbe",
    "NonlinearProbe",
    "ProbeReport",
    "ProbingStudy",
    "Report",
    "Vocabulary",
    "all_layers",
    "block_layers",
    "dissect",
    "list_layers",
    "record_checkpoints",
]

# Names are imported when they are first used, so that `import neuroprobe` costs nothing that is not needed.
_MODULES = {
    "activations": ("Activations",),
    "concepts": ("ConceptScores", "ConceptSets", "ConceptSource"),
    "dissection": ("dissect",),
    "encoders": ("ClipEncoder", "ImageTextEncoder"),
    "images": ("Images",),
    "layers": ("all_layers", "block_layers", "list_layers"),
    "probes": ("LinearProbe", "NonlinearProbe"),
    "recorder": ("ActivationRecorder",),
    "recording": ("record_checkpoints",),
    "report": ("LabelReport", "ProbeReport", "Report"),
    "study": ("ProbingStudy",),
    "summaries": ("ActivationSummary",),
    "vocabulary": ("ConceptGroup", "Vocabulary"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}
_SUBMODULES = frozenset((*_MODULES, "collection", "exceptions", "pooling", "similarity", "world"))


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"neuroprobe.{_HOMES[name]}"), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"neuroprobe.{name}")
    raise AttributeError(f"module 'neuroprobe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBMODULES, "__version__"])
