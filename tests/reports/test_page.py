"""The page as files: its data, escaping, what it refuses, and how it replaces an old one. What it does in a browser is tested apart."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from page_reports import HOSTILE, HOSTILE_FILES, activations_for, data_of, effect_of, label_table, labels_of, pictures, probes_of
from PIL import Image
from probe_tables import probe_table

from neuroprobe import Activations, Images, LabelReport, ProbeReport
from neuroprobe.exceptions import InputError, UnreadableImageError
from neuroprobe.reports import Panel
from neuroprobe.reports.page._files import as_json, as_script, jpeg, number
from neuroprobe.reports.page._units import CHUNK, N_BINS, QUANTILES, unit_activity
from neuroprobe.visualization import quantile_examples, top_images

LAYERS = {"a": 50, "b": 8}
IDS = tuple(f"photos/{i}.png" for i in range(12))


@pytest.fixture(scope="module")
def labels() -> LabelReport:
    return labels_of(LAYERS)


@pytest.fixture(scope="module")
def activations(labels: LabelReport) -> Activations:
    return activations_for(labels, IDS)


@pytest.fixture(scope="module")
def sources(labels: LabelReport, activations: Activations) -> dict[str, Any]:
    seen = {("b", 3): Image.new("RGB", (300, 300), "red")}
    effects = [effect_of("b", "3"), effect_of("b", "3 4 5")]
    return {
        "labels": labels, "probes": probes_of(), "images": pictures(IDS), "activations": activations, "visualizations": seen,
        "effects": effects,
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(sources: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page")
    write_page(out, **sources)
    return out


def write_page(folder: Path, *, labels: LabelReport | None = None, **sources: Any) -> list[Path]:
    """The page of the labels, or without them of the study."""
    return sources.pop("probes").to_html(folder, **sources) if labels is None else labels.to_html(folder, **sources)


def detail(folder: Path, row: int) -> tuple[dict[str, Any], list[str]]:
    """What the page of a unit has, and the texts it names by number."""
    chunk = data_of(folder, f"details-{row // CHUNK}")
    return chunk["units"][row - chunk["start"]], chunk["texts"]


# --- data


def test_the_overview_has_every_unit_in_the_reports_order(folder: Path, labels: LabelReport) -> None:
    data, table = data_of(folder, "units"), labels.table
    columns, texts = data["columns"], data["concepts"]
    assert [data["layers"][i] for i in columns["layer"]] == table["layer"].tolist()
    assert columns["unit"] == table["unit"].tolist()
    assert ["" if i is None else texts[i] for i in columns["concept"]] == table["concept"].tolist()
    assert ["" if i is None else texts[i] for i in columns["candidate"]] == table["candidate"].tolist()
    assert [data["statuses"][i] for i in columns["status"]] == table["status"].tolist()
    for short, name in (("score", "score"), ("q", "q_value"), ("stability", "stability")):
        assert np.allclose([np.nan if x is None else x for x in columns[short]], table[name], rtol=1e-3, equal_nan=True)
    seen = dict(zip(zip(table["layer"], table["unit"], strict=True), columns["seen"], strict=True))
    assert {key: bits for key, bits in seen.items() if bits} == {("b", 3): 3, ("b", 4): 2, ("b", 5): 2}


def test_layers_stand_together_and_units_in_order_even_if_the_report_mixes_them(tmp_path: Path, labels: LabelReport) -> None:
    mixed = LabelReport(labels.table.iloc[::-1], {})
    write_page(tmp_path, labels=mixed, activations=activations_for(labels, IDS))
    columns = data_of(tmp_path, "units")["columns"]
    assert columns["layer"] == [0] * 8 + [1] * 50
    assert columns["unit"] == [*range(8), *range(50)]


def test_examples_are_those_of_the_gallery(folder: Path, labels: LabelReport, activations: Activations) -> None:
    for row in (0, 4, 45, 53):
        layer, unit = labels.table.loc[row, ["layer", "unit"]]
        found, texts = detail(folder, row)
        wanted = [top_images(activations, layer, unit, 9)] + [
            quantile_examples(activations, layer, unit, quantiles=(q,))[q] for q in QUANTILES
        ]
        shown = [(group, e.image_id, e.value, e.quantile) for group, examples in enumerate(wanted) for e in examples]
        got = [(group, texts[id_], value, share) for group, _, id_, value, share in found["examples"]]
        assert [(g, id_) for g, id_, *_ in got] == [(g, id_) for g, id_, *_ in shown]
        assert np.allclose([numbers[2:] for numbers in got], [numbers[2:] for numbers in shown], rtol=1e-3)


def test_a_histogram_has_fixed_bins_over_the_units_range() -> None:
    values = np.array([0, 0, 0, 1, 12, 23.9, 24], dtype=float)
    activity = unit_activity(values, n_examples=2)
    by_hand = [0] * 24
    by_hand[0], by_hand[1], by_hand[12], by_hand[23] = 3, 1, 1, 2  # width 1; the last bin holds its upper edge
    assert N_BINS == 24
    assert (activity.low, activity.high, activity.counts.tolist()) == (0, 24, by_hand)
    assert [(shown.row, shown.value) for shown in activity.examples if shown.group == 0] == [(6, 24), (5, 23.9)]
    assert activity.examples[0].share == 1
    assert activity.examples[1].share == pytest.approx(6 / 7)


def test_a_unit_that_never_varies_has_neither_examples_nor_histogram(folder: Path) -> None:
    found, _ = detail(folder, 2)
    assert found["counts"] == []
    assert found["examples"] == []
    assert found["low"] == found["high"] == 0.5
    columns = data_of(folder, "units")["columns"]
    assert columns["bars"][2] == ""
    assert columns["thumbs"][2] == []


def test_ties_are_shown_evenly_and_without_repeats() -> None:
    values = np.zeros(1001)
    values[7] = 1
    medians = [shown.row for shown in unit_activity(values, n_examples=3).examples if QUANTILES[shown.group - 1] == 0.5 and shown.group]
    assert len(set(medians)) == 3
    assert max(medians) - min(medians) > 500  # not neighbors


def test_five_best_concepts_and_what_is_known_of_the_first(folder: Path, labels: LabelReport) -> None:
    row = labels.table.iloc[4]
    found, texts = detail(folder, 4)
    names = [row["candidate"], *(row[f"concept_{rank}"] for rank in range(2, 6))]
    assert [(texts[text], score) for text, score in found["concepts"]] == [
        (name, number(row["score" if i == 0 else f"score_{i + 1}"])) for i, name in enumerate(names)
    ]
    assert found["margin"] == number(row["margin"])
    assert found["p_value"] == number(row["p_value"])
    assert detail(folder, 2)[0]["concepts"] == []  # never varies


def test_a_units_probes_are_those_of_the_last_checkpoint_clearest_first(folder: Path, sources: dict[str, Any]) -> None:
    units = sources["probes"].units
    rows = units[(units["layer"] == "a") & (units["unit"] == 5) & (units["checkpoint"] == "last")].sort_values("auroc", ascending=False)
    found, texts = detail(folder, 5)
    assert [(texts[c], texts[k]) for c, k, *_ in found["probes"]] == list(zip(rows["concept"], rows["kind"], strict=True))
    assert [numbers for _, _, *numbers in found["probes"]] == [
        [number(x) for x in row] for row in rows[["auroc", "test_accuracy", "baseline", "q_value"]].itertuples(index=False)
    ]
    about = data_of(folder, "units")["about"]
    assert (about["checkpoint"], about["n_probed"]) == ("last", 2)


def test_a_unit_tells_where_it_is_the_best_of_its_layer(folder: Path, sources: dict[str, Any], labels: LabelReport) -> None:
    summary = sources["probes"].summary_table()
    best = summary[(summary["scope"] == "neuron") & (summary["layer"] == "b")]
    wanted = best.groupby("unit").size().to_dict()
    rows = labels.table.index[labels.table["layer"] == "b"]
    found = {int(labels.table.loc[row, "unit"]): len(detail(folder, row)[0].get("best", [])) for row in rows}
    assert {unit: n for unit, n in found.items() if n} == {int(unit): n for unit, n in wanted.items()}


def test_the_study_is_its_summary(folder: Path, sources: dict[str, Any]) -> None:
    data, summary = data_of(folder, "probes"), sources["probes"].summary_table()
    columns = data["columns"]
    for name, texts in (("concept", "concepts"), ("checkpoint", "checkpoints"), ("layer", "layers")):
        assert [data[texts][i] for i in columns[name]] == summary[name].tolist()
    probes = [data["probes"][i] for i in columns["probe"]]
    for name in ("scope", "kind", "features"):
        assert [probe[name] for probe in probes] == summary[name].tolist()
    for name, of in (("value", "test_accuracy"), ("low", "test_accuracy_low"), ("high", "test_accuracy_high"), ("baseline", "baseline")):
        assert np.allclose(columns[name], summary[of], rtol=1e-3)


def test_a_probe_without_an_area_comes_after_those_with_one(tmp_path: Path) -> None:
    units = probes_of().units.query("layer == 'a' and unit == 0 and checkpoint == 'last'").assign(auroc=[np.nan, 0.1])
    write_page(tmp_path, probes=ProbeReport(probe_table(), {}, units=units))
    found, texts = detail(tmp_path, 0)
    assert [(texts[concept], area) for concept, _, area, *_ in found["probes"]] == [("blue", 0.1), ("red", None)]


def test_a_regression_is_shown_by_its_r2_above_zero(tmp_path: Path) -> None:
    table = probe_table(probes=(("regression", "pooled"),)).assign(test_accuracy=np.nan, baseline=np.nan, r2=0.4)
    write_page(tmp_path, probes=ProbeReport(table, {}))
    data = data_of(tmp_path, "probes")
    assert {probe["measure"] for probe in data["probes"]} == {"R2"}
    assert set(data["columns"]["value"]) == {0.4}
    assert set(data["columns"]["baseline"]) == {0}
    assert set(data["columns"]["low"]) == {None}


def test_effects_belong_to_every_unit_they_name(folder: Path) -> None:
    effects = data_of(folder, "effects")
    assert [group["units"] for group in effects["groups"]] == [[3], [3, 4, 5]]
    assert detail(folder, 53)[0]["effects"] == [0, 1]
    assert detail(folder, 54)[0]["effects"] == [1]
    assert "effects" not in detail(folder, 52)[0]
    intervention, concept, output, *numbers = effects["groups"][0]["rows"][0]
    assert [effects["texts"][i] for i in (intervention, concept, output)] == ["mean", "red", "red"]
    assert numbers == [-3, -3.5, 0.4, 0, -0.2, None, 40]


def test_without_labels_the_units_are_those_that_were_probed(tmp_path: Path) -> None:
    write_page(tmp_path, probes=probes_of())
    data = data_of(tmp_path, "units")
    assert data["layers"] == ["a", "b", "c"]
    assert len(data["columns"]["unit"]) == 24
    assert data["statuses"] == ["not labeled"]
    assert data["about"]["labeled"] is False
    assert data["columns"]["concept"] == [None] * 24


def test_what_is_not_there_is_left_out(tmp_path: Path, labels: LabelReport) -> None:
    write_page(tmp_path, labels=labels)
    data = data_of(tmp_path, "units")
    assert not {"bars", "thumbs"} & set(data["columns"])
    assert data["about"]["images"] == {"count": 0, "size": 0}
    assert not list((tmp_path / "images").iterdir())
    assert not (tmp_path / "data" / "probes.js").exists()
    assert set(detail(tmp_path, 0)[0]) == {"concepts", "margin", "p_value"}


def test_a_report_of_the_required_columns_alone_is_enough(tmp_path: Path, labels: LabelReport) -> None:
    write_page(tmp_path, labels=LabelReport(labels.table[list(LabelReport.required)], {}))
    found, texts = detail(tmp_path, 0)
    assert [(texts[i], score) for i, score in found["concepts"]] == [("red", number(labels.table["score"].iloc[0]))]


def test_a_study_alone_has_no_units(tmp_path: Path) -> None:
    write_page(tmp_path, probes=ProbeReport(probe_table(), {}), title="A study")
    data = data_of(tmp_path, "units")
    assert data["columns"]["unit"] == []
    assert "<title>A study</title>" in (tmp_path / "index.html").read_text(encoding="utf-8")


# --- panels


def test_a_panel_hands_each_of_its_units_data_to_its_script(tmp_path: Path, labels: LabelReport) -> None:
    script = "(words) => words.map((word) => neuroprobe.el('p', null, word))"
    panels = [Panel("First", {("a", 0): 1.5}, "String"), Panel(HOSTILE[1], {("a", 0): list(HOSTILE), ("b", 3): []}, script)]
    labels.to_html(tmp_path, panels=panels)
    assert detail(tmp_path, 0)[0]["panels"] == [[0, 1.5], [1, list(HOSTILE)]]
    assert detail(tmp_path, 53)[0]["panels"] == [[1, []]]
    assert "panels" not in detail(tmp_path, 1)[0]
    assert data_of(tmp_path, "units")["about"]["panels"] == ["First", HOSTILE[1]]
    assert (tmp_path / "data" / "panel-1.js").read_text(encoding="utf-8") == f"neuroprobe.panels[1] = (\n{script}\n);\n"
    scripts = re.findall(r'<script src="data/([^?"]+)', (tmp_path / "index.html").read_text(encoding="utf-8"))
    assert scripts == ["page.js", "page_grid.js", "page_unit.js", "page_probes.js", "panel-0.js", "panel-1.js", "units.js"]


# --- pictures


def test_every_image_is_written_once_small_and_named_by_a_number(folder: Path) -> None:
    names = sorted(path.name for path in (folder / "images").iterdir())
    assert names == sorted([*(f"{i}.jpg" for i in range(12)), "v0.jpg"])
    for path in (folder / "images").iterdir():
        with Image.open(path) as image:
            assert image.format == "JPEG"
            assert max(image.size) == (256 if path.name == "v0.jpg" else 96)
    about = data_of(folder, "units")["about"]
    assert about["images"] == {"count": 13, "size": sum(path.stat().st_size for path in (folder / "images").iterdir())}


def test_cards_and_examples_name_the_right_picture(tmp_path: Path) -> None:
    colors = ("red", "lime", "blue", "white")
    images = Images([Image.new("RGB", (20, 20), color) for color in colors], ids=[f"{c}.png" for c in colors])
    labels = LabelReport(label_table({"a": 1}), {})
    values = np.array([[0.0], [3.0], [1.0], [2.0]], dtype=np.float32)
    write_page(tmp_path, labels=labels, images=images, activations=Activations({"a": values}, images.ids, {}), n_examples=2)
    found, texts = detail(tmp_path, 0)
    for _, picture, id_, *_ in found["examples"]:
        with Image.open(tmp_path / "images" / f"{picture}.jpg") as image:
            shown = np.asarray(image.convert("RGB")).mean(axis=(0, 1))
        assert np.allclose(shown, np.asarray(Image.new("RGB", (1, 1), texts[id_].removesuffix(".png")))[0, 0], atol=6)
    strongest = [picture for group, picture, *_ in found["examples"] if group == 0]
    assert data_of(tmp_path, "units")["columns"]["thumbs"] == [strongest]
    assert [texts[id_] for group, _, id_, *_ in found["examples"] if group == 0] == ["lime.png", "white.png"]


def test_small_images_are_not_enlarged_and_a_files_own_metadata_stay_with_it() -> None:
    image = Image.new("RGB", (30, 20), "red")
    image.info["comment"] = b"taken at home"
    data = jpeg(image, side=96)
    with Image.open(io.BytesIO(data)) as small:
        assert small.size == (30, 20)
    assert b"taken at home" not in data
    assert b"Exif" not in data


def test_images_that_cannot_be_read_have_no_picture_where_such_are_skipped(tmp_path: Path, damaged_folder: Path) -> None:
    images = Images(damaged_folder, on_error="skip")
    ids = ("a_good.png", "c_truncated.jpg", "g_good.jpg")
    labels = labels_of({"a": 2})
    activations = activations_for(labels, ids)
    write_page(tmp_path / "page", labels=labels, images=images, activations=activations)
    found, texts = detail(tmp_path / "page", 0)
    assert {texts[id_]: picture for _, picture, id_, *_ in found["examples"]} == {"a_good.png": 0, "c_truncated.jpg": None, "g_good.jpg": 1}


# --- escaping


def test_json_in_a_script_is_ascii_and_ends_neither_the_script_nor_the_page() -> None:
    for text in HOSTILE_FILES:
        script = as_script(text, "f", as_json([text, {"a": text}]))
        written = script.decode("ascii")
        assert not set("<>&\u2028\u2029\r\x00") & set(written)
        assert written.count("\n") == 1
        assert json.loads(as_json([text])) == [text]
    with pytest.raises(ValueError, match="JSON"):
        as_json([float("nan")])


def test_hostile_names_are_never_keys_files_or_markup(tmp_path: Path) -> None:
    labels = labels_of(dict.fromkeys(HOSTILE, 2), names=HOSTILE)
    probes = probes_of(layers=HOSTILE[:3], concepts=HOSTILE)
    seen = {(HOSTILE[0], 0): Image.new("RGB", (8, 8))}
    images = pictures(HOSTILE_FILES)
    paths = write_page(
        tmp_path, labels=labels, probes=probes, images=images, activations=activations_for(labels, HOSTILE_FILES), visualizations=seen,
        effects=[effect_of(HOSTILE[0], "0 1", outputs=HOSTILE)], title=HOSTILE[1],
    )  # fmt: skip
    assert all(re.fullmatch(r"index\.html|(data|images)/[a-z0-9_-]+\.(js|css|json|jpg)", p.relative_to(tmp_path).as_posix()) for p in paths)
    data = data_of(tmp_path, "units")
    assert data["layers"] == list(HOSTILE)
    assert set(data["concepts"]) == set(HOSTILE)
    assert data["about"]["title"] == HOSTILE[1]
    scripts = [data_of(tmp_path, name) for name in ("units", "details-0", "probes", "effects")]
    assert all(re.fullmatch(r"[a-z_]+", key) for script in scripts for key in keys_of(script))
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "&lt;/script&gt;" in page


def keys_of(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*map(keys_of, value.values()))
    return set().union(*map(keys_of, value)) if isinstance(value, list) else set()


def test_the_page_has_no_outside_address_and_no_markup_from_data(folder: Path) -> None:
    for path in [folder / "index.html", *(folder / "data").glob("page*")]:
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//[a-z]+\.[a-z]|@import|url\(", text), path.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc", text), path.name
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"\son[a-z]+=|\sstyle=|<style|javascript:", page)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert "unsafe" not in policy[1]


# --- what is refused, before anything is written


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("labels for probes", {"probes": labels_of({"a": 1})}, "Expected `probes` to be a ProbeReport"),
    ("a unit twice", {"labels": LabelReport(pd.concat([label_table({"a": 2})] * 2), {})}, "unit 0 of 'a' is twice"),
    ("a layer not recorded", {"labels": labels_of({"a": 2, "zz": 1})}, "'zz' was not recorded"),
    ("a unit not recorded", {"labels": labels_of({"a": 51})}, "unit 50 of 'a', but 50 units were recorded"),
    ("no activations", {"activations": {"a": 1}}, "Expected `activations` to be recorded Activations"),
    ("other images", {"images": pictures(IDS[:-1])}, "1 of 12 ids are not among `images`, such as 'photos/11.png'"),
    ("no images", {"images": ["a.png"]}, "Expected the probing set as neuroprobe.Images"),
    ("images alone", {"activations": None}, "Expected `activations` beside `images`"),
    ("a stream", {"images": Images(lambda: iter([("a", Image.new("RGB", (4, 4)))]))}, "but got a stream"),
    ("visualization of no unit", {"visualizations": {("b", 99): Image.new("RGB", (4, 4))}}, r"\('b', 99\)"),
    ("visualization that is none", {"visualizations": {("b", 3): np.zeros((3, 4, 4))}}, "to be a PIL image, but got ndarray"),
    ("visualizations as a list", {"visualizations": [Image.new("RGB", (4, 4))]}, r"map \(layer, unit\) to images"),
    ("a panel of no unit", {"panels": [Panel("x", {("b", 99): 1}, "String")]}, r"panels of units of the report, .* got \('b', 99\)"),
    ("a panel that JSON cannot hold", {"panels": [Panel("x", {("b", 3): np.nan}, "String")]}, "panel 'x' that JSON can hold"),
    ("a panel by itself", {"panels": Panel("x", {}, "String")}, "`panels` to be a list of"),
    ("one effect", {"effects": effect_of("b", "3")}, r"Write \[effect\]"),
    ("effect of no unit", {"effects": [effect_of("b", "77")]}, "effects of units of the report, but got 'b', units '77'"),
    ("effect without units", {"effects": [labels_of({"a": 1})]}, "units, intervention, output, effect, low, high is missing"),
    ("effect of words", {"effects": [effect_of("b", "three")]}, "whole numbers with spaces between them, but got 'three'"),
    ("no examples", {"n_examples": 0}, "`n_examples` to be a whole number of at least 1"),
    ("tiny thumbnails", {"thumbnail": 4}, "`thumbnail` to be a whole number of at least 16"),
]


@pytest.mark.parametrize(("change", "message"), [(change, message) for _, change, message in WRONG], ids=[name for name, *_ in WRONG])
def test_what_does_not_fit_is_refused_before_anything_is_written(
    change: dict[str, Any], message: str, sources: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        write_page(tmp_path / "page", **{**sources, **change})
    assert not (tmp_path / "page").exists()


def test_activations_of_another_model_are_refused_and_those_on_other_images_are_not(tmp_path: Path) -> None:
    table = label_table({"a": 2})
    labels = LabelReport(table, {"activations": {"model": "one", "images": "these"}})
    activations = activations_for(labels, IDS)
    with pytest.raises(InputError, match="recorded with other weights"):
        write_page(tmp_path, labels=labels, activations=dataclasses.replace(activations, metadata={"model": "two"}))
    for metadata in ({"model": "one", "images": "others"}, {}):  # nothing is known of the second
        write_page(tmp_path, labels=labels, activations=dataclasses.replace(activations, metadata=metadata))


# --- the folder


def test_it_tells_its_files_with_the_page_first(tmp_path: Path, labels: LabelReport) -> None:
    paths = write_page(tmp_path / "deep" / "page", labels=labels)
    assert paths[0] == tmp_path / "deep" / "page" / "index.html"
    assert set(paths) == {path for path in (tmp_path / "deep" / "page").rglob("*") if path.is_file()}


def test_the_same_sources_give_the_same_bytes(folder: Path, sources: dict[str, Any], tmp_path: Path) -> None:
    for path in write_page(tmp_path, **sources):
        assert path.read_bytes() == (folder / path.relative_to(tmp_path)).read_bytes()


def test_a_new_page_replaces_the_old_one_and_touches_nothing_else(sources: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("mine")
    write_page(tmp_path, **sources)
    new = labels_of({"other": 2})
    paths = write_page(tmp_path, labels=new)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {*paths, tmp_path / "labels.csv"}
    assert not list((tmp_path / "images").iterdir())
    assert data_of(tmp_path, "units")["layers"] == ["other"]
    assert (tmp_path / "labels.csv").read_text() == "mine"


@pytest.mark.parametrize("name", ["index.html", "data/notes.txt", "images/0.jpg", "data"])
def test_a_folder_with_something_else_under_these_names_is_refused(name: str, labels: LabelReport, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=re.escape(f"holds {name!r}")):
        write_page(tmp_path, labels=labels)
    assert (tmp_path / name).read_text() == "mine"


def test_own_files_among_those_of_an_earlier_page_are_not_lost(labels: LabelReport, tmp_path: Path) -> None:
    write_page(tmp_path, labels=labels)
    (tmp_path / "images" / "0.jpg").write_text("mine")
    with pytest.raises(InputError, match=r"holds 'images/0\.jpg'"):
        write_page(tmp_path, labels=labels)
    assert (tmp_path / "images" / "0.jpg").read_text() == "mine"


def test_a_manifest_that_names_files_outside_is_not_believed(labels: LabelReport, tmp_path: Path) -> None:
    page = tmp_path / "page"
    write_page(page, labels=labels)
    (tmp_path / "precious.txt").write_text("mine")
    manifest = json.loads((page / "data" / "manifest.json").read_text())
    manifest["files"].append("data/../../precious.txt")
    (page / "data" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="Choose another folder"):
        write_page(page, labels=labels)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_a_link_in_the_place_of_its_folders_is_refused(labels: LabelReport, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "data").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is a link"):
        write_page(tmp_path / "page", labels=labels)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_what_fails_on_the_way_leaves_the_old_page(sources: dict[str, Any], damaged_folder: Path, tmp_path: Path) -> None:
    write_page(tmp_path, **sources)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    images = Images([damaged_folder / "a_good.png", damaged_folder / "c_truncated.jpg"])
    labels = labels_of({"a": 2})
    with pytest.raises(UnreadableImageError):
        write_page(tmp_path, labels=labels, images=images, activations=activations_for(labels, images.ids))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_page_that_was_broken_off_can_be_written_again(sources: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_page(tmp_path, **sources)
    from neuroprobe.reports.page import _files as module

    moved = []
    replace = module.os.replace

    def broken(source: Path, to: Path) -> None:
        if str(to).endswith(".jpg"):
            moved.append(to)
            if len(moved) == 3:
                raise OSError("no space left")
        replace(source, to)

    monkeypatch.setattr(module.os, "replace", broken)
    with pytest.raises(OSError, match="no space"):
        write_page(tmp_path, **sources)
    assert not (tmp_path / "index.html").exists()  # no page rather than half of one
    monkeypatch.undo()
    paths = write_page(tmp_path, **sources)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(paths)


def test_an_old_page_goes_before_its_data(sources: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_page(tmp_path, **sources)
    unlink = Path.unlink

    def broken(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".js":
            raise OSError("no such device")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", broken)
    with pytest.raises(OSError, match="no such device"):
        write_page(tmp_path, **sources)
    assert not (tmp_path / "index.html").exists()


def test_activations_from_disk_are_read_a_few_units_at_a_time(labels: LabelReport, activations: Activations, tmp_path: Path) -> None:
    files = {}
    for layer in activations.layers:
        np.save(tmp_path / f"{layer}.npy", activations[layer])
        files[layer] = np.load(tmp_path / f"{layer}.npy", mmap_mode="r")
    mapped = dataclasses.replace(activations, arrays=files)
    write_page(tmp_path / "one", labels=labels, activations=activations)
    write_page(tmp_path / "two", labels=labels, activations=mapped)
    assert data_of(tmp_path / "one", "details-1") == data_of(tmp_path / "two", "details-1")
