"""Correlations and cosines."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from similarities import N, by_pair, centered, layer, random_inputs, scorer_of, scores, slow_cosine

from neuroprobe.labeling import cos_similarity, cos_similarity_cubed, pearson


def test_cosine_is_the_plain_formula() -> None:
    activations, scores = random_inputs()
    np.testing.assert_allclose(cos_similarity(activations, scores), by_pair(slow_cosine, activations, scores), rtol=1e-4, atol=1e-6)


def test_cosine_worked_by_hand() -> None:
    # |(3, 4)| = |(4, 3)| = 5 and their product is 24; (0, 2) against them has 4/5 and 3/5
    found = cos_similarity(np.array([[3.0, 0.0], [4.0, 2.0]]), np.array([[4.0, -3.0], [3.0, -4.0]]))
    np.testing.assert_allclose(found, [[24 / 25, -1], [3 / 5, -4 / 5]], rtol=1e-6)


def test_cosine_centers_neither_side() -> None:
    # after centering both columns would be zero
    assert cos_similarity(np.ones((4, 1)), np.ones((4, 1))) == pytest.approx(1)


def test_pearson_is_the_plain_formula() -> None:
    inputs = random_inputs()
    expected = by_pair(lambda x, y: slow_cosine(centered(x), centered(y)), *inputs)
    np.testing.assert_allclose(pearson(*inputs), expected, atol=1e-6)
    np.testing.assert_allclose(pearson(*inputs)[0, 0], np.corrcoef(inputs[0][:, 0], inputs[1][:, 0])[0, 1], atol=1e-6)


def test_cubed_cosine_is_the_plain_formula() -> None:
    inputs = random_inputs()
    expected = by_pair(lambda x, y: slow_cosine([v**3 for v in centered(x)], [v**3 for v in centered(y)]), *inputs)
    np.testing.assert_allclose(cos_similarity_cubed(*inputs, min_norm=0), expected, atol=1e-5)


def test_pearson_worked_by_hand() -> None:
    # (1, 2, 6) - 3 = (-2, -1, 3); (0, 0, 3) - 1 = (-1, -1, 2): 9 / sqrt(14 * 6)
    found = pearson(np.array([[1.0], [2.0], [6.0]]), np.array([[0.0], [0.0], [3.0]]))
    np.testing.assert_allclose(found, 9 / math.sqrt(84), rtol=1e-6)


def test_cubed_cosine_worked_by_hand() -> None:
    # (-2, -1, 3)^3 = (-8, -1, 27), (-1, -1, 2)^3 = (-1, -1, 8): 225 / sqrt(794 * 66)
    found = cos_similarity_cubed(np.array([[1.0], [2.0], [6.0]]), np.array([[0.0], [0.0], [3.0]]))
    np.testing.assert_allclose(found, 225 / math.sqrt(794 * 66), rtol=1e-6)


def test_short_vectors_of_cubes_are_divided_by_the_least_norm() -> None:
    activations, scores = np.array([[0.0], [0.02]]), np.array([[0.0], [2.0]])  # cubes (-1e-6, 1e-6) and (-1, 1)
    np.testing.assert_allclose(cos_similarity_cubed(activations, scores), 1e-6 * math.sqrt(2) / 1e-3, rtol=1e-4)
    np.testing.assert_allclose(cos_similarity_cubed(activations, scores, min_norm=0), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("function", "constants"),  # whose means are rounded
    [(pearson, (0.1, 1 / 3)), (lambda a, s: cos_similarity_cubed(a, s, min_norm=0), (0.1, 1 / 3)), (cos_similarity, (0, 0))],
)
def test_what_never_varies_correlates_with_nothing(function, constants: tuple[float, float]) -> None:
    activations, scores = random_inputs()
    activations[:, 2], scores[:, 5] = constants
    found = function(activations, scores)
    assert not found[2].any()
    assert not found[:, 5].any()
    assert np.abs(np.delete(np.delete(found, 2, 0), 5, 1)).min() > 0


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_pearson_does_not_depend_on_the_scale(scale: float) -> None:
    activations, scores = random_inputs()
    np.testing.assert_allclose(pearson(activations * np.float32(scale), scores), pearson(activations, scores), atol=1e-6)


@pytest.mark.parametrize("d", [13, 90])
@pytest.mark.parametrize("name", ["peak_correlation", "peak_mean", "pearson"])
def test_a_concept_that_is_the_same_on_every_image_scores_zero(name: str, d: int) -> None:
    given = scores(d=d)
    images, texts = given.image_vectors.clone(), given.text_vectors.clone()
    images[:, 0] = 0.25  # a direction in which the images do not differ
    texts[40] = torch.eye(d)[0]
    made = scorer_of(name, dataclasses.replace(given, image_vectors=images, text_vectors=texts))
    raw = made.block(made.units(layer()), slice(None))
    assert (raw[:, 40] == 0).all()
    assert (raw[:, :40] != 0).all()


def test_all_images_the_same() -> None:
    given = dataclasses.replace(scores(), image_vectors=torch.ones(N, 12) / math.sqrt(12))
    for made in (scorer_of("pearson", given), scorer_of("peak_correlation", given, decorrelate=False)):
        assert float(made.block(made.units(layer()), slice(None)).abs().max()) == 0


def test_concentration_is_one_over_the_images_that_share_the_weight() -> None:
    values = torch.zeros(N, 3)
    values[5, 0], values[:2, 1] = 1, 1
    values[:, 2] = torch.tensor([1.0, -1]).repeat(N // 2)
    scorer = scorer_of("cos_similarity", scores())
    found = scorer.concentration(scorer.units(values))
    torch.testing.assert_close(found, torch.tensor([1, 1 / 2, 1 / N]))
