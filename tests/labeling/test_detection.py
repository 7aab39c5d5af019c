"""Units as detectors of the images with a concept."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from similarities import by_pair, centered, random_inputs
from sklearn.metrics import average_precision_score, roc_auc_score

from neuroprobe.labeling import auc, average_precision, mean_difference
from neuroprobe.labeling.similarity.detection import images_with


def tied_inputs(n: int = 60, *, share: float = 0.3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Activations of a few values only, and labels 0 and 1."""
    generator = np.random.default_rng(seed)
    activations = np.maximum(generator.integers(-3, 5, size=(n, 6)), 0).astype(np.float32)
    return activations, (generator.random((n, 5)) < share).astype(np.float32)


def slow_auc(x: list[float], labels: list[float]) -> float:
    with_it, without = ([v for v, label in zip(x, labels, strict=True) if label == wanted] for wanted in (1, 0))
    return sum((v > w) + (v == w) / 2 for v in with_it for w in without) / len(with_it) / len(without)


def slow_average_precision(x: list[float], labels: list[float]) -> float:
    precisions = []
    for value, label in zip(x, labels, strict=True):
        if label:
            above = [one for v, one in zip(x, labels, strict=True) if v >= value]
            precisions.append(sum(above) / len(above))
    return sum(precisions) / len(precisions)


def slow_mean_difference(x: list[float], labels: list[float]) -> float:
    with_it, without = ([v for v, label in zip(x, labels, strict=True) if label == wanted] for wanted in (1, 0))
    deviation = math.sqrt(sum(v * v for v in centered(x)) / len(x))
    return (sum(with_it) / len(with_it) - sum(without) / len(without)) / deviation


DETECTION = [(auc, slow_auc), (average_precision, slow_average_precision), (mean_difference, slow_mean_difference)]


@pytest.mark.parametrize(("function", "slow"), DETECTION)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_labels_are_taken_as_they_are_with_ties_right(function, slow, share: float) -> None:
    activations, labels = tied_inputs(share=share)
    labels[3], labels[4] = 1, 0  # every concept is on an image, and not on another
    np.testing.assert_allclose(function(activations, labels), by_pair(slow, activations, labels), atol=2e-6)
    np.testing.assert_allclose(function(activations, labels.astype(bool)), function(activations, labels), atol=1e-6)


@pytest.mark.parametrize(("function", "slow"), DETECTION)
def test_of_scores_the_highest_share_has_the_concept(function, slow) -> None:
    activations, scores = random_inputs()
    labels = np.zeros_like(scores)
    for concept in range(9):
        labels[np.argsort(-scores[:, concept])[:6], concept] = 1
    np.testing.assert_allclose(function(activations, scores, share=0.1), by_pair(slow, activations, labels), atol=2e-6)


def test_auc_and_average_precision_are_those_of_scikit_learn() -> None:
    activations, labels = tied_inputs()
    for unit in range(6):
        for concept in range(5):
            pair = labels[:, concept], activations[:, unit]
            assert auc(activations, labels)[unit, concept] == pytest.approx(roc_auc_score(*pair), abs=1e-6)
            assert average_precision(activations, labels)[unit, concept] == pytest.approx(average_precision_score(*pair), abs=1e-6)


def test_detection_worked_by_hand() -> None:
    activations = np.array([[3.0], [1.0], [1.0], [0.0]])
    labels = np.array([[0.0], [1.0], [0.0], [1.0]])
    # pairs: 1 against 3 (0) and 1 (half); 0 against both (0): 0.5 of 4
    assert auc(activations, labels)[0, 0] == pytest.approx(1 / 8)
    # image 1: itself among three that are at least as high; image 3: both among four
    assert average_precision(activations, labels)[0, 0] == pytest.approx((1 / 3 + 2 / 4) / 2)
    # 0.5 - 2, over sqrt(mean of (1.75, -.25, -.25, -1.25)^2)
    assert mean_difference(activations, labels)[0, 0] == pytest.approx(-1.5 / math.sqrt(4.75 / 4))


@pytest.mark.parametrize(("function", "nothing"), [(auc, 0.5), (average_precision, 0.0), (mean_difference, 0.0)])
def test_a_concept_on_no_or_all_images_says_nothing(function, nothing: float) -> None:
    activations, _ = random_inputs()
    for constant in (0.0, 1.0, 0.3):
        np.testing.assert_allclose(function(activations, np.full((60, 2), constant)), nothing, atol=1e-6)


@pytest.mark.parametrize(("function", "nothing"), [(auc, 0.5), (mean_difference, 0.0)])
def test_a_unit_that_never_varies_detects_nothing(function, nothing: float) -> None:
    _, scores = random_inputs()
    np.testing.assert_allclose(function(np.full((60, 2), 0.1), scores), nothing, atol=1e-6)


def test_ties_at_the_last_place_of_the_share_all_count() -> None:
    scores = torch.tensor([[0.9], [0.5], [0.5], [0.5], [0.1]])
    assert images_with(scores, 0.4)[:, 0].tolist() == [True, True, True, True, False]
    assert images_with(scores, 0.2)[:, 0].tolist() == [True, False, False, False, False]
