from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from helpers import activations_of, scores_of
from scipy import stats

from neuroprobe.concepts import ConceptScores
from neuroprobe.labeling import dissect, list_similarities
from neuroprobe.labeling._null import NEIGHBORS, _log_sum_of_others, null_prior, null_sources, p_values, shuffled, shuffled_rows

# --- null units


def test_every_unit_that_varies_is_a_source_as_often_as_any_other() -> None:
    varies = np.array([True, False, True, True, False, True, True])
    counts = np.bincount(null_sources(varies, 1003, np.random.default_rng(0)), minlength=7)
    assert counts[~varies].tolist() == [0, 0]
    assert sorted(counts[varies].tolist()) == [200, 200, 201, 201, 201]
    # fewer null units than units: no unit twice
    few = null_sources(np.ones(300, bool), 100, np.random.default_rng(0))
    assert len(set(few.tolist())) == len(few) == 100


def test_dead_units_have_no_null_units() -> None:
    assert len(null_sources(np.zeros(3, bool), 100, np.random.default_rng(0))) == 0
    assert len(null_sources(np.ones(3, bool), 0, np.random.default_rng(0))) == 0


def test_null_units_are_their_sources_in_orders_of_their_own() -> None:
    values = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    sources = np.array([0, 1, 2, 3, 0, 0, 2])
    found = torch.cat(list(shuffled(values, sources, np.random.default_rng(5), size=3)), dim=1).numpy()
    np.testing.assert_array_equal(np.sort(found, axis=0), np.sort(values[:, sources], axis=0))
    orders = {tuple(np.argsort(column)) for column in [*found.T, *values.T]}
    assert len(orders) == len(sources) + 4  # none twice, and none as it was
    again = torch.cat(list(shuffled(values, sources, np.random.default_rng(5), size=3)), dim=1).numpy()
    np.testing.assert_array_equal(found, again)


def test_every_order_is_as_likely_as_any_other() -> None:
    values = np.arange(3, dtype=np.float32)[:, None]
    found = torch.cat(list(shuffled(values, np.zeros(6000, int), np.random.default_rng(0))), dim=1).numpy().T
    orders, counts = np.unique(found, axis=0, return_counts=True)
    assert len(orders) == 6
    assert stats.chisquare(counts).pvalue > 1e-3


def test_shuffled_rows_are_different_images_in_any_order() -> None:
    rows = shuffled_rows(np.zeros(3000, int), 4, 10, np.random.default_rng(0)).numpy()
    assert rows.shape == (3000, 4)
    assert all(len(set(line)) == 4 for line in rows.tolist())
    for column in rows.T:  # the highest activation too lies anywhere
        assert stats.chisquare(np.bincount(column, minlength=10)).pvalue > 1e-3


def test_tied_activations_come_to_lie_on_the_lowest_rows_that_are_left() -> None:
    rows = shuffled_rows(np.array([0, 2, 3, 4] * 50), 4, 10, np.random.default_rng(0)).numpy()
    for line, tied in zip(rows.tolist(), [0, 2, 3, 4] * 50, strict=True):
        first = line[: 4 - tied]
        assert line[4 - tied :] == [row for row in range(10) if row not in first][:tied]
    assert len({tuple(line) for line in rows[2::4].tolist()}) == 10  # the one that is not tied lies anywhere


# --- the prior that a null unit meets


def slow_log_sum_of_others(values: np.ndarray, left_out: np.ndarray) -> np.ndarray:
    values = values.astype(np.float64)
    result = np.zeros((len(left_out), values.shape[1]))
    for row, out in enumerate(left_out):
        for column in range(values.shape[1]):
            others = [values[i, column] for i in range(len(values)) if i != out]
            top = max(others, default=-math.inf)
            result[row, column] = top + math.log(sum(math.exp(x - top) for x in others)) if others else -math.inf
    return result


