from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import scores_of

from neuroprobe.concepts import ConceptScores
from neuroprobe.exceptions import InputError
from neuroprobe.labeling import SCORERS, Scorer, check_similarity, get_similarity, list_similarities
from neuroprobe.labeling.similarity.embedding_scorers import CosScorer, LinearScorer, PeakCorrelationScorer, PeakMeanScorer, PearsonScorer
from neuroprobe.labeling.similarity.registry import FUNCTIONS, LINEAR
from neuroprobe.labeling.similarity.scorer_registry import find_scorer
from neuroprobe.statistics import decorrelated
from neuroprobe.statistics.decorrelation import SHRINKAGE

N, UNITS, CONCEPTS = 60, 7, 150


def scores(n: int = N, *, d: int = 12, concepts: int = CONCEPTS, seed: int = 0) -> ConceptScores:
    return scores_of(n, [f"word {i}" for i in range(concepts)], d=d, seed=seed)


def activations(n: int = N, units: int = UNITS, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, units, generator=torch.Generator().manual_seed(seed))


def whole(scorer: Scorer, values: torch.Tensor, *, size: int = 10_000) -> torch.Tensor:
    """Scores with their prior, in blocks of `size` concepts."""
    part = scorer.units(values)
    blocks = [scorer.block(part, slice(start, min(start + size, scorer.n_concepts))) for start in range(0, scorer.n_concepts, size)]
    raw = torch.cat(blocks, dim=1)
    scale = raw.amax(dim=1, keepdim=True) if scorer.prior_relative else torch.ones(1)
    return scale * (raw / scale - scorer.prior(raw / scale)) if scorer.prior_weight else raw


def close(found: torch.Tensor, expected: torch.Tensor, *, atol: float = 2e-5) -> None:
    """Up to rounding: relative to the largest of the expected values."""
    torch.testing.assert_close(found, torch.as_tensor(expected), rtol=0, atol=atol * float(expected.abs().max()))


PARAMETERS: dict[str, dict[str, object]] = {
    "peak_correlation": {"decorrelate": False},
    "peak_mean": {"decorrelate": False},
}


# --- the scorers are the functions


@pytest.mark.parametrize("size", [1, 7, 64, 149, 150, 1024])
@pytest.mark.parametrize("name", list_similarities())
def test_in_blocks_of_any_size_the_score_is_the_functions(name: str, size: int) -> None:
    values, found = activations(), scores()
    expected = get_similarity(name)[1](values, found.similarities())
    close(whole(SCORERS[name](found, **PARAMETERS.get(name, {})), values, size=size), expected, atol=1e-4)


@pytest.mark.parametrize("name", list_similarities())
def test_columns_may_be_chosen_in_any_order(name: str) -> None:
    values, scorer = activations(), SCORERS[name](scores())
    part, columns = scorer.units(values), torch.tensor([149, 3, 3, 70])
    close(scorer.block(part, columns), scorer.block(part, slice(None))[:, columns])


@pytest.mark.parametrize("name", list_similarities())
def test_candidates_are_blocks_gathered(name: str) -> None:
    values, scorer = activations(units=40), SCORERS[name](scores(concepts=600))
    part = scorer.units(values)
    columns = torch.randint(600, (40, 20), generator=torch.Generator().manual_seed(2))
    columns[:, 5] = columns[:, 4]  # twice the same
    close(scorer.candidates(part, columns), scorer.block(part, slice(None)).gather(1, columns))
    assert len(torch.unique(columns)) > 256


@pytest.mark.parametrize("name", list_similarities())
@pytest.mark.parametrize("n_units", [1, 3])
def test_units_score_by_themselves_as_among_others_but_for_the_prior(name: str, n_units: int) -> None:
    values, scorer = activations(), SCORERS[name](scores())
    together = scorer.block(scorer.units(values), slice(None))
    close(scorer.block(scorer.units(values[:, :n_units]), slice(None)), together[:n_units])


@pytest.mark.parametrize(("scorer", "name"), [(PeakCorrelationScorer, "peak_correlation"), (PeakMeanScorer, "peak_mean")])
@pytest.mark.parametrize("d", [12, 90])  # fewer and more than images
def test_decorrelated_scores_are_the_functions_of_decorrelated_images(scorer: Callable[..., Scorer], name: str, d: int) -> None:
    values, given = activations(), scores(d=d)
    similarities = decorrelated(given.image_vectors) @ given.text_vectors.T
    close(whole(scorer(given), values), FUNCTIONS[name](values, similarities), atol=1e-4)
    plain = FUNCTIONS[name](values, given.similarities())
    assert float((whole(scorer(given), values) - plain).abs().max()) > 0.1  # it does make a difference


@pytest.mark.parametrize("parameters", [{"power": 1.5, "competition": 1.0, "temperature": 2.0}, {"competition": 0.0}])
def test_parameters_are_the_functions(parameters: dict[str, float]) -> None:
    values, given = activations(), scores()
    close(
        whole(PeakCorrelationScorer(given, decorrelate=False, **parameters), values),
        FUNCTIONS["peak_correlation"](values, given.similarities(), **parameters),
        atol=1e-4,
    )


