"""Vocabulary: the concepts asked about, in groups, with their prompts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from neuroprobe.exceptions import InputError, UnknownNameError, suggest
from neuroprobe.fingerprints import fingerprint_texts

#: The prompt of the probing blog.
BLOG_TEMPLATE = "This image has a concept: {}"


@dataclass(frozen=True)
class Concept:
    """A name, the group it belongs to, and the prompts it is embedded by."""

    name: str
    group: str
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class ConceptGroup:
    """Concepts that exclude or complete each other: a softmax is taken within the group.

    Parameters
    ----------
    name : str
    concepts : sequence of str
    none : str, optional
        The name for "none of these". It takes part in the group's softmax, and is never itself probed.
    templates : sequence of str, default ("This image has a concept: {}",)
        Prompt templates, each with one ``{}``; with several, the mean of the unit vectors is used.

    Raises
    ------
    InputError
        No concepts, an empty name, a name twice, or a template without exactly one ``{}``.
    """

    name: str
    concepts: tuple[str, ...]
    none: str | None = None
    templates: tuple[str, ...] = (BLOG_TEMPLATE,)

    def __post_init__(self) -> None:
        for field in ("concepts", "templates"):
            value = getattr(self, field)
            object.__setattr__(self, field, (value,) if isinstance(value, str) else tuple(value))
        if not self.concepts:
            raise InputError(f"Expected at least one concept in the group {self.name!r}, but got none.")
        _check_names(self.names, self.name)
        if not self.templates:
            raise InputError(f"Expected at least one prompt template for the group {self.name!r}, but got none.")
        for template in self.templates:
            if template.count("{}") != 1:
                raise InputError(f"Expected a prompt template with exactly one '{{}}', but got {template!r}.")

    @property
    def names(self) -> tuple[str, ...]:
        """The concepts, and then "none" if there is one."""
        return self.concepts if self.none is None else (*self.concepts, self.none)

    def members(self) -> tuple[Concept, ...]:
        """A `Concept` for every name."""
        return tuple(Concept(name, self.name, tuple(t.replace("{}", name) for t in self.templates)) for name in self.names)


class Vocabulary:
    """An ordered set of concepts in one or several groups.

    Parameters
    ----------
    groups : sequence of ConceptGroup

    Raises
    ------
    InputError
        No groups, two of one name, or a concept in two groups.

    Examples
    --------
    >>> Vocabulary.from_words(["red", "striped"]).names
    ('red', 'striped')
    >>> [group.name for group in Vocabulary.probing_blog().groups]
    ['colour', 'pattern', 'sex']
    """

    def __init__(self, groups: Sequence[ConceptGroup]) -> None:
        self.groups = tuple(groups)
        if not self.groups:
            raise InputError("Expected at least one group of concepts, but got none.")
        _check_names([group.name for group in self.groups], "the groups' names")
        _check_names([name for group in self.groups for name in group.concepts], "the vocabulary")
        self.concepts: tuple[Concept, ...] = tuple(concept for group in self.groups for concept in group.members())

    @classmethod
    def from_words(cls, words: Iterable[str], *, templates: Sequence[str] = ("{}",), group: str = "words") -> Vocabulary:
        """One group of plain words; by default each is its own prompt, as in CLIP-Dissect."""
        if isinstance(words, str):
            raise InputError(f"Expected a list of words, but got the single text {words!r}. Use Vocabulary.from_file for a file.")
        return cls([ConceptGroup(group, tuple(words), templates=(templates,) if isinstance(templates, str) else tuple(templates))])

    @classmethod
    def from_file(cls, path: str | Path, *, templates: Sequence[str] = ("{}",)) -> Vocabulary:
        """A word list: UTF-8, one concept per line; empty lines are left out.

        Raises
        ------
        InputError
            The file is missing, not UTF-8, has no words, or has one twice.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise InputError(f"Expected a word list, but {str(path)!r} cannot be read: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise InputError(f"Expected a word list in UTF-8, but {str(path)!r} is not: {error}. Save it as UTF-8.") from error
        words = [line.strip() for line in text.split("\n") if line.strip()]  # splitlines also cuts at form feeds and the like
        if not words:
            raise InputError(f"Expected one concept per line, but {str(path)!r} holds none.")
        return cls.from_words(words, templates=templates, group=path.stem)

    @classmethod
    def probing_blog(cls) -> Vocabulary:
        """The groups of "Probing Neurons with CLIP Concepts" (2023): colour, pattern and sex, each with its "none"."""
        return cls(
            [
                ConceptGroup("colour", ("red", "yellow", "blue", "green"), none="none"),
                ConceptGroup("pattern", ("zigzagged", "striped", "dotted"), none="none"),
                ConceptGroup("sex", ("male", "female"), none="none"),
            ]
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The concepts' names, group by group, each group's "none" included."""
        return tuple(concept.name for concept in self.concepts)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of names, groups and prompts."""
        return fingerprint_texts(text for c in self.concepts for text in (c.group, c.name, *c.prompts))

    def group_of(self, name: str) -> ConceptGroup:
        """The group that holds the concept `name`.

        Raises
        ------
        UnknownNameError
        """
        for group in self.groups:
            if name in group.concepts:
                return group
        known = [n for group in self.groups for n in group.concepts]
        raise UnknownNameError(f"Expected a concept of the vocabulary, but got {name!r}. {suggest(name, known)}")

    def __len__(self) -> int:
        return len(self.concepts)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} concepts in {', '.join(group.name for group in self.groups)})"


def _check_names(names: Sequence[str], where: str) -> None:
    seen: set[str] = set()
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"Expected names that are not empty in {where}, but got {name!r}.")
        if name in seen:
            raise InputError(f"Expected every name once in {where}, but {name!r} occurs twice. Remove one of them.")
        seen.add(name)
