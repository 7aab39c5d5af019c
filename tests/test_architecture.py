"""The rooms of the house: each imports only from rooms below it, other rooms only through their faces, and no files in a circle."""

from __future__ import annotations

import ast
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "neuroprobe"

#: From the ground up. Rooms in one row do not know each other.
ROWS = (
    ("exceptions",),
    ("_core",),
    ("statistics",),
    ("images",),
    ("models",),
    ("recording",),
    ("concepts",),
    ("reports",),
    ("labeling", "probing"),
    ("evaluation",),
    ("visualization", "effects"),
    ("world",),
    ("pipeline",),
    ("_cli",),
    ("__main__",),
)
FLOOR = {room: floor for floor, row in enumerate(ROWS) for room in row}
FILES = sorted(path for path in ROOT.rglob("*.py") if path.name != "__init__.py")


def imports(path: Path) -> list[tuple[int, str, str]]:
    """(line, module, name) of every import of ours: in functions and under TYPE_CHECKING too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write imports whole, from neuroprobe on"
            if (node.module or "").split(".")[0] == "neuroprobe":
                found += [(node.lineno, str(node.module), alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(node.lineno, alias.name, "") for alias in node.names if alias.name.split(".")[0] == "neuroprobe"]
    return found


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_rooms_below_it_and_only_through_their_faces(path: Path) -> None:
    room, wrong = room_of(path), []
    for line, module, name in imports(path):
        parts = module.split(".")
        where = f"{path.relative_to(ROOT.parent)}:{line}: {module} {name}".rstrip()
        if len(parts) == 1:
            wrong.append(f"{where} is of the package itself. Import from the room: from neuroprobe.<room> import {name}")
            continue
        other = parts[1]
        if other == room:
            continue
        if FLOOR[other] >= FLOOR[room]:
            wrong.append(f"{where} is of a room above or beside {room!r}. Move what both need into a room below, or hand it in.")
        elif len(parts) > 2 and other != "exceptions":
            wrong.append(f"{where} is behind the face of {other!r}. Import it from neuroprobe.{other}, and name it there in __init__.pyi.")
    assert not wrong, "\n".join(wrong)


def test_no_files_import_each_other_in_a_circle() -> None:
    """Within a room too, annotations and lazy imports included. A face stands for the files it names."""
    graph: dict[str, set[str]] = {}
    for path in FILES:
        own = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
        graph[own] = {target for _, module, name in imports(path) for target in targets(module, name)} - {own}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail("Files import each other in a circle: " + " <- ".join(error.args[1]) + ". Move what they share into a file of its own.")


def targets(module: str, name: str) -> list[str]:
    """The files that an import reaches: the module's own, or the one that a face has the name from."""
    path = ROOT.parent / Path(*module.split("."))
    if not path.is_dir():
        return [module]
    stub = path / "__init__.pyi"
    if not stub.exists():
        return [f"{module}.{name}"] if (path / f"{name}.py").exists() else []
    for node in ast.parse(stub.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            return [f"{module}.{node.module or name}"]
    return []


def test_the_house_has_few_doors() -> None:
    entries = {
        path.name for path in ROOT.iterdir() if path.name not in {"__init__.py", "__init__.pyi", "__main__.py", "py.typed", "__pycache__"}
    }
    assert entries == {f"{room}.py" if room in {"exceptions", "pipeline"} else room for room in FLOOR if room != "__main__"}


@pytest.mark.parametrize("stub", sorted(ROOT.rglob("__init__.pyi")), ids=lambda path: path.parent.name)
def test_a_name_of_a_face_is_no_file_beside_it(stub: Path) -> None:
    """A file's import would put the module in the name's place."""
    names = {
        alias.name for node in ast.parse(stub.read_text()).body if isinstance(node, ast.ImportFrom) and node.module for alias in node.names
    }
    files = {path.stem for path in stub.parent.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert not names & files, f"rename the file: {sorted(names & files)}"


#: Of the JavaScript of pages, which has an object of the package's name.
OF_SCRIPTS = {"el", "panels", "take"}


def face(room: str = "") -> set[str]:
    """The names that a room, or the package itself, shows."""
    if not (ROOT / room / "__init__.pyi").exists():
        return {node.name for node in ast.parse((ROOT / f"{room}.py").read_text(encoding="utf-8")).body if hasattr(node, "name")}
    tree = ast.parse((ROOT / room / "__init__.pyi").read_text(encoding="utf-8"))
    return {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}


@pytest.mark.parametrize("pattern", ["*.md", "docs/**/*.md", "examples/**/*.py", "benchmarks/*.[mp][dy]", "neuroprobe/**/*.py"])
def test_pages_and_docstrings_name_things_by_their_faces(pattern: str) -> None:
    faces, wrong = {"": face() | OF_SCRIPTS} | {room: face(room) for room in FLOOR if not room.startswith("__")}, []
    for path in sorted(ROOT.parent.glob(pattern)):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if "python -m " in line or "getLogger(" in line or (path in FILES and line.lstrip().startswith(("from ", "import "))):
                continue
            for room, name in re.findall(r"\bneuroprobe\.([A-Za-z_]\w*)(?:\.([A-Za-z_]\w*))?", line):
                if (name and name not in faces.get(room, {name})) or room not in faces.keys() | faces[""]:
                    wrong.append(f"{path.relative_to(ROOT.parent)}:{number}: neuroprobe.{room}{name and '.'}{name} is no name of a face.")
    assert not wrong, "\n".join(wrong) + "\nName it as users import it, and a file behind the face by its file's name."
