"""Similarity functions: how alike a unit's activations and a concept's scores are over the same images.

Each is called ``f(activations, concept_scores, **parameters)`` with arrays or tensors of shape
[n_images, n_units] and [n_images, n_concepts] and returns [n_units, n_concepts] of the same kind (NumPy in, NumPy
out), float32; the greater, the more alike.

References
----------
Oikarinen and Weng, "CLIP-Dissect: Automatic Description of Neuron Representations in Deep Vision Networks",
ICLR 2023, arXiv 2204.10965.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import torch

from neuroprobe.exceptions import InputError, UnknownNameError, suggest

#: Whose average a concept's score is compared with: the units passed, or nothing.
Prior: TypeAlias = 'Literal["cohort"] | None'

_Array = TypeVar("_Array", bound="np.ndarray[Any, Any] | torch.Tensor")
Similarity: TypeAlias = Callable[..., Any]


def _on_tensors(function: Callable[..., torch.Tensor]) -> Callable[..., Any]:
    """Checks the shapes, computes on float32 tensors, and returns the kind of array that came."""

    @functools.wraps(function)
    def call(activations: _Array, concept_scores: _Array, **parameters: Any) -> _Array:
        a, p = (torch.as_tensor(x).float() for x in (activations, concept_scores))
        if a.ndim != 2 or p.ndim != 2 or len(a) != len(p) or 0 in (*a.shape, *p.shape):
            raise InputError(
                "Expected activations [n_images, n_units] and concept scores [n_images, n_concepts] over the same images, "
                f"but got {tuple(a.shape)} and {tuple(p.shape)}."
            )
        result = function(a, p, **parameters)
        return result.numpy() if isinstance(activations, np.ndarray) else result  # type: ignore[return-value]

    return call


@_on_tensors
def cos_similarity(activations: torch.Tensor, concept_scores: torch.Tensor) -> torch.Tensor:
    """Cosine of a unit's activations and a concept's scores over the images; neither is centred, as published.

    Parameters
    ----------
    activations : array or Tensor, [n_images, n_units]
    concept_scores : array or Tensor, [n_images, n_concepts]

    Returns
    -------
    array or Tensor, [n_units, n_concepts]
        In [-1, 1]; 0 where one of the two is zero on every image.
    """
    return _unit_columns(activations).T @ _unit_columns(concept_scores)


def _unit_columns(values: torch.Tensor) -> torch.Tensor:
    lengths = torch.norm(values, p=2, dim=0, keepdim=True)
    return values / torch.where(lengths > 0, lengths, 1)


@_on_tensors
def soft_wpmi(
    activations: torch.Tensor,
    concept_scores: torch.Tensor,
    *,
    k: int = 100,
    a: float = 10.0,
    lam: float = 1.0,
    p_start: float = 0.998,
    p_end: float = 0.97,
    min_prob: float = 1e-7,
    prior: Prior = "cohort",
) -> torch.Tensor:
    """Soft weighted pointwise mutual information (CLIP-Dissect, section 3.2), its default function.

    log p(concept | the unit's top images, softly) - lam * log p(concept), where the first is the sum over the
    unit's k most active images of log(1 + p_i (P_i - 1)), P is the softmax over concepts of ``a`` times the
    scores, and p_i, the probability that image i really is an example, falls from p_start towards p_end.

    Parameters
    ----------
    activations : array or Tensor, [n_images, n_units]
    concept_scores : array or Tensor, [n_images, n_concepts]
        Cosine similarities.
    k : int, default 100
        Most active images used; all of them if there are fewer.
    a : float, default 10
        Factor of the softmax over concepts.
    lam : float, default 1
        Weight of the prior.
    p_start, p_end : float, default 0.998 and 0.97
    min_prob : float, default 1e-7
        Added inside the logarithm, as the published code does.
    prior : {"cohort", None}, default "cohort"
        "cohort": the mean probability of the concept over the units passed (published); with one unit alone every
        score is then 0. None: no prior, and no score depends on the other units.

    Returns
    -------
    array or Tensor, [n_units, n_concepts]
        Nats.

    Raises
    ------
    InputError
        k below 1, or a `prior` that is neither.
    """
    if prior not in ("cohort", None):
        raise InputError(f"Expected `prior` to be 'cohort' or None, but got {prior!r}.")
    if k < 1:
        raise InputError(f"Expected `k` to be at least 1, but got {k}.")
    k = min(k, len(activations))
    probabilities = torch.softmax(a * concept_scores, dim=1)
    top = torch.topk(activations, k, dim=0).indices.T  # [n_units, k]
    p_example = p_start - torch.arange(k, device=top.device) / k * (p_start - p_end)
    log_p = torch.stack([_log_p_of_top(probabilities[images], p_example, min_prob) for images in top])
    if prior is None:
        return log_p
    log_prior = torch.logsumexp(log_p, dim=0) - math.log(len(log_p))
    return log_p - lam * log_prior


def _log_p_of_top(probabilities: torch.Tensor, p_example: torch.Tensor, min_prob: float) -> torch.Tensor:
    """log p(concept | a unit's top images): [k, n_concepts] -> [n_concepts].

    Scores near zero are differences of sums near -500, so their last digits depend on the order of the sum; this
    is the published one.
    """
    return torch.log(1 + p_example[:, None] * (probabilities - 1) + min_prob).sum(dim=0)


_FUNCTIONS: dict[str, Similarity] = {"cos_similarity": cos_similarity, "soft_wpmi": soft_wpmi}


def get_similarity(similarity: str | Similarity) -> tuple[str, Similarity]:
    """A similarity function's name and itself, from either.

    Raises
    ------
    UnknownNameError
        A name that is none of ours.
    """
    if callable(similarity):
        return str(getattr(similarity, "__name__", type(similarity).__name__)), similarity
    if similarity not in _FUNCTIONS:
        raise UnknownNameError(f"Expected a similarity function, but got {similarity!r}. {suggest(str(similarity), _FUNCTIONS)}")
    return similarity, _FUNCTIONS[similarity]


def check_parameters(similarity: str | Similarity, parameters: Mapping[str, Any]) -> None:
    """Try one of our functions with these parameters on a few numbers; one of the user's is left to its first real call.

    Raises
    ------
    UnknownNameError
        A name that is none of ours.
    InputError
        A parameter it does not have, or a value it does not take.
    """
    name, function = get_similarity(similarity)
    if function not in _FUNCTIONS.values():
        return
    try:
        function(torch.eye(2), torch.eye(2), **parameters)
    except TypeError as error:
        raise InputError(f"Expected parameters of {name}, but {dict(parameters)} do not fit: {error}.") from error


def list_similarities() -> list[str]:
    """The names `dissect` takes for ``similarity``."""
    return list(_FUNCTIONS)
