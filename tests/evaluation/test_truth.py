from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from judged_world import HEAD, TRUTH, TableEncoder, encoder, labeled, labels_of, recorded, scored
from sklearn.metrics import roc_auc_score

from neuroprobe.evaluation import EvaluationReport, evaluate_labels
from neuroprobe.evaluation.truth import true_concepts
from neuroprobe.exceptions import InputError, UnknownNameError
from neuroprobe.labeling import cos_similarity
from neuroprobe.reports import LabelReport

# unit      0      1       2        3 (withheld)   4 (dead)
FIRST = ["red", "blue", "star", "", ""]
SECOND = ["blue", "red", "red", "ring", ""]
TRUE = ["red", "red", "ring", "cross", "blue"]


def report(**columns: object) -> LabelReport:
    score_2 = [4.0, 3.0, 2.0, 1.0, math.nan]
    return labels_of(FIRST, concept_2=SECOND, score_2=score_2, candidate=["red", "blue", "star", "cross", ""], **columns)


def test_shares_and_ranks_by_hand() -> None:
    found = evaluate_labels(report(), {"fc": TRUE})
    values = found.overall.set_index("quantity")
    assert found.value("named") == 3 / 5
    assert found.value("top_1") == 1 / 5  # unit 0; unit 3 has no label, so it counts as wrong
    assert found.value("top_2") == 2 / 5  # and unit 1
    assert found.value("top_1_of_named") == 1 / 3
    # ranks: 1, 2, beyond, 1 (by its candidate), beyond
    assert found.table["rank"].tolist() == [1, 2, math.inf, 1, math.inf]
    assert found.value("mean_rank_at_least") == (1 + 2 + 3 + 1 + 3) / 5
    assert found.value("median_rank") == 2
    assert found.value("rank_beyond") == 2 / 5
    assert {"top_5", "mean_rank"}.isdisjoint(values.index)  # two were kept, and not every true concept is among them
    assert found.table["right"].tolist() == [True, False, False, False, False]
    assert found.table["right_in_top"].tolist() == [True, True, False, False, False]
    assert values.loc["top_1", "n"] == 5
    assert values.loc["top_1_of_named", "n"] == 3


def test_a_median_beyond_what_is_ranked_is_infinite_with_its_interval() -> None:
    row = evaluate_labels(labels_of(["a", "b", "c"]), {"fc": ["x", "y", "c"]}).overall.set_index("quantity").loc["median_rank"]
    assert (row["value"], row["high"]) == (math.inf, math.inf)
    assert row["low"] == 1


def test_several_accepted_names() -> None:
    found = evaluate_labels(report(), {("fc", 1): ["red", "blue"], ("fc", 2): ("ring", "cross")})
    assert found.table["right"].tolist() == [True, False]
    assert found.table["truth"].tolist() == ["red | blue", "ring | cross"]
    assert found.metadata["n_without_truth"] == 3


def test_units_without_a_concept_are_judged_apart() -> None:
    found = evaluate_labels(report(), {"fc": ["red", "", "", "", "blue"]})
    assert found.value("named_without_concept") == 2 / 3  # units 1 and 2 got a name, 3 did not
    assert found.value("top_1") == 1 / 2
    assert found.table["right"].tolist() == [True, False, False, True, False]


def _slow_rank(scores: np.ndarray, column: int) -> float:
    """The mean over all orders that break ties at random."""
    greater = sum(1 for s in scores if s > scores[column])
    ties = sum(1 for s in scores if s == scores[column])
    return float(np.mean([greater + place for place in range(1, ties + 1)]))


def test_ranks_from_all_similarities_against_a_loop() -> None:
    names = ["red", "blue", "ring", "star", "cross", "square"]
    matrix = np.random.default_rng(0).integers(0, 4, size=(5, 6)).astype(float)  # with many ties
    found = evaluate_labels(report(), {"fc": TRUE}, similarities={"fc": matrix}, concepts=names)
    expected = [_slow_rank(row, names.index(name)) for row, name in zip(matrix, TRUE, strict=True)]
    assert found.table["rank"].tolist() == expected
    assert found.value("mean_rank") == np.mean(expected)
    assert found.value("median_rank") == np.median(expected)
    by_function = evaluate_labels(report(), {"fc": TRUE}, similarities=lambda layer: matrix, concepts=names)
    pd.testing.assert_frame_equal(by_function.overall, found.overall)


