from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from helpers import scores_of

from neuroprobe._core import Extremes
from neuroprobe.concepts import ConceptScores
from neuroprobe.exceptions import InputError
from neuroprobe.labeling.similarity import _kernels as kernels
from neuroprobe.labeling.similarity import _softmax as blocked_softmax
from neuroprobe.labeling.similarity._ordering import highest_images
from neuroprobe.labeling.similarity._softmax import split_columns
from neuroprobe.labeling.similarity.registry import FUNCTIONS
from neuroprobe.labeling.similarity.top_image_scorers import TOP_IMAGE_SCORERS, RankReorderScorer, SoftWpmiScorer, WpmiScorer

N_IMAGES, N_CONCEPTS = 150, 130

CASES = [
    ("wpmi", {}),
    ("wpmi", {"k": 50, "a": 10.0, "lam": 1.0}),
    ("wpmi", {"k": 5, "a": 200.0, "prior": None}),  # beyond what exp can hold
    ("soft_wpmi", {}),
    ("soft_wpmi", {"k": 28, "a": 2.0, "lam": 0.6}),
    ("soft_wpmi", {"k": 9, "p_start": 0.9, "p_end": 0.0, "prior": None}),
    ("soft_wpmi", {"k": 999, "a": 300.0}),
    ("rank_reorder", {}),
    ("rank_reorder", {"top_fraction": 0.3, "p": 1.5, "scale": 1.0}),
    ("rank_reorder", {"top_fraction": 0.001}),
    ("average_precision", {}),
    ("average_precision", {"share": 0.4}),
]


@pytest.fixture(scope="module")
def scores() -> ConceptScores:
    return scores_of(N_IMAGES, [f"word {i}" for i in range(N_CONCEPTS)], d=16)


def layer(n_units: int = 12, *, seed: int = 3) -> torch.Tensor:
    """Units of several kinds, among them ties, one constant and one that is never above zero twice."""
    activations = torch.randn(N_IMAGES, n_units, generator=torch.Generator().manual_seed(seed))
    activations[:, 1] = activations[:, 1].clip(0)
    activations[:, 2] = (activations[:, 2] * 2).round()
    activations[:, 3] = 0.25
    activations[:, 4] = (activations[:, 4] > 2.2).float()
    return activations


def final(scorer, activations: torch.Tensor, columns=slice(None)) -> torch.Tensor:
    raw = scorer.block(scorer.units(activations), columns)
    return raw - scorer.prior(raw) if scorer.prior_weight else raw


def assert_alike(found: torch.Tensor, expected: torch.Tensor, *, among: torch.Tensor | None = None) -> None:
    """Equal up to float32's rounding of the greatest number that was added up."""
    greatest = (expected if among is None else among).abs().max()
    assert (found - expected).abs().max() <= 3e-6 * greatest


# --- the same numbers as the definition


@pytest.mark.parametrize(("name", "parameters"), CASES)
def test_a_scorer_gives_what_the_pure_function_gives(scores, name, parameters) -> None:
    activations = layer()
    expected = FUNCTIONS[name](activations, scores.similarities(), **parameters)
    found = final(TOP_IMAGE_SCORERS[name](scores, **parameters), activations)
    among = FUNCTIONS[name](activations, scores.similarities(), **{**parameters, "prior": None}) if "wpmi" in name else expected
    assert found.shape == expected.shape == (12, N_CONCEPTS)
    assert_alike(found, expected, among=among)


@pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")
@pytest.mark.parametrize("parameters", [{}, {"k": 9, "p_start": 1.0, "p_end": 0.0}])
def test_with_numba_the_numbers_are_the_same(scores, parameters, monkeypatch) -> None:
    scorer = SoftWpmiScorer(scores, **parameters)
    units = scorer.units(layer())
    by_torch = scorer.block(units, slice(None))
    monkeypatch.setattr(kernels, "_WORTH_COMPILING", 0)
    assert_alike(scorer.block(units, slice(None)), by_torch)


