"""The documentation's pictures: each is there, small, described, and those of the idea pages are drawn by docs/pictures.py."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parent.parent / "docs"
IDEAS = ("recording", "concept_sources", "naming", "probing", "judging", "seeing", "architecture")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """docs/pictures.py as a module."""
    spec = importlib.util.spec_from_file_location("doc_pictures", DOCS / "pictures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_picture_of_a_page_is_there_small_and_described() -> None:
    n_pictures = 0
    for page in DOCS.rglob("*.md"):
        for text, path in re.findall(r"!\[(.*?)\]\((.+?)\)", page.read_text(encoding="utf-8"), re.DOTALL):
            n_pictures += 1
            assert len(text) > 20, f"{page.name}: {path} has no description"
            assert (page.parent / path).stat().st_size < 120_000, f"{page.name}: {path}"
    assert n_pictures > len(IDEAS)


def test_the_ideas_have_their_pictures(script: ModuleType) -> None:
    assert tuple(script.PICTURES) == IDEAS
    for name in IDEAS:
        assert f"(images/{name}.png)" in (DOCS / f"{name}.md").read_text(encoding="utf-8")
        assert name in script.__doc__


def test_an_unknown_picture_is_refused(script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["pictures.py", "recordings"])
    with pytest.raises(SystemExit):
        script.main()
    assert "Expected one of recording, concept_sources" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", IDEAS)
def test_a_picture_is_drawn(name: str, script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["pictures.py", name])
    script.main()
    assert 5_000 < (tmp_path / f"{name}.png").stat().st_size < 120_000
