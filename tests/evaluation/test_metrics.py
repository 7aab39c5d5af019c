from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import activations_of
from judged_world import TRUTH, labeled, recorded, shown

from neuroprobe.concepts import ConceptSet, ConceptSets
from neuroprobe.evaluation import MetricCheckReport, check_metrics
from neuroprobe.evaluation.metrics import _add_as_many, _drop_half
from neuroprobe.exceptions import InputError
from neuroprobe.labeling import list_similarities

N = 60
GENERATOR = np.random.default_rng(8)
SHOWN = {name: GENERATOR.random(N) < 0.25 for name in ("red", "blue", "star", "ring")}
UNITS = activations_of({"fc": np.stack([4.0 * column for column in SHOWN.values()], axis=1) + GENERATOR.normal(size=(N, 4))})
NAMES = {"fc": list(SHOWN)}


def correlation(activations: np.ndarray, labels: np.ndarray) -> np.ndarray:
    a, b = (x - x.mean(axis=0) for x in (activations, labels))
    lengths = np.linalg.norm(a, axis=0)[:, None] * np.linalg.norm(b, axis=0)
    return a.T @ b / np.where(lengths > 0, lengths, 1)


def recall(activations: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of the six most active images, the share that has the label: more labels never hurt."""
    top = np.argsort(-activations, axis=0)[:6]  # [6, n_units]
    return labels[top].mean(axis=0)


def precision(activations: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of the labeled images, the mean activation: fewer labels hardly hurt."""
    return activations.T @ labels / labels.sum(axis=0)


@pytest.mark.parametrize("n_positive", [2, 5, 6])
def test_half_the_positives_go_and_no_negative_changes(n_positive: int) -> None:
    labels = np.arange(12) < n_positive
    changed = _drop_half(labels, np.random.default_rng(0))
    assert changed.sum() == n_positive - n_positive // 2
    assert not changed[n_positive:].any()
    assert labels.sum() == n_positive


def test_as_many_positives_come_and_none_goes() -> None:
    labels = np.arange(12) < 4
    changed = _add_as_many(labels, np.random.default_rng(0))
    assert changed.sum() == 8
    assert changed[:4].all()
    assert labels.sum() == 4


def test_which_positives_change_is_drawn_evenly() -> None:
    labels, generator = np.arange(12) < 4, np.random.default_rng(1)
    dropped = np.mean([_drop_half(labels, generator) for _ in range(2000)], axis=0)
    added = np.mean([_add_as_many(labels, generator) for _ in range(2000)], axis=0)
    np.testing.assert_allclose(dropped[:4], 0.5, atol=0.05)
    np.testing.assert_allclose(added[4:], 0.5, atol=0.05)


def test_a_concept_on_two_to_half_of_the_images_can_be_tested() -> None:
    for n_positive, tested in ((1, False), (2, True), (N // 2, True), (N // 2 + 1, False)):
        shown = {**SHOWN, "edge": np.arange(N) < n_positive}
        table = check_metrics(UNITS, shown, {"fc": [*list(SHOWN)[:3], "edge"]}, metrics=[correlation]).table
        assert table["n_units"].tolist() == [3 + tested] * 2


def test_metrics_known_to_pass_and_to_fail() -> None:
    table = check_metrics(UNITS, SHOWN, NAMES, metrics=[correlation, recall, precision], n_draws=9).table.set_index(["metric", "test"])
    assert table.loc[("correlation", "missing labels"), "share"] == table.loc[("correlation", "extra labels"), "share"] == 1
    assert table.loc[("recall", "missing labels"), "share"] == 1
    assert table.loc[("recall", "extra labels"), "share"] == 0
    assert table.loc[("precision", "extra labels"), "share"] == 1
    assert table.loc[("precision", "missing labels"), "share"] < 1
    low, high = table.loc[("recall", "extra labels"), ["low", "high"]]
    assert low == 0
    assert 0.4 < high < 0.5
    assert (table["n_units"] == 4).all()
    assert (table["status"] == "tested").all()


def test_shares_against_a_loop_over_units() -> None:
    seen: list[np.ndarray] = []

    def remembering(activations: np.ndarray, labels: np.ndarray) -> np.ndarray:
        seen.append(labels.copy())
        return correlation(activations, labels)

    report = check_metrics(UNITS, SHOWN, NAMES, metrics={"r": remembering}, n_draws=3, seed=5)
    before, wrong = correlation(UNITS["fc"], seen[0]), [correlation(UNITS["fc"], labels) for labels in seen[1:]]
    size = max(m.max() for m in (before, *wrong)) - min(m.min() for m in (before, *wrong))
    for place, test in enumerate(("missing labels", "extra labels")):
        changes = [np.mean([m[u, u] for m in wrong[3 * place : 3 * place + 3]]) - before[u, u] for u in range(4)]
        row = report.table.set_index("test").loc[test]
        assert row["share"] == np.mean([change / size < -0.001 for change in changes])
        np.testing.assert_allclose(row["mean_change"], np.mean(changes) / size)
    np.testing.assert_array_equal(seen[0], np.stack(list(SHOWN.values()), axis=1))
    assert all((labels.sum(axis=0) == 2 * seen[0].sum(axis=0)).all() for labels in seen[4:])


def test_what_is_drawn_for_a_concept_depends_on_nothing_else() -> None:
    seen: list[np.ndarray] = []

    def remembering(activations: np.ndarray, labels: np.ndarray) -> np.ndarray:
        seen.append(labels.copy())
        return correlation(activations, labels)

    check_metrics(UNITS, SHOWN, NAMES, metrics=[remembering])
    check_metrics(UNITS, {"star": SHOWN["star"], "red": SHOWN["red"]}, {("fc", 0): "red"}, metrics=[remembering])
    check_metrics(UNITS, SHOWN, NAMES, metrics=[remembering], seed=1)
    for whole, part, other in zip(seen[:3], seen[3:6], seen[6:], strict=True):
        np.testing.assert_array_equal(whole[:, [2, 0]], part)
        assert (whole is seen[0]) == (whole == other).all()


def test_layers_are_seen_whole_and_one_at_a_time() -> None:
    shapes = []

    def remembering(activations: np.ndarray, labels: np.ndarray) -> np.ndarray:
        shapes.append(activations.shape)
        return correlation(activations, labels)

    activations = activations_of({"a": UNITS["fc"], "b": UNITS["fc"][:, ::-1]})
    report = check_metrics(activations, SHOWN, {("a", 0): "red", ("b", 3): "red"}, metrics=[remembering])
    assert shapes == [(N, 4)] * 6
    assert (report.table["n_units"] == 2).all()


def test_concepts_that_cannot_be_tested_leave_their_units_out() -> None:
    shown_too = {**SHOWN, "common": np.arange(N) < 40, "once": np.arange(N) == 1}
    truth = {("fc", 0): "red", ("fc", 1): "common", ("fc", 2): "once", ("fc", 3): "zebra"}
    assert check_metrics(UNITS, shown_too, truth, metrics=[correlation]).table["n_units"].tolist() == [1, 1]
    with pytest.raises(InputError, match="no fewer negatives than positives"):
        check_metrics(UNITS, shown_too, {("fc", 1): "common"})


def test_a_metric_that_refuses_labels_is_a_finding_and_the_others_are_tested() -> None:
    def picky(activations: np.ndarray, labels: np.ndarray) -> np.ndarray:
        raise InputError("Expected cosines.")

    table = check_metrics(UNITS, SHOWN, NAMES, metrics={"picky": picky, "r": correlation}).table
    assert table["status"].tolist() == ["refused: Expected cosines."] * 2 + ["tested"] * 2
    assert table["share"].isna().tolist() == [True] * 2 + [False] * 2


def test_hostile_input_is_refused() -> None:
    for wrong in ({}, {"red": np.ones(N - 1, bool)}, {"red": np.full(N, 0.5)}):
        with pytest.raises(InputError, match="Expected"):
            check_metrics(UNITS, wrong, NAMES)
    sets = ConceptSets({"red": ConceptSet("red", "color", UNITS.ids[:3], UNITS.ids[5:9])}, {})
    with pytest.raises(InputError, match="Give a table"):
        check_metrics(UNITS, sets, NAMES)
    with pytest.raises(InputError, match="n_draws"):
        check_metrics(UNITS, SHOWN, NAMES, n_draws=0)
    with pytest.raises(InputError, match="different names"):
        check_metrics(UNITS, SHOWN, NAMES, metrics=[recall, recall])


def test_every_similarity_function_of_ours_is_tested_on_the_world(tmp_path: Path) -> None:
    report = check_metrics(recorded(12), shown(12), TRUTH)
    table = report.table
    assert table["metric"].tolist() == [name for name in list_similarities() for _ in range(2)]
    assert table["test"].tolist() == ["missing labels", "extra labels"] * len(list_similarities())
    assert (table["status"] == "tested").all(), table[table["status"] != "tested"]
    assert (table["n_units"] == 31).all()
    cosine = table[table["metric"] == "cos_similarity"]
    assert (cosine["share"] > 0.9).all()  # as the paper finds
    report.save(tmp_path)
    pd.testing.assert_frame_equal(MetricCheckReport.load(tmp_path).table, table)
    assert "cos_similarity" in report.summary()
    assert report.metadata["n_units"] == 31


def test_labels_of_a_report_can_stand_for_the_truth() -> None:
    report = check_metrics(recorded(12), shown(12), labeled(), metrics=["cos_similarity"])
    assert (report.table["n_units"] >= 29).all()
    assert (report.table["share"] > 0.9).all()
