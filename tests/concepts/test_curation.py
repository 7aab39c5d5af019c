"""Curation by hand: what a contact sheet shows, and files that people and spreadsheets have been at."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import PixelEncoder, noise_images
from PIL import Image

from neuroprobe.concepts import (
    ConceptGroup,
    ConceptSet,
    ConceptSets,
    ConceptSource,
    Vocabulary,
    contact_sheet,
    load_curation,
    save_curation,
)
from neuroprobe.concepts.curation import COLUMNS
from neuroprobe.exceptions import InputError, UnknownNameError
from neuroprobe.images import Images
from neuroprobe.probing import ProbingStudy

IMAGES = noise_images(60)
SETS = ConceptSource(PixelEncoder(), Vocabulary([ConceptGroup("g", ("red", "round"), none="none")])).rank(
    IMAGES, n_positive=20, n_negative=25
)


def edited(path: Path, edit: Callable[[str], str], sets: ConceptSets = SETS) -> Path:
    """The file as `save_curation` writes it, with its text changed."""
    save_curation(sets, path)
    path.write_bytes(edit(path.read_bytes().decode("utf-8-sig")).encode())
    return path


def striking(*wanted: tuple[str, str]) -> Callable[[str], str]:
    """Set `keep` to 0 for these concepts and ids."""

    def edit(text: str) -> str:
        rows = list(csv.DictReader(io.StringIO(text)))
        out = io.StringIO()
        writer = csv.DictWriter(out, COLUMNS)
        writer.writeheader()
        writer.writerows({**row, "keep": 0 if (row["concept"], row["id"]) in wanted else 1} for row in rows)
        return out.getvalue()

    return edit


# --- contact sheet


def texts(figure) -> list[list[str]]:
    return [[text.get_text() for text in ax.texts] for ax in figure.axes]


def test_a_sheet_shows_every_fifth_of_the_hundred_likeliest() -> None:
    images = noise_images(320)
    set_ = ConceptSource(PixelEncoder(), Vocabulary([ConceptGroup("g", ("red",), none="none")])).rank(images)["red"]
    figure = contact_sheet(set_, images)
    assert len(figure.axes) == 20
    for k, ax in enumerate(figure.axes):
        rank = 5 * k
        np.testing.assert_array_equal(ax.images[0].get_array(), np.asarray(images[images.ids.index(set_.positives[rank])]))
        likelihood = set_.likelihoods[rank]
        shown = f"{likelihood:.3f}" if likelihood < 0.9995 else "> .999"
        assert ax.texts[0].get_text() == f"{set_.positives[rank]}\nrank {rank}, likelihood {shown}"
    assert figure.get_suptitle() == "red, positives: one in 5 of 100"


def test_a_sheet_of_the_negatives_and_of_few_images() -> None:
    figure = contact_sheet(SETS["red"], IMAGES, side="negatives", first=3, step=1)
    assert [t[0].split("\n")[0] for t in texts(figure)] == list(SETS["red"].negatives[:3])
    assert figure.get_suptitle() == "red, negatives: every image of 3"
    assert len(contact_sheet(SETS["red"], IMAGES, first=1000, step=1).axes) == 20  # as many as there are


def test_hostile_ids_are_shown_as_they_are(tmp_path: Path) -> None:
    ids = ["$\\alpha$", "a\nb\t=x", "\u65e5\u672c", "x" * 300, "\ud800", "a_{b}^$", "\x00", "caf\xe9"]
    images = Images([noise_images(8)[i] for i in range(8)], ids=ids)
    set_ = ConceptSet("$x^2$ " + "long " * 50, "g", tuple(ids[:7]), (ids[7],))
    figure = contact_sheet(set_, images, step=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a missing glyph is a warning
        figure.savefig(tmp_path / "sheet.png")
        contact_sheet(set_, images, side="negatives").savefig(tmp_path / "sheet.png")
    shown = [t[0].strip() for t in texts(figure) if t]
    assert shown[:3] == ["$\\alpha$", "a\\nb\\t=x", "\\u65e5\\u672c"]
    assert len(shown[3]) <= 26
    assert shown[4:7] == ["\\ud800", "a_{b}^$", "\\x00"]


def test_only_the_pictures_shown_are_read_and_damage_is_shown(damaged_folder: Path) -> None:
    images = Images(damaged_folder, on_error="skip")
    set_ = ConceptSet("c", "g", ("a_good.png", "b_empty.jpg"), ("c_truncated.jpg",))
    sheet = texts(contact_sheet(set_, images, step=1))
    assert "cannot be read" not in sheet[0]
    assert "cannot be read" in sheet[1]


def test_large_photographs_are_drawn_small() -> None:
    images = Images([Image.new("RGB", (2000, 1000)), Image.new("RGB", (30, 60))], ids=["a", "b"])
    figure = contact_sheet(ConceptSet("c", "g", ("a",), ("b",)), images)
    assert figure.axes[0].images[0].get_array().shape == (200, 400, 3)
    assert images[0].size == (2000, 1000)


def test_a_sheet_of_other_images_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="ids of this probing set"):
        contact_sheet(SETS["red"], noise_images(3), step=1)


# --- the file


def test_the_file_holds_a_row_per_image(tmp_path: Path) -> None:
    path = save_curation(SETS, tmp_path / "sets.csv")
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    rows = list(csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8-sig"))))
    assert len(rows) == 90
    assert list(rows[0]) == ["concept", "side", "id", "keep", "rank", "likelihood"]
    assert {row["keep"] for row in rows} == {"1"}
    first = rows[45]
    assert (first["concept"], first["side"], first["rank"]) == ("round", "positive", "0")
    assert first["id"] == f"'{SETS['round'].positives[0]}"  # ids that are numbers would be changed by a spreadsheet
    assert float(first["likelihood"]) == pytest.approx(SETS["round"].likelihoods[0], rel=1e-5)


def test_an_untouched_file_changes_nothing(tmp_path: Path) -> None:
    read = load_curation(save_curation(SETS, tmp_path / "sets.csv"), SETS)
    assert dict(read) == dict(SETS)
    assert read.metadata["curation"][0]["left_out"] == {}


def test_what_is_struck_out_is_left_out_and_the_history_says_so(tmp_path: Path) -> None:
    positive, negative = SETS["red"].positives[3], SETS["red"].negatives[5]
    path = edited(tmp_path / "sets.csv", striking(("red", f"'{positive}"), ("red", f"'{negative}")))
    read = load_curation(path, SETS)
    assert read["red"].positives == tuple(i for i in SETS["red"].positives if i != positive)
    assert read["red"].negatives == tuple(i for i in SETS["red"].negatives if i != negative)
    assert read["round"] == SETS["round"]
    place = read["red"].ids.index(SETS["red"].positives[4])
    assert read["red"].ranks[place] == 4
    (entry,) = read.metadata["curation"]
    assert entry["file"] == "sets.csv"
    assert len(entry["fingerprint"]) == 32
    assert entry["left_out"] == {"red": {"positives": [positive], "negatives": [negative]}}
    assert read.metadata["seed"] == SETS.metadata["seed"]
    again = load_curation(edited(tmp_path / "more.csv", striking(("round", f"'{SETS['round'].positives[0]}")), read), read)
    assert [e["file"] for e in again.metadata["curation"]] == ["sets.csv", "more.csv"]


def test_the_history_stands_in_a_studys_report(tmp_path: Path) -> None:
    gone = SETS["red"].positives[3]
    sets = load_curation(edited(tmp_path / "sets.csv", striking(("red", f"'{gone}"))), SETS)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    study = ProbingStudy(model, ["0"], sets, probes=[("linear", "pooled")], seeds=[0])
    report = study.run(IMAGES, transform=PixelEncoder().transform, progress=False)
    (entry,) = report.metadata["concept_sets"]["curation"]
    assert entry["left_out"] == {"red": {"positives": [gone], "negatives": []}}
    by_concept = report.table.set_index("concept")
    assert by_concept.loc["red", "n_train"] + by_concept.loc["red", "n_test"] == 44
    assert by_concept.loc["round", "n_train"] + by_concept.loc["round", "n_test"] == 45


def semicolons(text: str) -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=";").writerows([[cell.replace(".", ",") for cell in row] for row in csv.reader(io.StringIO(text))])
    return out.getvalue()


def upside_down(text: str) -> str:
    head, *rows = text.splitlines()
    return "\n".join([head, *rows[::-1]])


@pytest.mark.parametrize(
    "spreadsheet",
    [
        semicolons,
        upside_down,
        lambda text: text.replace(",", "\t"),
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\r\n", "\n"),
        lambda text: text.replace("\r\n", "\r"),
        lambda text: text + ",,,,,\r\n\r\n",
        lambda text: text.replace("keep", "Keep ").replace("positive", "Positive"),
        lambda text: text.replace("\r\n", ",a note\r\n"),
    ],
)
def test_what_spreadsheets_do_to_a_file_is_read(tmp_path: Path, spreadsheet) -> None:
    gone = SETS["red"].positives[3]
    strike = striking(("red", f"'{gone}"))
    read = load_curation(edited(tmp_path / "sets.csv", lambda text: spreadsheet(strike(text))), SETS)
    assert read["red"].positives == tuple(i for i in SETS["red"].positives if i != gone)
    assert read["round"] == SETS["round"]


@pytest.mark.parametrize(("yes", "no"), [("1", "0"), ("yes", "NO"), ("Y", "n"), ("TRUE", "FALSE"), ("1.0", "0.0"), (" 1", "0 ")])
def test_ways_to_say_yes_and_no(tmp_path: Path, yes: str, no: str) -> None:
    sets = ConceptSets({"c": ConceptSet("c", "g", ("a", "b"), ("d",))}, {})
    path = tmp_path / "sets.csv"
    path.write_text(f"concept,side,id,keep\nc,positive,a,{yes}\nc,positive,b,{no}\nc,negative,d,{yes}\n")
    assert load_curation(path, sets)["c"].ids == ("a", "d")


HOSTILE = (
    "=cmd|' /C calc'!A0",
    "+1",
    "-1",
    "@x",
    "'quoted",
    "\ttab",
    "00012",
    "1e5",
    "1,5",
    "a,b;c",
    'say "hi"',
    "two\nlines",
    " ",
    "é日本",
    "\ud800",
)


def test_hostile_ids_come_back_as_they_went(tmp_path: Path) -> None:
    sets = ConceptSets({"=1+1": ConceptSet("=1+1", "g", HOSTILE, ("other",))}, {})
    path = save_curation(sets, tmp_path / "sets.csv")
    assert dict(load_curation(path, sets)) == dict(sets)
    cells = [cell for row in csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig", "surrogatepass"))) for cell in row]
    assert not [cell for cell in cells if cell[:1] in ("=", "+", "-", "@", "\t", "\r")]  # nothing a spreadsheet would run


def plain_file(*lines: str) -> str:
    return "\n".join(["concept,side,id,keep", *lines, ""])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("concept,side,id\nc,positive,a\n", "the column 'keep' once in the first line of .*sets.csv"),
        ("concept,side,id,keep,keep\n", "the column 'keep' once in the first line"),
        ("", "the column 'concept' once in the first line"),
        (plain_file("c,positive,a,1", "c,positive,z,1"), "images of 'c', but line 3 of .*sets.csv' has 'z'.*import that column as text"),
        (plain_file("k,positive,a,1"), "concepts of the sets, but line 2 of .* has 'k'"),
        (plain_file("c,positive,a,1", "c,positive,b,maybe"), "`keep` to be 1 or 0 .*, but line 3 of .* has 'maybe'"),
        (plain_file("c,positive,a,"), "`keep` to be 1 or 0 .*, but line 2 of .* has ''"),
        (plain_file("c,positive,a,1", "c,positive,a,0"), "once, but 'a' of 'c' stands again in line 3"),
        (plain_file("c,negative,a,1"), "'a' to be a positive of 'c', as in the sets, but line 2 of .* has 'negative'"),
        (plain_file("c,positive,a"), "4 columns, but line 2 of .* has 3"),
        (plain_file("c,positive,a,1"), r"none for 'b' of 'c' \(2 are missing\)\. Set `keep` to 0 instead of deleting"),
        (plain_file("c,positive,a,0", "c,positive,b,0", "c,negative,d,1"), "some of the positives of 'c' to be left, but all 2 are to go"),
        (plain_file('c,positive,"a' + "x" * 200_000), "a CSV file, but line 2 of .* cannot be read: field larger"),
    ],
)
def test_bad_files_are_refused_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "sets.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_curation(path, ConceptSets({"c": ConceptSet("c", "g", ("a", "b"), ("d",))}, {}))


def test_other_encodings_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "sets.csv"
    for encoding in ("utf-16", "latin-1"):
        path.write_bytes(plain_file("c,positive,é,1").encode(encoding))
        with pytest.raises(InputError, match=r"a CSV file in UTF-8, but .* Save it as 'CSV UTF-8'"):
            load_curation(path, SETS)
    with pytest.raises(InputError, match=r"that `save_curation` wrote, but .* cannot be read: No such file"):
        load_curation(tmp_path / "nowhere.csv", SETS)
