from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import activations_of, scores_of
from torch.nn import functional as F

from neuroprobe.concepts import Vocabulary
from neuroprobe.exceptions import InputError, UnknownNameError
from neuroprobe.labeling import Scorer, dissect, get_similarity, list_similarities, soft_wpmi
from neuroprobe.recording import Activations
from neuroprobe.reports import LabelReport
from neuroprobe.statistics import benjamini_hochberg, decorrelated

N = 80
WORDS = ["red", "blue", "none", "NA", "striped", "dotted", "hot dog"]
SCORES = scores_of(N, WORDS)


def random_activations(**units: int) -> Activations:
    generator = np.random.default_rng(3)
    return activations_of({layer: generator.normal(size=(N, n)) for layer, n in (units or {"a": 9, "b.0": 4}).items()})


def same_rows(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(found.reset_index(drop=True), expected.reset_index(drop=True), rtol=1e-6, atol=1e-7)


#: So that dissect scores the very matrix that the pure functions get.
PLAIN = {"peak_correlation": {"decorrelate": False}, "peak_mean": {"decorrelate": False}}


@pytest.mark.parametrize("similarity", list_similarities())
def test_every_unit_gets_the_concepts_that_score_highest(similarity: str) -> None:
    activations = random_activations()
    parameters = PLAIN.get(similarity, {})
    table = dissect(activations, SCORES, similarity=similarity, parameters=parameters, top=3, n_null=0, n_bootstrap=0).table
    assert list(zip(table["layer"], table["unit"], strict=True)) == [("a", u) for u in range(9)] + [("b.0", u) for u in range(4)]
    for layer in activations.layers:
        alike = get_similarity(similarity)[1](activations[layer], SCORES.similarities().numpy())
        for (_, row), values in zip(table[table["layer"] == layer].iterrows(), alike, strict=True):
            best = np.sort(values)[::-1][:3].astype(float)
            np.testing.assert_allclose([row["score"], row["score_2"], row["score_3"]], best, rtol=1e-4, atol=1e-4)
            found = [values[WORDS.index(row[name])] for name in ("concept", "concept_2", "concept_3")]
            np.testing.assert_allclose(found, best, rtol=1e-4, atol=1e-4)  # of several as good, any
            assert row["margin"] == pytest.approx(row["score"] - row["score_2"], abs=1e-6)
            assert row["status"] == "named"
            assert row["candidate"] == row["concept"]


def test_planted_units_are_named_after_their_concepts() -> None:
    matrix = SCORES.similarities().numpy()
    table = dissect(activations_of({"layer": matrix}), SCORES).table
    assert table["concept"].tolist() == WORDS
    assert table["p_value"].max() < 1e-3
    assert (table["q_value"] >= table["p_value"]).all()
    assert table["stability"].min() > 0.8


@pytest.mark.parametrize("similarity", list_similarities())
def test_units_only_choose_rows(similarity: str) -> None:
    activations = random_activations()
    whole = dissect(activations, SCORES, similarity=similarity, n_null=100, n_bootstrap=3).table
    part = dissect(activations, SCORES, similarity=similarity, units={"a": [7, 2]}, n_null=100, n_bootstrap=3).table
    expected = [whole[(whole["layer"] == "a") & (whole["unit"] == 7)], whole[(whole["layer"] == "a") & (whole["unit"] == 2)]]
    same_rows(part, pd.concat([*expected, whole[whole["layer"] == "b.0"]]))
    one = dissect(activations, SCORES, similarity=similarity, layers=["a"], units={"a": [7]}, n_null=100, n_bootstrap=3).table
    same_rows(one, expected[0])


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        (iter([2, 0]), [("a", 2), ("a", 0), ("b.0", 2), ("b.0", 0)]),
        ({"a": np.array([3, 1]), "b.0": 3}, [("a", 3), ("a", 1), ("b.0", 3)]),
        ({"a": []}, [("b.0", unit) for unit in range(4)]),
    ],
)
def test_units_of_every_layer_or_by_layer(units, expected: list[tuple[str, int]]) -> None:
    table = dissect(random_activations(), SCORES, units=units, n_null=0, n_bootstrap=0).table
    assert list(zip(table["layer"], table["unit"], strict=True)) == expected


