from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import activations_of
from judged_world import BELOW, labeled, labels_of, recorded, shown
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import r2_score
from torch import nn

from neuroprobe import Direction, LinearProbe, NonlinearProbe, RegressionProbe, SparseProbe
from neuroprobe.effects import CompositionReport, explain_class
from neuroprobe.effects.classes import resolve_head
from neuroprobe.exceptions import InputError, UnknownNameError
from neuroprobe.world import ATTRIBUTES, COLORS, load_target

FAST = {"n_shuffles": 5, "n_resamples": 50}


def made(n: int = 80, n_units: int = 6, *, seed: int = 0):
    """Activations of "fc", a head of 3 classes, and labels of all units but the last."""
    generator = np.random.default_rng(seed)
    activations = activations_of({"fc": generator.normal(size=(n, n_units)) @ generator.normal(size=(n_units, n_units))})
    head = (generator.normal(size=(3, n_units)), generator.normal(size=3))
    return activations, head, labels_of(["red", "big", "red", "blue", "big", ""][:n_units])


def test_worked_by_hand() -> None:
    # weights 2, -1, 1; means 1, 2, 0 over the six images; the class's images are the last two
    rows = [[0, 2, 0], [0, 2, 0], [0, 2, 0], [1, 2, 3], [2, 4, -3], [3, 0, 0]]
    report = explain_class(
        ([[2, -1, 1]], [10]), {("fc", 0): "red", ("fc", 1): "big"}, 0, activations=activations_of({"fc": np.array(rows)}),
        members=np.arange(6) > 3, held_out=[f"image {i}" for i in (1, 3, 5)], **FAST,
    )  # fmt: skip
    table = report.table.set_index("concept")
    assert table.loc["red", "contribution"] == 2 * ((2 - 1) + (3 - 1)) / 2
    assert table.loc["big", "contribution"] == -1 * ((4 - 2) + (0 - 2)) / 2
    assert table.loc["(unnamed)", "contribution"] == (-3 + 0) / 2
    assert (table.loc["red", "lowest"], table.loc["red", "highest"]) == (-2, 4)
    assert (table.loc["big", "lowest"], table.loc["big", "highest"]) == (-2, 2)
    # less their mean, red is -2 -2 -2 0 2 4, big 0 0 0 0 -2 2, the rest 0 0 0 3 -3 0: the score -2 -2 -2 3 -3 6
    score = np.array([-2, -2, -2, 3, -3, 6])
    shares = np.array([[-2, -2, -2, 0, 2, 4], [0, 0, 0, 0, -2, 2], [0, 0, 0, 3, -3, 0]]) @ score / (score @ score)
    np.testing.assert_allclose(table.loc[["red", "big", "(unnamed)"], "share"], shares)
    # of the training images (0, 2, 4) red is -2 -2 2 and big 0 0 -2, the score -2 -2 -3: red alone would leave more than big alone
    assert report.table["concept"].tolist() == ["big", "red", "(unnamed)"]
    # on the others the score is -2 3 6; big is 0 0 2 there, with a mean of -2/3 in training, and the score one of -7/3
    assert table.loc["big", "r2"] == pytest.approx(r2_score([-2, 3, 6], np.array([0, 0, 2]) + 2 / 3 - 7 / 3))
    assert table.loc["big", "correlation"] == pytest.approx(np.corrcoef([-2, 3, 6], [0, 0, 2])[0, 1])
    assert table.loc["(unnamed)", "r2"] == pytest.approx(1)
    assert report.metadata["mean_score"] == pytest.approx(10 + 2 * 1 - 2 + 0)
    assert table["units"].to_dict() == {"red": "0", "big": "1", "(unnamed)": "2"}


def test_the_table_is_that_of_a_slow_way() -> None:
    activations, head, labels = made()
    report = explain_class(head, labels, 1, activations=activations, **FAST)
    X, w = activations["fc"].astype(float), head[0][1]
    contributions = w * (X - X.mean(axis=0))  # [n_images, n_units]
    parts = {"red": contributions[:, [0, 2]].sum(1), "big": contributions[:, [1, 4]].sum(1), "blue": contributions[:, 3]}
    parts["(unnamed)"] = contributions[:, 5]
    score = contributions.sum(axis=1)
    of_class = np.argsort(-score)[:8]
    total = 0
    for row in report.table.itertuples():
        values = parts[row.concept]
        assert row.contribution == pytest.approx(values[of_class].mean())
        assert row.share == pytest.approx(np.cov(values, score)[0, 1] / np.var(score, ddof=1))
        assert row.lowest == pytest.approx(np.sort(values)[:4].mean())
        assert row.highest == pytest.approx(np.sort(values)[-4:].mean())
        assert row.low <= row.contribution <= row.high
        total = total + row.share
    assert total == pytest.approx(1)
    assert report.table["n_units"].sum() == 6


