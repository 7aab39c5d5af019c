from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy.optimize import check_grad, minimize
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from neuroprobe.exceptions import InputError, UnknownNameError
from neuroprobe.probes import LinearProbe, NonlinearProbe, _loss_and_gradient, make_probe

PROBES = [LinearProbe(), NonlinearProbe(random_state=0)]
each_probe = pytest.mark.parametrize("probe", PROBES, ids=["linear", "nonlinear"])


@parametrize_with_checks([LinearProbe(), NonlinearProbe(hidden=8, max_iter=60, random_state=0)])
def test_scikit_learns_contract(estimator, check) -> None:
    check(estimator)


def two_classes(n: int, d: int, *, seed: int = 0, shift: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Units of very different means and spreads; the first three differ between the classes."""
    generator = np.random.default_rng(seed)
    y = generator.permutation(np.arange(n) % 2)
    X = generator.normal(size=(n, d))
    X[:, :3] += shift * y[:, None]
    return X * generator.exponential(size=d) + generator.normal(size=d) * 5, y


def scaled(X: np.ndarray, train: np.ndarray, scaling: str) -> np.ndarray:
    centred = train - train.mean(axis=0)
    return (X - train.mean(axis=0)) / (centred.std(axis=0) if scaling == "unit" else np.sqrt((centred**2).mean()))


def accurate(C: float) -> LogisticRegression:
    return LogisticRegression(C=C, tol=1e-12, max_iter=100_000)


# --- the linear probe is logistic regression


@pytest.mark.parametrize("scaling", ["unit", "layer"])
@pytest.mark.parametrize("d", [5, 60, 300], ids=["n > d", "n = d", "n < d"])
@pytest.mark.parametrize("C", [1.0, 0.01])
def test_the_linear_probe_is_logistic_regression_of_the_scaled_units(scaling: str, d: int, C: float) -> None:
    X, y = two_classes(60, d)
    new = two_classes(20, d, seed=1)[0]
    reference = accurate(C).fit(scaled(X, X, scaling), y)
    probe = LinearProbe(C=C, scaling=scaling).fit(X, y)
    np.testing.assert_allclose(probe.decision_function(X), reference.decision_function(scaled(X, X, scaling)), atol=1e-4)
    np.testing.assert_allclose(probe.decision_function(new), reference.decision_function(scaled(new, X, scaling)), atol=1e-4)


def test_one_unit_that_outweighs_the_others_does_not_hide_them() -> None:
    # with one scale for the layer, nearly all of the variance lies in one direction; the class lies in the others
    X, y = np.random.default_rng(0).normal(size=(40, 5000)), np.arange(40) % 2
    X[:, 0] *= 3e4
    X[:, 1:] += 0.2 * y[:, None]
    reference = accurate(1.0).fit(scaled(X, X, "layer"), y).decision_function(scaled(X, X, "layer"))
    assert np.abs(reference).max() > 0.05
    np.testing.assert_allclose(LinearProbe(scaling="layer").fit(X, y).decision_function(X), reference, atol=1e-4)


def test_coefficients_are_of_the_units_as_they_came() -> None:
    X, y = two_classes(40, 90)
    probe = LinearProbe().fit(X, y)
    assert probe.coef_.shape == (1, 90)
    np.testing.assert_allclose(X @ probe.coef_[0] + probe.intercept_[0], probe.decision_function(X), atol=1e-9)


# --- the nonlinear probe


@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_the_gradient_is_that_of_the_loss(alpha: float) -> None:
    generator = np.random.default_rng(0)
    Z, targets, hidden = generator.normal(size=(13, 4)), (np.arange(13) % 2).astype(float), 5
    for _ in range(3):
        weights = generator.normal(size=4 * hidden + 2 * hidden + 1)
        error = check_grad(
            lambda w: _loss_and_gradient(w, Z, targets, hidden, alpha)[0],
            lambda w: _loss_and_gradient(w, Z, targets, hidden, alpha)[1],
            weights,
        )
        assert error < 1e-5


def slow_loss(weights: np.ndarray, Z: np.ndarray, targets: np.ndarray, hidden: int, alpha: float) -> float:
    d = Z.shape[1]
    first, bias = weights[: d * hidden].reshape(d, hidden), weights[d * hidden : (d + 1) * hidden]
    second, offset = weights[(d + 1) * hidden : -1], weights[-1]
    total = 0.0
    for row, target in zip(Z, targets, strict=True):
        logit = offset + sum(second[j] * max(row @ first[:, j] + bias[j], 0) for j in range(hidden))
        probability = 1 / (1 + np.exp(-logit))
        total -= np.log(probability if target else 1 - probability)
    return total / len(Z) + alpha / 2 * (np.sum(first**2) + np.sum(second**2))


def test_the_loss_is_the_plain_formula() -> None:
    generator = np.random.default_rng(0)
    Z, targets = generator.normal(size=(13, 4)), (np.arange(13) % 2).astype(float)
    weights = generator.normal(size=31)
    assert _loss_and_gradient(weights, Z, targets, 5, 0.1)[0] == pytest.approx(slow_loss(weights, Z, targets, 5, 0.1))


def test_fewer_images_than_units_are_solved_as_in_all_dimensions() -> None:
    """The optimiser is run over all units from the same first weights, which lie in the images' span."""
    X, y = two_classes(30, 200)
    probe = NonlinearProbe(hidden=6, alpha=0.05, max_iter=15, random_state=4).fit(X, y)
    basis = probe._coordinates.basis
    assert basis.shape == (200, 29)
    np.testing.assert_allclose(basis.T @ basis, np.eye(29), atol=1e-8)
    generator = np.random.RandomState(4)
    first = basis @ (generator.normal(size=29 * 6) / np.sqrt(200)).reshape(29, 6)
    start = np.concatenate([first.ravel(), np.zeros(6), generator.normal(size=6) / np.sqrt(6), [0]])
    Z = scaled(X, X, "unit")
    options = {"maxiter": 15, "gtol": 0, "ftol": 0}
    whole = minimize(_loss_and_gradient, start, (Z, y, 6, 0.05), jac=True, method="L-BFGS-B", options=options)
    assert (whole.nit, probe.n_iter_) == (15, 15)
    assert probe.loss_ == pytest.approx(whole.fun, rel=1e-6)
    new = scaled(two_classes(20, 200, seed=1)[0], X, "unit")
    hidden = np.maximum(new @ whole.x[: 200 * 6].reshape(200, 6) + whole.x[1200:1206], 0)
    expected = hidden @ whole.x[1206:1212] + whole.x[1212]
    np.testing.assert_allclose(probe.decision_function(two_classes(20, 200, seed=1)[0]), expected, rtol=1e-4, atol=1e-5)


def test_loss_is_that_of_the_fitted_weights() -> None:
    X, y = two_classes(50, 6)
    probe = NonlinearProbe(alpha=0, random_state=0).fit(X, y)
    likelihood = probe.predict_proba(X)[np.arange(50), y]
    assert probe.loss_ == pytest.approx(-np.log(likelihood).mean())


def test_what_a_line_cannot_separate() -> None:
    generator = np.random.default_rng(0)
    X = generator.uniform(-1, 1, size=(400, 2))
    y = (X[:, 0] > 0) ^ (X[:, 1] > 0)
    train, test = slice(0, 300), slice(300, 400)
    assert LinearProbe().fit(X[train], y[train]).score(X[test], y[test]) < 0.75
    assert NonlinearProbe(alpha=1e-3, random_state=0).fit(X[train], y[train]).score(X[test], y[test]) > 0.93


# --- both


@each_probe
@pytest.mark.parametrize("d", [6, 90])
def test_neither_shifts_nor_scales_of_units_matter(probe, d: int) -> None:
    X, y = two_classes(40, d)
    factors, offsets = np.random.default_rng(5).uniform(0.1, 50, size=(2, d))
    found = clone(probe).fit(X * factors + offsets, y).decision_function(X * factors + offsets)
    np.testing.assert_allclose(found, clone(probe).fit(X, y).decision_function(X), rtol=1e-3, atol=1e-3)


@each_probe
def test_scaling_is_learned_from_the_training_part_alone(probe) -> None:
    X, y = two_classes(60, 10)
    fitted = clone(probe).fit(X, y)
    new = two_classes(20, 10, seed=1)[0]
    alone = np.concatenate([fitted.decision_function(row[None]) for row in new])
    np.testing.assert_allclose(fitted.decision_function(new), alone, atol=1e-9)
    among_outliers = fitted.decision_function(np.concatenate([new, new * 1000 + 500]))[:20]
    np.testing.assert_allclose(among_outliers, alone, atol=1e-9)
    shifted = fitted.decision_function(new + 3)
    assert np.abs(shifted - alone).max() > 0.1  # a scaler that saw them would have taken the shift away


@each_probe
@pytest.mark.parametrize("d", [4, 100])
@pytest.mark.parametrize("scaling", ["unit", "layer"])
def test_constant_units_have_no_say(probe, d: int, scaling: str) -> None:
    X, y = two_classes(50, d)
    constants = np.tile(np.random.default_rng(2).normal(size=20) * 1e3, (50, 1))
    whole = np.concatenate([X, constants], axis=1)
    fitted = clone(probe).set_params(scaling=scaling).fit(whole, y)
    assert fitted.score(whole, y) > 0.7
    moved = whole.copy()
    moved[:, d:] *= 1 + 1e-9
    np.testing.assert_allclose(fitted.decision_function(moved), fitted.decision_function(whole), atol=1e-3)
    if isinstance(probe, LinearProbe):
        np.testing.assert_allclose(fitted.coef_[0, d:], 0, atol=1e-9)
        if scaling == "unit":
            np.testing.assert_allclose(fitted.decision_function(whole), clone(probe).fit(X, y).decision_function(X), atol=1e-4)


@each_probe
@pytest.mark.parametrize("scaling", ["unit", "layer"])
@pytest.mark.parametrize("shape", [(30, 1), (30, 4), (7, 100)])
def test_where_nothing_varies_the_majority_is_predicted(probe, scaling: str, shape: tuple[int, int]) -> None:
    X = np.tile(np.random.default_rng(1).normal(size=shape[1]) * 10, (shape[0], 1))
    y = np.arange(shape[0]) % 3 > 0
    fitted = clone(probe).set_params(scaling=scaling).fit(X, y)
    assert fitted.predict(X).all()
    np.testing.assert_allclose(fitted.predict_proba(X)[:, 1], y.mean(), atol=0.02)
    assert fitted.predict(X * (1 + 1e-12)).all()


@each_probe
def test_float32_input_is_computed_in_float64(probe) -> None:
    X, y = two_classes(40, 90)
    X = X.astype(np.float32)
    single, double = clone(probe).fit(X, y), clone(probe).fit(X.astype(np.float64), y)
    found = single.decision_function(X)
    assert found.dtype == np.float64
    # the fit is the same; only the way back to the units, which can be large, is kept as the units came
    assert single.n_iter_ == double.n_iter_
    np.testing.assert_allclose(found, double.decision_function(X.astype(np.float64)), rtol=1e-6)


@each_probe
def test_the_input_is_not_changed(probe) -> None:
    X, y = two_classes(40, 90)
    before = X.copy(), y.copy()
    clone(probe).fit(X, y).predict(X)
    np.testing.assert_array_equal(X, before[0])
    np.testing.assert_array_equal(y, before[1])


@each_probe
def test_labels_may_be_texts(probe) -> None:
    X, y = two_classes(60, 10, shift=4)
    fitted = clone(probe).fit(X, np.where(y == 1, "striped", "none"))
    assert fitted.classes_.tolist() == ["none", "striped"]
    assert set(fitted.predict(X)) == {"none", "striped"}
    np.testing.assert_array_equal(fitted.predict(X) == "striped", clone(probe).fit(X, y).predict(X) == 1)


@each_probe
@pytest.mark.parametrize("d", [3, 300])
def test_perfect_separation_stays_finite(probe, d: int) -> None:
    X, y = two_classes(40, d, shift=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = clone(probe).fit(X, y)
        assert fitted.score(X, y) == 1
        assert np.isfinite(fitted.decision_function(X * 100)).all()
        assert np.isfinite(fitted.predict_proba(X * 1e6)).all()


@each_probe
def test_probabilities_are_the_decisions(probe) -> None:
    X, y = two_classes(60, 10)
    fitted = clone(probe).fit(X, y)
    probabilities, decision = fitted.predict_proba(X), fitted.decision_function(X)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    np.testing.assert_allclose(np.log(probabilities[:, 1] / probabilities[:, 0]), decision, atol=1e-6)
    np.testing.assert_array_equal(fitted.predict(X), fitted.classes_[probabilities.argmax(axis=1)])


@each_probe
@pytest.mark.parametrize(
    ("targets", "shown"), [([1] * 10, "two classes, but all 10 targets have one class: .*1"), ([0, 1, 2] * 4, "3 classes")]
)
def test_other_than_two_classes_are_refused(probe, targets: list[int], shown: str) -> None:
    with pytest.raises(InputError, match=shown):
        clone(probe).fit(np.random.default_rng(0).normal(size=(len(targets), 3)), targets)


@each_probe
def test_an_unknown_scaling_is_refused(probe) -> None:
    with pytest.raises(InputError, match="`scaling` to be 'unit' or 'layer', but got 'image'"):
        clone(probe).set_params(scaling="image").fit(*two_classes(10, 3))


@each_probe
def test_parameters_survive_cloning_and_fitting_stores_none(probe) -> None:
    mine = clone(probe).set_params(scaling="layer", max_iter=77)
    copied = clone(mine.fit(*two_classes(20, 3)))
    assert copied.get_params() == mine.get_params()
    assert copied.get_params()["max_iter"] == 77
    assert not hasattr(copied, "classes_")


@each_probe
def test_probes_work_in_cross_validation(probe) -> None:
    assert cross_val_score(clone(probe), *two_classes(90, 5, shift=3), cv=3).mean() > 0.9


def test_the_random_state_alone_decides() -> None:
    X, y = two_classes(40, 20)

    def decisions(seed: int) -> np.ndarray:
        return NonlinearProbe(random_state=seed).fit(X, y).decision_function(X)

    np.testing.assert_array_equal(decisions(3), decisions(3))
    assert np.abs(decisions(3) - decisions(4)).max() > 1e-4


@each_probe
def test_the_global_random_state_stays(probe) -> None:
    np.random.seed(0)
    before = np.random.get_state()[1].tolist()
    clone(probe).fit(*two_classes(30, 50))
    assert np.random.get_state()[1].tolist() == before


def test_probes_by_their_kind() -> None:
    assert make_probe("linear", scaling="layer").get_params() == LinearProbe(scaling="layer").get_params()
    assert make_probe("nonlinear", seed=5).get_params() == NonlinearProbe(random_state=5).get_params()
    with pytest.raises(UnknownNameError, match=r"a kind of probe, but got 'nonlinaer'\. Did you mean 'nonlinear'"):
        make_probe("nonlinaer")
