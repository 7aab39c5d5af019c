"""What every registered similarity function and its scorer keeps to."""

from __future__ import annotations

import dataclasses
import inspect
import math

import numpy as np
import pytest
import torch
from similarities import CONCEPTS, N, close, layer, random_inputs, scorer_of, scores, tied_layer, whole

from neuroprobe.exceptions import InputError, NeuroprobeError, UnknownNameError
from neuroprobe.labeling import check_similarity, cos_similarity, find_scorer, get_similarity, list_similarities, soft_wpmi
from neuroprobe.labeling.similarity import _scorer, _softmax
from neuroprobe.labeling.similarity._registry import similarity
from neuroprobe.labeling.similarity._scorer import joined, some_units
from neuroprobe.labeling.similarity.peaks import PeakMeanScorer
from neuroprobe.statistics import decorrelated

#: So that a scorer scores the very matrix that the functions get.
PLAIN: dict[str, dict[str, object]] = {"peak_correlation": {"decorrelate": False}, "peak_mean": {"decorrelate": False}}

#: With them no score depends on the other units.
ALONE = {"wpmi": {"prior": None}, "soft_wpmi": {"prior": None}, "peak_correlation": {"competition": 0}}

ROUNDING = {"rtol": 1e-5, "atol": 2e-5}  # a sum's last bits depend on where its terms lie in memory

every = pytest.mark.parametrize("name", list_similarities())


def function_of(name: str):
    return get_similarity(name)[1]


@every
def test_a_unit_alone_scores_what_it_scores_among_others(name) -> None:
    activations, scores = random_inputs()
    options, function = ALONE.get(name, {}), function_of(name)
    whole = function(activations, scores, **options)
    for unit in range(activations.shape[1]):
        np.testing.assert_allclose(function(activations[:, [unit]], scores, **options)[0], whole[unit], rtol=1e-5, atol=1e-6)


@every
def test_the_order_of_the_images_does_not_matter(name) -> None:
    activations, scores = random_inputs(n=150)
    order = np.random.default_rng(1).permutation(len(activations))
    np.testing.assert_allclose(
        function_of(name)(activations[order], scores[order]), function_of(name)(activations, scores), rtol=1e-4, atol=2e-4
    )


@every
def test_units_and_concepts_keep_their_places(name) -> None:
    activations, scores = random_inputs()
    units, concepts = [4, 0, 6, 2, 5, 1, 3], [8, 1, 0, 2, 7, 3, 6, 4, 5]
    whole = function_of(name)(activations, scores)
    np.testing.assert_allclose(
        function_of(name)(activations[:, units], scores[:, concepts]), whole[units][:, concepts], rtol=1e-4, atol=2e-4
    )


@every
@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64])
def test_arrays_come_back_as_float32_arrays(name, dtype) -> None:
    activations, scores = random_inputs()
    given = (activations * 10).astype(dtype)
    function = function_of(name)
    found = function(given, scores)
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, function(given.astype(np.float32), scores), rtol=1e-6)


@every
def test_tensors_come_back_as_tensors_with_the_same_values(name) -> None:
    activations, scores = random_inputs()
    function = function_of(name)
    found = function(torch.from_numpy(activations), torch.from_numpy(scores))
    assert isinstance(found, torch.Tensor)
    np.testing.assert_allclose(found.numpy(), function(activations, scores), **ROUNDING)


def test_inputs_are_not_changed() -> None:
    activations, scores = random_inputs()
    before = activations.copy(), scores.copy()
    for name in list_similarities():
        function_of(name)(activations, scores)
    np.testing.assert_array_equal(activations, before[0])
    np.testing.assert_array_equal(scores, before[1])


@every
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
def test_wrong_shapes_are_told(name, activations, scores) -> None:
    shown = rf"but got \({str(activations)[1:-1]}\) and \({str(scores)[1:-1]}\)"
    with pytest.raises(InputError, match=r"\[n_images, n_units\].*\[n_images, n_concepts\].*" + shown):
        function_of(name)(np.ones(activations), np.ones(scores))


@every
def test_what_is_not_finite_is_told_with_its_place(name) -> None:
    activations, scores = random_inputs()
    activations[5, 2] = np.nan
    with pytest.raises(InputError, match="finite activations, but row 5, column 2 is nan"):
        function_of(name)(activations, scores)
    scores[3, 1] = np.inf
    with pytest.raises(InputError, match="finite concept scores, but row 3, column 1 is inf"):
        function_of(name)(np.zeros((60, 2)), scores)


