from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from helpers import scores_of

from neuroprobe import GivenLabels
from neuroprobe.concepts import ConceptGroup, Vocabulary
from neuroprobe.exceptions import InputError, UnknownNameError
from neuroprobe.labeling._concept_values import ConceptValues

WORDS = ["red", "blue", "big"]
ROWS = np.arange(20)


def given(values) -> object:
    ids = [f"image {i}" for i in range(len(values))]
    return GivenLabels(np.asarray(values), ids=ids, concepts=WORDS).score_like(scores_of(len(values), WORDS))


def test_presence_is_a_sigmoid_of_standard_deviations_above_the_mean() -> None:
    scores = scores_of(30, WORDS)
    cosines = scores.similarities().double().numpy()
    found = ConceptValues.learned(scores, ROWS).of(scores)
    for row in (0, 25):
        for column in range(3):
            learned = cosines[:20, column]  # the other images have no part in the scale
            above = (cosines[row, column] - learned.mean()) / learned.std()
            assert found[row, column] == pytest.approx(1 / (1 + math.exp(-2 * (above - 1.5))), abs=1e-5)


def test_a_similarity_that_never_varies_is_a_constant() -> None:
    scores = dataclasses.replace(scores_of(20, WORDS), image_vectors=torch.ones(20, 12) / math.sqrt(12))
    found = ConceptValues.learned(scores, ROWS).of(scores)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, 1 / (1 + math.exp(3)), atol=0.01)


def test_similarities_likelihoods_and_labels_are_as_they_are() -> None:
    scores = scores_of(20, WORDS)
    np.testing.assert_allclose(ConceptValues.learned(scores, ROWS, "similarity").of(scores), scores.similarities(), atol=1e-6)
    groups = Vocabulary([ConceptGroup("size", ("big",)), ConceptGroup("color", ("red", "blue"))])
    grouped = dataclasses.replace(scores, vocabulary=groups)
    found = ConceptValues.learned(grouped, ROWS, "likelihood").of(grouped)
    np.testing.assert_allclose(found[:, :1], 1)
    np.testing.assert_allclose(found[:, 1:], grouped.likelihoods("color"), atol=1e-6)
    table = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    labels = given(table)
    assert ConceptValues.learned(labels, ROWS).kind == "labels"
    np.testing.assert_allclose(ConceptValues.learned(labels, ROWS).of(labels), table)


def test_what_was_written_says_the_same_of_other_images_in_another_order_of_concepts() -> None:
    scores = scores_of(20, WORDS)
    values = ConceptValues.learned(scores, ROWS)
    read = ConceptValues.from_json(json.loads(json.dumps(values.to_json(["big", "red"]))))
    others = dataclasses.replace(
        scores_of(8, WORDS, seed=5), vocabulary=Vocabulary.from_words(WORDS[::-1]), text_vectors=scores.text_vectors.flip(0)
    )
    same_order = dataclasses.replace(others, vocabulary=scores.vocabulary, text_vectors=scores.text_vectors)
    np.testing.assert_allclose(read.of(others), values.of(same_order)[:, [2, 0]], atol=1e-6)


def test_kinds_that_the_scores_do_not_have_are_refused() -> None:
    scores, labels = scores_of(20, WORDS), given(np.eye(20, 3))
    with pytest.raises(UnknownNameError, match="Did you mean 'presence'"):
        ConceptValues.learned(scores, ROWS, "presense")
    with pytest.raises(InputError, match="that scores of an encoder have, but got 'labels'"):
        ConceptValues.learned(scores, ROWS, "labels")
    with pytest.raises(InputError, match="that given labels have, but got 'presence'"):
        ConceptValues.learned(labels, ROWS, "presence")


def test_scores_that_are_not_finite_are_refused() -> None:
    scores = scores_of(20, WORDS)
    scores.image_vectors[3, 0] = torch.nan
    with pytest.raises(InputError, match="Expected finite concept scores"):
        ConceptValues.learned(scores, ROWS)


def test_scores_of_something_else_are_refused() -> None:
    scores = scores_of(20, WORDS)
    values = ConceptValues.learned(scores, ROWS)
    with pytest.raises(InputError, match="Expected scores of the encoder None, but got some of other"):
        values.of(dataclasses.replace(scores, metadata={"encoder": "other"}))
    with pytest.raises(InputError, match="but 'big' is missing"):
        values.of(scores_of(20, WORDS[:2]))
