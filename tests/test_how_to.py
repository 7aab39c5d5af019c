"""The how-to pages' files: each is short, runs offline, and prints what its page says."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "examples" / "how_to").glob("*.py"))
EXTENSION_POINTS = {"image_text_model", "similarity_function", "pooling", "basis", "concept_source", "probe", "report"}


@functools.cache
def printed_by(name: str) -> list[str]:
    """What a file prints; run once for all tests."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        runpy.run_path(str(ROOT / "examples" / "how_to" / f"{name}.py"), run_name="__main__")
    return out.getvalue().splitlines()


def test_every_extension_point_has_a_page_that_shows_its_file() -> None:
    assert {path.stem for path in FILES} == {f"own_{point}" for point in EXTENSION_POINTS}
    for path in FILES:
        page = (ROOT / "docs" / "how_to" / f"{path.stem}.md").read_text(encoding="utf-8")
        assert f"literalinclude}} ../../examples/how_to/{path.name}" in page


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_has_at_most_forty_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 40


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_a_page_says_is_printed(path: Path) -> None:
    """All but numbers, which may differ in their last digits between versions."""
    page = (ROOT / "docs" / "how_to" / f"{path.stem}.md").read_text(encoding="utf-8")
    said = [line for block in re.findall(r"```text\n(.*?)```", page, re.DOTALL) for line in block.splitlines() if line != "..."]
    lines = printed_by(path.stem)
    assert said
    for line in said:
        assert without_numbers(line) in [without_numbers(found) for found in lines]


def without_numbers(line: str) -> str:
    """A line without its numbers, and without the fingerprint of a function's code, which differs between versions of Python."""
    return re.sub(r"\d*\.?\d+%?", "_", re.sub(r"#[0-9a-f]{32}", "", line)).strip()


def test_an_own_encoder_names_colors() -> None:
    names = dict(re.findall(r"trained on '(\w+)' is named '(\w*)'", "\n".join(printed_by("own_image_text_model"))))
    assert sum(color == name for color, name in names.items()) >= 9
    assert set(names.values()) <= {*names, ""}


def test_an_own_scorer_agrees_with_its_function() -> None:
    function, scorer = printed_by("own_similarity_function")
    assert re.findall(r"\d+ of 31", function) == re.findall(r"\d+ of 31", scorer) == ["31 of 31"]
    assert (function.endswith("False"), scorer.endswith("True")) == (True, True)


def test_an_own_pooling_is_remembered_with_its_parameter() -> None:
    lines = printed_by("own_pooling")
    assert [line.split("#")[0].split(":")[0] for line in lines] == ["mean", "max", "__main__.highest_positions(k=3)"]
    assert all(float(line.split()[-1]) > 0.7 for line in lines)


def test_an_own_probe_reads_more_from_later_layers() -> None:
    means = [[float(value) for value in line.split()[1:]] for line in printed_by("own_probe")[2:]]
    assert len(means) == 3
    assert all(early < late for early, late in zip(means[0], means[2], strict=True))
