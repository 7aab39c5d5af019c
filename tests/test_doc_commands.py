"""The commands that the documentation shows: every option of them exists."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from neuroprobe._cli.options import COMMANDS, build_parser, command_parser

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


def commands_in(text: str) -> Iterator[list[str]]:
    """The words of every command in a page's bash blocks."""
    for block in re.findall(r"```(?:bash|console)\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            start = 0
            for end, word in enumerate([*words, "&&"]):
                if word in ("&&", ";", "|", ">", ">>"):
                    if start == 0 or words[start - 1] not in (">", ">>"):  # behind which there is a file's name
                        yield words[start:end]
                    start = end + 1


def of_neuroprobe(words: list[str]) -> list[str] | None:
    """What follows `neuroprobe`, where a command runs it: by its name, or as a module."""
    for i, word in enumerate(words):
        is_module = word == "neuroprobe" and i and words[i - 1] == "-m"
        if is_module or (Path(word).name == "neuroprobe" and all("=" in before or before == "time" for before in words[:i])):
            return words[i + 1 :]
    return None


def of_a_script(words: list[str]) -> tuple[Path, list[str]] | None:
    """A script of this repository, and its options."""
    for i, word in enumerate(words):
        if re.fullmatch(r"(examples|benchmarks)/[\w/]+\.py", word):
            return ROOT / word, words[i + 1 :]
    return None


def all_commands() -> list[tuple[str, list[str]]]:
    return [(page.name, words) for page in PAGES if page.is_file() for words in commands_in(page.read_text(encoding="utf-8")) if words]


OURS = [(page, found) for page, words in all_commands() if (found := of_neuroprobe(words)) is not None]
SCRIPTS = [(page, *found) for page, words in all_commands() if (found := of_a_script(words)) is not None]


def parse(words: list[str]) -> argparse.Namespace:
    parser = build_parser()
    if "--config" in words:  # which brings what is required
        for command in COMMANDS:
            for action in command_parser(parser, command)._actions:
                action.required = False
    return parser.parse_args(words)


def test_commands_are_found() -> None:
    text = "```bash\nA=1 .venv/bin/neuroprobe demo \\\n  --out x && neuroprobe layers resnet18  # names\ntorchrun -m neuroprobe doctor\n```"
    assert [of_neuroprobe(words) for words in commands_in(text)] == [["demo", "--out", "x"], ["layers", "resnet18"], ["doctor"]]
    assert of_neuroprobe(["pip", "install", "neuroprobe"]) is None
    assert {words[0] for _, words in OURS} >= {"demo", "dissect", "probe"}


@pytest.mark.parametrize(("page", "words"), OURS, ids=[f"{page}-{i}" for i, (page, _) in enumerate(OURS)])
def test_a_shown_command_parses(page: str, words: list[str]) -> None:
    if "--print-completion" not in words and words != ["--help"]:
        assert parse(words).command in COMMANDS


def test_a_command_that_does_not_exist_would_show() -> None:
    for words in (["dissect", "resnet18"], ["probe", "x", "--layers", "a", "--images", "b", "--clip", "c", "--no-such-option"]):
        with pytest.raises(SystemExit):
            parse(words)


@pytest.mark.parametrize(
    ("page", "script", "words"), SCRIPTS, ids=[f"{page}-{script.stem}-{i}" for i, (page, script, _) in enumerate(SCRIPTS)]
)
def test_a_shown_script_has_the_options_it_is_called_with(
    page: str, script: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert script.is_file(), f"{page} calls {script}"
    module = imported(script, monkeypatch)
    if hasattr(module, "build_parser"):
        module.build_parser().parse_args(words)
    else:
        source = script.read_text(encoding="utf-8")
        assert all(f'"{word}"' in source for word in words if word.startswith("--"))


def imported(script: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType | None:
    """An example as a module; benchmarks, and files that run when they are imported, are only read."""
    if "build_parser" not in script.read_text(encoding="utf-8"):
        return None
    monkeypatch.syspath_prepend(str(script.parent))
    monkeypatch.delitem(sys.modules, script.stem, raising=False)
    return importlib.import_module(script.stem)