@pytest.mark.parametrize("size", [1, 7, 64, 149, 150, 1024])
@every
def test_in_blocks_of_any_size_the_score_is_the_functions(name: str, size: int) -> None:
    values, found = layer(), scores()
    expected = get_similarity(name)[1](values, found.similarities())
    close(whole(scorer_of(name, found, **PLAIN.get(name, {})), values, size=size), expected, atol=1e-4)


@every
def test_candidates_are_blocks_gathered(name: str) -> None:
    values, scorer = layer(units=40), scorer_of(name, scores(concepts=600))
    part = scorer.units(values)
    columns = torch.randint(600, (40, 20), generator=torch.Generator().manual_seed(2))
    columns[:, 5] = columns[:, 4]  # twice the same
    close(scorer.candidates(part, columns), scorer.block(part, slice(None)).gather(1, columns))
    assert len(torch.unique(columns)) > 256


@every
@pytest.mark.parametrize("n_units", [1, 3])
def test_units_score_by_themselves_as_among_others_but_for_the_prior(name: str, n_units: int) -> None:
    values, scorer = layer(), scorer_of(name, scores())
    together = scorer.block(scorer.units(values), slice(None))
    close(scorer.block(scorer.units(values[:, :n_units]), slice(None)), together[:n_units])


@pytest.mark.parametrize("d", [12, 90])
@every
def test_on_resampled_images_the_score_is_that_of_a_new_scorer(name: str, d: int) -> None:
    given, values = scores(d=d), layer()
    rows = torch.randint(N, (N,), generator=torch.Generator().manual_seed(3))
    # what an image's vector is turned into by decorrelation is a fact of the image, and kept
    kept = decorrelated(given.image_vectors) if name.startswith("peak") else given.image_vectors
    again = dataclasses.replace(given, image_vectors=kept[rows], ids=tuple(str(i) for i in range(N)))
    expected = scorer_of(name, again, **PLAIN.get(name, {}))
    scorer = scorer_of(name, given)
    before = whole(scorer, values)
    found = scorer.resampled(rows)
    close(whole(found, values[rows]), whole(expected, values[rows]), atol=1e-4)
    assert found.n_images == N
    close(whole(scorer, values), before)  # and the scorer stays as it was


@every
def test_blocks_are_columns_of_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given, n = scores(), CONCEPTS
    scorer = scorer_of(name, given)
    units = scorer.units(tied_layer(N))
    whole = scorer.block(units, slice(None))
    some = torch.tensor([129, 0, 7, 7, 64])
    tolerance = {"atol": 3e-6 * float(whole.abs().max()), "rtol": 0}
    torch.testing.assert_close(scorer.block(units, slice(40, 41)), whole[:, 40:41], **tolerance)
    torch.testing.assert_close(scorer.block(units, some), whole[:, some], **tolerance)
    monkeypatch.setattr(_softmax, "_ROWS", 7)
    monkeypatch.setattr(_softmax, "_COLUMNS", 11)
    monkeypatch.setattr(_scorer, "_COLUMNS", 11)
    for n_kept in (0, 70, n):  # columns of the softmax's first sweep
        monkeypatch.setattr(_softmax, "_KEPT_BYTES", 4 * N * n_kept)
        again = scorer_of(name, given)
        for columns in (slice(3, 128), slice(10, 70), slice(70, 71), slice(0, 130, 7), slice(None), torch.arange(n - 1, -1, -3)):
            torch.testing.assert_close(again.block(units, columns), whole[:, columns], **tolerance)


@every
def test_units_are_the_first_axis_of_every_part_and_can_be_chosen_and_joined(name: str) -> None:
    scorer = scorer_of(name, scores())
    units = scorer.units(tied_layer(N))
    assert [len(part) for part in units] == [12] * len(units)
    order = torch.tensor([5, 0, 3, 3, 11])
    whole = scorer.block(units, slice(None))
    close(scorer.block(some_units(units, order), slice(None)), whole[order])
    close(scorer.block(joined([some_units(units, order), units]), slice(None)), torch.cat([whole[order], whole]))


