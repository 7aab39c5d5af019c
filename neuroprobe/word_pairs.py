"""Compositional labels without labelled images: pairs of a unit's best words, scored as texts of their own.

As in CLIP-Dissect: the best words of a unit are found first; every two of them are then joined to one text ("red striped"),
embedded by the encoder, and scored by the same similarity function.

References
----------
Oikarinen and Weng, "CLIP-Dissect: Automatic Description of Neuron Representations in Deep Vision Networks", ICLR 2023,
arXiv 2204.10965, appendix on compositional concepts (text concatenations of two of the 100 best words of a unit).
"""

from __future__ import annotations

import inspect
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch.nn import functional as F

from neuroprobe.activations import Activations
from neuroprobe.concepts import ConceptScores
from neuroprobe.dissection import DEFAULT_SIMILARITY, dissect
from neuroprobe.encoders import ImageTextEncoder
from neuroprobe.exceptions import InputError
from neuroprobe.report import Report, versions
from neuroprobe.similarity import Similarity, get_similarity, list_similarities
from neuroprobe.unit_scores import check_layers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_Pair = tuple[int, int]

#: Of our functions, those whose score of a concept depends on which other concepts there are.
_MIX_CONCEPTS = frozenset({"soft_wpmi", "wpmi"})
_COLUMNS = 1024  # pairs scored at a time where they do not


class PairReport(Report):
    """A pair of words for every unit, as `neuroprobe.word_pairs.dissect_pairs` finds it.

    Columns: layer, unit, concept (the best pair's text; "" for a unit without one), score, first and second (its
    words), word and word_score (the best single word, scored beside the pairs), gain (score - word_score), status
    ("paired", or why not), and the next best pairs as concept_2, score_2, ... A pair is the best of some 5,000, so a
    small gain is no evidence that a unit responds to the combination.
    """

    name = "pairs"
    title = "Which pairs of words fit the units"
    required = ("layer", "unit", "concept", "score", "first", "second", "word", "word_score", "gain", "status")
    text_columns = ("layer", "concept", "first", "second", "word", "status")

    @classmethod
    def _holds_text(cls, column: str) -> bool:
        return super()._holds_text(column) or column.startswith("concept_")

    def label(self, layer: str, unit: int) -> str:
        """The pair of one unit; "" if it has none.

        Raises
        ------
        InputError
            The report holds no such unit.
        """
        rows = self._table[(self._table["layer"] == layer) & (self._table["unit"] == unit)]
        if rows.empty:
            raise InputError(f"Expected a unit of this report, but got unit {unit} of {layer!r}.")
        return str(rows["concept"].iloc[0])

    def summary(self) -> str:
        paired = self._table[self._table["status"] == "paired"]
        better = int((paired["gain"] > 0).sum())
        return f"{len(paired)} of {len(self._table)} units; for {better} the best pair scores higher than the best word"

    def plot(self, ax: Axes | None = None) -> Axes:
        """The score of every unit's best pair against that of its best word."""
        from neuroprobe.plots import _axes, _shortened

        ax = _axes(ax, 5.4, 5.0)
        paired = self._table[self._table["status"] == "paired"]
        for layer, rows in paired.groupby("layer", sort=False):
            ax.scatter(rows["word_score"], rows["score"], s=12, alpha=0.6, label=_shortened(str(layer)))
        if len(paired):
            ends = [paired["word_score"].min(), paired["word_score"].max()]
            ax.plot(ends, ends, color="grey", linewidth=1)
            ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
        ax.set_xlabel("score of the best word")
        ax.set_ylabel("score of the best pair")
        ax.set_title(f"Pairs of {len(paired)} units")
        return ax


