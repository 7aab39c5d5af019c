"""Similarity functions against slow, plain reimplementations of their papers' formulas, and against cases worked by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from neuroprobe.labeling.similarity._ordering import highest_images, ranks_within
from neuroprobe.labeling.similarity.detection import auc, average_precision, images_with, mean_difference
from neuroprobe.labeling.similarity.linear import cos_similarity_cubed, pearson
from neuroprobe.labeling.similarity.wpmi import rank_reorder, soft_wpmi, wpmi


def random_inputs(n: int = 60, units: int = 7, concepts: int = 9, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    activations = generator.normal(size=(n, units)).astype(np.float32)
    return activations, generator.uniform(0.05, 0.4, size=(n, concepts)).astype(np.float32)


def tied_inputs(n: int = 60, *, share: float = 0.3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Activations of a few values only, and labels 0 and 1."""
    generator = np.random.default_rng(seed)
    activations = np.maximum(generator.integers(-3, 5, size=(n, 6)), 0).astype(np.float32)
    return activations, (generator.random((n, 5)) < share).astype(np.float32)


def by_pair(function, activations: np.ndarray, scores: np.ndarray) -> np.ndarray:
    units, concepts = activations.T.astype(np.float64), scores.T.astype(np.float64)
    return np.array([[function(list(unit), list(concept)) for concept in concepts] for unit in units])


# --- correlation and cubed cosine


def slow_cosine(x: list[float], y: list[float]) -> float:
    lengths = math.sqrt(sum(v * v for v in x)) * math.sqrt(sum(v * v for v in y))
    return sum(v * w for v, w in zip(x, y, strict=True)) / lengths


def centered(x: list[float]) -> list[float]:
    mean = sum(x) / len(x)
    return [v - mean for v in x]


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


@pytest.mark.parametrize("function", [pearson, lambda a, s: cos_similarity_cubed(a, s, min_norm=0)])
def test_what_never_varies_correlates_with_nothing(function) -> None:
    activations, scores = random_inputs()
    activations[:, 2], scores[:, 5] = 0.1, 1 / 3  # whose means are rounded
    found = function(activations, scores)
    assert not found[2].any()
    assert not found[:, 5].any()
    assert np.abs(np.delete(np.delete(found, 2, 0), 5, 1)).min() > 0


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_pearson_does_not_depend_on_the_scale(scale: float) -> None:
    activations, scores = random_inputs()
    np.testing.assert_allclose(pearson(activations * np.float32(scale), scores), pearson(activations, scores), atol=1e-6)


# --- WPMI


@pytest.mark.parametrize(
    ("k", "a", "lam", "min_prob"), [(28, 2.0, 0.6, 1e-7), (1, 10.0, 1.0, 1e-3), (60, 0.5, 2.0, 0.0), (99, 5.0, 1, 1e-7)]
)
def test_wpmi_is_the_papers_formula(k: int, a: float, lam: float, min_prob: float) -> None:
    activations, scores = random_inputs()
    expected = np.zeros((7, 9))
    for unit in range(7):
        for image in sorted(range(60), key=lambda i: -activations[i, unit])[:k]:
            weights = [math.exp(a * float(s)) for s in scores[image]]
            expected[unit] += [math.log(w / sum(weights) + min_prob) for w in weights]
    prior = np.array([math.log(sum(math.exp(v) for v in column) / 7) for column in expected.T])
    np.testing.assert_allclose(wpmi(activations, scores, k=k, a=a, min_prob=min_prob, prior=None), expected, rtol=1e-5)
    found = wpmi(activations, scores, k=k, a=a, lam=lam, min_prob=min_prob)
    np.testing.assert_allclose(found, expected - lam * prior, rtol=1e-4, atol=1e-4)


def test_wpmi_worked_by_hand() -> None:
    scores = np.array([[math.log(3), 0.0], [0.0, 0.0]])  # with a = 1: P = (3/4, 1/4) and (1/2, 1/2)
    activations = np.array([[1.0, -1.0], [0.0, 5.0]])
    found = wpmi(activations, scores, k=1, a=1, lam=0.5, min_prob=0)
    log_p = np.log([[3 / 4, 1 / 4], [1 / 2, 1 / 2]])
    np.testing.assert_allclose(found, log_p - 0.5 * np.log([5 / 8, 3 / 8]), rtol=1e-5)
    both = wpmi(activations, scores, k=2, a=1, min_prob=0, prior=None)
    np.testing.assert_allclose(both, np.log([[3 / 8, 1 / 8], [3 / 8, 1 / 8]]), rtol=1e-5)


@pytest.mark.parametrize("function", [wpmi, soft_wpmi])
def test_one_unit_alone_has_no_score_against_its_own_prior_and_has_one_without(function) -> None:
    activations, scores = random_inputs()
    np.testing.assert_allclose(function(activations[:, :1], scores, lam=1), 0, atol=1e-4)
    assert np.ptp(function(activations[:, :1], scores, prior=None)) > 0.1


