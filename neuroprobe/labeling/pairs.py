"""Compositional labels without labeled images: pairs of a unit's best words, scored as texts of their own.

As in CLIP-Dissect: the best words of a unit are found first; every two of them are then joined to one text ("red striped"),
embedded by the encoder, and scored by the same similarity function.

References
----------
Oikarinen and Weng, "CLIP-Dissect: Automatic Description of Neuron Representations in Deep Vision Networks", ICLR 2023,
arXiv 2204.10965, appendix on compositional concepts (text concatenations of two of the 100 best words of a unit).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch.nn import functional as F

from neuroprobe._core import Floats, check_count, check_counts
from neuroprobe.concepts import ConceptScores, ImageTextEncoder, Vocabulary, check_encoder, check_kinds
from neuroprobe.exceptions import InputError
from neuroprobe.labeling._figures import plot_two_scores
from neuroprobe.labeling._layer import LayerUnits, Units, layer_units
from neuroprobe.labeling.dissection import dissect, on_device, similarities_by
from neuroprobe.labeling.similarity._registry import DEFAULT_SIMILARITY, SimilarityOrScorer, find_scorer
from neuroprobe.labeling.similarity._scorer import Scorer, some_units
from neuroprobe.recording import Recorded, check_layers
from neuroprobe.reports import UnitReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from neuroprobe.recording import Activations

_Pair: TypeAlias = tuple[int, int]


class PairReport(UnitReport):
    """A pair of words for every unit, as `neuroprobe.dissect_pairs` finds it.

    Columns: layer, unit, concept (the best pair's text; "" for a unit without one), score, first and second (its
    words), word and word_score (the best single word, scored beside the pairs), gain (score - word_score), status
    ("paired", or why not), and the next best pairs as concept_2, score_2, ... A pair is the best of some 5,000, so a
    small gain is no evidence that a unit responds to the combination.
    """

    name = "pairs"
    title = "Which pairs of words fit the units"
    required = ("layer", "unit", "concept", "score", "first", "second", "word", "word_score", "gain", "status")
    text_columns = ("layer", "concept", "first", "second", "word", "status")

    def summary(self) -> str:
        paired = self._table[self._table["status"] == "paired"]
        better = int((paired["gain"] > 0).sum())
        return f"{len(paired)} of {len(self._table)} units; for {better} the best pair scores higher than the best word"

    def plot(self, ax: Axes | None = None) -> Axes:
        """The score of every unit's best pair against that of its best word."""
        paired, names = self._table[self._table["status"] == "paired"], ("score of the best word", "score of the best pair")
        return plot_two_scores(paired, "word_score", "score", names=names, title=f"Pairs of {len(paired)} units", ax=ax)


