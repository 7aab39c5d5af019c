"""What was recorded, beside what was scored: whether kinds, layers and images are what they should be."""

from __future__ import annotations

from typing import Any

from neuroprobe.concepts.encoders._base import ImageTextEncoder
from neuroprobe.concepts.scores import ConceptScores
from neuroprobe.exceptions import InputError, shown
from neuroprobe.recording import Activations, ActivationSummary, Recorded


def check_kinds(recorded: Any, scores: Any) -> None:
    """Raise `InputError` unless these are activations, or a summary of them, and concept scores."""
    if not isinstance(recorded, (Activations, ActivationSummary)):
        raise InputError(f"Expected activations as ActivationRecorder makes them, but got {shown(recorded)}.")
    if not isinstance(scores, ConceptScores):
        raise InputError(f"Expected concept scores as ConceptSource or GivenLabels make them, but got {shown(scores)}.")


def check_encoder(encoder: Any) -> None:
    """Raise `InputError` unless it is an encoder of images and texts."""
    if not isinstance(encoder, ImageTextEncoder):
        raise InputError(f"Expected the image-text encoder of the scores, but got {shown(encoder)}.")


def check_same_images(recorded: Recorded, scores: ConceptScores) -> None:
    """Raise `InputError` unless what was recorded and the scores are of the same images in the same order."""
    check_kinds(recorded, scores)
    ours, theirs = recorded.metadata.get("images"), scores.metadata.get("images")
    if isinstance(recorded, Activations):
        same, known = recorded.ids == scores.ids, f"{len(recorded.ids)} images"
    else:
        ids = {name for found in recorded.statistics.values() for name in found.image_ids.values()}
        same, known = ids <= set(scores.ids), "a summary"
    if not same or ours != theirs:
        raise InputError(
            f"Expected activations and concept scores of the same images in the same order, but got {known} with fingerprint {ours} "
            f"and {len(scores.ids)} images with fingerprint {theirs}. Make both in one pass (neuroprobe.images.passes.collect)."
        )
