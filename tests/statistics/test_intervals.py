from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from neuroprobe.exceptions import InputError
from neuroprobe.statistics import accuracy_interval, balanced_accuracy_interval, corrected_interval, wilson_interval
from neuroprobe.statistics.intervals import effective_size

# --- formulas


def slow_wilson(k: float, n: float, z: float) -> tuple[float, float]:
    """The two p at which (k / n - p)^2 = z^2 p (1 - p) / n, as roots of that quadratic."""
    p = k / n
    low, high = sorted(np.roots([1 + z**2 / n, -(2 * p + z**2 / n), p**2]).real)
    return low, high


@pytest.mark.parametrize("n", [1, 7, 90, 210])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_wilson_is_where_the_score_test_turns(n: int, level: float) -> None:
    k = np.arange(n + 1)
    low, high = wilson_interval(k, n, level=level)
    expected = np.array([slow_wilson(i, n, stats.norm.ppf(0.5 + level / 2)) for i in k])
    np.testing.assert_allclose(np.column_stack([low, high]), expected, atol=1e-7)


def test_wilson_is_scipys() -> None:
    low, high = wilson_interval(84, 90)
    expected = stats.binomtest(84, 90).proportion_ci(0.95, method="wilson")
    assert (float(low), float(high)) == pytest.approx((expected.low, expected.high))


def test_wilson_by_hand() -> None:
    # z = 1 (level .6827), 1 of 2: center (1/2 + 1/4) / (3/2) = 1/2, half (2/3) sqrt(1/8 + 1/16) = .288675
    low, high = wilson_interval(1, 2, level=float(stats.norm.cdf(1) - stats.norm.cdf(-1)))
    assert (float(low), float(high)) == pytest.approx((0.5 - 0.288675, 0.5 + 0.288675), abs=1e-6)


def test_wilson_broadcasts_and_stays_within_0_and_1() -> None:
    low, high = wilson_interval([[0], [10]], [10, 20, 30])
    assert low.shape == high.shape == (2, 3)
    assert np.all((low >= 0) & (high <= 1) & (low < high))
    assert low[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("right", "n"), [(3, 2), (-1, 2), (0, 0)])
def test_impossible_counts_are_refused(right: int, n: int) -> None:
    with pytest.raises(InputError, match="Expected 0 <= n_right <= n"):
        wilson_interval(right, n)


@pytest.mark.parametrize("level", [0, 1, -0.1, 95])
def test_a_level_in_percent_is_refused(level: float) -> None:
    with pytest.raises(InputError, match="`level` to be a number, above 0 and below 1"):
        wilson_interval(1, 2, level=level)
    with pytest.raises(InputError, match="`level` to be a number, above 0 and below 1"):
        corrected_interval([0.5], n_train=10, n_test=5, level=level)


def test_the_corrected_interval_by_hand() -> None:
    # mean .9, s^2 = (.01 + 0 + .01) / 2 = .01, variance (1/3 + 1/2) * .01; t with 2 degrees at 95 % is 4.302653
    low, high = corrected_interval([0.8, 0.9, 1.0], n_train=200, n_test=100)
    half = 4.302653 * np.sqrt((1 / 3 + 0.5) * 0.01)
    assert (float(low), float(high)) == pytest.approx((0.9 - half, 0.9 + half), abs=1e-6)


def test_the_corrected_interval_of_many_is_that_of_each() -> None:
    scores, train = np.random.default_rng(0).random((3, 4, 6)), np.array([[100], [200], [300]])
    low, high = corrected_interval(scores, n_train=train, n_test=50, level=0.9)
    for i in range(3):
        for j in range(4):
            mean, deviation = np.mean(scores[i, j]), np.std(scores[i, j], ddof=1)
            half = stats.t.ppf(0.95, 5) * deviation * np.sqrt(1 / 6 + 50 / train[i, 0])
            assert (low[i, j], high[i, j]) == pytest.approx((mean - half, mean + half))


def test_one_seed_says_nothing_of_the_spread() -> None:
    assert np.isnan(corrected_interval([[0.9], [0.8]], n_train=10, n_test=5)).all()


def test_the_effective_size_by_hand() -> None:
    # 90 of 300 images: correlation .3. One seed: 90. Two: 90 / (1/2 + .3/2). Ever more: 90 / .3 = all 300 images
    assert float(effective_size(90, n_train=210, n_seeds=1)) == pytest.approx(90)
    assert float(effective_size(90, n_train=210, n_seeds=2)) == pytest.approx(90 / 0.65)
    assert float(effective_size(90, n_train=210, n_seeds=10**9)) == pytest.approx(300)