def dissect_pairs(
    activations: Recorded,
    scores: ConceptScores,
    *,
    encoder: ImageTextEncoder,
    similarity: SimilarityOrScorer = DEFAULT_SIMILARITY,
    parameters: Mapping[str, Any] | None = None,
    layers: Sequence[str] | None = None,
    units: Units | None = None,
    n_words: int = 100,
    templates: Sequence[str] = ("{a} {b}",),
    top: int = 5,
    cache_size: int = 100_000,
    device: str | torch.device = "auto",
) -> PairReport:
    """Label every unit with the pair of words whose scores are most like its activations.

    A unit's candidates are its `n_words` best words (by `dissect`) and all pairs of them, 4,950 of 100. They are
    scored as though they were the vocabulary; a prior over units is that of the whole layer, and one relative to the
    units' best scores takes these from the vocabulary and the candidates. So what else is asked (`units`) never changes
    a label. The order of the two words is that of the vocabulary; their text goes into the prompt templates of the first
    word's group. There is no p-value: the pairs were chosen with the images on which they are scored.

    What takes long is the embedding of the pairs. Units share them: embeddings are kept, the `cache_size` used last.
    Units with the same best words are scored together, in blocks of pairs from the embeddings; a function of one's own
    sees the whole layer and all candidates of a unit at once, [n_images, 5,050].

    Parameters
    ----------
    activations : Activations or ActivationSummary
        As in `neuroprobe.dissect`.
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
    device : str or torch.device, default "auto"
        Where scores are computed.

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
    name, make = find_scorer(similarity)
    check_kinds(activations, scores)
    _check(scores, encoder, templates, n_words=n_words, top=top, cache_size=cache_size)
    chosen = check_layers(activations, layers)
    parameters = dict(parameters or {})
    words = dissect(
        activations, scores, similarity=similarity, parameters=parameters, layers=chosen, units=units,
        top=n_words, n_null=0, n_bootstrap=0, device=device,
    ).table  # fmt: skip
    vectors = PairVectors(scores, encoder, templates=tuple(templates), size=cache_size)
    tables = []
    for layer in chosen:
        found = layer_units(activations, layer, scores.ids)
        scoring: Callable[..., Floats]
        if make is None:  # a function of the user's sees the whole layer and all candidates; `dissect` has refused summaries for it
            alike_by = partial(similarities_by, similarity, parameters, cast("Activations", activations)[layer])
            scoring = partial(_by_function, alike_by, scores, vectors)
        else:
            scoring = _LayerScoring(found, on_device(scores, device), vectors, partial(make, **parameters))
        tables.append(_layer_table(words[words["layer"] == layer], found.varies, scoring, vectors, top))
    metadata = {
        "similarity": name,
        "parameters": parameters,
        "n_words": min(n_words, len(scores.concepts)),
        "templates": list(templates),
        "n_embedded": vectors.n_embedded,
        "n_images": len(scores.ids),
        "activations": dict(activations.metadata),
        "concept_scores": dict(scores.metadata),
    }
    return PairReport(pd.concat([rows for rows in tables if len(rows)] or tables[:1], ignore_index=True), metadata)


class PairVectors:
    """Embeddings of pairs of the words of the scores' vocabulary; the `size` ones used last are kept."""

    def __init__(self, scores: ConceptScores, encoder: ImageTextEncoder, *, templates: tuple[str, ...], size: int) -> None:
        self._encoder, self._templates, self._size = encoder, templates, size
        self._kept: OrderedDict[_Pair, torch.Tensor] = OrderedDict()
        group_templates = {group.name: group.templates for group in scores.vocabulary.groups}
        self._outer = [group_templates[concept.group] for concept in scores.vocabulary.concepts]
        self.words = scores.concepts
        self.number = {word: i for i, word in enumerate(scores.concepts)}
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
        words = dict(zip(("{a}", "{b}"), (self.words[i] for i in pair), strict=True))
        return [re.sub(r"\{[ab]\}", lambda found: words[found.group()], template) for template in self._templates]


class _LayerScoring:
    """Scores of units of one layer and their candidates: some words, then all pairs of them."""

    def __init__(
        self, units: LayerUnits, scores: ConceptScores, vectors: PairVectors, make: Callable[[ConceptScores], Scorer[Any]]
    ) -> None:
        self._units, self._scores, self._vectors, self._make = units, scores, vectors, make
        scorer = make(scores)
        # how a relative prior is scaled: the best of the whole vocabulary, not of one unit's candidates alone
        self._scales = scorer.scales(units.parts(scorer))

    def __call__(self, units: list[int], words: list[int]) -> Floats:
        """Scores of units that share their words, [n_units, n_words + n_pairs]."""
        scorer = self._make(_with_texts(self._scores, self._vectors, words))
        part = self._units.parts(scorer)
        if not scorer.prior_weight:
            part = some_units(part, units)
            return torch.cat([scorer.block(part, columns) for columns in scorer.blocks(len(units))], dim=1).double().cpu().numpy()
        scale = torch.maximum(self._scales, scorer.scales(part))
        own = scale[units] if len(scale) > 1 else scale
        found = []
        for columns in scorer.blocks(len(part[0])):
            scaled = scorer.block(part, columns) / scale  # [n_units of the layer, n_columns]
            found.append(own * (scaled[units] - scorer.prior(scaled)))
        return torch.cat(found, dim=1).double().cpu().numpy()


