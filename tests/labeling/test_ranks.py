"""Rank reorder, and orders with one right answer."""

from __future__ import annotations

import itertools
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import scores_of
from similarities import by_pair, scorer_of, tied_layer
from similarities import random_inputs as inputs_from

from neuroprobe._core import Extremes
from neuroprobe.labeling import rank_reorder, soft_wpmi, wpmi
from neuroprobe.labeling.similarity._top_images import highest_images, ranks_within
from neuroprobe.labeling.similarity.ranks import RankReorderScorer

DATA = Path(__file__).parents[1] / "data"
random_inputs = partial(inputs_from, low=0.05)
N_IMAGES = 150
SCORES = scores_of(N_IMAGES, [f"word {i}" for i in range(130)], d=16)


@pytest.mark.parametrize("file", ["similarity_small.npz", "similarity_wide.npz"])
def test_rank_reorder_is_the_published_one_up_to_the_noise_of_its_baseline(file: str) -> None:
    golden = np.load(DATA / file)
    found = rank_reorder(golden["activations"], golden["concept_matrix"])
    standard_error = golden["rank_reorder_std"] / math.sqrt(40)  # of the mean over 40 runs
    assert (np.abs(found - golden["rank_reorder_mean"]) / standard_error).max() < 3
    # the baseline is one number per unit: within a unit, everything else is exact
    relative = found / golden["rank_reorder_mean"]
    np.testing.assert_allclose(relative / relative[:, :1], 1, rtol=1e-4)


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


@pytest.mark.parametrize("name", ["wpmi", "soft_wpmi", "rank_reorder"])
def test_the_highest_images_of_a_summary_are_enough(name) -> None:
    activations = tied_layer()
    highest = Extremes(12, 110)
    values = np.ascontiguousarray(activations.numpy())
    highest.add(values, np.arange(N_IMAGES), values.max(axis=0))
    top_values, top_rows = highest.decode(N_IMAGES)
    scorer = scorer_of(name, SCORES)
    units = scorer.units_from_top(torch.from_numpy(top_rows), torch.from_numpy(top_values), torch.zeros(12), torch.ones(12))
    for part, expected in zip(units, scorer.units(activations), strict=True):
        torch.testing.assert_close(part, expected)


def test_rank_reorders_concentration_worked_by_hand() -> None:
    scorer = RankReorderScorer(SCORES, top_fraction=4 / N_IMAGES)
    rows = torch.arange(4).repeat(2, 1)
    units = scorer.units_from_top(rows, torch.tensor([[9.0, 1, 1, 1], [5, 5, 5, 1]]))  # (1, 0, 0, 0) and (1, 1, 1, 0)
    torch.testing.assert_close(scorer.concentration(units), torch.tensor([1, 1 / 3]))