def test_one_seed_has_wilsons_interval() -> None:
    np.testing.assert_allclose(accuracy_interval([0.9], n_train=210, n_test=90), wilson_interval(81, 90))


def test_several_seeds_have_wilsons_interval_of_more_images() -> None:
    accuracies = np.array([80, 82, 81, 83, 79]) / 90
    expected = slow_wilson(0.9 * 90 / (1 / 5 + 4 / 5 * 0.3), 90 / (1 / 5 + 4 / 5 * 0.3), stats.norm.ppf(0.975))
    np.testing.assert_allclose(accuracy_interval(accuracies, n_train=210, n_test=90), expected)


def test_seeds_that_all_agree_still_leave_a_doubt() -> None:
    low, high = accuracy_interval([1.0] * 5, n_train=210, n_test=90)
    assert float(corrected_interval([1.0] * 5, n_train=210, n_test=90)[0]) == 1  # the t interval would be a point
    assert 0.97 < float(low) < 0.99
    assert float(high) == 1


def test_probes_that_sometimes_fail_have_the_wider_interval() -> None:
    accuracies = [0.667, 0.95, 0.96, 0.667, 0.95]
    low, high = accuracy_interval(accuracies, n_train=210, n_test=90)
    corrected = corrected_interval(accuracies, n_train=210, n_test=90)
    assert float(low) == pytest.approx(float(corrected[0]))
    assert float(high) == pytest.approx(min(float(corrected[1]), 1))
    assert float(high - low) > 2 * float(np.subtract(*accuracy_interval([0.84] * 5, n_train=210, n_test=90)[::-1]))


def test_the_balanced_interval_by_hand() -> None:
    # Newcombe's: .5 -+ hypot of both distances / 2, each distance from a Wilson interval of 30 and of 60 images
    low, high = balanced_accuracy_interval([0.6], [0.8], n_train=210, n_positive=30, n_negative=60)
    (a, b), (c, d) = (slow_wilson(k, n, stats.norm.ppf(0.975)) for k, n in ((18, 30), (48, 60)))
    assert float(low) == pytest.approx(0.7 - np.hypot(0.6 - a, 0.8 - c) / 2)
    assert float(high) == pytest.approx(0.7 + np.hypot(b - 0.6, d - 0.8) / 2)


def test_the_balanced_interval_of_unstable_probes_is_wider() -> None:
    sensitivity, specificity = [0.0, 0.95, 0.95, 0.0, 0.95], [1.0, 0.95, 0.95, 1.0, 0.95]
    parts = {"n_train": 210, "n_positive": 30, "n_negative": 60}
    unstable = balanced_accuracy_interval(sensitivity, specificity, **parts)
    stable = balanced_accuracy_interval([0.57] * 5, [0.97] * 5, **parts)
    assert float(unstable[1] - unstable[0]) > 2 * float(stable[1] - stable[0])


def test_a_missing_seed_leaves_no_interval() -> None:
    low, high = accuracy_interval([[0.9, np.nan], [0.9, 0.9]], n_train=210, n_test=90)
    assert np.isnan([low[0], high[0]]).all()
    assert not np.isnan([low[1], high[1]]).any()


def test_percent_are_refused() -> None:
    with pytest.raises(InputError, match="accuracies from 0 to 1"):
        accuracy_interval([90.0, 91.0], n_train=210, n_test=90)


@pytest.mark.parametrize("scores", [0.5, [], np.empty((3, 0))])
def test_no_seeds_are_refused(scores) -> None:
    with pytest.raises(InputError, match="at least one seed"):
        corrected_interval(scores, n_train=10, n_test=5)


def test_empty_parts_are_refused() -> None:
    with pytest.raises(InputError, match="`n_test` to be at least 1 everywhere"):
        accuracy_interval([0.5, 0.5], n_train=10, n_test=0)
    with pytest.raises(InputError, match="`n_seeds` to be a whole number of at least 1"):
        effective_size(10, n_train=10, n_seeds=0)


# --- coverage: a fixed set of images, five stratified splits of it, a probe fitted on each training part

