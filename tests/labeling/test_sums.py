from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from embedded_world import SEED, planted, recorded_world, summary_of, world_truth
from helpers import activations_of, scores_of
from matplotlib.figure import Figure
from sklearn.linear_model import LinearRegression

from neuroprobe import Activations, GivenLabels
from neuroprobe.concepts import ConceptGroup, Vocabulary
from neuroprobe.exceptions import InputError, UnknownNameError
from neuroprobe.labeling import UnitCompositionReport, explain_units
from neuroprobe.labeling.sums import ConceptValues
from neuroprobe.world import ATTRIBUTES

HEAD, BELOW = "classifier", "features.18"
WORDS = ["red", "blue", "big", "small", "round"]
FAST = {"n_resamples": 50}


def labeled_scores(values: np.ndarray, words: list[str]):
    ids = [f"image {i}" for i in range(len(values))]
    return GivenLabels(values, ids=ids, concepts=words).score_like(scores_of(len(values), words))


def made(n: int = 240, *, noise: float = 0.1, seed: int = 0):
    """Labels of yes and no, and units: 2 red + big, 1 - 3 blue, noise, and one that never varies."""
    generator = np.random.default_rng(seed)
    values = (generator.random((n, 5)) < 0.4).astype(float)
    units = np.column_stack(
        [2 * values[:, 0] + values[:, 2], 1 - 3 * values[:, 1], 10 * generator.normal(size=n), np.full(n, 0.7)]
    )  # fmt: skip
    units[:, :3] += noise * generator.normal(size=(n, 3))
    return activations_of({"fc": units}), labeled_scores(values, WORDS)


def test_units_built_by_hand_are_recovered() -> None:
    report = explain_units(*made(noise=1e-6), **FAST)
    table = report.table.set_index("unit")
    assert report.formula("fc", 0) == "2 * red + 1 * big"
    assert report.formula("fc", 1) == "-3 * blue"
    assert table.loc[0, ["concept_1", "concept_2", "concept_3"]].tolist() == ["red", "big", ""]
    assert table.loc[0, ["weight_1", "weight_2", "intercept"]].tolist() == pytest.approx([2, 1, 0], abs=1e-4)
    assert table.loc[1, ["weight_1", "intercept"]].tolist() == pytest.approx([-3, 1], abs=1e-4)
    assert table.loc[[0, 1], ["correlation", "r2"]].to_numpy() == pytest.approx(1)
    assert table.loc[1, "effect_1"] == pytest.approx(-1, abs=1e-4)
    assert abs(table.loc[2, "correlation"]) < 0.35
    assert table.loc[2, "low"] < 0 < table.loc[2, "high"]
    assert report.formula("fc", 3) == ""
    assert np.isnan(table.loc[3, ["correlation", "low", "high", "r2", "gain"]].astype(float)).all()
    assert table.loc[3, ["n_concepts", "intercept"]].tolist() == pytest.approx([0, 0.7])


def test_held_out_agreement_is_that_of_a_slow_way() -> None:
    activations, scores = made(noise=0.8)
    held_out = [f"image {i}" for i in range(0, 240, 3)]
    report = explain_units(activations, scores, held_out=held_out, labels={("fc", 0): "big", ("fc", 1): "purple"}, **FAST)
    values, units = scores.similarities().numpy().astype(float), activations["fc"].astype(float)
    test = np.arange(240) % 3 == 0
    for row in report.table.itertuples():
        if row.n_concepts == 0:
            continue
        names = [getattr(row, f"concept_{i}") for i in range(1, row.n_concepts + 1)]
        columns = [WORDS.index(name) for name in names]
        model = LinearRegression().fit(values[~test][:, columns], units[~test, row.unit])
        predicted, measured = model.predict(values[test][:, columns]), units[test, row.unit]
        assert [getattr(row, f"weight_{i}") for i in range(1, row.n_concepts + 1)] == pytest.approx(model.coef_.tolist())
        assert row.intercept == pytest.approx(model.intercept_)
        assert row.correlation == pytest.approx(np.corrcoef(predicted, measured)[0, 1])
        assert row.r2 == pytest.approx(model.score(values[test][:, columns], measured))
        sign = np.sign(np.corrcoef(values[~test, columns[0]], units[~test, row.unit])[0, 1])
        assert row.first_correlation == pytest.approx(sign * np.corrcoef(values[test, columns[0]], measured)[0, 1])
        assert row.gain == pytest.approx(row.correlation - row.first_correlation)
        effect = row.weight_1 * values[~test, columns[0]].std() / units[~test, row.unit].std()
        assert row.effect_1 == pytest.approx(effect)
    table = report.table
    assert table["label"].tolist() == ["big", "purple", "", ""]
    assert table["label_correlation"][0] == pytest.approx(np.corrcoef(values[test, 2], units[test, 0])[0, 1])
    assert table["gain_over_label"][0] == pytest.approx(table["correlation"][0] - table["label_correlation"][0])
    assert table["label_correlation"][1:].isna().all()


