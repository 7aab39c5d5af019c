"""Image-text encoders: images and texts as vectors in one space.

`ImageTextEncoder` is the contract; anything that keeps it plugs in. `ClipEncoder`, `OpenClipEncoder` and
`TransformersEncoder` keep it: each computes in float32, never cuts a text short, knows its weights by content, and reads
files without running what they say.
"""

from __future__ import annotations

from neuroprobe.concepts.encoders._base import ImageTextEncoder, PromptTooLongError
from neuroprobe.concepts.encoders._clip import ClipEncoder, import_clip
from neuroprobe.concepts.encoders._open_clip import OpenClipEncoder
from neuroprobe.concepts.encoders._transformers import TransformersEncoder

__all__ = ["ClipEncoder", "ImageTextEncoder", "OpenClipEncoder", "PromptTooLongError", "TransformersEncoder", "import_clip"]
