from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from judged_world import labels_of

from neuroprobe.effects._groups import UNNAMED, UnitGroup, forward_order, group_sums, unit_groups
from neuroprobe.exceptions import InputError

LABELS = {("fc", 1): "red", ("fc", 4): "red", ("fc", 0): "big", ("other", 0): "blue", ("fc", 3): ""}


def test_units_with_one_label_are_one_group_and_all_others_another() -> None:
    assert unit_groups(LABELS, "fc", n_units=6) == [
        UnitGroup("big", True, (0,)),
        UnitGroup("red", True, (1, 4)),
        UnitGroup(UNNAMED, False, (2, 3, 5)),
    ]
    report = labels_of(["big", "red", "", "", "red"])
    assert unit_groups(report, "fc", n_units=6) == unit_groups(LABELS, "fc", n_units=6)


def test_units_without_a_label_are_apart_if_asked_for() -> None:
    rest = unit_groups(LABELS, "fc", n_units=6, unnamed="apart")[2:]
    assert rest == [UnitGroup("(unit 2)", False, (2,)), UnitGroup("(unit 3)", False, (3,)), UnitGroup("(unit 5)", False, (5,))]


def test_a_concept_with_the_name_of_the_rest_stays_a_concept() -> None:
    assert unit_groups({("fc", 0): UNNAMED}, "fc", n_units=2) == [
        UnitGroup(UNNAMED, True, (0,)),
        UnitGroup(UNNAMED, False, (1,)),
    ]


def test_with_every_unit_named_there_is_no_rest() -> None:
    assert [group.name for group in unit_groups({("fc", 0): "a", ("fc", 1): "b"}, "fc", n_units=2)] == ["a", "b"]


def test_labels_have_to_be_of_the_layers_units() -> None:
    with pytest.raises(InputError, match="labels of units of 'conv', but there are only some of 'fc', 'other'"):
        unit_groups(LABELS, "conv", n_units=6)
    with pytest.raises(InputError, match="only some of no layer"):
        unit_groups(labels_of(["", ""]), "fc", n_units=6)
    with pytest.raises(InputError, match="a unit from 0 to 3 of 'fc', but got 4"):
        unit_groups(LABELS, "fc", n_units=4)
    with pytest.raises(InputError, match="'together' or 'apart'"):
        unit_groups(LABELS, "fc", n_units=6, unnamed="none")
    with pytest.raises(InputError, match="Expected a LabelReport, or labels as"):
        unit_groups(["red"], "fc", n_units=6)


def test_sums_of_groups_are_the_sums_one_by_one() -> None:
    generator = np.random.default_rng(0)
    values, weights = generator.normal(size=(5000, 6)).astype(np.float32), generator.normal(size=6)
    groups = unit_groups(LABELS, "fc", n_units=6)
    slow = np.stack([sum(weights[unit] * values[:, unit].astype(float) for unit in group.units) for group in groups], axis=1)
    np.testing.assert_allclose(group_sums(values, weights, groups), slow, atol=1e-12)
    assert group_sums([[1, 2, 3, 4, 5, 6]], [1, 1, 1, 1, 1, -1], groups).tolist() == [[1, 2 + 5, 3 + 4 - 6]]


def test_each_column_leaves_the_least_unexplained() -> None:
    generator = np.random.default_rng(3)
    parts = generator.normal(size=(50, 6)) @ generator.normal(size=(6, 6))  # correlated
    whole, order, chosen = parts.sum(axis=1), [], []
    for _ in range(6):
        left = {i: np.var(whole - parts[:, [*chosen, i]].sum(axis=1)) for i in range(6) if i not in chosen}
        chosen.append(min(left, key=left.__getitem__))
    order = forward_order(parts, range(6))
    assert order == chosen
    assert forward_order(parts, range(6), first=2) == chosen[:2]
    assert set(forward_order(parts, [1, 4])) == {1, 4}


def test_columns_that_cancel_each_other_come_last() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 40))
    parts = np.stack([10 * b, a, -10 * b], axis=1)  # the sum is a
    assert forward_order(parts, range(3))[0] == 1


def test_ties_go_to_the_first() -> None:
    parts = np.tile(np.array([[1.0], [2], [4]]), (1, 3))
    assert all(forward_order(parts, among) == list(among) for among in permutations(range(3)))