def test_a_further_concept_has_to_be_worth_it() -> None:
    activations, scores = made(noise=0.5)
    lengths = [explain_units(activations, scores, min_gain=gain, **FAST).table["n_concepts"] for gain in (0.0, 0.02, 0.5)]
    assert (lengths[0] >= lengths[1]).all()
    assert lengths[1][0] == 2
    assert lengths[2].tolist() == [1, 1, 1, 0]
    assert explain_units(activations, scores, k=1, **FAST).table["n_concepts"].max() == 1
    assert "concept_2" not in explain_units(activations, scores, k=1, **FAST).table


def test_without_signs_no_unit_falls_with_a_concept() -> None:
    activations, scores = made()
    report = explain_units(activations, scores, signed=False, min_gain=0, **FAST)
    weights = report.table[[f"weight_{i}" for i in range(1, 5)]].to_numpy()
    assert (weights[~np.isnan(weights)] >= 0).all()
    assert report.table.loc[0, ["weight_1", "weight_2"]].tolist() == pytest.approx([2, 1], abs=0.05)
    assert "blue" not in report.formula("fc", 1)


def test_two_names_of_one_thing_are_one_concept() -> None:
    activations, scores = made()
    values = scores.similarities().numpy()
    twice = labeled_scores(np.column_stack([values, values[:, 0]]), [*WORDS, "crimson"])
    report = explain_units(activations, twice, min_gain=0, **FAST)
    assert "crimson" not in report.formula("fc", 0)
    both = explain_units(activations, twice, min_gain=0, most_shared=0.999999, **FAST)
    assert report.table.equals(explain_units(activations, scores, min_gain=0, **FAST).table)
    assert report.table.equals(both.table)  # a copy adds nothing, whatever is allowed
    generator = np.random.default_rng(0)
    alike = np.where(generator.random(240) < 0.02, 1 - values[:, 0], values[:, 0])  # another name, nearly of the same images
    near = labeled_scores(np.column_stack([values, alike]), [*WORDS, "crimson"])
    for most_shared, both_names in ((0.8, False), (0.999, True)):
        formula = explain_units(activations, near, min_gain=0, k=5, most_shared=most_shared, **FAST).formula("fc", 0)
        assert ("red" in formula and "crimson" in formula) is both_names


def test_held_out_images_have_no_part_in_the_sums() -> None:
    activations, scores = made()
    held_out = [f"image {i}" for i in range(200, 240)]
    before = explain_units(activations, scores, held_out=held_out, **FAST)
    changed = activations["fc"].copy()
    changed[200:, :3] = np.random.default_rng(1).normal(size=(40, 3))
    after = explain_units(activations_of({"fc": changed}), scores, held_out=held_out, **FAST)
    assert before.table["formula"].tolist() == after.table["formula"].tolist()
    assert (before.table["correlation"][:2] > 0.9).all()
    assert (after.table["correlation"][:2].abs() < 0.5).all()
    # nor has what an encoder says of them: the scale of presences is learned without
    _, encoded = made()[0], scores_of(240, WORDS)
    vectors = encoded.image_vectors.clone()
    vectors[200:] = vectors[200:].flip(1)
    other = dataclasses.replace(encoded, image_vectors=vectors)
    formulas = [explain_units(activations, given, held_out=held_out, **FAST).table["formula"].tolist() for given in (encoded, other)]
    assert formulas[0] == formulas[1]