SCORED = ["candidate", "concept_2", "concept_3"], ["score", "margin", "score_2", "score_3"]


def same_labels(found: pd.DataFrame, expected: pd.DataFrame, *, names: bool = True) -> None:
    for column in SCORED[0] if names else []:
        assert found[column].tolist() == expected[column].tolist()
    for column in SCORED[1]:
        np.testing.assert_allclose(found[column], expected[column], rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("similarity", list_similarities())
def test_the_order_of_units_and_images_does_not_matter(similarity: str) -> None:
    activations = random_activations(a=12)
    whole = dissect(activations, SCORES, similarity=similarity, n_null=0, n_bootstrap=0).table
    units, images = np.random.default_rng(0).permutation(12), np.random.default_rng(1).permutation(N)
    mixed = Activations({"a": activations["a"][images][:, units]}, tuple(activations.ids[i] for i in images), activations.metadata)
    scores = dataclasses.replace(SCORES, image_vectors=SCORES.image_vectors[images], ids=mixed.ids)
    found = dissect(mixed, scores, similarity=similarity, n_null=0, n_bootstrap=0).table
    same_labels(found, whole.iloc[units], names=similarity not in ("auc", "average_precision", "rank_reorder"))  # which may tie


def test_p_values_do_not_depend_on_which_layers_there_are() -> None:
    both = random_activations()
    whole = dissect(both, SCORES).table
    turned = Activations({"b.0": both["b.0"], "a": both["a"]}, both.ids, both.metadata)
    same_rows(dissect(turned, SCORES, layers=["a", "b.0"]).table, whole)
    alone = Activations({"b.0": both["b.0"]}, both.ids, both.metadata)
    for found in (dissect(both, SCORES, layers=["b.0"]), dissect(alone, SCORES)):
        same_rows(found.table, whole[whole["layer"] == "b.0"])
    assert (dissect(both, SCORES, seed=1).table["p_value"] != whole["p_value"]).any()


def test_dead_units_have_a_status_and_no_name() -> None:
    values = random_activations(a=4)["a"].copy()
    values[:, 1], values[:, 3] = 0, -2.5
    table = dissect(activations_of({"a": values}), SCORES, top=2, false_discovery_rate=1).table
    assert table["status"].tolist() == ["named", "never varies", "named", "never varies"]
    dead = table[table["status"] == "never varies"]
    assert dead[["concept", "candidate", "concept_2"]].to_numpy().tolist() == [["", "", ""], ["", "", ""]]
    assert dead[["score", "score_2", "margin", "p_value", "q_value", "stability"]].isna().all(axis=None)
    assert table.loc[[0, 2], ["score", "margin", "p_value", "q_value", "stability"]].notna().all(axis=None)


def test_dead_units_are_not_counted_among_those_tested() -> None:
    values = random_activations(a=3)["a"]
    table = dissect(activations_of({"a": values}), SCORES).table
    np.testing.assert_allclose(table["q_value"], benjamini_hochberg(table["p_value"].to_numpy()))
    with_dead = dissect(activations_of({"a": np.concatenate([values, np.zeros((N, 40))], axis=1)}), SCORES).table
    np.testing.assert_allclose(with_dead["q_value"][:3], benjamini_hochberg(with_dead["p_value"][:3].to_numpy()))


def test_units_of_noise_stay_without_a_name_and_keep_their_candidates() -> None:
    table = dissect(random_activations(a=200), SCORES, n_bootstrap=0).table
    unnamed = table[table["status"] == "not significant"]
    assert len(unnamed) >= 199
    assert (unnamed["concept"] == "").all()
    assert unnamed["candidate"].isin(WORDS).all()
    assert (unnamed["q_value"] > 0.05).all()
    assert unnamed[["score", "score_2", "margin"]].notna().all(axis=None)


def test_the_false_discovery_rate_decides() -> None:
    activations = activations_of({"a": np.concatenate([SCORES.similarities().numpy(), random_activations(a=30)["a"]], axis=1)})
    tables = {rate: dissect(activations, SCORES, false_discovery_rate=rate, n_bootstrap=0).table for rate in (0.01, 0.3, 1)}
    for rate, table in tables.items():
        assert ((table["status"] == "named") == (table["q_value"] <= rate)).all()
        assert ((table["concept"] == table["candidate"]) == (table["status"] == "named")).all()
    assert (tables[1]["status"] == "named").all()
    assert 7 <= (tables[0.01]["status"] == "named").sum() <= 8


def test_without_null_units_every_unit_that_varies_is_named() -> None:
    table = dissect(random_activations(), SCORES, n_null=0, n_bootstrap=0).table
    assert (table["status"] == "named").all()
    assert table[["p_value", "q_value", "stability"]].isna().all(axis=None)


def test_a_layer_of_dead_units_alone(tmp_path) -> None:
    report = dissect(activations_of({"a": np.zeros((N, 3))}), SCORES)
    assert report.summary() == "0 of 3 units named, in 1 layers, with 0 concepts"
    report.save(tmp_path)
    assert type(report).load(tmp_path).label("a", 2) == ""


def test_top_is_at_most_the_number_of_concepts() -> None:
    table = dissect(random_activations(), SCORES, top=50, n_null=0, n_bootstrap=0).table
    assert [c for c in table.columns if c.startswith("concept")] == ["concept", *(f"concept_{i}" for i in range(2, len(WORDS) + 1))]
    ranked = table[[c for c in table.columns if c.startswith("concept")]]
    assert all(sorted(row) == sorted(WORDS) for row in ranked.to_numpy().tolist())
    assert list(dissect(random_activations(), SCORES, top=1, n_bootstrap=0).table) == [
        "layer", "unit", "concept", "score", "status", "candidate", "margin", "p_value", "q_value", "stability"
    ]  # fmt: skip


def test_parameters_reach_the_function() -> None:
    activations = random_activations()
    report = dissect(activations, SCORES, similarity="soft_wpmi", parameters={"k": 5, "prior": None}, layers=["a"])
    expected = soft_wpmi(activations["a"], SCORES.similarities().numpy(), k=5, prior=None)
    np.testing.assert_allclose(report.table["score"], expected.max(axis=1), rtol=1e-5)
    assert report.metadata["parameters"] == {"k": 5, "prior": None}


def test_the_metadata_say_what_the_labels_are_of() -> None:
    metadata = dissect(random_activations(), SCORES).metadata
    assert metadata["similarity"] == "peak_correlation"
    assert (metadata["n_null"], metadata["n_bootstrap"], metadata["seed"], metadata["false_discovery_rate"]) == (
        {"a": 1000, "b.0": 1000},
        20,
        0,
        0.05,
    )
    assert (metadata["n_images"], metadata["n_concepts"]) == (N, len(WORDS))
    assert metadata["activations"]["images"] == metadata["concept_scores"]["images"] == "these images"
    assert metadata["versions"]["torch"] == torch.__version__.split("+")[0]


# --- somebody's own similarity function


def test_an_own_function_sees_whole_layers_and_decides_the_labels() -> None:
    seen = []

    def covariance(activations, concept_scores, *, sign=1):
        seen.append((tuple(activations.shape), tuple(concept_scores.shape)))
        centered = activations - activations.mean(dim=0)
        return sign * (centered.T @ concept_scores).numpy()  # an array will do as well

    activations = random_activations()
    report = dissect(activations, SCORES, similarity=covariance, parameters={"sign": -1}, units={"a": [0]})
    assert seen == [((N, 9), (N, len(WORDS))), ((N, 4), (N, len(WORDS)))]
    values = activations["a"][:, 0]
    expected = -(values - values.mean()) @ SCORES.similarities().numpy()
    assert report.label("a", 0) == WORDS[int(expected.argmax())]
    assert report.metadata["similarity"] == "covariance"
    assert report.table[["p_value", "stability"]].isna().all(axis=None)
    assert (report.metadata["n_null"], report.metadata["n_bootstrap"]) == (0, 0)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        *((torch.zeros(shape), rf"'mine' to return \(9, 7\), but got \({shape[0]},") for shape in ((7, 9), (9,), (9, 7, 1), (8, 7))),
        (torch.full((9, 7), torch.nan), "finite similarities, but 'mine' returned some that are not"),
        (torch.full((9, 7), torch.inf), "finite similarities, but 'mine' returned some that are not"),
        (None, "'mine' to return an array or a tensor, but got NoneType None"),
    ],
)
def test_an_own_function_with_another_result_or_other_parameters_is_refused(result, message: str) -> None:
    def mine(activations, concept_scores, *, z=1):
        return result

    with pytest.raises(InputError, match=message):
        dissect(random_activations(a=9), SCORES, similarity=mine)
    with pytest.raises(InputError, match=r"parameters of mine, but .*'y': 1.* do not fit: got an unexpected keyword argument 'y'"):
        dissect(random_activations(), SCORES, similarity=mine, parameters={"y": 1})


