"""Concept sources: which images show which concept, as scores, from which sets are ranked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch.nn import functional as F

from neuroprobe._core import SHOWN_ROWS, check_count, check_number, table_html
from neuroprobe.concepts._ranking import Ranking, RankingOptions, rank_groups
from neuroprobe.concepts._texts import checked_vectors, embed_texts
from neuroprobe.concepts.encoders._base import ImageTextEncoder, PromptTooLongError, shortened
from neuroprobe.concepts.sets import ConceptSets
from neuroprobe.concepts.vocabulary import Vocabulary
from neuroprobe.exceptions import InputError, shown
from neuroprobe.images import BatchRecord, Collected, Images, Transform, check_images, collect
from neuroprobe.recording import Activations, ActivationSummary, Recorded

if TYPE_CHECKING:
    import pandas as pd


class ConceptSource:
    """An image-text encoder asked about a vocabulary.

    Parameters
    ----------
    encoder : ImageTextEncoder
    vocabulary : Vocabulary
    temperature : float, optional
        Of the softmax within a group, over cosine similarities; by default the inverse of the encoder's own
        logit scale.
    text_cache : str or Path, optional
        A folder that keeps the texts' vectors, by the encoder's fingerprint and the texts themselves; several vocabularies,
        encoders and processes may share it. By default none is kept.

    Raises
    ------
    InputError
        The encoder's text vectors are not of unit length.
    PromptTooLongError
        A concept's prompt is longer than the encoder's context; the message names the concept.
    """

    def __init__(
        self,
        encoder: ImageTextEncoder,
        vocabulary: Vocabulary,
        *,
        temperature: float | None = None,
        text_cache: str | Path | None = None,
    ) -> None:
        if temperature is not None:
            check_number("temperature", temperature, low=0, above=True)
        if not isinstance(encoder, ImageTextEncoder):
            raise InputError(
                f"Expected an image-text encoder such as ClipEncoder('ViT-B/16'), but got {encoder!r:.80}. "
                "One of your own needs transform, fingerprint, encode_images and encode_texts."
            )
        if not isinstance(vocabulary, Vocabulary):
            raise InputError(f"Expected a Vocabulary, but got {vocabulary!r:.80}. Make one with Vocabulary.from_words([...]).")
        self.encoder = encoder
        self.vocabulary = vocabulary
        self.temperature = temperature
        self.text_cache = text_cache
        self._text_vectors: torch.Tensor | None = None

    def text_vectors(self, *, progress: bool | None = None) -> torch.Tensor:
        """One unit vector per concept, float32 [n_concepts, d]: the mean over its prompts' unit vectors; computed once.

        A progress bar is shown if `progress` is True, and if it is None, on a terminal and for more than 2,048 prompts.

        Raises
        ------
        InputError
            The encoder's vectors are not of unit length, or those of a concept's prompts cancel out.
        PromptTooLongError
            A concept's prompt is longer than the encoder's context.
        """
        if self._text_vectors is None:
            concepts = self.vocabulary.concepts
            prompts = [prompt for concept in concepts for prompt in concept.prompts]
            try:
                vectors = embed_texts(self.encoder, prompts, cache=self.text_cache, progress=progress)
            except PromptTooLongError as error:
                owners = (concept.name for concept in concepts if error.text in concept.prompts)
                raise PromptTooLongError(error.text, error.limit, next(owners, None)) from error
            self._text_vectors = self._ensembles(vectors)
        return self._text_vectors

    def _ensembles(self, vectors: torch.Tensor) -> torch.Tensor:
        """The mean of each concept's prompts, at unit length: [n_prompts, d] -> [n_concepts, d]."""
        concepts = self.vocabulary.concepts
        owner = torch.tensor([i for i, concept in enumerate(concepts) for _ in concept.prompts])
        sums = torch.zeros(len(concepts), vectors.shape[1]).index_add(0, owner, vectors)
        shortest = int(sums.norm(dim=1).argmin())
        if float(sums[shortest].norm()) < 1e-5:
            raise InputError(f"Expected prompts of {shortened(concepts[shortest].name)} with a mean, but their vectors cancel out.")
        return F.normalize(sums, dim=1)

    def score(
        self, images: Images, *, batch_size: int = 64, workers: int = 0, distributed: bool = False, progress: bool | None = None
    ) -> ConceptScores:
        """Score every concept on every image: the concept-activation matrix of CLIP-Dissect.

        Parameters
        ----------
        images : Images
        batch_size, workers, distributed, progress
            As in `neuroprobe.images.collect`.

        Raises
        ------
        InputError
            No `Images`, or vectors of the encoder that are not of unit length or of the texts' dimensions.
        """
        check_images(images)
        reading: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "distributed": distributed, "progress": progress}
        (scores,) = collect(images, [self.consumer(progress=progress)], description="score", **reading)
        return scores  # type: ignore[no-any-return]

    def rank(
        self,
        images: Images,
        *,
        batch_size: int = 64,
        workers: int = 0,
        distributed: bool = False,
        progress: bool | None = None,
        **ranking: Unpack[RankingOptions],
    ) -> ConceptSets:
        """Score the images as `score` does, and rank them within every group as `ConceptScores.rank` does.

        What is wrong with the arguments of the ranking or the number of images shows before an image is read.
        """
        check_images(images)
        if self._softmax_temperature() is None:
            raise InputError(_NO_TEMPERATURE)
        Ranking(**ranking).check(self.vocabulary, images.known_length)
        scores = self.score(images, batch_size=batch_size, workers=workers, distributed=distributed, progress=progress)
        return scores.rank(**ranking)

    def _softmax_temperature(self) -> float | None:
        scale = getattr(self.encoder, "logit_scale", None)
        return self.temperature if self.temperature is not None else (1 / float(scale) if scale else None)

    def consumer(self, *, progress: bool | None = None) -> ConceptPass:
        """This source as a consumer of `neuroprobe.images.collect`, whose result is the `ConceptScores`.

        The texts are embedded first, so that what is wrong with them shows before the long run.
        """
        self.text_vectors(progress=progress)
        return ConceptPass(self)