def test_near_duplicates_stay_on_one_side() -> None:
    activations, scores = made()
    copies = {f"image {i}": i // 2 for i in range(240)}
    doubled = Activations({"fc": np.repeat(activations["fc"][:120], 2, axis=0)}, activations.ids, activations.metadata)
    report = explain_units(doubled, scores, near_duplicates=copies, **FAST)
    assert report.metadata["n_held_out"] == 72


def test_what_else_was_asked_changes_nothing() -> None:
    activations, scores = made()
    two = activations_of({"fc": activations["fc"], "more": activations["fc"][:, ::-1]})
    whole = explain_units(two, scores, **FAST)
    assert whole.table.iloc[:4].equals(explain_units(activations, scores, **FAST).table)
    some = explain_units(two, scores, layers=["more"], units=[2, 0], **FAST).table
    assert some["unit"].tolist() == [2, 0]
    expected = whole.table.iloc[[6, 4]].reset_index(drop=True)
    assert some["formula"].tolist() == expected["formula"].tolist()
    np.testing.assert_allclose(some["correlation"], expected["correlation"])


def test_overall_values_are_means_over_units() -> None:
    activations, scores = made()
    two = activations_of({"fc": activations["fc"], "more": activations["fc"][:, :2]})
    report = explain_units(two, scores, labels={("fc", 0): "red"}, **FAST)
    table = report.table
    assert report.value("mean_correlation") == pytest.approx(table["correlation"].mean())
    assert report.value("mean_gain", layer="more") == pytest.approx(table["gain"][4:].mean())
    assert report.value("mean_label_correlation") == pytest.approx(table["label_correlation"][0])
    assert report.value("mean_n_concepts", layer="fc") == table["n_concepts"][:4].mean()
    rows = report.overall
    assert set(rows["layer"]) == {"all layers", "fc", "more"}
    stated = rows[rows["quantity"] == "mean_correlation"]
    assert ((stated["low"] < stated["value"]) & (stated["value"] < stated["high"])).all()
    assert stated["n"].tolist() == [5, 3, 2]


def test_predictions_of_the_held_out_images_are_those_that_were_judged(tmp_path: Path) -> None:
    activations, scores = recorded_world()
    held_out = list(activations.ids[400:])
    report = explain_units(activations, scores, layers=[HEAD], held_out=held_out, **FAST)
    report.save(tmp_path)
    read = UnitCompositionReport.load(tmp_path)
    assert read.table.equals(report.table)
    unseen = dataclasses.replace(scores, image_vectors=scores.image_vectors[400:], ids=scores.ids[400:])
    predicted = read.predict(unseen, HEAD)
    found = [np.corrcoef(predicted[:, unit], activations[HEAD][400:, unit])[0, 1] for unit in range(31)]
    np.testing.assert_allclose(found, report.table["correlation"], atol=1e-4)
    with pytest.raises(InputError, match="Expected a layer of this report"):
        read.predict(unseen, "fc")


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    activations, scores = made(noise=1e-6)
    hostile = labeled_scores(scores.similarities().numpy(), ["NA", "<img src=x onerror=alert(1)>", "$\\frac$", "a\nb", "nan"])
    report = explain_units(activations, hostile, labels={("fc", 0): "NA"}, **FAST)
    report.save(tmp_path)
    read = UnitCompositionReport.load(tmp_path)
    assert read.table.equals(report.table)
    assert read.formula("fc", 1) == "-3 * <img src=x onerror=alert(1)>"
    assert "<img src=x onerror" not in (tmp_path / "unit_composition.html").read_text()
    ax = Figure().subplots()
    assert report.plot(ax) is ax


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"k": 0}, InputError, "`k` to be a whole number"),
        ({"signed": "no"}, InputError, "`signed` to be True or False, but got 'no'"),
        ({"signed": 1}, InputError, "`signed` to be True or False, but got 1"),
        ({"n_resamples": 0}, InputError, "`n_resamples` to be"),
        ({"most_shared": 1}, InputError, "`most_shared` to be a number, at least 0 and below 1"),
        ({"layers": ["fd"]}, UnknownNameError, "Did you mean 'fc'"),
        ({"units": [4]}, InputError, "a unit from 0 to 3 of 'fc', but got 4"),
        ({"units": []}, InputError, "each of some units of 'fc' once"),
        ({"values": "presence"}, InputError, "that given labels have"),
        ({"values": "p"}, UnknownNameError, "Expected a kind of concept values"),
        ({"labels": ["red"]}, InputError, "Expected a LabelReport, or labels as"),
        ({"held_out": 0}, InputError, "`held_out` to be a number, above 0 and below 1"),
        ({"level": 2}, InputError, "`level` to be a number, above 0 and below 1"),
    ],
)
def test_what_makes_no_sense_is_refused(given, error, message: str) -> None:
    with pytest.raises(error, match=message):
        explain_units(*made(), **{**FAST, **given})