def test_all_units_together_are_the_whole_score() -> None:
    activations, head, labels = made()
    for unnamed in ("together", "apart"):
        last = explain_class(head, labels, 2, activations=activations, unnamed=unnamed, **FAST).table.iloc[-1]
        assert [last["r2"], last["correlation"], last["r2_low"]] == pytest.approx([1, 1, 1])


def test_concepts_are_put_in_order_on_the_training_images_alone() -> None:
    activations, head, labels = made(200)
    held_out = [f"image {i}" for i in range(100, 200)]
    given = {"held_out": held_out, "members": np.arange(200) < 10, **FAST}
    before = explain_class(head, labels, 0, activations=activations, **given).table
    changed = activations["fc"].copy()
    changed[100:] = np.random.default_rng(9).normal(size=(100, 6)) * [50, 0.1, 9, 1, 1, 3]
    after = explain_class(head, labels, 0, activations=activations_of({"fc": changed}), **given).table
    assert before["concept"].tolist() == after["concept"].tolist()
    assert before["r2"].tolist() != after["r2"].tolist()


def test_what_is_not_named_comes_after_all_concepts() -> None:
    activations, (weights, bias), labels = made()
    weights = weights * [1, 1, 1, 1, 1, 1000]
    report = explain_class((weights, bias), labels, 0, activations=activations, **FAST)
    assert report.table["named"].tolist() == [True, True, True, False]
    assert report.table["share"].iloc[-1] > 0.9
    assert report.value("r2_named") < 0.2
    apart = explain_class((weights, bias), {("fc", 0): "red"}, 0, activations=activations, unnamed="apart", **FAST).table
    assert apart["concept"].tolist()[:2] == ["red", "(unit 5)"]
    assert len(apart) == 6


def test_the_first_k_are_those_of_the_table() -> None:
    activations, head, labels = made()
    for k, first in ((1, 0), (2, 1), (9, 2)):
        report = explain_class(head, labels, 0, activations=activations, k=k, **FAST)
        row = report.table.iloc[first]
        found = report.overall.set_index("quantity")
        for name in ("r2", "correlation"):
            assert found.loc[name, ["value", "low", "high"]].tolist() == pytest.approx(row[[name, f"{name}_low", f"{name}_high"]].tolist())
        assert found.loc["r2", "n"] == 24
        assert report.metadata["k"] == first + 1
    assert report.value("r2") == report.value("r2_named")


def test_labels_that_mean_something_explain_more_than_shuffled_ones() -> None:
    generator = np.random.default_rng(0)
    causes = generator.normal(size=(300, 4))
    rows = np.repeat(causes, 10, axis=1) + 0.5 * generator.normal(size=(300, 40))
    labels = {("fc", unit): f"cause {unit // 10}" for unit in range(40)}
    weights = np.repeat([1.0, -0.8, 0.1, 0.05], 10)
    report = explain_class(([weights], None), labels, 0, activations=activations_of({"fc": rows}), k=2, n_shuffles=60, n_resamples=50)
    found = report.overall.set_index("quantity")
    assert report.table["concept"].tolist()[:2] == ["cause 0", "cause 1"]
    assert found.loc["r2", "low"] > found.loc["r2_shuffled", "high"]
    assert found.loc["p_value", "value"] == pytest.approx(1 / 61)
    meaningless = dict(zip(labels, generator.permutation(list(labels.values())), strict=True))
    other = explain_class(([weights], None), meaningless, 0, activations=activations_of({"fc": rows}), k=2, n_shuffles=60, n_resamples=50)
    assert other.value("p_value") > 0.02


