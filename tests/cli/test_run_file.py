"""Options in a TOML file: what a run wrote repeats it, what is typed counts more, and what is wrong is told with the file's name."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from pathlib import Path

import pytest

from neuroprobe._cli import main
from neuroprobe._cli.commands import parse
from neuroprobe._cli.demo import run_demo
from neuroprobe._cli.options import build_parser, command_parser
from neuroprobe._cli.run_file import options_of, write_run
from neuroprobe.exceptions import InputError
from neuroprobe.pipeline import dissect_model, probe_model

DISSECT = ["dissect", "resnet18", "--layers", "layer3", "layer4", "--images", "photos", "--words", "words.txt", "--clip", "ViT-B/16"]
PROBE = ["probe", "resnet18", "--layers", "layer4", "--images", "photos", "--clip", "ViT-B/16", "--words", "a.txt", "--words", "b.txt"]


def written(argv: list[str], folder: Path) -> tuple[argparse.Namespace, Path]:
    arguments = parse(argv)
    return arguments, write_run(folder, command_parser(build_parser(), arguments.command), arguments)


@pytest.mark.parametrize(
    "argv",
    [
        DISSECT,
        [*DISSECT, "--trust", "--null-units", "0", "--false-discovery-rate", "0.1", "--template=-{}", "--out", "o"],
        PROBE,
        [*PROBE, "--seeds", "3", "4", "--scopes", "neuron", "full", "--checkpoints", "a.pt", "b.pt"],
        ["demo", "--seed", "7"],
        ["layers", "resnet18", "--all"],
    ],
)
def test_what_a_run_wrote_gives_its_options_again(argv: list[str], tmp_path: Path) -> None:
    first, path = written(argv, tmp_path)
    if "config" not in vars(first):
        return  # a command without a report reads no file
    again = parse([argv[0], "--config", str(path)])
    assert {**vars(again), "config": None} == vars(first)
    assert {type(value) for value in vars(again).values()} >= {type(value) for value in vars(first).values() if value is not None}


def test_every_option_of_a_report_stands_in_its_file(tmp_path: Path) -> None:
    _, path = written([*PROBE, "--checkpoints", "a.pt", "--store", "kept"], tmp_path)
    named = {line.split(" = ")[0] for line in path.read_text(encoding="utf-8").splitlines() if " = " in line}
    wanted = {*options_of(command_parser(build_parser(), "probe")), "command"}
    assert wanted - named == {"layout", "text-cache", "site"}  # not said, and without a default


def test_what_is_typed_counts_more_than_the_file(tmp_path: Path) -> None:
    _, path = written(PROBE, tmp_path)
    found = parse(["probe", "mobilenet_v2", "--words", "c.txt", "--batch-size", "8", "--config", str(path)])
    assert (found.model, found.words, found.batch_size, found.layers) == ("mobilenet_v2", [Path("c.txt")], 8, ["layer4"])


def test_a_file_need_not_hold_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "some.toml"
    path.write_text('clip = "ViT-B/16"\nlayers = "layer4"\n', encoding="utf-8")
    found = parse(["dissect", "resnet18", "--images", "photos", "--words", "w.txt", "--config", str(path)])
    assert (found.layers, found.batch_size, found.trust) == (["layer4"], 64, False)
    with pytest.raises(SystemExit) as ended:
        parse(["dissect", "resnet18", "--config", str(path)])
    assert ended.value.code == 2
    assert "required: --images, --words" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("layers = [", "is none"),
        ('layer = "a"', "Did you mean 'layers'"),
        ('command = "probe"', "they are of `neuroprobe probe`"),
        ("batch-size = 'many'", "to be a whole number, but got 'many'"),
        ('device = {a = "b"}', "to be a text or a number"),
        ("layers = []", "to be a text, a number"),
        ("trust = 1", "to be true or false"),
        ('on-error = "ignore"', "one of raise, skip, but got 'ignore'"),
        ("config = 'other.toml'", "Expected options"),
    ],
)
def test_what_is_wrong_in_a_file_is_one_line(text: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    assert main([*DISSECT, "--config", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert "run.toml" in line


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*DISSECT, "--config", str(tmp_path / "none.toml")]) == 2
    assert "No such file" in capsys.readouterr().err
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    assert main([*DISSECT, "--config", str(tmp_path / "bytes.toml")]) == 2
    assert "is none" in capsys.readouterr().err


def test_texts_come_through_whole(tmp_path: Path) -> None:
    hostile = 'a "quoted" \\ text\nwith = a line, ü and \t {}'
    first, path = written([*DISSECT, f"--template={hostile}"], tmp_path)
    assert first.template == hostile
    assert parse(["dissect", "--config", str(path)]).template == hostile


@pytest.mark.parametrize("key", ["layers", "words", "clip", "images", "out", "template", "model", "store", "text-cache"])
@pytest.mark.parametrize("text", ["--trust", "--on-error=skip", "-h", "--", "--config"])
def test_a_text_in_a_file_is_never_read_as_an_option(key: str, text: str, tmp_path: Path) -> None:
    _, path = written(DISSECT, tmp_path)
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith(f"{key} =")]
    value = f'["layer3", "{text}"]' if key == "layers" else f'"{text}"'
    path.write_text("\n".join([*lines, f"{key} = {value}"]), encoding="utf-8")
    plain, found = parse(["dissect", "--config", str(path)]), vars(parse(DISSECT))
    changed = {name for name, value in vars(plain).items() if value != found[name]} - {"config"}
    assert changed == {key.replace("-", "_")}
    assert text in str(getattr(plain, key.replace("-", "_")))


def test_the_order_of_a_files_keys_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    path.write_text('layers = ["layer3", "layer4"]\nmodel = "resnet18"\nimages = "i"\nwords = "w"\nclip = "c"\n', encoding="utf-8")
    found = parse(["dissect", "--config", str(path)])
    assert (found.model, found.layers) == ("resnet18", ["layer3", "layer4"])


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('out = ["a", "b"]', "Expected one value for 'out'"),
        ('words = ["a.txt", "b.txt"]', "Expected one value for 'words'"),
        ("out = true", "Expected 'out' in .* to be a text or a number, but got True"),
        ("layers = [true]", "Expected 'layers' in .* to be a text, a number, or a list of them"),
        ("layers = []", "Expected 'layers' in .* to be a text, a number, or a list of them"),
    ],
)
def test_values_that_an_option_does_not_take_are_refused(line: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(InputError, match=told):
        parse(["dissect", "resnet18", "--config", str(path)])


def test_a_file_with_the_mark_and_the_line_ends_of_windows_is_read(tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    path.write_bytes(b"\xef\xbb\xbfseed = 7\r\nimages = 400\r\n")
    found = parse(["demo", "--config", str(path)])
    assert (found.seed, found.images) == (7, 400)


def test_a_path_that_is_no_text_is_written_and_read(tmp_path: Path) -> None:
    first, path = written([*DISSECT, "--out", "r\udcffport"], tmp_path)
    assert parse(["dissect", "--config", str(path)]).out == first.out


@pytest.mark.parametrize("short", ["--c", "--con", "--conf"])
def test_no_shortened_option_is_taken_and_forgotten(short: str, tmp_path: Path) -> None:
    (tmp_path / "some.toml").write_text("seed = 7\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        parse(["demo", short, str(tmp_path / "some.toml")])


@pytest.mark.parametrize("option", ["images", "out", "store", "text-cache"])
def test_an_empty_path_is_not_the_current_folder(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse([*DISSECT, f"--{option}="])
    assert f"argument --{option}: expected a path, but got ''; for the current folder write ." in capsys.readouterr().err
    (tmp_path / "some.toml").write_text(f'{option} = ""\n', encoding="utf-8")
    with pytest.raises(InputError, match="expected a path"):
        parse([*DISSECT, "--config", str(tmp_path / "some.toml")])


#: Options of a command, and the parameters that they are handed to.
HANDED_ON = {
    ("dissect", dissect_model): {
        "pooling": "pooling", "layout": "layout", "similarity": "similarity", "false_discovery_rate": "false_discovery_rate",
        "null_units": "n_null", "resamples": "n_bootstrap", "store": "store", "batch_size": "batch_size", "workers": "workers",
        "device": "device",
    },
    ("probe", probe_model): {
        "positives": "n_positive", "negatives": "n_negative", "negatives_from": "negatives", "gap": "gap", "scopes": "scopes",
        "controls": "controls", "held_out": "held_out", "seeds": "seeds", "layout": "layout", "store": "store",
        "checkpoints": "checkpoints", "batch_size": "batch_size", "workers": "workers",
    },
    ("demo", run_demo): {"images": "n_images", "seed": "seed"},
}  # fmt: skip


@pytest.mark.parametrize(("command", "function"), HANDED_ON, ids=lambda value: value if isinstance(value, str) else value.__name__)
def test_the_command_lines_defaults_are_those_of_the_functions(command: str, function: Callable[..., object]) -> None:
    parser, parameters = command_parser(build_parser(), command), inspect.signature(function).parameters
    for option, parameter in HANDED_ON[command, function].items():
        ours, theirs = parser.get_default(option), parameters[parameter].default
        assert (list(ours) == list(theirs)) if isinstance(theirs, (range, tuple)) else (ours == theirs), option
