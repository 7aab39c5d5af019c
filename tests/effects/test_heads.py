from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from neuroprobe import Direction, LinearProbe, NonlinearProbe, RegressionProbe, SparseProbe
from neuroprobe.effects._heads import resolve_head
from neuroprobe.exceptions import InputError, UnknownNameError

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


def test_no_bias_is_zeros() -> None:
    assert resolve_head((WEIGHTS, None)).bias.tolist() == [0, 0]
    assert resolve_head(nn.Linear(3, 2, bias=False)).bias.tolist() == [0, 0]


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
    for wrong in ("dug", 2, -1, 0.5, None):
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
        (([["a"]], None), "as numbers"),
        ((WEIGHTS, [1, 2, 3]), "bias for each of the 2 classes"),
        ((WEIGHTS, [1, np.inf]), "bias for each of the 2 classes"),
    ],
)
def test_what_is_no_head_is_refused(head, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve_head(head)


def test_names_have_to_fit() -> None:
    for names in (["cat"], ["cat", "cat"], []):
        with pytest.raises(InputError, match="a name of its own for each of the head's 2 classes"):
            resolve_head((WEIGHTS, None), classes=names)
    probe = LinearProbe().fit(np.eye(4), [0, 1, 0, 1])
    with pytest.raises(InputError, match="no `classes` beside a head that knows its own"):
        resolve_head(probe, classes=["a", "b"])


@pytest.mark.parametrize("classes", [3, "ab", [["a"], ["b"]]])
def test_classes_are_a_list_of_names(classes) -> None:
    with pytest.raises(InputError, match="Expected"):
        resolve_head((WEIGHTS, None), classes=classes)


@pytest.mark.parametrize("class_", [np.array([0, 1]), [0], {"a": 1}])
def test_what_is_no_class_is_told(class_) -> None:
    with pytest.raises(UnknownNameError, match="Expected a class of the head"):
        resolve_head((WEIGHTS, None)).number(class_)
