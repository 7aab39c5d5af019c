from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import PixelEncoder, noise_images, scores_of
from torch.nn import functional as F

from neuroprobe.concepts import ConceptGroup, ConceptScores, ConceptSet, ConceptSets, ConceptSource, Vocabulary
from neuroprobe.exceptions import InputError, UnknownNameError

ENCODER = PixelEncoder()
IMAGES = noise_images(60)
VOCABULARY = Vocabulary(
    [
        ConceptGroup("color", ("red", "blue", "green"), none="none", templates=("a {} thing", "{}", "it is {}")),
        ConceptGroup("pattern", ("striped", "dotted"), none="none"),
        ConceptGroup("size", ("big",), none="small"),
    ]
)
SIZES = {"n_positive": 15, "n_negative": 20}


def image_vectors() -> torch.Tensor:
    return ENCODER.encode_images(torch.stack([ENCODER.transform(IMAGES[i]) for i in range(len(IMAGES))]))


def plain_text_vector(prompts: tuple[str, ...]) -> torch.Tensor:
    mean = torch.stack([ENCODER.encode_texts([prompt])[0] for prompt in prompts]).mean(dim=0)
    return mean / mean.norm()


# --- text vectors


def test_a_concepts_vector_is_the_mean_of_its_prompts_unit_vectors() -> None:
    vectors = ConceptSource(ENCODER, VOCABULARY).text_vectors()
    assert vectors.shape == (9, ENCODER.d)
    for vector, concept in zip(vectors, VOCABULARY.concepts, strict=True):
        assert len(concept.prompts) == (3 if concept.group == "color" else 1)
        torch.testing.assert_close(vector, plain_text_vector(concept.prompts))


def test_texts_are_embedded_once() -> None:
    calls = []

    class Counting(PixelEncoder):
        def encode_texts(self, texts):
            calls.append(list(texts))
            return super().encode_texts(texts)

    source = ConceptSource(Counting(), VOCABULARY)
    assert calls == []
    source.score(IMAGES)
    source.score(IMAGES)
    assert calls == [[prompt for concept in VOCABULARY.concepts for prompt in concept.prompts]]


# --- scores


def test_scores_are_cosines_of_images_and_concepts() -> None:
    scores = ConceptSource(ENCODER, VOCABULARY).score(IMAGES)
    texts = torch.stack([plain_text_vector(concept.prompts) for concept in VOCABULARY.concepts])
    expected = torch.nn.functional.cosine_similarity(image_vectors()[:, None], texts[None], dim=2)
    torch.testing.assert_close(scores.similarities(), expected, rtol=1e-5, atol=1e-6)
    assert scores.ids == IMAGES.ids
    assert scores.concepts == VOCABULARY.names


def test_the_batch_size_changes_no_score() -> None:
    source = ConceptSource(ENCODER, VOCABULARY)
    whole = source.score(IMAGES, batch_size=60).similarities()
    torch.testing.assert_close(source.score(IMAGES, batch_size=7).similarities(), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 4, 9, 1000])
