"""The world's CLIP: as good as its model card says, on images it was not trained on, and readable by clip itself."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

from neuroprobe import ClipEncoder
from neuroprobe.concepts import import_clip
from neuroprobe.world import CLIP_PATH, load_target, target_checkpoints, world_images
from neuroprobe.world._training import precisions_at, target_accuracies, zero_shot_accuracies


@pytest.fixture(scope="module")
def encoder() -> ClipEncoder:
    return ClipEncoder(CLIP_PATH, device="cpu")


@pytest.mark.parametrize(("combinations", "least"), [("seen", 0.99), ("unseen", 0.96)])
def test_zero_shot_accuracy_on_combinations_seen_and_never_seen(encoder: ClipEncoder, combinations: str, least: float) -> None:
    accuracies = zero_shot_accuracies(encoder, n_images=600, seed=101, combinations=combinations)  # type: ignore[arg-type]
    assert accuracies.keys() == {"shape", "color", "pattern"}
    assert min(accuracies.values()) >= least


def test_the_hundred_likeliest_images_show_the_concept_none_included(encoder: ClipEncoder) -> None:
    precisions = precisions_at(100, encoder, n_images=1500, seed=102)
    assert len(precisions) == 12
    assert min(precisions.values()) >= 0.97


def test_clip_itself_reads_the_file_and_gives_the_same_vectors(encoder: ClipEncoder) -> None:
    clip = import_clip()
    model, transform = clip.load(str(CLIP_PATH), device="cpu")
    image = transform(world_images(1)[0])[None]
    with torch.no_grad():
        vector = torch.nn.functional.normalize(model.encode_image(image), dim=1)
        text = torch.nn.functional.normalize(model.encode_text(clip.tokenize(["a dotted red star"])), dim=1)
    assert torch.allclose(vector, encoder.encode_images(image), atol=1e-6)
    assert torch.allclose(text, encoder.encode_texts(["a dotted red star"]), atol=1e-6)


def test_unknown_words_around_a_concept_change_little(encoder: ClipEncoder) -> None:
    plain, wrapped, other = encoder.encode_texts(["a red circle", "cathedral a red circle", "a striped blue star"])
    assert plain @ wrapped > 0.9
    assert plain @ other < 0.7


def test_the_files_are_those_of_the_records() -> None:
    folder = next(iter(target_checkpoints().values())).parent
    for record, files in ((CLIP_PATH.with_suffix(".json"), [CLIP_PATH]), (folder / "record.json", list(target_checkpoints().values()))):
        recorded = json.loads(record.read_text())["sha256"]
        assert recorded == {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_the_trained_target_is_as_good_as_its_record() -> None:
    figures = target_accuracies(load_target(), n_images=400, seed=103)
    assert figures["accuracy"] > 0.99
    assert figures["balanced_accuracy"] > 0.98