@pytest.mark.parametrize("name", TOP_IMAGE_SCORERS)
def test_blocks_are_columns_of_the_whole(scores, name, monkeypatch) -> None:
    activations = layer()
    scorer = TOP_IMAGE_SCORERS[name](scores)
    units = scorer.units(activations)
    whole = scorer.block(units, slice(None))
    some = torch.tensor([129, 0, 7, 7, 64])
    assert_alike(scorer.block(units, slice(40, 41)), whole[:, 40:41], among=whole)
    assert_alike(scorer.block(units, some), whole[:, some], among=whole)
    monkeypatch.setattr(blocked_softmax, "_ROWS", 7)
    monkeypatch.setattr(blocked_softmax, "_COLUMNS", 11)
    for n_kept in (0, 70, N_CONCEPTS):  # columns of the first sweep
        monkeypatch.setattr(blocked_softmax, "_KEPT_BYTES", 4 * N_IMAGES * n_kept)
        again = TOP_IMAGE_SCORERS[name](scores)
        for columns in (slice(3, 128), slice(10, 70), slice(70, 71), slice(0, 130, 7), slice(None)):
            assert_alike(again.block(units, columns), whole[:, columns], among=whole)


@pytest.mark.parametrize("name", TOP_IMAGE_SCORERS)
def test_a_unit_alone_has_the_raw_scores_it_has_among_others(scores, name) -> None:
    activations = layer()
    scorer = TOP_IMAGE_SCORERS[name](scores)
    whole = scorer.block(scorer.units(activations), slice(None))
    for unit in range(12):
        assert_alike(scorer.block(scorer.units(activations[:, [unit]]), slice(None))[0], whole[unit])


@pytest.mark.parametrize("name", TOP_IMAGE_SCORERS)
def test_units_are_the_first_axis_of_every_part(scores, name) -> None:
    scorer = TOP_IMAGE_SCORERS[name](scores)
    activations = layer()
    units = scorer.units(activations)
    assert [len(part) for part in units] == [12] * len(units)
    order = torch.tensor([5, 0, 3, 3, 11])
    chosen = scorer.block(tuple(part[order] for part in units), slice(None))
    assert_alike(chosen, scorer.block(units, slice(None))[order])


@pytest.mark.parametrize("name", TOP_IMAGE_SCORERS)
def test_a_resampled_scorer_is_that_of_the_resampled_images(scores, name) -> None:
    rows = torch.randint(N_IMAGES, (N_IMAGES,), generator=torch.Generator().manual_seed(5))
    activations = layer()[rows]
    scorer = TOP_IMAGE_SCORERS[name](scores)
    before = scorer.block(scorer.units(layer()), slice(None))
    expected = FUNCTIONS[name](activations, scores.similarities()[rows])
    found = final(scorer.resampled(rows), activations)
    assert_alike(found, expected, among=before)
    assert_alike(scorer.block(scorer.units(layer()), slice(None)), before)


def test_only_the_given_prior_is_taken_off(scores) -> None:
    assert WpmiScorer(scores, lam=0.3).prior_weight == 0.3
    assert SoftWpmiScorer(scores, prior=None).prior_weight == 0
    assert RankReorderScorer(scores).prior_weight == 0


# --- from recording summaries


@pytest.mark.parametrize("name", ["wpmi", "soft_wpmi", "rank_reorder"])
def test_the_highest_images_of_a_summary_are_enough(scores, name) -> None:
    activations = layer()
    highest = Extremes(12, 110)
    values = np.ascontiguousarray(activations.numpy())
    highest.add(values, np.arange(N_IMAGES), values.max(axis=0))
    top_values, top_rows = highest.decode(N_IMAGES)
    scorer = TOP_IMAGE_SCORERS[name](scores)
    units = scorer.units_from_top(torch.from_numpy(top_rows), torch.from_numpy(top_values), torch.zeros(12), torch.ones(12))
    for part, expected in zip(units, scorer.units(activations), strict=True):
        torch.testing.assert_close(part, expected)


