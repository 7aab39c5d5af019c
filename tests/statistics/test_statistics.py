from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score

from neuroprobe.exceptions import InputError
from neuroprobe.statistics import auroc, auroc_p_value, average_precision, balanced_accuracy, benjamini_hochberg, permutation_p_value


def slow_auroc(decision: np.ndarray, targets: np.ndarray) -> float:
    """Pairs in the right order, ties half."""
    pairs = list(itertools.product(decision[targets], decision[~targets]))
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)


def slow_average_precision(decision: np.ndarray, targets: np.ndarray) -> float:
    """The sum over thresholds of the recall gained times the precision there."""
    total, recall = 0.0, 0.0
    for threshold in sorted(set(decision.tolist()), reverse=True):
        taken = decision >= threshold
        new_recall = targets[taken].sum() / targets.sum()
        total += (new_recall - recall) * targets[taken].mean()
        recall = new_recall
    return total


def cells(*, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    decision = generator.integers(0, 5, size=(3, 4, 30)) if ties else generator.normal(size=(3, 4, 30))
    return decision.astype(float), generator.random(30) < 0.3


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    ("ours", "slow", "theirs"),
    [(auroc, slow_auroc, roc_auc_score), (average_precision, slow_average_precision, average_precision_score)],
)
def test_ranking_scores_of_all_cells_at_once_are_those_of_each(ours, slow, theirs, ties: bool) -> None:
    decision, targets = cells(ties=ties)
    found = ours(decision, targets)
    assert found.shape == (3, 4)
    for i, j in np.ndindex(3, 4):
        assert found[i, j] == pytest.approx(slow(decision[i, j], targets), abs=1e-12)
        assert found[i, j] == pytest.approx(theirs(targets, decision[i, j]), abs=1e-12)


def test_balanced_accuracy_of_all_cells_at_once_is_that_of_each() -> None:
    decision, targets = cells(ties=False)
    found = balanced_accuracy(decision > 0, targets)
    for i, j in np.ndindex(3, 4):
        assert found[i, j] == pytest.approx(balanced_accuracy_score(targets, decision[i, j] > 0))


def test_scores_by_hand() -> None:
    #          image    a  b  c  d
    targets, decision = [1, 0, 1, 0], [0.9, 0.8, 0.8, 0.1]
    # pairs (a, b) and (a, d) right, (c, b) a tie, (c, d) right; a comes at precision 1, c with b at 2/3
    assert float(auroc(decision, targets)) == 3.5 / 4
    assert float(average_precision(decision, targets)) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert float(balanced_accuracy([1, 1, 0, 0], targets)) == 0.5


def test_every_cell_may_have_targets_of_its_own() -> None:
    decision, _ = cells(ties=True)
    targets = np.random.default_rng(5).random(decision.shape) < 0.5
    for score in (auroc, average_precision):
        assert score(decision, targets)[1, 2] == pytest.approx(float(score(decision[1, 2], targets[1, 2])))


def test_infinite_log_odds_are_values() -> None:
    assert float(auroc([np.inf, 0, -np.inf], [1, 0, 0])) == 1


@pytest.mark.parametrize("score", [auroc, average_precision, balanced_accuracy])
def test_what_has_no_score_is_refused(score) -> None:
    with pytest.raises(InputError, match="one class"):
        score([0.1, 0.2], [1, 1])
    with pytest.raises(InputError, match="shapes"):
        score([0.1, 0.2, 0.3], [1, 0])
    with pytest.raises(InputError, match="NaN"):
        score([0.1, np.nan], [1, 0])


# --- p-values


def test_permutation_p_values_by_hand() -> None:
    # .8 of four shuffles: .9 and .8 are as high, so (2 + 1) / (4 + 1)
    found = permutation_p_value([0.8, 1.0, np.nan], [[0.9, 0.8, 0.1, 0.2], [0.5, 0.6, 0.7, 0.8], [0.1, 0.2, 0.3, 0.4]])
    np.testing.assert_allclose(found, [3 / 5, 1 / 5, np.nan])
    with pytest.raises(InputError, match="at least one score under shuffled labels"):
        permutation_p_value(0.5, [])


def test_permutation_p_values_are_uniform_without_an_effect() -> None:
    scores = np.random.default_rng(0).normal(size=(4000, 20))
    found = permutation_p_value(scores[:, 0], scores[:, 1:])
    for level in (0.05, 0.25, 0.5):
        assert np.mean(found <= level) == pytest.approx(level, abs=0.03)


def test_auroc_p_values_are_mann_whitneys() -> None:
    decision, targets = cells(ties=True)
    found = auroc_p_value(decision, targets)
    for i, j in np.ndindex(3, 4):
        split = decision[i, j][targets], decision[i, j][~targets]
        assert found[i, j] == pytest.approx(stats.mannwhitneyu(*split, alternative="greater", method="asymptotic").pvalue)
    assert auroc_p_value([np.zeros(30), np.arange(30)], np.arange(30) > 15) == pytest.approx([1, 0], abs=1e-5)


def slow_benjamini_hochberg(p: list[float]) -> list[float]:
    """The smallest rate at which the step-up procedure rejects each."""
    m = len(p)
    order = sorted(p)
    return [min(min(order[k] * m / (k + 1), 1) for k in range(m) if order[k] >= value) for value in p]


def test_false_discovery_rates() -> None:
    p = np.random.default_rng(0).random(50) ** 3
    p[7] = p[8]
    np.testing.assert_allclose(benjamini_hochberg(p), slow_benjamini_hochberg(p.tolist()))


def test_false_discovery_rates_by_hand_without_those_not_tested() -> None:
    #  p .01 .04 .03: q .03, .04, min(.045, .04)
    np.testing.assert_allclose(benjamini_hochberg([[0.01, np.nan], [0.04, 0.03]]), [[0.03, np.nan], [0.04, 0.04]])
    assert benjamini_hochberg([]).shape == (0,)
    assert np.isnan(benjamini_hochberg([np.nan, np.nan])).all()
    with pytest.raises(InputError, match="p-values from 0 to 1"):
        benjamini_hochberg([0.5, 1.5])