def dissect_pairs(
    activations: Activations,
    scores: ConceptScores,
    *,
    encoder: ImageTextEncoder,
    similarity: str | Similarity = DEFAULT_SIMILARITY,
    parameters: Mapping[str, Any] | None = None,
    layers: Sequence[str] | None = None,
    units: Mapping[str, Iterable[int]] | None = None,
    n_words: int = 100,
    templates: Sequence[str] = ("{a} {b}",),
    top: int = 5,
    cache_size: int = 100_000,
) -> PairReport:
    """Label every unit with the pair of words whose scores are most like its activations.

    A unit's candidates are its `n_words` best words (by `dissect`) and all pairs of them, 4,950 of 100; they are also
    the concept set of a similarity function that compares concepts with each other. A prior over units is that of
    the whole layer. So neither other units nor `units` change a label. The order of the two words is that of the
    vocabulary; their text goes into the prompt templates of the first word's group.

    What takes long is the embedding of the pairs. Units share them: embeddings are kept, the `cache_size` used last.
    Beside these, the scores of one unit's candidates are held, [n_images, 5,050] (a block of them where the
    function looks at every concept for itself).

    Parameters
    ----------
    activations : Activations
        One row per image (pooled).
    scores : ConceptScores
        Of the same images, by the same encoder.
    encoder : ImageTextEncoder
        Embeds the pairs.
    similarity, parameters, layers, units
        As in `neuroprobe.dissect`.
    n_words : int, default 100
        Best words of a unit that are paired; all if the vocabulary has fewer.
    templates : sequence of str, default ("{a} {b}",)
        How two words become a text; with several, such as ("{a} {b}", "{b} {a}"), the mean of the unit vectors is
        used, and the first one names the pair.
    top : int, default 5
        Pairs kept per unit.
    cache_size : int, default 100,000
        Embeddings kept; at 512 dimensions, 2 KB each.

    Returns
    -------
    PairReport

    Raises
    ------
    InputError
        Another encoder's scores, different images, fewer than two words, or templates without {a} and {b}.
    UnknownNameError
        A layer that was not recorded, or no such similarity function.
    """
    name, function = get_similarity(similarity)
    _check(scores, encoder, templates, n_words=n_words, top=top, cache_size=cache_size)
    chosen = check_layers(activations, layers)
    parameters = dict(parameters or {})
    words = dissect(activations, scores, similarity=similarity, parameters=parameters, layers=chosen, units=units, top=n_words)
    vectors = PairVectors(scores, encoder, templates=tuple(templates), size=cache_size)
    scoring = _Scoring(scores, vectors, function, name, parameters)
    table = words.table
    tables = [_layer_table(table[table["layer"] == layer], activations[layer], scoring, top) for layer in chosen]
    metadata = {
        "similarity": name,
        "parameters": parameters,
        "n_words": min(n_words, len(scores.concepts)),
        "templates": list(templates),
        "n_embedded": vectors.n_embedded,
        "n_images": len(scores.ids),
        "activations": dict(activations.metadata),
        "concept_scores": dict(scores.metadata),
        "versions": versions(),
    }
    return PairReport(pd.concat(tables, ignore_index=True), metadata)


class PairVectors:
    """Embeddings of pairs of a vocabulary's words; the ones used last are kept.

    Parameters
    ----------
    scores : ConceptScores
        Whose vocabulary the words are of.
    encoder : ImageTextEncoder
    templates : tuple of str
        Each with {a} and {b}.
    size : int
        Embeddings kept.
    """

    def __init__(self, scores: ConceptScores, encoder: ImageTextEncoder, *, templates: tuple[str, ...], size: int) -> None:
        self._vocabulary, self._encoder, self._templates, self._size = scores.vocabulary, encoder, templates, size
        self._kept: OrderedDict[_Pair, torch.Tensor] = OrderedDict()
        group_templates = {group.name: group.templates for group in scores.vocabulary.groups}
        self._outer = [group_templates[concept.group] for concept in scores.vocabulary.concepts]
        #: Pairs embedded so far; one that was dropped and came back counts twice.
        self.n_embedded = 0

    def name(self, pair: _Pair) -> str:
        """The text of a pair, by the first template."""
        return self._texts(pair)[0]

    def __call__(self, pairs: Sequence[_Pair]) -> torch.Tensor:
        """Unit vectors of pairs, each (first, second) by their numbers in the vocabulary, [n_pairs, d]."""
        new = [pair for pair in pairs if pair not in self._kept]
        fresh = dict(zip(new, self._embedded(new), strict=True)) if new else {}
        rows = [fresh[pair] if pair in fresh else self._kept[pair] for pair in pairs]
        for pair, row in zip(pairs, rows, strict=True):
            self._kept[pair] = row
            self._kept.move_to_end(pair)
        while len(self._kept) > self._size:
            self._kept.popitem(last=False)
        return torch.stack(rows)

    def _embedded(self, pairs: list[_Pair]) -> torch.Tensor:
        prompts = [[t.replace("{}", text) for text in self._texts(pair) for t in self._outer[pair[0]]] for pair in pairs]
        vectors = torch.as_tensor(self._encoder.encode_texts([p for of_pair in prompts for p in of_pair])).detach().float().cpu()
        owner = torch.tensor([i for i, of_pair in enumerate(prompts) for _ in of_pair])
        sums = torch.zeros(len(pairs), vectors.shape[1]).index_add(0, owner, vectors)
        self.n_embedded += len(pairs)
        return torch.stack([row.clone() for row in F.normalize(sums, dim=1)])

    def _texts(self, pair: _Pair) -> list[str]:
        words = dict(zip(("{a}", "{b}"), (self._vocabulary.names[i] for i in pair), strict=True))
        return [re.sub(r"\{[ab]\}", lambda found: words[found.group()], template) for template in self._templates]


