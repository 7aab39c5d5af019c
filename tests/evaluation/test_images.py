from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import activations_of, scores_of
from judged_world import BELOW, HEAD, TRUTH, TableEncoder, labeled, labels_of, recorded, shown
from sklearn.metrics import roc_auc_score

from neuroprobe import Activations
from neuroprobe.concepts import ConceptSet, ConceptSets, GivenLabels
from neuroprobe.evaluation import ImageCheckReport, check_metrics, check_on_images, classes_from_labels
from neuroprobe.evaluation.images import mean_activation_difference
from neuroprobe.exceptions import InputError
from neuroprobe.models import Site
from neuroprobe.reports import LabelReport
from neuroprobe.statistics import auroc_interval

N = 40
GENERATOR = np.random.default_rng(4)
SHOWN = {"red": GENERATOR.random(N) < 0.3, "blue": GENERATOR.random(N) < 0.5, "never": np.zeros(N, bool), "once": np.arange(N) == 7}
VALUES = GENERATOR.normal(size=(N, 4)).round(1) + np.stack([2 * SHOWN["red"], SHOWN["blue"], SHOWN["red"], SHOWN["red"]], axis=1)
HELD_OUT = activations_of({"fc": VALUES}, images="held out")


def test_auc_and_mad_against_the_published_definitions() -> None:
    labels = {("fc", 0): "red", ("fc", 1): "blue", ("fc", 2): "blue", ("fc", 3): "red"}
    table = check_on_images(labels, HELD_OUT, SHOWN).table
    assert table["unit"].tolist() == [0, 1, 2, 3]
    assert table["concept"].tolist() == ["red", "blue", "blue", "red"]
    for row in table.itertuples():
        activations, mask = HELD_OUT["fc"][:, row.unit].astype(float), SHOWN[row.concept]
        control, concept = activations[~mask], activations[mask]
        assert row.auc == pytest.approx(roc_auc_score(mask, activations))
        assert row.mad == pytest.approx((concept.mean() - control.mean()) / control.std(ddof=1))
        assert (row.n_positive, row.n_control) == (mask.sum(), (~mask).sum())
        np.testing.assert_allclose((row.auc_low, row.auc_high), auroc_interval(row.auc, mask.sum(), (~mask).sum()))
        assert row.mad_low < row.mad < row.mad_high


def test_mad_by_hand() -> None:
    # control 0, 2, 4: mean 2, standard deviation 2; positives 5, 7: mean 6
    mad, low, high = mean_activation_difference(np.array([[0.0], [2], [4], [5], [7]]), [False, False, False, True, True])
    assert mad == [2]
    # s1^2 / s0^2 / n1 = 2 / 4 / 2; the control's influences -z - z^2 + 1 at z = -1, 0, 1 are 1, 1, -1, of variance 4/3, over 3
    half = 1.959964 * math.sqrt(0.25 + 4 / 9)
    np.testing.assert_allclose([low[0], high[0]], [2 - half, 2 + half], rtol=1e-6)


@pytest.mark.parametrize("draw", ["normal", "exponential"])
def test_the_interval_of_mad_covers_the_truth(draw: str) -> None:
    generator, n = np.random.default_rng(6), 800
    values = getattr(generator, draw)(size=(220, n))  # a standard deviation of 1 in both
    values[:60] = 1.5 * values[:60] + 1
    true = {"normal": 1.0, "exponential": 1.5}[draw]
    _, low, high = mean_activation_difference(values, np.arange(220) < 60)
    assert ((low <= true) & (true <= high)).mean() > 0.91


def test_a_unit_that_is_constant_on_the_control_has_no_mad() -> None:
    mad, low, high = mean_activation_difference(np.array([[1.0], [1], [1], [5], [7]]), [False, False, False, True, True])
    assert math.isnan(mad[0])
    assert math.isnan(low[0])
    assert math.isnan(high[0])


def test_units_that_cannot_be_checked_say_why() -> None:
    labels = {("fc", 0): "red", ("fc", 1): "never", ("fc", 2): "once", ("fc", 3): "zebra"}
    report = check_on_images(labels, HELD_OUT, SHOWN)
    assert report.table["status"].tolist() == ["checked", "too few images", "too few images", "concept not known"]
    assert report.table["auc"].isna().tolist() == [False, True, True, True]
    assert report.overall["n"].tolist() == [1, 1]
    with pytest.raises(InputError, match="'zebra'"):
        check_on_images({("fc", 3): "zebra"}, HELD_OUT, SHOWN)
    with pytest.raises(InputError, match="no unit has a label"):
        check_on_images(labels_of(["", ""]), HELD_OUT, SHOWN)


def test_concept_sets_compare_positives_with_negatives_only() -> None:
    ids = HELD_OUT.ids
    sets = ConceptSets({"red": ConceptSet("red", "color", (ids[3], ids[5]), (ids[0], ids[9], ids[20]))}, {})
    row = check_on_images({("fc", 0): "red"}, HELD_OUT, sets).table.iloc[0]
    values = HELD_OUT["fc"][[3, 5, 0, 9, 20], 0]
    assert row["auc"] == pytest.approx(roc_auc_score([1, 1, 0, 0, 0], values))
    assert row["n_control"] == 3


def test_a_dataframe_and_a_dict_are_the_same() -> None:
    a, b = (check_on_images({("fc", 0): "red"}, HELD_OUT, s) for s in (SHOWN, pd.DataFrame(SHOWN)))
    pd.testing.assert_frame_equal(a.table, b.table)