def test_a_summary_of_too_few_images_is_refused(scores) -> None:
    rows = highest_images(layer(), 20)
    with pytest.raises(InputError, match=r"the 28 highest images of every unit, but the summary kept 20\. Summarize with k=28 or more"):
        WpmiScorer(scores).units_from_top(rows, torch.zeros(rows.shape))


def test_fewer_images_than_k_are_all_of_them() -> None:
    few = scores_of(9, ["a", "b", "c"])
    rows = highest_images(torch.randn(9, 2, generator=torch.Generator().manual_seed(0)), 9)
    scorer = SoftWpmiScorer(few, prior=None)
    assert scorer.k == 9
    assert scorer.block(scorer.units_from_top(rows, torch.zeros(2, 9)), slice(None)).shape == (2, 3)


@pytest.mark.parametrize(
    ("rows", "values", "message"),
    [
        (torch.full((2, 30), N_IMAGES), torch.zeros(2, 30), "rows from 0 to 149, the images of the scores, but got 150 to 150"),
        (torch.full((2, 30), -1), torch.zeros(2, 30), "but got -1 to -1"),
        (torch.zeros(2, 30), torch.zeros(2, 30), "float32"),
        (torch.zeros(30, dtype=torch.long), torch.zeros(30), r"both \[n_units, k\]"),
        (torch.zeros(2, 30, dtype=torch.long), torch.zeros(2, 29), r"\(2, 30\) and \(2, 29\)"),
    ],
)
def test_rows_that_do_not_fit_are_told(scores, rows, values, message) -> None:
    with pytest.raises(InputError, match=message):
        WpmiScorer(scores).units_from_top(rows, values)


# --- parameters, parts


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("wpmi", {"k": 0}, "`k` to be a whole number of at least 1"),
        ("soft_wpmi", {"p_end": -0.1}, "`p_end` to be a number, at least 0"),
        ("soft_wpmi", {"prior": "uniform"}, "'cohort' or None"),
        ("rank_reorder", {"top_fraction": 2}, "`top_fraction` to be a number, above 0 and at most 1"),
        ("average_precision", {"share": 0}, "`share` to be a number, above 0"),
    ],
)
def test_wrong_parameters_are_told_before_the_first_sweep(name, parameters, message) -> None:
    with pytest.raises(InputError, match=message):
        TOP_IMAGE_SCORERS[name](None, **parameters)  # type: ignore[arg-type]


@pytest.mark.parametrize("columns", [slice(None), slice(5, 1900, 3), slice(7, 7), torch.arange(1999, -1, -3)])
def test_parts_of_columns_are_the_columns_in_order(columns) -> None:
    everything = torch.arange(2000)
    parts = [everything[part] for part in split_columns(columns, 2000, 1 << 20)]
    assert torch.equal(torch.cat([*parts, everything[:0]]), everything[columns])
    assert all(len(part) <= 64 for part in parts)


@pytest.mark.parametrize("name", ["wpmi", "soft_wpmi", "rank_reorder"])
def test_random_units_depend_on_their_values_only_where_it_is_said(scores, name) -> None:
    scorer = TOP_IMAGE_SCORERS[name](scores)
    activations = layer()
    units, stretched = scorer.units(activations), scorer.units(activations.double().mul(2).exp().float())  # the same order
    same = torch.allclose(scorer.block(units, slice(None)), scorer.block(stretched, slice(None)), atol=1e-4)
    assert same == torch.allclose(scorer.concentration(units), scorer.concentration(stretched))


def test_rank_reorders_concentration_worked_by_hand(scores) -> None:
    scorer = RankReorderScorer(scores, top_fraction=4 / N_IMAGES)
    rows = torch.arange(4).repeat(2, 1)
    units = scorer.units_from_top(rows, torch.tensor([[9.0, 1, 1, 1], [5, 5, 5, 1]]))  # (1, 0, 0, 0) and (1, 1, 1, 0)
    torch.testing.assert_close(scorer.concentration(units), torch.tensor([1, 1 / 3]))