# --- rank reorder


def slow_rank_reorder(x: list[float], scores: list[float], *, top: int, p: float, scale: float) -> float:
    """The published procedure with the mean of the random order's error over all orders, for few images."""
    best = sorted(range(len(x)), key=lambda i: -x[i])[:top]
    ascending = sorted(x[i] for i in best)
    by_score = sorted(best, key=lambda i: scores[i])
    error = sum(abs(x[image] - ascending[rank]) ** p for rank, image in enumerate(by_score)) / top
    orders = list(itertools.permutations(ascending))
    random_error = sum(abs(v - w) ** p for order in orders for v, w in zip(ascending, order, strict=True)) / top / len(orders)
    return -error / random_error / (sum(scores[i] for i in best) / top) ** scale


@pytest.mark.parametrize(("fraction", "p", "scale"), [(0.1, 3, 0.5), (0.08, 1, 0.0), (0.1, 2.5, 1.0)])
def test_rank_reorder_has_the_mean_over_all_orders_as_its_baseline(fraction: float, p: float, scale: float) -> None:
    activations, scores = random_inputs(units=3, concepts=4)
    expected = by_pair(lambda x, y: slow_rank_reorder(x, y, top=int(60 * fraction), p=p, scale=scale), activations, scores)
    found = rank_reorder(activations, scores, top_fraction=fraction, p=p, scale=scale)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_rank_reorder_worked_by_hand() -> None:
    # the two highest are images 1 (value 3) and 2 (value 1); the concept orders them the other way round: |3 - 1|^3 each
    activations = np.array([[0.0], [3.0], [1.0], [0.5]])
    scores = np.array([[0.9, 0.1], [0.1, 0.3], [0.4, 0.1], [0.9, 0.9]])
    # a random order is wrong on both with probability 1/2: baseline 4; means .25 and .2
    found = rank_reorder(activations, scores, top_fraction=0.5)
    np.testing.assert_allclose(found, [[-(8 / 4) / 0.5, 0]], rtol=1e-6, atol=0)


def test_rank_reorder_is_the_same_in_every_run_and_leaves_the_random_state() -> None:
    inputs = random_inputs(n=200)
    before = torch.get_rng_state()
    np.testing.assert_allclose(rank_reorder(*inputs), rank_reorder(*inputs), rtol=1e-5)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("factor", "shift"), [(1e-14, 0.0), (1e20, 0.0), (1.0, 5.0)])
def test_rank_reorder_sees_neither_scale_nor_shift_of_the_activations(factor: float, shift: float) -> None:
    activations, scores = random_inputs(n=200)
    moved = (activations * factor + shift).astype(np.float32)
    np.testing.assert_allclose(rank_reorder(moved, scores), rank_reorder(activations, scores), rtol=1e-3)


def test_a_unit_constant_at_its_top_counts_as_ordered_at_random() -> None:
    activations, scores = random_inputs(n=40)
    activations[:] = 7
    np.testing.assert_allclose(
        rank_reorder(activations, scores, top_fraction=0.1), -1 / np.sqrt(scores[:4].mean(axis=0))[None].repeat(7, 0), rtol=1e-5
    )


def test_concepts_without_positive_mean_score_have_finite_scores_in_rank_reorder() -> None:
    activations, scores = random_inputs(n=200)
    scores[:, 3] *= -1
    found = rank_reorder(activations, scores)
    assert np.isfinite(found).all()
    assert found.argmin(axis=1).tolist() == [3] * 7


# --- detection


def slow_auc(x: list[float], labels: list[float]) -> float:
    with_it, without = ([v for v, label in zip(x, labels, strict=True) if label == wanted] for wanted in (1, 0))
    return sum((v > w) + (v == w) / 2 for v in with_it for w in without) / len(with_it) / len(without)


def slow_average_precision(x: list[float], labels: list[float]) -> float:
    precisions = []
    for value, label in zip(x, labels, strict=True):
        if label:
            above = [one for v, one in zip(x, labels, strict=True) if v >= value]
            precisions.append(sum(above) / len(above))
    return sum(precisions) / len(precisions)


def slow_mean_difference(x: list[float], labels: list[float]) -> float:
    with_it, without = ([v for v, label in zip(x, labels, strict=True) if label == wanted] for wanted in (1, 0))
    deviation = math.sqrt(sum(v * v for v in centered(x)) / len(x))
    return (sum(with_it) / len(with_it) - sum(without) / len(without)) / deviation


DETECTION = [(auc, slow_auc), (average_precision, slow_average_precision), (mean_difference, slow_mean_difference)]


@pytest.mark.parametrize(("function", "slow"), DETECTION)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_labels_are_taken_as_they_are_with_ties_right(function, slow, share: float) -> None:
    activations, labels = tied_inputs(share=share)
    labels[3], labels[4] = 1, 0  # every concept is on an image, and not on another
    np.testing.assert_allclose(function(activations, labels), by_pair(slow, activations, labels), atol=2e-6)
    np.testing.assert_allclose(function(activations, labels.astype(bool)), function(activations, labels), atol=1e-6)


