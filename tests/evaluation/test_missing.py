from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import activations_of, scores_of
from judged_world import HEAD, TRUTH, encoder, recorded, scored, shown

from neuroprobe import dissect
from neuroprobe.concepts import ConceptGroup, ConceptScores, Vocabulary
from neuroprobe.evaluation import MissingConceptReport, dissect_without
from neuroprobe.evaluation.missing import _without_concept, _without_images
from neuroprobe.exceptions import InputError, UnknownNameError

N = 80
WORDS = ["red", "blue", "star", "ring", "none"]
SCORES = scores_of(N, WORDS)
PLANTED = activations_of({"fc": SCORES.similarities().numpy() + 0.01 * np.random.default_rng(0).normal(size=(N, 5))})
SHOWN = {word: column > 0.3 for word, column in zip(WORDS, SCORES.similarities().numpy().T, strict=True)}
COSINE = {"similarity": "cos_similarity", "n_bootstrap": 0}


def test_fewer_images_are_other_images() -> None:
    kept = np.arange(N) % 3 > 0
    activations, scores = _without_images(PLANTED, SCORES, kept)
    assert activations.ids == scores.ids == tuple(np.array(PLANTED.ids)[kept])
    np.testing.assert_array_equal(activations["fc"], PLANTED["fc"][kept])
    assert torch.equal(scores.image_vectors, SCORES.image_vectors[torch.tensor(kept)])
    assert activations.metadata["images"] == scores.metadata["images"] != PLANTED.metadata["images"]
    dissect(activations, scores)  # they still fit each other


def grouped() -> ConceptScores:
    groups = [
        ConceptGroup("color", ("red", "blue"), none="none"),
        ConceptGroup("shape", ("star",), none="none"),
        ConceptGroup("rest", ("x", "y")),
    ]
    vocabulary = Vocabulary(groups)
    vectors = torch.eye(len(vocabulary))
    return ConceptScores(vectors[:4], vectors, vocabulary, tuple("abcd"), 0.1, {"images": "i", "vocabulary": vocabulary.fingerprint})


@pytest.mark.parametrize(("concept", "left"), [("red", [1, 2, 3, 4, 5, 6]), ("star", [0, 1, 2, 5, 6]), ("y", [0, 1, 2, 3, 4, 5])])
def test_a_concept_goes_with_its_vector_and_an_empty_group_with_its_none(concept: str, left: list[int]) -> None:
    whole = grouped()
    scores = _without_concept(whole, concept)
    assert scores.concepts == tuple(whole.concepts[i] for i in left)
    assert torch.equal(scores.text_vectors, whole.text_vectors[left])
    assert scores.metadata["vocabulary"] == scores.vocabulary.fingerprint != whole.metadata["vocabulary"]
    assert concept not in scores.vocabulary.names
    assert concept in whole.vocabulary.names


def test_another_groups_word_for_none_of_these_stays() -> None:
    vocabulary, vectors = Vocabulary([ConceptGroup("color", ("red", "blue")), ConceptGroup("rose", ("white",), none="red")]), torch.eye(4)
    scores = _without_concept(ConceptScores(vectors, vectors, vocabulary, tuple("abcd"), 0.1, {"images": "i"}), "red")
    assert scores.vocabulary.names == ("blue", "white", "red")
    assert torch.equal(scores.text_vectors, vectors[1:])


def test_the_last_concept_stays() -> None:
    with pytest.raises(InputError, match="nothing left"):
        _without_concept(scores_of(4, ["red"]), "red")


def test_what_is_reported_is_what_dissect_finds() -> None:
    report = dissect_without(PLANTED, SCORES, ["blue", "none"], given_labels=SHOWN, dropped=["images", "word", "both"], options=COSINE)
    table = report.table
    assert table[["concept", "dropped", "unit"]].values.tolist() == [
        [c, way, u] for c, u in (("blue", 1), ("none", 4)) for way in ("images", "word", "both")
    ]
    assert table["before"].tolist() == ["blue"] * 3 + ["none"] * 3
    for row in table.itertuples():
        kept = np.ones(N, bool) if row.dropped == "word" else ~SHOWN[row.concept]
        activations, scores = _without_images(PLANTED, SCORES, kept) if row.dropped != "word" else (PLANTED, SCORES)
        rest = dissect(activations, _without_concept(scores, row.concept) if row.dropped != "images" else scores, **COSINE)
        assert row.after == rest.label("fc", row.unit)
        assert row.n_images == kept.sum()
        found = rest.table[rest.table["unit"] == row.unit].iloc[0]
        assert row.score_after == found["score"]
        assert row.status_after == found["status"]
    assert (table.loc[table["dropped"] == "word", "after"] != table.loc[table["dropped"] == "word", "concept"]).all()
    assert report.value("named_after_the_concept, word dropped") == 0


def test_whose_units_is_the_truth_if_it_is_given() -> None:
    report = dissect_without(
        PLANTED, SCORES, ["blue", "ring"], truth={"fc": ["blue", "blue", "", None, "star"]}, dropped=["word"], options=COSINE
    )
    assert report.table[["concept", "unit", "before"]].values.tolist() == [["blue", 0, "red"], ["blue", 1, "blue"]]
    assert report.metadata["without_units"] == ["ring"]
    assert math.isnan(report.value("cosine, word dropped"))


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"concepts": []}, InputError, "list of concepts"),
        ({"concepts": "red"}, InputError, "list of concepts"),
        ({"concepts": ["red", "red"]}, InputError, "each once"),
        ({"concepts": ["rad"]}, UnknownNameError, "Did you mean 'red'"),
        ({"dropped": []}, InputError, "dropped"),
        ({"dropped": ["everything"]}, InputError, "dropped"),
        ({"given_labels": None}, InputError, "which images show"),
        ({"given_labels": {"blue": np.zeros(N, bool)}}, UnknownNameError, "does not say"),
        ({"given_labels": {"red": np.ones(N, bool)}}, InputError, "at least two images"),
        ({"given_labels": {"red": np.arange(N) > 0}}, InputError, "at least two images .*, but there are 1"),
        ({"truth": {("fc", 0): "star"}}, InputError, "there are none"),
        ({"level": 0}, InputError, "level"),
    ],
)
def test_what_cannot_be_asked_is_refused(settings: dict, error: type[Exception], text: str) -> None:
    asked = {"concepts": ["red"], "given_labels": SHOWN, **settings}
    with pytest.raises(error, match=text):
        dissect_without(PLANTED, SCORES, asked.pop("concepts"), **asked)


def test_units_of_the_world_without_their_concept(tmp_path: Path) -> None:
    concepts = ["red", "star", "tiled"]
    report = dissect_without(
        recorded(),
        scored(),
        concepts,
        given_labels=shown(),
        truth=TRUTH,
        encoder=encoder(),
        dropped=["images", "word"],
        options={"layers": [HEAD], "n_bootstrap": 0},
    )
    assert len(report.table) == 6
    assert report.value("named_before, word dropped") == 1
    assert (
        report.table["n_images"] == [300 - shown()[c].sum() if way == "images" else 300 for c in concepts for way in ("images", "word")]
    ).all()
    word = report.table[report.table["dropped"] == "word"]
    assert (word["after"] != word["concept"]).all()
    assert (word["score_after"] < word["score_before"]).all()
    assert not (word["cosine"] > 0.9).any()
    assert (report.table["candidate_before"] == report.table["concept"]).all()
    report.save(tmp_path)
    pd.testing.assert_frame_equal(MissingConceptReport.load(tmp_path).table, report.table)
