"""The directive ``room``: the API page of a room, made from its face (``__init__.pyi``).

A page has a line for every public name and then what each is. The names and their order are those of ``__all__`` in the
stub: what is used most comes first. What a face has for other rooms alone is not in ``__all__``, and not here.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

PACKAGE = Path(__file__).parents[1] / "neuroprobe"


def face(room: str) -> dict[str, str]:
    """What users take from a room, what is used most first; with the module that each name is from."""
    stub = PACKAGE / room / "__init__.pyi"
    tree = ast.parse((stub if stub.exists() else PACKAGE / f"{room}.py").read_text(encoding="utf-8"))
    if not stub.exists():
        public = [node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_")]
        return dict.fromkeys(public, f"neuroprobe.{room}")
    homes = {
        alias.name: f"neuroprobe.{room}.{node.module}" for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    (names,) = (ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign))
    return {name: homes[name] for name in names}


class Room(SphinxDirective):
    """``.. room:: concepts``"""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        room = self.arguments[0]
        module = importlib.import_module(f"neuroprobe.{room}")
        names = face(room)
        lines = [str(module.__doc__), "", ".. list-table::", "   :widths: auto", ""]
        for name, home in names.items():
            summary = " ".join(described(name, getattr(module, name), home).split("\n\n")[0].split())
            lines += [f"   * - :py:obj:`~neuroprobe.{room}.{name}`", f"     - {summary}"]
        for name, home in names.items():
            lines += ["", *entry(f"neuroprobe.{room}.{name}", getattr(module, name), home)]
        return self.parse_text_to_nodes("\n".join(lines))


def is_data(value: object) -> bool:
    return not inspect.isclass(value) and not inspect.isroutine(value)


def described(name: str, value: object, home: str) -> str:
    """The docstring; of a constant or an alias the comment before it."""
    if is_data(value):
        return "\n".join(ModuleAnalyzer.for_module(home).find_attr_docs().get(("", name), ["A constant."]))
    return inspect.getdoc(value) or ""


def entry(path: str, value: object, home: str) -> list[str]:
    """The directive that shows it."""
    if is_data(value):
        return [f".. py:data:: {path}", "", *(f"   {line}" for line in described(path.rpartition(".")[2], value, home).splitlines())]
    if inspect.isclass(value):
        return [f".. autoclass:: {path}", "   :members:", "   :undoc-members:"]
    return [f".. autofunction:: {path}"]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("room", Room)
    return {"parallel_read_safe": True}
