from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from neuroprobe.exceptions import InputError, NeuroprobeError, UnknownNameError
from neuroprobe.labeling import check_similarity, get_similarity, list_similarities
from neuroprobe.labeling.similarity.detection import auc, average_precision, mean_difference
from neuroprobe.labeling.similarity.linear import cos_similarity, cos_similarity_cubed, pearson
from neuroprobe.labeling.similarity.wpmi import rank_reorder, soft_wpmi, wpmi

DATA = Path(__file__).parents[1] / "data"

GOLDEN = {
    "cos_similarity": (cos_similarity, {}),
    "soft_wpmi": (soft_wpmi, {}),
    "soft_wpmi__k28_a2_lam06": (soft_wpmi, {"k": 28, "a": 2.0, "lam": 0.6}),
    "cos_similarity_cubed": (cos_similarity_cubed, {}),
    "wpmi": (wpmi, {}),
    "wpmi__k50_a10_lam1": (wpmi, {"k": 50, "a": 10.0, "lam": 1.0}),
}

EVERY = [
    cos_similarity,
    cos_similarity_cubed,
    pearson,
    auc,
    mean_difference,
    average_precision,
    rank_reorder,
    wpmi,
    soft_wpmi,
]
WITH_PRIOR = [wpmi, soft_wpmi]

ROUNDING = {"rtol": 1e-5, "atol": 2e-5}  # a sum's last bits depend on where its terms lie in memory