def test_other_images_and_summaries_are_refused() -> None:
    activations, scores = made()
    with pytest.raises(InputError, match="same images in the same order"):
        explain_units(activations, scores_of(240, WORDS, images="others"))
    with pytest.raises(InputError, match="with every value kept, but got a summary"):
        explain_units(summary_of(activations, k=5), scores)
    with pytest.raises(InputError, match="Expected activations as ActivationRecorder makes them"):
        explain_units(activations["fc"], scores)


def test_on_the_world_planted_sums_are_recovered_from_clips_scores() -> None:
    truth = world_truth().truth().astype(float)
    column = {name: truth[:, i] for i, name in enumerate(ATTRIBUTES)}
    units = planted(2 * column["red"] + column["striped"], column["star"] - 2 * column["white"], 3 * column["blue"], noise=0.1)
    table = explain_units(units, recorded_world()[1], **FAST).table
    assert table[["concept_1", "concept_2"]].to_numpy().tolist()[:2] == [["red", "striped"], ["white", "star"]]
    assert table["concept_1"][2] == "blue"
    signs = np.sign(table[["weight_1", "weight_2"]].to_numpy()[:2])
    assert signs.tolist() == [[1, 1], [-1, 1]]
    assert table["weight_1"][0] > table["weight_2"][0]
    assert (table["correlation"] > 0.85).all()
    assert (table["gain_low"][:2] > 0.03).all()


def test_on_the_world_the_heads_units_are_their_own_concepts_first() -> None:
    table = explain_units(*recorded_world(), layers=[HEAD], **FAST).table
    assert SEED != 1  # the encoder learned from those images
    assert table["concept_1"].tolist() == list(ATTRIBUTES)
    assert (table["weight_1"] > 0).all()
    assert table["correlation"].mean() > 0.9


def test_on_the_world_several_concepts_say_more_of_a_unit_than_one() -> None:
    report = explain_units(*recorded_world(), layers=[BELOW], units=range(0, 1280, 10), **FAST)
    found = report.overall.set_index("quantity")
    assert found.loc["mean_correlation", "value"] > 0.8
    assert found.loc["mean_gain", "low"] > 0.1
    assert 1 < found.loc["mean_n_concepts", "value"] < 4


def test_scores_that_are_not_finite_on_a_held_out_image_are_refused() -> None:
    activations, scores = made()
    held_out = [f"image {i}" for i in range(0, 240, 3)]
    report = explain_units(activations, scores, held_out=held_out, **FAST)
    scores.image_vectors[3, 0] = float("nan")  # image 3 is held out
    with pytest.raises(InputError, match="finite concept scores"):
        explain_units(activations, scores, held_out=held_out, **FAST)
    with pytest.raises(InputError, match="finite concept scores"):
        report.predict(scores, "fc")
    with pytest.raises(InputError, match="Expected concept scores"):
        report.predict(None, "fc")


