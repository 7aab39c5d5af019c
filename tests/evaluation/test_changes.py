from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from judged_world import HEAD, TRUTH, labeled, labels_of

from neuroprobe.evaluation import ComparisonReport, LabelHistoryReport, compare_reports, labels_along
from neuroprobe.exceptions import InputError, UnknownNameError
from neuroprobe.reports import LabelReport
from neuroprobe.statistics import wilson_interval

A = labels_of(["red", "red", "blue", "", "", "NA"])
B = labels_of(["red", "pink", "", "star", "", "NA"], q_value=0.01, stability=0.9)


def test_changes_by_hand() -> None:
    report = compare_reports(A, B, names=("before", "after"))
    table = report.table
    assert table["change"].tolist() == ["same", "renamed", "lost", "gained", "unnamed", "same"]
    assert table["concept_a"].tolist() == ["red", "red", "blue", "", "", "NA"]
    assert table["concept_b"].tolist() == [
        "red",
        "pink",
        "",
        "star",
        "",
        "NA",
    ]
    assert report.value("unchanged") == 2 / 5  # of the units named in one of the two
    assert report.value("both_named_same") == 2 / 3
    row = report.overall.set_index("quantity").loc["unchanged"]
    np.testing.assert_allclose([row["low"], row["high"]], wilson_interval(2, 5))
    assert report.changed()["unit"].tolist() == [1, 2, 3]
    assert report.metadata["names"] == ["before", "after"]
    assert report.metadata["differs"] == []


def test_confidences_stand_beside_labels_where_a_report_has_them() -> None:
    table = compare_reports(A, B).table
    assert {"score_a", "score_b", "status_a", "status_b", "q_value_b", "stability_b"} <= set(table)
    assert {
        "q_value_a",
        "margin_b",
    }.isdisjoint(table)
    assert table["score_a"].tolist() == [6, 5, 4, 3, 2, 1]
    assert set(table["q_value_b"]) == {0.01}
    assert set(compare_reports(B, B).table) >= {"q_value_a", "q_value_b", "stability_a", "stability_b"}


def test_units_are_matched_by_layer_and_number_not_by_row() -> None:
    both = LabelReport(pd.concat([A.table, labels_of(["cat"], layer="conv").table]), {})
    shuffled = LabelReport(B.table.iloc[[4, 1, 0]], {})
    report = compare_reports(both, shuffled)
    assert report.table[["unit", "change"]].values.tolist() == [[0, "same"], [1, "renamed"], [4, "unnamed"]]
    assert (report.metadata["n_only_in_a"], report.metadata["n_only_in_b"]) == (4, 0)
    two = compare_reports(both, both)
    assert two.value("unchanged", layer="conv") == 1
    assert two.overall["layer"].nunique() == 3
    assert compare_reports(both, both, layers=["conv"]).table["layer"].tolist() == ["conv"]


def test_what_else_differs_is_said() -> None:
    facts = {"similarity": "soft_wpmi", "concept_scores": {"vocabulary": "x", "encoder": "e", "images": "i"}}
    other = {"similarity": "cos_similarity", "concept_scores": {"vocabulary": "y", "encoder": "e", "images": "i"}}
    assert compare_reports(LabelReport(A.table, facts), LabelReport(B.table, other)).metadata["differs"] == ["similarity", "vocabulary"]


def test_the_candidates_of_units_without_a_label_are_kept_as_text(tmp_path: Path) -> None:
    withheld = labels_of(["", "red"], candidate=["NA", "red"], q_value=[0.4, 0.01])
    report = compare_reports(withheld, labels_of(["1", "red"]))
    assert report.table[["candidate_a", "concept_b", "change"]].values.tolist() == [["NA", "1", "gained"], ["red", "red", "same"]]
    report.save(tmp_path)
    pd.testing.assert_frame_equal(ComparisonReport.load(tmp_path).table, report.table)


def test_reports_without_a_unit_in_common_are_refused() -> None:
    with pytest.raises(InputError, match="units in common"):
        compare_reports(A, labels_of(["red"], layer="conv"))
    with pytest.raises(UnknownNameError, match="conv"):
        compare_reports(A, B, layers=["conv"])


def history(*labels: list[str]) -> LabelHistoryReport:
    return labels_along({f"epoch {i}": labels_of(row) for i, row in enumerate(labels)})


