from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torchvision
from torchvision.models import ResNet50_Weights, Weights, WeightsEnum, get_model_weights

from neuroprobe.concepts import ConceptGroup, Vocabulary
from neuroprobe.concepts.vocabulary import TEMPLATES
from neuroprobe.exceptions import InputError, MissingDependencyError, UnknownNameError


def prompts(vocabulary: Vocabulary) -> dict[str, tuple[str, ...]]:
    return {concept.name: concept.prompts for concept in vocabulary.concepts}


# --- groups


def test_prompts_come_from_every_template_in_order() -> None:
    group = ConceptGroup("color", ("red", "blue"), templates=("a {} thing", "{}", "it is {}!"))
    assert [c.prompts for c in group.members()] == [("a red thing", "red", "it is red!"), ("a blue thing", "blue", "it is blue!")]


def test_the_default_template_is_the_blogs() -> None:
    assert ConceptGroup("color", ("red",)).members()[0].prompts == ("This image has a concept: red",)


def test_none_is_last_and_has_prompts_but_is_not_a_concept() -> None:
    group = ConceptGroup("color", ("red", "blue"), none="none")
    assert group.names == ("red", "blue", "none")
    assert group.concepts == ("red", "blue")
    assert group.members()[-1].prompts == ("This image has a concept: none",)


def test_a_group_keeps_no_list_that_could_change() -> None:
    words, templates = ["red"], ["{}"]
    group = ConceptGroup("color", words, templates=templates)
    words.append("blue")
    templates.append("a {}")
    assert (group.names, group.members()[0].prompts) == (("red",), ("red",))


@pytest.mark.parametrize("template", ["a photo", "", "{} and {}", "a {0}", "{ }"])
def test_a_template_needs_exactly_one_place(template: str) -> None:
    with pytest.raises(InputError, match=r"a prompt template with exactly one '\{\}', but got"):
        ConceptGroup("color", ("red",), templates=("{}", template))


def test_a_group_needs_a_template() -> None:
    with pytest.raises(InputError, match="at least one prompt template for the group 'color'"):
        ConceptGroup("color", ("red",), templates=())


def test_a_group_needs_a_concept() -> None:
    with pytest.raises(InputError, match="at least one concept in the group 'color', but got none"):
        ConceptGroup("color", ())


@pytest.mark.parametrize("name", ["", "  ", None, 3])
def test_names_that_are_no_text_are_refused(name) -> None:
    with pytest.raises(InputError, match=f"names that are not empty in color, but got {name!r}"):
        ConceptGroup("color", ("red", name))


@pytest.mark.parametrize(("concepts", "none"), [(("red", "blue", "red"), None), (("red", "blue"), "red")])
def test_a_name_twice_in_a_group_is_refused(concepts, none) -> None:
    with pytest.raises(InputError, match="every name once in color, but 'red' occurs twice"):
        ConceptGroup("color", concepts, none=none)


def test_a_single_text_is_one_template_not_its_letters() -> None:
    assert prompts(Vocabulary.from_words(["red"], templates="a photo of {}")) == {"red": ("a photo of red",)}
    assert prompts(Vocabulary([ConceptGroup("c", "red", templates="a {}")])) == {"red": ("a red",)}


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_templates_by_name(name: str) -> None:
    expected = tuple(template.replace("{}", "red") for template in TEMPLATES[name])
    assert prompts(Vocabulary.from_words(["red"], templates=name)) == {"red": expected}
    assert prompts(Vocabulary([ConceptGroup("c", ("red",), templates=name)])) == {"red": expected}


def test_the_sets_of_templates_are_the_published_ones() -> None:
    assert TEMPLATES["photo"] == ("a photo of a {}.",)
    assert len(TEMPLATES["clip-7"]) == 7
    assert TEMPLATES["clip-7"][2] == "a origami {}."  # as published, article and all


def test_an_unknown_name_of_templates() -> None:
    with pytest.raises(
        UnknownNameError, match=r"exactly one '\{\}', or the name of a set of them, but got 'clip7'\. Did you mean 'clip-7'"
    ):
        Vocabulary.from_words(["red"], templates="clip7")


