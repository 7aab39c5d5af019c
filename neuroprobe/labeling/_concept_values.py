"""Concept values: how much of each concept is in each image, as numbers that can be added up.

Cosine similarities of images and texts lie close together, around another mean for every concept, and hardly tell "not there" from "not
there at all". As a presence they are near 0 for most images and near 1 for those that stand out: a sigmoid of how many standard deviations
the similarity is above its mean. So the weight of a concept is about what changes between an image without it and one with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from neuroprobe.concepts import ConceptScores
from neuroprobe.exceptions import InputError, UnknownNameError, shown, suggest

Values: TypeAlias = Literal["presence", "similarity", "likelihood", "labels"]

#: Standard deviations above its mean at which a similarity is half a presence, and how steeply it becomes one. On the offline world
#: any middle from 1 to 2 with a steepness from 1 to 3 predicts units about equally well.
MIDDLE, STEEPNESS = 1.5, 2.0


@dataclass(frozen=True, eq=False)
class ConceptValues:
    """How concept scores become values, learned from some images and applied to any.

    Attributes
    ----------
    kind : {"presence", "similarity", "likelihood", "labels"}
    names : tuple of str
        The concepts.
    center, spread : ndarray, [n_concepts]
        Mean and standard deviation of the similarities; used by "presence".
    encoder : str or None
        Fingerprint of what the scores came from.
    """

    kind: Values
    names: tuple[str, ...]
    center: npt.NDArray[np.float64]
    spread: npt.NDArray[np.float64]
    encoder: str | None

    @classmethod
    def learned(cls, scores: ConceptScores, rows: npt.NDArray[np.int64], kind: Values | None = None) -> ConceptValues:
        """From the images in `rows` of `scores`; `kind` None is "labels" for given labels and "presence" for others.

        Raises
        ------
        UnknownNameError
            No such kind.
        InputError
            A kind that the scores do not have, or scores that are not finite.
        """
        given = "labels" in scores.metadata
        if kind is not None and kind not in get_args(Values):
            raise UnknownNameError(f"Expected a kind of concept values, but got {kind!r}. {suggest(str(kind), get_args(Values))}")
        if kind is not None and (kind == "labels") is not given:
            what = "given labels" if given else "scores of an encoder"
            raise InputError(f"Expected a kind of values that {what} have, but got {kind!r}. Leave `values` out.")
        similarities = scores.similarities().numpy()
        _check_finite(similarities)
        similarities = similarities[rows]
        chosen: Values = kind or ("labels" if given else "presence")
        encoder = scores.metadata.get("encoder")
        return cls(chosen, scores.concepts, similarities.mean(axis=0, dtype=float), similarities.std(axis=0, dtype=float), encoder)

    def of(self, scores: ConceptScores) -> npt.NDArray[np.float64]:
        """The values, [n_images, n_concepts], columns as in `names`.

        Raises
        ------
        InputError
            No scores, or from another encoder, without one of the concepts, or not finite.
        """
        if not isinstance(scores, ConceptScores):
            raise InputError(f"Expected concept scores as ConceptSource or GivenLabels make them, but got {shown(scores)}.")
        if scores.metadata.get("encoder") != self.encoder:
            raise InputError(f"Expected scores of the encoder {self.encoder}, but got some of {scores.metadata.get('encoder')}.")
        missing = [name for name in self.names if name not in scores.concepts]
        if missing:
            raise InputError(f"Expected scores of all {len(self.names)} concepts, but {missing[0]!r} is missing.")
        places = {name: place for place, name in enumerate(scores.concepts)}
        columns = [places[name] for name in self.names]
        similarities = (scores.image_vectors @ scores.text_vectors[columns].T).numpy().astype(np.float64)
        _check_finite(similarities)
        if self.kind == "likelihood":
            return _likelihoods(scores)[:, columns]
        return similarities if self.kind != "presence" else self._presence(similarities)

    def _presence(self, similarities: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        above = (similarities - self.center) / np.where(self.spread > 0, self.spread, 1)
        return np.asarray(expit(STEEPNESS * (above - MIDDLE)))

    def to_json(self, names: Iterable[str]) -> dict[str, Any]:
        """What `from_json` reads, of some of the concepts."""
        places = [self.names.index(name) for name in names]
        listed = {"names": [self.names[i] for i in places], "center": self.center[places].tolist(), "spread": self.spread[places].tolist()}
        return {"kind": self.kind, "encoder": self.encoder, **listed}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> ConceptValues:
        return cls(facts["kind"], tuple(facts["names"]), np.array(facts["center"]), np.array(facts["spread"]), facts["encoder"])


def _check_finite(similarities: npt.NDArray[Any]) -> None:
    if not np.isfinite(similarities).all():
        raise InputError("Expected finite concept scores, but got others. Check the encoder's vectors.")


def _likelihoods(scores: ConceptScores) -> npt.NDArray[np.float64]:
    """Softmax within every concept's group, [n_images, n_concepts]."""
    groups = np.array([concept.group for concept in scores.vocabulary.concepts])
    found = np.empty((len(scores.ids), len(groups)))
    for group in dict.fromkeys(groups.tolist()):
        found[:, groups == group] = scores.likelihoods(group).numpy()
    return found
