from __future__ import annotations

import warnings

import numpy as np
import pytest
import sklearn
from packaging.version import Version
from scipy.stats import rankdata
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import NearestCentroid
from sklearn.utils.estimator_checks import parametrize_with_checks

from neuroprobe.exceptions import InputError, UnknownNameError
from neuroprobe.probing import LinearProbe, MeanDifferenceProbe, NonlinearProbe, RegressionProbe, SparseProbe, list_probes, make_probe

CLASSIFIERS = [LinearProbe(), NonlinearProbe(max_iter=100, random_state=0), SparseProbe(path=(2, 5), cv=3), MeanDifferenceProbe()]
each_probe = pytest.mark.parametrize("probe", CLASSIFIERS, ids=lambda probe: probe.kind)


@parametrize_with_checks(
    [
        LinearProbe(),
        LinearProbe(C=(0.1, 1.0), cv=2),
        NonlinearProbe(hidden=8, max_iter=60, random_state=0),
        SparseProbe(path=(3, 30), cv=2),
        MeanDifferenceProbe(),
        RegressionProbe(),
    ]
)
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
    centered = train - train.mean(axis=0)
    return (X - train.mean(axis=0)) / (centered.std(axis=0) if scaling == "unit" else np.sqrt((centered**2).mean()))


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
    np.testing.assert_allclose(probe.decision_function(new), reference.decision_function(scaled(new, X, scaling)), atol=1e-4, rtol=1e-5)


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


def test_loss_is_that_of_the_fitted_weights() -> None:
    X, y = two_classes(50, 6)
    probe = NonlinearProbe(alpha=0, random_state=0).fit(X, y)
    likelihood = probe.predict_proba(X)[np.arange(50), y]
    assert probe.loss_ == pytest.approx(-np.log(likelihood).mean(), abs=1e-9)


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


@pytest.mark.parametrize("probe", CLASSIFIERS[:3], ids=lambda probe: probe.kind)  # class means that are equal say nothing of sizes
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
    assert getattr(single, "n_iter_", 0) == getattr(double, "n_iter_", 0)
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
def test_a_single_class_is_refused(probe) -> None:
    with pytest.raises(InputError, match=r"two classes or more, but all 10 targets have one class: .*1"):
        clone(probe).fit(np.random.default_rng(0).normal(size=(10, 3)), [1] * 10)


@each_probe
def test_an_unknown_scaling_is_refused(probe) -> None:
    with pytest.raises(InputError, match="`scaling` to be 'unit' or 'layer', but got 'image'"):
        clone(probe).set_params(scaling="image").fit(*two_classes(10, 3))


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (LinearProbe(C=float("inf")), "`C` to be a number above 0"),
        (LinearProbe(C="1"), "`C` to be a number above 0"),
        (LinearProbe(C=None), "`C` to be a number above 0"),
        (LinearProbe(C=(0.1, 1.0), cv=0), "`cv` to be a whole number of at least 2, but got 0"),
        (LinearProbe(C=(0.1, 1.0), cv=1), "`cv` to be a whole number of at least 2, but got 1"),
        (SparseProbe(cv=2.5), "`cv` to be a whole number of at least 2, but got 2.5"),
        (NonlinearProbe(hidden=0), "`hidden` to be a whole number of at least 1, but got 0"),
        (NonlinearProbe(max_iter=0), "`max_iter` to be a whole number of at least 1, but got 0"),
        (NonlinearProbe(alpha=-1), "`alpha` to be a number, at least 0, but got -1"),
        (NonlinearProbe(alpha=float("nan")), "`alpha` to be a number, at least 0, but got nan"),
    ],
)
def test_parameters_that_cannot_be_are_refused(probe, message: str) -> None:
    with pytest.raises(InputError, match=message):
        probe.fit(*two_classes(20, 3))


def test_a_hidden_layer_can_do_without_regularization() -> None:
    X, y = two_classes(40, 3, shift=3)
    assert NonlinearProbe(alpha=0, random_state=0).fit(X, y).score(X, y) > 0.9


