"""The peaks' functions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from similarities import close, layer, scores, whole

from neuroprobe.exceptions import InputError
from neuroprobe.labeling import get_similarity, peak_correlation, peak_mean
from neuroprobe.labeling.similarity.peaks import PeakCorrelationScorer, PeakMeanScorer
from neuroprobe.statistics import decorrelated


def random_inputs(n: int = 40, units: int = 6, concepts: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, units)), generator.uniform(-0.3, 0.4, size=(n, concepts))


def slow_standardized(column: np.ndarray) -> list[float]:
    mean = sum(column) / len(column)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in column) / len(column))
    return [(x - mean) / deviation if deviation else 0.0 for x in column]


def of_length_1(values: list[float]) -> list[float]:
    length = math.sqrt(sum(x * x for x in values))
    return [x / length if length else 0.0 for x in values]


def slow_peak_correlation(
    activations: np.ndarray, scores: np.ndarray, *, power: float, competition: float, temperature: float
) -> np.ndarray:
    raw = np.zeros((activations.shape[1], scores.shape[1]))
    for u, unit in enumerate(activations.T):
        deviations = slow_standardized(unit)
        peaks = of_length_1([max(x, 0) ** power for x in deviations])
        weights = of_length_1([a + b for a, b in zip(of_length_1(deviations), peaks, strict=True)])
        for c, concept in enumerate(scores.T):
            raw[u, c] = sum(w * z for w, z in zip(weights, slow_standardized(concept), strict=True))
    best = raw.max(axis=1, keepdims=True)
    relative, result = raw / best, np.zeros_like(raw)
    for c in range(raw.shape[1]):
        liked = math.log(sum(math.exp(value / temperature) for value in relative[:, c]) / len(raw))
        result[:, c] = best[:, 0] * (relative[:, c] - competition * temperature * liked)
    return result


def slow_peak_mean(activations: np.ndarray, scores: np.ndarray, *, power: float) -> np.ndarray:
    result = np.zeros((activations.shape[1], scores.shape[1]))
    for u, unit in enumerate(activations.T):
        weights = [max(x, 0) ** power for x in slow_standardized(unit)]
        for c, concept in enumerate(scores.T):
            result[u, c] = sum(w * z for w, z in zip(weights, slow_standardized(concept), strict=True)) / sum(weights)
    return result


@pytest.mark.parametrize(
    "parameters",
    [
        {"power": 3.0, "competition": 0.75, "temperature": 0.1},
        {"power": 1.0, "competition": 1.0, "temperature": 2.0},
        {"power": 6.0, "competition": 0.0, "temperature": 0.1},
    ],
)
def test_peak_correlation_is_the_formula(parameters: dict[str, float]) -> None:
    activations, scores = random_inputs()
    expected = slow_peak_correlation(activations, scores, **parameters)
    np.testing.assert_allclose(peak_correlation(activations, scores, **parameters), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("power", [4.0, 1.0, 0.5])
def test_peak_mean_is_the_formula(power: float) -> None:
    activations, scores = random_inputs()
    np.testing.assert_allclose(
        peak_mean(activations, scores, power=power), slow_peak_mean(activations, scores, power=power), rtol=1e-4, atol=1e-5
    )


def test_the_defaults_are_those_of_the_docstrings() -> None:
    activations, scores = random_inputs()
    explicit = peak_correlation(activations, scores, power=3, competition=0.75, temperature=0.1)
    np.testing.assert_allclose(peak_correlation(activations, scores), explicit, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(peak_mean(activations, scores), peak_mean(activations, scores, power=4), rtol=1e-5, atol=1e-6)


# Of the unit (3, 1, 1, -1, -4) the mean is 0, and the sum of squares 28.
UNIT = np.array([[3.0], [1], [1], [-1], [-4]])
# Both concepts have mean 0 and variance 1.
CONCEPTS = np.array([[2.0, 0], [-0.5, math.sqrt(2.5)], [-0.5, 0], [-0.5, 0], [-0.5, -math.sqrt(2.5)]])


def test_peak_mean_worked_by_hand() -> None:
    # with power 2 the weights are as 9 : 1 : 1 : 0 : 0
    found = peak_mean(UNIT, CONCEPTS, power=2)
    np.testing.assert_allclose(found, [[(9 * 2 - 0.5 - 0.5) / 11, math.sqrt(2.5) / 11]], rtol=1e-5)


def test_peak_correlation_worked_by_hand() -> None:
    # with power 1 the peaks are (3, 1, 1, 0, 0) / sqrt(11); the sum of both halves has the squared length 2 + 2 * 11 / sqrt(28 * 11)
    length = math.sqrt(2 + 2 * math.sqrt(11 / 28))
    first = ((3 * 2 - 0.5 * (1 + 1 - 1 - 4)) / math.sqrt(28) + (6 - 1) / math.sqrt(11)) / length
    second = math.sqrt(2.5) * (5 / math.sqrt(28) + 1 / math.sqrt(11)) / length
    np.testing.assert_allclose(peak_correlation(UNIT, CONCEPTS, power=1, competition=0), [[first, second]], rtol=1e-5)
    # a single unit competes with itself alone: competition takes its share of the score away
    np.testing.assert_allclose(peak_correlation(UNIT, CONCEPTS, power=1, competition=0.25), [[0.75 * first, 0.75 * second]], rtol=1e-5)


def test_competition_worked_by_hand() -> None:
    # the second unit is dead and likes every concept alike: 0. The best of the first is 1 of itself, at temperature 1 the mean over
    # both (1 + e) / 2; its second concept is `share` of that
    raw = peak_correlation(UNIT, CONCEPTS, competition=0)[0].astype(float)
    assert raw[0] > raw[1] > 0
    share = raw[1] / raw[0]
    both = np.concatenate([UNIT, np.zeros((5, 1))], axis=1)
    met = [math.log((1 + math.exp(x)) / 2) for x in (1, share)]
    expected = [raw[0] * (1 - met[0] / 2), raw[0] * (share - met[1] / 2)]
    found = peak_correlation(both, CONCEPTS, competition=0.5, temperature=1)
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)
    np.testing.assert_allclose(found[1], [0, 0], atol=1e-5)


def test_of_shuffled_images_the_raw_score_has_mean_0_and_standard_deviation_1() -> None:
    generator = np.random.default_rng(1)
    unit, concept = np.exp(generator.normal(size=200)), generator.normal(size=(200, 1))
    shuffled = generator.permuted(np.tile(unit[:, None], 4000), axis=0)
    found = peak_correlation(shuffled, concept, competition=0)
    assert abs(found.mean()) < 4 / math.sqrt(4000)
    assert found.std() == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("function", [peak_correlation, peak_mean])
def test_what_never_varies_scores_zero(function) -> None:
    activations, scores = random_inputs()
    activations[:, 2], scores[:, 3] = 0.1, 0.7
    options = {"competition": 0} if function is peak_correlation else {}
    found = function(activations, scores, **options)
    assert (found[2] == 0).all()
    assert (found[:, 3] == 0).all()
    assert (found[np.ix_([0, 1, 3, 4, 5], [0, 1, 2, 4, 5, 6, 7])] != 0).all()


@pytest.mark.parametrize("function", [peak_correlation, peak_mean])
@pytest.mark.parametrize("scale", [1e-35, 1e-20, 1e18, 1e35])
def test_a_units_scale_and_offset_do_not_matter(function, scale: float) -> None:
    activations, scores = random_inputs()
    np.testing.assert_allclose(function(activations * scale, scores), function(activations, scores), atol=1e-5)
    np.testing.assert_allclose(function(activations + 100, scores), function(activations, scores), atol=2e-4)


@pytest.mark.parametrize(
    ("function", "parameters", "message"),
    [
        (peak_correlation, {"power": 0.5}, "`power` to be a number, at least 1, but got 0.5"),
        (peak_correlation, {"competition": 1.5}, "`competition` to be a number, at least 0 and at most 1, but got 1.5"),
        (peak_correlation, {"competition": -0.1}, "`competition` to be a number, at least 0"),
        (peak_correlation, {"temperature": 0}, "`temperature` to be a number, above 0, but got 0"),
        (peak_correlation, {"temperature": math.nan}, "`temperature` to be a number"),
        (peak_mean, {"power": 0}, "`power` to be a number, above 0, but got 0"),
        (peak_mean, {"power": "4"}, "`power` to be a number, above 0, but got '4'"),
    ],
)
def test_parameters_out_of_range_are_refused(function, parameters: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        function(*random_inputs(), **parameters)


@pytest.mark.parametrize(("scorer", "function"), [(PeakCorrelationScorer, peak_correlation), (PeakMeanScorer, peak_mean)])
@pytest.mark.parametrize("d", [12, 90])  # fewer and more than images
def test_decorrelated_scores_are_the_functions_of_decorrelated_images(scorer, function, d: int) -> None:
    values, given = layer(), scores(d=d)
    expected = function(values, decorrelated(given.image_vectors) @ given.text_vectors.T)
    close(whole(scorer(given), values), expected, atol=1e-4)
    assert float((expected - function(values, given.similarities())).abs().max()) > 0.1  # it does make a difference


@pytest.mark.parametrize("parameters", [{"power": 1.5, "competition": 1.0, "temperature": 2.0}, {"competition": 0.0}])
def test_parameters_are_the_functions(parameters: dict[str, float]) -> None:
    values, given = layer(), scores()
    close(
        whole(PeakCorrelationScorer(given, decorrelate=False, **parameters), values),
        get_similarity("peak_correlation")[1](values, given.similarities(), **parameters),
        atol=1e-4,
    )


def test_peak_mean_of_all_images_in_a_summary_is_peak_mean() -> None:
    values, scorer = layer(), PeakMeanScorer(scores())
    top, rows = torch.sort(values, dim=0, descending=True)
    part = scorer.units_from_top(rows.T, top.T, values.mean(dim=0), values.std(dim=0, correction=0))
    close(scorer.block(part, slice(None)), scorer.block(scorer.units(values), slice(None)))
    close(scorer.concentration(part), scorer.concentration(scorer.units(values)))


def test_peak_mean_of_few_images_leaves_the_others_out() -> None:
    values, scorer = torch.exp(2 * layer()), PeakMeanScorer(scores())
    top, rows = torch.topk(values, 10, dim=0)
    part = scorer.units_from_top(rows.T, top.T, values.mean(dim=0), values.std(dim=0, correction=0))
    deviations = ((values - values.mean(dim=0)) / values.std(dim=0, correction=0)).clamp_min(0) ** 4
    deviations[values < top[-1]] = 0
    z = decorrelated(scores().image_vectors) @ scores().text_vectors.T
    z = (z - z.mean(dim=0)) / z.std(dim=0, correction=0)
    close(scorer.block(part, slice(None)), (deviations / deviations.sum(dim=0)).T @ z, atol=1e-4)
