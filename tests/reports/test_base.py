from __future__ import annotations

import html
import json
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from page_reports import Elements

import neuroprobe
from neuroprobe._core import check_writable, versions
from neuroprobe.exceptions import InputError
from neuroprobe.reports import FORMATS, LabelReport, ProbeReport, Report

HOSTILE = [
    "none", "NA", "null", "NaN", "nan", "None", "1", "1.0", "007", "True", "", " leading and trailing ", "a,b;c\td", 'say "x"', '"',
    "'", "a|b", "two\nlines", "two\r\nlines", "old\rmac", "<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>",
    "R&D &lt;", "{{ 7 * 7 }}", "$x$ and $\\frac{1}{2}$", "\\", "縞模様", "🔴", "a\u2028b", "=1+1", "#", "[x](javascript:alert(1))",
]  # fmt: skip
METADATA = {"seed": 3, "<b>": "</pre><script>alert(1)</script>", "nested": {"k": [1, 2.5, None, True]}}


def labels(concepts: list[str], **columns) -> LabelReport:
    n = len(concepts)
    generator = np.random.default_rng(0)
    table = pd.DataFrame(
        {"layer": [f"layer{i % 3}" for i in range(n)], "unit": range(n), "concept": concepts, "score": generator.normal(size=n)}
    )
    table["status"] = ["named" if concept else "never varies" for concept in concepts]
    table["concept_2"] = concepts[::-1]
    table["score_2"] = generator.normal(size=n).astype(np.float32)
    for name, values in columns.items():
        table[name] = values
    return LabelReport(table, METADATA)


def probes(concepts: list[str], checkpoints: list[str] | None = None) -> ProbeReport:
    rows = [
        {
            "concept": concept, "checkpoint": checkpoint, "layer": layer, "probe": f"prob-layer-{kind}", "scope": "layer", "kind": kind,
            "features": "pooled", "seed": 0, "n_train": 70, "n_test": 30,
            "train_accuracy": 1.0, "test_accuracy": 2 / 3 + i / 1000, "baseline": 2 / 3,
        }
        for i, concept in enumerate(concepts)
        for checkpoint in checkpoints or ["model"]
        for layer in ("features.1", "features.10")
        for kind in ("linear", "nonlinear")
    ]  # fmt: skip
    return ProbeReport(pd.DataFrame(rows), METADATA)


# --- saving and loading


@pytest.mark.parametrize("make", [labels, probes])
def test_what_was_saved_is_loaded(tmp_path: Path, make) -> None:
    report = make(HOSTILE)
    report.save(tmp_path)
    loaded = type(report).load(tmp_path)
    assert loaded.table["concept"].tolist() == report.table["concept"].tolist()
    pd.testing.assert_frame_equal(loaded.table, report.table, check_exact=True)
    assert loaded.metadata == report.metadata == {**METADATA, "versions": versions()}


class Quick(LabelReport):
    """Draws nothing, which takes long."""

    def plot(self, ax=None):
        return Figure().subplots()


@pytest.mark.parametrize("name", [name for name in HOSTILE if name])
def test_every_name_survives_alone(tmp_path: Path, name: str) -> None:
    # alone in its column, nothing else tells the reader that this is text
    Quick(labels([name]).table, {}).save(tmp_path)
    assert Quick.load(tmp_path).label("layer0", 0) == name


@pytest.mark.parametrize(
    "columns",
    [
        {"concept_150": ["1", "NA"] * 250, "score_150": [0.5, np.nan] * 250},
        {"score": np.random.default_rng(1).normal(size=500) * 10.0 ** np.arange(-250, 250)},
        {"score": [0.1 + 0.2, 1e-310, 5e300, -0.0, np.nan] * 100},
        {"score": np.random.default_rng(1).normal(size=500).astype(np.float32)},
        {"right": [True, False] * 250, "always": [True] * 500, "rank": [np.inf, 2.0] * 250},
    ],
)
def test_every_value_comes_back_to_the_last_digit(tmp_path: Path, columns: dict) -> None:
    report = Quick(labels(["x", ""] * 250, **columns).table, {})
    report.save(tmp_path)
    pd.testing.assert_frame_equal(Quick.load(tmp_path).table, report.table, check_exact=True)


