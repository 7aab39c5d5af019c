"""WPMI and soft WPMI."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import scores_of
from similarities import close, published_soft_wpmi, published_wpmi, random_inputs, tied_layer

from neuroprobe.exceptions import InputError
from neuroprobe.labeling import cos_similarity, cos_similarity_cubed, soft_wpmi, wpmi
from neuroprobe.labeling.similarity import _kernels
from neuroprobe.labeling.similarity._top_images import highest_images
from neuroprobe.labeling.similarity.information import SoftWpmiScorer, WpmiScorer

DATA = Path(__file__).parents[1] / "data"
N_IMAGES = 150
SCORES = scores_of(N_IMAGES, [f"word {i}" for i in range(130)], d=16)

#: Published results, by our function; the arithmetic of the published one where sums of hundreds nearly cancel.
GOLDEN = {
    "cos_similarity": (cos_similarity, cos_similarity, {}),
    "cos_similarity_cubed": (cos_similarity_cubed, cos_similarity_cubed, {}),
    "soft_wpmi": (soft_wpmi, published_soft_wpmi, {}),
    "soft_wpmi__k28_a2_lam06": (soft_wpmi, published_soft_wpmi, {"k": 28, "a": 2.0, "lam": 0.6}),
    "wpmi": (wpmi, published_wpmi, {}),
    "wpmi__k50_a10_lam1": (wpmi, published_wpmi, {"k": 50, "a": 10.0, "lam": 1.0}),
}


@pytest.mark.parametrize("file", ["similarity_small.npz", "similarity_wide.npz"])
@pytest.mark.parametrize("name", GOLDEN)
def test_every_element_is_what_the_published_implementation_returns(file: str, name: str) -> None:
    golden = np.load(DATA / file)
    ours, reference, parameters = GOLDEN[name]
    inputs = golden["activations"], golden["concept_matrix"]
    expected = np.asarray(reference(*inputs, **parameters))
    np.testing.assert_allclose(expected, golden[name], rtol=1e-4, atol=0 if "wpmi" in name else 1e-7)
    # up to float32's rounding of what is added up, before a prior is taken off
    added = np.abs(ours(*inputs, **parameters, prior=None)).max() if "wpmi" in name else np.abs(expected).max()
    np.testing.assert_allclose(ours(*inputs, **parameters), expected, rtol=1e-5, atol=3e-6 * added)


def slow_log_p(
    activations: np.ndarray, scores: np.ndarray, *, k: int, a: float, p_start: float, p_end: float, min_prob: float
) -> np.ndarray:
    """sum over the unit's top images of log(1 + p_i (P_i - 1)), one number at a time."""
    n, n_units = activations.shape
    result = np.zeros((n_units, scores.shape[1]))
    for unit in range(n_units):
        top = sorted(range(n), key=lambda i: -activations[i, unit])[:k]
        for rank, image in enumerate(top):
            weights = [math.exp(a * float(s)) for s in scores[image]]
            p = p_start - rank / len(top) * (p_start - p_end)
            for concept, weight in enumerate(weights):
                result[unit, concept] += math.log(1 + p * (weight / sum(weights) - 1) + min_prob)
    return result


@pytest.mark.parametrize(
    "parameters",
    [
        {"k": 20, "a": 10.0, "lam": 1.0, "p_start": 0.998, "p_end": 0.97, "min_prob": 1e-7},
        {"k": 1, "a": 2.0, "lam": 0.6, "p_start": 0.9, "p_end": 0.1, "min_prob": 1e-4},
        {"k": 60, "a": 0.5, "lam": 2.0, "p_start": 0.7, "p_end": 0.7, "min_prob": 0.0},
    ],
)
def test_soft_wpmi_is_the_papers_formula(parameters: dict[str, float]) -> None:
    activations, scores = random_inputs()
    lam = parameters.pop("lam")
    expected = slow_log_p(activations, scores, **parameters)  # type: ignore[arg-type]
    log_prior = np.array([math.log(sum(math.exp(v) for v in column) / len(column)) for column in expected.T])
    np.testing.assert_allclose(soft_wpmi(activations, scores, prior=None, **parameters), expected, rtol=1e-5)
    np.testing.assert_allclose(soft_wpmi(activations, scores, lam=lam, **parameters), expected - lam * log_prior, rtol=1e-4, atol=5e-4)