SEPARATIONS = {10: (0.63, 1.2, 1.78, 2.65, 3.4, 4.2), 60: (1.1, 1.7, 2.3, 3.2, 4.0, 5.0)}
N_TRAIN, N_TEST, SEEDS = 140, 60, 5


def simulated(d: int, separation: float, *, n_sets: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Accuracies [n_sets, seeds] on held-out images, and on infinitely many new ones, of linear discriminants in `d` dimensions.

    Every set has 100 images of each of two Gaussian classes, of which 30 are held out.
    """
    generator = np.random.default_rng(seed)
    signs = np.repeat([1.0, -1.0], 100)
    center = np.zeros(d)
    center[0] = separation / 2
    found = np.empty((2, n_sets, SEEDS))
    for i in range(n_sets):
        X = generator.normal(size=(200, d)) + signs[:, None] * center
        for j in range(SEEDS):
            order = np.concatenate([generator.permutation(100), 100 + generator.permutation(100)]).reshape(2, 100)
            test, train = order[:, :30].ravel(), order[:, 30:].ravel()
            means = X[order[0, 30:]].mean(0), X[order[1, 30:]].mean(0)
            inner = X[train] - np.where(signs[train, None] > 0, *means)
            weights = np.linalg.solve(inner.T @ inner / N_TRAIN + 0.1 * np.eye(d), means[0] - means[1])
            offset = weights @ (means[0] + means[1]) / 2
            found[0, i, j] = np.mean((X[test] @ weights > offset) == (signs[test] > 0))
            norm = np.linalg.norm(weights)
            sides = (center @ weights - offset) / norm, (center @ weights + offset) / norm
            found[1, i, j] = stats.norm.cdf(sides).mean()
    return found[0], found[1]


def coverage(interval: tuple[np.ndarray, np.ndarray], truth: float | np.ndarray) -> float:
    return float(np.mean((interval[0] <= truth) & (truth <= interval[1])))


@pytest.mark.slow
@pytest.mark.parametrize("d", [10, 60])
def test_intervals_hold_the_expected_accuracy_in_95_percent_of_the_cases(d: int) -> None:
    covered, expected = [], []
    for separation in SEPARATIONS[d]:
        accuracies, true = simulated(d, separation, n_sets=700, seed=1)
        expected.append(true.mean())
        parts = {"n_train": N_TRAIN, "n_test": N_TEST}
        covered.append(
            (
                coverage(accuracy_interval(accuracies, **parts), true.mean()),
                coverage(accuracy_interval(accuracies[:, :2], **parts), true.mean()),
                coverage(corrected_interval(accuracies, **parts), true.mean()),
                # one split: the accuracy of the very probe that was fitted
                coverage(accuracy_interval(accuracies[:, :1], **parts), true[:, 0]),
            )
        )
    assert min(expected) == pytest.approx(0.6, abs=0.02)
    assert max(expected) == pytest.approx(0.98, abs=0.01)
    means, worst = np.mean(covered, axis=0), np.min(covered, axis=0)
    assert np.all(np.abs(means - 0.95) < 0.015), covered
    assert np.all(worst[[0, 1, 3]] > 0.925), covered  # the t interval alone may fall lower near 1


@pytest.mark.slow
@pytest.mark.parametrize("d", [10, 60])
def test_the_balanced_interval_holds_one_half_for_random_labels(d: int) -> None:
    generator = np.random.default_rng(2)
    shares = np.empty((2, 500, SEEDS))
    for i in range(500):
        X = generator.normal(size=(300, d))  # 100 and 200 images; which is which says nothing
        for j in range(SEEDS):
            positive, negative = generator.permutation(100), 100 + generator.permutation(200)
            means = X[positive[30:]].mean(0), X[negative[60:]].mean(0)
            inner = np.concatenate([X[positive[30:]] - means[0], X[negative[60:]] - means[1]])
            weights = np.linalg.solve(inner.T @ inner / 210 + 0.1 * np.eye(d), means[0] - means[1])
            offset = weights @ (means[0] + means[1]) / 2
            shares[0, i, j] = np.mean(X[positive[:30]] @ weights > offset)
            shares[1, i, j] = np.mean(X[negative[:60]] @ weights <= offset)
    for n_seeds in (1, SEEDS):
        chosen = shares[:, :, :n_seeds]
        interval = balanced_accuracy_interval(chosen[0], chosen[1], n_train=210, n_positive=30, n_negative=60)
        assert 0.935 < coverage(interval, 0.5) < 0.985