def test_the_two_implementations_of_pearson_agree() -> None:
    # among the embeddings, and as a product of whole matrices
    values, given = activations(), scores()
    for name, scorer in (("pearson", PearsonScorer), ("cos_similarity", CosScorer)):
        close(whole(scorer(given), values), whole(LinearScorer(given, LINEAR[name]()), values))


# --- resampling


@pytest.mark.parametrize("d", [12, 90])
@pytest.mark.parametrize(
    "name", ["peak_correlation", "peak_mean", "pearson", "cos_similarity", "auc", "mean_difference", "cos_similarity_cubed"]
)
def test_on_resampled_images_the_score_is_that_of_a_new_scorer(name: str, d: int) -> None:
    given, values = scores(d=d), activations()
    rows = torch.randint(N, (N,), generator=torch.Generator().manual_seed(3))
    # what an image's vector is turned into by decorrelation is a fact of the image, and kept
    kept = decorrelated(given.image_vectors) if name.startswith("peak") else given.image_vectors
    again = dataclasses.replace(given, image_vectors=kept[rows], ids=tuple(str(i) for i in range(N)))
    expected = SCORERS[name](again, **PARAMETERS.get(name, {}))
    scorer = SCORERS[name](given)
    before = whole(scorer, values)
    found = scorer.resampled(rows)
    close(whole(found, values[rows]), whole(expected, values[rows]), atol=1e-4)
    assert found.n_images == N
    close(whole(scorer, values), before)  # and the scorer stays as it was


@pytest.mark.parametrize("name", list_similarities())
def test_resampled_to_the_same_images_nothing_changes(name: str) -> None:
    scorer, values = SCORERS[name](scores()), activations()
    close(whole(scorer.resampled(torch.arange(N)), values), whole(scorer, values))


# --- decorrelation


def slow_decorrelated(vectors: np.ndarray, shrinkage: float) -> np.ndarray:
    vectors = vectors.astype(np.float64)
    centered = vectors - vectors.mean(axis=0)
    covariance = np.cov(centered, rowvar=False, bias=True)
    added = covariance + shrinkage * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    values, axes = np.linalg.eigh(added)
    return centered @ axes @ np.diag(1 / np.sqrt(values)) @ axes.T


@pytest.mark.parametrize("shrinkage", [SHRINKAGE, 1e-3, 10.0])
@pytest.mark.parametrize(("n", "d"), [(50, 8), (50, 50), (51, 50), (50, 51), (20, 64), (2, 5)])
def test_decorrelated_is_the_formula(n: int, d: int, shrinkage: float) -> None:
    vectors = scores(n, d=d, concepts=1).image_vectors
    expected = torch.from_numpy(slow_decorrelated(vectors.numpy(), shrinkage)).float()
    close(decorrelated(vectors, shrinkage=shrinkage), expected, atol=1e-5)


def test_without_shrinkage_worth_mentioning_covariances_are_the_unit_matrix() -> None:
    vectors = torch.randn(400, 6, generator=torch.Generator().manual_seed(4)) @ torch.diag(torch.tensor([9.0, 5, 3, 2, 1, 0.5]))
    found = decorrelated(vectors, shrinkage=1e-9)
    close(found.T @ found / 400, torch.eye(6), atol=1e-4)
    assert found.mean(dim=0).abs().max() < 1e-5


def test_images_that_are_all_the_same_are_finite() -> None:
    assert torch.isfinite(decorrelated(torch.ones(10, 4))).all()
    assert (decorrelated(torch.zeros(10, 4)) == 0).all()


# --- what never varies


@pytest.mark.parametrize("d", [13, 90])
@pytest.mark.parametrize("scorer", [PeakCorrelationScorer, PeakMeanScorer, PearsonScorer])
def test_a_concept_that_is_the_same_on_every_image_scores_zero(scorer: type[Scorer], d: int) -> None:
    given = scores(d=d)
    images, texts = given.image_vectors.clone(), given.text_vectors.clone()
    images[:, 0] = 0.25  # a direction in which the images do not differ
    texts[40] = torch.eye(d)[0]
    made = scorer(dataclasses.replace(given, image_vectors=images, text_vectors=texts))
    raw = made.block(made.units(activations()), slice(None))
    assert (raw[:, 40] == 0).all()
    assert (raw[:, :40] != 0).all()


@pytest.mark.parametrize("name", ["peak_correlation", "peak_mean", "pearson", "cos_similarity_cubed", "mean_difference"])
def test_a_unit_that_is_the_same_on_every_image_scores_zero(name: str) -> None:
    values = activations()
    values[:, 2] = 0.1
    scorer = SCORERS[name](scores())
    raw = scorer.block(scorer.units(values), slice(None))
    assert (raw[2] == 0).all()
    assert (raw[[0, 1, 3]] != 0).any(dim=1).all()