class ConceptPass:
    """A consumer that embeds images for a `ConceptSource`."""

    def __init__(self, source: ConceptSource) -> None:
        self._source = source
        self._parts: dict[int, torch.Tensor] = {}

    @property
    def transform(self) -> Transform:
        return self._source.encoder.transform

    def consume(self, batch: torch.Tensor, record: BatchRecord) -> None:
        vectors = checked_vectors(self._source.encoder.encode_images(batch), len(batch), "encode_images")
        d = self._source.text_vectors().shape[1]
        if vectors.shape[1] != d:
            raise InputError(f"Expected `encode_images` to return vectors of the texts' {d} dimensions, but got {vectors.shape[1]}.")
        self._parts[record.number] = vectors

    def finish(self, collected: Collected) -> ConceptScores:
        source = self._source
        return ConceptScores(
            image_vectors=collected.joined(self._parts, width=(source.text_vectors().shape[1],)),
            text_vectors=source.text_vectors(),
            vocabulary=source.vocabulary,
            ids=collected.ids,
            temperature=source._softmax_temperature(),
            metadata={
                "encoder": source.encoder.fingerprint,
                "vocabulary": source.vocabulary.fingerprint,
                "images": collected.fingerprint,
                "skipped": dict(collected.skipped),
            },
        )


