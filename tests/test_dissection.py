from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import activations_of, scores_of

from neuroprobe.activations import Activations
from neuroprobe.dissection import dissect
from neuroprobe.exceptions import InputError, UnknownNameError
from neuroprobe.similarity import cos_similarity, list_similarities, soft_wpmi

N = 80
WORDS = ["red", "blue", "none", "NA", "striped", "dotted", "hot dog"]
SCORES = scores_of(N, WORDS)


def random_activations(**units: int) -> Activations:
    generator = np.random.default_rng(3)
    return activations_of({layer: generator.normal(size=(N, n)) for layer, n in (units or {"a": 9, "b.0": 4}).items()})


def same_rows(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(found.reset_index(drop=True), expected.reset_index(drop=True), check_exact=True)


@pytest.mark.parametrize("similarity", list_similarities())
def test_every_unit_gets_the_concepts_that_score_highest(similarity: str) -> None:
    activations = random_activations()
    table = dissect(activations, SCORES, similarity=similarity, top=3).table
    assert list(zip(table["layer"], table["unit"], strict=True)) == [("a", u) for u in range(9)] + [("b.0", u) for u in range(4)]
    function = {"soft_wpmi": soft_wpmi, "cos_similarity": cos_similarity}[similarity]
    for layer in activations.layers:
        alike = function(activations[layer], SCORES.similarities().numpy())
        for (_, row), values in zip(table[table["layer"] == layer].iterrows(), alike, strict=True):
            best = np.argsort(-values, kind="stable")[:3]
            assert [row["concept"], row["concept_2"], row["concept_3"]] == [WORDS[i] for i in best]
            np.testing.assert_allclose([row["score"], row["score_2"], row["score_3"]], values[best].astype(float), rtol=1e-4, atol=1e-4)
            assert row["status"] == "named"


def test_planted_units_are_named_after_their_concepts() -> None:
    matrix = SCORES.similarities().numpy()
    report = dissect(activations_of({"layer": matrix}), SCORES)
    assert [report.label("layer", unit) for unit in range(len(WORDS))] == WORDS


@pytest.mark.parametrize("similarity", list_similarities())
def test_units_only_choose_rows(similarity: str) -> None:
    activations = random_activations()
    whole = dissect(activations, SCORES, similarity=similarity).table
    part = dissect(activations, SCORES, similarity=similarity, units={"a": [7, 2]}).table
    expected = [whole[(whole["layer"] == "a") & (whole["unit"] == 7)], whole[(whole["layer"] == "a") & (whole["unit"] == 2)]]
    same_rows(part, pd.concat([*expected, whole[whole["layer"] == "b.0"]]))


def test_layers_only_choose_rows() -> None:
    activations = random_activations()
    whole = dissect(activations, SCORES).table
    same_rows(dissect(activations, SCORES, layers=["b.0"]).table, whole[whole["layer"] == "b.0"])
    alone = Activations({"b.0": activations["b.0"]}, activations.ids, activations.metadata)
    same_rows(dissect(alone, SCORES).table, whole[whole["layer"] == "b.0"])


def test_a_unit_by_any_integer_type() -> None:
    units = dissect(random_activations(), SCORES, layers=["a"], units={"a": np.array([3, 1])}).table["unit"]
    assert units.tolist() == [3, 1]


def test_no_units_of_a_layer_is_no_row_of_it() -> None:
    table = dissect(random_activations(), SCORES, units={"a": []}).table
    assert set(table["layer"]) == {"b.0"}


def test_dead_units_have_a_status_and_no_name() -> None:
    values = random_activations(a=4)["a"].copy()
    values[:, 1], values[:, 3] = 0, -2.5
    table = dissect(activations_of({"a": values}), SCORES, top=2).table
    assert table["status"].tolist() == ["named", "never varies", "named", "never varies"]
    dead = table[table["status"] == "never varies"]
    assert dead[["concept", "concept_2"]].to_numpy().tolist() == [["", ""], ["", ""]]
    assert dead[["score", "score_2"]].isna().all(axis=None)
    assert table.loc[[0, 2], "score"].notna().all()


def test_a_layer_of_dead_units_alone(tmp_path) -> None:
    report = dissect(activations_of({"a": np.zeros((N, 3))}), SCORES)
    assert report.summary() == "0 of 3 units named, in 1 layers, with 0 concepts"
    report.save(tmp_path)
    assert type(report).load(tmp_path).label("a", 2) == ""


def test_top_is_at_most_the_number_of_concepts() -> None:
    table = dissect(random_activations(), SCORES, top=50).table
    assert [c for c in table.columns if c.startswith("concept")] == ["concept", *(f"concept_{i}" for i in range(2, len(WORDS) + 1))]
    ranked = table[[c for c in table.columns if c.startswith("concept")]]
    assert all(sorted(row) == sorted(WORDS) for row in ranked.to_numpy().tolist())
    assert list(dissect(random_activations(), SCORES, top=1).table) == ["layer", "unit", "concept", "score", "status"]


def test_parameters_reach_the_function() -> None:
    activations = random_activations()
    report = dissect(activations, SCORES, similarity="soft_wpmi", parameters={"k": 5, "prior": None}, layers=["a"])
    expected = soft_wpmi(activations["a"], SCORES.similarities().numpy(), k=5, prior=None)
    np.testing.assert_allclose(report.table["score"], expected.max(axis=1), rtol=1e-5)
    assert report.metadata["parameters"] == {"k": 5, "prior": None}


def test_the_metadata_say_what_the_labels_are_of() -> None:
    metadata = dissect(random_activations(), SCORES).metadata
    assert metadata["similarity"] == "soft_wpmi"
    assert (metadata["n_images"], metadata["n_concepts"]) == (N, len(WORDS))
    assert metadata["activations"]["images"] == metadata["concept_scores"]["images"] == "these images"
    assert metadata["versions"]["torch"] == torch.__version__.split("+")[0]


# --- somebody's own similarity function


def test_an_own_function_sees_whole_layers_and_decides_the_labels() -> None:
    seen = []

    def covariance(activations, concept_scores, *, sign=1):
        seen.append((tuple(activations.shape), tuple(concept_scores.shape)))
        centred = activations - activations.mean(dim=0)
        return sign * (centred.T @ concept_scores).numpy()  # an array will do as well

    activations = random_activations()
    report = dissect(activations, SCORES, similarity=covariance, parameters={"sign": -1}, units={"a": [0]})
    assert seen == [((N, 9), (N, len(WORDS))), ((N, 4), (N, len(WORDS)))]
    values = activations["a"][:, 0]
    expected = -(values - values.mean()) @ SCORES.similarities().numpy()
    assert report.label("a", 0) == WORDS[int(expected.argmax())]
    assert report.metadata["similarity"] == "covariance"


@pytest.mark.parametrize("shape", [(len(WORDS), 9), (9,), (9, len(WORDS), 1), (8, len(WORDS))])
def test_an_own_function_with_a_result_of_another_shape_is_refused(shape) -> None:
    def mine(activations, concept_scores):
        return torch.zeros(shape)

    with pytest.raises(InputError, match=rf"similarity function 'mine' to return \(9, 7\), but got \({shape[0]},"):
        dissect(random_activations(a=9), SCORES, similarity=mine)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_own_function_with_values_that_are_not_finite_is_refused(value: float) -> None:
    def mine(activations, concept_scores):
        return torch.full((9, len(WORDS)), value)

    with pytest.raises(InputError, match="finite similarities, but 'mine' returned some that are not"):
        dissect(random_activations(a=9), SCORES, similarity=mine)


def test_an_own_functions_parameters_may_be_arrays() -> None:
    def weighted(activations, concept_scores, *, weights):
        return (activations * torch.as_tensor(weights)[:, None]).T @ concept_scores

    weights = np.linspace(0, 1, N, dtype=np.float32)
    report = dissect(random_activations(), SCORES, similarity=weighted, parameters={"weights": weights})
    assert report.metadata["parameters"]["weights"] == weights.tolist()


# --- errors


def test_other_images_are_refused() -> None:
    activations = random_activations()
    with pytest.raises(InputError, match=r"same images in the same order, but got 80 and 79 images .*in one pass"):
        dissect(activations, scores_of(N - 1, WORDS))
    with pytest.raises(InputError, match="fingerprints these images and other images"):
        dissect(activations, scores_of(N, WORDS, images="other images"))


def test_the_same_images_in_another_order_are_refused() -> None:
    activations = random_activations()
    turned = Activations({k: v[::-1] for k, v in activations.arrays.items()}, activations.ids[::-1], activations.metadata)
    with pytest.raises(InputError, match="in the same order"):
        dissect(turned, SCORES)


def test_unknown_names_are_refused_with_a_suggestion() -> None:
    activations = random_activations()
    with pytest.raises(UnknownNameError, match=r"a similarity function, but got 'cos_similarty'\. Did you mean 'cos_similarity'"):
        dissect(activations, SCORES, similarity="cos_similarty")
    with pytest.raises(UnknownNameError, match=r"a recorded layer, but got 'b\.1'\. Did you mean 'b\.0'"):
        dissect(activations, SCORES, layers=["a", "b.1"])
    with pytest.raises(UnknownNameError, match=r"`units` for the layers \['a'\], but got 'b\.0'"):
        dissect(activations, SCORES, layers=["a"], units={"b.0": [0]})


@pytest.mark.parametrize("unit", [9, -1])
def test_a_unit_the_layer_does_not_have_is_refused(unit: int) -> None:
    with pytest.raises(InputError, match=f"units of 'a' from 0 to 8, but got {unit}"):
        dissect(random_activations(), SCORES, units={"a": [0, unit]})


def test_top_below_one_is_refused() -> None:
    with pytest.raises(InputError, match="`top` to be at least 1, but got 0"):
        dissect(random_activations(), SCORES, top=0)


@pytest.mark.parametrize(("layers", "shown"), [([], r"\[\]"), ("a", "'a'"), (["a", "a"], r"\['a', 'a'\]")])
def test_layers_that_are_no_list_of_different_names_are_refused(layers, shown: str) -> None:
    with pytest.raises(InputError, match=f"`layers` to .*but got .*{shown}"):
        dissect(random_activations(), SCORES, layers=layers)
