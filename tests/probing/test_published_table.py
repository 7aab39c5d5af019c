"""What the page "Reading the published table" says, computed again from the values that it prints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from neuroprobe.statistics import wilson_interval

PAGE = Path(__file__).parents[2] / "docs" / "reading_the_published_table.md"
COLUMNS = ("linear_gap", "non_linear_gap", "non_linear_non_gap")


def values() -> pd.DataFrame:
    """[27 concepts and columns, 19 modules] in thousandths."""
    lines = PAGE.read_text().partition("## All values")[2].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    rows = {(concept, column): [int(number) for number in numbers] for concept, column, *numbers in cells if column in COLUMNS}
    return pd.DataFrame.from_dict(rows, orient="index", columns=range(19)).set_index(pd.MultiIndex.from_tuples(rows))


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return values()


def column(table: pd.DataFrame, name: str) -> pd.DataFrame:
    return table[table.index.get_level_values(1) == name]


def fitting(table: pd.DataFrame, denominator: int) -> int:
    return int(np.isin(table, np.round(np.arange(denominator + 1) / denominator * 1000)).sum())


def test_the_values_are_of_210_images(table: pd.DataFrame) -> None:
    assert table.size == 513
    assert [d for d in range(2, 420) if fitting(table, d) == 513] == [210]
    assert fitting(table, 90) == 67
    assert len(set(np.round(np.arange(211) / 210 * 1000))) / 1001 == pytest.approx(0.21, abs=0.005)


def test_flattened_maps_never_reach_1(table: pd.DataFrame) -> None:
    flattened = column(table, "non_linear_non_gap")
    assert (flattened.size, flattened.min().min(), flattened.max().max()) == (171, 848, 995)


def test_module_1_is_the_highest_of_modules_10_to_18(table: pd.DataFrame) -> None:
    highest = table[list(range(10, 19))].max(axis=1)
    assert (table[1] == highest).all()
    others = table[[0, *range(2, 10)]]
    assert (others.eq(highest, axis=0).sum().sum(), others.size) == (3, 243)
    assert (table[list(range(2, 19))].max(axis=1) == highest).all()


def test_the_lowest_value_is_the_share_of_negatives(table: pd.DataFrame) -> None:
    assert table.min().min() == 667 == round(1000 * 140 / 210)
    found = [(concept, name, module) for (concept, name), row in table.iterrows() for module in row[row == 667].index]
    assert found == [(concept, "linear_gap", 0) for concept in ("striped", "zigzagged", "dotted", "female")]


@pytest.mark.parametrize(("n", "place"), [(210, 1), (90, 2)])
def test_the_intervals_are_wilsons(n: int, place: int) -> None:
    lines = [line.split("|")[1:-1] for line in PAGE.read_text().splitlines() if " to 0." in line and line.startswith("| 0.")]
    assert len(lines) == 5
    for cells in lines:
        low, high = wilson_interval(round(float(cells[0]) * n), n)
        assert cells[place].strip() == f"{low:.3f} to {high:.3f}"


def test_what_is_above_the_baseline_and_what_can_be_told_from_the_best(table: pd.DataFrame) -> None:
    others = table.drop(columns=1)
    low, high = wilson_interval(np.round(others.to_numpy() * 0.21), 210)
    doubtful = pd.DataFrame(low <= 140 / 210, index=others.index)
    assert [int(column(doubtful, name).to_numpy().sum()) for name in COLUMNS] == [15, 7, 0]
    best = np.take_along_axis(low, others.to_numpy().argmax(axis=1)[:, None], axis=1)
    near = pd.DataFrame(high >= best, index=others.index).mean(axis=1)
    assert [round(100 * float(column(near.to_frame(), name).mean().iloc[0])) for name in COLUMNS] == [27, 49, 92]
    steps = np.abs(np.diff(others.to_numpy(), axis=1))
    assert np.median(steps) == 10


def test_linear_probes_get_better_with_depth(table: pd.DataFrame) -> None:
    others = column(table, "linear_gap").drop(columns=1)
    ranks = [stats.spearmanr(others.columns, row).statistic for row in others.to_numpy()]
    assert (round(min(ranks), 2), round(max(ranks), 2)) == (0.82, 0.99)
    assert (round(others[0].mean()), round(others[18].mean())) == (703, 971)
    flattened = column(table, "non_linear_non_gap").drop(columns=1).mean()
    assert (round(flattened.min()), round(flattened.max())) == (928, 974)
    assert sorted(column(table, "linear_gap")[0])[-2:] == [757, 862]
    female = table.loc[("female", "linear_gap")]
    assert (round(female[17] * 0.21), round(female[18] * 0.21)) == (197, 195)


def test_the_part_that_is_shown_is_of_the_table(table: pd.DataFrame) -> None:
    lines = PAGE.read_text().partition("| striped, module")[2].partition("\n\n")[0].splitlines()[2:]
    for line in lines:
        module, *shown = (cell.strip() for cell in line.strip("|").split("|"))
        assert [round(1000 * float(value)) for value in shown] == [table.loc[("striped", name), int(module)] for name in COLUMNS]
