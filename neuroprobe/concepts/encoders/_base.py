"""The contract of image-text encoders, what ours share, and their names.

An encoder is one file of this folder: a class with `@register_encoder("prefix")`, by which `load_encoder` finds it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar, runtime_checkable

import torch
from torch.nn import functional as F

from neuroprobe._core import fingerprint_model, fingerprint_texts
from neuroprobe.exceptions import InputError
from neuroprobe.images import Transform
from neuroprobe.models import resolve_device

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

    __module__ = "neuroprobe.concepts"  # as users import it, in tracebacks too

    def __init__(self, text: str, limit: int, concept: str | None = None) -> None:
        self.text, self.limit = text, limit
        whose = "" if concept is None else f" of the concept {shortened(concept)}"
        super().__init__(
            f"Expected prompts of at most {limit} tokens, but one is longer: {shortened(text)}{whose}. Take a shorter name or template."
        )


def shortened(text: str) -> str:
    """A text as it is shown in a message: its beginning, and how long it is."""
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}... ({len(text):,} characters)"


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


class TorchEncoder:
    """A model of torch as an image-text encoder, in float32; a kind of it says how features are taken.

    `model` has ``logit_scale``, the logarithm of the factor before similarities, and perhaps ``logit_bias``. `reads` is what the vectors
    depend on beside the weights, as part of the fingerprint: configuration, preparation of images, tokenizer.
    """

    def __init__(self, model: Any, transform: Transform, *, device: str | torch.device, reads: Sequence[str] = ()) -> None:
        self.device = resolve_device(device)
        self.model: Any = model.float().to(self.device).eval()
        self.transform = transform
        self.logit_scale = float(self.model.logit_scale.detach().exp())
        bias = getattr(self.model, "logit_bias", None)
        self.logit_bias = None if bias is None else float(bias.detach())
        weights = fingerprint_model(self.model)
        self.fingerprint = fingerprint_texts([weights, *reads]) if reads else weights

    @classmethod
    def from_text(cls, text: str, *, device: str | torch.device = "auto", trust: bool = False) -> Self:
        """The encoder that `load_encoder` makes of the text behind the prefix."""
        return cls(text, device=device)  # type: ignore[call-arg]

    def _image_features(self, batch: torch.Tensor) -> torch.Tensor:
        """Vectors [n, d] of any length, of images on the encoder's device."""
        raise NotImplementedError

    def _text_features(self, texts: list[str]) -> torch.Tensor:
        """Vectors [n, d] of any length; a text that is too long is refused."""
        raise NotImplementedError

    @torch.no_grad()
    def encode_images(self, batch: torch.Tensor) -> torch.Tensor:
        """Unit vectors, float32 [n, d], of transformed images [n, 3, h, w]."""
        return F.normalize(self._image_features(batch.to(self.device)).float(), dim=1)

    @torch.no_grad()
    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        """Unit vectors, float32 [n, d], of texts.

        Raises
        ------
        InputError
            No texts.
        PromptTooLongError
            One is longer than the model's context.
        """
        if isinstance(texts, str) or not len(texts):
            raise InputError(f"Expected a list of at least one text, but got {texts!r}.")
        for text in texts:
            if not isinstance(text, str):
                raise InputError(f"Expected a list of texts, but one is {text!r:.80}.")
        parts = (list(texts[start : start + 256]) for start in range(0, len(texts), 256))
        return torch.cat([F.normalize(self._text_features(part).float(), dim=1) for part in parts])


def reason(error: Exception) -> str:
    """The first line of what another package's error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class _Named(Protocol):
    @classmethod
    def from_text(cls, text: str, *, device: str | torch.device, trust: bool) -> ImageTextEncoder: ...


_Kind = TypeVar("_Kind", bound=type[_Named])
_KINDS: dict[str, type[_Named]] = {}


def register_encoder(prefix: str) -> Callable[[_Kind], _Kind]:
    """Make a class the encoder that ``load_encoder("prefix:text")`` loads, by its ``from_text(text, device=..., trust=...)``.

    `InputError` if another class has this prefix.
    """

    def registered(kind: _Kind) -> _Kind:
        if prefix in _KINDS:
            raise InputError(f"Expected a prefix that no encoder has yet, but {prefix!r} is {_KINDS[prefix].__name__}.")
        _KINDS[prefix] = kind
        return kind

    return registered


def list_encoders() -> list[str]:
    """The prefixes that `load_encoder` knows."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{module.name}")
    return sorted(_KINDS)


def load_encoder(name: str | Path, *, device: str | torch.device = "auto", trust: bool = False) -> ImageTextEncoder:
    """An image-text encoder from a text, as the command line's ``--clip`` takes it.

    Parameters
    ----------
    name : str or Path
        "clip:NAME", "open_clip:MODEL/PRETRAINED" or "transformers:NAME", by the prefixes of `list_encoders`; without a prefix, a name
        of OpenAI's CLIP or a file of its weights, as in `neuroprobe.ClipEncoder`.
    device : str or torch.device, default "auto"
    trust : bool, default False
        As in `neuroprobe.ClipEncoder`; the others read no files that can run code.

    Raises
    ------
    InputError, UnknownNameError, CheckpointError, MissingDependencyError
        As the encoders.
    """
    prefix, _, text = str(name).partition(":")
    if prefix not in list_encoders() or not text:
        prefix, text = "clip", str(name)
    return _KINDS[prefix].from_text(text, device=device, trust=trust)
