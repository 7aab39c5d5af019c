"""Vocabulary: the concepts asked about, in groups, with their prompts."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from neuroprobe._core import check_choice, check_count, fingerprint_texts, import_extra
from neuroprobe.exceptions import InputError, UnknownNameError, suggest

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

#: The prompt of the probing blog.
BLOG_TEMPLATE = "This image has a concept: {}"

#: Prompt templates by name: the word alone (CLIP-Dissect), the probing blog's, CLIP's first, and the seven that CLIP's authors
#: found best together on ImageNet (notebook "Prompt Engineering for ImageNet" of https://github.com/openai/CLIP).
TEMPLATES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "word": ("{}",),
        "blog": (BLOG_TEMPLATE,),
        "photo": ("a photo of a {}.",),
        "clip-7": (
            "itap of a {}.",
            "a bad photo of the {}.",
            "a origami {}.",
            "a photo of the large {}.",
            "a {} in a video game.",
            "art of the {}.",
            "a photo of the small {}.",
        ),
    }
)

#: What a word that occurs twice means: an error, or one concept.
Duplicates: TypeAlias = Literal["raise", "drop"]

#: Entries of torchvision's lists of categories that name nothing.
_NO_CATEGORIES = ("__background__", "N/A", "")


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
    templates : str or sequence of str, default ("This image has a concept: {}",)
        Prompt templates, each with one ``{}``, or the name of some of `TEMPLATES` such as "clip-7". With several, a concept's
        vector is the mean of its prompts' unit vectors, brought to unit length again.

    Raises
    ------
    InputError, UnknownNameError
        No concepts, an empty name, a name twice, or a template without exactly one ``{}``; a single text for `templates` that has
        no ``{}`` and is no name of `TEMPLATES`.
    """

    name: str
    concepts: Sequence[str]
    none: str | None = None
    templates: Sequence[str] = (BLOG_TEMPLATE,)

    def __post_init__(self) -> None:
        object.__setattr__(self, "concepts", (self.concepts,) if isinstance(self.concepts, str) else tuple(self.concepts))
        object.__setattr__(self, "templates", _resolved(self.templates))
        if not self.concepts:
            raise InputError(f"Expected at least one concept in the group {self.name!r}, but got none.")
        _check_names(self.names, self.name)
        if not self.templates:
            raise InputError(f"Expected at least one prompt template for the group {self.name!r}, but got none.")
        for template in self.templates:
            if not isinstance(template, str) or template.count("{}") != 1:
                raise InputError(f"Expected a prompt template with exactly one '{{}}', but got {template!r}.")

    @property
    def names(self) -> tuple[str, ...]:
        """The concepts, and then "none" if there is one."""
        return tuple(self.concepts) if self.none is None else (*self.concepts, self.none)

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
    ['color', 'pattern', 'sex']
    """

    def __init__(self, groups: Sequence[ConceptGroup]) -> None:
        if isinstance(groups, ConceptGroup):
            raise InputError(f"Expected a list of groups, but got the single group {groups.name!r}. Write Vocabulary([group]).")
        self.groups = (groups,) if isinstance(groups, str) or not isinstance(groups, Iterable) else tuple(groups)
        odd = [group for group in self.groups if not isinstance(group, ConceptGroup)]
        if odd:
            raise InputError(f"Expected groups that are a ConceptGroup, but got {odd[0]!r:.80}. For words: Vocabulary.from_words([...]).")
        if not self.groups:
            raise InputError("Expected at least one group of concepts, but got none.")
        _check_names([group.name for group in self.groups], "the groups' names")
        _check_names([name for group in self.groups for name in group.concepts], "the vocabulary")
        self.concepts: tuple[Concept, ...] = tuple(concept for group in self.groups for concept in group.members())

    @classmethod
    def from_words(
        cls,
        words: Iterable[str],
        *,
        templates: str | Sequence[str] = ("{}",),
        group: str = "words",
        duplicates: Duplicates = "raise",
    ) -> Vocabulary:
        """One group of plain words; by default each is its own prompt, as in CLIP-Dissect.

        Parameters
        ----------
        words : iterable of str
        templates : str or sequence of str, default ("{}",)
            As in `ConceptGroup`.
        group : str, default "words"
            The group's name.
        duplicates : {"raise", "drop"}, default "raise"
            What to do with a word that occurs twice: an error that names it, or keep the first. Words count as they are
            written: "Crane" and "crane" are two.

        Raises
        ------
        InputError
            No words, one that is empty, or one twice.
        """
        if isinstance(words, str) or not isinstance(words, Iterable):
            raise InputError(f"Expected a list of words, but got {words!r:.80}. Use Vocabulary.from_file for a file.")
        check_choice("duplicates", duplicates, ("raise", "drop"))
        names = tuple(dict.fromkeys(words)) if duplicates == "drop" else tuple(words)
        return cls([ConceptGroup(group, names, templates=_resolved(templates))])

    @classmethod
    def from_file(cls, path: str | Path, *, templates: str | Sequence[str] = ("{}",), duplicates: Duplicates = "raise") -> Vocabulary:
        """A word list: UTF-8, one concept per line; spaces around a word, empty lines and comments are left out.

        A comment is a line that begins with "# ", a number sign and a space: "#1" and "#hashtag" are concepts.

        CLIP-Dissect's lists of 3,000, 10,000 and 20,000 common English words are such files. The group's name is the file's,
        without its suffix.

        Parameters
        ----------
        path : str or Path
        templates, duplicates
            As in `from_words`.

        Raises
        ------
        InputError
            The file is missing, not UTF-8, has no words, or has one twice.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise InputError(
                f"Expected a word list, but {str(path)!r} cannot be read: {error.strerror}. Give a text file (UTF-8, one concept per line)."
            ) from error
        except UnicodeDecodeError as error:
            raise InputError(f"Expected a word list in UTF-8, but {str(path)!r} is not: {error}. Save it as UTF-8.") from error
        lines = map(str.strip, text.split("\n"))  # splitlines also cuts at form feeds and the like
        words = [line for line in lines if line and line.split()[0] != "#"]
        if not words:
            raise InputError(f"Expected one concept per line, but {str(path)!r} holds none.")
        return cls.from_words(words, templates=templates, group=path.stem, duplicates=duplicates)

    @classmethod
    def from_weights(cls, weights: str | WeightsEnum, *, templates: str | Sequence[str] = ("{}",)) -> Vocabulary:
        """The class names in the metadata of weights of torchvision; nothing is downloaded.

        Parameters
        ----------
        weights : str or WeightsEnum
            Weights such as ``ResNet50_Weights.IMAGENET1K_V2``, their full name as a text, or a model's name such as "resnet50",
            which means its default weights.
        templates : str or sequence of str, default ("{}",)
            As in `ConceptGroup`.

        Returns
        -------
        Vocabulary
            One group with the weights' name. A name that two classes share is one concept, since texts cannot tell the two
            apart, and what names no class ("N/A", "__background__") is left out: so concepts are found by name, and a
            class's number need not be its concept's.

        Raises
        ------
        InputError, UnknownNameError
            Weights without class names; no such model or weights.

        Examples
        --------
        >>> vocabulary = Vocabulary.from_weights("resnet50")
        >>> len(vocabulary), vocabulary.names[0]
        (1000, 'tench')
        """
        from torchvision import models

        found: Any = weights
        try:
            if isinstance(weights, str):
                found = models.get_model_weights(weights).DEFAULT if weights in models.list_models() else models.get_weight(weights)
            names = [name for name in found.meta.get("categories") or () if name not in _NO_CATEGORIES]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UnknownNameError(
                "Expected weights of torchvision, their name such as 'ResNet50_Weights.IMAGENET1K_V2', or a model's, but got "
                f"{weights!r}. {suggest(str(weights), models.list_models())}"
            ) from error
        if not names:
            raise InputError(f"Expected weights that name their classes, but {found} has no categories. Use Vocabulary.from_words.")
        return cls.from_words(names, templates=templates, group=str(found), duplicates="drop")

    @classmethod
    def from_frequency(cls, n: int, *, language: str = "en", templates: str | Sequence[str] = ("{}",)) -> Vocabulary:
        """The `n` most frequent words of a language, most frequent first, from the package wordfreq (extra ``words``).

        Parameters
        ----------
        n : int
        language : str, default "en"
            A code such as "en" or "de".
        templates : str or sequence of str, default ("{}",)
            As in `ConceptGroup`.

        Returns
        -------
        Vocabulary
            Entries with digits, which stand for many numbers each, are left out.

        Raises
        ------
        InputError, MissingDependencyError
            n below 1, a language that wordfreq does not know, or fewer words than asked for; wordfreq is not installed.

        References
        ----------
        Speer, "rspeer/wordfreq: v3.0", 2022, https://doi.org/10.5281/zenodo.7199437.
        """
        check_count("n", n)
        wordfreq = import_extra("wordfreq", wanted_by="the most frequent words", extra="words")
        try:
            listed = wordfreq.iter_wordlist(language)
            words = list(itertools.islice((word for word in listed if not any(map(str.isdigit, word))), n))
        except (LookupError, ValueError) as error:  # no words of it; no language code at all
            known = suggest(language, wordfreq.available_languages())
            raise InputError(f"Expected a language of wordfreq, but got {language!r}. {known}") from error
        if len(words) < n:
            raise InputError(f"Expected {n} words of {language!r}, but wordfreq has {len(words)}. Ask for fewer.")
        return cls.from_words(words, templates=templates, group=f"{n} most frequent words of {language!r}")

    @classmethod
    def probing_blog(cls) -> Vocabulary:
        """The groups of "Probing Neurons with CLIP Concepts" (2023): color, pattern and sex, each with its "none"."""
        return cls(
            [
                ConceptGroup("color", ("red", "yellow", "blue", "green"), none="none"),
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
        """The group that holds the concept `name`; `UnknownNameError` if none does."""
        owners = {concept: group for group in self.groups for concept in group.concepts}
        if name not in owners:
            raise UnknownNameError(f"Expected a concept of the vocabulary, but got {name!r}. {suggest(name, owners)}")
        return owners[name]

    def rows_of(self, group: str) -> list[int]:
        """The positions of a group's names among `names`; `UnknownNameError` for no group."""
        rows = [i for i, concept in enumerate(self.concepts) if concept.group == group]
        if not rows:
            known = [g.name for g in self.groups]
            raise UnknownNameError(f"Expected a group of the vocabulary, but got {group!r}. {suggest(group, known)}")
        return rows

    def __len__(self) -> int:
        return len(self.concepts)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} concepts in {', '.join(group.name for group in self.groups)})"


def _resolved(templates: str | Iterable[str]) -> tuple[str, ...]:
    """Templates from their set's name, from a single one, or as they are."""
    if not isinstance(templates, str):
        return tuple(templates)
    if templates in TEMPLATES:
        return TEMPLATES[templates]
    if "{}" not in templates:
        raise UnknownNameError(
            f"Expected a prompt template with exactly one '{{}}', or the name of a set of them, but got {templates!r}. "
            f"{suggest(templates, TEMPLATES)}"
        )
    return (templates,)


def _check_names(names: Sequence[str], where: str) -> None:
    seen: set[str] = set()
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"Expected names that are not empty in {where}, but got {name!r}.")
        if name in seen:
            raise InputError(
                f"Expected every name once in {where}, but {name!r} occurs twice. Remove one, or keep the first with duplicates='drop'."
            )
        seen.add(name)
