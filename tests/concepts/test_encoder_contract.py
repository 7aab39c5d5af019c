"""What every image-text encoder keeps: ours of each kind, and somebody's own."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import PixelEncoder, noise_images
from tiny_encoders import WRITERS, is_installed
from torch.nn import functional as F

from neuroprobe.concepts import (
    ClipEncoder,
    ConceptGroup,
    ConceptSource,
    ImageTextEncoder,
    OpenClipEncoder,
    PromptTooLongError,
    TransformersEncoder,
    Vocabulary,
    list_encoders,
    load_encoder,
    register_encoder,
)
from neuroprobe.concepts.encoders import _base
from neuroprobe.exceptions import InputError, UnknownNameError

TEXTS = ["red", "This image has a concept: striped", "a", "縞 and 🔴", "one two three four"]
CLASSES: dict[str, Any] = {"clip": ClipEncoder, "open_clip": OpenClipEncoder, "transformers": TransformersEncoder}
OURS = [pytest.param(kind, marks=pytest.mark.skipif(not is_installed(kind), reason="an optional package")) for kind in WRITERS]
KINDS = [*OURS, "own"]


def load(kind: str, path: Path) -> Any:
    return CLASSES[kind.split()[0]](path, device="cpu")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder or file of every kind."""
    folder = tmp_path_factory.mktemp("encoders")
    return {kind: write(folder / kind.replace(" ", "_"), 0) for kind, write in WRITERS.items() if is_installed(kind)}


@pytest.fixture(scope="module")
def encoders(paths: dict[str, Path]) -> dict[str, Any]:
    return {**{kind: load(kind, path) for kind, path in paths.items()}, "own": PixelEncoder()}