def test_a_sparse_probe_explains_its_class_from_few_concepts() -> None:
    generator = np.random.default_rng(1)
    rows = generator.normal(size=(400, 30))
    targets = np.where(2 * rows[:, 3] - 1.5 * rows[:, 7] + 0.3 * generator.normal(size=400) > 0, "cat", "none")
    probe = SparseProbe(path=[2.0, 5.0]).fit(rows, targets)
    labels = {("fc", unit): f"concept {unit}" for unit in range(30)}
    report = explain_class(probe, labels, "cat", activations=activations_of({"fc": rows}), k=2, **FAST)
    assert report.table["concept"].tolist()[:2] == ["concept 3", "concept 7"]
    assert report.value("r2") > 0.9
    assert set(report.leading(2)["concept"]) >= {"concept 3", "concept 7"}
    opposite = explain_class(probe, labels, "none", activations=activations_of({"fc": rows}), k=2, **FAST)
    np.testing.assert_allclose(opposite.table["share"], report.table["share"])
    np.testing.assert_allclose(opposite.table["highest"], -report.table["lowest"], atol=1e-12)


def test_leading_rows_are_those_that_add_and_those_that_take() -> None:
    activations, _, _ = made(n_units=6)
    labels = {("fc", unit): name for unit, name in enumerate(["a", "b", "c", "d", "e"])}
    report = explain_class(([[5, 0, -4, 0.1, 0, 0]], None), labels, 0, activations=activations, **FAST)
    rows = report.leading(2)
    most = np.where(rows["highest"] >= -rows["lowest"], rows["highest"], rows["lowest"])
    assert (np.diff(most) <= 0).all()
    assert {"a", "c"} <= set(rows["concept"])
    assert "b" not in set(rows["concept"])  # it has no part in the score
    assert report.leading(50)["concept"].is_unique


def test_it_is_the_same_again_and_whatever_else_was_recorded() -> None:
    activations, head, labels = made()
    one = explain_class(head, labels, 1, activations=activations, seed=4, **FAST)
    two = activations_of({"fc": activations["fc"], "other": activations["fc"][:, :2]})
    both = explain_class(head, labels, 1, activations=two, layer="fc", seed=4, **FAST)
    assert one.to_csv() == both.to_csv()
    assert one.overall.equals(both.overall)
    assert explain_class(head, labels, 1, activations=activations, seed=5, **FAST).to_csv() != one.to_csv()
    held_out = [f"image {i}" for i in range(0, 80, 3)]  # so that the seed tells shuffles alone apart
    shuffled = [explain_class(head, labels, 1, activations=two, layer="fc", held_out=held_out, seed=seed, **FAST) for seed in (4, 4, 5)]
    first, again, other = (report.value("r2_shuffled") for report in shuffled)
    assert first == again != other


def test_a_report_is_saved_and_read(tmp_path: Path) -> None:
    activations, head, labels = made()
    report = explain_class(head, labels, "cat", classes=["cat", "dog", "<b>$x$"], activations=activations, **FAST)
    report.save(tmp_path)
    read = CompositionReport.load(tmp_path)
    assert read.table.equals(report.table)
    assert read.overall.equals(report.overall)
    assert read.metadata["target"] == "cat"
    assert read.table["units"].tolist() == report.table["units"].tolist()
    hostile = labels_of(["<img src=x onerror=alert(1)>", "$\\frac$", "a\nb", "NA", "nan"])
    report = explain_class(head, hostile, "<b>$x$", classes=["cat", "dog", "<b>$x$"], activations=activations, **FAST)
    report.save(tmp_path / "hostile")
    assert "<img src=x onerror" not in (tmp_path / "hostile" / "composition.html").read_text()
    assert set(CompositionReport.load(tmp_path / "hostile").table["concept"]) == {*hostile.table["concept"], "(unnamed)"}