def test_layers_and_checkpoints_that_look_like_numbers_stay_text(tmp_path: Path) -> None:
    report = probes(["red"], checkpoints=["030", "NA", "1e3"])
    report.save(tmp_path)
    assert ProbeReport.load(tmp_path).table["checkpoint"].unique().tolist() == ["030", "NA", "1e3"]


def test_save_returns_what_it_wrote_and_leaves_nothing_else(tmp_path: Path) -> None:
    paths = labels(["red"]).save(tmp_path / "a" / "new folder")
    assert sorted(path.name for path in paths) == ["labels.csv", "labels.html", "labels.json", "labels.md", "labels.png"]
    assert sorted(path.name for path in (tmp_path / "a" / "new folder").iterdir()) == sorted(path.name for path in paths)
    assert next(p for p in paths if p.suffix == ".png").read_bytes().startswith(b"\x89PNG")


def test_saving_again_replaces_and_reports_of_both_kinds_share_a_folder(tmp_path: Path) -> None:
    labels(["green", "blue"]).save(tmp_path)
    labels(["red"]).save(tmp_path)
    probes(["blue"]).save(tmp_path)
    assert LabelReport.load(tmp_path).table["concept"].tolist() == ["red"]
    assert set(ProbeReport.load(tmp_path).table["concept"]) == {"blue"}


def without_metadata(data: bytes) -> bytes:
    return json.dumps({name: value for name, value in json.loads(data).items() if name != "metadata"}).encode()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("labels.csv", lambda data: data.replace(b"red", b"bad"), r"labels\.csv is not the table that labels\.json describes"),
        *(("labels.csv", lambda data, keep=keep: data[:keep], "is not the table") for keep in (0, 10, -1)),
        *((name, lambda data: None, "a complete LabelReport in .*, but it cannot be read") for name in ("labels.csv", "labels.json")),
        *(("labels.json", lambda data, text=text: text, "a complete LabelReport") for text in (b"", b"{", b"[]", b"3", b"{}", b"\xff")),
        ("labels.json", without_metadata, "a complete LabelReport"),
    ],
)
def test_a_report_that_is_not_as_it_was_saved_is_refused(tmp_path: Path, name: str, change, message: str) -> None:
    Quick(labels(["red", "blue"]).table, {}).save(tmp_path)
    facts = json.loads((tmp_path / "labels.json").read_text())
    (tmp_path / "labels.json").write_text(json.dumps({**facts, "report": "LabelReport"}))
    data = change((tmp_path / name).read_bytes())
    (tmp_path / name).unlink()
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        LabelReport.load(tmp_path)


def test_a_report_of_another_kind_is_refused(tmp_path: Path) -> None:
    labels(["red"]).save(tmp_path)
    for suffix in ("csv", "json"):
        (tmp_path / f"labels.{suffix}").rename(tmp_path / f"probes.{suffix}")
    with pytest.raises(InputError, match="Expected the ProbeReport that was saved"):
        ProbeReport.load(tmp_path)


def test_a_save_that_fails_leaves_nothing_to_load(tmp_path: Path) -> None:
    labels(["red"]).save(tmp_path)
    (tmp_path / "labels.md").unlink()
    (tmp_path / "labels.md").mkdir()  # cannot be replaced by a file
    with pytest.raises(OSError, match=r"labels\.md"):
        labels(["blue"]).save(tmp_path)
    with pytest.raises(InputError, match="a complete LabelReport"):
        LabelReport.load(tmp_path)
    assert not list(tmp_path.glob(".*"))


# --- nothing that stands in a table runs on a page


@pytest.mark.parametrize("make", [labels, probes])
def test_the_page_shows_names_as_text(make) -> None:
    page = Elements(make(HOSTILE).to_single_html())
    assert "script" not in page.tags
    assert [attrs["src"][:22] for tag, attrs in page.attributes if tag == "img"] == ["data:image/png;base64,"]
    assert not any(name.startswith("on") for _, attrs in page.attributes for name in attrs)
    assert set(HOSTILE) <= set(page.cells)


def test_hostile_column_names_are_text_on_the_page_and_in_markdown() -> None:
    report = labels(["red"], **{"<script>alert(1)</script>": ["x"]})
    assert "script" not in Elements(report.to_single_html()).tags
    assert "<script>" not in report.to_markdown()


