"""The pages about errors: their wrong code raises the message that they print, and their right code runs."""

from __future__ import annotations

import re
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from neuroprobe.exceptions import NeuroprobeError
from neuroprobe.world import world_images

FOLDER = Path(__file__).parent.parent / "docs" / "errors"
PAGES = sorted(path.stem for path in FOLDER.glob("*.md") if path.stem != "index")

#: Packages that are not there on a page.
ABSENT = {"missing_extra": "wordfreq"}
#: Pages on which there is no network.
OFFLINE = ("no_network",)
#: Pages whose symptom is what is printed, and no error.
PRINTED = ("missing_interval",)
#: Pages whose code takes more than a second or two.
SLOW = ("equal_checkpoints", "missing_interval", "no_types", "other_images", "page_pictures")

pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning:torch")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the pages' code finds: twelve pictures in ``photos/``."""
    (tmp_path / "photos").mkdir()
    images = world_images(12)
    for i in range(12):
        images[i].save(tmp_path / "photos" / f"{i:02d}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks(page: str, language: str) -> list[str]:
    text = (FOLDER / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def no_address(*args: object, **options: object) -> None:
    raise socket.gaierror(-2, "Name or service not known")


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("page", [pytest.param(page, marks=pytest.mark.slow) if page in SLOW else page for page in PAGES])
def test_a_page_tells_the_truth(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if page in ABSENT:
        monkeypatch.setitem(sys.modules, ABSENT[page], None)
    if page in OFFLINE:
        monkeypatch.setattr(socket, "getaddrinfo", no_address)
    (message,) = blocks(page, "text")
    wrong, right = blocks(page, "python")
    names: dict[str, Any] = {}
    if page in PRINTED:
        exec(wrong, names)
        assert words(capsys.readouterr().out) == words(message)
    else:
        with pytest.raises(NeuroprobeError) as caught:
            exec(wrong, names)
        kind = type(caught.value)
        assert words(f"{kind.__module__}.{kind.__qualname__}: {caught.value}") == words(message)
    exec(right, names)


def test_every_page_is_listed_and_has_all_parts() -> None:
    listed = re.findall(r"^(\w+)$", (FOLDER / "index.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == PAGES
    assert len(PAGES) >= 12
    for page in PAGES:
        text = (FOLDER / f"{page}.md").read_text(encoding="utf-8")
        assert [text.count(f"**{part}") for part in ("Symptom.**", "Cause.**", "Wrong**", "Right**")] == [1, 1, 1, 1], page