def test_a_row_without_similarities_ranks_nothing_first_and_an_unknown_word_nowhere() -> None:
    matrix = np.array([[3.0, 2.0, 1.0], [math.nan] * 3, [5.0, 5.0, 5.0]])
    found = evaluate_labels(labels_of(["a", "", "b"]), {"fc": ["a", "b", ["z"]]}, similarities={"fc": matrix}, concepts=["a", "b", "c"])
    assert found.table["rank"].tolist() == [1, 2, math.inf]
    assert found.value("mean_rank_at_least") == (1 + 2 + 4) / 3


@pytest.mark.parametrize(
    ("similarities", "concepts", "error"),
    [
        ({"fc": np.zeros((5, 2))}, None, InputError),
        ({"fc": np.zeros((5, 2))}, ["a", "a"], InputError),
        ({"fc": np.zeros((5, 2))}, ["a", "b", "c"], InputError),
        ({"fc": np.zeros((4, 2))}, ["a", "b"], InputError),
        ({"layer4": np.zeros((5, 2))}, ["a", "b"], UnknownNameError),
    ],
)
def test_similarities_that_do_not_fit_are_refused(similarities: dict, concepts: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="Expected"):
        evaluate_labels(report(), {"fc": TRUE}, similarities=similarities, concepts=concepts)


def test_confidences_tell_right_from_wrong_as_scikit_learn_says() -> None:
    generator = np.random.default_rng(2)
    right, n = generator.random(40) < 0.6, 40
    score, q_value = generator.integers(0, 9, n) + 3.0 * right, generator.random(n)
    labels = labels_of(["red" if r else "blue" for r in right], q_value=q_value)
    table = labels.table.assign(score=score)
    found = evaluate_labels(LabelReport(table, {}), {"fc": ["red"] * n})
    row = found.overall.set_index("quantity").loc["auroc_of_score"]
    np.testing.assert_allclose(row["value"], roc_auc_score(right, score))
    np.testing.assert_allclose(found.value("auroc_of_q_value"), roc_auc_score(right, -q_value))
    assert row["low"] < row["value"] < row["high"]
    assert row["n"] == n
    assert "auroc_of_stability" not in found.overall["quantity"].tolist()


def test_nothing_to_tell_apart_is_nan_and_no_error() -> None:
    found = evaluate_labels(labels_of(["red", "red"]), {"fc": ["red", "red"]})
    assert math.isnan(found.value("auroc_of_score"))
    nothing = evaluate_labels(labels_of(["", ""]), {"fc": ["red", "red"]})
    assert nothing.value("named") == 0
    assert math.isnan(nothing.value("top_1_of_named"))


def test_cosines_by_hand_and_of_several_encoders() -> None:
    vectors = {"red": [1.0, 0.0], "blue": [0.0, 5.0], "star": [3.0, 4.0], "ring": [1.0, 0.0], "cross": [-1.0, 0.0], "pink": [4.0, 3.0]}
    truth = {"fc": ["red", ["red", "pink"], "ring", "cross", "blue"]}
    found = evaluate_labels(report(), truth, encoder=TableEncoder(vectors))
    np.testing.assert_allclose(found.table["cosine"], [1, 0.6, 0.6, math.nan, math.nan])
    row = found.overall.set_index("quantity").loc["cosine"]
    np.testing.assert_allclose([row["value"], row["n"]], [2.2 / 3, 3])
    two = evaluate_labels(report(), truth, encoder={"clip": TableEncoder(vectors), "mpnet": TableEncoder({k: [1.0, 1.0] for k in vectors})})
    assert two.value("cosine_clip") == found.value("cosine")
    assert two.value("cosine_mpnet") == pytest.approx(1)


def test_every_layer_by_itself_where_there_are_several() -> None:
    table = pd.concat([labels_of(["red", "blue"]).table, labels_of(["star"], layer="conv").table])
    found = evaluate_labels(LabelReport(table, {}), {"fc": ["red", "red"], "conv": ["star"]})
    assert (found.value("top_1"), found.value("top_1", layer="fc"), found.value("top_1", layer="conv")) == (2 / 3, 0.5, 1)


