from __future__ import annotations

import itertools

import numpy as np
import pytest

from neuroprobe.labeling._formula_null import SearchNull, log_tail_bound
from neuroprobe.labeling._formula_search import FormulaSearch, centered_ranks

N = 120
NAMES = ["a", "b", "c", "d"]
LABELS = np.random.default_rng(0).random((N, 4)) < 0.3


def search(**arguments) -> FormulaSearch:
    return FormulaSearch(LABELS, NAMES, **{"max_length": 2, "beam_width": 4, "fractions": (0.05, 0.5), **arguments})


def ranks_of(values: np.ndarray) -> np.ndarray:
    return centered_ranks(np.asarray(values)[:, None])[:, 0]


NOISE = ranks_of(np.random.default_rng(1).normal(size=N))


# --- random orders


def test_the_p_value_counts_random_orders() -> None:
    null = SearchNull(search(), n=50, seed=3)
    aucs = null.aucs(1)
    assert len(aucs) == 50
    assert (np.diff(aucs) >= 0).all()
    assert null.p_value(0.0, NOISE, LABELS[:, 0]) == 1
    assert null.p_value(aucs[-3], NOISE, LABELS[:, 0]) == 4 / 51
    assert null.p_value(aucs[-1], NOISE, LABELS[:, 0]) == 2 / 51
    assert null.p_value(2.0, NOISE, LABELS[:, 0]) == 1 / 51  # the bound of a noise unit is no better


def test_beyond_all_random_orders_the_bound_speaks() -> None:
    null = SearchNull(search(), n=50, seed=3)
    mask = LABELS[:, 0]
    ranks = ranks_of(mask + np.arange(N) / (10 * N))
    assert null.p_value(1.0, ranks, mask) == pytest.approx(search().n_formulas * np.exp(log_tail_bound(ranks, mask)))
    assert null.p_value(1.0, ranks, mask) < 1e-10


def test_random_orders_are_searched_as_units_are() -> None:
    null = SearchNull(search(), n=300, seed=3).aucs(1)
    generator = np.random.default_rng(7)
    again = [found.auc for found in search().best(centered_ranks(generator.normal(size=(N, 300))))]
    assert np.abs(np.quantile(null, [0.1, 0.5, 0.9]) - np.quantile(again, [0.1, 0.5, 0.9])).max() < 0.02


def test_without_random_orders_there_is_no_p_value() -> None:
    assert np.isnan(SearchNull(search(), n=0, seed=0).p_value(1.0, NOISE, LABELS[:, 0]))


def test_the_null_of_sparse_units_has_at_most_their_ties() -> None:
    null = SearchNull(search(max_length=1), n=30, seed=0)
    highest = [null.aucs(n_lowest)[-1] for n_lowest in (1, 80, 100, 115)]
    assert highest == sorted(highest, reverse=True)
    assert highest[0] > highest[-1]
    assert null.aucs(1) is null.aucs(20)  # near enough to no ties at all


@pytest.mark.parametrize("n_lowest", [0, 1, N - 1, N])
def test_any_number_of_ties_has_a_null(n_lowest: int) -> None:
    assert len(SearchNull(search(), n=5, seed=0).aucs(n_lowest)) == 5


# --- the bound


@pytest.mark.parametrize("values", [np.arange(8.0), [0, 0, 0, 0, 0, 1, 2, 3], [0, 0, 1, 1, 1, 2, 2, 2]])
def test_the_bound_is_above_the_exact_probability(values) -> None:
    ranks = ranks_of(values)
    for m in range(1, 8):
        samples = list(itertools.combinations(range(8), m))
        sums = np.array([ranks[list(rows)].sum() for rows in samples])
        for rows, total in zip(samples, sums, strict=True):
            mask = np.isin(np.arange(8), rows)
            exact = (sums >= total - 1e-9).mean()
            bound = np.exp(log_tail_bound(ranks, mask))
            assert exact <= bound + 1e-9
            assert bound <= 1


def test_the_bound_by_hand() -> None:
    # the highest one of two: exp(t/2) and exp(-t/2) over exp(t/2), halved: toward 1/2 for great t
    assert np.exp(log_tail_bound(np.array([-1.0, 1.0]), np.array([False, True]))) == pytest.approx(0.5, abs=1e-6)
    assert log_tail_bound(np.array([-1.0, 1.0]), np.array([True, False])) == pytest.approx(0, abs=1e-3)


def test_the_bound_falls_about_as_a_normal_tail() -> None:
    ranks = ranks_of(np.arange(1000))
    mask = np.zeros(1000, dtype=bool)
    mask[np.random.default_rng(0).choice(np.arange(300, 1000), 100, replace=False)] = True
    z = ranks[mask].sum() / np.sqrt(100 * ranks.var())
    assert z > 4
    assert log_tail_bound(ranks, mask) == pytest.approx(-(z**2) / 2, rel=0.15)
