from .detection import auc as auc
from .detection import average_precision as average_precision
from .detection import mean_difference as mean_difference
from .information import soft_wpmi as soft_wpmi
from .information import wpmi as wpmi
from .linear import cos_similarity as cos_similarity
from .linear import cos_similarity_cubed as cos_similarity_cubed
from .linear import pearson as pearson
from .peaks import peak_correlation as peak_correlation
from .peaks import peak_mean as peak_mean
from .ranks import rank_reorder as rank_reorder

__all__ = [
    "auc",
    "average_precision",
    "cos_similarity",
    "cos_similarity_cubed",
    "mean_difference",
    "peak_correlation",
    "peak_mean",
    "pearson",
    "rank_reorder",
    "soft_wpmi",
    "wpmi",
]
