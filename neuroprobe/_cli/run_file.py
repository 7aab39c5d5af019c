"""The options of a run as a TOML file, so that the run can be repeated: ``neuroprobe dissect --config report/run.toml``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neuroprobe._core import __version__, write_whole
from neuroprobe.exceptions import InputError, UnknownNameError, suggest

#: Name of the file beside a report.
RUN_FILE = "run.toml"

_NOT_OPTIONS = ("help", "config")


def write_run(folder: str | Path, parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Path:
    """Write every option of a run, also those left at their defaults, into a folder.

    Parameters
    ----------
    folder : path
    parser : argparse.ArgumentParser
        Of the run's command.
    arguments : argparse.Namespace
        With `command`, its name. Paths are kept as they were typed: relative ones mean the folder the command ran in.

    Returns
    -------
    Path
    """
    import tomlkit

    document = tomlkit.document()
    again = f"again, from the folder it ran in: neuroprobe {arguments.command} --config THIS_FILE"  # relative paths mean that folder
    document.add(tomlkit.comment(f"neuroprobe {__version__}; {again}"))
    document.add("command", tomlkit.item(arguments.command))
    for name, action in options_of(parser).items():
        value = getattr(arguments, action.dest)
        if value is not None:
            document.add(name, tomlkit.item(_plain(value)))
    path = Path(folder) / RUN_FILE
    write_whole(path, tomlkit.dumps(document).encode(errors="surrogateescape"))  # a path may hold bytes that are no text
    return path


def read_run(path: str | Path, parser: argparse.ArgumentParser, command: str) -> dict[argparse.Action, Any]:
    """The options in a file, as the parser would have made them of what is typed.

    A value is taken for the value of its option whatever it looks like: no text of a file is read as another option.

    Raises
    ------
    InputError
        There is no such file, it is not TOML, it is of another command, or a value is not what its option takes: a text or a number,
        a list of them, or a truth value.
    UnknownNameError
        A key that is no option of the command.
    """
    values = _read(Path(path))
    written = values.pop("command", command)
    if written != command:
        raise InputError(f"Expected options of `neuroprobe {command}` in {str(path)!r}, but they are of `neuroprobe {written}`.")
    known = options_of(parser)
    for name in values:
        if name not in known:
            raise UnknownNameError(f"Expected options of `neuroprobe {command}` in {str(path)!r}, but got {name!r}. {suggest(name, known)}")
    return {known[name]: _value(name, known[name], value, path) for name, value in values.items()}


def options_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """A command's options by their long names without dashes, and its arguments by theirs."""
    actions = [action for action in parser._actions if action.dest not in _NOT_OPTIONS and action.nargs != argparse.SUPPRESS]
    return {(action.option_strings[-1].lstrip("-") if action.option_strings else action.dest): action for action in actions}


def _read(path: Path) -> dict[str, Any]:
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        # as it is written; "-sig" for the mark that some editors put first
        return tomlkit.parse(path.read_text(encoding="utf-8-sig", errors="surrogateescape")).unwrap()
    except OSError as error:
        raise InputError(f"Expected a TOML file of options, but {str(path)!r} cannot be read: {error.strerror}.") from error
    except TOMLKitError as error:
        raise InputError(f"Expected a TOML file of options, but {str(path)!r} is none: {error}.") from error


def _value(name: str, action: argparse.Action, value: Any, path: str | Path) -> Any:
    """The value of one option."""
    if action.nargs == 0:  # a flag
        if not isinstance(value, bool):
            raise InputError(f"Expected {name!r} in {str(path)!r} to be true or false, but got {value!r}.")
        return value
    values: Sequence[Any] = value if isinstance(value, list) else [value]
    takes_several = action.nargs is not None or isinstance(action, argparse._AppendAction)
    if not values or not all(isinstance(one, (str, int, float)) and not isinstance(one, bool) for one in values):
        kinds = "a text, a number, or a list of them" if takes_several else "a text or a number"
        raise InputError(f"Expected {name!r} in {str(path)!r} to be {kinds}, but got {value!r}.")
    if len(values) > 1 and not takes_several:
        raise InputError(f"Expected one value for {name!r} in {str(path)!r}, but got {len(values)}: {value!r}.")
    found = [_converted(name, action, one, path) for one in values]
    return found if takes_several else found[0]


def _converted(name: str, action: argparse.Action, value: str | float, path: str | Path) -> Any:
    convert: Any = action.type or str
    try:
        found = convert(str(value))
    except (ValueError, argparse.ArgumentTypeError) as error:
        kind = {int: "a whole number", float: "a number"}.get(convert, "a value that the option takes")
        raise InputError(f"Expected {name!r} in {str(path)!r} to be {kind}, but got {value!r} ({error}).") from error
    if action.choices is not None and found not in action.choices:
        raise InputError(f"Expected {name!r} in {str(path)!r} to be one of {', '.join(map(str, action.choices))}, but got {value!r}.")
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value if isinstance(value, (bool, int, float)) else str(value)
