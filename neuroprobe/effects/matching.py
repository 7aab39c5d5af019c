"""What an effect is compared with: for every image that shows a concept, one without it that is otherwise as alike as can be found; and
random units beside those that are changed.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from neuroprobe._core import Floats, check_choice, check_seed
from neuroprobe.concepts import ConceptScores, ConceptSet
from neuroprobe.exceptions import InputError, UnknownNameError, shown, suggest

Match: TypeAlias = Literal["nearest", "random"]
#: Images with and without a concept: a set, or the ids of both sides.
Sides: TypeAlias = "ConceptSet | tuple[Sequence[str], Sequence[str]]"

#: Distances between positives and negatives that are computed at once.
_MOST_DISTANCES = 40_000_000


@dataclass(frozen=True)
class MatchedImages:
    """Pairs of images, one with a concept and one without; no image is in two pairs.

    Attributes
    ----------
    concept : str
    with_concept, without : tuple of str, [n_pairs]
        The images' ids; pair i is image i of both.
    left_out : int
        Images with the concept for which no image was left.
    distance : float
        Mean distance of the two images of a pair in the encoder's space without the concept's direction; NaN without scores.
    any_distance : float
        Mean distance of any image with the concept from any without, to compare: what pairs at random would have.
    """

    concept: str
    with_concept: tuple[str, ...]
    without: tuple[str, ...]
    left_out: int
    distance: float
    any_distance: float


def match_images(concept_set: ConceptSet, scores: ConceptScores | None = None, *, match: Match = "nearest", seed: int = 0) -> MatchedImages:
    """Pair every image that shows a concept with one that does not.

    Parameters
    ----------
    concept_set : ConceptSet
    scores : ConceptScores, optional
        Of these images at least, with the concept among its concepts. Needed for match="nearest".
    match : {"nearest", "random"}, default "nearest"
        "nearest": the pairs whose distances have the least sum, in the encoder's space after the direction of the concept's text was
        taken out of every image's vector. "random": any image without the concept.
    seed : int, default 0
        Of the random pairs.

    Returns
    -------
    MatchedImages
        In the order of the positives; as many pairs as the smaller side has images.

    Raises
    ------
    InputError
        Another way to match, no scores for "nearest", scores without some of the images or that are not finite, or so many images that
        their distances do not fit in memory.
    UnknownNameError
        A concept that was not scored.

    References
    ----------
    Kuhn, The Hungarian method for the assignment problem, 1955; as `scipy.optimize.linear_sum_assignment`.
    """
    check_choice("match", match, get_args(Match))
    check_seed(seed)
    sides = concept_set.positives, concept_set.negatives
    if len(sides[0]) * len(sides[1]) > _MOST_DISTANCES:
        raise InputError(
            f"Expected at most {_MOST_DISTANCES:,} pairs to choose from for {concept_set.concept!r}, but got {len(sides[0]):,} images with "
            f"it and {len(sides[1]):,} without. Give fewer: ConceptSets.from_labels(..., n_positive=, n_negative=)."
        )
    distances = None if match == "random" and scores is None else _distances(concept_set, scores)
    rows = _random_pairs(concept_set, seed) if match == "random" or distances is None else linear_sum_assignment(distances)
    return MatchedImages(
        concept_set.concept,
        tuple(sides[0][row] for row in rows[0]),
        tuple(sides[1][row] for row in rows[1]),
        left_out=len(sides[0]) - len(rows[0]),
        distance=math.nan if distances is None else float(distances[rows].mean()),
        any_distance=math.nan if distances is None else float(distances.mean()),
    )


def concept_sides(concepts: ConceptSet | Mapping[str, Sides]) -> dict[str, ConceptSet]:
    """Images with and without each concept, checked.

    Raises
    ------
    InputError
        Anything but concept sets or pairs of lists of ids; or sides that are no concept set, such as one without images.
    """
    if isinstance(concepts, ConceptSet):
        return {concepts.concept: concepts}
    if not isinstance(concepts, Mapping) or not concepts:
        raise InputError(
            f"Expected a concept set, or a mapping from concepts to sets or (ids with, ids without), but got {shown(concepts)}."
        )
    return {str(concept): _as_set(str(concept), sides) for concept, sides in concepts.items()}


def _as_set(concept: str, sides: Any) -> ConceptSet:
    if isinstance(sides, ConceptSet):
        return dataclasses.replace(sides, concept=concept)
    if not isinstance(sides, Sequence) or len(sides) != 2 or any(isinstance(side, str) or not isinstance(side, Iterable) for side in sides):
        raise InputError(f"Expected a concept set or (ids with, ids without) for {concept!r}, but got {shown(sides)}.")
    return ConceptSet(concept, "", tuple(str(id_) for id_ in sides[0]), tuple(str(id_) for id_ in sides[1]))


def _random_pairs(concept_set: ConceptSet, seed: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    # what is drawn for a concept does not depend on the others
    generator = np.random.default_rng((seed, zlib.crc32(concept_set.concept.encode(errors="surrogatepass"))))
    sizes = len(concept_set.positives), len(concept_set.negatives)
    first = np.sort(generator.permutation(sizes[0])[: min(sizes)])
    return first, generator.permutation(sizes[1])[: min(sizes)]


def _distances(concept_set: ConceptSet, scores: ConceptScores | None) -> Floats:
    """Between images with and without the concept, in the encoder's space without the concept's direction."""
    concept = concept_set.concept
    if not isinstance(scores, ConceptScores):
        raise InputError(
            f"Expected `scores` to match images of {concept!r} by, as ConceptSource.score(images) makes them, but got "
            f"{'none' if scores is None else shown(scores)}. "
            "Or take match='random'."
        )
    if concept not in scores.concepts:
        raise UnknownNameError(f"Expected scores of {concept!r} to match images by, but got none. {suggest(concept, scores.concepts)}")
    places = {id_: row for row, id_ in enumerate(scores.ids)}
    missing = next((id_ for id_ in concept_set.ids if id_ not in places), None)
    if missing is not None:
        raise InputError(f"Expected scores of every image of {concept!r}, but {missing!r} has none.")
    text = scores.text_vectors[scores.concepts.index(concept)].double().numpy()
    axis = text / np.linalg.norm(text)
    sides = []
    for ids in (concept_set.positives, concept_set.negatives):
        vectors = scores.image_vectors[[places[id_] for id_ in ids]].double().numpy()
        sides.append(vectors - np.outer(vectors @ axis, axis))
    distances = np.asarray(cdist(*sides))
    if not np.isfinite(distances).all():
        raise InputError(f"Expected finite scores to match images of {concept!r} by, but got others. Check the encoder's vectors.")
    return distances


def random_units(
    n_units: int, units: Sequence[int], *, n_random: int, seed: int, magnitudes: Floats | None = None
) -> list[tuple[int, ...]]:
    """Sets of as many other units of the layer, all different; all that there are, if they are not more than `n_random`.

    Parameters
    ----------
    n_units : int
        Of the layer.
    units : sequence of int
        Never among them.
    n_random : int
    seed : int
    magnitudes : ndarray, [n_units], optional
        Draw for each unit one of the others that are nearest to it in this: of as many as `n_random`, and at least of 10.

    Raises
    ------
    InputError
        Fewer other units than there are in the set.
    """
    others = [unit for unit in range(n_units) if unit not in set(units)]
    if n_random and len(others) < len(units):
        raise InputError(
            f"Expected at least {len(units)} other units to compare with, but the layer has {n_units} of which {len(others)} are others. "
            "Take n_random=0."
        )
    if math.comb(len(others), len(units)) <= n_random:
        return list(itertools.combinations(others, len(units)))
    generator, found = np.random.default_rng(seed), dict[tuple[int, ...], None]()
    for _ in range(100 * n_random):  # more than enough: sets are many, and few of them alike
        if len(found) == n_random:
            break
        if magnitudes is None:
            drawn = generator.choice(others, len(units), replace=False).tolist()
        else:
            drawn = _alike(units, others, magnitudes, n_random, generator)
        found[tuple(sorted(drawn))] = None
    return list(found)


def _alike(units: Sequence[int], others: Sequence[int], magnitudes: Floats, n_random: int, generator: np.random.Generator) -> list[int]:
    """One other unit for each, drawn among those nearest in magnitude that are left."""
    left, drawn = np.array(others), []
    for unit in generator.permutation(sorted(units)):
        distances = np.abs(magnitudes[left] - magnitudes[unit])
        near = np.argsort(distances, kind="stable")[: max(10, n_random)]
        place = int(generator.choice(near))
        drawn.append(int(left[place]))
        left = np.delete(left, place)
    return drawn