def test_an_own_scorer_may_use_everything_of_the_scores() -> None:
    class Named(Scorer):
        def __init__(self, scores, *, word):
            super().__init__(scores)
            self.column = scores.concepts.index(word)

        def units(self, activations):
            return (activations.T.contiguous(),)

        def block(self, units, columns):
            scores = self.matrix(slice(None)) - self.matrix(slice(self.column, self.column + 1))
            return units[0] @ scores[:, columns]

    found = dissect(random_activations(), SCORES, similarity=Named, parameters={"word": "dotted"}, n_null=100, n_bootstrap=2)
    assert found.table["p_value"].between(0, 1).all()
    with pytest.raises(InputError, match=r"parameters of Named, but .* do not fit: missing a required"):
        dissect(random_activations(), SCORES, similarity=Named)

    class Half(Scorer):
        def units(self, activations):
            return (activations.T.contiguous(),)

    with pytest.raises(InputError, match="methods `units` and `block`, but Half lacks one"):
        dissect(random_activations(), SCORES, similarity=Half)


def test_an_own_functions_parameters_may_be_arrays() -> None:
    def weighted(activations, concept_scores, *, weights):
        return (activations * torch.as_tensor(weights)[:, None]).T @ concept_scores

    weights = np.linspace(0, 1, N, dtype=np.float32)
    report = dissect(random_activations(), SCORES, similarity=weighted, parameters={"weights": weights})
    assert report.metadata["parameters"]["weights"] == weights.tolist()


