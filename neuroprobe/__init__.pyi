from . import concepts as concepts
from . import effects as effects
from . import evaluation as evaluation
from . import exceptions as exceptions
from . import images as images
from . import labeling as labeling
from . import models as models
from . import pipeline as pipeline
from . import probing as probing
from . import recording as recording
from . import reports as reports
from . import statistics as statistics
from . import visualization as visualization
from . import world as world
from ._core.version import __version__ as __version__
from .concepts import ClipEncoder as ClipEncoder
from .concepts import ConceptGroup as ConceptGroup
from .concepts import ConceptScores as ConceptScores
from .concepts import ConceptSet as ConceptSet
from .concepts import ConceptSets as ConceptSets
from .concepts import ConceptSource as ConceptSource
from .concepts import GivenLabels as GivenLabels
from .concepts import ImageTextEncoder as ImageTextEncoder
from .concepts import OpenClipEncoder as OpenClipEncoder
from .concepts import TransformersEncoder as TransformersEncoder
from .concepts import Vocabulary as Vocabulary
from .concepts import contact_sheet as contact_sheet
from .concepts import load_curation as load_curation
from .concepts import save_curation as save_curation
from .effects import EffectReport as EffectReport
from .effects import ablate as ablate
from .effects import attribute_units as attribute_units
from .effects import causal_effect as causal_effect
from .effects import explain_class as explain_class
from .effects import steer as steer
from .effects import units_named as units_named
from .evaluation import check_metrics as check_metrics
from .evaluation import check_on_images as check_on_images
from .evaluation import classes_from_labels as classes_from_labels
from .evaluation import compare_reports as compare_reports
from .evaluation import compare_weights as compare_weights
from .evaluation import dissect_without as dissect_without
from .evaluation import evaluate_labels as evaluate_labels
from .evaluation import labels_along as labels_along
from .images import Images as Images
from .labeling import dissect as dissect
from .labeling import dissect_formulas as dissect_formulas
from .labeling import dissect_pairs as dissect_pairs
from .labeling import explain_units as explain_units
from .labeling import score_units as score_units
from .labeling import search_units as search_units
from .models import Direction as Direction
from .models import Site as Site
from .models import all_layers as all_layers
from .models import block_layers as block_layers
from .models import list_layers as list_layers
from .probing import LinearProbe as LinearProbe
from .probing import MeanDifferenceProbe as MeanDifferenceProbe
from .probing import NonlinearProbe as NonlinearProbe
from .probing import ProbingStudy as ProbingStudy
from .probing import RegressionProbe as RegressionProbe
from .probing import SparseProbe as SparseProbe
from .recording import ActivationRecorder as ActivationRecorder
from .recording import Activations as Activations
from .recording import ActivationSummary as ActivationSummary
from .recording import record_checkpoints as record_checkpoints
from .reports import LabelReport as LabelReport
from .reports import ProbeReport as ProbeReport
from .reports import Report as Report
from .visualization import Visualization as Visualization
from .visualization import layer_facets as layer_facets
from .visualization import plot_examples as plot_examples
from .visualization import plot_facets as plot_facets
from .visualization import plot_regions as plot_regions
from .visualization import quantile_examples as quantile_examples
from .visualization import receptive_field as receptive_field
from .visualization import top_images as top_images
from .visualization import visualize as visualize

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
    "Site",
    "SparseProbe",
    "TransformersEncoder",
    "Visualization",
    "Vocabulary",
    "__version__",
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