def test_a_table_with_ids_is_put_in_the_order_of_the_images() -> None:
    table = pd.DataFrame(SHOWN, index=list(HELD_OUT.ids))
    mixed = table.sample(frac=1, random_state=0)
    expected = check_on_images({("fc", 0): "red"}, HELD_OUT, SHOWN).table
    given = GivenLabels(mixed)
    for shown_too in (table, mixed, given, given.score_like(HELD_OUT)):
        pd.testing.assert_frame_equal(check_on_images({("fc", 0): "red"}, HELD_OUT, shown_too).table, expected)
    for wrong in (table.rename(index={"image 3": "image x"}), pd.concat([table, table.iloc[:1]])):
        with pytest.raises(InputError, match=r"labels of all 40 images, but 1 have none|every image once"):
            check_on_images({("fc", 0): "red"}, HELD_OUT, wrong)


def test_nothing_and_names_alone_do_not_say_what_images_show() -> None:
    for shown_not in (None, ["red"]):
        with pytest.raises(InputError, match="which image shows which concept, as given labels, a DataFrame,"):
            check_on_images({("fc", 0): "red"}, HELD_OUT, shown_not)  # type: ignore[arg-type]


def test_an_encoders_scores_are_no_labels() -> None:
    with pytest.raises(InputError, match="given labels, but got scores of an encoder"):
        check_on_images({("fc", 0): "red"}, HELD_OUT, scores_of(N, ["red"]))


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (np.zeros(N - 1, bool), "a row for each of the 40 images in their order, but got 39"),
        (np.full(N, 0.4), "true or false, or 1 or 0, but 'image 0' has 0.4 for 'red'"),
        (np.zeros((N, 2), bool), "from concept to one value per image, but got"),
    ],
)
def test_what_is_not_one_boolean_per_image_is_refused(column: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_on_images({("fc", 0): "red"}, HELD_OUT, {"red": column})


def test_labels_of_units_that_are_not_there_are_refused() -> None:
    with pytest.raises(InputError, match="a unit from 0 to 3 of 'fc', but got 9"):
        check_on_images({("fc", 9): "red"}, HELD_OUT, SHOWN)
    with pytest.raises(InputError, match="LabelReport"):
        check_on_images(["red"], HELD_OUT, SHOWN)  # type: ignore[arg-type]


def test_the_images_of_the_labels_are_refused_unless_asked_for() -> None:
    labels = LabelReport(labels_of(["red"]).table, {"activations": dict(HELD_OUT.metadata)})
    with pytest.raises(InputError, match="same_images=True"):
        check_on_images(labels, HELD_OUT, SHOWN)
    assert len(check_on_images(labels, HELD_OUT, SHOWN, same_images=True)) == 1


def test_the_worlds_labels_hold_on_images_they_were_not_made_from(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="same"):
        check_on_images(labeled(), recorded(), shown())
    report = check_on_images(labeled(), recorded(12), shown(12))
    assert report.value("mean_auc") > 0.97
    assert report.value("mean_mad") > 3
    wrong = {(HEAD, unit): name for unit, name in enumerate(np.roll(TRUTH[HEAD], 7))}
    control = check_on_images(wrong, recorded(12), shown(12))
    assert control.value("mean_auc") < 0.6
    assert abs(control.value("mean_mad")) < 0.5
    report.save(tmp_path)
    pd.testing.assert_frame_equal(ImageCheckReport.load(tmp_path).table, report.table)


def test_units_below_the_head_are_checked_too() -> None:
    report = check_on_images(labeled(layer=BELOW), recorded(12), shown(12))
    assert report.value("mean_auc") > 0.8
    assert set(report.table["layer"]) == {BELOW}


def test_units_are_read_in_blocks_and_come_back_in_the_order_of_the_labels() -> None:
    wide = activations_of({"fc": np.random.default_rng(0).normal(size=(N, 2100)), "a": VALUES}, images="held out")
    units = [2099, 3, 1023, 1024, 0]
    labels = {**{("fc", unit): "red" for unit in units}, ("a", 1): "blue"}
    table = check_on_images(labels, wide, SHOWN).table
    assert table["unit"].tolist() == [*units, 1]
    expected = [roc_auc_score(SHOWN["red"], wide["fc"][:, unit]) for unit in units]
    np.testing.assert_allclose(table["auc"][:5], expected)


def test_labels_and_images_of_which_nothing_is_known_are_no_same_images() -> None:
    assert len(check_on_images({("fc", 0): "red"}, Activations({"fc": VALUES.astype(np.float32)}, HELD_OUT.ids, {}), SHOWN)) == 1


@pytest.mark.parametrize("judge", ["check_on_images", "classes_from_labels", "check_metrics"])
def test_labels_of_units_of_another_site_are_refused(judge: str) -> None:
    read = {name: Activations({"fc": VALUES}, HELD_OUT.ids, {"sites": {"fc": Site("fc", call=call).identity}}) for name, call in
            (("same", 1), ("other", 0))}  # fmt: skip
    table = labels_of(["red", "blue", "blue", "red"]).table
    labels = LabelReport(table, {"activations": {"sites": {"fc": Site("fc", call=1).identity}}})
    words = TableEncoder({"red": [1.0, 0.0], "blue": [0.0, 1.0]})
    judged = {
        "check_on_images": lambda activations: check_on_images(labels, activations, SHOWN),
        "classes_from_labels": lambda activations: classes_from_labels(
            labels, activations, ["red", "blue"] * 20, layer="fc", encoder=words, top=1, n_permutations=9
        ),
        "check_metrics": lambda activations: check_metrics(activations, SHOWN, labels, metrics=["auc"]),
    }[judge]
    assert len(judged(read["same"]))
    with pytest.raises(InputError, match="Hand in the same Site"):
        judged(read["other"])
