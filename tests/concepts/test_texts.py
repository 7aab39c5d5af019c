from __future__ import annotations

import io
import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import PixelEncoder, noise_images
from torch.nn import functional as F

from neuroprobe.concepts import ClipEncoder, ConceptGroup, ConceptSource, PromptTooLongError, Vocabulary
from neuroprobe.concepts._texts import TextCache, embed_texts
from neuroprobe.exceptions import InputError, StoreError
from neuroprobe.world import CLIP_PATH


class Counting(PixelEncoder):
    """Keeps the texts it was asked for."""

    def __init__(self, fingerprint: str = "pixels-7") -> None:
        super().__init__()
        self.fingerprint = fingerprint
        self.asked: list[str] = []

    def encode_texts(self, texts):
        self.asked += texts
        return super().encode_texts(texts)


class Quick(Counting):
    """Vectors from the texts' digests, for many texts."""

    def encode_texts(self, texts):
        self.asked += texts
        numbers = torch.tensor([[hash_of(text, i) for i in range(4)] for text in texts], dtype=torch.float32)
        return F.normalize(numbers, dim=1)


def hash_of(text: str, salt: int) -> int:
    return sum((salt + 2) ** (i % 5) * ord(letter) for i, letter in enumerate(text)) % 997 + 1


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.npz"))


# --- embedding


def test_each_text_is_embedded_once_and_in_its_place() -> None:
    encoder = Counting()
    vectors = embed_texts(encoder, ["red", "blue", "red", "green", "blue"])
    assert encoder.asked == ["red", "blue", "green"]
    assert torch.equal(vectors, PixelEncoder().encode_texts(["red", "blue", "red", "green", "blue"]))


def test_a_progress_bar_if_asked_for(capsys) -> None:
    embed_texts(PixelEncoder(), ["red", "blue"], progress=True)
    assert "2/2" in capsys.readouterr().err
    embed_texts(PixelEncoder(), ["red", "blue"])
    assert capsys.readouterr().err == ""


def test_templates_and_concepts_together_against_a_slow_loop(tmp_path: Path) -> None:
    encoder = ClipEncoder(CLIP_PATH, device="cpu")
    groups = [
        ConceptGroup("color", ("red", "blue", "green"), none="none", templates="clip-7"),
        ConceptGroup("pattern", ("striped", "dotted"), templates=("{}", "a {} thing")),
        ConceptGroup("shape", ("circle",)),
    ]
    expected = []
    for group in groups:
        for name in group.names:
            unit = [encoder.encode_texts([template.replace("{}", name)])[0] for template in group.templates]
            mean = sum(vector / vector.norm() for vector in unit) / len(unit)
            expected.append(mean / mean.norm())
    for cache in (None, tmp_path, tmp_path):  # without one, written, read
        vectors = ConceptSource(encoder, Vocabulary(groups), text_cache=cache).text_vectors()
        torch.testing.assert_close(vectors, torch.stack(expected), rtol=0, atol=2e-6)
    logits = torch.stack(expected) @ torch.stack(expected).T
    assert float(logits.fill_diagonal_(0).max()) < 0.999  # so that a mix-up would show


def test_an_ensemble_by_hand() -> None:
    class Plane(PixelEncoder):
        vectors = {"a x": [1.0, 0.0], "b x": [0.0, 1.0], "a y": [0.6, 0.8], "b y": [0.0, 1.0]}  # noqa: RUF012

        def encode_texts(self, texts):
            return torch.tensor([self.vectors[text] for text in texts])

    vectors = ConceptSource(Plane(), Vocabulary.from_words(["x", "y"], templates=["a {}", "b {}"])).text_vectors()
    torch.testing.assert_close(vectors, torch.tensor([[0.5**0.5, 0.5**0.5], [1 / 10**0.5, 3 / 10**0.5]]))


def test_prompts_that_cancel_out_are_refused() -> None:
    class Line(PixelEncoder):
        def encode_texts(self, texts):
            return torch.tensor([[-1.0 if text.startswith("no ") else 1.0] for text in texts])

    source = ConceptSource(Line(), Vocabulary.from_words(["red", "blue"], templates=["{}", "no {}"]))
    with pytest.raises(InputError, match="prompts of 'red' with a mean, but their vectors cancel out"):
        source.text_vectors()