def batch(encoder: ImageTextEncoder) -> torch.Tensor:
    images = noise_images(4, side=80)
    return torch.stack([encoder.transform(images[i]) for i in range(4)])


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_unit_float32_without_gradients(encoders: dict[str, Any], kind: str) -> None:
    encoder = encoders[kind]
    assert isinstance(encoder, ImageTextEncoder)
    assert not isinstance(getattr(encoder, "model", None), ImageTextEncoder)
    images, texts = encoder.encode_images(batch(encoder)), encoder.encode_texts(TEXTS)
    assert (len(images), len(texts)) == (4, 5)
    assert images.shape[1] == texts.shape[1]
    for vectors in (images, texts):
        assert vectors.dtype == torch.float32
        assert not vectors.requires_grad
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
        assert len(vectors.unique(dim=0)) == len(vectors)


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_do_not_depend_on_their_neighbors(encoders: dict[str, Any], kind: str) -> None:
    encoder = encoders[kind]
    pixels = batch(encoder)
    one_by_one = torch.cat([encoder.encode_images(pixels[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(encoder.encode_images(pixels), one_by_one, rtol=0, atol=2e-6)
    one_by_one = torch.cat([encoder.encode_texts([text]) for text in TEXTS])
    torch.testing.assert_close(encoder.encode_texts(TEXTS), one_by_one, rtol=0, atol=2e-6)
    torch.testing.assert_close(encoder.encode_texts(TEXTS[::-1]), one_by_one.flip(0), rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_more_texts_than_a_batch_keep_their_order(encoders: dict[str, Any], kind: str) -> None:
    texts = [f"{i}" for i in range(300)]
    vectors = encoders[kind].encode_texts(texts)
    torch.testing.assert_close(vectors[[5, 255, 256, 299]], encoders[kind].encode_texts(["5", "255", "256", "299"]), rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", OURS)
def test_images_of_any_size_become_one_shape(encoders: dict[str, Any], kind: str) -> None:
    encoder = encoders[kind]
    sizes = [encoder.transform(noise_images(1, side=side)[0].resize((side, 2 * side))) for side in (9, 64, 100)]
    assert len({tuple(tensor.shape) for tensor in sizes}) == 1
    assert all(tensor.dtype == torch.float32 and tensor.ndim == 3 for tensor in sizes)


@pytest.mark.parametrize("kind", OURS)
def test_the_transform_goes_to_another_process(encoders: dict[str, Any], kind: str) -> None:
    image = noise_images(1, side=70)[0]
    assert torch.equal(pickle.loads(pickle.dumps(encoders[kind].transform))(image), encoders[kind].transform(image))  # noqa: S301


@pytest.mark.parametrize("kind", OURS)
def test_the_fingerprint_is_of_the_content_not_of_the_place(paths, encoders, tmp_path: Path, kind: str) -> None:
    original, elsewhere = paths[kind], tmp_path / f"elsewhere{paths[kind].suffix}"
    (shutil.copytree if original.is_dir() else shutil.copy)(original, elsewhere)
    assert load(kind, elsewhere).fingerprint == encoders[kind].fingerprint
    assert load(kind, WRITERS[kind](tmp_path / "other", 1)).fingerprint != encoders[kind].fingerprint


def test_no_two_encoders_have_one_fingerprint(encoders: dict[str, Any]) -> None:
    assert len({encoder.fingerprint for encoder in encoders.values()}) == len(encoders)


@pytest.mark.parametrize("kind", OURS)
def test_loading_leaves_random_states_alone(paths, same_random_states, kind: str) -> None:
    with same_random_states():
        load(kind, paths[kind])


@pytest.mark.parametrize("kind", OURS)
def test_no_prompt_is_cut_short(encoders: dict[str, Any], kind: str) -> None:
    encoder = encoders[kind]
    fits = next(n for n in range(80, 0, -1) if _encodes(encoder, "red " * n))
    longest = encoder.encode_texts(["red " * fits, "red " * (fits - 1)])
    assert not torch.allclose(longest[0], longest[1], atol=1e-6)  # so the last word was read
    with pytest.raises(
        PromptTooLongError, match=r"prompts of at most \d+ tokens, but one is longer: 'red red red.*Take a shorter name"
    ) as caught:
        encoder.encode_texts(["blue", "red " * (fits + 1)])
    assert caught.value.text == "red " * (fits + 1)
    assert caught.value.limit == (40 if "siglip" in kind else 77)
    if "siglip" not in kind:
        assert fits == 75  # and the two ends


def _encodes(encoder: Any, text: str) -> bool:
    try:
        return bool(len(encoder.encode_texts([text])))
    except PromptTooLongError:
        return False


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize(
    ("wrong", "shown"), [([], r"at least one text, but got \[\]"), ("red", "one text, but got 'red'"), (["red", 3], "one is 3")]
)
def test_what_is_no_list_of_texts_is_refused(encoders: dict[str, Any], kind: str, wrong, shown: str) -> None:
    with pytest.raises(InputError, match=shown):
        encoders[kind].encode_texts(wrong)


@pytest.mark.parametrize("kind", OURS)
def test_odd_texts_have_vectors(encoders: dict[str, Any], kind: str) -> None:
    odd = ["😀", "\u200b", "a\x00b", "ﬁ", "e\u0301", "عربى", "<b>&amp;</b>", "\ud800".encode("utf-8", "replace").decode()]
    vectors = encoders[kind].encode_texts(odd)
    assert bool(torch.isfinite(vectors).all())


@pytest.mark.parametrize("kind", KINDS)
def test_concepts_are_scored_and_ranked(encoders: dict[str, Any], kind: str) -> None:
    vocabulary = Vocabulary([ConceptGroup("color", ("red", "blue"), none="none", templates=("a {}", "{}"))])
    images, encoder = noise_images(9, side=70), encoders[kind]
    scores = ConceptSource(encoder, vocabulary).score(images)
    texts = torch.stack([F.normalize(encoder.encode_texts([f"a {w}", w]).mean(dim=0), dim=0) for w in ("red", "blue", "none")])
    pixels = torch.stack([encoder.transform(images[i]) for i in range(9)])
    torch.testing.assert_close(scores.similarities(), encoder.encode_images(pixels) @ texts.T, rtol=0, atol=2e-6)
    likelihoods = torch.softmax(encoder.logit_scale * scores.similarities(), dim=1)
    torch.testing.assert_close(scores.likelihoods("color"), likelihoods, rtol=1e-4, atol=1e-6)
    assert set(scores.rank(n_positive=3, n_negative=4)) == {"red", "blue"}


@pytest.mark.parametrize("kind", [kind for kind in OURS if "siglip" in str(kind.values[0])])
def test_a_softmax_of_siglips_keeps_the_ratio_of_the_pairs_odds(encoders: dict[str, Any], kind: str) -> None:
    encoder, images = encoders[kind], noise_images(5, side=70)
    assert encoder.logit_bias < 0
    scores = ConceptSource(encoder, Vocabulary.from_words(["red", "blue", "striped"])).score(images)
    pairs = torch.sigmoid(encoder.logit_scale * scores.similarities().double() + encoder.logit_bias)  # as SigLIP is trained
    odds, softmax = pairs / (1 - pairs), scores.likelihoods("words").double()
    for other in (0, 2):
        torch.testing.assert_close(softmax[:, other] / softmax[:, 1], odds[:, other] / odds[:, 1], rtol=1e-4, atol=0)


@pytest.mark.skipif(not (is_installed("open_clip") and is_installed("transformers")), reason="optional packages")
def test_one_models_weights_give_one_vector_in_each_format(encoders: dict[str, Any]) -> None:
    clip, others = encoders["clip vit"], [encoders["open_clip"], encoders["transformers clip"]]
    pixels = batch(clip)
    for other in others:
        torch.testing.assert_close(other.encode_texts(TEXTS), clip.encode_texts(TEXTS), rtol=0, atol=2e-6)
        torch.testing.assert_close(other.encode_images(pixels), clip.encode_images(pixels), rtol=0, atol=2e-6)
        assert other.logit_scale == pytest.approx(clip.logit_scale)
        assert other.logit_bias is None
    torch.testing.assert_close(others[1].transform(noise_images(1, side=80)[0]), pixels[0], rtol=0, atol=0.02)  # resized by other code


# --- by name


@pytest.mark.parametrize("kind", [kind for kind in OURS if "open_clip" not in str(kind.values[0])])
def test_encoders_are_loaded_by_their_names(paths: dict[str, Path], encoders: dict[str, Any], kind: str) -> None:
    found = load_encoder(f"{kind.split()[0]}:{paths[kind]}", device="cpu")
    assert (type(found), found.fingerprint) == (type(encoders[kind]), encoders[kind].fingerprint)


def test_a_name_without_a_prefix_is_clips(paths: dict[str, Path], encoders: dict[str, Any]) -> None:
    assert load_encoder(paths["clip vit"], device="cpu").fingerprint == encoders["clip vit"].fingerprint
    with pytest.raises(UnknownNameError, match=r"a CLIP model's name or a checkpoint file, but got 'C:.*clip\.pt'"):
        load_encoder(r"C:\clip.pt", device="cpu")  # a drive is no prefix


@pytest.mark.skipif(not is_installed("open_clip"), reason="an optional package")
def test_open_clips_model_and_weights_are_named_together() -> None:
    with pytest.raises(UnknownNameError, match="weights of 'ViT-B-32' or a file, but got 'nothing'"):
        load_encoder("open_clip:ViT-B-32/nothing", device="cpu")
    with pytest.raises(InputError, match=r"MODEL/PRETRAINED for open_clip, such as .*, but got 'ViT-B-32'"):
        load_encoder("open_clip:ViT-B-32", device="cpu")


def test_somebodys_own_encoder_registers_itself_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_base, "_KINDS", dict(_base._KINDS))

    @register_encoder("pixels")
    class Mine(PixelEncoder):
        @classmethod
        def from_text(cls, text: str, *, device: Any, trust: bool) -> Mine:
            return cls(d=int(text))

    assert list_encoders() == ["clip", "open_clip", "pixels", "transformers"]
    assert load_encoder("pixels:5", device="cpu").encode_texts(["red"]).shape == (1, 5)
    with pytest.raises(InputError, match="a prefix that no encoder has yet, but 'pixels' is Mine"):
        register_encoder("pixels")(Mine)