class _Scoring:
    """Scores of the candidates of a unit: its words, then all pairs of them."""

    def __init__(self, scores: ConceptScores, vectors: PairVectors, function: Similarity, name: str, parameters: Mapping[str, Any]) -> None:
        self.vectors, self.names = vectors, scores.concepts
        self.number = {word: i for i, word in enumerate(scores.concepts)}
        self._scores, self._function, self._parameters = scores, function, parameters
        ours = name in list_similarities() and get_similarity(name)[1] is function
        self._whole_layer = not ours or _has_prior(function, parameters)
        self._all_concepts = not ours or name in _MIX_CONCEPTS

    def __call__(self, values: torch.Tensor, units: list[int], words: list[int]) -> npt.NDArray[np.float64]:
        """Scores of units [n_units] that share their best words, [n_units, n_words + n_pairs]."""
        texts = torch.cat([self._scores.text_vectors[words], self.vectors(list(combinations(words, 2)))])
        seen = values if self._whole_layer else values[:, units]
        size = len(texts) if self._all_concepts else _COLUMNS
        parts = []
        for start in range(0, len(texts), size):
            matrix = self._scores.image_vectors @ texts[start : start + size].T
            alike = torch.as_tensor(self._function(seen, matrix, **self._parameters))
            if tuple(alike.shape) != (seen.shape[1], matrix.shape[1]):
                raise InputError(
                    f"Expected a similarity function to return {(seen.shape[1], matrix.shape[1])}, but got {tuple(alike.shape)}."
                )
            parts.append((alike[units] if self._whole_layer else alike).double())
        found: npt.NDArray[np.float64] = torch.cat(parts, dim=1).numpy()
        return found


def _has_prior(function: Similarity, parameters: Mapping[str, Any]) -> bool:
    """Whether other units of the layer take part in a unit's scores."""
    prior = inspect.signature(function).parameters.get("prior")
    return prior is not None and parameters.get("prior", prior.default) is not None


def _layer_table(rows: pd.DataFrame, activations: npt.NDArray[Any], scoring: _Scoring, top: int) -> pd.DataFrame:
    values = torch.from_numpy(np.array(activations, dtype=np.float32))
    varies = (values.amax(dim=0) > values.amin(dim=0)).tolist()
    found: dict[int, dict[str, Any]] = {unit: {"status": "never varies"} for unit in rows["unit"]}
    live = rows[np.array([varies[unit] for unit in rows["unit"]], dtype=bool)]
    for words, units in _sharing(live, scoring.number).items():
        alike = scoring(values, units, list(words))
        found.update({unit: _row(one, list(words), scoring, top) for unit, one in zip(units, alike, strict=True)})
    table = pd.DataFrame([found[unit] for unit in rows["unit"]]).reindex(columns=_columns(top))
    texts = [column for column in table if PairReport._holds_text(str(column))]
    table[texts] = table[texts].astype(object).fillna("")
    table["layer"], table["unit"] = rows["layer"].to_numpy(), rows["unit"].to_numpy()
    return table


def _sharing(rows: pd.DataFrame, number: Mapping[str, int]) -> dict[tuple[int, ...], list[int]]:
    """The best words, in the vocabulary's order, of every unit; units with the same ones together."""
    found: dict[tuple[int, ...], list[int]] = {}
    first = "candidate" if "candidate" in rows else "concept"
    others = [column for column in rows if re.fullmatch(r"concept_\d+", str(column))]
    for unit, *names in rows[["unit", first, *others]].itertuples(index=False):
        found.setdefault(tuple(sorted(number[name] for name in names)), []).append(int(unit))
    return found


def _row(alike: npt.NDArray[np.float64], words: list[int], scoring: _Scoring, top: int) -> dict[str, Any]:
    """A unit's row, from the scores of its words and of all pairs of them."""
    of_words, of_pairs = alike[: len(words)], alike[len(words) :]
    pairs = list(combinations(words, 2))
    word, best = int(np.argmax(of_words)), np.argsort(-of_pairs, kind="stable")[:top].tolist()
    first, second = pairs[best[0]]
    row: dict[str, Any] = {
        "first": scoring.names[first],
        "second": scoring.names[second],
        "word": scoring.names[words[word]],
        "word_score": of_words[word],
        "gain": of_pairs[best[0]] - of_words[word],
        "status": "paired",
    }
    for place, (concept, score) in zip(best, _ranked(top), strict=False):
        row[concept], row[score] = scoring.vectors.name(pairs[place]), of_pairs[place]
    return row


def _ranked(top: int) -> list[tuple[str, str]]:
    """The columns of the best pairs and their scores."""
    return [("concept", "score"), *((f"concept_{i}", f"score_{i}") for i in range(2, top + 1))]


def _columns(top: int) -> list[str]:
    return [*PairReport.required, *(column for pair in _ranked(top)[1:] for column in pair)]


def _check(scores: ConceptScores, encoder: ImageTextEncoder, templates: Sequence[str], *, n_words: int, top: int, cache_size: int) -> None:
    theirs = scores.metadata.get("encoder")
    if encoder.fingerprint != theirs:
        raise InputError(
            f"Expected the encoder of the scores, whose fingerprint is {theirs}, but got one with {encoder.fingerprint}. "
            "Vectors of two encoders cannot be compared."
        )
    if isinstance(templates, str) or not templates or any(t.count("{a}") != 1 or t.count("{b}") != 1 for t in templates):
        raise InputError(f"Expected a list of templates, each with one {{a}} and one {{b}}, but got {templates!r:.200}.")
    if min(n_words, len(scores.concepts)) < 2 or top < 1 or cache_size < 1:
        raise InputError(
            f"Expected at least two words, and `top` and `cache_size` of at least 1, but got {n_words} of {len(scores.concepts)} "
            f"words, {top} and {cache_size}."
        )