# --- errors


def test_other_images_are_refused() -> None:
    activations = random_activations()
    with pytest.raises(InputError, match=r"same images in the same order, but got 80 images .* and 79 images .*in one pass"):
        dissect(activations, scores_of(N - 1, WORDS))
    with pytest.raises(InputError, match=r"fingerprint these images and .* fingerprint other images"):
        dissect(activations, scores_of(N, WORDS, images="other images"))
    turned = Activations({k: v[::-1] for k, v in activations.arrays.items()}, activations.ids[::-1], activations.metadata)
    with pytest.raises(InputError, match="in the same order"):
        dissect(turned, SCORES)
    empty = dataclasses.replace(SCORES, image_vectors=SCORES.image_vectors[:0], ids=())
    with pytest.raises(InputError, match="at least one image, but there is none"):
        dissect(Activations({"a": np.empty((0, 3), np.float32)}, (), {"images": "these images"}), empty)


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
    with pytest.raises(InputError, match=f"a unit from 0 to 8 of 'a', but got {unit}"):
        dissect(random_activations(), SCORES, units={"a": [0, unit]})


@pytest.mark.parametrize(
    ("number", "message"),
    [
        ({"top": 0}, "`top` to be a whole number of at least 1, but got 0"),
        ({"false_discovery_rate": 0}, "`false_discovery_rate` to be a number, above 0 and at most 1, but got 0"),
        ({"false_discovery_rate": 1.5}, "`false_discovery_rate` to be a number, above 0 and at most 1, but got 1.5"),
        ({"n_null": 50}, "at least 100 null units, or 0 for no p-values, but got `n_null` 50"),
        ({"parameters": {"temperature": 0}}, "`temperature` to be a number, above 0"),
    ],
)
def test_numbers_out_of_range_are_refused(number: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dissect(random_activations(), SCORES, **number)


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ([1, 5], "a unit from 0 to 3 of 'b.0', but got 5"),  # the same of every layer
        ([], "Expected each of some units of 'a' once, but got none"),
        ({"a": np.arange(9) > 5}, r"from 0 to 8 of 'a', but got .*False.* Of a mask of booleans, pass np.flatnonzero\(mask\)"),
    ],
)
def test_units_that_are_no_lists_of_numbers_are_refused(units, message: str) -> None:
    with pytest.raises(InputError, match=message):
        dissect(random_activations(), SCORES, units=units)


