"""Similarity functions by name, each registered where it is defined, with its scorer."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch

from neuroprobe.exceptions import InputError, UnknownNameError, suggest
from neuroprobe.labeling.similarity._scorer import Scorer, Vectors

_Array = TypeVar("_Array", bound="np.ndarray[Any, Any] | torch.Tensor")

#: ``f(activations [n_images, n_units], concept_scores [n_images, n_concepts], **parameters)`` -> [n_units, n_concepts].
Similarity: TypeAlias = Callable[..., Any]

#: What `dissect` takes: a function's name, a scorer class of one's own, or a plain function of two whole matrices.
SimilarityOrScorer: TypeAlias = "str | type[Scorer[Any]] | Similarity"

#: What `dissect` labels with; elected by benchmarks/known_truth.py.
DEFAULT_SIMILARITY = "peak_correlation"


class Entry(NamedTuple):
    """A similarity function, and what makes its scorer from concept scores and the function's parameters."""

    function: Similarity
    scorer: Callable[..., Scorer[Any]]


_registered: dict[str, Entry] = {}

_PARAMETERS = "Parameters\n----------\n"
_MATRICES = "activations : array or Tensor, [n_images, n_units]\nconcept_scores : array or Tensor, [n_images, n_concepts]\n"


def similarity(scorer: Callable[..., Scorer[Any]]) -> Callable[[Callable[..., torch.Tensor]], Similarity]:
    """Register a similarity function under its name; it then gets checked float32 tensors and returns the kind of array that came.

    `scorer` makes of concept scores, and the function's parameters as keywords, the scorer that gives the same numbers in blocks.

    Raises
    ------
    InputError
        There is a function of that name.
    """

    def register(function: Callable[..., torch.Tensor]) -> Similarity:
        name = function.__name__
        if name in _registered:
            raise InputError(f"Expected a similarity function with a name of its own, but {name!r} is registered already. Rename one.")

        @functools.wraps(function)
        def call(activations: _Array, concept_scores: _Array, **parameters: Any) -> _Array:
            a, p = (torch.as_tensor(x).float() for x in (activations, concept_scores))
            _check_inputs(a, p)
            result = function(a, p, **parameters)
            return result.numpy() if isinstance(activations, np.ndarray) else result  # type: ignore[return-value]

        _registered[name] = Entry(call, scorer)
        return call

    return register


def whole(name: str, scorer: type[Scorer[Any]]) -> Similarity:
    """The similarity function of a scorer: with its class's parameters and docstring, registered under the name.

    The class's docstring is written as the function's, without the two matrices, which are put before its parameters.
    """

    def function(activations: torch.Tensor, concept_scores: torch.Tensor, **parameters: Any) -> torch.Tensor:
        # concept scores as a product with the unit matrix, which changes no number
        unit = torch.eye(min(concept_scores.shape), device=concept_scores.device)
        tall = concept_scores.shape[1] <= len(concept_scores)
        made = scorer(Vectors(concept_scores, unit) if tall else Vectors(unit, concept_scores.T), **parameters)
        raw = made.block(made.units(activations), slice(None))
        return raw - made.prior(raw) if made.prior_weight else raw

    plain = inspect.signature(function)
    parameters = [*list(plain.parameters.values())[:2], *list(inspect.signature(scorer).parameters.values())[1:]]
    function.__name__ = function.__qualname__ = name
    function.__module__, function.__doc__ = scorer.__module__, (inspect.getdoc(scorer) or "").replace(_PARAMETERS, _PARAMETERS + _MATRICES)
    function.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": plain.return_annotation}
    vars(function).update(__signature__=plain.replace(parameters=parameters), __wrapped__=vars(scorer)["__init__"])
    return similarity(scorer)(function)


def _check_inputs(activations: torch.Tensor, concept_scores: torch.Tensor) -> None:
    shapes = tuple(activations.shape), tuple(concept_scores.shape)
    if any(len(shape) != 2 or 0 in shape for shape in shapes) or shapes[0][0] != shapes[1][0]:
        raise InputError(
            "Expected activations [n_images, n_units] and concept scores [n_images, n_concepts] over the same images, "
            f"but got {shapes[0]} and {shapes[1]}."
        )
    for name, values in (("activations", activations), ("concept scores", concept_scores)):
        if not bool(torch.isfinite(values).all()):
            row, column = (int(i) for i in (~torch.isfinite(values)).nonzero()[0])
            raise InputError(f"Expected finite {name}, but row {row}, column {column} is {values[row, column]}. Leave that image out.")


@functools.cache
def _entries() -> dict[str, Entry]:
    """All functions, by name in alphabetical order, once every family's file has been read."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if not module.name.startswith("_"):
            importlib.import_module(f"{__package__}.{module.name}")
    return dict(sorted(_registered.items()))


def list_similarities() -> list[str]:
    """The names `dissect` takes for ``similarity``."""
    return list(_entries())


def get_similarity(similarity: str | Similarity) -> tuple[str, Similarity]:
    """A similarity function's name and itself, from either.

    Raises
    ------
    UnknownNameError
        A name that is none of ours.
    """
    if callable(similarity):
        return str(getattr(similarity, "__name__", type(similarity).__name__)), similarity
    if not isinstance(similarity, str) or similarity not in _entries():
        raise UnknownNameError(f"Expected a similarity function, but got {similarity!r}. {suggest(str(similarity), _entries())}")
    return similarity, _entries()[similarity].function


def find_scorer(similarity: SimilarityOrScorer) -> tuple[str, Callable[..., Scorer[Any]] | None]:
    """A similarity function's name, and what makes its scorer: None for a plain function of the user's.

    Raises
    ------
    UnknownNameError
        A name that is none of ours.
    """
    if isinstance(similarity, type) and issubclass(similarity, Scorer):
        return similarity.__name__, similarity
    name, function = get_similarity(similarity)
    entry = _entries().get(name)
    return name, entry.scorer if entry is not None and entry.function is function else None


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
        _signature(make or similarity).bind(*([None] if make else [None, None]), **parameters)
        if make is not None and any(make is entry.scorer for entry in _entries().values()):
            make(Vectors(torch.eye(2), torch.eye(2)), **parameters)
    except TypeError as error:
        raise InputError(f"Expected parameters of {name}, but {dict(parameters)} do not fit: {error}.") from error


def _signature(function: Any) -> inspect.Signature:
    """Of a function; one that takes anything where it cannot be known."""
    try:
        return inspect.signature(function)
    except ValueError:
        return inspect.signature(lambda *_, **__: None)
