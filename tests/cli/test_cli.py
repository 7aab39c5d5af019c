"""The command line: real runs on rendered images saved as files, and one readable line for whatever is wrong."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neuroprobe import ConceptSource, Images, LabelReport, ProbeReport
from neuroprobe._cli import main
from neuroprobe.world import CLIP_PATH, target_checkpoints, world_images

TARGET = "neuroprobe.world:target_with_transform"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 of the world's images as PNG files."""
    path = tmp_path_factory.mktemp("photos")
    images = world_images(150, seed=9)
    for i in range(len(images)):
        images[i].save(path / f"{i:03d}.png")
    return path


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("words") / "colors.txt"
    path.write_text("red\nblue\ngreen\nyellow\n", encoding="utf-8")
    return path


@pytest.fixture
def no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading an image is an error."""
    monkeypatch.setattr(Images, "load", lambda *_: pytest.fail("an image was read"))


def dissect_arguments(
    folder: Path, words: Path, out: Path, *more: str, model: str = TARGET, layers: tuple[str, ...] = ("classifier",)
) -> list[str]:
    common = ["--layers", *layers, "--images", str(folder), "--clip", str(CLIP_PATH), "--device", "cpu", "--out", str(out)]
    return ["dissect", model, *common, "--words", str(words), *more]


def probe_arguments(folder: Path, out: Path, *more: str) -> list[str]:
    common = ["--images", str(folder), "--clip", str(CLIP_PATH), "--device", "cpu", "--out", str(out), "--jobs", "1"]
    return ["probe", TARGET, "--layers", "features.1", "features.18", *common, *more]


def the_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("neuroprobe: Expected ")
    return lines[0]


def test_dissect_names_units_by_the_words_of_the_file(folder: Path, words: Path, tmp_path: Path) -> None:
    assert main(dissect_arguments(folder, words, tmp_path, "--template", "This image has a concept: {}")) == 0
    table = LabelReport.load(tmp_path).table
    assert set(table["candidate"]) <= {"red", "blue", "green", "yellow"}
    assert table.loc[table["unit"] == 10, "concept"].tolist() == ["red"]  # the output trained for red
    assert list(pd.read_csv(tmp_path / "labels.csv").columns[:4]) == ["layer", "unit", "concept", "score"]


def test_a_site_is_a_layer_read_in_another_way(folder: Path, words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "basis.npy", np.eye(31, dtype=np.float32)[::-1])  # the head's units in reversed order
    sites = ["--site", f"classifier,basis={tmp_path / 'basis.npy'},name=reversed", "--site", "classifier.1,side=input,name=before"]
    fast = ["--no-page", "--resamples", "0", "--null-units", "100"]
    assert main([*dissect_arguments(folder, words, tmp_path / "out", *sites, *fast)]) == 0
    table = LabelReport.load(tmp_path / "out").table.set_index(["layer", "unit"])
    assert table.index.get_level_values("layer").unique().tolist() == ["classifier", "reversed", "before"]
    assert table.loc["reversed", "candidate"].tolist() == table.loc["classifier", "candidate"].tolist()[::-1]
    assert len(table.loc["before"]) == 1280
    again = ["dissect", "--config", str(tmp_path / "out" / "run.toml"), "--out", str(tmp_path / "again")]
    assert main(again) == 0
    assert (tmp_path / "again" / "labels.csv").read_bytes() == (tmp_path / "out" / "labels.csv").read_bytes()


@pytest.mark.parametrize(
    ("site", "told"),
    [
        ("classifier,sides=input", "Did you mean 'side'"),
        ("classifier,side=left", "'output' or 'input', but got 'left'"),
        ("classifier,side=input,side=output", "once, but got one twice"),
        ("classifer", "Did you mean 'classifier'"),
        ("classifier,basis=none.npy", "a matrix [k, d], but 'none.npy' is none"),
    ],
)
@pytest.mark.usefixtures("no_pass")
def test_a_site_that_is_none_is_told(
    site: str, told: str, folder: Path, words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*dissect_arguments(folder, words, tmp_path / "out", "--site", site)]) == 2
    assert told in the_line(capsys)


def test_dissect_takes_a_torchvision_model_with_random_weights(folder: Path, words: Path, tmp_path: Path) -> None:
    arguments = dissect_arguments(
        folder, words, tmp_path, "--weights", "none", "--similarity", "cos_similarity", model="shufflenet_v2_x0_5", layers=("stage2", "fc")
    )
    assert main(arguments) == 0
    table = LabelReport.load(tmp_path).table
    assert table.groupby("layer").size().to_dict() == {"fc": 1000, "stage2": 48}


def test_probe_measures_every_concept_layer_and_checkpoint(folder: Path, tmp_path: Path) -> None:
    files = [str(target_checkpoints()[name]) for name in ("step_00000", "step_05000")]
    assert main(probe_arguments(folder, tmp_path, "--positives", "15", "--negatives", "30", "--checkpoints", *files)) == 0
    table = ProbeReport.load(tmp_path).table
    assert len(table) == 9 * 2 * 2 * 3 * 5
    assert set(table["checkpoint"]) == {"step_00000", "step_05000"}
    assert set(zip(table["n_train"], table["n_test"], strict=True)) == {(31, 14)}


def test_probe_takes_word_lists_as_groups(folder: Path, words: Path, tmp_path: Path) -> None:
    assert main(probe_arguments(folder, tmp_path, "--words", str(words), "--positives", "10", "--negatives", "20")) == 0
    assert set(ProbeReport.load(tmp_path).table["concept"]) == {"red", "blue", "green", "yellow"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": ("features.8x",)}, "Did you mean 'features.8'"),
        ({"model": "resnet05"}, "Did you mean 'resnet50'"),
        ({"model": "no_such_module:f"}, "cannot be imported"),
        ({"folder": "nothing-here"}, "there is nothing at"),
        ({"words": "no-such-list.txt"}, "cannot be read"),
        ({"more": ("--clip", "ViT-B/23")}, "Did you mean 'ViT-B/32'"),
        ({"more": ("--weights", "no_such.pt")}, "there is nothing at 'no_such.pt'"),
        ({"more": ("--similarity", "soft_wpmy")}, "Did you mean 'soft_wpmi'"),
        ({"more": ("--device", "warp")}, "a device of this machine"),
        ({"more": ("--template", "no place")}, "exactly one '{}'"),
        ({"more": ("--batch-size", "0")}, "`batch_size` to be a whole number of at least 1"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line_and_code_2(
    change: dict, message: str, folder: Path, words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = dissect_arguments(
        Path(change.get("folder", folder)),
        Path(change.get("words", words)),
        tmp_path / "out",
        *change.get("more", ()),
        model=change.get("model", TARGET),
        layers=change.get("layers", ("classifier",)),
    )
    assert main(arguments) == 2
    assert message in the_line(capsys)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_image_is_named_or_skipped(words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(20):
        world_images(20)[i].save(photos / f"{i}.png")
    (photos / "broken.jpg").write_text("no image")
    arguments = dissect_arguments(photos, words, tmp_path / "out")
    assert main(arguments) == 2
    assert "broken.jpg" in the_line(capsys)
    capsys.readouterr()
    assert main([*arguments, "--on-error", "skip"]) == 0
    assert "Left out: 1 images that cannot be read, such as broken.jpg." in capsys.readouterr().out
    metadata = LabelReport.load(tmp_path / "out").metadata
    assert metadata["n_images"] == 20
    assert list(metadata["activations"]["skipped"]) == ["broken.jpg"]


def test_probe_tells_what_it_left_out(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(folder, tmp_path / "photos")
    (tmp_path / "photos" / "broken.jpg").write_text("no image")
    more = ("--on-error", "skip", "--no-page", "--positives", "10", "--negatives", "20", "--seeds", "0")
    assert main(probe_arguments(tmp_path / "photos", tmp_path / "out", *more)) == 0
    assert "such as broken.jpg. All stand in probes.json." in capsys.readouterr().out


def test_too_few_images_for_the_sets_fail_before_they_are_read(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(probe_arguments(folder, tmp_path)) == 2
    assert "Expected at least 300 images (100 positives and 200 negatives), but got 150" in the_line(capsys)


def test_checkpoints_that_do_not_fit_or_are_equal_are_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ("--positives", "10", "--negatives", "20", "--checkpoints")
    assert main(probe_arguments(folder, tmp_path, *sizes, str(CLIP_PATH))) == 2
    assert "Expected the weights of MobileNetV2" in the_line(capsys)
    trained = target_checkpoints()["step_05000"]
    copy = tmp_path / "copy.pt"
    copy.write_bytes(trained.read_bytes())
    assert main(probe_arguments(folder, tmp_path, *sizes, str(trained), str(copy))) == 2
    assert "'step_05000' and 'copy' have the same weights" in the_line(capsys)


def test_demo_refuses_too_few_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--images", "20", "--out", str(tmp_path)]) == 2
    assert "at least 300 images" in the_line(capsys)


@pytest.mark.parametrize("command", ["demo", "dissect", "probe"])
def test_a_folder_for_the_report_that_is_a_file_fails_before_the_images_are_read(
    command: str, folder: Path, words: Path, tmp_path: Path, no_pass: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "file"
    out.write_text("")
    arguments = {
        "demo": ["demo", "--out", str(out)],
        "dissect": dissect_arguments(folder, words, out),
        "probe": probe_arguments(folder, out),
    }
    assert main(arguments[command]) == 2
    assert "Expected a folder for the report, but" in the_line(capsys)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--positives", "10", "--negatives", "20", "--held-out", "0.999"), "0.999 of them held out leave one with a single class"),
        (("--positives", "2", "--negatives", "2", "--held-out", "0.1"), "leave one with a single class"),
        (("--positives", "10", "--negatives", "20", "--held-out", "0"), "`held_out` to be a number, above 0 and below 1"),
        (("--seeds", "0", "0"), "`seeds` to be integers"),
        (("--jobs", "0"), "`n_jobs` to be a number of"),
    ],
)
def test_a_plan_that_cannot_work_fails_before_the_images_are_read(
    more: tuple[str, ...], message: str, folder: Path, tmp_path: Path, no_pass: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(probe_arguments(folder, tmp_path, *more)) == 2
    assert message in the_line(capsys)


def test_a_layer_that_gives_no_units_fails_before_the_ranking(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ConceptSource, "rank", lambda *_, **__: pytest.fail("ranked"))
    assert main(probe_arguments(folder, tmp_path, "--positives", "10", "--negatives", "20", "--layout", "nlc")) == 2
    assert "Expected the output of 'features.1' to have 3 axes" in the_line(capsys)


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize("function", ["broken_model", "broken_transform"])
def test_the_users_own_errors_are_one_line(
    function: str,
    workers: str,
    folder: Path,
    words: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "users_own.py").write_text(
        "from torch import nn\nfrom torchvision.transforms import ToTensor\n"
        "class Broken(nn.Sequential):\n    def forward(self, x): raise ValueError('mine,\\nin two lines')\n"
        "def fail(image): raise ValueError('mine,\\nin two lines')\n"
        "def broken_model(): return Broken(nn.Flatten()), ToTensor()\ndef broken_transform(): return nn.Sequential(nn.Flatten()), fail\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "users_own", raising=False)
    model = f"users_own:{function}"
    assert main(dissect_arguments(folder, words, tmp_path / "out", "--workers", workers, model=model, layers=("0",))) == 2
    line = the_line(capsys)
    assert "in two lines" in line
    assert "Traceback" not in line


def test_usage_errors_exit_with_2_and_help_with_0() -> None:
    for arguments, code in ((["dissect"], 2), (["--help"], 0), (["probe", "--help"], 0)):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == code


def test_two_word_lists_of_one_name_are_refused_and_none_of_them_is_dropped(
    folder: Path, words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "colors.txt").write_text("orange\npink\n")
    sizes = ("--positives", "10", "--negatives", "20")
    assert main(probe_arguments(folder, tmp_path / "out", "--words", str(words), "--words", str(tmp_path / "colors.txt"), *sizes)) == 2
    assert "'colors' occurs twice" in the_line(capsys)


def test_none_in_a_word_list_is_the_groups_own(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "colors.txt").write_text("red\nblue\nnone\n")
    sizes = ("--positives", "10", "--negatives", "20")
    assert main(probe_arguments(folder, tmp_path / "out", "--words", str(tmp_path / "colors.txt"), *sizes)) == 0
    assert set(ProbeReport.load(tmp_path / "out").table["concept"]) == {"red", "blue"}


def test_both_commands_write_the_page_and_their_options(
    folder: Path, words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(dissect_arguments(folder, words, tmp_path / "labels")) == 0
    assert main(probe_arguments(folder, tmp_path / "probes", "--positives", "10", "--negatives", "20", "--seeds", "0")) == 0
    said = capsys.readouterr().out
    for out in (tmp_path / "labels", tmp_path / "probes"):
        assert (out / "index.html").is_file()
        assert (out / "run.toml").is_file()
        assert f"Open {out / 'index.html'} in a browser." in said
    assert list((tmp_path / "labels" / "images").iterdir())


def test_a_word_twice_is_refused_or_dropped(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = tmp_path / "words.txt"
    words.write_text("red\nblue\nred\n", encoding="utf-8")
    assert main(dissect_arguments(folder, words, tmp_path / "out")) == 2
    assert "'red'" in the_line(capsys)
    assert main(dissect_arguments(folder, words, tmp_path / "out", "--duplicates", "drop", "--no-page", "--resamples", "0")) == 0
    assert LabelReport.load(tmp_path / "out").metadata["n_concepts"] == 2


def test_probe_under_torchrun_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert main(probe_arguments(folder, tmp_path)) == 2
    assert "torchrun started several" in the_line(capsys)


def test_a_run_is_repeated_from_its_file(folder: Path, words: Path, tmp_path: Path) -> None:
    assert main([*dissect_arguments(folder, words, tmp_path / "first"), "--null-units", "100", "--resamples", "0", "--no-page"]) == 0
    assert not (tmp_path / "first" / "index.html").exists()
    assert main(["dissect", "--config", str(tmp_path / "first" / "run.toml"), "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "labels.csv").read_bytes() == (tmp_path / "first" / "labels.csv").read_bytes()


def test_log_levels_say_what_is_done(
    folder: Path, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    levels: list[str] = []
    monkeypatch.setattr("logging.basicConfig", lambda **settings: levels.append(settings["level"]))
    with caplog.at_level("INFO", logger="neuroprobe"):
        assert main([*dissect_arguments(folder, words, tmp_path, "--no-page", "--resamples", "0"), "--log-level", "info"]) == 0
    assert "labeling the units of 150 images" in caplog.text
    assert main(["doctor"]) == 0
    assert levels == ["INFO", "WARNING"]


def test_python_dash_m_runs_the_same_program_and_who_reads_only_the_beginning_gets_no_error() -> None:
    command = [sys.executable, "-m", "neuroprobe", "layers", "resnet18", "--all"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