@each_probe
def test_parameters_survive_cloning_and_fitting_stores_none(probe) -> None:
    mine = clone(probe).set_params(scaling="layer")
    copied = clone(mine.fit(*two_classes(20, 3)))
    assert copied.get_params() == mine.get_params()
    assert copied.get_params()["scaling"] == "layer"
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
    assert [type(make_probe(kind)) for kind in list_probes()] == list(list_probes().values())
    with pytest.raises(UnknownNameError, match=r"a kind of probe, but got 'nonlinaer'\. Did you mean 'nonlinear'"):
        make_probe("nonlinaer")


# --- several classes


def several_classes(n: int, d: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    y = generator.permutation(np.arange(n) % 4)
    return generator.normal(size=(n, d)) + 1.5 * generator.normal(size=(4, d))[y] / np.sqrt(d) * 3, y


@pytest.mark.parametrize("d", [5, 200])
@pytest.mark.parametrize("C", [1.0, 0.01])
def test_several_classes_are_multinomial_logistic_regression(C: float, d: int) -> None:
    X, y = several_classes(80, d)
    new = several_classes(30, d, seed=1)[0]
    reference = accurate(C).fit(scaled(X, X, "unit"), y)
    probe = LinearProbe(C=C).fit(X, y)
    assert probe.coef_.shape == (4, d)
    np.testing.assert_allclose(probe.decision_function(new), reference.decision_function(scaled(new, X, "unit")), atol=1e-4, rtol=1e-5)
    np.testing.assert_allclose(probe.predict_proba(new), reference.predict_proba(scaled(new, X, "unit")), atol=1e-4)


@each_probe
def test_a_whole_group_at_once(probe) -> None:
    X, y = several_classes(200, 30)
    names = np.array(["none", "red", "yellow", "blue"])[y]
    fitted = clone(probe).fit(X[:150], names[:150])
    assert fitted.classes_.tolist() == ["blue", "none", "red", "yellow"]
    assert fitted.score(X[150:], names[150:]) > 0.6
    np.testing.assert_allclose(fitted.predict_proba(X).sum(axis=1), 1)


# --- the strength of the regularization


def test_C_is_chosen_by_the_log_loss_on_images_left_out() -> None:
    X, y = two_classes(80, 60)
    candidates = (1e-4, 0.01, 1.0, 100.0)
    probe = LinearProbe(C=candidates).fit(X, y)
    Z = scaled(X, X, "unit")
    losses = dict.fromkeys(candidates, 0.0)
    for train, test in StratifiedKFold(5, shuffle=True, random_state=0).split(Z, y):
        for C in candidates:
            losses[C] -= accurate(C).fit(Z[train], y[train]).predict_log_proba(Z[test])[np.arange(len(test)), y[test]].sum()
    assert probe.C_ == min(losses, key=losses.get) == 0.01
    np.testing.assert_allclose(probe.coef_, LinearProbe(C=0.01).fit(X, y).coef_)


@pytest.mark.parametrize("C", [0, -1.0, (), (1.0, 0.0)])
def test_a_strength_that_is_none_is_refused(C) -> None:
    with pytest.raises(InputError, match="`C` to be a number above 0, or several to choose from, but got"):
        LinearProbe(C=C).fit(*two_classes(10, 3))


# --- the sparse probe


def l1_loss(weights: np.ndarray, offset: float, Z: np.ndarray, y: np.ndarray, C: float) -> float:
    logits = Z @ weights + offset
    return float(np.abs(weights).sum() + C * (np.logaddexp(0, logits) - y * logits).sum())


#: scikit-learn 1.8 took `penalty` away; before it, `l1_ratio` alone says nothing.
L1 = {"l1_ratio": 1} if Version(sklearn.__version__) >= Version("1.8") else {"penalty": "l1"}


def test_the_path_minimizes_the_l1_loss() -> None:
    X, y = two_classes(80, 40)
    Z = scaled(X, X, "unit")
    probe = SparseProbe(path=(1.5, 10)).fit(X, y)
    for C, coef in zip(probe.path_, probe.path_coef_, strict=True):
        reference = LogisticRegression(C=C, **L1, solver="saga", tol=1e-10, max_iter=100_000).fit(Z, y)
        best = l1_loss(reference.coef_[0], reference.intercept_[0], Z, y, C)
        weights = coef[0] * X.std(axis=0)
        offsets = np.linspace(-2, 2, 4001)
        assert min(l1_loss(weights, o, Z, y, C) for o in offsets) == pytest.approx(best, rel=1e-5)
        np.testing.assert_array_equal(weights != 0, reference.coef_[0] != 0)


def test_the_path_starts_where_the_first_weight_appears() -> None:
    X, y = two_classes(60, 20)
    assert not SparseProbe(path=(0.99,)).fit(X, y).coef_.any()
    assert np.count_nonzero(SparseProbe(path=(1.001,)).fit(X, y).coef_) == 1


def test_the_sparse_probe_finds_the_units_that_carry_the_class() -> None:
    generator = np.random.default_rng(0)
    X, y = generator.normal(size=(300, 100)), np.arange(300) % 2
    X[:, [7, 30]] += 1.5 * y[:, None]
    probe = SparseProbe(path=(2.0,)).fit(X, y)
    assert set(np.flatnonzero(probe.coef_[0])) <= {7, 30}
    assert SparseProbe().fit(X, y).score(X, y) > 0.85


# --- class means and ridge regression


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("d", [5, 200])
def test_class_means_are_the_nearest_centroid(n_classes: int, d: int) -> None:
    X, y = several_classes(80, d)
    y = y % n_classes
    new = several_classes(30, d, seed=1)[0]
    reference = NearestCentroid().fit(scaled(X, X, "unit"), y)
    np.testing.assert_array_equal(MeanDifferenceProbe().fit(X, y).predict(new), reference.predict(scaled(new, X, "unit")))


def test_the_direction_is_the_difference_of_the_means() -> None:
    X = np.array([[0.0, 0], [2, 0], [4, 3], [6, 3]])
    probe = MeanDifferenceProbe(scaling="layer").fit(X, [0, 0, 1, 1])
    assert probe.coef_[0, 0] / probe.coef_[0, 1] == pytest.approx(4 / 3)
    assert probe.decision_function([[3, 1.5]]) == pytest.approx([0], abs=1e-12)


@pytest.mark.parametrize("d", [5, 200])
def test_the_regression_is_ridge_with_the_strength_of_leaving_one_out(d: int) -> None:
    X, _ = two_classes(60, d)
    y = X[:, 0] + np.random.default_rng(3).normal(size=60)
    alphas = np.logspace(-2, 5, 15)
    Z = scaled(X, X, "unit")
    reference = RidgeCV(alphas=alphas).fit(Z, y)
    probe = RegressionProbe(alpha=alphas).fit(X, y)
    assert probe.alpha_ == pytest.approx(reference.alpha_)
    np.testing.assert_allclose(probe.predict(X), reference.predict(Z), atol=1e-8)
    expected = np.corrcoef(rankdata(probe.predict(X)), rankdata(y))[0, 1]
    assert probe.rank_correlation(X, y) == pytest.approx(expected)


# --- directions across the images' span


def test_weights_across_the_training_images_stay_and_shrink() -> None:
    """A test image has a part in directions that no training image has; first weights reach there."""
    generator = np.random.default_rng(0)
    X, y = generator.normal(size=(20, 400)), np.arange(20) % 2
    across = np.linalg.svd(X - X.mean(axis=0))[2][-1] * 30  # at a right angle to all of them
    free, held = (NonlinearProbe(alpha=a, random_state=0, scaling="layer").fit(X, y) for a in (1e-6, 0.05))
    moved = [np.abs(p.decision_function(X + across) - p.decision_function(X)).mean() for p in (free, held)]
    assert moved[0] > 3 * moved[1] > 0