# --- the cache


def test_what_is_kept_is_not_embedded_again(tmp_path: Path) -> None:
    first, second = Counting(), Counting()
    vectors = embed_texts(first, ["red", "blue"], cache=tmp_path)
    again = embed_texts(second, ["green", "blue", "red"], cache=tmp_path)
    assert (first.asked, second.asked) == (["red", "blue"], ["green"])
    assert torch.equal(again, torch.stack([PixelEncoder().encode_texts(["green"])[0], vectors[1], vectors[0]]))
    third = Counting()
    embed_texts(third, ["red", "green", "blue"], cache=tmp_path)
    assert third.asked == []


def test_another_encoder_gets_nothing_of_it(tmp_path: Path) -> None:
    embed_texts(Counting("one"), ["red"], cache=tmp_path)
    other = Counting("another")
    embed_texts(other, ["red"], cache=tmp_path)
    assert other.asked == ["red"]


def test_lists_of_one_name_and_other_words_are_told_apart(tmp_path: Path) -> None:
    for words in ("red\nblue", "blue\nred", "green"):
        (tmp_path / "words.txt").write_text(words)
        source = ConceptSource(Counting(), Vocabulary.from_file(tmp_path / "words.txt"), text_cache=tmp_path / "cache")
        torch.testing.assert_close(source.text_vectors(), PixelEncoder().encode_texts(words.split()), rtol=0, atol=1e-6)


def test_texts_that_are_nearly_equal_are_told_apart(tmp_path: Path) -> None:
    texts = ["é", "e\u0301", "red", "red ", "Red", "\u200bred", "red\n", "紅", "\ud800"]
    quick = Quick()
    embed_texts(quick, texts, cache=tmp_path)
    assert quick.asked == texts
    assert torch.equal(embed_texts(Quick(), texts[::-1], cache=tmp_path), Quick().encode_texts(texts[::-1]))


def test_scores_are_the_same_with_and_without(tmp_path: Path) -> None:
    vocabulary, images = Vocabulary.probing_blog(), noise_images(5)
    without = ConceptSource(PixelEncoder(), vocabulary).score(images)
    for _ in range(2):
        cached = ConceptSource(Counting(), vocabulary, text_cache=tmp_path).score(images)
        assert torch.equal(cached.similarities(), without.similarities())


@pytest.mark.parametrize(
    "damage", ["cut", "empty", "flipped vectors", "flipped digests", "text", "npy", "pickle", "other arrays", "too few"]
)
def test_a_damaged_file_counts_as_absent(tmp_path: Path, damage: str) -> None:
    texts = ["red", "blue", "green"]
    vectors = embed_texts(Counting(), texts, cache=tmp_path)
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    if damage in ("npy", "pickle", "other arrays", "too few"):
        with path.open("wb") as file:
            digests = np.load(io.BytesIO(whole))["digests"]
            if damage == "npy":
                np.save(file, np.zeros(3))
            elif damage == "pickle":
                np.savez(file, digests=np.array([{}], dtype=object), vectors=np.zeros((1, 2)))
            elif damage == "other arrays":
                np.savez(file, a=np.zeros(3))
            else:
                np.savez(file, digests=digests, vectors=np.zeros((2, 16), dtype=np.float32))
    else:
        where = whole.index(vectors.numpy().tobytes()) if damage == "flipped vectors" else whole.index(b"digests.npy") + 160
        flipped = whole[:where] + bytes([whole[where] ^ 1]) + whole[where + 1 :]
        path.write_bytes({"cut": whole[:-50], "empty": b"", "text": b"no vectors"}.get(damage, flipped))
    encoder = Counting()
    assert torch.equal(embed_texts(encoder, texts, cache=tmp_path), vectors)
    assert encoder.asked == texts
    last = Counting()
    assert torch.equal(embed_texts(last, texts, cache=tmp_path), vectors)
    assert last.asked == []  # what was damaged is there again


