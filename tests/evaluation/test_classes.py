from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import activations_of
from judged_world import HEAD, N, TableEncoder, encoder, labeled, labels_of, recorded

from neuroprobe.evaluation import ClassReport, classes_from_labels
from neuroprobe.exceptions import InputError
from neuroprobe.world import BACKGROUNDS, WorldDataset

COLORS = TableEncoder({"red": [1.0, 0.0], "blue": [0.0, 1.0], "pink": [0.9, 0.3], "navy": [0.2, 1.0]})
ACTIVE = activations_of({"fc": [[9, 0, 8, 0, 5], [0, 9, 0, 8, 5], [9, 0, 7, 1, 5], [1, 8, 0, 9, 5]]})
UNITS = {("fc", 0): "red", ("fc", 1): "blue", ("fc", 2): "pink", ("fc", 3): "navy", ("fc", 4): "red"}


def test_classes_by_hand() -> None:
    # the two most active units of images 0 and 2 are red and pink, of 1 and 3 blue and navy; unit 4 never varies
    report = classes_from_labels(UNITS, ACTIVE, ["red", "blue", "blue", "blue"], layer="fc", encoder=COLORS, top=2)
    assert report.table[["class", "n_images", "n_right", "recall", "n_predicted"]].values.tolist() == [
        ["red", 1, 1, 1, 2],
        ["blue", 3, 2, 2 / 3, 2],
    ]
    assert report.value("accuracy") == 0.75
    assert report.value("most_frequent") == 0.75
    assert report.metadata["n_units"] == 4
    assert 0 < report.value("p_value") <= 1
    assert 0 <= report.value("chance") <= 1


def test_classes_against_a_loop() -> None:
    generator = np.random.default_rng(0)
    values = (generator.normal(size=(60, 6)) * [1, 9, 0.1, 5, 1, 2] + [0, 40, 3, -20, 0, 1]).astype(np.float32)  # of unlike size
    words = {f"word {i}": generator.normal([3, 0, 0, 0]).tolist() for i in range(9)}  # with a direction in common
    unit = {word: np.array(vector) / np.linalg.norm(vector) for word, vector in words.items()}
    labels, classes = {("fc", u): f"word {u}" for u in range(6)}, ["word 6", "word 7", "word 8"]
    standard = [(column - np.mean(column)) / np.std(column) for column in values.T.astype(float)]
    pooled = []
    for image in range(60):
        top = sorted(range(6), key=lambda u: -standard[u][image])[:2]
        pooled.append(sum(unit[f"word {u}"] for u in top) / 2)
    expected = [max(classes, key=lambda c: unit[c] @ (mine - np.mean(pooled, axis=0))) for mine in pooled]
    report = classes_from_labels(labels, activations_of({"fc": values}), expected, layer="fc", encoder=TableEncoder(words), top=2)
    assert report.value("accuracy") == 1
    assert len(set(expected)) > 1


def test_classes_may_be_more_than_occur() -> None:
    report = classes_from_labels(UNITS, ACTIVE, ["red"] * 4, layer="fc", encoder=COLORS, classes=["red", "blue"], top=2)
    assert report.table["n_images"].tolist() == [4, 0]
    assert math.isnan(report.table["recall"][1])


@pytest.mark.parametrize(
    "wrong",
    [
        {"targets": ["red"] * 3},
        {"targets": ["red"] * 4},
        {"targets": ["red", "blue", "green", "blue"], "classes": ["red", "blue"]},
        {"top": 4},
        {"top": 0},
        {"labels": {("fc", 9): "red"}},
        {"labels": {("conv", 0): "red"}},
    ],
)
def test_classes_that_cannot_be_read_are_refused(wrong: dict) -> None:
    settings = {"labels": UNITS, "targets": ["red", "blue", "red", "blue"], "top": 2, **wrong}
    with pytest.raises(InputError, match="Expected"):
        classes_from_labels(settings.pop("labels"), ACTIVE, settings.pop("targets"), layer="fc", encoder=COLORS, **settings)


def test_the_worlds_backgrounds_are_read_from_the_labels_of_active_units(tmp_path: Path) -> None:
    scenes = WorldDataset(N, seed=12)
    targets = [scenes.scene(i).background for i in range(N)]
    report = classes_from_labels(labeled(), recorded(12), targets, layer=HEAD, encoder=encoder(), classes=BACKGROUNDS)
    assert report.value("accuracy") > 0.7
    assert report.value("chance") < 0.25
    assert report.value("p_value") < 0.02
    shuffled = np.random.default_rng(0).permutation(targets).tolist()
    assert classes_from_labels(labeled(), recorded(12), shuffled, layer=HEAD, encoder=encoder()).value("accuracy") < 0.25
    report.save(tmp_path)
    pd.testing.assert_frame_equal(ClassReport.load(tmp_path).table, report.table)
    assert "accuracy" in report.summary()


def test_a_layer_without_labels_is_refused() -> None:
    with pytest.raises(InputError, match="labels of units of 'fc'"):
        classes_from_labels(labels_of(["", ""]), ACTIVE, ["red", "blue", "red", "blue"], layer="fc", encoder=COLORS)
