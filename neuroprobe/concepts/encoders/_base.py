"""What encoders refuse about texts, in the same words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch

from neuroprobe.exceptions import InputError
from neuroprobe.images import Transform

_SHOWN = 60


class PromptTooLongError(InputError):
    """A text has more tokens than the encoder reads; it is never cut short.

    Parameters
    ----------
    text : str
        The text; kept as the attribute ``text``.
    limit : int
        Tokens the encoder reads, its marks of start and end included.
    concept : str, optional
        The concept the text is a prompt of.
    """

    def __init__(self, text: str, limit: int, concept: str | None = None) -> None:
        self.text, self.limit = text, limit
        whose = "" if concept is None else f" of the concept {shortened(concept)}"
        super().__init__(
            f"Expected prompts of at most {limit} tokens, but one is longer: {shortened(text)}{whose}. Take a shorter name or template."
        )


def shortened(text: str) -> str:
    """A text as it is shown in a message: its beginning, and how long it is."""
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}... ({len(text):,} characters)"


def check_texts(texts: Sequence[str]) -> None:
    """Texts must be a list of at least one.

    Raises
    ------
    InputError
    """
    if isinstance(texts, str) or not len(texts):
        raise InputError(f"Expected a list of at least one text, but got {texts!r}.")
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"Expected a list of texts, but one is {text!r:.80}.")


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