def test_soft_wpmi_worked_by_hand() -> None:
    scores = np.array([[math.log(3), 0.0], [0.0, 0.0]])  # with a = 1: P = (3/4, 1/4) and (1/2, 1/2)
    activations = np.array([[1.0, -1.0], [0.0, 5.0]])  # unit 0 is highest on image 0, unit 1 on image 1
    options = {"k": 1, "a": 1.0, "p_start": 0.5, "p_end": 0.5, "min_prob": 0.0}
    log_p = np.log([[1 - 0.5 * 0.25, 1 - 0.5 * 0.75], [0.75, 0.75]])  # 1 + p (P - 1)
    prior = np.log([(0.875 + 0.75) / 2, (0.625 + 0.75) / 2])
    np.testing.assert_allclose(soft_wpmi(activations, scores, prior=None, **options), log_p, rtol=1e-6)
    np.testing.assert_allclose(soft_wpmi(activations, scores, **options), log_p - prior, rtol=1e-5)
    np.testing.assert_allclose(soft_wpmi(activations, scores, lam=0.25, **options), log_p - prior / 4, rtol=1e-5)


def test_the_certainty_falls_with_the_rank_worked_by_hand() -> None:
    scores = np.array([[math.log(3), 0.0], [0.0, 0.0]])
    options = {"k": 2, "a": 1.0, "p_start": 0.8, "p_end": 0.4, "min_prob": 0.0, "prior": None}  # p = 0.8, then 0.6
    found = soft_wpmi(np.array([[1.0], [0.0]]), scores, **options)
    np.testing.assert_allclose(found, [[math.log(0.8) + math.log(0.7), math.log(0.4) + math.log(0.7)]], rtol=1e-6)


def test_the_cohort_is_the_units_passed() -> None:
    activations, scores = random_inputs()
    whole, part = soft_wpmi(activations, scores, k=10), soft_wpmi(activations[:, :3], scores, k=10)
    assert np.abs(whole[:3] - part).max() > 0.01


def test_soft_wpmi_sees_only_the_order_of_activations() -> None:
    activations, scores = random_inputs()
    np.testing.assert_allclose(soft_wpmi(activations, scores, k=20), soft_wpmi(np.exp(activations) * 7, scores, k=20), rtol=1e-5, atol=2e-5)