def test_when_a_label_came_to_stay_by_hand() -> None:
    #                 red all along; twice; red, lost, red; another at last; unnamed at last; named at last
    report = history(
        ["red", "blue", "red", "red", "red", ""], ["red", "red", "", "red", "red", ""], ["red", "red", "red", "star", "", "ring"]
    )
    assert report.table["stays_from"].tolist() == ["epoch 0", "epoch 1", "epoch 2", "epoch 2", "", "epoch 2"]
    assert report.table["n_labels"].tolist() == [1, 2, 1, 2, 1, 1]
    assert [report.became("fc", unit) for unit in (1, 4)] == ["epoch 1", None]
    (line,) = report.plot().lines
    assert line.get_ydata().tolist() == [0.2, 0.4, 1]  # of the five that are named at last
    assert report.table["label at epoch 1"].tolist() == ["red", "red", "", "red", "red", ""]
    assert report.checkpoints == ("epoch 0", "epoch 1", "epoch 2")
    assert [report.value(f"settled by epoch {i}") for i in range(3)] == [1 / 5, 2 / 5, 1]


def test_when_a_label_came_to_stay_against_a_loop() -> None:
    labels = np.random.default_rng(0).choice(["", "a", "b"], size=(6, 200))
    table = history(*labels.tolist()).table
    for unit, column in enumerate(labels.T):
        first = next(i for i in range(6) if all(later == column[-1] for later in column[i:]))
        assert table["stays_from"][unit] == (f"epoch {first}" if column[-1] else "")


def test_reports_with_more_columns_and_in_another_order() -> None:
    report = labels_along({"a": A, "b": LabelReport(B.table.iloc[::-1], {})})
    assert report.table["label at b"].tolist() == B.table["concept"].tolist()
    assert report.table["q_value at b"].tolist() == [0.01] * 6
    assert "q_value at a" not in report.table


def test_a_history_survives_saving_with_any_names(tmp_path: Path) -> None:
    report = labels_along({"NA": labels_of(["NA", "1", ""]), "1": labels_of(["NA", "none", "nan"])})
    report.save(tmp_path)
    back = LabelHistoryReport.load(tmp_path)
    pd.testing.assert_frame_equal(back.table, report.table)
    assert back.became("fc", 0) == "NA"
    assert back.table["label at 1"].tolist() == ["NA", "none", "nan"]


def test_what_is_no_series_is_refused() -> None:
    with pytest.raises(InputError, match="at least two"):
        labels_along({"a": A})
    with pytest.raises(InputError, match="that of 'b' differs"):
        labels_along({"a": A, "b": labels_of(["red"])})
    with pytest.raises(InputError, match="unit 99"):
        history(["red"], ["red"]).became("fc", 99)


def test_a_series_without_any_label_has_no_share_and_still_a_figure(tmp_path: Path) -> None:
    report = history(["", ""], ["", ""])
    assert math.isnan(report.value("settled by epoch 0"))
    report.save(tmp_path)


def test_units_of_the_world_get_their_names_while_it_is_trained(tmp_path: Path) -> None:
    reports = {name: labeled(name) for name in ("step_00000", "step_00400", "step_05000")}
    report = labels_along(reports)
    table = report.table
    assert (table["concept"] == TRUTH[HEAD]).mean() > 0.9
    assert (
        0
        <= report.value("settled by step_00000")
        < 0.2
        < report.value("settled by step_00400")
        < report.value("settled by step_05000")
        == 1
    )
    compared = compare_reports(reports["step_00400"], reports["step_05000"])
    unchanged = (table["label at step_00400"] == table["label at step_05000"])[table["concept"] != ""].mean()
    assert compared.value("unchanged") <= unchanged + 1e-9
    compared.save(tmp_path)
    pd.testing.assert_frame_equal(ComparisonReport.load(tmp_path).table, compared.table)


def test_what_are_no_reports_is_refused() -> None:
    report = LabelReport(pd.DataFrame({"layer": "fc", "unit": [0], "concept": ["red"], "score": 1.0, "status": "named"}), {})
    with pytest.raises(InputError, match="Expected a LabelReport as"):
        compare_reports(report, None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="Expected a mapping from checkpoints' names"):
        labels_along([report, report])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="Expected a LabelReport for every checkpoint"):
        labels_along({"a": report, "b": None})  # type: ignore[dict-item]