def test_a_template_that_is_no_text_is_refused() -> None:
    with pytest.raises(InputError, match=r"a prompt template with exactly one '\{\}', but got 3"):
        ConceptGroup("color", ("red",), templates=("{}", 3))


# --- vocabularies


@pytest.mark.parametrize("wrong", [["x"], "x", 5, [ConceptGroup("a", ("red",)), "blue"], ("red", "blue")])
def test_words_in_place_of_groups_are_refused(wrong) -> None:
    with pytest.raises(InputError, match=r"ConceptGroup, but got .*\. For words: Vocabulary\.from_words\(\[\.\.\.\]\)\."):
        Vocabulary(wrong)


def test_one_group_in_place_of_a_list_is_refused() -> None:
    with pytest.raises(InputError, match=r"the single group 'a'\. Write Vocabulary\(\[group\]\)"):
        Vocabulary(ConceptGroup("a", ("red",)))


def test_the_blogs_groups() -> None:
    vocabulary = Vocabulary.probing_blog()
    assert [(g.name, g.names) for g in vocabulary.groups] == [
        ("color", ("red", "yellow", "blue", "green", "none")),
        ("pattern", ("zigzagged", "striped", "dotted", "none")),
        ("sex", ("male", "female", "none")),
    ]
    assert len(vocabulary) == len(vocabulary.names) == 12


def test_a_vocabulary_needs_a_group() -> None:
    with pytest.raises(InputError, match="at least one group of concepts"):
        Vocabulary([])


def test_two_groups_of_one_name_are_refused() -> None:
    with pytest.raises(InputError, match="every name once in the groups' names, but 'a' occurs twice"):
        Vocabulary([ConceptGroup("a", ("red",)), ConceptGroup("a", ("blue",))])


def test_a_concept_in_two_groups_is_refused() -> None:
    with pytest.raises(InputError, match="every name once in the vocabulary, but 'orange' occurs twice"):
        Vocabulary([ConceptGroup("color", ("red", "orange")), ConceptGroup("fruit", ("orange",))])


def test_group_of() -> None:
    vocabulary = Vocabulary.probing_blog()
    assert vocabulary.group_of("striped").name == "pattern"
    with pytest.raises(UnknownNameError, match=r"a concept of the vocabulary, but got 'stripped'\. Did you mean 'striped'"):
        vocabulary.group_of("stripped")


def test_the_fingerprint_follows_names_groups_and_prompts() -> None:
    def of(group: str, words: tuple[str, ...], template: str) -> str:
        return Vocabulary([ConceptGroup(group, words, templates=(template,))]).fingerprint

    assert of("g", ("a", "b"), "{}") == of("g", ("a", "b"), "{}")
    others = [of("h", ("a", "b"), "{}"), of("g", ("b", "a"), "{}"), of("g", ("ab",), "{}"), of("g", ("a", "b"), "a {}")]
    assert len({of("g", ("a", "b"), "{}"), *others}) == 5


def test_from_words_refuses_one_text_an_empty_list_and_doubles() -> None:
    with pytest.raises(InputError, match="a list of words, but got 'red, blue'"):
        Vocabulary.from_words("red, blue")
    with pytest.raises(InputError, match="at least one concept"):
        Vocabulary.from_words([])
    with pytest.raises(InputError, match="'red' occurs twice"):
        Vocabulary.from_words(["red", "blue", "red"])


def test_doubles_may_be_dropped() -> None:
    words = ["red", "blue", "Red", "red", "blue"]
    assert Vocabulary.from_words(words, duplicates="drop").names == ("red", "blue", "Red")
    with pytest.raises(InputError, match="`duplicates` to be 'raise' or 'drop', but got 'keep'"):
        Vocabulary.from_words(words, duplicates="keep")


def test_from_words_refuses_what_is_no_list() -> None:
    with pytest.raises(InputError, match="a list of words, but got 5"):
        Vocabulary.from_words(5)
    with pytest.raises(InputError, match=r"names that are not empty in words, but got \['red'\]"):
        Vocabulary.from_words([["red"]])  # type: ignore[list-item]


def test_one_word_is_a_vocabulary() -> None:
    assert Vocabulary.from_words(["red"]).names == ("red",)