@pytest.mark.parametrize("labels", [{}, {("other", 0): "red"}, {("fc", 3): "red"}])
def test_labels_of_none_of_the_units_are_refused(labels) -> None:
    with pytest.raises(InputError, match="Expected labels of units that are explained, of 'fc'"):
        explain_units(*made(), labels=labels, units=[0, 1], **FAST)


# --- concept values

THREE = ["red", "blue", "big"]
FIRST = np.arange(20)


def given(values) -> object:
    ids = [f"image {i}" for i in range(len(values))]
    return GivenLabels(np.asarray(values), ids=ids, concepts=THREE).score_like(scores_of(len(values), THREE))


def test_presence_is_a_sigmoid_of_standard_deviations_above_the_mean() -> None:
    scores = scores_of(30, THREE)
    cosines = scores.similarities().double().numpy()
    found = ConceptValues.learned(scores, FIRST).of(scores)
    for row in (0, 25):
        for column in range(3):
            learned = cosines[:20, column]  # the other images have no part in the scale
            above = (cosines[row, column] - learned.mean()) / learned.std()
            assert found[row, column] == pytest.approx(1 / (1 + math.exp(-2 * (above - 1.5))), abs=1e-5)


def test_a_similarity_that_never_varies_is_a_constant() -> None:
    scores = dataclasses.replace(scores_of(20, THREE), image_vectors=torch.ones(20, 12) / math.sqrt(12))
    found = ConceptValues.learned(scores, FIRST).of(scores)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, 1 / (1 + math.exp(3)), atol=0.01)


def test_similarities_likelihoods_and_labels_are_as_they_are() -> None:
    scores = scores_of(20, THREE)
    np.testing.assert_allclose(ConceptValues.learned(scores, FIRST, "similarity").of(scores), scores.similarities(), atol=1e-6)
    groups = Vocabulary([ConceptGroup("size", ("big",)), ConceptGroup("color", ("red", "blue"))])
    grouped = dataclasses.replace(scores, vocabulary=groups)
    found = ConceptValues.learned(grouped, FIRST, "likelihood").of(grouped)
    np.testing.assert_allclose(found[:, :1], 1)
    np.testing.assert_allclose(found[:, 1:], grouped.likelihoods("color"), atol=1e-6)
    table = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    labels = given(table)
    assert ConceptValues.learned(labels, FIRST).kind == "labels"
    np.testing.assert_allclose(ConceptValues.learned(labels, FIRST).of(labels), table)


def test_what_was_written_says_the_same_of_other_images_in_another_order_of_concepts() -> None:
    scores = scores_of(20, THREE)
    values = ConceptValues.learned(scores, FIRST)
    read = ConceptValues.from_json(json.loads(json.dumps(values.to_json(["big", "red"]))))
    others = dataclasses.replace(
        scores_of(8, THREE, seed=5), vocabulary=Vocabulary.from_words(THREE[::-1]), text_vectors=scores.text_vectors.flip(0)
    )
    same_order = dataclasses.replace(others, vocabulary=scores.vocabulary, text_vectors=scores.text_vectors)
    np.testing.assert_allclose(read.of(others), values.of(same_order)[:, [2, 0]], atol=1e-6)


def test_kinds_that_the_scores_do_not_have_are_refused() -> None:
    scores, labels = scores_of(20, THREE), given(np.eye(20, 3))
    with pytest.raises(UnknownNameError, match="Did you mean 'presence'"):
        ConceptValues.learned(scores, FIRST, "presense")
    with pytest.raises(InputError, match="that scores of an encoder have, but got 'labels'"):
        ConceptValues.learned(scores, FIRST, "labels")
    with pytest.raises(InputError, match="that given labels have, but got 'presence'"):
        ConceptValues.learned(labels, FIRST, "presence")


def test_scores_of_something_else_are_refused() -> None:
    scores = scores_of(20, THREE)
    values = ConceptValues.learned(scores, FIRST)
    with pytest.raises(InputError, match="Expected scores of the encoder None, but got some of other"):
        values.of(dataclasses.replace(scores, metadata={"encoder": "other"}))
    with pytest.raises(InputError, match="but 'big' is missing"):
        values.of(scores_of(20, THREE[:2]))
