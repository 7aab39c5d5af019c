"""What encoders refuse about texts, in the same words."""

from __future__ import annotations

from collections.abc import Sequence

from neuroprobe.exceptions import InputError

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