def test_from_words_takes_a_generator() -> None:
    assert Vocabulary.from_words(w for w in ("red", "blue")).names == ("red", "blue")


@pytest.mark.parametrize("word", ["{}", "{0}", "{red}", "a}b{", "%s", "\\1", "{{}}"])
def test_braces_in_a_word_stay_as_they_are(word: str) -> None:
    assert prompts(Vocabulary.from_words([word], templates=["say {} now", "{}"])) == {word: (f"say {word} now", word)}


# --- word lists


def word_list(folder: Path, data: bytes) -> Path:
    path = folder / "my words.txt"
    path.write_bytes(data)
    return path


def test_a_file_gives_its_lines_and_its_name(tmp_path: Path) -> None:
    vocabulary = Vocabulary.from_file(word_list(tmp_path, b"red\nhot dog\n\n  striped \n"))
    assert vocabulary.names == ("red", "hot dog", "striped")
    assert vocabulary.groups[0].name == "my words"
    assert prompts(vocabulary)["hot dog"] == ("hot dog",)


def test_byte_order_mark_and_windows_line_ends_are_no_part_of_a_word(tmp_path: Path) -> None:
    plain = Vocabulary.from_file(word_list(tmp_path, b"red\nblue"))
    assert Vocabulary.from_file(word_list(tmp_path, b"\xef\xbb\xbfred\r\n\r\nblue\r\n")).fingerprint == plain.fingerprint


def test_scripts_other_than_latin(tmp_path: Path) -> None:
    words = ("красный", "縞模様", "أحمر", "🔴", "é", "e\u0301")
    assert Vocabulary.from_file(word_list(tmp_path, "\n".join(words).encode())).names == words


def test_only_line_ends_end_a_line(tmp_path: Path) -> None:
    # str.splitlines also cuts at form feeds, line separators and the like
    words = ("a\x0cb", "c\u2028d", "e\x85f")
    assert Vocabulary.from_file(word_list(tmp_path, "\n".join(words).encode())).names == words


@pytest.mark.parametrize("data", ["grün".encode("latin-1"), "red\nblue".encode("utf-16")])
def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(InputError, match=r"a word list in UTF-8, but .*my words\.txt' is not: .*Save it as UTF-8"):
        Vocabulary.from_file(word_list(tmp_path, data))


@pytest.mark.parametrize("data", [b"", b"\n \r\n\t\n", b"\xef\xbb\xbf"])
def test_a_file_without_words_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(InputError, match=r"one concept per line, but .*my words\.txt' holds none"):
        Vocabulary.from_file(word_list(tmp_path, data))


def test_a_word_twice_in_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'red' occurs twice\. Remove one, or keep the first with duplicates='drop'"):
        Vocabulary.from_file(word_list(tmp_path, b"red\nblue\n red\n"))


def test_doubles_in_a_file_may_be_dropped(tmp_path: Path) -> None:
    path = word_list(tmp_path, b"red\r\nblue\r\n red \r\n")
    assert Vocabulary.from_file(path, duplicates="drop").names == ("red", "blue")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.txt' cannot be read: No such file"):
        Vocabulary.from_file(tmp_path / "nothing.txt")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        Vocabulary.from_file(tmp_path)


def test_a_hundred_thousand_words(tmp_path: Path) -> None:
    words = [f"word {i}" for i in range(100_000)]
    vocabulary = Vocabulary.from_file(word_list(tmp_path, "\n".join(words).encode()), templates=["a {}"])
    assert (len(vocabulary), vocabulary.names[99_999]) == (100_000, "word 99999")
    assert vocabulary.concepts[-1].prompts == ("a word 99999",)
    assert vocabulary.group_of("word 99999").name == "my words"