def test_a_file_under_another_encoders_name_is_not_looked_for(tmp_path: Path) -> None:
    embed_texts(Counting("one"), ["red"], cache=tmp_path)
    assert [path.parent for path in files(tmp_path)] == [TextCache(tmp_path, Counting("one")).folder]
    assert not files(tmp_path / "elsewhere")


def test_a_folder_that_cannot_be_is_told_before_anything_is_embedded(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    encoder = Counting()
    with pytest.raises(StoreError, match=r"a folder for text vectors, but '.*file' cannot be written"):
        ConceptSource(encoder, Vocabulary.from_words(["red"]), text_cache=tmp_path / "file").text_vectors()
    assert encoder.asked == []


def test_what_was_embedded_before_an_interruption_is_kept(tmp_path: Path) -> None:
    class Failing(Quick):
        def encode_texts(self, texts):
            if len(self.asked) >= 4096:
                raise KeyboardInterrupt
            return super().encode_texts(texts)

    texts = [f"word {i}" for i in range(6000)]
    with pytest.raises(KeyboardInterrupt):
        embed_texts(Failing(), texts, cache=tmp_path)
    rest = Quick()
    vectors = embed_texts(rest, texts, cache=tmp_path)
    assert rest.asked == texts[4096:]
    assert torch.equal(vectors, Quick().encode_texts(texts))


def _write_and_check(folder: Path) -> None:
    for start in range(0, 60, 3):
        texts = [f"word {i}" for i in range(start, start + 40)]
        assert torch.equal(embed_texts(Quick(), texts, cache=folder), Quick().encode_texts(texts))


def test_writers_at_once_leave_whole_files(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    running = [context.Process(target=_write_and_check, args=(tmp_path,)) for _ in range(3)]
    for process in running:
        process.start()
    for process in running:
        process.join(timeout=120)
    assert [process.exitcode for process in running] == [0] * 3
    reader, texts = Quick(), [f"word {i}" for i in range(97)]
    assert torch.equal(embed_texts(reader, texts, cache=tmp_path), Quick().encode_texts(texts))
    assert reader.asked == []
    assert not list(tmp_path.glob("**/*.part"))


# --- hostile vocabularies


def test_a_hundred_thousand_words(tmp_path: Path) -> None:
    vocabulary = Vocabulary.from_words([f"word {i}" for i in range(100_000)])
    started = time.perf_counter()
    first, second = Quick(), Quick()
    vectors = ConceptSource(first, vocabulary, text_cache=tmp_path).text_vectors()
    assert vectors.shape == (100_000, 4)
    assert torch.equal(ConceptSource(second, vocabulary, text_cache=tmp_path).text_vectors(), vectors)
    assert (len(first.asked), len(second.asked), len(files(tmp_path))) == (100_000, 0, 49)
    assert time.perf_counter() - started < 60  # quadratic work would take hours


def test_a_concept_that_is_too_long_is_named_before_the_images_are_read() -> None:
    encoder = ClipEncoder(CLIP_PATH, device="cpu")
    name = "antidisestablishmentarianism " * 345
    vocabulary = Vocabulary.from_words(["red", name.strip()], templates="a photo of a {}.")
    with pytest.raises(PromptTooLongError) as caught:
        ConceptSource(encoder, vocabulary).consumer()
    message = str(caught.value)
    assert "at most 77 tokens" in message
    assert "of the concept 'antidisestablishmentarianism" in message
    assert "(10,004 characters). Take a shorter name" in message
    assert len(message) < 350


def test_one_word_and_words_of_other_scripts() -> None:
    encoder = ClipEncoder(CLIP_PATH, device="cpu")
    assert ConceptSource(encoder, Vocabulary.from_words(["red"])).text_vectors().shape == (1, 64)
    words = ["красный", "縞模様", "أحمر", "🔴", "é", "e\u0301x"]
    vectors = ConceptSource(encoder, Vocabulary.from_words(words)).text_vectors()
    torch.testing.assert_close(vectors, torch.cat([encoder.encode_texts([word]) for word in words]), rtol=0, atol=2e-6)
    assert bool(torch.isfinite(vectors).all())