def random_inputs(n: int = 60, units: int = 7, concepts: int = 9, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    activations = generator.normal(size=(n, units)).astype(np.float32)
    return activations, generator.uniform(-0.3, 0.4, size=(n, concepts)).astype(np.float32)


# --- against the published implementation and the paper's formulas


@pytest.mark.parametrize("file", ["similarity_small.npz", "similarity_wide.npz"])
@pytest.mark.parametrize("name", GOLDEN)
def test_every_element_is_what_the_published_implementation_returns(file: str, name: str) -> None:
    golden = np.load(DATA / file)
    function, parameters = GOLDEN[name]
    found = function(golden["activations"], golden["concept_matrix"], **parameters)
    np.testing.assert_allclose(found, golden[name], rtol=1e-4, atol=0)


@pytest.mark.parametrize("file", ["similarity_small.npz", "similarity_wide.npz"])
def test_rank_reorder_is_the_published_one_up_to_the_noise_of_its_baseline(file: str) -> None:
    golden = np.load(DATA / file)
    found = rank_reorder(golden["activations"], golden["concept_matrix"])
    standard_error = golden["rank_reorder_std"] / math.sqrt(40)  # of the mean over 40 runs
    assert (np.abs(found - golden["rank_reorder_mean"]) / standard_error).max() < 3
    # the baseline is one number per unit: within a unit, everything else is exact
    relative = found / golden["rank_reorder_mean"]
    np.testing.assert_allclose(relative / relative[:, :1], 1, rtol=1e-4)


def slow_cosine(activations: np.ndarray, scores: np.ndarray) -> np.ndarray:
    result = np.zeros((activations.shape[1], scores.shape[1]))
    for u, unit in enumerate(activations.T.astype(np.float64)):
        for c, concept in enumerate(scores.T.astype(np.float64)):
            lengths = math.sqrt(sum(x * x for x in unit)) * math.sqrt(sum(x * x for x in concept))
            result[u, c] = sum(x * y for x, y in zip(unit, concept, strict=True)) / lengths if lengths else 0
    return result


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


def test_cosine_is_the_plain_formula() -> None:
    activations, scores = random_inputs()
    np.testing.assert_allclose(cos_similarity(activations, scores), slow_cosine(activations, scores), rtol=1e-4, atol=1e-6)


def test_cosine_worked_by_hand() -> None:
    # |(3, 4)| = |(4, 3)| = 5 and their product is 24; (0, 2) against them has 4/5 and 3/5
    found = cos_similarity(np.array([[3.0, 0.0], [4.0, 2.0]]), np.array([[4.0, -3.0], [3.0, -4.0]]))
    np.testing.assert_allclose(found, [[24 / 25, -1], [3 / 5, -4 / 5]], rtol=1e-6)


def test_cosine_centers_neither_side() -> None:
    # after centering both columns would be zero
    assert cos_similarity(np.ones((4, 1)), np.ones((4, 1))) == pytest.approx(1)


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


# --- what a score depends on, and on what it does not


@pytest.mark.parametrize("function", EVERY)
def test_a_unit_alone_scores_what_it_scores_among_others(function) -> None:
    activations, scores = random_inputs()
    options = {"prior": None} if function in WITH_PRIOR else {}
    whole = function(activations, scores, **options)
    for unit in range(activations.shape[1]):
        np.testing.assert_allclose(function(activations[:, [unit]], scores, **options)[0], whole[unit], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("function", WITH_PRIOR)
def test_a_prior_is_that_of_the_units_passed_and_no_other_order_of_them_changes_it(function) -> None:
    activations, scores = random_inputs()
    order = [4, 0, 6, 2, 5, 1, 3]
    np.testing.assert_allclose(function(activations[:, order], scores), function(activations, scores)[order], rtol=1e-4, atol=2e-4)


def test_the_cohort_is_the_units_passed() -> None:
    activations, scores = random_inputs()
    whole, part = soft_wpmi(activations, scores, k=10), soft_wpmi(activations[:, :3], scores, k=10)
    assert np.abs(whole[:3] - part).max() > 0.01
    np.testing.assert_allclose(soft_wpmi(activations[:, :1], scores, k=10), 0, atol=1e-5)


@pytest.mark.parametrize("function", EVERY)
def test_the_order_of_the_images_does_not_matter(function) -> None:
    activations, scores = random_inputs(n=150)
    order = np.random.default_rng(1).permutation(len(activations))
    np.testing.assert_allclose(function(activations[order], scores[order]), function(activations, scores), rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("function", EVERY)
def test_units_and_concepts_keep_their_places(function) -> None:
    activations, scores = random_inputs()
    units, concepts = [4, 0, 6, 2, 5, 1, 3], [8, 1, 0, 2, 7, 3, 6, 4, 5]
    whole = function(activations, scores)
    np.testing.assert_allclose(function(activations[:, units], scores[:, concepts]), whole[units][:, concepts], rtol=1e-4, atol=2e-4)


def test_soft_wpmi_sees_only_the_order_of_activations() -> None:
    activations, scores = random_inputs()
    np.testing.assert_allclose(soft_wpmi(activations, scores, k=20), soft_wpmi(np.exp(activations) * 7, scores, k=20), **ROUNDING)


def test_a_k_beyond_the_images_takes_all_of_them() -> None:
    activations, scores = random_inputs(n=30)
    np.testing.assert_allclose(soft_wpmi(activations, scores, k=31), soft_wpmi(activations, scores, k=30), **ROUNDING)
    np.testing.assert_allclose(soft_wpmi(activations, scores), soft_wpmi(activations, scores, k=30), **ROUNDING)


def test_zero_columns_have_cosine_zero() -> None:
    activations, scores = random_inputs()
    activations[:, 2], scores[:, 5] = 0, 0
    found = cos_similarity(activations, scores)
    assert not found[2].any()
    assert not found[:, 5].any()
    assert np.abs(np.delete(np.delete(found, 2, 0), 5, 1)).min() > 0


def test_zero_columns_leave_soft_wpmi_finite() -> None:
    activations, scores = random_inputs()
    activations[:, 2], scores[:, 5] = 0, 0
    assert np.isfinite(soft_wpmi(activations, scores)).all()


def test_a_planted_unit_finds_its_concept() -> None:
    _, scores = random_inputs(n=300)
    assert cos_similarity(scores[:, [3, 7]], scores).argmax(axis=1).tolist() == [3, 7]
    assert soft_wpmi(scores[:, [3, 7]], scores, prior=None).argmax(axis=1).tolist() == [3, 7]
    assert soft_wpmi(scores, scores).argmax(axis=1).tolist() == list(range(9))


def test_great_factors_do_not_overflow() -> None:
    activations, scores = random_inputs()
    assert np.isfinite(soft_wpmi(activations, scores, a=1000.0)).all()


# --- kinds of input


@pytest.mark.parametrize("function", EVERY)
@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64])
def test_arrays_come_back_as_float32_arrays(function, dtype) -> None:
    activations, scores = random_inputs()
    given = (activations * 10).astype(dtype)
    found = function(given, scores)
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, function(given.astype(np.float32), scores), rtol=1e-6)


@pytest.mark.parametrize("function", EVERY)
def test_tensors_come_back_as_tensors_with_the_same_values(function) -> None:
    activations, scores = random_inputs()
    found = function(torch.from_numpy(activations), torch.from_numpy(scores))
    assert isinstance(found, torch.Tensor)
    np.testing.assert_allclose(found.numpy(), function(activations, scores), **ROUNDING)


