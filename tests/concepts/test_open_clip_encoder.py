from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from helpers import noise_images, save_clip, tiny_clip
from tiny_encoders import OPEN_CLIP_CONFIG, OPEN_CLIP_SIGLIP_CONFIG, open_clip_folder, open_clip_siglip_folder

from neuroprobe.concepts import ClipEncoder, OpenClipEncoder, PromptTooLongError, import_clip
from neuroprobe.exceptions import CheckpointError, InputError, MissingDependencyError, UnknownNameError

open_clip = pytest.importorskip("open_clip")

TEXTS = ["red", "This image has a concept: striped", "a"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return open_clip_folder(tmp_path_factory.mktemp("open") / "clip")


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model that open_clip knows by name."""
    path = tmp_path_factory.mktemp("configs") / "ViT-tiny-of-a-test.json"
    path.write_text(json.dumps(OPEN_CLIP_CONFIG))
    open_clip.add_model_config(path)
    return path.stem


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_name_with_a_file_of_weights(named: str, tmp_path: Path, suffix: str) -> None:
    model, path = tiny_clip(), tmp_path / f"weights{suffix}"
    state = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
    if suffix == ".pt":
        torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}, path)  # as it is trained
    else:
        pytest.importorskip("safetensors.torch").save_file(state, path)
    encoder = OpenClipEncoder(named, pretrained=path, device="cpu")
    with torch.no_grad():
        texts = model.encode_text(import_clip().tokenize(TEXTS))
    torch.testing.assert_close(encoder.encode_texts(TEXTS), texts / texts.norm(dim=1, keepdim=True), rtol=0, atol=2e-6)


def test_a_folder_is_prepared_and_scaled_as_its_configuration_says(folder: Path) -> None:
    encoder = OpenClipEncoder(folder, device="cpu")
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    image = noise_images(1, side=90)[0]
    assert torch.equal(encoder.transform(image), transform(image))
    white = encoder.transform(image.point(lambda _: 255))
    torch.testing.assert_close(white[:, 5, 5], torch.tensor([0.5 / 0.2, 0.6 / 0.3, 0.7 / 0.4]))  # (1 - mean) / std of its file
    assert encoder.logit_scale == pytest.approx(float(model.logit_scale.detach().exp()))
    assert OpenClipEncoder(f"local-dir:{folder}", device="cpu").fingerprint == encoder.fingerprint


def test_siglip_reads_as_open_clip_does(tmp_path: Path) -> None:
    folder = open_clip_siglip_folder(tmp_path / "siglip")
    encoder = OpenClipEncoder(folder, device="cpu")
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    with torch.no_grad():
        texts = model.encode_text(tokens, normalize=True)
        images = model.encode_image(transform(noise_images(1, side=50)[0])[None], normalize=True)
    torch.testing.assert_close(encoder.encode_texts(TEXTS), texts, rtol=0, atol=1e-6)
    torch.testing.assert_close(encoder.encode_images(transform(noise_images(1, side=50)[0])[None]), images, rtol=0, atol=1e-6)
    assert (encoder.logit_scale, encoder.logit_bias) == (pytest.approx(1 / 0.07), -10.0)


def test_what_is_not_in_the_weights_is_in_the_fingerprint(folder: Path, tmp_path: Path) -> None:
    found = {OpenClipEncoder(folder, device="cpu").fingerprint}
    for name, change in {"heads": ("model_cfg", "quick_gelu", False), "mean": ("preprocess_cfg", "mean", [0.1, 0.1, 0.1])}.items():
        other = open_clip_folder(tmp_path / name)
        config = json.loads((other / "open_clip_config.json").read_text())
        config[change[0]][change[1]] = change[2]
        (other / "open_clip_config.json").write_text(json.dumps(config))
        found.add(OpenClipEncoder(other, device="cpu").fingerprint)
    assert len(found) == 3


def test_tokens_that_end_with_a_class_token_are_compared_without_it() -> None:
    class Clips:
        """Like open_clip's mode "clips": start, words, end, padding, and a class token at the very end."""

        context_length, tokenizer_mode = 8, "clips"

        def __call__(self, texts, context_length):
            words = [len(text.split()[: context_length - 3]) for text in texts]
            rows = [[101, *range(1, n + 1), 102, *[0] * (context_length - 3 - n), 103] for n in words]
            return torch.tensor(rows)

    from neuroprobe.concepts.encoders._open_clip import _whole_tokens

    assert _whole_tokens(Clips(), ["a b", "a b c d e"]).shape == (2, 8)
    with pytest.raises(PromptTooLongError, match="at most 8 tokens, but one is longer: 'a b c d e f'"):
        _whole_tokens(Clips(), ["a b", "a b c d e f"])


# --- what is refused


def test_unknown_names(named: str, tmp_path: Path) -> None:
    with pytest.raises(
        UnknownNameError, match=r"a model of open_clip, 'hf-hub:\.\.\.' or a folder, but got 'ViT-B/33'\. Did you mean 'ViT-B-32'"
    ):
        OpenClipEncoder("ViT-B/33", pretrained="openai", device="cpu")
    with pytest.raises(UnknownNameError, match=r"weights of 'ViT-B-32' or a file, but got 'openay'\. Did you mean 'openai'"):
        OpenClipEncoder("ViT-B/32", pretrained="openay", device="cpu")
    with pytest.raises(UnknownNameError, match=r"weights of 'ViT-tiny-of-a-test' or a file, but got .*nothing\.pt"):
        OpenClipEncoder(named, pretrained=tmp_path / "nothing.pt", device="cpu")


def test_weights_must_be_named_once(folder: Path) -> None:
    with pytest.raises(InputError, match=r"`pretrained` for 'ViT-B-32': a file of weights, or one of \['openai', "):
        OpenClipEncoder("ViT-B-32", device="cpu")
    with pytest.raises(InputError, match=r"no `pretrained` for 'local-dir:.*which has its own weights, but got 'openai'"):
        OpenClipEncoder(folder, pretrained="openai", device="cpu")


def test_a_folder_without_weights_or_configuration(tmp_path: Path) -> None:
    open_clip_folder(tmp_path / "bare")
    (tmp_path / "bare" / "open_clip_model.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"a model of open_clip, but 'local-dir:.*bare' cannot be loaded: Required pretrained weights"
    ):
        OpenClipEncoder(tmp_path / "bare", device="cpu")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"the configuration of 'local-dir:.*empty', but it cannot be read"):
        OpenClipEncoder(tmp_path / "empty", device="cpu")
    (tmp_path / "empty" / "open_clip_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"the configuration of 'local-dir:.*empty', but it cannot be read"):
        OpenClipEncoder(tmp_path / "empty", device="cpu")


def test_weights_of_another_model_are_refused(named: str, tmp_path: Path) -> None:
    save_clip(tmp_path / "resnet.pt", "resnet")
    with pytest.raises(CheckpointError, match=r"'ViT-tiny-of-a-test with .*resnet\.pt' cannot be loaded: Error.* in loading state_dict"):
        OpenClipEncoder(named, pretrained=tmp_path / "resnet.pt", device="cpu")


def test_no_file_runs_code(named: str, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    torch.save(Evil(), tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match=r"evil\.pt' cannot be loaded: it is damaged or holds more than tensors"):
        OpenClipEncoder(named, pretrained=tmp_path / "evil.pt", device="cpu")
    assert not (tmp_path / "owned").exists()


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_an_archive_is_refused(named: str, tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "archive.pt")
    with pytest.raises(
        CheckpointError, match=r"archive\.pt' is a TorchScript archive, which can run code.*OpenAI's files with ClipEncoder"
    ):
        OpenClipEncoder(named, pretrained=tmp_path / "archive.pt", device="cpu")


def test_a_configuration_that_asks_for_code_is_refused(tmp_path: Path) -> None:
    folder = open_clip_siglip_folder(tmp_path / "siglip")
    text = {**OPEN_CLIP_SIGLIP_CONFIG["text_cfg"], "tokenizer_kwargs": {"trust_remote_code": True}}  # type: ignore[dict-item]
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {**OPEN_CLIP_SIGLIP_CONFIG, "text_cfg": text}}))
    with pytest.raises(CheckpointError, match=r"without code of its own, but the configuration of .* asks for `trust_remote_code`"):
        OpenClipEncoder(folder, device="cpu")


def test_a_folder_without_its_tokenizer(tmp_path: Path) -> None:
    folder = open_clip_siglip_folder(tmp_path / "siglip")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"the tokenizer of 'local-dir:.*siglip', but it cannot be loaded"):
        OpenClipEncoder(folder, device="cpu")


def test_without_open_clip_the_package_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(
        MissingDependencyError, match=r"open_clip_torch for OpenClipEncoder\. Install it: pip install 'neuroprobe-clip\[openclip\]'"
    ):
        OpenClipEncoder("ViT-B-32", pretrained="openai")


def test_openais_weights_may_come_from_either_package(named: str, tmp_path: Path) -> None:
    save_clip(tmp_path / "clip.pt")
    ours, theirs = ClipEncoder(tmp_path / "clip.pt", device="cpu"), OpenClipEncoder(named, pretrained=tmp_path / "clip.pt", device="cpu")
    torch.testing.assert_close(ours.encode_texts(TEXTS), theirs.encode_texts(TEXTS), rtol=0, atol=2e-6)
    assert ours.fingerprint != theirs.fingerprint
