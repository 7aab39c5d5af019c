"""Facets: the several things a unit fires for, found by clustering its strongest images in the encoder's space.

A unit's strongest images are clustered (k-means) after the image embeddings of the whole probing set have been decorrelated, so that
what makes images differ everywhere, such as their shapes, does not make facets of a unit that fires for one color. Whether there
are facets at all is decided by the silhouette against a null: as many images drawn at random from the probing set, clustered in the
same way: images of one concept fall apart no better than any images do. And several facets have to say more than one concept would.

References
----------
Goh et al., "Multimodal Neurons in Artificial Neural Networks", Distill, 2021 (units are multi-faceted).
Nguyen, Yosinski and Clune, "Multifaceted Feature Visualization", 2016, arXiv 1602.03616 (clusters of a unit's images).
Rousseeuw, "Silhouettes", J. Comput. Appl. Math. 20, 1987.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroprobe._core import check_count, check_seed, check_share, check_units
from neuroprobe.concepts import ConceptScores, check_same_images
from neuroprobe.exceptions import InputError
from neuroprobe.models import Site, find_site
from neuroprobe.recording import Activations, Recorded
from neuroprobe.visualization._clusters import Clustering, ClusterSpace
from neuroprobe.visualization.examples import Example, top_images

#: Most images of a unit that are clustered, and fewest.
K, FEWEST = 100, 12

_PEAK = 5  # images whose mean is the unit's peak
_TOP = 5


@dataclass(frozen=True)
class FacetConcept:
    """A concept of a facet, and how far it stands out.

    Attributes
    ----------
    concept : str
    against_set : float
        Mean score of the facet's images minus that of all images of the probing set that are not among the unit's, in standard deviations
        of the concept's scores over the probing set.
    against_others : float
        The same against the images of the unit's other facets; NaN if there is one facet.
    """

    concept: str
    against_set: float
    against_others: float

    @property
    def score(self) -> float:
        """The smaller of the two: a facet's label is the concept for which it is largest."""
        return self.against_set if np.isnan(self.against_others) else min(self.against_set, self.against_others)


@dataclass(frozen=True)
class Facet:
    """One of the things a unit fires for.

    Attributes
    ----------
    examples : tuple of Example
        Its images, strongest first.
    concepts : tuple of FacetConcept
        The five that stand out most, best first.
    share : float
        Of the unit's images that were clustered.
    """

    examples: tuple[Example, ...]
    concepts: tuple[FacetConcept, ...]
    share: float

    @property
    def label(self) -> str:
        """The concept that stands out most from the rest of the probing set and from the unit's other facets; empty if none does."""
        return self.concepts[0].concept if self.concepts and self.concepts[0].score > 0 else ""


@dataclass(frozen=True)
class UnitFacets:
    """A unit's facets, largest first; a sequence of `Facet`.

    Attributes
    ----------
    layer : str
        The site's key: for a plain one the layer's name.
    site : str
        The site's identity.
    unit : int
    facets : tuple of Facet
        None for a unit that never varies.
    status : str
        "several facets"; "one facet": random images fall apart as clearly; "one concept": they do not, but one concept says more
        than the clusters' own, and so there is one facet; "as asked"; "too few images", if fewer than 12 are active, which are one facet;
        "never varies".
    common : tuple of FacetConcept
        The five concepts by which all these images together stand out from the rest of the probing set, best first.
    p_value : float
        How often random images of the probing set fall apart as clearly, into whatever number of clusters; NaN if
        `n_facets` was given or nothing was clustered.
    silhouettes : mapping from number of clusters to float
        Mean silhouette of the unit's images.
    standings : mapping from number of clusters to float
        How many standard deviations that is above the mean of random images; NaN for clusters that were too small.
    metadata : mapping
        k, n_facets, max_facets, max_p_value, n_null, seed, and what was recorded and scored.
    """

    layer: str
    site: str
    unit: int
    facets: tuple[Facet, ...]
    status: str
    common: tuple[FacetConcept, ...]
    p_value: float
    silhouettes: Mapping[int, float]
    standings: Mapping[int, float]
    metadata: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.facets)

    def __getitem__(self, index: int) -> Facet:
        return self.facets[index]

    def __iter__(self) -> Iterator[Facet]:
        return iter(self.facets)

    def __repr__(self) -> str:
        named = ", ".join(f"{facet.label or 'no label'} ({facet.share:.0%})" for facet in self.facets)
        return f"UnitFacets({self.layer}, unit {self.unit}: {self.status}{': ' if named else ''}{named})"

    @property
    def labels(self) -> tuple[str, ...]:
        """The label of every facet."""
        return tuple(facet.label for facet in self.facets)


