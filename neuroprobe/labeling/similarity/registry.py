"""Similarity functions by name."""

from __future__ import annotations

from collections.abc import Callable

from neuroprobe.exceptions import UnknownNameError, suggest
from neuroprobe.labeling.similarity._arrays import Similarity
from neuroprobe.labeling.similarity.detection import auc, auc_parts, average_precision, mean_difference, mean_difference_parts
from neuroprobe.labeling.similarity.linear import (
    LinearParts,
    cos_similarity,
    cos_similarity_cubed,
    cos_similarity_cubed_parts,
    cos_similarity_parts,
    pearson,
    pearson_parts,
)
from neuroprobe.labeling.similarity.peaks import peak_correlation, peak_mean, peak_mean_parts
from neuroprobe.labeling.similarity.wpmi import rank_reorder, soft_wpmi, wpmi

#: Every similarity function by its name: the one place to add one.
FUNCTIONS: dict[str, Similarity] = {
    "peak_correlation": peak_correlation,
    "peak_mean": peak_mean,
    "cos_similarity": cos_similarity,
    "cos_similarity_cubed": cos_similarity_cubed,
    "rank_reorder": rank_reorder,
    "wpmi": wpmi,
    "soft_wpmi": soft_wpmi,
    "pearson": pearson,
    "auc": auc,
    "average_precision": average_precision,
    "mean_difference": mean_difference,
}

#: Those that are one matrix product: from their parameters to the two sides of it.
LINEAR: dict[str, Callable[..., LinearParts]] = {
    "cos_similarity": cos_similarity_parts,
    "cos_similarity_cubed": cos_similarity_cubed_parts,
    "pearson": pearson_parts,
    "peak_mean": peak_mean_parts,
    "auc": auc_parts,
    "mean_difference": mean_difference_parts,
}


def get_similarity(similarity: str | Similarity) -> tuple[str, Similarity]:
    """A similarity function's name and itself, from either.

    Raises
    ------
    UnknownNameError
        A name that is none of ours.
    """
    if callable(similarity):
        return str(getattr(similarity, "__name__", type(similarity).__name__)), similarity
    if not isinstance(similarity, str) or similarity not in FUNCTIONS:
        raise UnknownNameError(f"Expected a similarity function, but got {similarity!r}. {suggest(str(similarity), FUNCTIONS)}")
    return similarity, FUNCTIONS[similarity]


def list_similarities() -> list[str]:
    """The names `dissect` takes for ``similarity``."""
    return list(FUNCTIONS)