def test_inputs_are_not_changed() -> None:
    activations, scores = random_inputs()
    before = activations.copy(), scores.copy()
    for function in EVERY:
        function(activations, scores)
    np.testing.assert_array_equal(activations, before[0])
    np.testing.assert_array_equal(scores, before[1])


# --- errors


@pytest.mark.parametrize("function", EVERY)
@pytest.mark.parametrize(
    ("activations", "scores"),
    [
        ((5, 3), (4, 3)),
        ((5,), (5, 3)),
        ((5, 3), (5,)),
        ((5, 3, 2), (5, 3)),
        ((0, 3), (0, 3)),
        ((5, 0), (5, 3)),
        ((5, 3), (5, 0)),
    ],
)
def test_wrong_shapes_are_told(function, activations, scores) -> None:
    shown = rf"but got \({str(activations)[1:-1]}\) and \({str(scores)[1:-1]}\)"
    with pytest.raises(InputError, match=r"\[n_images, n_units\].*\[n_images, n_concepts\].*" + shown):
        function(np.ones(activations), np.ones(scores))


def test_k_below_one_is_refused() -> None:
    with pytest.raises(InputError, match="`k` to be a whole number of at least 1, but got 0"):
        soft_wpmi(*random_inputs(), k=0)


def test_an_unknown_prior_is_refused() -> None:
    with pytest.raises(InputError, match="'cohort' or None, but got 'uniform'"):
        soft_wpmi(*random_inputs(), prior="uniform")


@pytest.mark.parametrize("function", EVERY)
def test_names_resolve_to_functions(function) -> None:
    assert function.__name__ in list_similarities()
    assert get_similarity(function.__name__) == (function.__name__, function)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("wpmi", {"k": 0}, "`k` to be a whole number of at least 1, but got 0"),
        ("wpmi", {"k": 2.5}, "`k` to be a whole number of at least 1, but got 2.5"),
        ("wpmi", {"a": math.nan}, "`a` to be a number, finite, but got nan"),
        ("wpmi", {"prior": "layer"}, "'cohort' or None, but got 'layer'"),
        ("soft_wpmi", {"p_start": 1.2}, "`p_start` to be a number, at least 0 and at most 1, but got 1.2"),
        ("soft_wpmi", {"min_prob": -1e-9}, "`min_prob` to be a number, at least 0"),
        ("rank_reorder", {"top_fraction": 0}, "`top_fraction` to be a number, above 0 and at most 1, but got 0"),
        ("rank_reorder", {"p": 0}, "`p` to be a number, above 0, but got 0"),
        ("rank_reorder", {"scale": "half"}, "`scale` to be a number, at least 0, but got 'half'"),
        ("cos_similarity_cubed", {"min_norm": -1}, "`min_norm` to be a number, at least 0, but got -1"),
        ("auc", {"share": 1.5}, "`share` to be a number, above 0 and at most 1, but got 1.5"),
        ("average_precision", {"share": 0}, "`share` to be a number, above 0"),
        ("mean_difference", {"share": True}, "`share` to be a number"),
        ("pearson", {"k": 3}, "parameters of pearson.*'k'"),
    ],
)
def test_a_wrong_parameter_is_told_before_the_long_run(name, parameters, message) -> None:
    with pytest.raises(InputError, match=message):
        check_similarity(name, parameters)


def test_right_parameters_pass() -> None:
    check_similarity("soft_wpmi", {"k": 3, "prior": None, "a": 5})
    check_similarity("rank_reorder", {"top_fraction": 0.2})


@pytest.mark.parametrize("function", EVERY)
def test_what_is_not_finite_is_told_with_its_place(function) -> None:
    activations, scores = random_inputs()
    activations[5, 2] = np.nan
    with pytest.raises(InputError, match="finite activations, but row 5, column 2 is nan"):
        function(activations, scores)
    scores[3, 1] = np.inf
    with pytest.raises(InputError, match="finite concept scores, but row 3, column 1 is inf"):
        function(np.zeros((60, 2)), scores)


def test_an_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(UnknownNameError, match=r"but got 'soft_wpmi2'\. Did you mean 'soft_wpmi'") as caught:
        get_similarity("soft_wpmi2")
    assert isinstance(caught.value, LookupError)
    assert isinstance(caught.value, NeuroprobeError)


def test_a_function_resolves_to_itself_with_a_name() -> None:
    class Mine:
        def __call__(self, activations, concept_scores):
            return activations.T @ concept_scores

    mine = Mine()
    assert get_similarity(mine) == ("Mine", mine)
    assert get_similarity(cos_similarity) == ("cos_similarity", cos_similarity)