@pytest.mark.parametrize("scale", [0.01, 1, 30, 1000])
@pytest.mark.parametrize("n_units", [2, 3, 16])
def test_the_log_sum_of_all_but_one(n_units: int, scale: float) -> None:
    generator = np.random.default_rng(n_units)
    values = (generator.normal(size=(n_units, 50)) * scale).astype(np.float32)
    left_out = generator.integers(n_units, size=40)
    found = _log_sum_of_others(torch.from_numpy(values), torch.from_numpy(left_out))
    np.testing.assert_allclose(found.numpy(), slow_log_sum_of_others(values, left_out), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("lead", [1.0, 20.0, 1e3])
def test_a_unit_that_dominates_may_be_the_one_left_out(lead: float) -> None:
    values = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    values[2] += lead
    found = _log_sum_of_others(torch.from_numpy(values), torch.arange(5))
    np.testing.assert_allclose(found.numpy(), slow_log_sum_of_others(values, np.arange(5)), rtol=1e-5, atol=1e-5)


def test_two_units_that_dominate_alike() -> None:
    values = np.zeros((4, 1), np.float32)
    values[[1, 3]] = 50
    found = _log_sum_of_others(torch.from_numpy(values), torch.arange(4)).numpy()[:, 0]
    np.testing.assert_allclose(found, [50 + math.log(2), 50, 50 + math.log(2), 50], atol=1e-5)


def test_a_single_unit_leaves_nothing() -> None:
    assert _log_sum_of_others(torch.zeros(1, 2), torch.tensor([0, 0])).tolist() == [[-math.inf] * 2] * 2


class Prior:
    prior_weight, prior_temperature = 0.7, 0.3


def test_a_null_unit_meets_the_layer_with_itself_in_its_sources_place() -> None:
    generator = np.random.default_rng(0)
    raw, null_raw, sources = generator.normal(size=(6, 9)), generator.normal(size=(20, 9)), generator.integers(6, size=20)
    found = null_prior(Prior(), *(torch.from_numpy(x).float() for x in (raw, null_raw)), torch.from_numpy(sources))  # type: ignore[arg-type]
    for null, source in enumerate(sources):
        layer = raw.copy()
        layer[source] = null_raw[null]
        expected = 0.7 * 0.3 * np.log(np.mean(np.exp(layer / 0.3), axis=0))
        np.testing.assert_allclose(found[null], expected, rtol=1e-4, atol=1e-5)


# --- p-values


def test_p_values_are_counted_within_the_null() -> None:
    null = np.random.default_rng(0).permutation(np.arange(99.0))  # 99 of them: the highest tenth is below ten, too few for a tail
    best = np.array([-1, 0, 0.5, 50, 98, 98.5, 1e9])
    expected = [(1 + sum(x >= b for x in null)) / 100 for b in best]
    np.testing.assert_allclose(p_values(best, null), expected)


def test_up_to_the_highest_tenth_of_the_null_p_values_are_counted() -> None:
    null = np.random.default_rng(0).gumbel(size=1000)
    best = np.quantile(null, np.linspace(0.01, 0.89, 30))
    np.testing.assert_allclose(p_values(best, null), [(1 + (null >= b).sum()) / 1001 for b in best])


def slow_like(best: float, where: float, null: np.ndarray, places: np.ndarray) -> float:
    """Of the null units nearest in rank of concentration, with the trend along it taken out."""
    order = np.argsort(places, kind="stable")
    first = sum(x < where for x in places) - NEIGHBORS // 2
    near = order[max(0, min(first, len(null) - NEIGHBORS)) :][:NEIGHBORS]
    slope, _ = np.polyfit(places[near], null[near], 1)
    rest, own = null[near] - slope * (places[near] - places[near].mean()), best - slope * (where - places[near].mean())
    return (1 + (rest >= own).sum()) / (NEIGHBORS + 1)


def test_a_unit_is_compared_with_null_units_of_like_concentration() -> None:
    generator = np.random.default_rng(0)
    places = generator.uniform(-4, 0, size=1200)
    null = 5 + places + generator.normal(size=1200)
    ours = np.concatenate([[-9, 3], generator.uniform(-4, 0, size=40)])  # two are beyond all null units
    best = 5 + ours + generator.normal(size=42) - 1
    found = p_values(best, null, concentration=np.exp(ours), null_concentration=np.exp(places))
    expected = np.array([slow_like(b, where, null, places) for b, where in zip(best, ours, strict=True)])
    counted = expected > 0.11  # further up it is the tail's
    assert counted.sum() > 25
    # concentrations are rounded, which may exchange one neighbor
    np.testing.assert_allclose(found[counted], expected[counted], atol=1.01 / (NEIGHBORS + 1))
    assert (found[~counted] < 0.12).all()


def test_null_units_that_are_all_alike_in_concentration() -> None:
    null = np.random.default_rng(0).normal(size=1000)
    found = p_values([0.0, 9.0], null, concentration=[0.5, 0.5], null_concentration=np.full(1000, 0.5))
    assert found[0] == pytest.approx(0.5, abs=0.1)
    assert found[1] < 0.01


@pytest.mark.parametrize(
    "distribution",
    [stats.expon(), stats.gumbel_r(), stats.norm(), stats.genpareto(0.2), stats.genpareto(0.4)],
    ids=["exponential", "gumbel", "normal", "heavy", "heavier"],
)
def test_the_tail_is_right_within_a_factor(distribution) -> None:
    generator = np.random.default_rng(0)
    for truth, factor in ((0.05, 1.3), (1e-2, 1.5), (1e-3, 2.5), (1e-4, 5)):
        best = distribution.isf(truth)
        found = [p_values([best], distribution.rvs(1000, random_state=generator))[0] for _ in range(60)]
        middle = float(np.exp(np.mean(np.log(found))))
        assert truth / factor < middle, (truth, middle)
        # a light tail may be taken for an exponential one, which errs to the safe side
        assert middle < truth * factor or distribution.dist.name == "norm", (truth, middle)


@pytest.mark.parametrize("distribution", [stats.expon(), stats.genpareto(0.3)], ids=["exponential", "heavy"])
def test_of_all_scores_the_share_with_a_p_value_below_a_limit_is_that_limit(distribution) -> None:
    generator = np.random.default_rng(1)
    found = np.concatenate([
        p_values(distribution.rvs(20000, random_state=generator), distribution.rvs(1000, random_state=generator)) for _ in range(60)
    ])  # fmt: skip
    for limit in (0.05, 0.01, 1e-3, 1e-4):
        assert 1 / 3 < np.mean(found <= limit) / limit < 3, (limit, np.mean(found <= limit))


@pytest.mark.parametrize("kind", ["normal", "heavy", "few values", "constant", "tied above"])
@pytest.mark.parametrize("n", [100, 101, 250, 1000])
def test_p_values_fall_with_the_score_and_are_in_0_to_1(kind: str, n: int) -> None:
    generator = np.random.default_rng(0)
    null = {
        "normal": generator.normal(size=n),
        "heavy": np.exp(3 * generator.normal(size=n)),
        "few values": generator.integers(3, size=n).astype(float),
        "constant": np.zeros(n),
        "tied above": np.concatenate([generator.normal(size=n - n // 5), np.full(n // 5, 4.0)]),
    }[kind]
    best = np.unique(np.concatenate([null, np.linspace(-5, 1e3, 2000), [1e6, 1e30, -1e30]]))
    found = p_values(best, null)
    assert (found > 0).all()
    assert (found <= 1).all()
    assert (np.diff(found) <= 1e-12).all()
    assert found[0] == 1


def test_a_score_that_no_null_unit_can_reach_if_null_units_are_all_the_same() -> None:
    np.testing.assert_allclose(p_values([-1, 0, 1], np.zeros(1000)), [1, 1, 1 / 1001])


def test_scores_of_few_values_have_no_tail() -> None:
    # but for rounding the highest tenth are all 0.75: no p-value below one over the number of null units can be known
    generator = np.random.default_rng(0)
    null = np.concatenate([generator.uniform(0, 0.5, size=800), 0.75 + 1e-8 * generator.normal(size=200)])
    found = p_values([0.75, 0.9], null)
    np.testing.assert_allclose(found, [201 / 1001, 1 / 1001])
    concentration = generator.uniform(0.1, 0.2, size=1000)
    assert p_values([0.9], null, concentration=[0.15], null_concentration=concentration)[0] > 1e-4


@pytest.mark.parametrize("where", [1e-3, 0.1, 0.15, 0.2, 1.0])
def test_units_that_score_as_all_null_units_do_are_nothing_special(where: float) -> None:
    generator = np.random.default_rng(0)
    concentration = generator.uniform(0.1, 0.2, size=1000)
    assert p_values([0.7], np.full(1000, 0.7), concentration=[where], null_concentration=concentration)[0] > 0.99
    # half of them tied at the highest score there is, the others along a trend
    null = np.where(generator.random(1000) < 0.5, 0.7, 0.6 + concentration / 2)
    assert p_values([0.7], null, concentration=[where], null_concentration=concentration)[0] > 0.4


# --- p-values are uniform where there is nothing to find


def embedded(n: int, words: int, seed: int) -> ConceptScores:
    return scores_of(n, [f"word {i}" for i in range(words)], d=32, seed=seed)


def noise(kind: str, n: int, n_units: int, seed: int) -> np.ndarray:
    z = np.random.default_rng((seed, 1)).normal(size=(n, n_units))
    return {"normal": z, "heavy": np.exp(2 * z), "sparse": np.maximum(z - 1.5, 0)}[kind]


def p_of_noise(similarity: str, kind: str, *, n: int = 150, n_units: int, words: int, layers: int, n_null: int = 1000) -> np.ndarray:
    found = []
    for seed in range(layers):
        activations = activations_of({"noise": noise(kind, n, n_units, seed)})
        table = dissect(activations, embedded(n, words, seed), similarity=similarity, n_null=n_null, n_bootstrap=0, seed=seed).table
        found.append(table["p_value"].dropna().to_numpy())
    return np.concatenate(found)


def check_uniform(p: np.ndarray, *, per_layer: int, few_values: bool = False) -> None:
    """Against the uniform distribution; the units of a layer share its null, so that there are fewer independent p-values than units.

    With few values that scores can take p-values too have few, and are no less than uniform ones.
    """
    effective = len(p) / (1 + per_layer / NEIGHBORS)
    side = "greater" if few_values else "two-sided"
    assert stats.kstest(p, "uniform", alternative=side).statistic < stats.kstwo.isf(1e-3, int(effective))
    for limit in (0.05, 0.2):
        allowed, found = 3.3 * math.sqrt(limit * (1 - limit) / effective), np.mean(p <= limit) - limit
        assert found < allowed, (limit, found)
        assert few_values or found > -allowed, (limit, found)


@pytest.mark.parametrize("similarity", list_similarities())
def test_p_values_of_noise_are_uniform(similarity: str) -> None:
    check_uniform(p_of_noise(similarity, "heavy", n_units=60, words=31, layers=4), per_layer=60)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["normal", "heavy", "sparse"])
@pytest.mark.parametrize(("n_units", "layers", "words"), [(16, 10, 31), (300, 2, 300)])
@pytest.mark.parametrize("similarity", list_similarities())
def test_p_values_of_noise_are_uniform_in_layers_of_any_size(similarity: str, words: int, n_units: int, layers: int, kind: str) -> None:
    p = p_of_noise(similarity, kind, n_units=n_units, words=words, layers=layers)
    check_uniform(p, per_layer=n_units, few_values=similarity in ("average_precision", "auc") and kind == "sparse")


@pytest.mark.slow
@pytest.mark.parametrize("similarity", ["peak_correlation", "pearson", "mean_difference", "wpmi", "average_precision"])
def test_units_of_one_kind_are_not_compared_with_those_of_another(similarity: str) -> None:
    found: dict[str, list[np.ndarray]] = {"normal": [], "sparse": []}
    for seed in range(10):
        units = np.concatenate([noise(kind, 150, 60, seed) for kind in found], axis=1)
        table = dissect(activations_of({"mixed": units}), embedded(150, 31, seed), similarity=similarity, n_bootstrap=0, seed=seed).table
        for part, p in zip(found.values(), np.split(table["p_value"].to_numpy(), 2), strict=True):
            part.append(p)
    for kind, parts in found.items():
        check_uniform(np.concatenate(parts), per_layer=60, few_values=similarity == "average_precision" and kind == "sparse")


@pytest.mark.slow
def test_near_duplicates_make_p_values_too_small() -> None:
    # as the module's docstring says: not a virtue, but it has to be known
    scores, rows = embedded(40, 31, 0), np.repeat(np.arange(40), 5)
    vectors = scores.image_vectors[rows]
    many = dataclasses.replace(embedded(200, 31, 0), image_vectors=vectors)
    p = dissect(activations_of({"a": noise("normal", 40, 200, 0)[rows]}), many, n_bootstrap=0).table["p_value"]
    assert (p <= 0.05).mean() > 0.3
    p = dissect(activations_of({"a": noise("normal", 40, 200, 0)}), scores, n_bootstrap=0).table["p_value"]
    assert (p <= 0.05).mean() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["normal", "heavy", "sparse"])
def test_few_of_many_units_of_noise_have_a_tiny_p_value(kind: str) -> None:
    p = p_of_noise("peak_correlation", kind, n_units=1500, words=300, layers=4, n_null=1000)
    for limit in (0.01, 1e-3):
        assert np.mean(p <= limit) < 2 * limit
    assert np.mean(p <= 1e-4) < 1e-3


def test_all_null_units_that_are_just_like_a_unit_are_its_neighbors_however_many() -> None:
    generator = np.random.default_rng(0)
    n_alike = 2 * NEIGHBORS
    theirs = np.concatenate([np.full(n_alike, 0.3), generator.uniform(0.1, 0.29, 300), generator.uniform(0.31, 0.9, 300)])
    null_best = np.concatenate([np.repeat([1.0, 2.0], [n_alike - 40, 40]), np.full(300, 9.0), np.full(300, -9.0)])
    for order in (np.arange(len(theirs)), np.arange(len(theirs))[::-1], generator.permutation(len(theirs))):
        found = p_values([2.0, 1.0], null_best[order], concentration=[0.3, 0.3], null_concentration=theirs[order])
        np.testing.assert_allclose(found, [41 / (n_alike + 1), 1])