def test_blocks_are_the_similarities(size: int) -> None:
    scores = ConceptSource(ENCODER, VOCABULARY).score(IMAGES)
    blocks = list(scores.blocks(size))
    assert [i for columns, _ in blocks for i in range(9)[columns]] == list(range(9))
    assert all(block.shape[1] <= size for _, block in blocks)
    torch.testing.assert_close(torch.cat([block for _, block in blocks], dim=1), scores.similarities(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("temperature", [None, 0.01, 3.0])
def test_likelihoods_are_a_plain_softmax_within_the_group(temperature: float | None) -> None:
    scores = ConceptSource(ENCODER, VOCABULARY, temperature=temperature).score(IMAGES)
    columns = {"color": [0, 1, 2, 3], "pattern": [4, 5, 6], "size": [7, 8]}
    for group, chosen in columns.items():
        logits = scores.similarities().double().numpy()[:, chosen] / (temperature or 1 / 20)  # 20 is the encoder's scale
        expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(scores.likelihoods(group).numpy(), expected, rtol=1e-4, atol=1e-6)


def test_likelihoods_of_an_unknown_group() -> None:
    with pytest.raises(UnknownNameError, match=r"a group of the vocabulary, but got 'colour'\. Did you mean 'color'"):
        ConceptSource(ENCODER, VOCABULARY).score(IMAGES).likelihoods("colour")


def test_the_metadata_say_what_was_scored() -> None:
    metadata = ConceptSource(ENCODER, VOCABULARY).score(IMAGES).metadata
    assert metadata["encoder"] == "pixels-7"
    assert metadata["vocabulary"] == VOCABULARY.fingerprint
    assert metadata["images"] == IMAGES.fingerprint


# --- ranking


def test_positives_are_the_likeliest_and_negatives_are_others() -> None:
    source = ConceptSource(ENCODER, VOCABULARY)
    sets, scores = source.rank(IMAGES, **SIZES), source.score(IMAGES)
    assert list(sets) == ["red", "blue", "green", "striped", "dotted", "big"]
    for group in VOCABULARY.groups:
        likelihoods = scores.likelihoods(group.name).numpy()
        for column, concept in enumerate(group.concepts):
            found = sets[concept]
            best = sorted(range(60), key=lambda i, column=column: -likelihoods[i, column])[:15]
            assert found.positives == tuple(IMAGES.ids[i] for i in best)
            assert found.group == group.name
            assert len(set(found.negatives)) == 20
            assert set(found.negatives) <= set(IMAGES.ids) - set(found.positives)


def test_likelihoods_decide_not_similarities() -> None:
    # "0" is nearest to a, but b is nearer still; "1" is farther from a, and it is all that it is near to
    scores = ConceptScores(
        image_vectors=F.normalize(torch.tensor([[0.6, 0.8, 0.0], [0.5, 0.0, 0.87], [0.0, 0.0, 1.0]]), dim=1),
        text_vectors=torch.eye(3)[:2],
        vocabulary=Vocabulary([ConceptGroup("g", ("a", "b"))]),
        ids=("0", "1", "2"),
        temperature=0.01,
        metadata={},
    )
    assert scores.similarities()[:, 0].argmax() == 0
    assert scores.rank(n_positive=1, n_negative=1)["a"].positives == ("1",)


def test_negatives_are_random_not_the_unlikeliest() -> None:
    scores = ConceptSource(ENCODER, VOCABULARY).score(IMAGES)
    drawn: dict[str, int] = dict.fromkeys(IMAGES.ids, 0)
    for seed in range(200):
        for id_ in scores.rank(**SIZES, seed=seed, n_types=0)["red"].negatives:
            drawn[id_] += 1
    positives = set(scores.rank(**SIZES)["red"].positives)
    counts = np.array([n for id_, n in drawn.items() if id_ not in positives])  # 200 draws of 20 from 45: 88.9 of each
    assert 60 < counts.min() <= counts.max() < 120
    assert not any(drawn[id_] for id_ in positives)


def test_ranking_is_reproducible_and_the_seed_draws_the_negatives_alone() -> None:
    scores = ConceptSource(ENCODER, VOCABULARY).score(IMAGES)
    first, again, other = (scores.rank(**SIZES, seed=seed) for seed in (3, 3, 4))
    for concept in first:
        assert first[concept] == again[concept]
        assert first[concept].positives == other[concept].positives
        assert first[concept].negatives != other[concept].negatives


def test_concepts_draw_different_negatives() -> None:
    scores = scores_of(60, ["a", "b"])
    equal = ConceptScores(
        scores.image_vectors, scores.text_vectors[[0, 0]], scores.vocabulary, scores.ids, scores.temperature, scores.metadata
    )
    sets = equal.rank(**SIZES)
    assert sets["a"].positives == sets["b"].positives
    assert sets["a"].negatives != sets["b"].negatives


def test_ranking_does_not_depend_on_the_other_groups() -> None:
    whole = ConceptSource(ENCODER, VOCABULARY).rank(IMAGES, **SIZES)
    for group in VOCABULARY.groups:
        alone = ConceptSource(ENCODER, Vocabulary([group])).rank(IMAGES, **SIZES)
        assert list(alone) == list(group.concepts)
        assert all(alone[concept] == whole[concept] for concept in alone)
    backward = ConceptSource(ENCODER, Vocabulary(VOCABULARY.groups[::-1])).rank(IMAGES, **SIZES)
    assert all(backward[concept] == whole[concept] for concept in whole)


def test_ranking_does_not_depend_on_the_order_within_the_group() -> None:
    first = ConceptSource(ENCODER, Vocabulary([ConceptGroup("c", ("red", "blue", "green"), none="none")])).rank(IMAGES, **SIZES)
    second = ConceptSource(ENCODER, Vocabulary([ConceptGroup("c", ("green", "red", "blue"), none="none")])).rank(IMAGES, **SIZES)
    for concept in first:
        assert set(first[concept].positives) == set(second[concept].positives)
        assert first[concept].negatives == second[concept].negatives


def test_rounding_changes_no_negatives() -> None:
    scores = scores_of(30, ["a", "b", "c"])
    ids = tuple(f"image {i}" for i in range(60))
    noise = 1e-7 * torch.randn(60, 12, generator=torch.Generator().manual_seed(0))
    drawn = []
    for vectors in (scores.image_vectors.repeat(2, 1), scores.image_vectors.repeat(2, 1) + noise):  # every image twice
        twice = ConceptScores(vectors, scores.text_vectors, scores.vocabulary, ids, 0.05, {})
        drawn.append(twice.rank(n_positive=10, n_negative=20))
    for concept in "abc":
        assert set(drawn[0][concept].positives) == set(drawn[1][concept].positives)
        assert drawn[0][concept].negatives == drawn[1][concept].negatives


def test_ranking_leaves_global_random_states_alone() -> None:
    np.random.seed(0)
    before = np.random.get_state()[1].tolist(), torch.get_rng_state()
    ConceptSource(ENCODER, VOCABULARY).rank(IMAGES, **SIZES)
    assert np.random.get_state()[1].tolist() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_all_images_may_be_used() -> None:
    found = ConceptSource(ENCODER, VOCABULARY).rank(IMAGES, n_positive=25, n_negative=35)["red"]
    assert set(found.ids) == set(IMAGES.ids)


def test_too_few_images_are_refused_before_any_is_read() -> None:
    source = ConceptSource(ENCODER, VOCABULARY)
    with pytest.raises(InputError, match=r"at least 300 images \(100 positives and 200 negatives\), but got 60\. Give more images"):
        source.rank(IMAGES)
    with pytest.raises(InputError, match="at least 61 images"):
        source.score(IMAGES).rank(n_positive=21, n_negative=40)


# --- somebody's own encoder


class Reading(PixelEncoder):
    """Counts the images it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def encode_images(self, batch):
        self.seen += len(batch)
        return super().encode_images(batch)


def test_without_a_logit_scale_scores_work_and_ranking_is_refused_before_the_images_are_read() -> None:
    class Unscaled(Reading):
        logit_scale = None

    encoder = Unscaled()
    source = ConceptSource(encoder, VOCABULARY)
    torch.testing.assert_close(source.score(IMAGES).similarities(), ConceptSource(ENCODER, VOCABULARY).score(IMAGES).similarities())
    encoder.seen = 0
    with pytest.raises(InputError, match=r"an encoder with `logit_scale`, or a temperature: ConceptSource\(encoder"):
        source.rank(IMAGES, **SIZES)
    assert encoder.seen == 0
    with pytest.raises(InputError, match="an encoder with `logit_scale`, or a temperature"):
        source.score(IMAGES).likelihoods("color")


def test_a_temperature_stands_in_for_the_logit_scale() -> None:
    class Unscaled(PixelEncoder):
        logit_scale = None

    found = ConceptSource(Unscaled(), VOCABULARY, temperature=1 / 20).rank(IMAGES, **SIZES)
    expected = ConceptSource(ENCODER, VOCABULARY).rank(IMAGES, **SIZES)
    assert all(found[concept] == expected[concept] for concept in expected)
    assert found.metadata["temperature"] == pytest.approx(0.05)


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan")])
def test_a_temperature_must_be_above_zero(temperature: float) -> None:
    with pytest.raises(InputError, match="`temperature` to be a number, above 0, but got"):
        ConceptSource(ENCODER, VOCABULARY, temperature=temperature)


def test_texts_that_are_not_unit_vectors_are_refused_before_the_images_are_read() -> None:
    class Doubled(Reading):
        def encode_texts(self, texts):
            return 2 * super().encode_texts(texts)

    encoder = Doubled()
    with pytest.raises(InputError, match="`encode_texts` to return unit vectors, but one has length 2"):
        ConceptSource(encoder, VOCABULARY).score(IMAGES)
    assert encoder.seen == 0


@pytest.mark.parametrize(("wrong", "shown"), [(lambda v: v * 0.5, "0.5"), (lambda v: v * float("nan"), "nan")])
def test_images_that_are_not_unit_vectors_are_refused(wrong, shown: str) -> None:
    class Wrong(PixelEncoder):
        def encode_images(self, batch):
            return wrong(super().encode_images(batch))

    with pytest.raises(InputError, match=f"`encode_images` to return unit vectors, but one has length {shown}"):
        ConceptSource(Wrong(), VOCABULARY).score(IMAGES)


def test_vectors_of_another_shape_are_refused() -> None:
    class Transposed(PixelEncoder):
        def encode_texts(self, texts):
            return super().encode_texts(texts).T

    with pytest.raises(InputError, match=r"`encode_texts` to return \[17, d\], but got \(16, 17\)"):
        ConceptSource(Transposed(), VOCABULARY).score(IMAGES)


def test_images_and_texts_of_different_dimensions_are_refused() -> None:
    class TwoSpaces(PixelEncoder):
        def encode_images(self, batch):
            return F.normalize(super().encode_images(batch)[:, :10], dim=1)

    with pytest.raises(InputError, match=r"`encode_images` to return vectors of the texts' 16 dimensions, but got 10"):
        ConceptSource(TwoSpaces(), VOCABULARY).score(IMAGES)


def test_an_encoder_may_return_half_precision_arrays_and_gradients() -> None:
    class Sloppy(PixelEncoder):
        def encode_images(self, batch):
            return super().encode_images(batch).half().requires_grad_()

        def encode_texts(self, texts):
            return super().encode_texts(texts).numpy()

    similarities = ConceptSource(Sloppy(), VOCABULARY).score(IMAGES).similarities()
    assert similarities.dtype == torch.float32
    assert not similarities.requires_grad
    torch.testing.assert_close(similarities, ConceptSource(ENCODER, VOCABULARY).score(IMAGES).similarities(), rtol=0, atol=2e-3)


# --- sets


def test_targets_fit_the_ids() -> None:
    concept_set = ConceptSet("red", "color", ("a", "b"), ("c", "d", "e"))
    assert concept_set.ids == ("a", "b", "c", "d", "e")
    assert concept_set.targets.tolist() == [1, 1, 0, 0, 0]


@pytest.mark.parametrize(("positives", "negatives"), [((), ("c",)), (("a",), ()), (("a", "a"), ("c",)), (("a",), ("c", "c"))])
def test_an_empty_or_repeating_side_is_refused(positives, negatives) -> None:
    with pytest.raises(InputError, match="positives and negatives of 'red', each image once, but a side is empty or repeats one"):
        ConceptSet("red", "color", positives, negatives)


def test_an_image_on_both_sides_is_refused() -> None:
    with pytest.raises(InputError, match="no image on both sides of 'red', but 'b' is"):
        ConceptSet("red", "color", ("a", "b"), ("b", "c"))


def test_sets_are_a_mapping_that_knows_its_names() -> None:
    sets = ConceptSets({"red": ConceptSet("red", "color", ("a",), ("b",))}, {})
    assert (len(sets), list(sets), "red" in sets, "blue" in sets) == (1, ["red"], True, False)
    with pytest.raises(UnknownNameError, match=r"a concept with sets, but got 'reds'\. Did you mean 'red'"):
        sets["reds"]


def test_a_group_of_one_name_cannot_be_ranked() -> None:
    source = ConceptSource(PixelEncoder(), Vocabulary.from_words(["red"]))
    with pytest.raises(InputError, match="at least two names in a group that is ranked, but 'words' has only 'red'"):
        source.rank(noise_images(9), n_positive=3, n_negative=6)
    with pytest.raises(InputError, match="at least two names in a group that is ranked"):
        source.score(noise_images(9)).rank(n_positive=3, n_negative=6)
    two = Vocabulary([ConceptGroup("color", ("red",), none="none")])
    assert list(ConceptSource(PixelEncoder(), two).rank(noise_images(9), n_positive=3, n_negative=6)) == ["red"]