def test_figures_show_the_rows_and_change_nothing_global() -> None:
    import matplotlib.pyplot as plt

    activations, head, labels = made()
    report = explain_class(head, labels, 0, activations=activations, k=2, **FAST)
    figure = Figure()
    first, second = figure.subplots(1, 2)
    assert report.plot(first) is first
    assert report.plot_explained(second) is second
    figure.savefig("/dev/null", format="png")
    assert [label.get_text().split(" (")[0] for label in first.get_yticklabels()] == [
        name.split(" (")[0] for name in report.leading(6)["concept"]
    ]
    np.testing.assert_allclose(second.get_lines()[0].get_ydata(), report.table["r2"])
    assert "2" in [text.get_text() for text in second.get_legend().get_texts()][-1]
    assert plt.get_fignums() == []


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"head": ([[1, 2]], None)}, InputError, "reads the 6 units of 'fc', but it reads 2"),
        ({"head": "classifier"}, InputError, "Expected a head as a linear layer"),
        ({"target": 3}, UnknownNameError, "from 0 to 2"),
        ({"target": "red"}, UnknownNameError, "Expected a class of the head"),
        ({"layer": "fd"}, UnknownNameError, "Did you mean 'fc'"),
        ({"activations": None}, InputError, "Expected `activations` as ActivationRecorder makes them"),
        ({"labels": {("fc", 6): "red"}}, InputError, "a unit from 0 to 5 of 'fc', but got 6"),
        ({"labels": {("conv", 1): "red"}}, InputError, "only some of 'conv'"),
        ({"members": np.ones(80)}, InputError, "truth value for each of the 80 images"),
        ({"members": np.zeros(80, dtype=bool)}, InputError, "true for at least one"),
        ({"members": np.ones(79, dtype=bool)}, InputError, "each of the 80 images"),
        ({"head": (np.zeros((3, 6)), None)}, InputError, "score of 0 that varies"),
        ({"unnamed": "no"}, InputError, "'together' or 'apart'"),
        ({"held_out": 2}, InputError, "`held_out` to be a number, above 0 and below 1"),
        ({"classes": ["a"]}, InputError, "a name of its own"),
        ({"activations": activations_of({"fc": np.eye(4), "other": np.eye(4)})}, InputError, "whose units the head reads, as there are 2"),
    ],
)
def test_what_makes_no_sense_is_refused(given, error, message: str) -> None:
    activations, head, labels = made()
    known = {"head": head, "labels": labels, "target": 0, "activations": activations, **FAST, **given}
    with pytest.raises(error, match=message):
        explain_class(known.pop("head"), known.pop("labels"), known.pop("target"), **known)


def test_the_worlds_colors_are_composed_of_their_own_units() -> None:
    """Of every color's class, the units named so add most, and 5 of the 31 concepts explain far more than 5 shuffled ones."""
    head, labels, truth = load_target().classifier, labeled(layer=BELOW), shown()
    for color in COLORS:
        report = explain_class(
            head, labels, color, classes=ATTRIBUTES, activations=recorded(), layer=BELOW, members=truth[color].to_numpy(), **FAST
        )  # fmt: skip
        assert report.leading(1)["concept"].iloc[0] == color
        assert report.table.sort_values("contribution")["concept"].iloc[-1] == color
        assert report.value("r2") > 0.7 > report.value("r2_shuffled")
        others = set(report.leading(3)["concept"].iloc[-2:])
        assert others <= set(ATTRIBUTES) - {color}


def test_the_worlds_score_is_the_models_own() -> None:
    """The layer's pooled activations, weighted and added up, are what the model returns."""
    target, activations = load_target(), recorded()
    linear = target.classifier[1]
    with torch.no_grad():
        scores = linear(torch.from_numpy(np.array(activations[BELOW])))[:, 10]
    np.testing.assert_allclose(scores, activations["classifier"][:, 10], atol=1e-3)
    report = explain_class(target.classifier, labeled(layer=BELOW), 10, activations=activations, layer=BELOW, **FAST)
    assert report.metadata["mean_score"] == pytest.approx(float(scores.mean()), abs=1e-3)


def test_a_concept_whose_units_never_vary_contributes_nothing() -> None:
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(60, 4)).astype(np.float32)
    rows[:, 1] = 2.7  # its mean over the images is not 2.7 to the last bit
    report = explain_class(
        ([[1, 0.3, 1, 1]], None), {("fc", 0): "red", ("fc", 1): "dead"}, 0, activations=activations_of({"fc": rows}), **FAST
    )
    dead = report.table.set_index("concept").loc["dead"]
    assert not dead[["contribution", "low", "high", "lowest", "highest", "share"]].any()
    assert "dead" not in set(report.leading(5)["concept"])


# --- heads

WEIGHTS = [[1.0, 2, 3], [4, 5, 6]]


def linear() -> nn.Linear:
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(WEIGHTS))
        layer.bias.copy_(torch.tensor([0.5, -1]))
    return layer


@pytest.mark.parametrize(
    "head",
    [
        linear(),
        nn.Sequential(nn.Dropout(0.2), nn.Flatten(), linear()),
        (WEIGHTS, [0.5, -1]),
        (np.array(WEIGHTS, dtype=np.float32), torch.tensor([0.5, -1])),
        (torch.tensor(WEIGHTS)[:, :, None, None].requires_grad_(), np.array([0.5, -1])),  # a 1x1 convolution
    ],
)
def test_heads_of_every_kind_are_the_same_head(head) -> None:
    found = resolve_head(head)
    np.testing.assert_array_equal(found.weights, WEIGHTS)
    np.testing.assert_array_equal(found.bias, [0.5, -1])
    assert found.names == (0, 1)
    assert found.weights.dtype == np.float64
    for without in ((WEIGHTS, None), nn.Linear(3, 2, bias=False)):
        assert resolve_head(without).bias.tolist() == [0, 0]