def test_arguments_of_the_wrong_kind_are_refused() -> None:
    activations = random_activations()
    with pytest.raises(InputError, match="activations as ActivationRecorder makes them, but got ConceptScores"):
        dissect(SCORES, activations)
    with pytest.raises(InputError, match="concept scores as ConceptSource or GivenLabels make them, but got ndarray"):
        dissect(activations, SCORES.similarities().numpy())
    for similarity in (3, ["soft_wpmi"]):
        with pytest.raises(UnknownNameError, match="a similarity function, but got"):
            dissect(activations, SCORES, similarity=similarity)
    with pytest.raises(InputError, match=r"`parameters` to be a mapping, .* but got list \['k'\]"):
        dissect(activations, SCORES, parameters=["k"])


# --- values that are not finite


@pytest.mark.parametrize("similarity", list_similarities())
def test_values_that_are_not_finite_get_no_labels(similarity: str, tmp_path) -> None:
    stored = np.memmap(tmp_path / "a.bin", dtype=np.float32, mode="w+", shape=(N, 9))
    stored[:] = random_activations()["a"]
    stored[3, 4] = np.nan  # a store is not read before it is used
    for values in (stored, random_activations()["a"].astype(np.float64) * 1e60):
        activations = Activations({"a": values}, SCORES.ids, {"images": "these images"})
        with pytest.raises(InputError, match="finite as float32, but some of unit"):
            dissect(activations, SCORES, similarity=similarity, n_null=0, n_bootstrap=0)
    vectors = SCORES.image_vectors.clone()
    vectors[2, 1] = torch.nan
    with pytest.raises(InputError, match="finite concept scores, but some of the image vectors are not"):
        dissect(random_activations(), dataclasses.replace(SCORES, image_vectors=vectors), similarity=similarity)


# --- controls


def control_of(*, model: str = "untrained", **units: int) -> Activations:
    generator = np.random.default_rng(7)
    found = activations_of({layer: generator.normal(size=(N, n)) for layer, n in units.items()})
    return dataclasses.replace(found, metadata={**found.metadata, "model": model})


def test_a_control_that_is_none_is_refused() -> None:
    activations = random_activations(a=9)
    for control, message in (
        (activations, "`control` to be a list of recorded activations, but got Activations"),
        (None, "`control` to be a list of recorded activations, but got NoneType"),
        ([SCORES], "`control` to be a list of recorded activations, but got ConceptScores"),
        ([control_of(a=3)], "the same architecture, with 9 units in 'a', but it has 3"),
        ([activations_of({"a": np.zeros((N, 9))})], "a control of which some units of 'a' vary"),
    ):
        with pytest.raises(InputError, match=message):
            dissect(activations, SCORES, control=control)


def test_a_control_needs_p_values() -> None:
    activations, control = random_activations(a=9), [control_of(a=9)]
    for options in ({"n_null": 0}, {"similarity": lambda a, c: a.T @ c}):
        with pytest.raises(InputError, match="p-values where there is a `control`"):
            dissect(activations, SCORES, control=control, **options)


def test_units_of_a_control_that_never_vary_are_no_null_units() -> None:
    activations, control = random_activations(a=9), control_of(a=9)
    half_dead = control["a"].copy()
    half_dead[:, 4:] = 0
    p = dissect(activations, SCORES, control=[activations_of({"a": half_dead})], n_bootstrap=0).table["p_value"]
    assert p.min() >= 1 / 5  # of four null units


# --- layers of one unit


def test_a_layer_of_one_unit_is_told_of_before_the_first_layer_is_scored(monkeypatch) -> None:
    monkeypatch.setattr("neuroprobe.labeling.dissection.label_layer", lambda *_, **__: pytest.fail("scored"))
    with pytest.raises(InputError, match="more than one unit in 'alone'"):
        dissect(random_activations(a=9, alone=1), SCORES, similarity="soft_wpmi")


