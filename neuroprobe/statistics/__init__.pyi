from .decorrelation import decorrelated as decorrelated
from .decorrelation import inner_products as inner_products
from .held_out import Quality as Quality
from .held_out import correlations as correlations
from .held_out import draw_counts as draw_counts
from .held_out import explained_shares as explained_shares
from .held_out import fitting_groups as fitting_groups
from .held_out import interval as interval
from .held_out import quality as quality
from .held_out import split_images as split_images
from .intervals import Interval as Interval
from .intervals import accuracy_interval as accuracy_interval
from .intervals import auroc_interval as auroc_interval
from .intervals import balanced_accuracy_interval as balanced_accuracy_interval
from .intervals import bootstrap as bootstrap
from .intervals import corrected_interval as corrected_interval
from .intervals import paired_interval as paired_interval
from .intervals import wilson_interval as wilson_interval
from .scores import auroc as auroc
from .scores import average_precision as average_precision
from .scores import balanced_accuracy as balanced_accuracy
from .tests import auroc_p_value as auroc_p_value
from .tests import benjamini_hochberg as benjamini_hochberg
from .tests import permutation_p_value as permutation_p_value

__all__ = [
    "auroc",
    "balanced_accuracy",
    "average_precision",
    "wilson_interval",
    "accuracy_interval",
    "balanced_accuracy_interval",
    "corrected_interval",
    "auroc_interval",
    "paired_interval",
    "bootstrap",
    "Interval",
    "auroc_p_value",
    "permutation_p_value",
    "benjamini_hochberg",
]
