"""What a notebook shows: short, right, and text wherever names are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import PixelEncoder
from page_reports import Elements, label_table

from neuroprobe import ActivationRecorder, Activations, ConceptSource, LabelReport, Vocabulary
from neuroprobe._core import SHOWN_ROWS, table_html
from neuroprobe.concepts import ConceptSet, ConceptSets
from neuroprobe.images import Images
from neuroprobe.world import load_target, target_transform

HOSTILE = "<img src=x onerror=alert(1)>"


def page(shown: Any) -> Elements:
    text = shown._repr_html_()
    assert len(text) < 6000
    found = Elements(text)
    assert set(found.tags) <= {"p", "b", "table", "thead", "tbody", "tr", "th", "td"}
    return found


def test_activations_show_their_layers_without_reading_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {HOSTILE: np.zeros((3, 7), dtype=np.float32), **{f"layer{i}": np.zeros((3, 2), dtype=np.float32) for i in range(15)}}
    shown = page(Activations(arrays, ("a", "b", "c"), {"pooling": "mean", "skipped": {"d": "is no image"}}))
    assert "Activations" in shown.texts
    assert ": 3 images, 37 units in 16 layers" in shown.texts
    assert HOSTILE in shown.texts
    assert "and 6 more rows" in shown.texts
    assert "pooling mean" in shown.texts
    assert "1 images were skipped" in shown.texts


def test_a_summary_shows_what_its_layers_did(world: Images) -> None:
    recorder = ActivationRecorder(load_target(), ["features.2", "classifier"])
    shown = page(recorder.summarize(world, transform=target_transform()))
    assert ": 12 images, 2 layers" in shown.texts
    assert {"features.2", "classifier", "31"} <= set(shown.texts)


def test_concept_sets_show_their_sizes() -> None:
    one = ConceptSet(HOSTILE, "g", ("a", "b"), ("c", "d", "e"), duplicates=(0, 0, 1, 2, 3))
    two = ConceptSet("blue", "", ("a",), ("e",))
    shown = page(ConceptSets({HOSTILE: one, "blue": two}, {}))
    assert ": 2 concepts on 5 images" in shown.texts
    cells = shown.texts[shown.texts.index(HOSTILE) :]
    assert cells == [HOSTILE, "g", "2", "3", "1", "blue", "1", "1", "unknown"]


def test_concept_scores_show_their_concepts(world: Images) -> None:
    source = ConceptSource(PixelEncoder(), Vocabulary.from_words([HOSTILE, "two"]))
    shown = page(source.score(world))
    assert ": 12 images, 2 concepts" in shown.texts
    assert HOSTILE in shown.texts


def test_a_report_shows_its_main_columns_alone() -> None:
    table = label_table({"a": 1}, names=(HOSTILE,)).assign(q_value=np.nan, concept_2="second")
    shown = page(LabelReport(table, {}))
    assert not {"concept_2", "second"} & set(shown.texts)
    assert shown.texts.count(HOSTILE) == 2
    assert "nan" not in shown.texts


@pytest.mark.parametrize(("n", "more"), [(0, []), (SHOWN_ROWS, []), (SHOWN_ROWS + 1, ["and 1 more rows"])])
def test_ten_rows_are_shown_and_the_others_counted(n: int, more: list[str]) -> None:
    shown = Elements(table_html("K", "s", ["<c>"], ((i,) for i in range(n)), n_rows=n))
    assert shown.tags.count("td") == min(n, SHOWN_ROWS)
    assert [text for text in shown.texts if text.startswith("and")] == more
    assert "<c>" in shown.texts


@pytest.mark.parametrize("kind", [float, np.float64, np.float32])
def test_numbers_of_every_kind_are_short(kind: type) -> None:
    shown = table_html("Kind", "two", ("a", "b"), [(kind(1 / 3), kind("nan"))], n_rows=1)
    assert "<td>0.3333</td><td></td>" in shown
