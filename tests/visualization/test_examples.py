"""Dataset examples: the strongest images and those at quantiles, against sorting by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import activations_of

from neuroprobe.exceptions import InputError, UnknownNameError
from neuroprobe.recording import Activations, ActivationSummary
from neuroprobe.recording.summaries import LayerSummary
from neuroprobe.visualization import quantile_examples, top_images
from neuroprobe.visualization.examples import Example, check_examples


def column(*values: float) -> Activations:
    return activations_of({"fc": np.array(values, np.float32)[:, None]})


def summary_of(activations: Activations, *, k: int) -> ActivationSummary:
    found = LayerSummary("fc", activations["fc"].shape[1], k=k)
    found.update(torch.from_numpy(np.array(activations["fc"])), rows=np.arange(len(activations.ids)), batch=0)
    return ActivationSummary({"fc": found.statistics(activations.ids.__getitem__)}, activations.metadata)


def test_the_strongest_images_by_hand() -> None:
    found = top_images(column(0, 5, 2, 5, -1), "fc", 0, k=4)
    assert found == [
        Example("fc", 0, 1, "image 1", 5.0, 1.0, 2, 5, "fc"),  # of equal ones that which comes first
        Example("fc", 0, 3, "image 3", 5.0, 1.0, 2, 5, "fc"),
        Example("fc", 0, 2, "image 2", 2.0, 0.6, 1, 5, "fc"),
        Example("fc", 0, 0, "image 0", 0.0, 0.4, 1, 5, "fc"),
    ]


@pytest.mark.parametrize("rounded", [False, True])
def test_a_summary_gives_the_same(rounded: bool) -> None:
    values = np.random.default_rng(0).normal(size=(60, 7)).astype(np.float32)
    activations = activations_of({"fc": np.round(values) if rounded else values})  # rounded: many ties
    summary, all_kept = summary_of(activations, k=20), summary_of(activations, k=60)
    for unit in range(7):
        assert top_images(all_kept, "fc", unit, k=60) == top_images(activations, "fc", unit, k=60)
        whole, kept = top_images(activations, "fc", unit, k=9), top_images(summary, "fc", unit, k=9)
        for one, other in zip(whole, kept, strict=True):
            last = summary["fc"].top_values[unit, -1]
            tied = None if one.value == last else one.tied  # of the last value kept, some may have been left out
            assert other == Example(one.layer, one.unit, one.row, one.image_id, one.value, one.quantile, tied, one.n_images, one.site)


def test_shares_against_counting() -> None:
    values = np.random.default_rng(1).integers(0, 6, 50).astype(np.float32)
    for example in top_images(column(*values), "fc", 0, k=50):
        assert example.quantile == sum(v <= example.value for v in values) / 50
        assert example.tied == sum(v == example.value for v in values)
        assert example.varies


def test_a_unit_that_never_varies_says_so() -> None:
    activations = column(3, 3, 3, 3)
    for examples in (top_images(activations, "fc", 0, k=2), top_images(summary_of(activations, k=2), "fc", 0, k=2)):
        assert [(e.row, e.tied, e.varies) for e in examples] == [(0, 4, False), (1, 4, False)]
    assert not quantile_examples(activations, "fc", 0, k=2)[0.5][0].varies
    assert top_images(column(3, 3, 3, 4), "fc", 0, k=2)[1].varies


def test_quantiles_by_hand() -> None:
    # ranks 0 to 10 are the values themselves; the rows are in another order
    activations = column(*(np.arange(11) * 7 % 11))
    found = quantile_examples(activations, "fc", 0, quantiles=(1.0, 0.9, 0.5, 0.0), k=3)
    assert {q: [e.value for e in examples] for q, examples in found.items()} == {
        1.0: [10, 9, 8],
        0.9: [10, 9, 8],  # 9 (0.9 x 10) and its neighbors
        0.5: [6, 5, 4],
        0.0: [2, 1, 0],
    }
    assert [e.value for e in quantile_examples(activations, "fc", 0, quantiles=[0.52], k=2)[0.52]] == [6, 5]  # nearest to 5.2


def nearest_ranks(values: np.ndarray, quantile: float, k: int) -> list[float]:
    """The values of the k nearest ranks, slowly: every image's distance is that of the nearest rank of an equal value."""
    ascending = sorted(values.tolist())
    target = quantile * (len(values) - 1)
    distances = [min(abs(rank - target) for rank, other in enumerate(ascending) if other == value) for value in values.tolist()]
    order = sorted(range(len(values)), key=lambda i: (distances[i], -values[i]))
    return sorted((float(values[i]) for i in order[:k]), reverse=True)


@pytest.mark.parametrize("levels", [4, 1000])
@pytest.mark.parametrize(("n", "k"), [(37, 5), (37, 2), (6, 1), (4, 1)])  # of equally near ranks the stronger comes first
def test_quantiles_against_counting(levels: int, n: int, k: int) -> None:
    for seed in range(5):
        values = np.random.default_rng(seed).integers(0, levels, n).astype(np.float32)
        found = quantile_examples(column(*values), "fc", 0, quantiles=(0.99, 0.9, 0.5, 0.13), k=k)
        for quantile, examples in found.items():
            assert [e.value for e in examples] == nearest_ranks(values, quantile, k)
            assert len({e.row for e in examples}) == k


def test_ties_are_taken_evenly_and_the_top_is_the_top() -> None:
    activations = column(*[0.0] * 90, *[float(i) for i in range(1, 11)])
    median = quantile_examples(activations, "fc", 0)[0.5]
    assert [e.row for e in median] == [15, 45, 75]
    assert [e.tied for e in median] == [90] * 3
    assert median[0].quantile == 0.9
    assert quantile_examples(activations, "fc", 0, k=4)[1.0] == top_images(activations, "fc", 0, k=4)


def test_negative_zero_is_zero() -> None:
    assert [e.row for e in top_images(column(-0.0, 0.0, -1.0), "fc", 0, k=2)] == [0, 1]


def test_what_cannot_be_answered_is_refused() -> None:
    activations = column(1, 2, 3)
    for other in (None, [], {}, [1], "abc", 3, top_images(activations, "fc", 0, k=1)[0]):
        with pytest.raises(InputError, match="Expected examples as top_images"):
            check_examples(other)
    summary = summary_of(activations, k=2)
    for given, layer, unit, k, message in (
        (activations, "fd", 0, 1, "fc"),
        (activations, "fc", 1, 1, "Expected a unit from 0 to 0 of 'fc', but got 1"),
        (summary, "fc", -1, 1, "Expected a unit from 0 to 0 of 'fc', but got -1"),
        (activations, "fc", 0, 4, "Expected `k` from 1 to 3, the number of images, but got 4"),
        (summary, "fc", 0, 3, "Summarize with k=3"),
        ("x", "fc", 0, 1, "Expected activations of every image, but got str 'x'"),
    ):
        with pytest.raises((InputError, UnknownNameError), match=message):
            top_images(given, layer, unit, k=k)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="a summary, which has a unit's ends only"):
        quantile_examples(summary, "fc", 0)  # type: ignore[arg-type]
    for quantiles in ([1.1], [0.5, 0.5], [], 0.5, [float("nan")]):
        with pytest.raises(InputError, match="quantiles"):
            quantile_examples(activations, "fc", 0, quantiles=quantiles, k=1)  # type: ignore[arg-type]