def test_a_comment_of_a_word_list_is_no_concept(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("# colors\nred\n  #\tand\n#\n#1\n#hashtag\nblue # not green\n")
    assert Vocabulary.from_file(path).names == ("red", "#1", "#hashtag", "blue # not green")
    path.write_text("# nothing\n")
    with pytest.raises(InputError, match=r"one concept per line, but .* holds none"):
        Vocabulary.from_file(path)


# --- torchvision's classes


def test_the_classes_of_every_weights_that_has_some() -> None:
    seen = set()
    for name in torchvision.models.list_models():
        for weights in get_model_weights(name):
            categories = [c for c in weights.meta.get("categories") or () if c not in ("__background__", "N/A", "")]
            if categories and tuple(categories) not in seen:
                seen.add(tuple(categories))
                assert Vocabulary.from_weights(weights).names == tuple(dict.fromkeys(categories))
    assert {len(categories) for categories in seen} >= {1000, 80, 20, 400}  # ImageNet, COCO, VOC, Kinetics


def test_weights_by_model_by_name_and_themselves() -> None:
    vocabulary = Vocabulary.from_weights(ResNet50_Weights.IMAGENET1K_V2, templates="photo")
    assert (len(vocabulary), vocabulary.groups[0].name) == (1000, "ResNet50_Weights.IMAGENET1K_V2")
    assert vocabulary.concepts[0].prompts == ("a photo of a tench.",)
    for same in ("resnet50", "ResNet50_Weights.IMAGENET1K_V2", "ResNet50_Weights.DEFAULT"):
        assert Vocabulary.from_weights(same, templates="photo").fingerprint == vocabulary.fingerprint


def test_a_class_name_that_occurs_twice_is_one_concept() -> None:
    class SomeWeights(WeightsEnum):
        V1 = Weights("", lambda x: x, {"categories": ["crane", "__background__", "maillot", "crane", "N/A", "maillot"]})

    assert Vocabulary.from_weights(SomeWeights.V1).names == ("crane", "maillot")


@pytest.mark.parametrize("wrong", ["resnet51", "ResNet50_Weights.IMAGENET1K_V9", "ResNet50_Weights", "", 5, None])
def test_unknown_weights(wrong) -> None:
    with pytest.raises(UnknownNameError, match=r"weights of torchvision, their name such as .*, or a model's, but got"):
        Vocabulary.from_weights(wrong)


def test_weights_without_classes() -> None:
    with pytest.raises(InputError, match=r"weights that name their classes, but Raft_Large_Weights\.C_T_SKHT_V2 has no categories"):
        Vocabulary.from_weights("raft_large")


# --- frequent words


def test_the_most_frequent_words() -> None:
    wordfreq = pytest.importorskip("wordfreq")
    vocabulary = Vocabulary.from_frequency(3000, templates="a {}")
    assert vocabulary.names[:3] == ("the", "to", "and")
    assert vocabulary.concepts[0].prompts == ("a the",)
    frequencies = [wordfreq.word_frequency(word, "en") for word in vocabulary.names]
    assert frequencies == sorted(frequencies, reverse=True)
    least = min(frequencies)
    missing = [w for w in wordfreq.top_n_list("en", 3100) if w not in vocabulary.names and not any(c.isdigit() for c in w)]
    assert all(wordfreq.word_frequency(word, "en") <= least for word in missing)
    assert not any(character.isdigit() for word in vocabulary.names for character in word)


def test_frequent_words_of_other_languages() -> None:
    pytest.importorskip("wordfreq")
    assert Vocabulary.from_frequency(10, language="de").names[:2] == ("die", "der")
    assert Vocabulary.from_frequency(5, language="ja").names[0] == "の"


@pytest.mark.parametrize("language", ["xx", "", "no such language"])
def test_a_language_without_words(language: str) -> None:
    pytest.importorskip("wordfreq")
    with pytest.raises(InputError, match=f"a language of wordfreq, but got {language!r}"):
        Vocabulary.from_frequency(5, language=language)


def test_more_words_than_there_are() -> None:
    pytest.importorskip("wordfreq")
    with pytest.raises(InputError, match=r"10000000 words of 'en', but wordfreq has \d+\. Ask for fewer"):
        Vocabulary.from_frequency(10_000_000)
    with pytest.raises(InputError, match="`n` to be a whole number of at least 1, but got 0"):
        Vocabulary.from_frequency(0)


def test_without_wordfreq_the_package_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "wordfreq", None)
    with pytest.raises(
        MissingDependencyError, match=r"wordfreq for the most frequent words\. Install it: pip install 'neuroprobe-clip\[words\]'"
    ):
        Vocabulary.from_frequency(5)
