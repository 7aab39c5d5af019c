from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest

from neuroprobe.exceptions import InputError
from neuroprobe.models import Direction, directions_from_npz, directions_to_npz, mean_direction


def direction(weights: list[float], **facts) -> Direction:
    known = {
        "concept": "red",
        "checkpoint": "trained",
        "layer": "features.3",
        "features": "pooled",
        "kind": "linear",
        "seed": 0,
        "bias": 0.5,
    }
    return Direction(**{**known, **facts}, weights=np.array(weights))


def test_log_odds_are_of_the_activations_as_they_are() -> None:
    # 3 * 1 + 4 * 2 + .5, and 3 * 0 - 4 + .5
    np.testing.assert_allclose(direction([3, 4]).decision([[1, 2], [0, -1]]), [11.5, -3.5])


def test_the_unit_vector_has_length_1() -> None:
    np.testing.assert_allclose(direction([3, 4]).unit_vector, [0.6, 0.8])
    assert direction([3e-30, 4e-30]).unit_vector.tolist() == pytest.approx([0.6, 0.8])
    assert direction([0, 0]).unit_vector.tolist() == [0, 0]


def test_the_mean_over_seeds_has_the_mean_log_odds() -> None:
    parts = [direction([1, 3], seed=0, bias=1), direction([2, 5], seed=1, bias=0)]
    mean, x = mean_direction(parts), np.random.default_rng(0).normal(size=(5, 2))
    assert mean.seed is None
    np.testing.assert_allclose(mean.decision(x), (parts[0].decision(x) + parts[1].decision(x)) / 2)
    assert mean_direction(parts[:1]) is parts[0]


@pytest.mark.parametrize("other", [{"concept": "blue"}, {"layer": "features.4"}, {"kind": "mean_difference"}, {"checkpoint": "untrained"}])
def test_directions_of_different_things_have_no_mean(other: dict[str, str]) -> None:
    with pytest.raises(InputError, match="Expected directions of one concept, layer and kind of probe"):
        mean_direction([direction([1, 2]), direction([1, 2], **other)])
    with pytest.raises(InputError, match="got 0 of several or none"):
        mean_direction([])


@pytest.mark.parametrize("weights", [[1, np.nan], [np.inf, 0], [[1, 2]], 3.0])
def test_weights_that_are_none_are_refused(weights) -> None:
    with pytest.raises(InputError, match="finite numbers"):
        direction(weights)


def test_what_was_written_is_read() -> None:
    given = [direction([1, 2.5]), direction([3] * 7, concept="縞 \n", layer="none", seed=None, bias=0.1 + 0.2), direction([0])]
    data = directions_to_npz(given)
    for ours, theirs in zip(given, directions_from_npz(data), strict=True):
        for field in dataclasses.fields(Direction):
            if field.name != "weights":
                assert getattr(ours, field.name) == getattr(theirs, field.name)
        np.testing.assert_array_equal(ours.weights, theirs.weights)
        assert theirs.weights.dtype == np.float32
    assert directions_to_npz(directions_from_npz(data)) == data


@pytest.mark.parametrize("data", [b"", b"no archive", pickle.dumps({"facts": 1}), directions_to_npz([direction([1, 2])])[:-40]])
def test_what_is_damaged_or_a_pickle_is_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="Expected the directions of a report"):
        directions_from_npz(data)