def facets(
    activations: Recorded,
    scores: ConceptScores,
    layer: str | Site,
    unit: int,
    **options: Any,
) -> UnitFacets:
    """The facets of one unit, as `layer_facets` finds those of several; options and errors as there."""
    return layer_facets(activations, scores, layer, [unit], **options)[0]


def layer_facets(
    activations: Recorded,
    scores: ConceptScores,
    layer: str | Site,
    units: Sequence[int] | None = None,
    *,
    k: int = K,
    n_facets: int | None = None,
    max_facets: int = 5,
    max_p_value: float = 0.05,
    n_null: int = 99,
    seed: int = 0,
) -> list[UnitFacets]:
    """The facets of a layer's units: clusters of their strongest images, each with the concept by which it stands out.

    Clustered are a unit's strongest images, as far as it is at least half as far above its mean as on its five strongest
    (else images on which it does not fire would make a facet), at most `k` and at most a tenth of the probing set, or 30 if that is
    more; of these the largest of few numbers (12, 14, 16, 19, ..., 88), so that units share their random sets. For every number of
    clusters from 2 to `max_facets` the mean silhouette is compared with that of random images. The number that stands highest above
    them (the fewest that stand nine tenths as high) is taken, if random images stand as high, at any number, with a probability of at
    most `max_p_value`, and if the facets' labels stand out more, weighted by the facets' shares, than the best concept of all these
    images together does. Otherwise there is one facet.

    Parameters
    ----------
    activations : Activations or ActivationSummary
        A summary has to have kept as many of the highest images.
    scores : ConceptScores
        Of the same images. Their image vectors are clustered, their concepts are the labels.
    layer : str or Site
    units : sequence of int, optional
        By default all units of the layer.
    k : int, default 100
        Most images of a unit that are clustered; at least 12.
    n_facets : int, optional
        A number of facets that is taken untested.
    max_facets : int, default 5
    max_p_value : float, default 0.05
        Of the choice between one facet and several, for each unit by itself.
    n_null : int, default 99
        Random sets of images, of each size that occurs.
    seed : int, default 0
        Of the random sets and of k-means.

    Raises
    ------
    InputError
        Different images, a unit that the layer does not have, more images than a summary keeps, or a number out of its range.
    UnknownNameError
        A layer that was not recorded.
    """
    check_same_images(activations, scores)
    _check_numbers(len(scores.ids), k, n_facets, max_facets, max_p_value, n_null, seed)
    key = find_site(layer, activations.sites)
    n_units = len(activations[key].mean) if not isinstance(activations, Activations) else activations[key].shape[1]
    chosen = range(n_units) if units is None else check_units(key, units, n_units)
    space = ClusterSpace(scores, [n_facets] if n_facets else list(range(2, max_facets + 1)), n_null=0 if n_facets else n_null, seed=seed)
    parameters = {"k": k, "n_facets": n_facets, "max_facets": max_facets, "max_p_value": max_p_value, "n_null": n_null, "seed": seed}
    metadata = {**parameters, "activations": dict(activations.metadata), "concept_scores": dict(scores.metadata)}
    return [_unit_facets(activations, space, key, unit, k, max_p_value, metadata) for unit in chosen]


