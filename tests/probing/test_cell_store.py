from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from neuroprobe.exceptions import StoreError
from neuroprobe.probing._cell_store import CellStore, cell_name
from neuroprobe.probing._layer import CellResult, UnitScores

CELL = CellResult(
    [{"seed": 0, "auroc": 0.5, "r2": float("nan")}],
    UnitScores(*(np.array([0.1, v]) for v in (0.2, 0.3, 0.4, 0.5))),
    {3: (np.array([1.5, -2], dtype=np.float32), 0.25)},
)


def test_a_cell_comes_back_as_it_went(tmp_path: Path) -> None:
    store = CellStore(tmp_path / "cells")
    store.put({"layer": "x"}, CELL)
    found = CellStore(tmp_path / "cells").get({"layer": "x"})
    assert found is not None
    assert json.dumps(found.rows) == json.dumps(CELL.rows)
    np.testing.assert_array_equal(found.units.p_value, CELL.units.p_value)
    np.testing.assert_array_equal(found.directions[3][0], CELL.directions[3][0])
    assert found.directions[3][1] == 0.25
    assert store.get({"layer": "y"}) is None


def test_a_damaged_cell_is_none(tmp_path: Path) -> None:
    store = CellStore(tmp_path)
    store.put({"layer": "x"}, CELL)
    path = tmp_path / cell_name({"layer": "x"})
    whole = path.read_text()
    for damaged in (
        "",
        whole[: len(whole) // 2],
        whole.replace("0.25", "0.75"),
        "[]",
        "null",
        '{"key": {"layer": "x"}, "check": "", "cell": null}',
        "[" * 100_000,
        whole.replace('"layer": "x"', '"layer": "z"'),
    ):
        path.write_text(damaged)
        assert store.get({"layer": "x"}) is None


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"a folder for finished cells, but '.*file.cells' cannot be made"):
        CellStore(tmp_path / "file" / "cells")
