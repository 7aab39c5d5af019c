"""Whole probing sets: from streams, as summaries, several consumers in one pass, mixed layers and large series."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from neuroprobe import ActivationRecorder, ClipEncoder, ConceptSource, Images, Vocabulary
from neuroprobe.exceptions import InputError
from neuroprobe.images import collect
from neuroprobe.world import CLIP_PATH, load_target, target_transform, world_images

LAYERS = ["features.2", "features.18", "classifier"]
TRANSFORM = target_transform()


@pytest.fixture(scope="module")
def target() -> nn.Module:
    return load_target()


@pytest.fixture(scope="module")
def images() -> Images:
    return world_images(50, seed=6)


def stream_of(images: Images) -> Images:
    """The same images without length or positions."""

    def samples() -> Iterator[dict]:
        for i in range(len(images)):
            yield {"__key__": images.ids[i], "image": images[i]}

    return Images(samples)


def test_a_stream_gives_the_same_bits_as_a_dataset(target: nn.Module, images: Images, tmp_path: Path) -> None:
    recorder = ActivationRecorder(target, LAYERS)
    here = recorder.record(images, transform=TRANSFORM, batch_size=8)
    stream = stream_of(images)
    for there in (
        recorder.record(stream, transform=TRANSFORM, batch_size=8),
        recorder.record(stream, transform=TRANSFORM, batch_size=8, store=tmp_path / "s"),
    ):
        assert there.ids == here.ids
        for layer in LAYERS:
            assert there[layer].tobytes() == here[layer].tobytes()


def test_summaries_hold_what_plain_numpy_finds(target: nn.Module, images: Images) -> None:
    recorder = ActivationRecorder(target, LAYERS)
    whole = recorder.record(images, transform=TRANSFORM, batch_size=8)
    summary = recorder.summarize(images, transform=TRANSFORM, batch_size=8, k=5)
    assert summary.layers == tuple(LAYERS)
    for layer in LAYERS:
        values, found = whole[layer].astype(np.float64), summary[layer]
        order = np.argsort(-values, axis=0, kind="stable")[:5].T
        assert (found.top_ids == np.array(whole.ids, dtype=object)[order]).all()
        assert np.array_equal(found.top_values, np.take_along_axis(whole[layer].T, order, axis=1))
        assert np.allclose(found.mean, values.mean(axis=0), rtol=1e-12, atol=1e-15)
        assert np.allclose(found.variance, values.var(axis=0), rtol=1e-9, atol=1e-15)
        assert np.array_equal(found.active, (values > 0).mean(axis=0))
        assert found.count == 50
    assert summary.metadata["model"] == whole.metadata["model"]


def test_one_pass_serves_recorder_and_concepts_and_decodes_once(target: nn.Module, images: Images) -> None:
    read: list[int] = []

    class Counted:
        ids = tuple(images.ids)

        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, index: int) -> object:
            read.append(index)
            return images[index]

    source = ConceptSource(ClipEncoder(CLIP_PATH, device="cpu"), Vocabulary.from_words(["red", "blue"]))
    recorder = ActivationRecorder(target, LAYERS)
    activations, scores = collect(Images(Counted()), [recorder.consumer(TRANSFORM), source.consumer()], batch_size=8)
    assert read == list(range(50))
    assert (activations["classifier"] == recorder.record(images, transform=TRANSFORM, batch_size=8)["classifier"]).all()
    assert (scores.similarities() == source.score(images, batch_size=8).similarities()).all()


def test_what_cannot_be_kept_fails_before_the_run(target: nn.Module, images: Images) -> None:
    recorder = ActivationRecorder(target, LAYERS)
    with pytest.raises(InputError, match="'float32' or 'float16', but got 'bfloat16'"):
        recorder.record(images, transform=TRANSFORM, dtype="bfloat16")  # type: ignore[arg-type]


def test_a_device_is_for_the_pass_alone(target: nn.Module, images: Images) -> None:
    recorder = ActivationRecorder(target, LAYERS)
    before = {name: id(parameter) for name, parameter in target.named_parameters()}
    for device in ("cpu", "auto"):
        found = recorder.record(images, transform=TRANSFORM, batch_size=8, device=device)
        assert found.ids == images.ids
        assert {name: id(parameter) for name, parameter in target.named_parameters()} == before
        assert next(target.parameters()).device.type == "cpu"
    with pytest.raises(InputError, match="a device of this machine"):
        recorder.summarize(images, transform=TRANSFORM, device="warp")
