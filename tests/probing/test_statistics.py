from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from neuroprobe.concepts import ConceptSet
from neuroprobe.exceptions import InputError
from neuroprobe.probing import LinearProbe, Options, RegressionProbe
from neuroprobe.probing import _statistics as statistics
from neuroprobe.probing._problems import Problems
from neuroprobe.probing._statistics import Statistic, check_needs, codelength_ends, control_labels, measure, online_codelength


def problems(n: int = 20, *, n_positive: int = 8, seeds: tuple[int, ...] = (0,), types: bool = False, d: int = 3) -> Problems:
    """The first half of the images is the training part; the labels are dealt at random."""
    order = np.random.default_rng(n_positive).permutation(n)
    targets = np.zeros(n, dtype=np.int64)
    targets[order[:n_positive]] = 1
    rows = [f"i{i}" for i in range(n)]
    positives = tuple(row for row, target in zip(rows, targets, strict=True) if target)
    negatives = tuple(row for row, target in zip(rows, targets, strict=True) if not target)
    concept_set = ConceptSet("a", "g", positives, negatives, types=tuple(i % 5 for i in range(n)) if types else ())
    b = len(seeds)
    Z = torch.from_numpy(np.random.default_rng(1).normal(size=(n, d)) + targets[:, None]).expand(b, -1, -1)
    order = torch.arange(n).expand(b, -1)
    return Problems(Z, torch.from_numpy(targets).expand(b, -1), order[:, : n // 2], order[:, n // 2 :], seeds, d, (concept_set,) * b)


@pytest.mark.parametrize("n_positive", [6, 20, 33])
def test_the_baseline_is_the_share_of_the_more_frequent_class(n_positive: int) -> None:
    batch = problems(40, n_positive=n_positive)
    (row,) = measure(LinearProbe(), batch, np.zeros((1, 40)), options=Options())
    counts = np.bincount(batch.targets[0, 20:], minlength=2)
    assert row["baseline"] == counts.max() / 20 >= 0.5


# --- a statistic is one entry


def test_a_new_statistic_stands_in_every_row_that_it_is_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "STATISTICS", list(statistics.STATISTICS))

    def refused(concept_set: ConceptSet) -> None:
        raise InputError(f"Expected more of {concept_set.concept!r}.")

    @statistics.statistic(predicts="class", option="controls", needs=refused)
    def margin(measured: statistics.Measured) -> statistics.Columns:
        return {"margin": np.abs(measured.decision).min(axis=1)}

    batch, values = problems(types=True), np.arange(20.0)[None] - 25
    (row,) = measure(LinearProbe(), batch, values, options=Options(controls=1))
    assert row["margin"] == 6
    assert "margin" not in measure(LinearProbe(), batch, values, options=Options())[0]
    with pytest.raises(InputError, match="Expected more of 'a'"):
        check_needs(batch.concept_sets[0], LinearProbe(), Options(controls=1))
    with pytest.raises(InputError, match="likelihoods of 'a'"):
        check_needs(batch.concept_sets[0], RegressionProbe(), Options(controls=1))
    assert not Statistic(margin, predicts="class").is_of(RegressionProbe(), Options())


# --- controls


def test_control_labels_are_one_per_type() -> None:
    types = np.random.default_rng(0).integers(0, 40, size=600)
    labels = control_labels(types, seed=1, share=1 / 3)
    assert labels.dtype == bool
    for one in np.unique(types):
        assert len(set(labels[types == one])) == 1
    assert labels.mean() == pytest.approx(1 / 3, abs=0.03)
    np.testing.assert_array_equal(labels, control_labels(types, seed=1, share=1 / 3))
    assert any((labels != control_labels(types, seed=seed, share=1 / 3)).any() for seed in (2, 3))


def test_every_type_is_as_often_positive_over_seeds() -> None:
    types = np.repeat(np.arange(10), 5)
    often = np.mean([control_labels(types, seed=seed, share=0.5)[::5] for seed in range(600)], axis=0)
    np.testing.assert_allclose(often, 0.5, atol=0.09)  # four standard errors


def test_control_labels_do_not_depend_on_the_types_names() -> None:
    types = np.random.default_rng(0).integers(0, 9, size=100)
    np.testing.assert_array_equal(control_labels(types, seed=1, share=0.4), control_labels(types * 7 + 100, seed=1, share=0.4))


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_control_labels_always_have_two_classes(share: float) -> None:
    for seed in range(5):
        assert set(control_labels([0, 0, 1, 2], seed=seed, share=share).tolist()) == {True, False}


def test_a_probe_that_knows_types_by_heart_scores_on_held_out_images() -> None:
    # which is what selectivity takes away: nothing but the type can be read here
    generator = np.random.default_rng(0)
    types = generator.integers(0, 10, size=400)
    labels = control_labels(types, seed=0, share=0.4)
    learned = {one: labels[:300][types[:300] == one].mean() > 0.5 for one in range(10)}
    assert [learned[one] for one in types[300:]] == labels[300:].tolist()


def test_no_two_splits_have_control_labels_in_common(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels of every seed are others than those of every other seed, and the same again for the same seed."""
    drawn: list[tuple[int, ...]] = []
    draw = statistics.control_labels

    def noted(types: tuple[int, ...], *, seed: int, share: float) -> np.ndarray:
        drawn.append(tuple(draw(np.arange(40), seed=seed, share=share).tolist()))  # as many types as images: chance repeats nothing
        return draw(types, seed=seed, share=share)

    monkeypatch.setattr(statistics, "control_labels", noted)
    measure(LinearProbe(), problems(types=True, seeds=(0, 1, 2, 7)), np.zeros((4, 20)), options=Options(controls=3))
    assert len(set(drawn)) == len(drawn) == 12
    first = list(drawn)
    drawn.clear()
    measure(LinearProbe(), problems(types=True, seeds=(7,)), np.zeros((1, 20)), options=Options(controls=3))
    assert set(drawn) < set(first)


def test_permutations_shuffle_within_the_parts_and_follow_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    shuffled: list[np.ndarray] = []
    again = statistics.Measured.again

    def noted(self: statistics.Measured, targets: np.ndarray) -> statistics.Measured:
        shuffled.append(targets.copy())
        return again(self, targets)

    monkeypatch.setattr(statistics.Measured, "again", noted)
    batch = problems(60, n_positive=25, seeds=(0, 5))
    rows = measure(LinearProbe(), batch, np.zeros((2, 60)), options=Options(permutations=6))
    for targets in shuffled:
        assert (targets[:, :30].sum(axis=1) == batch.targets[0, :30].sum().item()).all()
        assert (targets.sum(axis=1) == 25).all()
    assert len({row.tobytes() for targets in shuffled for row in targets}) == 12
    assert rows[0]["p_value"] in [(k + 1) / 7 for k in range(7)]


# --- online codelength


def test_codelength_by_hand() -> None:
    # two images uniformly: 2 bits; then a probability of 3/4 and of 1/2 for what came: log2(4/3) + 1
    found = online_codelength([[np.nan, np.nan, -np.log(3), 0.0]], [1, 0, 0, 1], first=2)
    np.testing.assert_allclose(found, [3 + np.log2(4 / 3)])


def test_codelength_is_the_sum_over_blocks_of_what_each_probe_says() -> None:
    """Every block's labels at the price that a probe trained on the blocks before it sets."""
    batch = problems(40, n_positive=18, seeds=(3, 4))
    rows = measure(LinearProbe(), batch, np.zeros((2, 40)), options=Options(codelength=True))
    targets, X = batch.targets[0].numpy(), batch.Z[0].numpy()
    for seed, row in zip((3, 4), rows, strict=True):
        order, bits = statistics._order(targets > 0, seed, 10), 10.0
        assert sorted(order) == list(range(40))
        assert len(set(targets[order[:10]])) == 2
        for start, end in ((10, 20), (20, 40)):
            one = LogisticRegression(tol=1e-10, max_iter=10_000).fit(X[order[:start]], targets[order[:start]])
            bits -= np.log2(one.predict_proba(X[order[start:end]])[np.arange(end - start), targets[order[start:end]]]).sum()
        assert row["codelength"] == pytest.approx(bits, rel=1e-4)
        assert row["compression"] == pytest.approx(40 / bits, rel=1e-4)
    assert rows[0]["codelength"] != rows[1]["codelength"]


def test_knowing_nothing_costs_a_bit_per_label() -> None:
    assert float(online_codelength(np.zeros(100), np.arange(100) % 2, first=12)) == pytest.approx(100)


def test_blocks_double() -> None:
    assert codelength_ends(300) == (10, 19, 38, 75, 150, 300)
    assert codelength_ends(16) == (8, 16)
    assert codelength_ends(40) == (10, 20, 40)
