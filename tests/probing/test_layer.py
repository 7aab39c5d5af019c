from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu, spearmanr
from sklearn.metrics import average_precision_score, balanced_accuracy_score, r2_score, roc_auc_score

from neuroprobe.concepts import ConceptSet
from neuroprobe.exceptions import InputError
from neuroprobe.probing import (
    LinearProbe,
    MeanDifferenceProbe,
    Options,
    RegressionProbe,
    Sample,
    Solution,
    SparseProbe,
    Split,
    Training,
    fit_layer,
    make_tasks,
    probes,
    register_probe,
    split,
)
from neuroprobe.probing import _layer as layer
from neuroprobe.probing._layer import FullScope, layer_grams, scaled_problems
from neuroprobe.probing._linear import Weights
from neuroprobe.probing._problems import Problems, decisions, joined
from neuroprobe.probing._statistics import measure

CPU = torch.device("cpu")


def concept_set(n: int = 60, *, concept: str = "a", types: bool = False) -> ConceptSet:
    ids = tuple(f"{concept}{i}" for i in range(n))
    known = tuple(i % 7 for i in range(n)) if types else ()
    likelihoods = tuple(np.linspace(0.95, 0.05, n)) if types else ()
    return ConceptSet(concept, "g", ids[: n // 3], ids[n // 3 :], types=known, likelihoods=likelihoods)


def sample(
    d: int, *, concept: str = "a", seed: int = 0, shift: float = 1.0, types: bool = False, seeds: tuple[int, ...] = (0, 1)
) -> Sample:
    set_ = concept_set(concept=concept, types=types)
    X = np.random.default_rng(seed).normal(size=(60, d)).astype(np.float32)
    X[:, :2] += shift * set_.targets[:, None]
    return Sample(set_, {s: split(set_, held_out=0.3, seed=s) for s in seeds}, X, np.arange(60))


def fitted(samples: list[Sample], *, scopes=("layer",), options: Options | None = None, probes=(("linear", "pooled"),)) -> dict:
    tasks = make_tasks(probes, scopes)
    names = [s.concept_set.concept for s in samples]
    return fit_layer(samples, [(task, names) for task in tasks], options=options or Options(), device=CPU)


# --- what is measured


def problems(d: int, *, concept: str = "a") -> tuple[Problems, Sample]:
    s = sample(d, types=True)
    (found,) = joined(scaled_problems(s, "pooled", CPU), rotated=False)
    return found, s


@pytest.mark.parametrize("d", [5, 90])
@pytest.mark.parametrize("probe", [LinearProbe(), LinearProbe(C=(0.01, 1.0)), MeanDifferenceProbe(), SparseProbe(path=(2.0, 5.0))])
def test_decisions_are_those_of_the_estimator(probe, d: int) -> None:
    batch, s = problems(d)
    found = decisions(probe, batch)
    for row, part in zip(found, s.splits.values(), strict=True):
        estimator = type(probe)(**probe.get_params()).fit(s.X[part.train], s.concept_set.targets[part.train])
        np.testing.assert_allclose(row, estimator.decision_function(s.X.astype(float)), atol=2e-3)


def test_a_regression_is_scored_by_what_it_explains() -> None:
    batch, s = problems(90)
    probe = RegressionProbe()
    values = decisions(probe, batch)
    wanted = np.array(s.concept_set.likelihoods)
    for row, value, part in zip(measure(probe, batch, values, options=Options()), values, s.splits.values(), strict=True):
        estimator = RegressionProbe().fit(s.X[part.train], wanted[part.train])
        np.testing.assert_allclose(value, estimator.predict(s.X), atol=1e-4)
        assert row["r2"] == pytest.approx(r2_score(wanted[part.test], value[part.test]))
        assert row["rank_correlation"] == pytest.approx(spearmanr(wanted[part.test], value[part.test]).statistic)
        assert np.isnan(row["test_accuracy"])


def test_every_score_is_of_the_part_it_says() -> None:
    """Decision values that are right on the training part alone: a score of another part would show it."""
    batch, s = problems(4)
    targets = s.concept_set.targets
    values = np.random.default_rng(0).normal(size=(2, 60))
    for i, part in enumerate(s.splits.values()):
        values[i, part.train] = np.where(targets[part.train] == 1, 9, -9)
    for row, value, part in zip(measure(LinearProbe(), batch, values, options=Options()), values, s.splits.values(), strict=True):
        held_out, decision = targets[part.test], value[part.test]
        assert row["train_accuracy"] == 1
        assert row["test_accuracy"] == np.mean((decision > 0) == held_out) < 0.8
        assert row["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(held_out, decision > 0))
        assert row["auroc"] == pytest.approx(roc_auc_score(held_out, decision))
        assert row["average_precision"] == pytest.approx(average_precision_score(held_out, decision))
        assert row["baseline"] == pytest.approx(max(np.mean(held_out), 1 - np.mean(held_out)))
        assert (row["n_train"], row["n_test"], row["n_test_positive"]) == (42, 18, held_out.sum())
        assert row["sensitivity"] == pytest.approx(np.mean(decision[held_out == 1] > 0))


@pytest.mark.parametrize("features", ["pooled", "spatial"])
@pytest.mark.parametrize("kind", ["linear", "nonlinear", "mean_difference"])
def test_a_cell_does_not_feel_which_others_are_there(features: str, kind: str) -> None:
    samples = [sample(80, concept=c, seed=i) for i, c in enumerate("abc")]
    together = fitted(samples, probes=[(kind, features)])
    for one in samples:
        for key, cell in fitted([one], probes=[(kind, features)]).items():
            for row, other in zip(cell.rows, next(v for k, v in together.items() if k[0] == key[0]).rows, strict=True):
                assert row == pytest.approx(other)


# --- a kind of one's own


class Anchored(LinearProbe):
    """The same as a linear probe, but shifted: its decisions show that a study took its `solve`."""

    kind = "anchored"

    def solve(self, training: Training) -> Solution:
        found = super().solve(training)
        return Solution(Weights(found.function.weights, found.function.offsets + 3), found.learned)


def test_a_kind_that_is_registered_is_fitted_alone_and_in_every_scope_of_a_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_KINDS", dict(probes._KINDS))
    register_probe(Anchored)
    with pytest.raises(InputError, match="a new kind of probe, but 'anchored' is Anchored"):
        register_probe(type("Other", (LinearProbe,), {"kind": "anchored"}))
    s = sample(5)
    X, y = s.X.astype(float), s.concept_set.targets
    np.testing.assert_allclose(Anchored().fit(X, y).decision_function(X), LinearProbe().fit(X, y).decision_function(X) + 3)
    options = Options(keep_directions=True)
    found = fitted([s], scopes=("neuron", "layer"), probes=[("anchored", "pooled"), ("linear", "pooled")], options=options)
    cells = {task.name: cell for (_, task), cell in found.items()}
    for seed, (weights, bias) in cells["prob-layer-anchored"].directions.items():
        np.testing.assert_allclose(weights, cells["prob-layer-linear"].directions[seed][0], rtol=1e-5)
        assert bias == pytest.approx(cells["prob-layer-linear"].directions[seed][1] + 3)
    assert cells["prob-neuron-anchored"].units.auroc == pytest.approx(cells["prob-neuron-linear"].units.auroc)


def test_the_code_of_a_kind_of_ones_own_tells_it_from_others() -> None:
    class Changed(Anchored):
        def solve(self, training: Training) -> Solution:
            return super().solve(training)

    assert Changed().identity != Anchored().identity == Anchored().identity != LinearProbe().identity


# --- scope neuron


def test_the_unit_is_chosen_by_the_training_part_and_scored_on_the_other() -> None:
    s = sample(6, shift=0)
    (part,) = splits = (split(s.concept_set, held_out=0.3, seed=0),)
    X, targets = s.X.copy(), s.concept_set.targets
    X[part.train, 2] += 5 * targets[part.train]  # one that only the training part shows
    X[part.test, 4] += 9 * targets[part.test]  # one that only the held-out part shows
    (cell,) = fitted([Sample(s.concept_set, {0: splits[0]}, X, s.rows)], scopes=("neuron",)).values()
    (row,) = cell.rows
    assert row["unit"] == 2
    assert row["train_accuracy"] > 0.95
    assert row["test_accuracy"] < 0.85
    assert cell.units.test_accuracy.shape == (6,)
    assert cell.units.test_accuracy[2] == row["test_accuracy"]


@pytest.mark.parametrize("kind", ["linear", "nonlinear", "mean_difference"])
def test_a_concept_in_one_unit_is_found_there(kind: str) -> None:
    s = sample(40, shift=0)
    X = s.X.copy()
    X[:, 17] -= 3 * s.concept_set.targets
    (cell,) = fitted([Sample(s.concept_set, s.splits, X, s.rows)], scopes=("neuron",), probes=[(kind, "pooled")]).values()
    assert [row["unit"] for row in cell.rows] == [17, 17]
    assert cell.units.auroc.argmax() == cell.units.p_value.argmin() == 17
    assert cell.units.p_value[17] < 1e-6 < np.delete(cell.units.p_value, 17).min()


def test_units_are_what_a_layer_of_one_unit_is() -> None:
    s = sample(3)
    (cell,) = fitted([s], scopes=("neuron",)).values()
    for unit in range(3):
        (alone,) = fitted([Sample(s.concept_set, s.splits, s.X[:, [unit]], s.rows)]).values()
        assert cell.units.auroc[unit] == pytest.approx(np.mean([row["auroc"] for row in alone.rows]))
        assert cell.units.test_accuracy[unit] == pytest.approx(np.mean([row["test_accuracy"] for row in alone.rows]))


def test_the_p_value_of_a_unit_is_of_the_two_sided_rank_test_over_all_images() -> None:
    s = sample(4)
    (cell,) = fitted([s], scopes=("neuron",)).values()
    shows = s.concept_set.targets == 1
    wanted = mannwhitneyu(s.X[shows], s.X[~shows], method="asymptotic", use_continuity=False).pvalue
    np.testing.assert_allclose(cell.units.p_value, wanted, rtol=0.2)  # with a continuity or without


def test_rows_stand_in_the_order_of_the_seeds() -> None:
    s = sample(4, seeds=(5, 1))
    for cell in fitted([s], scopes=("neuron", "layer")).values():
        assert [row["seed"] for row in cell.rows] == [1, 5]


# --- scope full


def test_all_layers_together_have_a_mean_square_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = sample(4, seed=1), sample(30, seed=2)
    full, seen = FullScope(), []
    for s in (a, b):
        full.add(layer_grams(s, "pooled", CPU), s.X.shape[1])
    monkeypatch.setattr(layer, "joined", lambda problems, *, rotated: seen.extend(problems) or problems)
    full.fit(a, *make_tasks([("linear", "pooled")], ("full",)), options=Options())
    for problem in seen:
        assert problem.n_features == 34
        assert problem.Z[0, problem.train[0]].square().sum(dim=1).mean() == pytest.approx(34)


def test_all_layers_together_have_equal_weights() -> None:
    """As logistic regression on the standardized units of both layers, each divided by its number of units' root."""
    a, b = sample(4, seed=1), sample(30, seed=2)
    full = FullScope()
    for s in (a, b):
        full.add(layer_grams(s, "pooled", CPU), s.X.shape[1])
    (task,) = make_tasks([("linear", "pooled")], ("full",))
    rows = full.fit(a, task, options=Options()).rows
    targets = a.concept_set.targets
    for row, part in zip(rows, a.splits.values(), strict=True):
        layers = [(s.X - s.X[part.train].mean(axis=0)) / s.X[part.train].std(axis=0) / np.sqrt(s.X.shape[1]) for s in (a, b)]
        X = np.concatenate(layers, axis=1) * np.sqrt(34 / 2)
        # a layer scaling of this matrix is 1 already
        probe = LinearProbe(scaling="layer").fit(X[part.train], targets[part.train])
        assert row["test_accuracy"] == pytest.approx(probe.score(X[part.test], targets[part.test]), abs=0.06)
        assert row["auroc"] == pytest.approx(roc_auc_score(targets[part.test], probe.decision_function(X[part.test])), abs=0.02)


# --- control labels, permutations, codelength, directions


def test_control_labels_permutations_and_codelength_stand_beside_the_scores() -> None:
    options = Options(controls=2, permutations=19, codelength=True)
    (told,) = fitted([sample(5, shift=3, types=True)], options=options).values()
    (noise,) = fitted([sample(5, shift=0, types=True)], options=options).values()
    for row in told.rows:
        assert row["selectivity"] == row["test_accuracy"] - row["control_accuracy"] > 0.1
        assert row["p_value"] == 1 / 20
        assert row["codelength"] < 45
        assert row["compression"] == pytest.approx(60 / row["codelength"])
    for row in noise.rows:
        assert row["p_value"] > 0.05
        assert row["compression"] < 1.2


@pytest.mark.parametrize("kind", ["linear", "mean_difference"])
@pytest.mark.parametrize("features", ["pooled", "spatial"])
@pytest.mark.parametrize("d", [5, 200])
def test_directions_give_the_probes_decisions(kind: str, features: str, d: int) -> None:
    s = sample(d)
    (cell,) = fitted([s], options=Options(keep_directions=True), probes=[(kind, features)]).values()
    estimator = (LinearProbe if kind == "linear" else MeanDifferenceProbe)(scaling="unit" if features == "pooled" else "layer")
    for seed, part in s.splits.items():
        weights, bias = cell.directions[seed]
        estimator.fit(s.X[part.train].astype(float), s.concept_set.targets[part.train])
        np.testing.assert_allclose(weights, estimator.coef_[0], rtol=1e-3, atol=1e-5)
        assert bias == pytest.approx(estimator.intercept_[0], abs=1e-3)


def test_splits_put_negatives_first() -> None:
    set_ = concept_set()
    parts = split(set_, held_out=0.3, seed=0)
    assert isinstance(parts, Split)
    for part in (parts.train, parts.test):
        assert (np.diff(set_.targets[part]) >= 0).all()
