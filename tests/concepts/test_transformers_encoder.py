from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import noise_images
from tiny_encoders import transformers_clip_folder, transformers_siglip_folder, write_clip_tokenizer

from neuroprobe.concepts import TransformersEncoder, import_clip
from neuroprobe.exceptions import CheckpointError, InputError, MissingDependencyError

transformers = pytest.importorskip("transformers")

TEXTS = ["red", "This image has a concept: striped", "a"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return transformers_clip_folder(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return transformers_siglip_folder(tmp_path_factory.mktemp("siglip"))


@pytest.fixture(scope="module")
def clip_encoder(clip: Path) -> TransformersEncoder:
    return TransformersEncoder(clip, device="cpu")


@pytest.fixture(scope="module")
def siglip_encoder(siglip: Path) -> TransformersEncoder:
    return TransformersEncoder(siglip, device="cpu")


def in_memory(folder: Path) -> tuple[Any, Any]:
    return transformers.AutoModel.from_pretrained(folder), transformers.AutoProcessor.from_pretrained(folder)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_similarities_are_those_of_the_model_itself(request, kind: str) -> None:
    encoder = request.getfixturevalue(f"{kind}_encoder")
    model, processor = in_memory(request.getfixturevalue(kind))
    images = noise_images(3, side=70)
    padding = "max_length" if kind == "siglip" else True
    inputs = processor(text=TEXTS, images=[images[i] for i in range(3)], padding=padding, return_tensors="pt")
    names = ["input_ids", "pixel_values", *(["attention_mask"] if kind == "clip" else [])]
    with torch.no_grad():
        expected = model(**{name: inputs[name] for name in names}).logits_per_image
    pixels = torch.stack([encoder.transform(images[i]) for i in range(3)])
    torch.testing.assert_close(pixels, inputs["pixel_values"])
    similarities = encoder.encode_images(pixels) @ encoder.encode_texts(TEXTS).T
    torch.testing.assert_close(encoder.logit_scale * similarities + (encoder.logit_bias or 0), expected, rtol=1e-4, atol=1e-5)


def test_the_scale_and_bias_are_the_models(clip_encoder, siglip_encoder) -> None:
    assert siglip_encoder.logit_scale == pytest.approx(2.718281828**2)
    assert siglip_encoder.logit_bias == -3.5
    assert clip_encoder.logit_scale == pytest.approx(1 / 0.07, rel=1e-3)
    assert clip_encoder.logit_bias is None


def test_tokens_are_those_of_clip(clip: Path) -> None:
    texts = ["Red, and BLUE!", "縞 🔴", "don't  stop", "12345"]
    tokens = transformers.AutoTokenizer.from_pretrained(clip)(texts, padding="max_length", max_length=77)["input_ids"]
    ends = [row.index(49407) for row in tokens]
    assert [row[: end + 1] for row, end in zip(tokens, ends, strict=True)] == [
        row[: end + 1].tolist() for row, end in zip(import_clip().tokenize(texts), ends, strict=True)
    ]


# --- a model in memory


def test_a_model_in_memory_is_copied_and_left_alone(siglip: Path, siglip_encoder) -> None:
    model, processor = in_memory(siglip)
    model.train()
    encoder = TransformersEncoder(model, processor=processor, device="cpu")
    assert model.training
    assert encoder.fingerprint == siglip_encoder.fingerprint
    before = encoder.encode_texts(TEXTS)
    with torch.no_grad():
        model.text_model.head.weight.mul_(-1)
    assert torch.equal(encoder.encode_texts(TEXTS), before)
    assert TransformersEncoder(model, processor=processor, device="cpu").fingerprint != encoder.fingerprint


def test_half_precision_is_computed_in_float32(siglip: Path, siglip_encoder) -> None:
    model, processor = in_memory(siglip)
    half = TransformersEncoder(model.half(), processor=processor, device="cpu")
    assert half.encode_texts(TEXTS).dtype == torch.float32
    torch.testing.assert_close(half.encode_texts(TEXTS), siglip_encoder.encode_texts(TEXTS), rtol=0, atol=1e-3)


def test_what_is_not_in_the_weights_is_in_the_fingerprint(siglip: Path) -> None:
    model, processor = in_memory(siglip)
    found = {TransformersEncoder(model, processor=processor, device="cpu").fingerprint}
    processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    found.add(TransformersEncoder(model, processor=processor, device="cpu").fingerprint)
    processor.tokenizer.add_tokens(["zigzagged"])
    found.add(TransformersEncoder(model, processor=processor, device="cpu").fingerprint)
    model.config.text_config.layer_norm_eps = 0.1
    found.add(TransformersEncoder(model, processor=processor, device="cpu").fingerprint)
    assert len(found) == 4


def test_using_the_tokenizer_changes_no_fingerprint(siglip: Path) -> None:
    model, processor = in_memory(siglip)
    before = TransformersEncoder(model, processor=processor, device="cpu").fingerprint
    processor.tokenizer(TEXTS, padding="max_length", max_length=50, truncation=True)
    assert TransformersEncoder(model, processor=processor, device="cpu").fingerprint == before


def test_a_model_in_memory_needs_a_processor_of_images_and_texts(clip: Path) -> None:
    model, processor = in_memory(clip)
    with pytest.raises(InputError, match=r"a processor for a model in memory: TransformersEncoder\(model, processor=processor\)"):
        TransformersEncoder(model, device="cpu")
    with pytest.raises(InputError, match=r"a processor of images and texts, but CLIPTokenizer\w* lacks image_processor, tokenizer"):
        TransformersEncoder(model, processor=processor.tokenizer, device="cpu")
    with pytest.raises(
        InputError, match=r"an image-text model such as CLIPModel or SiglipModel, but CLIPTextTransformer|CLIPTextModel.* lacks get_image"
    ):
        TransformersEncoder(model.text_model, processor=processor, device="cpu")
    with pytest.raises(InputError, match="a folder, a name on the Hugging Face hub, or a model, but got 3"):
        TransformersEncoder(3, device="cpu")  # type: ignore[arg-type]


def test_an_image_processor_of_more_than_one_tensor_is_refused(clip: Path) -> None:
    model, processor = in_memory(clip)

    class Patches:
        """As SigLIP 2 of any size has: patches, and which of them are of the image."""

        def __call__(self, images, return_tensors):
            return {"pixel_values": torch.zeros(1, 4, 12), "pixel_attention_mask": torch.ones(1, 4)}

    class Processor:
        tokenizer, image_processor = processor.tokenizer, Patches()

    with pytest.raises(InputError, match=r"`pixel_values` alone, but it makes \['pixel_attention_mask', 'pixel_values'\]"):
        TransformersEncoder(model, processor=Processor(), device="cpu")


# --- texts


def test_siglip_with_its_own_tokenizer(siglip: Path, siglip_encoder, tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["red blue striped this image has a concept"] * 20),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
        bos_id=-1,
        unk_id=2,
        eos_id=1,
        pad_id=0,
    )
    tokenizer = transformers.SiglipTokenizer(str(tmp_path / "spiece.model"))
    model, processor = in_memory(siglip)
    own = transformers.SiglipProcessor(image_processor=processor.image_processor, tokenizer=tokenizer)
    encoder = TransformersEncoder(model, processor=own, device="cpu")
    with torch.no_grad():
        ids = tokenizer(TEXTS, padding="max_length", max_length=40, return_tensors="pt")["input_ids"]
        features = model.get_text_features(input_ids=ids)
    expected = features if isinstance(features, torch.Tensor) else features.pooler_output
    torch.testing.assert_close(encoder.encode_texts(TEXTS), torch.nn.functional.normalize(expected, dim=1), rtol=0, atol=1e-6)
    assert encoder.fingerprint != siglip_encoder.fingerprint


# --- files


def test_weights_of_torch_save_are_read_safely(clip_encoder, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    folder = transformers_clip_folder(tmp_path / "bin", safe=False)
    assert TransformersEncoder(folder, device="cpu").fingerprint == clip_encoder.fingerprint

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    torch.save(Evil(), folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"a CLIP or SigLIP, but '.*bin' cannot be loaded: "):
        TransformersEncoder(folder, device="cpu")
    assert not (tmp_path / "owned").exists()


def test_a_model_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    folder = transformers_clip_folder(tmp_path)
    state = safetensors.load_file(folder / "model.safetensors")
    safetensors.save_file({k: v for k, v in state.items() if k != "text_projection.weight"}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"all weights of a CLIPModel, but .* lacks 1, such as 'text_projection\.weight'"):
        TransformersEncoder(folder, device="cpu")


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')\n")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "code.C", "AutoModel": "code.M"}}))
    with pytest.raises(CheckpointError, match=r"a model of transformers' own, but .* needs code of its own, which is not run"):
        TransformersEncoder(tmp_path, device="cpu")
    assert not (tmp_path / "owned").exists()


def test_a_folder_with_another_model_is_refused(tmp_path: Path) -> None:
    config = transformers.BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    transformers.BertModel(config).save_pretrained(tmp_path)
    write_clip_tokenizer(tmp_path)
    with pytest.raises((InputError, CheckpointError), match=r"Expected (an image-text model|a folder)"):
        TransformersEncoder(tmp_path, device="cpu")


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"with a CLIP or SigLIP, but '.*' cannot be loaded: "):
        TransformersEncoder(tmp_path, device="cpu")
    with pytest.raises(CheckpointError, match=r"with a CLIP or SigLIP, but '.*nothing' cannot be loaded: "):
        TransformersEncoder(tmp_path / "nothing", device="cpu")


def test_without_transformers_the_package_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        MissingDependencyError, match=r"transformers for TransformersEncoder\. Install it: pip install 'neuroprobe-clip\[transformers\]'"
    ):
        TransformersEncoder("openai/clip-vit-base-patch32")