# --- hostile vocabularies and units


def test_words_of_any_writing_and_length_survive_in_a_report(tmp_path) -> None:
    words = ["赤い", "شريط", "красный", "🔴", "NaN", "nan", "1", "", "x" * 10_000, "e\u0301", "é", "a\nb"]
    words = [word for word in words if word]
    scores = scores_of(N, words, d=32)
    matrix = scores.similarities().numpy()
    report = dissect(activations_of({"a": np.concatenate([matrix, random_activations(a=5)["a"]], axis=1)}), scores, n_bootstrap=0)
    assert report.table["candidate"][: len(words)].tolist() == words
    report.save(tmp_path)
    loaded = LabelReport.load(tmp_path)
    pd.testing.assert_frame_equal(loaded.table, report.table, rtol=1e-12)
    assert loaded.table["candidate"][: len(words)].tolist() == words
    assert loaded.summary() == report.summary()


def test_words_with_the_same_vector_are_told_apart_by_their_place() -> None:
    scores = scores_of(N, ["first", "other", "second"])
    texts = scores.text_vectors.clone()
    texts[2] = texts[0].clone()
    scores = dataclasses.replace(scores, text_vectors=texts)
    table = dissect(activations_of({"a": scores.similarities().numpy()}), scores).table
    assert table["concept"].tolist() == ["first", "other", "first"]
    assert table["concept_2"][0] == "second"
    assert table["margin"][0] == pytest.approx(0, abs=1e-5)


def test_a_vocabulary_of_100_000_words() -> None:
    generator = torch.Generator().manual_seed(0)
    words = [f"word {i}" for i in range(100_000)]
    scores = scores_of(300, ["a"], d=32)
    scores = dataclasses.replace(
        scores, vocabulary=Vocabulary.from_words(words), text_vectors=F.normalize(torch.randn(100_000, 32, generator=generator), dim=1)
    )
    matrix = decorrelated(scores.image_vectors) @ scores.text_vectors[[0, 77_777, 99_999]].T
    values = np.concatenate([matrix.numpy(), np.random.default_rng(0).normal(size=(300, 5))], axis=1)
    table = dissect(activations_of({"a": values}), scores, n_null=100, n_bootstrap=2).table
    assert table["candidate"][:3].tolist() == ["word 0", "word 77777", "word 99999"]
    assert (table["status"][:3] == "named").all()


@pytest.mark.parametrize("similarity", list_similarities())
@pytest.mark.parametrize("n_images", [1, 2, 3, 10])
def test_tiny_probing_sets_give_no_names_and_no_failures(similarity: str, n_images: int) -> None:
    scores = scores_of(n_images, WORDS)
    activations = activations_of({"a": np.random.default_rng(0).normal(size=(n_images, 40))})
    table = dissect(activations, scores, similarity=similarity, n_null=200, n_bootstrap=2).table
    assert (table["status"] == "named").sum() <= 2
    assert (table["status"] == "never varies").all() == (n_images == 1)


@pytest.mark.parametrize("similarity", ["peak_correlation", "peak_mean", "pearson", "rank_reorder", "auc", "soft_wpmi"])
def test_units_that_one_image_decides_are_not_named_by_chance(similarity: str) -> None:
    generator = np.random.default_rng(0)
    values = np.zeros((N, 150))
    values[generator.integers(N, size=100), np.arange(100)] = 1000  # one image, or one far out in noise
    values[:, 50:] += generator.normal(size=(N, 100))
    table = dissect(
        activations_of({"a": values}), scores_of(N, [f"word {i}" for i in range(300)]), similarity=similarity, n_bootstrap=0
    ).table
    assert (table["status"] == "named").sum() <= 2


def test_values_far_from_1_change_nothing() -> None:
    activations = random_activations(a=20)
    expected = dissect(activations, SCORES, n_bootstrap=0).table
    for scale in (1e-30, 1e30):
        found = dissect(activations_of({"a": activations["a"].astype(float) * scale}), SCORES, n_bootstrap=0).table
        same_labels(found, expected)
        np.testing.assert_allclose(found["p_value"], expected["p_value"], atol=0.01)
