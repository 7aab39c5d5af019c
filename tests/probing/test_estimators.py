"""Classifiers of scikit-learn's kind as probes of a study: against a plain loop, and in the controls, splits and stores of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from neuroprobe import ActivationRecorder, ProbeReport, ProbingStudy
from neuroprobe.concepts import ConceptSet, ConceptSets
from neuroprobe.exceptions import InputError
from neuroprobe.probing import Training, split
from neuroprobe.probing._estimators import EstimatorProbe
from neuroprobe.world import ATTRIBUTES, WorldDataset, load_target, target_transform, world_images

IMAGES = world_images(160, seed=5)
LAYERS = ["features.2", "features.18"]


def red(n: int = 30) -> ConceptSet:
    shows = WorldDataset(len(IMAGES), seed=5).truth()[:, ATTRIBUTES.index("red")]
    ids = np.array(IMAGES.ids)
    return ConceptSet("red", "color", tuple(ids[shows][:n]), tuple(ids[~shows][:n]), types=tuple(range(5)) * (2 * n // 5))


def study(*probes: Any, **options: Any) -> ProbingStudy:
    return ProbingStudy(
        load_target(), LAYERS, ConceptSets({"red": red()}, {}), probes=[(p, "pooled") for p in probes], seeds=[0, 1], **options
    )


def run(*probes: Any, store: Path | None = None, **options: Any) -> ProbeReport:
    return study(*probes, **options).run(IMAGES, transform=target_transform(), store=store)


class Nearest(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """The nearer of two means; with a wrong answer on purpose, if asked."""

    def __init__(self, wrong: bool = False) -> None:
        self.wrong = wrong

    def fit(self, X: Any, y: Any) -> Nearest:
        self.means_ = np.stack([X[y == c].mean(axis=0) for c in (0, 1)])
        return self

    def decision_function(self, X: Any) -> Any:
        far, near = (((X - mean) ** 2).sum(axis=1) for mean in self.means_)
        return (near - far) if self.wrong else (far - near)


def test_it_is_a_plain_loop_over_scaled_units() -> None:
    table = run(KNeighborsClassifier(5)).table
    activations = ActivationRecorder(load_target(), LAYERS).record(IMAGES.subset(red().ids), transform=target_transform())
    for _, row in table.iterrows():
        parts = split(red(), held_out=0.3, seed=row["seed"])
        X = activations[row["layer"]].astype(np.float64)
        X = StandardScaler().fit(X[parts.train]).transform(X)
        fitted = KNeighborsClassifier(5).fit(X[parts.train], red().targets[parts.train])
        assert row["test_accuracy"] == pytest.approx(fitted.score(X[parts.test], red().targets[parts.test]))
        assert row["kind"] == "KNeighborsClassifier"
        assert row["probe"] == "prob-layer-KNeighborsClassifier"


def test_decision_functions_and_pipelines_do_too_and_ours_stand_beside_them() -> None:
    table = run("linear", Nearest(), make_pipeline(StandardScaler(), LogisticRegression(C=0.1)), DecisionTreeClassifier(max_depth=2)).table
    assert list(dict.fromkeys(table["kind"])) == ["linear", "Nearest", "Pipeline", "DecisionTreeClassifier"]
    late = table[table["layer"] == "features.18"].groupby("kind")["test_accuracy"].mean()
    assert late.min() > 0.8  # red is easy to read there
    wrong = run(Nearest(wrong=True)).table
    np.testing.assert_allclose(wrong["test_accuracy"], 1 - table.loc[table["kind"] == "Nearest", "test_accuracy"])


def test_its_random_state_is_the_splits_and_nothing_elses() -> None:
    forest = RandomForestClassifier(5, max_features=3, random_state=7)
    one, again = run(forest).table, run("linear", forest).table
    same = again[again["kind"] == "RandomForestClassifier"].reset_index(drop=True)
    np.testing.assert_array_equal(one["test_accuracy"], same["test_accuracy"])
    assert forest.random_state == 7
    assert not hasattr(forest, "estimators_")


def test_controls_permutations_and_codelength_are_measured_of_it() -> None:
    table = run(Nearest(), controls=1, permutations=9, codelength=True).table
    assert table[["selectivity", "p_value", "compression"]].notna().all(axis=None)
    assert table.loc[table["layer"] == "features.18", "p_value"].max() == pytest.approx(0.1)


def test_a_store_tells_its_parameters_and_its_code_apart(tmp_path: Path) -> None:
    def files() -> int:
        return len(list(tmp_path.iterdir()))

    first = run(Nearest(), store=tmp_path)
    n = files()
    assert run(Nearest(), store=tmp_path).table.equals(first.table)
    assert files() == n
    run(Nearest(wrong=True), store=tmp_path)
    assert files() == 2 * n

    class Changed(Nearest):
        def decision_function(self, X: Any) -> Any:
            return super().decision_function(X) + 1

    Changed.__name__ = Changed.__qualname__ = "Nearest"
    assert EstimatorProbe(Changed()).identity != EstimatorProbe(Nearest()).identity


@pytest.mark.parametrize(
    ("probe", "told"),
    [
        (StandardScaler(), "a scikit-learn classifier with decision_function or predict_proba"),
        (Nearest, "a scikit-learn classifier"),
        (3, "a scikit-learn classifier"),
        (type("Own", (Nearest,), {"kind": "linear"})(), "Give its class another `kind`"),
    ],
)
def test_what_cannot_be_a_probe_is_refused_before_the_run(probe: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        study(probe)


def test_spatial_features_and_other_scopes_are_refused() -> None:
    with pytest.raises(InputError, match="your own with pooled features"):
        ProbingStudy(load_target(), LAYERS, ConceptSets({"red": red()}, {}), probes=[(Nearest(), "spatial")])
    with pytest.raises(InputError, match="your own with pooled features"):
        study(Nearest(), scopes=["full"])


class Endless(Nearest):
    def decision_function(self, X: Any) -> Any:
        return np.full(len(X), np.inf)


def test_numbers_that_are_not_finite_are_told() -> None:
    with pytest.raises(InputError, match="Endless to give a finite number per image"):
        run(Endless())


def test_what_is_random_in_a_pipeline_follows_the_seed() -> None:
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(60, 4))
    targets = (rows[:, 0] + generator.normal(size=60) > 0).astype(int)
    probe = EstimatorProbe(make_pipeline(StandardScaler(), RandomForestClassifier(5)))
    Z, wanted = torch.from_numpy(rows).expand(3, -1, -1), torch.from_numpy(targets).expand(3, -1)
    found = probe.solve(Training(Z[:, :40], wanted[:, :40], (3, 3, 4), 4)).function.values(Z).numpy()
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


class Parametrized(Nearest):
    def __init__(self, value: Any = None) -> None:
        self.value = value


def test_parameters_count_with_what_they_are() -> None:
    one, other = np.zeros(2000), np.zeros(2000)
    other[1000] = 1  # which a repr leaves out
    assert EstimatorProbe(Parametrized(one)).identity != EstimatorProbe(Parametrized(other)).identity
    assert EstimatorProbe(Parametrized(one)).identity == EstimatorProbe(Parametrized(one.copy())).identity
    doubled, again, tripled = ((lambda x, n=n: n * x) for n in (2, 2, 3))  # an address is no difference
    assert EstimatorProbe(Parametrized(doubled)).identity == EstimatorProbe(Parametrized(again)).identity
    assert EstimatorProbe(Parametrized(doubled)).identity != EstimatorProbe(Parametrized(tripled)).identity


def test_the_steps_of_a_pipeline_count() -> None:
    def probe(step: Any) -> EstimatorProbe:
        return EstimatorProbe(make_pipeline(StandardScaler(), step))

    assert probe(Parametrized(1)).identity == probe(Parametrized(1)).identity
    assert len({probe(step).identity for step in (Parametrized(1), Parametrized(2), Nearest(), RandomForestClassifier(5))}) == 4
