from __future__ import annotations

import dataclasses
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from embedded_world import recorded_world, summary_of, world_encoder, world_truth
from helpers import PixelEncoder, activations_of
from torch.nn import functional as F

from neuroprobe.concepts import ConceptGroup, ConceptScores, Vocabulary
from neuroprobe.exceptions import InputError, UnknownNameError
from neuroprobe.labeling import (
    DEFAULT_SIMILARITY,
    PairReport,
    Scorer,
    cos_similarity,
    dissect,
    dissect_pairs,
    get_similarity,
    list_similarities,
    soft_wpmi,
)
from neuroprobe.labeling.pairs import PairVectors
from neuroprobe.recording import Activations
from neuroprobe.world import ATTRIBUTES

N, D = 50, 12
WORDS = ["red", "blue", "striped", "NA", "hot dog", "{a}"]


class LetterEncoder(PixelEncoder):
    """Counts what it was asked."""

    fingerprint = "letters"

    def __init__(self) -> None:
        super().__init__(D)
        self.asked: list[str] = []

    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        self.asked += texts
        return super().encode_texts(texts)


class OtherEncoder(LetterEncoder):
    fingerprint = "other letters"


def scores_for(vocabulary: Vocabulary, n: int = N) -> ConceptScores:
    texts = LetterEncoder().encode_texts([concept.prompts[0] for concept in vocabulary.concepts])
    vectors = F.normalize(torch.randn(n, D, generator=torch.Generator().manual_seed(1)), dim=1)
    ids = tuple(f"image {i}" for i in range(n))
    return ConceptScores(vectors, texts, vocabulary, ids, 0.05, {"images": "these images", "encoder": "letters"})


SCORES = scores_for(Vocabulary.from_words(WORDS))


def random_activations() -> Activations:
    generator = np.random.default_rng(3)
    return activations_of({"a": generator.normal(size=(N, 5)), "b.0": generator.normal(size=(N, 3))})


def pairs(activations: Activations | None = None, scores: ConceptScores = SCORES, **arguments) -> PairReport:
    arguments = {"encoder": LetterEncoder(), "similarity": "cos_similarity", **arguments}
    return dissect_pairs(random_activations() if activations is None else activations, scores, **arguments)


def matrix_of(texts: list[str], scores: ConceptScores = SCORES) -> np.ndarray:
    return (scores.image_vectors @ LetterEncoder().encode_texts(texts).T).numpy()