def _unit_facets(
    activations: Recorded, space: ClusterSpace, layer: str, unit: int, k: int, max_p_value: float, metadata: Mapping[str, Any]
) -> UnitFacets:
    examples = active_examples(activations, layer, unit, k=k)
    if not examples:
        return UnitFacets(layer, activations.sites[layer], unit, (), "never varies", (), float("nan"), {}, {}, metadata)
    if len(examples) < FEWEST:
        found = Clustering({}, {}, {}, float("nan"))
        clusters, status = np.zeros(len(examples), np.int64), "too few images"
    else:
        examples = examples[: _size(len(examples))]
        found = space.cluster(space.rows([example.image_id for example in examples]))
        clusters, status = found.chosen(max_p_value, len(examples))
    (whole,) = _facets(space, examples, np.zeros(len(examples), np.int64))
    made = _facets(space, examples, clusters)
    if status == "several facets" and whole.concepts[0].score > sum(facet.share * facet.concepts[0].score for facet in made):
        made, status = [whole], "one concept"
    facts = status, whole.concepts, found.p_value, found.silhouettes, found.standings
    return UnitFacets(layer, activations.sites[layer], unit, tuple(made), *facts, metadata)


def active_examples(activations: Recorded, layer: str, unit: int, *, k: int) -> list[Example]:
    """A unit's strongest images, as far as it is at least half as far above its mean as on its five strongest; none if it never varies."""
    if isinstance(activations, Activations):
        n, mean = len(activations.ids), float(np.asarray(activations[layer][:, unit], np.float64).mean())
    else:
        n, mean = activations[layer].count, float(activations[layer].mean[unit])
    strongest = top_images(activations, layer, unit, k=min(k, n, max(n // 10, 30)))
    if not strongest[0].varies:
        return []
    peak = float(np.mean([example.value for example in strongest[:_PEAK]]))
    return [example for example in strongest if example.value >= (peak + mean) / 2]


def _size(n: int) -> int:
    """The largest of few sizes up to n: 12, 14, 16, 19, ...; so that units share their random sets."""
    size = FEWEST
    while (following := size + max(size // 5, 1)) <= n:
        size = following
    return size


def _facets(space: ClusterSpace, examples: Sequence[Example], clusters: npt.NDArray[np.int64]) -> list[Facet]:
    """A facet for every cluster, the largest first."""
    rows, found = space.rows([example.image_id for example in examples]), []
    for cluster in np.unique(clusters):
        members = clusters == cluster
        against_set, against_others = space.standing_out(rows[members], rows[~members])
        scores = against_set if members.all() else np.minimum(against_set, against_others)
        order = np.argsort(-scores, kind="stable")[:_TOP]
        concepts = tuple(FacetConcept(space.concepts[c], float(against_set[c]), float(against_others[c])) for c in order)
        own = tuple(example for example, member in zip(examples, members, strict=True) if member)
        found.append(Facet(own, concepts, float(members.mean())))
    return sorted(found, key=lambda facet: (-facet.share, examples.index(facet.examples[0])))


def _check_numbers(n: int, k: int, n_facets: int | None, max_facets: int, max_p_value: float, n_null: int, seed: int) -> None:
    check_count("k", k, low=FEWEST)
    for name, number in (("n_facets", 1 if n_facets is None else n_facets), ("max_facets", max_facets)):
        check_count(name, number, low=1 if name == "n_facets" else 2)
        if number > FEWEST:
            raise InputError(f"Expected `{name}` to be at most {FEWEST}, the fewest images that are clustered, but got {number}.")
    check_share("max_p_value", max_p_value, one=True)
    check_count("n_null", n_null, low=19)
    check_seed(seed)
    if n < FEWEST:
        raise InputError(f"Expected at least {FEWEST} images to cluster some of them, but there are {n}.")
