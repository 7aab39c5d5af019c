"""Finished cells of a study on disk: each in a file of its own, written whole, named by everything that it depends on."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neuroprobe._core import fingerprint_bytes, write_whole
from neuroprobe.exceptions import StoreError
from neuroprobe.probing._layer import CellResult, UnitScores


class CellStore:
    """A folder of finished cells.

    Parameters
    ----------
    folder : Path
        Made if it is not there. Several studies, and several processes, may share it.

    Raises
    ------
    StoreError
        It cannot be made.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"Expected a folder for finished cells, but {str(folder)!r} cannot be made: {error}.") from error

    def get(self, key: Mapping[str, Any]) -> CellResult | None:
        """The cell that depends on this, if it is there, whole and undamaged."""
        name = cell_name(key)
        try:
            content = json.loads((self.folder / name).read_text(encoding="utf-8"))
            body = content["cell"]
            if content["check"] != fingerprint_bytes(body.encode()) or content["key"] != json.loads(_text(key)):
                return None
            return _cell(json.loads(body))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    def put(self, key: Mapping[str, Any], cell: CellResult) -> None:
        """Keep a finished cell."""
        body = json.dumps(_plain(cell))
        content = {"key": json.loads(_text(key)), "check": fingerprint_bytes(body.encode()), "cell": body}
        try:
            write_whole(self.folder / cell_name(key), json.dumps(content).encode())
        except OSError as error:
            raise StoreError(f"Expected to write a finished cell into {str(self.folder)!r}, but it failed: {error}.") from error


def cell_name(key: Mapping[str, Any]) -> str:
    """The file of the cell that depends on this."""
    return f"{fingerprint_bytes(_text(key).encode())}.json"


def _text(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)


def _plain(cell: CellResult) -> dict[str, Any]:
    units = None if cell.units is None else {name: values.tolist() for name, values in vars(cell.units).items()}
    directions = [[seed, base64.b64encode(weights.tobytes()).decode(), bias] for seed, (weights, bias) in cell.directions.items()]
    return {"rows": cell.rows, "units": units, "directions": directions}


def _cell(content: Mapping[str, Any]) -> CellResult:
    units = content["units"]
    directions = {seed: (np.frombuffer(base64.b64decode(weights), dtype=np.float32), bias) for seed, weights, bias in content["directions"]}
    return CellResult(content["rows"], units and UnitScores(**{name: np.array(values) for name, values in units.items()}), directions)