def weighted(activations: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Images weighted by the fourth power of what a unit is above its mean; standardized scores."""
    weights = (activations - activations.mean(dim=0)).clamp_min(0) ** 4
    return (weights / weights.sum(dim=0).clamp_min(1e-12)).T @ ((scores - scores.mean(dim=0)) / scores.std(dim=0))


# --- against a slow loop


@pytest.mark.parametrize(("name", "function"), [("cos_similarity", cos_similarity), ("soft_wpmi", soft_wpmi)])
def test_every_unit_against_a_slow_loop(name: str, function) -> None:
    """The best three of a unit's words, their three pairs, and the whole layer's prior over them."""
    activations = random_activations()
    table = pairs(activations, similarity=name, n_words=3, top=3).table
    for layer in activations.layers:
        rows = table[table["layer"] == layer].reset_index(drop=True)
        values = activations[layer]
        alike = function(values, SCORES.similarities().numpy())
        for unit, row in rows.iterrows():
            words = [WORDS[i] for i in sorted(np.argsort(-alike[unit], kind="stable")[:3])]
            texts = [f"{a} {b}" for a, b in combinations(words, 2)]
            found = function(values, matrix_of([*words, *texts]))[unit]
            best = np.argsort(-found[3:], kind="stable")
            assert [row["concept"], row["concept_2"], row["concept_3"]] == [texts[i] for i in best]
            np.testing.assert_allclose([row["score"], row["score_2"], row["score_3"]], found[3:][best], rtol=1e-3, atol=1e-4)
            assert row["word"] == words[int(np.argmax(found[:3]))]
            assert row["gain"] == pytest.approx(row["score"] - row["word_score"])
            assert f"{row['first']} {row['second']}" == row["concept"]


@pytest.mark.parametrize("name", list_similarities())
def test_with_every_word_it_is_the_function_over_words_and_pairs(name: str) -> None:
    activations = random_activations()
    texts = [*WORDS, *(f"{a} {b}" for a, b in combinations(WORDS, 2))]
    parameters = {"decorrelate": False} if name.startswith("peak") else {}
    table = pairs(activations, similarity=name, parameters=parameters, top=1).table
    for layer in activations.layers:
        found = get_similarity(name)[1](activations[layer], matrix_of(texts))
        rows = table[table["layer"] == layer]
        np.testing.assert_allclose(rows["score"], found[:, len(WORDS) :].max(axis=1), rtol=1e-3, atol=2e-4)
        np.testing.assert_allclose(rows["word_score"], found[:, : len(WORDS)].max(axis=1), rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("name", ["soft_wpmi", "peak_mean"])
def test_a_summary_gives_the_same(name: str) -> None:
    activations, parameters = random_activations(), {"k": 9} if name == "soft_wpmi" else {}
    whole = pairs(activations, similarity=name, parameters=parameters).table
    found = pairs(summary_of(activations, k=N), similarity=name, parameters=parameters).table
    pd.testing.assert_frame_equal(found, whole, rtol=1e-3, atol=1e-4)


def test_a_planted_pair_is_found() -> None:
    values = np.stack([matrix_of([text])[:, 0] for text in ("red striped", "blue hot dog", "NA {a}")], axis=1)
    report = pairs(activations_of({"a": values}))
    assert [report.label("a", unit) for unit in range(3)] == ["red striped", "blue hot dog", "NA {a}"]
    assert report.table["score"].tolist() == pytest.approx([1, 1, 1])
    assert (report.table["gain"] > 0.1).all()


# --- what does not change a label


@pytest.mark.parametrize("similarity", [*list_similarities(), weighted])
def test_units_only_choose_rows(similarity) -> None:
    whole = pairs(similarity=similarity, n_words=3).table
    part = pairs(similarity=similarity, n_words=3, units={"a": [4, 1], "b.0": []}).table
    expected = whole.iloc[[4, 1]].reset_index(drop=True)
    pd.testing.assert_frame_equal(part, expected, rtol=1e-5, atol=1e-6)


def test_blocks_of_pairs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pairs().table
    monkeypatch.setattr(Scorer, "blocks", lambda self, _: self._split(slice(None), 4))
    pd.testing.assert_frame_equal(pairs().table, whole, rtol=1e-5, atol=1e-6)


def test_a_small_cache_changes_nothing_but_what_is_embedded() -> None:
    large, small = pairs(n_words=4), pairs(n_words=4, cache_size=1)
    pd.testing.assert_frame_equal(large.table, small.table, rtol=1e-5, atol=1e-6)
    assert small.metadata["n_embedded"] > large.metadata["n_embedded"]


def test_every_pair_is_embedded_once() -> None:
    encoder = LetterEncoder()
    pairs(encoder=encoder)  # all six words for every unit
    assert sorted(encoder.asked) == sorted(f"{a} {b}" for a, b in combinations(WORDS, 2))


# --- texts


def test_pairs_go_into_the_templates_of_the_first_words_group() -> None:
    groups = [
        ConceptGroup("color", ("red", "blue"), templates=("a {} thing", "{}")),
        ConceptGroup("pattern", ("dotted",), templates=("P {}",)),
    ]
    vectors = PairVectors(scores_for(Vocabulary(groups)), encoder := LetterEncoder(), templates=("{a} {b}", "{b}, {a}"), size=9)
    found = vectors([(0, 2)])
    texts = ["a red dotted thing", "red dotted", "a dotted, red thing", "dotted, red"]
    assert encoder.asked == texts
    np.testing.assert_allclose(found, F.normalize(LetterEncoder().encode_texts(texts).mean(dim=0, keepdim=True), dim=1), atol=1e-6)
    assert vectors.name((0, 2)) == "red dotted"


def test_the_pairs_used_last_are_kept() -> None:
    vectors = PairVectors(SCORES, encoder := LetterEncoder(), templates=("{a} {b}",), size=2)
    vectors([(0, 1), (0, 2)])
    vectors([(0, 1)])
    vectors([(1, 2)])  # (0, 2) goes
    encoder.asked.clear()
    first = vectors([(0, 1), (1, 2)])
    assert encoder.asked == []
    np.testing.assert_array_equal(vectors([(0, 2), (0, 1)])[1], first[0])
    assert encoder.asked == ["red striped"]


# --- reports and refusals


def test_dead_units_have_a_status_and_nothing_else() -> None:
    values = random_activations()["a"].copy()
    values[:, 1] = 2
    row = pairs(activations_of({"a": values})).table.loc[1]
    assert row["status"] == "never varies"
    assert set(row[["concept", "first", "second", "word", "concept_2"]]) == {""}
    assert row[["score", "word_score", "gain", "score_2"]].isna().all()


def test_a_layer_of_dead_units_alone(tmp_path) -> None:
    report = pairs(activations_of({"a": np.zeros((N, 2))}))
    report.save(tmp_path)
    assert PairReport.load(tmp_path).label("a", 1) == ""


def test_the_report_is_saved_and_read(tmp_path) -> None:
    report = pairs(top=2)
    assert all(path.is_file() for path in report.save(tmp_path))
    pd.testing.assert_frame_equal(PairReport.load(tmp_path).table, report.table)
    assert report.summary().startswith("8 of 8 units; for ")
    assert list(report.table)[-2:] == ["concept_2", "score_2"]
    with pytest.raises(InputError, match="a unit of this report, but got unit 9 of 'a'"):
        report.label("a", 9)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"encoder": OtherEncoder()}, InputError, "the encoder of the scores, whose fingerprint is letters, but got one with other"),
        ({"templates": "{a} {b}"}, InputError, "a list of templates, each with one {a} and one {b}"),
        ({"templates": ["{a}"]}, InputError, "each with one {a} and one {b}"),
        ({"n_words": 1}, InputError, "`n_words` to be a whole number of at least 2, but got 1"),
        ({"encoder": None}, InputError, "the image-text encoder of the scores, but got NoneType"),
        ({"scores": scores_for(Vocabulary.from_words(["red"]))}, InputError, "at least two words"),
        ({"top": 0}, InputError, "`top` to be a whole number of at least 1, but got 0"),
        ({"cache_size": 0}, InputError, "`cache_size` to be a whole number of at least 1, but got 0"),
        ({"layers": ["c"]}, UnknownNameError, "a recorded layer, but got 'c'"),
        ({"similarity": "cosine"}, UnknownNameError, "a similarity function, but got 'cosine'"),
        ({"scores": scores_for(Vocabulary.from_words(WORDS), n=N - 1)}, InputError, "of the same images in the same order"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pairs(**change)


# --- known truth


@pytest.mark.parametrize("similarity", [DEFAULT_SIMILARITY, pytest.param("peak_mean", marks=pytest.mark.slow), weighted])
def test_the_worlds_combinations_are_found(similarity) -> None:
    """Units for objects that are both."""
    world, scores = world_truth(), recorded_world()[1]
    planted = [("red", "striped"), ("blue", "dotted"), ("star", "green"), ("heart", "checkered"), ("male", "purple"), ("square", "orange")]
    objects = [[o.attributes for o in world.scene(i).objects] for i in range(len(world))]
    values = np.array([[any(a in seen and b in seen for seen in of_image) for a, b in planted] for of_image in objects], dtype=float)
    values += 0.2 * np.random.default_rng(0).normal(size=values.shape)
    activations = Activations({"planted": values.astype(np.float32)}, scores.ids, {"images": scores.metadata["images"]})
    table = dissect_pairs(activations, scores, encoder=world_encoder(), similarity=similarity).table
    found = [{row.first, row.second} == set(pair) for row, pair in zip(table.itertuples(), planted, strict=True)]
    assert found[0]
    assert sum(found) >= 5
    assert (table["gain"] > 0).all()
    assert set(table["word"]) <= set(ATTRIBUTES)


class FlatPairs(LetterEncoder):
    """Every pair of words is as like one image as another."""

    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        return torch.eye(D)[[-1] * len(texts)]


def test_pairs_that_say_nothing_leave_the_best_word_the_score_it_has_in_the_vocabulary() -> None:
    # a relative prior is scaled by every unit's best word of all, not of the few words of one unit
    images = SCORES.image_vectors.clone()
    images[:, -1] = 0
    scores = dataclasses.replace(SCORES, image_vectors=images)
    words = dissect(random_activations(), scores, similarity="peak_correlation", n_null=0, n_bootstrap=0).table
    table = pairs(scores=scores, encoder=FlatPairs(), similarity="peak_correlation", n_words=2).table
    assert table["word"].tolist() == words["candidate"].tolist()
    np.testing.assert_allclose(table["word_score"], words["score"], rtol=1e-4)
