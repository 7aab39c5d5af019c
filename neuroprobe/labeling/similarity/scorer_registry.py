"""The scorer of every similarity function, by the function's name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch

from neuroprobe.concepts import ConceptScores
from neuroprobe.exceptions import InputError
from neuroprobe.labeling.similarity._similarity import Similarity, get_similarity
from neuroprobe.labeling.similarity.embedding_scorers import CosScorer, LinearScorer, PeakCorrelationScorer, PeakMeanScorer, PearsonScorer
from neuroprobe.labeling.similarity.registry import LINEAR
from neuroprobe.labeling.similarity.scoring import Scorer
from neuroprobe.labeling.similarity.top_image_scorers import TOP_IMAGE_SCORERS

#: What `dissect` labels with; elected by benchmarks/known_truth.py.
DEFAULT_SIMILARITY = "peak_correlation"


def _linear(name: str, scores: ConceptScores, **parameters: Any) -> Scorer:
    return LinearScorer(scores, LINEAR[name](**parameters))


#: From concept scores, and the function's parameters as keywords, to its scorer.
SCORERS: dict[str, Callable[..., Scorer]] = {
    "peak_correlation": PeakCorrelationScorer,
    "peak_mean": PeakMeanScorer,
    "cos_similarity": CosScorer,
    "pearson": PearsonScorer,
    **{name: partial(_linear, name) for name in ("cos_similarity_cubed", "auc", "mean_difference")},
    **TOP_IMAGE_SCORERS,
}

#: What `dissect` takes: a function's name, a scorer class of one's own, or a plain function of two whole matrices.
SimilarityOrScorer: TypeAlias = "str | type[Scorer] | Similarity"


def find_scorer(similarity: SimilarityOrScorer) -> tuple[str, Callable[..., Scorer] | None]:
    """A similarity function's name, and what makes its scorer: None for a plain function of the user's.

    Raises
    ------
    UnknownNameError
        A name that is none of ours.
    """
    if isinstance(similarity, type) and issubclass(similarity, Scorer):
        return similarity.__name__, similarity
    name, function = get_similarity(similarity)
    ours = isinstance(similarity, str) or get_similarity(name)[1] is function if name in SCORERS else False
    return name, SCORERS[name] if ours else None


def check_similarity(similarity: SimilarityOrScorer, parameters: Mapping[str, Any]) -> None:
    """Try the parameters of our functions on a few numbers; of the user's own functions and scorers, only their names.

    Raises
    ------
    UnknownNameError
        A name that is none of ours.
    InputError
        A parameter the function does not have, or a value it does not take; a scorer that lacks a method.
    """
    name, make = find_scorer(similarity)
    if not isinstance(parameters, Mapping):
        raise InputError(
            f"Expected `parameters` to be a mapping, such as {{'k': 50}}, but got {type(parameters).__name__} {parameters!r:.60}."
        )
    if inspect.isabstract(make):
        raise InputError(f"Expected a scorer with the methods `units` and `block`, but {name} lacks one of them.")
    try:
        if make in SCORERS.values():
            few: Any = SimpleNamespace(image_vectors=torch.eye(2), text_vectors=torch.eye(2))
            make(few, **parameters)  # type: ignore[misc]
        else:
            _signature(make or similarity).bind(*([None] if make else [None, None]), **parameters)
    except TypeError as error:
        raise InputError(f"Expected parameters of {name}, but {dict(parameters)} do not fit: {error}.") from error


def _signature(function: Any) -> inspect.Signature:
    """Of a function; one that takes anything where it cannot be known."""
    try:
        return inspect.signature(function)
    except ValueError:
        return inspect.signature(lambda *_, **__: None)