def test_all_images_the_same() -> None:
    given = dataclasses.replace(scores(), image_vectors=torch.ones(N, 12) / math.sqrt(12))
    for scorer in (PearsonScorer, lambda s: PeakCorrelationScorer(s, decorrelate=False)):
        made = scorer(given)
        assert float(made.block(made.units(activations()), slice(None)).abs().max()) == 0


# --- concentration


def test_concentration_is_one_over_the_images_that_share_the_weight() -> None:
    values = torch.zeros(N, 3)
    values[5, 0], values[:2, 1] = 1, 1
    values[:, 2] = torch.tensor([1.0, -1]).repeat(N // 2)
    found = CosScorer(scores()).concentration(CosScorer(scores()).units(values))
    torch.testing.assert_close(found, torch.tensor([1, 1 / 2, 1 / N]))


@pytest.mark.parametrize("name", ["wpmi", "soft_wpmi", "average_precision"])
def test_functions_of_a_units_order_alone_tell_units_apart_by_their_ties(name: str) -> None:
    values = activations()
    values[:, 3:] = (values[:, :1] - torch.tensor([0.5, 0.8, 1.1, 1.6])).clamp_min(0)
    scorer = SCORERS[name](scores())
    found = scorer.concentration(scorer.units(values))
    assert found[0] == found[1] == found[2]  # without ties
    assert (found.diff()[2:] >= 0).all()
    assert found[2] < found[3] < found[6]


def test_concentration_does_not_depend_on_the_order_of_images_or_the_units_scale() -> None:
    values = torch.exp(activations())
    for name in ("peak_correlation", "peak_mean", "pearson", "cos_similarity", "auc", "mean_difference"):
        scorer = SCORERS[name](scores())
        expected = scorer.concentration(scorer.units(values))
        torch.testing.assert_close(scorer.concentration(scorer.units(values.flip(0) * 8)), expected, rtol=1e-4, atol=0)


# --- from summaries


def test_peak_mean_of_all_images_in_a_summary_is_peak_mean() -> None:
    values, scorer = activations(), PeakMeanScorer(scores())
    top, rows = torch.sort(values, dim=0, descending=True)
    part = scorer.units_from_top(rows.T, top.T, values.mean(dim=0), values.std(dim=0, correction=0))
    close(scorer.block(part, slice(None)), scorer.block(scorer.units(values), slice(None)))
    close(scorer.concentration(part), scorer.concentration(scorer.units(values)))


def test_peak_mean_of_few_images_leaves_the_others_out() -> None:
    values, scorer = torch.exp(2 * activations()), PeakMeanScorer(scores())
    top, rows = torch.topk(values, 10, dim=0)
    part = scorer.units_from_top(rows.T, top.T, values.mean(dim=0), values.std(dim=0, correction=0))
    deviations = ((values - values.mean(dim=0)) / values.std(dim=0, correction=0)).clamp_min(0) ** 4
    deviations[values < top[-1]] = 0
    z = decorrelated(scores().image_vectors) @ scores().text_vectors.T
    z = (z - z.mean(dim=0)) / z.std(dim=0, correction=0)
    close(scorer.block(part, slice(None)), (deviations / deviations.sum(dim=0)).T @ z, atol=1e-4)


@pytest.mark.parametrize("name", ["peak_correlation", "pearson", "cos_similarity", "auc", "mean_difference", "cos_similarity_cubed"])
def test_a_function_of_all_activations_says_so(name: str) -> None:
    scorer, one = SCORERS[name](scores()), torch.zeros(2, 3)
    with pytest.raises(InputError, match=r"only a unit's highest activations, but \w+Scorer needs all.*choose soft_wpmi, wpmi"):
        scorer.units_from_top(one.long(), one, one[:, 0], one[:, 0])


# --- the registry


def test_every_function_has_its_scorer_and_every_scorer_its_function() -> None:
    assert set(SCORERS) == set(FUNCTIONS) == set(list_similarities())


def test_a_scorer_is_found_by_name_function_or_class() -> None:
    assert find_scorer("peak_mean") == ("peak_mean", PeakMeanScorer)
    assert find_scorer(FUNCTIONS["peak_mean"]) == ("peak_mean", PeakMeanScorer)
    assert find_scorer(PeakMeanScorer) == ("PeakMeanScorer", PeakMeanScorer)

    def pearson(activations, concept_scores):  # of the user's, with a name of ours
        return activations.T @ concept_scores

    assert find_scorer(pearson) == ("pearson", None)


def test_parameters_are_tried_without_images() -> None:
    for name in list_similarities():
        check_similarity(name, {})
        with pytest.raises(InputError, match=f"parameters of {name}, but .*'nonsense'"):
            check_similarity(name, {"nonsense": 1})
    check_similarity(lambda a, c, anything: a.T @ c, {"anything": 1})
    with pytest.raises(InputError, match="`competition` to be a number"):
        check_similarity("peak_correlation", {"competition": 2})