def _by_function(
    alike_by: Callable[..., torch.Tensor], scores: ConceptScores, vectors: PairVectors, units: list[int], words: list[int]
) -> Floats:
    return alike_by(_with_texts(scores, vectors, words))[units].double().numpy()


def _with_texts(scores: ConceptScores, vectors: PairVectors, words: list[int]) -> ConceptScores:
    """The scores of some words and all pairs of them."""
    pairs = list(combinations(words, 2))
    names = [*(f"{i}" for i in words), *(f"{i} {j}" for i, j in pairs)]
    texts = torch.cat([scores.text_vectors[words], vectors(pairs).to(scores.text_vectors.device)])
    return replace(scores, text_vectors=texts, vocabulary=Vocabulary.from_words(names))


def _layer_table(
    rows: pd.DataFrame, varies: npt.NDArray[np.bool_], scoring: Callable[..., Floats], vectors: PairVectors, top: int
) -> pd.DataFrame:
    """The report's rows for a layer, from those of `dissect`."""
    found: dict[int, dict[str, Any]] = {unit: {"status": "never varies"} for unit in rows["unit"]}
    for words, units in _sharing(rows[varies[rows["unit"].to_numpy()]], vectors.number).items():
        alike = scoring(units, list(words))
        found.update({unit: _row(one, list(words), vectors, top) for unit, one in zip(units, alike, strict=True)})
    columns = [*PairReport.required, *(column for pair in _ranked(top)[1:] for column in pair)]
    table = pd.DataFrame([found[unit] for unit in rows["unit"]]).reindex(columns=columns)
    texts = [column for column in table if PairReport._holds_text(str(column))]
    table[texts] = table[texts].astype(object).fillna("").astype(str)
    table["layer"], table["unit"] = rows["layer"].to_numpy(), rows["unit"].to_numpy()
    return table


def _sharing(rows: pd.DataFrame, number: Mapping[str, int]) -> dict[tuple[int, ...], list[int]]:
    """The best words, in the vocabulary's order, of every unit; units with the same ones together."""
    found: dict[tuple[int, ...], list[int]] = {}
    columns = ["candidate", *(column for column in rows if re.fullmatch(r"concept_\d+", str(column)))]
    for unit, *names in rows[["unit", *columns]].itertuples(index=False):
        found.setdefault(tuple(sorted(number[name] for name in names)), []).append(int(unit))
    return found


def _row(alike: Floats, words: list[int], vectors: PairVectors, top: int) -> dict[str, Any]:
    """A unit's row, from the scores of its words and of all pairs of them."""
    of_words, of_pairs = alike[: len(words)], alike[len(words) :]
    pairs = list(combinations(words, 2))
    word, best = int(np.argmax(of_words)), np.argsort(-of_pairs, kind="stable")[:top].tolist()
    first, second = pairs[best[0]]
    row: dict[str, Any] = {
        "first": vectors.words[first],
        "second": vectors.words[second],
        "word": vectors.words[words[word]],
        "word_score": of_words[word],
        "gain": of_pairs[best[0]] - of_words[word],
        "status": "paired",
    }
    for place, (concept, score) in zip(best, _ranked(top), strict=False):
        row[concept], row[score] = vectors.name(pairs[place]), of_pairs[place]
    return row


def _ranked(top: int) -> list[tuple[str, str]]:
    """The columns of the best pairs and their scores."""
    return [("concept", "score"), *((f"concept_{i}", f"score_{i}") for i in range(2, top + 1))]


def _check(scores: ConceptScores, encoder: ImageTextEncoder, templates: Sequence[str], *, n_words: int, top: int, cache_size: int) -> None:
    check_encoder(encoder, scores)
    if isinstance(templates, str) or not templates or any(t.count("{a}") != 1 or t.count("{b}") != 1 for t in templates):
        raise InputError(f"Expected a list of templates, each with one {{a}} and one {{b}}, but got {templates!r:.200}.")
    check_count("n_words", n_words, low=2)
    check_counts(top=top, cache_size=cache_size)
    if len(scores.concepts) < 2:
        raise InputError(f"Expected a vocabulary of at least two words to make pairs of, but got {len(scores.concepts)}.")