@pytest.mark.parametrize("name", ["peak_correlation", "peak_mean", "pearson", "cos_similarity_cubed", "mean_difference"])
def test_a_unit_that_is_the_same_on_every_image_scores_zero(name: str) -> None:
    values = layer()
    values[:, 2] = 0.1
    scorer = scorer_of(name, scores())
    raw = scorer.block(scorer.units(values), slice(None))
    assert (raw[2] == 0).all()
    assert (raw[[0, 1, 3]] != 0).any(dim=1).all()


def test_concentration_does_not_depend_on_the_order_of_images_or_the_units_scale() -> None:
    values = torch.exp(layer())
    for name in ("peak_correlation", "peak_mean", "pearson", "cos_similarity", "auc", "mean_difference"):
        scorer = scorer_of(name, scores())
        expected = scorer.concentration(scorer.units(values))
        torch.testing.assert_close(scorer.concentration(scorer.units(values.flip(0) * 8)), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["wpmi", "soft_wpmi", "average_precision"])
def test_functions_of_a_units_order_alone_tell_units_apart_by_their_ties(name: str) -> None:
    values = layer()
    values[:, 3:] = (values[:, :1] - torch.tensor([0.5, 0.8, 1.1, 1.6])).clamp_min(0)
    scorer = scorer_of(name, scores())
    found = scorer.concentration(scorer.units(values))
    assert found[0] == found[1] == found[2]  # without ties
    assert (found.diff()[2:] >= 0).all()
    assert found[2] < found[3] < found[6]


@pytest.mark.parametrize("name", ["wpmi", "soft_wpmi", "rank_reorder"])
def test_random_units_depend_on_their_values_only_where_it_is_said(name: str) -> None:
    scorer = scorer_of(name, scores())
    activations = layer()
    units, stretched = scorer.units(activations), scorer.units(activations.double().mul(2).exp().float())  # the same order
    same = torch.allclose(scorer.block(units, slice(None)), scorer.block(stretched, slice(None)), atol=1e-4)
    assert same == torch.allclose(scorer.concentration(units), scorer.concentration(stretched))


@pytest.mark.parametrize("name", ["peak_correlation", "pearson", "cos_similarity", "auc", "mean_difference", "cos_similarity_cubed"])
def test_a_function_of_all_activations_says_so(name: str) -> None:
    scorer, one = scorer_of(name, scores()), torch.zeros(2, 3)
    with pytest.raises(InputError, match=r"only a unit's highest activations, but \w+Scorer needs all.*such as soft_wpmi or peak_mean"):
        scorer.units_from_top(one.long(), one, one[:, 0], one[:, 0])


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("wpmi", {"k": 0}, "`k` to be a whole number of at least 1, but got 0"),
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
        ("pearson", {"k": 3}, "parameters of pearson.*'k'"),
    ],
)
def test_a_wrong_parameter_is_told_before_the_long_run(name, parameters, message) -> None:
    with pytest.raises(InputError, match=message):
        check_similarity(name, parameters)


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


def test_a_scorer_is_found_by_name_function_or_class() -> None:
    assert find_scorer("peak_mean") == ("peak_mean", PeakMeanScorer)
    assert find_scorer(function_of("peak_mean")) == ("peak_mean", PeakMeanScorer)
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


def test_a_function_made_of_a_scorer_shows_the_scorers_parameters_and_docstring() -> None:
    shown = inspect.signature(soft_wpmi)
    assert list(shown.parameters) == ["activations", "concept_scores", "k", "a", "lam", "p_start", "p_end", "min_prob", "prior"]
    assert (shown.parameters["k"].default, shown.parameters["k"].kind) == (100, inspect.Parameter.KEYWORD_ONLY)
    assert soft_wpmi.__name__ == "soft_wpmi"
    text = inspect.getdoc(soft_wpmi)
    assert text.startswith("Soft weighted pointwise mutual information")
    assert "Parameters\n----------\nactivations : array or Tensor, [n_images, n_units]\nconcept_scores : " in text


def test_a_name_is_registered_once_and_then_listed() -> None:
    with pytest.raises(InputError, match=r"'pearson' is registered already\. Rename one"):

        @similarity(PeakMeanScorer)
        def pearson(activations, concept_scores):
            return activations.T @ concept_scores

    assert list_similarities() == sorted(list_similarities())
    assert list_similarities()[0] == "auc"