@pytest.mark.parametrize(("function", "slow"), DETECTION)
def test_of_scores_the_highest_share_has_the_concept(function, slow) -> None:
    activations, scores = random_inputs()
    labels = np.zeros_like(scores)
    for concept in range(9):
        labels[np.argsort(-scores[:, concept])[:6], concept] = 1
    np.testing.assert_allclose(function(activations, scores, share=0.1), by_pair(slow, activations, labels), atol=2e-6)


def test_auc_and_average_precision_are_those_of_scikit_learn() -> None:
    activations, labels = tied_inputs()
    for unit in range(6):
        for concept in range(5):
            pair = labels[:, concept], activations[:, unit]
            assert auc(activations, labels)[unit, concept] == pytest.approx(roc_auc_score(*pair), abs=1e-6)
            assert average_precision(activations, labels)[unit, concept] == pytest.approx(average_precision_score(*pair), abs=1e-6)


def test_detection_worked_by_hand() -> None:
    activations = np.array([[3.0], [1.0], [1.0], [0.0]])
    labels = np.array([[0.0], [1.0], [0.0], [1.0]])
    # pairs: 1 against 3 (0) and 1 (half); 0 against both (0): 0.5 of 4
    assert auc(activations, labels)[0, 0] == pytest.approx(1 / 8)
    # image 1: itself among three that are at least as high; image 3: both among four
    assert average_precision(activations, labels)[0, 0] == pytest.approx((1 / 3 + 2 / 4) / 2)
    # 0.5 - 2, over sqrt(mean of (1.75, -.25, -.25, -1.25)^2)
    assert mean_difference(activations, labels)[0, 0] == pytest.approx(-1.5 / math.sqrt(4.75 / 4))


@pytest.mark.parametrize(("function", "nothing"), [(auc, 0.5), (average_precision, 0.0), (mean_difference, 0.0)])
def test_a_concept_on_no_or_all_images_says_nothing(function, nothing: float) -> None:
    activations, _ = random_inputs()
    for constant in (0.0, 1.0, 0.3):
        np.testing.assert_allclose(function(activations, np.full((60, 2), constant)), nothing, atol=1e-6)


@pytest.mark.parametrize(("function", "nothing"), [(auc, 0.5), (mean_difference, 0.0)])
def test_a_unit_that_never_varies_detects_nothing(function, nothing: float) -> None:
    _, scores = random_inputs()
    np.testing.assert_allclose(function(np.full((60, 2), 0.1), scores), nothing, atol=1e-6)


def test_ties_at_the_last_place_of_the_share_all_count() -> None:
    scores = torch.tensor([[0.9], [0.5], [0.5], [0.5], [0.1]])
    assert images_with(scores, 0.4)[:, 0].tolist() == [True, True, True, True, False]
    assert images_with(scores, 0.2)[:, 0].tolist() == [True, False, False, False, False]


# --- orders with one right answer


def test_of_equal_values_the_lower_row_comes_first() -> None:
    values = torch.tensor([[1.0, 0.0], [2.0, -0.0], [1.0, -1.0], [2.0, 0.0], [-3.0, 0.0]])
    assert highest_images(values, 4).tolist() == [[1, 3, 0, 2], [0, 1, 3, 4]]
    assert ranks_within(values.T.contiguous()).tolist() == [[1, 3, 2, 4, 0], [1, 2, 0, 3, 4]]


def test_orders_are_those_of_a_stable_sort() -> None:
    generator = np.random.default_rng(0)
    scales = np.float32(10) ** generator.integers(-40, 38, size=(500, 8))
    values = (generator.choice([-1, 0, 1], size=(500, 8)) * scales).astype(np.float32)  # subnormal values too
    expected = np.argsort(-values, axis=0, kind="stable").T
    np.testing.assert_array_equal(highest_images(torch.from_numpy(values), 500), expected)
    ranks = np.argsort(np.argsort(values, axis=0, kind="stable"), axis=0)
    np.testing.assert_array_equal(ranks_within(torch.from_numpy(values.T.copy())), ranks.T)


@pytest.mark.parametrize("function", [wpmi, soft_wpmi, rank_reorder])
def test_tied_activations_give_the_images_of_the_lower_rows(function) -> None:
    _, scores = random_inputs(n=100)
    tied = np.zeros((100, 1))
    falling = -np.arange(100.0)[:, None] * 1e-9
    options = {"prior": None, "k": 5} if function is not rank_reorder else {}
    if function is rank_reorder:  # constant: only the mean score on the first five counts
        np.testing.assert_allclose(function(tied, scores), -1 / np.sqrt(scores[:5].mean(axis=0))[None], rtol=1e-5)
    else:
        np.testing.assert_allclose(function(tied, scores, **options), function(falling, scores, **options), rtol=1e-5)
