from ._judgment_figures import plot_quantities as plot_quantities
from ._judgment_figures import plot_shares as plot_shares
from .base import FORMATS as FORMATS
from .base import Report as Report
from .base import UnitReport as UnitReport
from .base import units_of as units_of
from .judgments import ALL_LAYERS as ALL_LAYERS
from .judgments import JudgmentReport as JudgmentReport
from .judgments import average as average
from .judgments import interval_options as interval_options
from .judgments import layer_parts as layer_parts
from .judgments import quantity as quantity
from .judgments import share as share
from .labels import LabelReport as LabelReport
from .labels import Labels as Labels
from .labels import check_label_sites as check_label_sites
from .labels import check_labels as check_labels
from .labels import label_sites as label_sites
from .labels import labeled_units as labeled_units
from .labels import labels_of_layer as labels_of_layer
from .labels import metadata_of as metadata_of
from .page._write import Panel as Panel
from .probes import ProbeReport as ProbeReport

__all__ = ["LabelReport", "ProbeReport", "Report", "UnitReport", "JudgmentReport", "Panel", "FORMATS", "Labels"]
