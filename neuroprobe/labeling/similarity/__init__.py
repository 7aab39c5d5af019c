"""Similarity functions: how alike a unit's activations and a concept's scores are over the same images.

Each is called ``f(activations, concept_scores, **parameters)`` with arrays or tensors of shape
[n_images, n_units] and [n_images, n_concepts] and returns [n_units, n_concepts] of the same kind (NumPy in, NumPy
out), float32; the greater, the more alike. What `neuroprobe.dissect` runs is the function's scorer, which gives the same
numbers in blocks, from the embeddings (see `neuroprobe.labeling.Scorer`).

A family of functions is a file of this folder: the formula, the scorer, and the decorator that registers both under the
function's name. Every file without an underscore is read when a name is looked up.

No result depends on the order of the images, and of equal values the lower row counts as the higher.
Where a function has a `prior`, the population it compares with is the units passed ("cohort"); the other functions,
and these with ``prior=None``, score a unit alone as they score it among others.

References
----------
Oikarinen and Weng, "CLIP-Dissect: Automatic Description of Neuron Representations in Deep Vision Networks",
ICLR 2023, arXiv 2204.10965 (cos_similarity, cos_similarity_cubed, rank_reorder, wpmi, soft_wpmi).
Bykov et al., "Labeling Neural Representations with Inverse Recognition", NeurIPS 2023, arXiv 2311.13594 (auc).
"""