def test_a_probe_of_two_classes_gives_the_log_odds_of_either() -> None:
    generator = np.random.default_rng(0)
    X = generator.normal(size=(60, 4))
    y = np.where(X[:, 0] > 0, "red", "none")
    for probe in (LinearProbe().fit(X, y), SparseProbe(path=[3.0]).fit(X, y), LogisticRegression().fit(X, y)):
        head = resolve_head(probe)
        assert head.names == ("none", "red")
        scores = X @ head.weights.T + head.bias
        np.testing.assert_allclose(scores[:, 1], probe.decision_function(X))
        np.testing.assert_allclose(scores[:, 0], -probe.decision_function(X))


def test_a_probe_of_several_classes_gives_their_values() -> None:
    generator = np.random.default_rng(0)
    X = generator.normal(size=(60, 4))
    y = X[:, :3].argmax(axis=1) + 5
    probe = LinearProbe().fit(X, y)
    head = resolve_head(probe)
    assert head.names == (5, 6, 7)
    np.testing.assert_allclose(X @ head.weights.T + head.bias, probe.decision_function(X))
    assert head.number(6) == 1
    with pytest.raises(UnknownNameError, match="Expected a class of the head"):
        head.number(1)  # a number is a name here


def test_a_direction_is_a_head_of_one_class() -> None:
    facts = {"checkpoint": "", "layer": "fc", "kind": "linear", "seed": 0}
    direction = Direction("red", features="pooled", weights=np.array([1, 2]), bias=3.0, **facts)
    head = resolve_head(direction)
    assert (head.names, head.weights.tolist(), head.bias.tolist()) == (("red",), [[1, 2]], [3])
    with pytest.raises(InputError, match="of spatial features"):
        resolve_head(Direction("red", features="spatial", weights=np.array([1, 2]), bias=3.0, **facts))


def test_classes_by_name_and_by_number() -> None:
    head = resolve_head((WEIGHTS, None), classes=["cat", "dog"])
    assert head.number("dog") == head.number(1) == head.number(np.int64(1)) == 1
    for wrong in ("dug", 2, -1, 0.5, None, np.array([0, 1]), [0], {"a": 1}):
        with pytest.raises(UnknownNameError, match="from 0 to 1"):
            head.number(wrong)
    with pytest.raises(UnknownNameError, match="Did you mean 'dog'"):
        head.number("dug")
    assert resolve_head((WEIGHTS, None), classes=np.array(["cat", "dog"])).number("cat") == 0


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (nn.Conv2d(3, 2, 1), "one linear layer as the head, but got Conv2d"),
        (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), "with Linear, ReLU, Linear"),
        (nn.Sequential(nn.Dropout()), "Sequential with none"),
        (LinearProbe(), "fitted probe"),
        (RegressionProbe().fit(np.eye(4), [0.0, 1, 2, 3]), "fitted probe"),
        (NonlinearProbe(random_state=0).fit(np.eye(4), [0, 1, 0, 1]), "fitted probe"),
        ("model.fc", "Expected a head as a linear layer"),
        ((1, 2, 3), "Expected a head as a linear layer"),
        (([[1, np.nan]], None), r"finite weights \[n_classes, n_units\]"),
        (([1, 2], None), "finite weights"),
        (([[]], None), "finite weights"),
        (([["a"]], None), "`weights` to be numbers"),
        ((WEIGHTS, [1, 2, 3]), "bias for each of the 2 classes"),
        ((WEIGHTS, [1, np.inf]), "bias for each of the 2 classes"),
    ],
)
def test_what_is_no_head_is_refused(head, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve_head(head)


def test_names_have_to_fit() -> None:
    own, listed = "a name of its own for each of the head's 2 classes", "`classes` as a list of names"
    for names, message in ((["cat"], own), (["cat", "cat"], own), ([], own), ([["a"], ["b"]], own), (3, listed), ("ab", listed)):
        with pytest.raises(InputError, match=message):
            resolve_head((WEIGHTS, None), classes=names)
    probe = LinearProbe().fit(np.eye(4), [0, 1, 0, 1])
    with pytest.raises(InputError, match="no `classes` beside a head that knows its own"):
        resolve_head(probe, classes=["a", "b"])
