"""Small reports for the tests of the page: names as hostile as they come, next to plain ones."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from probe_tables import probe_table, unit_table

from neuroprobe import Activations, Images, LabelReport, ProbeReport
from neuroprobe.effects import EffectReport

#: Names that would do harm as markup, as scripts, as keys, as files, or to the text beside them.
HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    "\u2028line\u2029ends\x00\r\n",
    "__proto__",
    "constructor",
    "javascript:alert(3)",
    '" onmouseover="alert(4)',
    "\u202eturned\u202c",
    "../../../etc/passwd",
    "a?b=c&d#e/f%",
    "{{ 7 * 7 }}",
    "x" * 3000,
)
#: Names of files need not even be Unicode; tables cannot hold such.
HOSTILE_FILES = (*HOSTILE, "half a pair \ud800")


def label_table(layers: dict[str, int], *, names: tuple[str, ...] = ("red", "blue", "striped"), seed: int = 0) -> pd.DataFrame:
    """A row per unit with all columns of `neuroprobe.dissect`; of more than three units, the second is unnamed and the third dead."""
    generator = np.random.default_rng(seed)
    rows = []
    for layer, n in layers.items():
        for unit in range(n):
            status = {1: "not significant", 2: "never varies"}.get(unit, "named") if n > 3 else "named"
            name = names[len(rows) % len(names)]
            scores = np.sort(generator.uniform(0, 8, 5))[::-1]
            dead = status == "never varies"
            row = {
                "layer": layer, "unit": unit, "concept": name if status == "named" else "", "score": np.nan if dead else scores[0],
                "status": status, "candidate": "" if dead else name, "margin": np.nan if dead else scores[0] - scores[1],
                "p_value": np.nan if dead else generator.uniform(0, 0.01), "q_value": np.nan if dead else generator.uniform(0, 0.05),
                "stability": np.nan if dead else generator.uniform(),
            }  # fmt: skip
            for rank in range(2, 6):
                row |= {f"concept_{rank}": "" if dead else f"other {rank}", f"score_{rank}": np.nan if dead else scores[rank - 1]}
            rows.append(row)
    return pd.DataFrame(rows)


def labels_of(layers: dict[str, int], **options: Any) -> LabelReport:
    """A report of such a table."""
    return LabelReport(label_table(layers, **options), {"similarity": "peak_correlation", "n_images": 12, "versions": {"neuroprobe": "0"}})


def activations_for(labels: LabelReport, ids: tuple[str, ...], *, seed: int = 0) -> Activations:
    """Values for its units; those that never vary do not."""
    generator = np.random.default_rng(seed)
    arrays = {}
    for layer, part in labels.table.groupby("layer", sort=False):
        values = np.maximum(generator.normal(size=(len(ids), part["unit"].max() + 1)), 0).astype(np.float32)
        values[:, part.loc[part["status"] == "never varies", "unit"]] = 0.5
        arrays[str(layer)] = values
    return Activations(arrays, ids, {})


def pictures(ids: tuple[str, ...], *, size: tuple[int, int] = (120, 80), **options: Any) -> Images:
    """Images of one color each."""
    generator = np.random.default_rng(0)
    return Images([Image.new("RGB", size, tuple(int(c) for c in generator.integers(0, 256, 3))) for _ in ids], ids=ids, **options)


def probes_of(**options: Any) -> ProbeReport:
    """Two checkpoints of three layers, with every unit by itself."""
    table = probe_table(checkpoints=("first", "last"), scopes=("layer", "neuron"), **options)
    units = unit_table(layers=options.get("layers", ("a", "b", "c")), concepts=options.get("concepts", ("red", "blue")), width=8)
    return ProbeReport(table, {}, units=pd.concat([units.assign(checkpoint="first", auroc=0.5), units.assign(checkpoint="last")]))


def effect_of(layer: str, units: str, outputs: tuple[str, ...] = ("red", "blue")) -> EffectReport:
    """The first output falls by 3."""
    rows = [
        {
            "layer": layer, "units": units, "intervention": "mean", "concept": outputs[0], "output": output,
            "effect": -3.0 if i == 0 else 0.1, "low": -3.5, "high": 0.4, "random": 0.0,
            "random_low": -0.2, "random_high": np.nan, "n_pairs": 40,
        }
        for i, output in enumerate(outputs)
    ]  # fmt: skip
    return EffectReport(pd.DataFrame(rows), {})


def data_of(folder: Path, name: str) -> Any:
    """What a script of data hands to the page."""
    text = (folder / "data" / f"{name}.js").read_text(encoding="ascii")
    assert text.startswith("neuroprobe.take(")
    assert text.endswith(");\n")
    decoder, rest = json.JSONDecoder(), text.removeprefix("neuroprobe.take(")
    for _ in range(2):  # the name, and the page's fingerprint
        _, end = decoder.raw_decode(rest)
        rest = rest[end:].removeprefix(",")
    return decoder.raw_decode(rest)[0]


class Elements(HTMLParser):
    """The elements of a page with their attributes, its texts, and those of its tables' cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, dict[str, Any]]] = []
        self.texts: list[str] = []
        self.cells: list[str] = []
        self._in_cell = False
        self.feed(text)

    @property
    def tags(self) -> list[str]:
        return [tag for tag, _ in self.attributes]

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.attributes.append((tag, dict(attrs)))
        self._in_cell = tag == "td"
        if self._in_cell:
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = False

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self._in_cell:
            self.cells[-1] += data
