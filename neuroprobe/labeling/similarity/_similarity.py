"""Similarity functions: how alike a unit's activations and a concept's scores are over the same images.

Each is called ``f(activations, concept_scores, **parameters)`` with arrays or tensors of shape
[n_images, n_units] and [n_images, n_concepts] and returns [n_units, n_concepts] of the same kind (NumPy in, NumPy
out), float32; the greater, the more alike. They see whole matrices: they are the definition. What `dissect` runs gives
the same numbers in blocks, from the embeddings (`neuroprobe.labeling.similarity.scoring`).

No result depends on the order of the images, and of equal values the lower row counts as the higher.
Where a function has a `prior`, the population it compares with is the units passed ("cohort"); the other functions,
and these with ``prior=None``, score a unit alone as they score it among others.

References
----------
Oikarinen and Weng, "CLIP-Dissect: Automatic Description of Neuron Representations in Deep Vision Networks",
ICLR 2023, arXiv 2204.10965 (cos_similarity, cos_similarity_cubed, rank_reorder, wpmi, soft_wpmi).
Bykov et al., "Labeling Neural Representations with Inverse Recognition", NeurIPS 2023, arXiv 2311.13594 (auc).
"""

from neuroprobe.labeling.similarity._arrays import Similarity
from neuroprobe.labeling.similarity.detection import auc, average_precision, mean_difference
from neuroprobe.labeling.similarity.linear import cos_similarity, cos_similarity_cubed, pearson
from neuroprobe.labeling.similarity.peaks import peak_correlation, peak_mean
from neuroprobe.labeling.similarity.registry import FUNCTIONS, get_similarity, list_similarities
from neuroprobe.labeling.similarity.wpmi import Prior, rank_reorder, soft_wpmi, wpmi

__all__ = [
    "FUNCTIONS",
    "Prior",
    "Similarity",
    "auc",
    "average_precision",
    "cos_similarity",
    "cos_similarity_cubed",
    "get_similarity",
    "list_similarities",
    "mean_difference",
    "peak_correlation",
    "peak_mean",
    "pearson",
    "rank_reorder",
    "soft_wpmi",
    "wpmi",
]
