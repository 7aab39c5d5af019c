"""Image-text encoders: images and texts as vectors in one space.

`ImageTextEncoder` is the contract; anything that keeps it plugs in. `ClipEncoder`, `OpenClipEncoder` and
`TransformersEncoder` keep it: each computes in float32, never cuts a text short, knows its weights by content, and reads
files without running what they say.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch

from neuroprobe.clip_encoder import ClipEncoder, import_clip
from neuroprobe.collection import Transform
from neuroprobe.open_clip_encoder import OpenClipEncoder
from neuroprobe.prompts import PromptTooLongError
from neuroprobe.transformers_encoder import TransformersEncoder

__all__ = ["ClipEncoder", "ImageTextEncoder", "OpenClipEncoder", "PromptTooLongError", "TransformersEncoder", "import_clip"]


@runtime_checkable
class ImageTextEncoder(Protocol):
    """Images and texts as unit vectors whose dot product is their similarity.

    An encoder may also have ``logit_scale``, the factor (a float) its own softmax over texts puts before
    similarities; CLIP's is near 100. Ranking within a group needs it, or a temperature.

    A text longer than the encoder's context is best refused with `PromptTooLongError`, so that the concept can be named.
    """

    @property
    def transform(self) -> Transform:
        """From a PIL image to the tensor that `encode_images` takes, without the batch axis."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identifies the encoder by its weights, not by its name."""
        ...

    def encode_images(self, batch: torch.Tensor) -> torch.Tensor:
        """Unit vectors, float32 [n, d], of transformed images [n, ...]."""
        ...

    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        """Unit vectors, float32 [n, d], of texts."""
        ...