def test_the_page_needs_nothing_from_elsewhere() -> None:
    text = labels(["red"]).to_single_html()
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert html.escape(json.dumps(METADATA["<b>"])[1:-1], quote=False) in text.replace("&#34;", '"')


def test_a_notebook_shows_names_as_text_and_ten_rows() -> None:
    text = labels(HOSTILE)._repr_html_()
    page = Elements(text)
    assert not {"img", "script"} & set(page.tags)
    assert f"and {len(HOSTILE) - 10} more rows" in text
    assert page.tags.count("tr") == 11
    first = Elements(labels(HOSTILE[20:25])._repr_html_())
    assert "<img src=x onerror=alert(1)>" in [cell.strip() for cell in first.cells]
    assert "img" not in first.tags


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)(?:\\\\)*\|", line)[1:-1]]


@pytest.mark.parametrize("make", [labels, probes])
def test_markdown_has_a_line_per_row_and_a_cell_per_column(make) -> None:
    report = make(HOSTILE)
    lines = report.to_markdown().split("\n")
    assert lines[-1] == ""
    assert len(lines) == len(report) + 3
    assert cells_of(lines[0]) == report.table.columns.tolist()
    assert set(cells_of(lines[1])) == {"---"}
    assert {len(cells_of(line)) for line in lines[:-1]} == {report.table.shape[1]}


def test_markdown_neither_runs_nor_links() -> None:
    text = labels(HOSTILE).to_markdown()
    assert "<" not in text
    assert not re.search(r"(?<!\\)\[x\]\(", text)
    assert "a\\|b" in text
    assert "&lt;img src=x onerror=alert(1)>" in text


def test_markdown_shows_numbers_shortly_and_nothing_for_missing_ones() -> None:
    line = labels(["red"], score=[2 / 3], score_2=[np.nan]).to_markdown().split("\n")[2]
    assert cells_of(line) == ["layer0", "0", "red", "0.6667", "named", "red", ""]


@pytest.mark.parametrize("method", ["to_csv", "to_markdown", "to_single_html"])
def test_what_is_written_is_what_is_returned(tmp_path: Path, method: str) -> None:
    text = getattr(labels(HOSTILE), method)(tmp_path / "out")
    assert (tmp_path / "out").read_bytes().decode() == text


# --- frozen


def test_changing_the_table_changes_no_report() -> None:
    source = labels(["red", "blue"]).table
    report = LabelReport(source, METADATA)
    before = report.to_csv()
    source.loc[0, "concept"] = "changed"
    table = report.table
    table.loc[0, "concept"] = "changed"
    table["score"] = 0.0
    table.to_numpy()[:] = 7
    assert report.to_csv() == before


def test_changing_the_metadata_changes_no_report() -> None:
    given = {"seeds": [1, 2]}
    report = LabelReport(labels(["red"]).table, given)
    given["seeds"].append(3)
    report.metadata["seeds"].append(4)
    assert report.metadata["seeds"] == [1, 2]


