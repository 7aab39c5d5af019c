"""neuroprobe: probe and name the neurons of any PyTorch vision model with concepts from CLIP."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuroprobe.concepts.concept_sets import ConceptSet, ConceptSets
    from neuroprobe.concepts.curation import contact_sheet, load_curation, save_curation
    from neuroprobe.concepts.encoders._base import ImageTextEncoder
    from neuroprobe.concepts.encoders._names import ClipEncoder, OpenClipEncoder, TransformersEncoder
    from neuroprobe.concepts.labels import GivenLabels
    from neuroprobe.concepts.scores import ConceptScores, ConceptSource
    from neuroprobe.concepts.vocabulary import ConceptGroup, Vocabulary
    from neuroprobe.effects.attribution import attribute_units
    from neuroprobe.effects.causal import EffectReport, causal_effect, units_named
    from neuroprobe.effects.classes import explain_class
    from neuroprobe.effects.interventions import ablate, steer
    from neuroprobe.evaluation.changes import compare_reports, labels_along
    from neuroprobe.evaluation.classes import classes_from_labels
    from neuroprobe.evaluation.image_checks import check_on_images
    from neuroprobe.evaluation.metrics import check_metrics
    from neuroprobe.evaluation.missing import dissect_without
    from neuroprobe.evaluation.truth import evaluate_labels
    from neuroprobe.evaluation.weights import compare_weights
    from neuroprobe.images._images import Images
    from neuroprobe.labeling.clarity import score_units
    from neuroprobe.labeling.dissection import dissect
    from neuroprobe.labeling.formulas import dissect_formulas
    from neuroprobe.labeling.pairs import dissect_pairs
    from neuroprobe.labeling.search import search_units
    from neuroprobe.labeling.sums import explain_units
    from neuroprobe.models.directions import Direction
    from neuroprobe.models.layers import all_layers, block_layers, list_layers
    from neuroprobe.probing.probes import LinearProbe, MeanDifferenceProbe, NonlinearProbe, RegressionProbe, SparseProbe
    from neuroprobe.probing.study import ProbingStudy
    from neuroprobe.recording.activations import Activations
    from neuroprobe.recording.checkpoints import record_checkpoints
    from neuroprobe.recording.recorder import ActivationRecorder
    from neuroprobe.recording.summaries import ActivationSummary
    from neuroprobe.reports.base import Report
    from neuroprobe.reports.labels import LabelReport
    from neuroprobe.reports.probes import ProbeReport
    from neuroprobe.visualization.examples import quantile_examples, top_images
    from neuroprobe.visualization.facets import layer_facets
    from neuroprobe.visualization.feature_visualization import Visualization, visualize
    from neuroprobe.visualization.fields import receptive_field
    from neuroprobe.visualization.figures import plot_examples, plot_facets, plot_regions

__version__ = "0.1.0"

__all__ = [
    "ActivationRecorder",
    "ActivationSummary",
    "Activations",
    "ClipEncoder",
    "ConceptGroup",
    "ConceptScores",
    "ConceptSet",
    "ConceptSets",
    "ConceptSource",
    "Direction",
    "EffectReport",
    "GivenLabels",
    "ImageTextEncoder",
    "Images",
    "LabelReport",
    "LinearProbe",
    "MeanDifferenceProbe",
    "NonlinearProbe",
    "OpenClipEncoder",
    "ProbeReport",
    "ProbingStudy",
    "RegressionProbe",
    "Report",
    "SparseProbe",
    "TransformersEncoder",
    "Visualization",
    "Vocabulary",
    "ablate",
    "all_layers",
    "attribute_units",
    "block_layers",
    "causal_effect",
    "check_metrics",
    "check_on_images",
    "classes_from_labels",
    "compare_reports",
    "compare_weights",
    "contact_sheet",
    "dissect",
    "dissect_formulas",
    "dissect_pairs",
    "dissect_without",
    "evaluate_labels",
    "explain_class",
    "explain_units",
    "labels_along",
    "layer_facets",
    "list_layers",
    "load_curation",
    "plot_examples",
    "plot_facets",
    "plot_regions",
    "quantile_examples",
    "receptive_field",
    "record_checkpoints",
    "save_curation",
    "score_units",
    "search_units",
    "steer",
    "top_images",
    "units_named",
    "visualize",
]

# Names are imported when they are first used, so that `import neuroprobe` costs nothing that is not needed.
_MODULES = {
    "activations": ("Activations",),
    "attribution": ("attribute_units",),
    "causal_effects": ("EffectReport", "causal_effect", "units_named"),
    "composition": ("explain_class",),
    "compositional": ("dissect_formulas",),
    "concept_composition": ("explain_units",),
    "concept_sets": ("ConceptSet", "ConceptSets"),
    "concepts": ("ConceptScores", "ConceptSource"),
    "curation": ("contact_sheet", "load_curation", "save_curation"),
    "description_checks": ("classes_from_labels", "compare_weights"),
    "directions": ("Direction",),
    "dissection": ("dissect",),
    "encoders": ("ClipEncoder", "ImageTextEncoder", "OpenClipEncoder", "TransformersEncoder"),
    "facets": ("layer_facets",),
    "feature_visualization": ("Visualization", "visualize"),
    "gallery": ("quantile_examples", "top_images"),
    "gallery_plots": ("plot_examples", "plot_facets", "plot_regions"),
    "given_labels": ("GivenLabels",),
    "image_checks": ("check_on_images",),
    "images": ("Images",),
    "interventions": ("ablate", "steer"),
    "judging": ("evaluate_labels",),
    "label_changes": ("compare_reports", "labels_along"),
    "layers": ("all_layers", "block_layers", "list_layers"),
    "metric_checks": ("check_metrics",),
    "missing_concepts": ("dissect_without",),
    "probe_report": ("ProbeReport",),
    "probes": ("LinearProbe", "MeanDifferenceProbe", "NonlinearProbe", "RegressionProbe", "SparseProbe"),
    "receptive_fields": ("receptive_field",),
    "recorder": ("ActivationRecorder",),
    "recording": ("record_checkpoints",),
    "report": ("LabelReport", "Report"),
    "study": ("ProbingStudy",),
    "summaries": ("ActivationSummary",),
    "unit_scores": ("score_units",),
    "unit_search": ("search_units",),
    "vocabulary": ("ConceptGroup", "Vocabulary"),
    "word_pairs": ("dissect_pairs",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}
_MORE = (
    "checkpoints",
    "collection",
    "exceptions",
    "image_spectrum",
    "matched_images",
    "models",
    "near_duplicates",
    "pictures",
    "pipeline",
    "pooling",
    "regions",
    "scoring",
    "set_quality",
    "similarity",
    "statistics",
    "tcav",
    "unit_maps",
    "world",
)
_SUBMODULES = frozenset((*_MODULES, *_MORE))


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"neuroprobe.{_HOMES[name]}"), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"neuroprobe.{name}")
    raise AttributeError(f"module 'neuroprobe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBMODULES, "__version__"])
