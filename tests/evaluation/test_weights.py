from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from judged_world import BELOW, HEAD, TableEncoder, encoder, labeled
from scipy.stats import spearmanr

from neuroprobe.evaluation import WeightReport, compare_weights
from neuroprobe.exceptions import InputError
from neuroprobe.reports import LabelReport
from neuroprobe.world import load_target

GENERATOR = np.random.default_rng(3)
WORDS = [f"word {i}" for i in range(12)]
RANDOM = TableEncoder({word: GENERATOR.normal(size=6).tolist() for word in WORDS})
UPPER, LOWER = WORDS[:4], WORDS[4:] + WORDS[:2]
LABELS = {("up", u): word for u, word in enumerate(UPPER)} | {("low", u): word for u, word in enumerate(LOWER)}
WEIGHTS = GENERATOR.normal(size=(4, 10)).round(1)


def unit_vector(word: str) -> np.ndarray:
    return np.array(RANDOM.vectors[word]) / np.linalg.norm(RANDOM.vectors[word])


def weights_report(weights: object = WEIGHTS, labels: object = LABELS, **settings: object) -> WeightReport:
    return compare_weights(
        labels, weights, **{"upper": "up", "lower": "low", "encoder": RANDOM, "top": 3, "n_permutations": 99, **settings}
    )


def test_correlations_and_likeness_against_a_loop() -> None:
    table = weights_report().table
    cosines = np.array([[unit_vector(u) @ unit_vector(w) for w in LOWER] for u in UPPER])
    alike = np.array([[cosines[u, w] - np.mean([cosines[v, w] for v in range(4)]) for w in range(10)] for u in range(4)])
    for u, row in table.iterrows():
        assert row["correlation"] == pytest.approx(spearmanr(WEIGHTS[u], alike[u]).statistic)
        order = sorted(range(10), key=lambda w: -WEIGHTS[u, w])
        assert row["top_likeness"] == pytest.approx(np.mean([alike[u, w] for w in order[:3]]))
        assert row["other_likeness"] == pytest.approx(np.mean([alike[u, w] for w in order[3:]]))
        assert row["top_concepts"] == ", ".join(LOWER[w] for w in order[:3])
    points = weights_report().plot().lines[0]
    np.testing.assert_array_equal(points.get_xdata(), table["other_likeness"])
    np.testing.assert_array_equal(points.get_ydata(), table["top_likeness"])
    assert table["concept"].tolist() == UPPER
    assert set(table["layer"]) == {"up"}


def test_p_values_count_permutations_of_the_lower_labels() -> None:
    report = weights_report(seed=7)
    correlations = report.table["correlation"].to_numpy()
    cosines = np.array([[unit_vector(u) @ unit_vector(w) for w in LOWER] for u in UPPER])
    alike, generator, null = cosines - cosines.mean(axis=0), np.random.default_rng(7), []
    for _ in range(99):
        order = generator.permutation(10)
        null.append([spearmanr(WEIGHTS[u], alike[u, order]).statistic for u in range(4)])
    at_least = (np.array(null) >= correlations - 1e-12).sum(axis=0)
    np.testing.assert_allclose(report.table["p_value"], (at_least + 1) / 100)
    assert report.value("p_value") == pytest.approx((1 + (np.mean(null, axis=1) >= correlations.mean()).sum()) / 100)
    assert (report.table["q_value"] >= report.table["p_value"]).all()


def test_p_values_are_uniform_when_weights_say_nothing() -> None:
    generator = np.random.default_rng(0)
    p_values = [
        weights_report(generator.normal(size=(4, 10)), seed=i, n_permutations=49, n_resamples=10).value("p_value") for i in range(120)
    ]
    assert 0.02 <= np.mean(np.array(p_values) <= 0.1) <= 0.17
    assert 0.4 < np.mean(p_values) < 0.6


def test_units_without_a_label_are_left_out_with_their_weights() -> None:
    some = {unit: word for unit, word in LABELS.items() if unit not in (("up", 1), ("low", 0), ("low", 9))}
    report = weights_report(labels=some)
    kept = {("up", i): UPPER[u] for i, u in enumerate((0, 2, 3))} | {("low", w - 1): LOWER[w] for w in range(1, 9)}
    expected = weights_report(WEIGHTS[[0, 2, 3]][:, 1:9], kept)
    assert report.table["unit"].tolist() == [0, 2, 3]
    pd.testing.assert_frame_equal(report.table.drop(columns="unit"), expected.table.drop(columns="unit"))


def test_weights_of_any_kind_are_the_same() -> None:
    expected = weights_report().table
    tensor = torch.nn.Parameter(torch.tensor(WEIGHTS))
    for weights in (tensor, tensor[:, :, None, None], WEIGHTS.tolist()):
        pd.testing.assert_frame_equal(weights_report(weights).table, expected)


def test_equal_weights_correlate_with_nothing_and_the_rest_is_still_told() -> None:
    weights = WEIGHTS.copy()
    weights[2] = 0
    report = weights_report(weights)
    assert report.table["correlation"].isna().tolist() == [False, False, True, False]
    assert math.isnan(report.table["p_value"][2])
    assert 0 < report.value("p_value") <= 1
    assert report.overall.set_index("quantity").loc["mean_correlation", "n"] == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"weights": WEIGHTS[:, :5]},
        {"weights": WEIGHTS.T},
        {"weights": WEIGHTS[:, :, None].repeat(3, axis=2)},
        {"weights": WEIGHTS + np.nan},
        {"labels": {("up", 0): "word 0"}},
        {"upper": "layer4"},
        {"top": 0},
        {"top": 10},
        {"n_permutations": 0},
        {"level": 2},
    ],
)
def test_what_does_not_fit_is_refused(wrong: dict) -> None:
    with pytest.raises(InputError, match="Expected"):
        weights_report(**wrong)


def test_the_worlds_head_reads_from_units_of_its_own_names(tmp_path: Path) -> None:
    labels = LabelReport(pd.concat([labeled().table, labeled(layer=BELOW).table]), {})
    weights = load_target().classifier[1].weight
    report = compare_weights(labels, weights, upper=HEAD, lower=BELOW, encoder=encoder(), n_permutations=200)
    assert report.value("mean_correlation") > 0.1
    assert report.value("p_value") < 0.01
    assert report.value("mean_gain") > 0.3
    # not the untrained head's: what it started from is still in the trained one
    control = compare_weights(
        labels, np.random.default_rng(0).normal(size=weights.shape), upper=HEAD, lower=BELOW, encoder=encoder(), n_permutations=200
    )
    assert abs(control.value("mean_correlation")) < 0.05
    assert abs(control.value("mean_gain")) < 0.2
    report.save(tmp_path)
    pd.testing.assert_frame_equal(WeightReport.load(tmp_path).table, report.table)