def test_a_k_beyond_the_images_takes_all_of_them() -> None:
    activations, scores = random_inputs(n=30)
    np.testing.assert_allclose(soft_wpmi(activations, scores, k=31), soft_wpmi(activations, scores, k=30), rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(soft_wpmi(activations, scores), soft_wpmi(activations, scores, k=30), rtol=1e-5, atol=2e-5)


def test_a_planted_unit_finds_its_concept() -> None:
    _, scores = random_inputs(n=300)
    assert cos_similarity(scores[:, [3, 7]], scores).argmax(axis=1).tolist() == [3, 7]
    assert soft_wpmi(scores[:, [3, 7]], scores, prior=None).argmax(axis=1).tolist() == [3, 7]
    assert soft_wpmi(scores, scores).argmax(axis=1).tolist() == list(range(9))


def test_great_factors_do_not_overflow() -> None:
    activations, scores = random_inputs()
    assert np.isfinite(soft_wpmi(activations, scores, a=1000.0)).all()


@pytest.mark.parametrize(
    ("k", "a", "lam", "min_prob"), [(28, 2.0, 0.6, 1e-7), (1, 10.0, 1.0, 1e-3), (60, 0.5, 2.0, 0.0), (99, 5.0, 1, 1e-7)]
)
def test_wpmi_is_the_papers_formula(k: int, a: float, lam: float, min_prob: float) -> None:
    activations, scores = random_inputs()
    expected = np.zeros((7, 9))
    for unit in range(7):
        for image in sorted(range(60), key=lambda i: -activations[i, unit])[:k]:
            weights = [math.exp(a * float(s)) for s in scores[image]]
            expected[unit] += [math.log(w / sum(weights) + min_prob) for w in weights]
    prior = np.array([math.log(sum(math.exp(v) for v in column) / 7) for column in expected.T])
    np.testing.assert_allclose(wpmi(activations, scores, k=k, a=a, min_prob=min_prob, prior=None), expected, rtol=1e-5)
    found = wpmi(activations, scores, k=k, a=a, lam=lam, min_prob=min_prob)
    np.testing.assert_allclose(found, expected - lam * prior, rtol=1e-4, atol=1e-4)


def test_wpmi_worked_by_hand() -> None:
    scores = np.array([[math.log(3), 0.0], [0.0, 0.0]])  # with a = 1: P = (3/4, 1/4) and (1/2, 1/2)
    activations = np.array([[1.0, -1.0], [0.0, 5.0]])
    found = wpmi(activations, scores, k=1, a=1, lam=0.5, min_prob=0)
    log_p = np.log([[3 / 4, 1 / 4], [1 / 2, 1 / 2]])
    np.testing.assert_allclose(found, log_p - 0.5 * np.log([5 / 8, 3 / 8]), rtol=1e-5)
    both = wpmi(activations, scores, k=2, a=1, min_prob=0, prior=None)
    np.testing.assert_allclose(both, np.log([[3 / 8, 1 / 8], [3 / 8, 1 / 8]]), rtol=1e-5)


@pytest.mark.parametrize("function", [wpmi, soft_wpmi])
def test_one_unit_alone_has_no_score_against_its_own_prior_and_has_one_without(function) -> None:
    activations, scores = random_inputs()
    np.testing.assert_allclose(function(activations[:, :1], scores, lam=1), 0, atol=1e-4)
    assert np.ptp(function(activations[:, :1], scores, prior=None)) > 0.1


@pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")
@pytest.mark.parametrize("parameters", [{}, {"k": 9, "p_start": 1.0, "p_end": 0.0}])
def test_with_numba_the_numbers_are_the_same(parameters, monkeypatch) -> None:
    scorer = SoftWpmiScorer(SCORES, **parameters)
    units = scorer.units(tied_layer())
    by_torch = scorer.block(units, slice(None))
    monkeypatch.setattr(_kernels, "_WORTH_COMPILING", 0)
    close(scorer.block(units, slice(None)), by_torch)


def test_a_summary_of_too_few_images_is_refused() -> None:
    rows = highest_images(tied_layer(), 20)
    with pytest.raises(InputError, match=r"the 28 highest images of every unit, but the summary kept 20\. Summarize with k=28 or more"):
        WpmiScorer(SCORES).units_from_top(rows, torch.zeros(rows.shape))


@pytest.mark.parametrize(
    ("rows", "values", "message"),
    [
        (torch.full((2, 30), N_IMAGES), torch.zeros(2, 30), "rows from 0 to 149, the images of the scores, but got 150 to 150"),
        (torch.full((2, 30), -1), torch.zeros(2, 30), "but got -1 to -1"),
        (torch.zeros(2, 30), torch.zeros(2, 30), "float32"),
        (torch.zeros(30, dtype=torch.long), torch.zeros(30), r"both \[n_units, k\]"),
        (torch.zeros(2, 30, dtype=torch.long), torch.zeros(2, 29), r"\(2, 30\) and \(2, 29\)"),
    ],
)
def test_rows_that_do_not_fit_are_told(rows, values, message) -> None:
    with pytest.raises(InputError, match=message):
        WpmiScorer(SCORES).units_from_top(rows, values)
