from __future__ import annotations

import importlib
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torchvision
from helpers import noise_images, save_clip, tiny_clip
from torch.nn import functional as F

from neuroprobe.concepts import ClipEncoder, ImageTextEncoder, import_clip
from neuroprobe.concepts.encoders._clip import _build_clip
from neuroprobe.exceptions import CheckpointError, InputError, UnknownNameError
from neuroprobe.models import resolve_device

# clip.load tries torch.jit.load first, and the archives of these tests are traced
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]

TEXTS = ["red", "This image has a concept: striped", "a", "縞模様 and 🔴", "one two three four five six seven eight nine ten"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Files of tiny CLIPs: vit.pt and resnet.pt."""
    path = tmp_path_factory.mktemp("clips")
    for kind in ("vit", "resnet"):
        save_clip(path / f"{kind}.pt", kind)
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """A TorchScript archive of the tiny ViT, as OpenAI's files are."""
    path = tmp_path_factory.mktemp("archive") / "vit.pt"
    model = tiny_clip("vit")
    tokens = import_clip().tokenize(["red"])
    model.register_buffer("input_resolution", torch.tensor(64))
    torch.jit.trace(model, (torch.rand(1, 3, 64, 64), tokens), check_trace=False).save(str(path))
    return path


def batch(encoder: ImageTextEncoder, n: int = 3) -> torch.Tensor:
    images = noise_images(n, side=80)
    return torch.stack([encoder.transform(images[i]) for i in range(n)])


# --- files of weights


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_vectors_are_those_of_clip_itself(folder: Path, kind: str) -> None:
    encoder = ClipEncoder(folder / f"{kind}.pt", device="cpu")
    theirs, transform = import_clip().load(str(folder / f"{kind}.pt"), device="cpu")
    image = noise_images(1, side=80)[0]
    assert torch.equal(encoder.transform(image), transform(image))
    pixels = batch(encoder)
    with torch.no_grad():
        images, texts = theirs.encode_image(pixels), theirs.encode_text(import_clip().tokenize(TEXTS))
    torch.testing.assert_close(encoder.encode_images(pixels), F.normalize(images, dim=1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(encoder.encode_texts(TEXTS), F.normalize(texts, dim=1), rtol=1e-5, atol=1e-6)
    assert encoder.logit_scale == pytest.approx(float(theirs.logit_scale.detach().exp()))


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_float32_weights_stay_exact(tmp_path: Path, kind: str) -> None:
    model = save_clip(tmp_path / "clip.pt", kind, half=False)
    rounded = model.text_projection.half().float()
    assert not torch.equal(rounded, model.text_projection)
    loaded = ClipEncoder(tmp_path / "clip.pt", device="cpu").model.state_dict()
    assert loaded.keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(loaded[key], value), key
        assert loaded[key].dtype == value.dtype, key


def test_float16_files_are_computed_in_float32(tmp_path: Path, folder: Path) -> None:
    state = torch.load(folder / "vit.pt", weights_only=True)
    torch.save({k: v.half() for k, v in state.items()}, tmp_path / "half.pt")
    half, whole = ClipEncoder(tmp_path / "half.pt", device="cpu"), ClipEncoder(folder / "vit.pt", device="cpu")
    assert half.fingerprint == whole.fingerprint
    assert torch.equal(half.encode_texts(TEXTS), whole.encode_texts(TEXTS))


def test_a_state_dict_under_a_key_of_its_own(tmp_path: Path, folder: Path) -> None:
    torch.save({"state_dict": torch.load(folder / "vit.pt", weights_only=True), "epoch": 3}, tmp_path / "clip.pt")
    assert ClipEncoder(tmp_path / "clip.pt", device="cpu").fingerprint == ClipEncoder(folder / "vit.pt", device="cpu").fingerprint


# --- clip's names

#: What clip's own files hold: embedding, resolution, vision layers, width and patch, text width, heads and layers.
ARCHITECTURES = {
    "RN50": (1024, 224, (3, 4, 6, 3), 64, None, 512, 8),
    "RN101": (512, 224, (3, 4, 23, 3), 64, None, 512, 8),
    "RN50x4": (640, 288, (4, 6, 10, 6), 80, None, 640, 10),
    "RN50x16": (768, 384, (6, 8, 18, 8), 96, None, 768, 12),
    "RN50x64": (1024, 448, (3, 15, 36, 10), 128, None, 1024, 16),
    "ViT-B/32": (512, 224, 12, 768, 32, 512, 8),
    "ViT-B/16": (512, 224, 12, 768, 16, 512, 8),
    "ViT-L/14": (768, 224, 24, 1024, 14, 768, 12),
    "ViT-L/14@336px": (768, 336, 24, 1024, 14, 768, 12),
}


def test_every_name_of_clip_is_known() -> None:
    assert set(ARCHITECTURES) == set(import_clip().available_models())


#: One of each kind; the larger ones take seconds each.
SMALL = ("RN50", "ViT-B/32")


@pytest.mark.parametrize("name", [name if name in SMALL else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES])
def test_every_models_architecture_follows_from_its_weights(name: str) -> None:
    d, resolution, layers, width, patch, text_width, heads = ARCHITECTURES[name]
    clip = import_clip()
    with torch.device("meta"):  # shapes alone
        theirs = clip.model.CLIP(d, resolution, layers, width, patch, 77, 49408, text_width, heads, 12)
        ours = _build_clip(clip, theirs.half().state_dict(), name)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert {v.dtype for v in ours.state_dict().values() if v.is_floating_point()} == {torch.float32}
    assert (ours.visual.input_resolution, ours.context_length) == (resolution, 77)
    assert _heads(ours) == _heads(theirs)


def _heads(model: torch.nn.Module) -> list[int]:
    return [getattr(module, "num_heads", getattr(module, "n_head", 0)) for module in model.modules()]


@pytest.mark.parametrize("name", ["RN50", "ViT-L/14@336px"])
def test_a_name_is_downloaded_to_its_place_and_read(archive: Path, folder: Path, tmp_path: Path, monkeypatch, name: str) -> None:
    asked = []

    def download(url: str, root: str) -> str:
        asked.append((url, root))
        return str(archive)

    monkeypatch.setattr(import_clip().clip, "_download", download)
    encoder = ClipEncoder(name, device="cpu", download_root=tmp_path)
    assert asked == [(import_clip().clip._MODELS[name], str(tmp_path))]
    assert encoder.fingerprint == ClipEncoder(folder / "vit.pt", device="cpu").fingerprint


# --- TorchScript archives


def test_an_archive_is_refused_unless_trusted(archive: Path) -> None:
    with pytest.raises(CheckpointError, match=r"vit\.pt' is a TorchScript archive, which can run code.*pass trust=True"):
        ClipEncoder(archive, device="cpu")


def test_a_trusted_archive_gives_the_same_encoder(archive: Path, folder: Path) -> None:
    trusted, plain = ClipEncoder(archive, device="cpu", trust=True), ClipEncoder(folder / "vit.pt", device="cpu")
    assert trusted.fingerprint == plain.fingerprint
    assert torch.equal(trusted.encode_texts(TEXTS), plain.encode_texts(TEXTS))


def test_trust_is_for_archives_only(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    torch.save(Evil(), tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="weights_only=True"):
        ClipEncoder(tmp_path / "evil.pt", device="cpu", trust=True)
    assert not (tmp_path / "owned").exists()


# --- files that hold no CLIP


@pytest.mark.parametrize("damage", ["cut at the end", "cut at the start", "empty", "text", "flipped"])
@pytest.mark.parametrize("trust", [False, True])
def test_a_damaged_file_is_refused(tmp_path: Path, folder: Path, damage: str, trust: bool) -> None:
    whole = (folder / "resnet.pt").read_bytes()
    path = tmp_path / "damaged.pt"
    path.write_bytes(
        {
            "cut at the end": whole[: len(whole) // 2],
            "cut at the start": whole[len(whole) // 2 :],
            "empty": b"",
            "text": b"these are not the weights",
            "flipped": whole[:-2000] + bytes(b ^ 0xFF for b in whole[-2000:-100]) + whole[-100:],
        }[damage]
    )
    with pytest.raises(CheckpointError, match=r"Expected a .*damaged\.pt"):
        ClipEncoder(path, device="cpu", trust=trust)


def test_a_damaged_archive_is_refused(tmp_path: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive) as whole, zipfile.ZipFile(tmp_path / "damaged.pt", "w") as damaged:
        for name in whole.namelist():
            damaged.writestr(name, whole.read(name)[: 20 if name.endswith("/data.pkl") else None])
    with pytest.raises(CheckpointError, match=r"Expected a .*damaged\.pt"):
        ClipEncoder(tmp_path / "damaged.pt", device="cpu", trust=True)


def test_another_networks_weights_are_refused_naming_what_lacks(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pt")
    with pytest.raises(
        CheckpointError, match=r"resnet18\.pt' lacks token_embedding\.weight, positional_embedding, .*logit_scale.*open_clip"
    ):
        ClipEncoder(tmp_path / "resnet18.pt", device="cpu")


def test_a_clip_of_other_tokens_is_refused(tmp_path: Path, folder: Path) -> None:
    state = torch.load(folder / "vit.pt", weights_only=True)
    state["token_embedding.weight"] = state["token_embedding.weight"][:100].clone()
    torch.save(state, tmp_path / "few.pt")
    with pytest.raises(CheckpointError, match=r"the 49408 tokens of clip's tokenizer, but '.*few\.pt' has 100"):
        ClipEncoder(tmp_path / "few.pt", device="cpu")


def test_a_clip_with_a_text_for_a_weight_is_refused(tmp_path: Path, folder: Path) -> None:
    torch.save({**torch.load(folder / "vit.pt", weights_only=True), "text_projection": "none"}, tmp_path / "text.pt")
    with pytest.raises(CheckpointError, match=r"Expected a CLIP checkpoint in clip's own format, but '.*text\.pt' does not fit it"):
        ClipEncoder(tmp_path / "text.pt", device="cpu")


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_clip_without_some_of_its_weights_is_refused(tmp_path: Path, folder: Path, kind: str) -> None:
    state = torch.load(folder / f"{kind}.pt", weights_only=True)
    for key in ("visual.conv1.weight", "transformer.resblocks.1.ln_2.bias", "ln_final.bias"):
        torch.save({k: v for k, v in state.items() if k != key}, tmp_path / "part.pt")
        with pytest.raises(CheckpointError, match=rf"(?s)part\.pt' does not fit it: .*{key}"):
            ClipEncoder(tmp_path / "part.pt", device="cpu")


def test_a_text_tower_alone_is_refused(tmp_path: Path, folder: Path) -> None:
    state = torch.load(folder / "vit.pt", weights_only=True)
    torch.save({k: v for k, v in state.items() if not k.startswith("visual")}, tmp_path / "text.pt")
    with pytest.raises(CheckpointError, match=r"text\.pt' does not fit it: .*visual"):
        ClipEncoder(tmp_path / "text.pt", device="cpu")


def test_weights_of_another_shape_are_refused(tmp_path: Path, folder: Path) -> None:
    state = torch.load(folder / "vit.pt", weights_only=True)
    torch.save({**state, "ln_final.bias": torch.zeros(3)}, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=r"(?s)odd\.pt' does not fit it: .*ln_final\.bias"):
        ClipEncoder(tmp_path / "odd.pt", device="cpu")


def test_neither_a_name_nor_a_file(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"a CLIP model's name or a checkpoint file, but got 'ViT-B/17'\. Did you mean 'ViT-B/16'"):
        ClipEncoder("ViT-B/17", device="cpu")
    with pytest.raises(UnknownNameError, match=r"or a checkpoint file, but got .*nothing\.pt'"):
        ClipEncoder(tmp_path / "nothing.pt", device="cpu")


def test_a_download_that_fails_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("in the way")
    with pytest.raises(InputError, match=r"to download CLIP 'ViT-B/32' into .*a file', but that failed .*give the path of a checkpoint"):
        ClipEncoder("ViT-B/32", device="cpu", download_root=tmp_path / "a file")
    (tmp_path / "ViT-B-32.pt").mkdir()
    with pytest.raises(InputError, match=r"to download CLIP 'ViT-B/32' into .*is not a regular file"):
        ClipEncoder("ViT-B/32", device="cpu", download_root=tmp_path)


# --- texts and devices


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpu:x", ""])
def test_an_unknown_device_is_refused(device: str, folder: Path) -> None:
    with pytest.raises(InputError, match=f"a device of this machine such as 'cpu', 'cuda' or 'auto', but got {device!r}"):
        ClipEncoder(folder / "vit.pt", device=device)


def test_devices_resolve() -> None:
    assert resolve_device("cpu") == resolve_device(torch.device("cpu")) == torch.device("cpu")
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert resolve_device("auto").type == expected


# --- importing clip


@pytest.fixture
def not_yet_imported(monkeypatch) -> Iterator[None]:
    """As if clip had not been imported; what was there comes back, and what came since goes."""
    for name in _clip_and_pkg_resources():
        monkeypatch.delitem(sys.modules, name)
    yield
    for name in _clip_and_pkg_resources():
        del sys.modules[name]


def _clip_and_pkg_resources() -> list[str]:
    return [name for name in sys.modules if name.split(".")[0] in ("clip", "pkg_resources")]


def test_clip_is_imported_where_there_is_no_pkg_resources() -> None:
    code = """
import sys, importlib.machinery
class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == "pkg_resources" else super().find_spec(name, path, target)
sys.meta_path = [Finder if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
from neuroprobe.concepts import import_clip
clip = import_clip()
print(clip.tokenize(["red"]).shape[1], "pkg_resources" in sys.modules)
try:
    import pkg_resources
except ModuleNotFoundError:
    print("gone")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["77", "False", "gone"], done.stderr


@pytest.mark.usefixtures("not_yet_imported")
@pytest.mark.parametrize("imported", [False, True])
def test_clip_is_imported_beside_a_pkg_resources_without_packaging(tmp_path: Path, monkeypatch, imported: bool) -> None:
    (tmp_path / "pkg_resources.py").write_text("REAL = True\n")  # setuptools 70 has such a one
    monkeypatch.syspath_prepend(tmp_path)
    if imported:
        importlib.import_module("pkg_resources")
    assert import_clip().tokenize(["red"]).shape == (1, 77)
    assert ("pkg_resources" in sys.modules) == imported
    assert importlib.import_module("pkg_resources").REAL


@pytest.mark.usefixtures("not_yet_imported")
def test_another_package_called_clip_is_told(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "clip.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"the package clip-anytorch as `clip`, but found another one at .*clip\.py"):
        import_clip()


@pytest.mark.usefixtures("not_yet_imported")
def test_no_stand_in_stays_after_a_failed_import(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "clip.py").write_text("import pkg_resources\nraise OSError('broken')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(OSError, match="broken"):
        import_clip()
    assert "pkg_resources" not in sys.modules


def test_no_stand_in_stays_in_this_process() -> None:
    import_clip()
    assert "pkg_resources" not in sys.modules or hasattr(sys.modules["pkg_resources"], "__file__")


def test_a_device_without_values_is_refused() -> None:
    with pytest.raises(InputError, match=r"a device that computes .* but got 'meta'"):
        resolve_device("meta")
