from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import nnls
from sklearn.linear_model import LinearRegression

from neuroprobe.labeling._sum_search import fit_weights, select_forward


def slow_selection(X: np.ndarray, y: np.ndarray, *, k: int, signed: bool = True, most_shared: float = 0.8) -> list[int]:
    """One target, one candidate at a time, each by a regression of its own."""
    chosen: list[int] = []
    for _ in range(k):
        best, least = None, np.var(y) * (1 - 1e-12)
        if chosen:
            least = np.var(y - LinearRegression().fit(X[:, chosen], y).predict(X[:, chosen])) * (1 - 1e-9)
        for i in set(range(X.shape[1])) - set(chosen):
            if np.ptp(X[:, i]) == 0:
                continue
            if chosen and LinearRegression().fit(X[:, chosen], X[:, i]).score(X[:, chosen], X[:, i]) >= most_shared:
                continue
            model = LinearRegression().fit(X[:, [*chosen, i]], y)
            error = np.var(y - model.predict(X[:, [*chosen, i]]))
            if error < least and (signed or model.coef_[-1] > 0):
                best, least = i, error
        if best is None:
            break
        chosen.append(best)
    return chosen


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("most_shared", [0.3, 0.8, 0.99])
def test_many_targets_at_once_are_the_targets_one_by_one(signed: bool, most_shared: float) -> None:
    generator = np.random.default_rng(7)
    X = generator.normal(size=(60, 4)) @ generator.normal(size=(4, 12)) + 0.5 * generator.normal(size=(60, 12))  # correlated
    X[:, 5] = 3.25  # never varies
    Y = X @ generator.normal(size=(12, 300)) + generator.normal(size=(60, 300))  # more than one block
    found = select_forward(X, Y, k=4, signed=signed, most_shared=most_shared)
    for target in range(0, 300, 43):
        slow = slow_selection(X, Y[:, target], k=4, signed=signed, most_shared=most_shared)
        assert found[target].tolist() == slow + [-1] * (4 - len(slow))


def test_worked_by_hand() -> None:
    # orthogonal columns: the one with the greatest weight times deviation is first
    X = np.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    found = select_forward(X, np.stack([X @ [1, -3, 2], X @ [0, 0, 5], X @ [-1, -1, -2]], axis=1), k=3)
    assert found.tolist() == [[1, 2, 0], [2, -1, -1], [2, 0, 1]]
    rising = select_forward(X, (X @ [1, -3, 2])[:, None], k=3, signed=False)
    assert rising.tolist() == [[2, 0, -1]]


def test_two_names_of_one_thing_do_not_both_enter() -> None:
    generator = np.random.default_rng(0)
    red, other = generator.normal(size=(2, 500))
    crimson = red + 0.2 * generator.normal(size=500)  # R2 with red: .96
    y = red + 0.3 * (red - crimson) + 0.2 * other
    X = np.stack([red, crimson, other], axis=1)
    assert select_forward(X, y[:, None], k=3).tolist() == [[0, 2, -1]]
    assert 1 in select_forward(X, y[:, None], k=3, most_shared=0.99)


def test_what_never_varies_is_not_chosen_and_not_explained() -> None:
    X = np.column_stack([np.full(9, 0.1), np.arange(9.0)])
    assert select_forward(X, np.column_stack([np.arange(9.0), np.full(9, 0.3)]), k=2).tolist() == [[1, -1], [-1, -1]]


def test_a_large_offset_loses_no_digits() -> None:
    generator = np.random.default_rng(1)
    X = generator.normal(size=(80, 5))
    y = (2 * X[:, 3] - X[:, 1])[:, None]
    assert select_forward(X + 1e4, y - 1e6, k=3)[0, :2].tolist() == [3, 1]


def test_weights_are_least_squares() -> None:
    generator = np.random.default_rng(2)
    X, y = generator.normal(size=(30, 3)) + 5, generator.normal(size=30)
    model = LinearRegression().fit(X, y)
    weights, intercept = fit_weights(X, y)
    np.testing.assert_allclose(weights, model.coef_)
    assert intercept == pytest.approx(model.intercept_)
    weights, intercept = fit_weights(X, y, signed=False)
    np.testing.assert_allclose(weights, nnls(X - X.mean(axis=0), y - y.mean())[0])
    assert (weights >= 0).all()
    assert (X @ weights + intercept).mean() == pytest.approx(y.mean())


def test_no_columns_leave_the_mean() -> None:
    weights, intercept = fit_weights(np.zeros((4, 0)), [1.0, 2, 3, 6])
    assert (weights.tolist(), intercept) == ([], 3)