@pytest.mark.parametrize("name", ["table", "metadata"])
def test_table_and_metadata_cannot_be_replaced(name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(labels(["red"]), name, None)


# --- metadata


def test_metadata_are_what_json_keeps_of_them(tmp_path: Path) -> None:
    given = {"a": np.float32(0.5), "b": np.int64(3), "c": (1, 2), "d": np.arange(3), "e": torch.ones(1), "f": np.bool_(True), "g": "ü"}
    report = LabelReport(labels(["red"]).table, given)
    kept = {"a": 0.5, "b": 3, "c": [1, 2], "d": [0, 1, 2], "e": [1.0], "f": True, "g": "ü", "versions": versions()}
    assert report.metadata == kept
    report.save(tmp_path)
    assert LabelReport.load(tmp_path).metadata == report.metadata


def test_metadata_that_json_cannot_hold_are_refused() -> None:
    circular: dict = {}
    circular["x"] = circular
    for given, message in ((object(), "object is not JSON"), ({1, 2}, "set is not JSON"), (circular, "Circular")):
        with pytest.raises(InputError, match=f"metadata that JSON can hold: {message}"):
            LabelReport(labels(["red"]).table, {"x": given})


def test_versions_are_of_what_runs() -> None:
    found = versions()
    assert found["neuroprobe"] == neuroprobe.__version__
    assert found["numpy"] == np.__version__
    assert set(found) == {"python", "neuroprobe", "torch", "torchvision", "numpy", "scikit-learn"}


# --- tables


@pytest.mark.parametrize("missing", ["layer", "status"])
def test_a_table_without_a_column_is_refused(missing: str) -> None:
    with pytest.raises(InputError, match=f"a table with the columns layer, unit, concept, score, status, but {missing} is missing"):
        LabelReport(labels(["red"]).table.drop(columns=missing), {})


def test_a_report_is_as_long_as_its_table_and_numbered_anew() -> None:
    table = labels(["red", "blue", "green"]).table
    report = LabelReport(table.iloc[[2, 0]], {})
    assert len(report) == 2
    assert report.table.index.tolist() == [0, 1]
    assert report.label("layer2", 2) == "green"


def test_the_label_of_a_unit() -> None:
    report = labels(["red", "", "NA"])
    assert [report.label(f"layer{i}", i) for i in range(3)] == ["red", "", "NA"]
    with pytest.raises(InputError, match="a unit of this report, but got unit 5 of 'layer0'"):
        report.label("layer0", 5)
    with pytest.raises(InputError, match="a unit of this report, but got unit 0 of 'layer'"):
        report.label("layer", 0)


def test_summaries_count() -> None:
    assert labels(["red", "red", "", "blue"]).summary() == "3 of 4 units named, in 3 layers, with 2 concepts"
    assert repr(labels(["red"])) == "LabelReport(1 of 1 units named, in 1 layers, with 1 concepts)"
    assert probes(["red", "blue"]).summary() == (
        "8 probes: 2 concepts, 2 layers, 1 checkpoints; mean test accuracy 0.667, mean baseline 0.667"
    )


def test_a_plain_report_has_no_figure() -> None:
    report = Report(pd.DataFrame({"x": [1]}), {})
    assert report.to_csv() == "x\n1\n"
    with pytest.raises(InputError, match="a report with a figure of its own, but Report has none"):
        report.plot()


def test_a_report_without_a_figure_is_saved_without_one(tmp_path: Path) -> None:
    report = Report(pd.DataFrame({"x": [1]}), {"a": 1})
    paths = report.save(tmp_path)
    assert sorted(path.suffix for path in paths) == [".csv", ".html", ".json", ".md"]
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in paths}
    assert "<img" not in paths[2].read_text(encoding="utf-8")
    assert Report.load(tmp_path).metadata == {"a": 1, "versions": versions()}
    assert (report.to_html(tmp_path / "page")[0]).read_text(encoding="utf-8") == report.to_single_html()


def test_a_report_made_of_another_ones_metadata_keeps_its_versions() -> None:
    made = Report(pd.DataFrame({"x": [1]}), {"versions": {"torch": "1.0"}})
    assert Report(made.table, made.metadata).metadata == {"versions": {"torch": "1.0"}}


def test_a_new_format_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "tsv", lambda report: report.table.to_csv(sep="\t", index=False))
    paths = labels(["red", "blue"]).save(tmp_path)
    assert (tmp_path / "labels.tsv") in paths
    assert (tmp_path / "labels.tsv").read_text().startswith("layer\tunit\tconcept")
    assert LabelReport.load(tmp_path).table["concept"].tolist() == ["red", "blue"]


def test_a_folder_that_cannot_be_written_to_is_refused_and_none_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(InputError, match=r"Expected a folder for the report, but '.*file' is a file"):
            labels(["red"]).save(out)
    check_writable(tmp_path / "new" / "deeper")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(InputError, match=r"Expected a folder that can be written to, but '.*' cannot"):
        labels(["red"]).save(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_files_name_that_is_no_utf8_is_kept(tmp_path: Path) -> None:
    report = LabelReport(labels(["red"]).table, {"skipped": {"\udcff.png": "no image"}})
    report.save(tmp_path)
    assert LabelReport.load(tmp_path).metadata == report.metadata
    assert "\\udcff.png" in (tmp_path / "labels.html").read_text(encoding="utf-8")