def test_a_report_of_labels_alone_is_enough_and_the_result_is_kept(tmp_path: Path) -> None:
    labels = labels_of(["red", "NA", "none", ""])
    found = evaluate_labels(labels, {"fc": ["red", "NA", "nan", "x"]})
    assert (found.value("top_1"), found.table["rank"].tolist()) == (0.5, [1, 1, math.inf, math.inf])
    found.save(tmp_path)
    back = EvaluationReport.load(tmp_path)
    pd.testing.assert_frame_equal(back.table, found.table)
    pd.testing.assert_frame_equal(back.overall, found.overall)
    assert "top_1" in found._repr_html_()
    assert "top_1" in found.to_single_html()


def test_a_wrong_level_or_truth_is_refused_before_anything_is_made() -> None:
    with pytest.raises(InputError, match="level"):
        evaluate_labels(report(), {"fc": TRUE}, level=95)
    with pytest.raises(UnknownNameError, match="layer4"):
        evaluate_labels(report(), {"layer4": TRUE})


def test_the_worlds_head_is_named_as_it_was_trained() -> None:
    found = evaluate_labels(labeled(), TRUTH, encoder=encoder())
    assert found.value("top_1") >= 0.95
    assert found.value("cosine") >= 0.95
    matrix = cos_similarity(recorded()[HEAD], scored().similarities().numpy())
    ranked = evaluate_labels(labeled(), TRUTH, similarities={HEAD: matrix}, concepts=scored().concepts)
    assert len(ranked.table) == 31
    assert 1 <= ranked.value("mean_rank") < 16


def test_the_worlds_untrained_head_is_at_chance() -> None:
    found = evaluate_labels(labeled("step_00000"), TRUTH, encoder=encoder())
    assert (found.value("top_1") <= 0.2 and found.value("cosine") < 0.6) or math.isnan(found.value("cosine"))


@pytest.mark.parametrize("report", [None, "labels", {"fc": ["red"]}])
def test_what_is_no_report_is_refused(report: object) -> None:
    with pytest.raises(InputError, match=r"Expected a LabelReport as `neuroprobe.dissect` makes it, but got"):
        evaluate_labels(report, {"fc": ["red"]})  # type: ignore[arg-type]


# --- truth in any form

UNITS = [("a", 0), ("a", 1), ("b", 0)]


@pytest.mark.parametrize(
    "truth",
    [
        {("a", 0): "red", ("a", 1): ["blue", "navy"]},
        {("a", np.int64(0)): ["red"], ("a", 1): ("blue", "navy")},
        {"a": ["red", ["blue", "navy"]]},
        {"a": {0: "red", 1: ["blue", "navy"]}},
        {"a": ["red", ["blue", "navy"], "of a unit that was not asked about"]},
    ],
)
def test_truth_in_any_form(truth: object) -> None:
    assert true_concepts(truth, UNITS) == {("a", 0): ("red",), ("a", 1): ("blue", "navy")}


def test_a_unit_known_to_have_no_concept_is_not_one_nobody_knows_of() -> None:
    assert true_concepts({"a": ["", None], ("b", 0): []}, UNITS) == {("a", 0): (), ("a", 1): (), ("b", 0): ()}


@pytest.mark.parametrize("truth", [["red"], {0: "red"}, {"a": "red"}, {("a", 0): 3}, {("a", 0): [3]}, {"a": [1.5]}, {("a", 7): "red"}, {}])
def test_truth_that_is_none_is_refused(truth: object) -> None:
    with pytest.raises(InputError, match="Expected"):
        true_concepts(truth, UNITS)


def test_a_list_that_is_shorter_than_its_layer_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"about 'a' as a list .* but it has 1 and there is a unit 1\. Of some units only, give \{\('a', unit\)"
    ):
        true_concepts({"a": ["red"]}, UNITS)


def test_truth_about_another_layer_is_an_unknown_name() -> None:
    with pytest.raises(UnknownNameError, match="Known: 'a', 'b'"):
        true_concepts({("layer4", 0): "red"}, UNITS)