@dataclass(frozen=True, eq=False)
class ConceptScores:
    """How much each concept is in each image; kept as embeddings, from which scores are made as they are needed.

    Of `neuroprobe.GivenLabels`, the image vectors are the labels themselves, one dimension per concept, and the
    text vectors the unit matrix: so the "similarities" are the labels, and no vector needs to have unit length.

    Attributes
    ----------
    image_vectors : Tensor, [n_images, d], unit length
    text_vectors : Tensor, [n_concepts, d], unit length
    vocabulary : Vocabulary
    ids : tuple of str
        The images: the rows.
    temperature : float or None
        Of the softmax within a group.
    metadata : mapping
        Fingerprints of encoder, vocabulary and images, and what was skipped.
    """

    image_vectors: torch.Tensor
    text_vectors: torch.Tensor
    vocabulary: Vocabulary
    ids: tuple[str, ...]
    temperature: float | None
    metadata: Mapping[str, Any]

    @property
    def concepts(self) -> tuple[str, ...]:
        """The concepts' names: the columns."""
        return self.vocabulary.names

    @property
    def truth(self) -> torch.Tensor:
        """Which concept is in which image, bool [n_images, n_concepts]; `InputError` unless these are given labels of yes and no."""
        from neuroprobe.concepts._tables import truth_of  # pandas with it, which scoring does without

        return torch.from_numpy(truth_of(self.table))

    @property
    def table(self) -> pd.DataFrame:
        """The given labels that these scores are, [n_images, n_concepts]; `InputError` if they are an encoder's scores."""
        if "labels" not in self.metadata:
            raise InputError("Expected given labels, but got scores of an encoder. Make them with GivenLabels(table).")
        import pandas as pd

        return pd.DataFrame(self.image_vectors.cpu().numpy(), index=list(self.ids), columns=list(self.concepts))

    def similarities(self, columns: slice = slice(None)) -> torch.Tensor:
        """Cosine similarities in [-1, 1], [n_images, n_concepts] or the columns asked for."""
        return self.image_vectors @ self.text_vectors[columns].T

    def blocks(self, size: int = 1024) -> Iterator[tuple[slice, torch.Tensor]]:
        """The cosine similarities, `size` concepts at a time, each with the columns it stands for."""
        check_count("size", size)
        for start in range(0, len(self.concepts), size):
            columns = slice(start, min(start + size, len(self.concepts)))
            yield columns, self.similarities(columns)

    def likelihoods(self, group: str) -> torch.Tensor:
        """Softmax of the similarities within a group, [n_images, n_concepts_of_group], "none" last if it has one.

        Raises
        ------
        UnknownNameError
            No such group.
        InputError
            The encoder has no logit scale and no temperature was given, or these are given labels.
        """
        if "labels" in self.metadata:
            raise InputError("Expected scores of an encoder, but these are given labels. For sets: ConceptSets.from_labels(labels).")
        rows = self.vocabulary.rows_of(group)
        if self.temperature is None:
            raise InputError(_NO_TEMPERATURE)
        return torch.softmax(self.image_vectors @ self.text_vectors[rows].T / self.temperature, dim=1)

    def rank(self, **ranking: Unpack[RankingOptions]) -> ConceptSets:
        """Positives and negatives for every concept, as the probing blog takes them.

        The likeliest images by the softmax within the concept's group are the positives; the negatives are random others.

        Parameters
        ----------
        **ranking
            n_positive, n_negative, seed, negatives, gap, near_duplicates and n_types, as in `neuroprobe.concepts.Ranking`.

        Raises
        ------
        InputError
            Fewer images than positives and negatives together, an argument that `Ranking` refuses, no temperature, or a group
            of one name, within which every image is as likely as every other.
        """
        chosen = Ranking(**ranking)
        chosen.check(self.vocabulary, len(self.ids))
        likelihoods = {group.name: self.likelihoods(group.name).numpy() for group in self.vocabulary.groups}
        sets = rank_groups(self.vocabulary, likelihoods, self.ids, self.image_vectors.numpy(), chosen)
        return ConceptSets(sets, {**self.metadata, "temperature": self.temperature, **chosen.parameters})

    def __repr__(self) -> str:
        return f"ConceptScores({len(self.ids)} images, {len(self.concepts)} concepts)"

    def _repr_html_(self) -> str:
        rows = [(concept,) for concept in islice(self.concepts, SHOWN_ROWS)]
        summary = f"{len(self.ids):,} images, {len(self.concepts):,} concepts"
        return table_html("ConceptScores", summary, ("concept",), rows, n_rows=len(self.concepts))


_NO_TEMPERATURE = "Expected an encoder with `logit_scale`, or a temperature: ConceptSource(encoder, vocabulary, temperature=0.01)."


def check_kinds(activations: Any, scores: Any) -> None:
    """Raise `InputError` unless these are activations, or a summary of them, and concept scores."""
    if not isinstance(activations, (Activations, ActivationSummary)):
        raise InputError(f"Expected activations as ActivationRecorder makes them, but got {shown(activations)}.")
    if not isinstance(scores, ConceptScores):
        raise InputError(f"Expected concept scores as ConceptSource or GivenLabels make them, but got {shown(scores)}.")


def check_encoder(encoder: Any, scores: ConceptScores) -> None:
    """Raise `InputError` unless it is the encoder of images and texts that made the scores."""
    if not isinstance(encoder, ImageTextEncoder):
        raise InputError(f"Expected the image-text encoder of the scores, but got {shown(encoder)}.")
    theirs = scores.metadata.get("encoder")
    if encoder.fingerprint != theirs:
        raise InputError(
            f"Expected the encoder of the scores, whose fingerprint is {theirs}, but got one with {encoder.fingerprint}. "
            "Vectors of two encoders cannot be compared."
        )


def check_same_images(activations: Recorded, scores: ConceptScores) -> None:
    """Raise `InputError` unless activations, or a summary of them, and the scores are of the same images in the same order."""
    check_kinds(activations, scores)
    ours, theirs = activations.metadata.get("images"), scores.metadata.get("images")
    if isinstance(activations, Activations):
        same, known = activations.ids == scores.ids, f"{len(activations.ids)} images"
    else:
        ids = {name for found in activations.statistics.values() for name in found.image_ids.values()}
        same, known = ids <= set(scores.ids), "a summary"
    if not same or ours != theirs:
        raise InputError(
            f"Expected activations and concept scores of the same images in the same order, but got {known} with fingerprint {ours} "
            f"and {len(scores.ids)} images with fingerprint {theirs}. Make both in one pass (neuroprobe.images.collect)."
        )
