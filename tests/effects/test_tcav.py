from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from helpers import noise_images
from scipy import stats
from torch import nn

from neuroprobe import ActivationRecorder, Images
from neuroprobe.effects._gradients import directional_derivatives
from neuroprobe.effects._tcav import _tested, tcav
from neuroprobe.exceptions import InputError, UnknownNameError
from neuroprobe.models import Direction
from neuroprobe.probing import LinearProbe, make_probe
from neuroprobe.world import ATTRIBUTES, WorldDataset, load_target, target_transform


def transform(image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)


@pytest.fixture
def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(128, 4)).eval()


def direction(layer: str, n: int, *, concept: str = "red", seed: int = 0, kind: str = "linear", features: str = "pooled") -> Direction:
    return Direction(concept, "model", layer, features, kind, seed, np.random.default_rng(seed).normal(size=n), 0.0)


SMALL = {"transform": transform, "n_random": 20, "n_positive": 10, "n_negative": 15}


def test_scores_by_hand() -> None:
    # two seeds, four images: shares 3/4 and 1/2, means 1 and -.25; random concepts: means 1, 2, 3, 4, shares 1
    ours = np.array([[1.0, 2, 3, -2], [1, 1, -1, -2]])
    null = np.repeat([[1.0], [2], [3], [4]], 4, axis=1)
    found = _tested(ours, null, "derivative")
    assert found["score"] == 0.625
    assert found["derivative"] == pytest.approx(0.375)
    assert (found["random_score"], found["random_score_std"]) == (1, 0)
    spread = np.std([1, 2, 3, 4], ddof=1)
    assert found["random_derivative_std"] == pytest.approx(spread)
    assert found["p_value"] == pytest.approx(2 * stats.t.sf((2.5 - 0.375) / (spread * np.sqrt(1.25)), 3))
    shares = _tested(ours, ours, "share")
    assert shares["p_value"] == pytest.approx(1)


def test_the_papers_test_is_welchs() -> None:
    generator = np.random.default_rng(0)
    ours, null = generator.normal(1, 1, size=(5, 30)), generator.normal(size=(20, 30))
    expected = stats.ttest_ind((ours > 0).mean(1), (null > 0).mean(1), equal_var=False).pvalue
    assert _tested(ours, null, "share")["p_value"] == pytest.approx(expected)
    assert _tested(np.ones((3, 5)), np.ones((20, 5)), "share")["p_value"] == 1
    assert _tested(np.ones((3, 5)), -np.ones((20, 5)), "share")["p_value"] == 0


def test_p_values_are_uniform_for_what_is_random() -> None:
    generator = np.random.default_rng(0)
    found = [
        _tested(generator.normal(size=(1, 1)) * [[1, 1]], generator.normal(size=(25, 1)) * [[1, 1]], "derivative") for _ in range(2000)
    ]
    p = np.array([one["p_value"] for one in found])
    for level in (0.05, 0.3):
        assert np.mean(p <= level) == pytest.approx(level, abs=0.03)


def test_a_row_per_concept_layer_and_output(net: nn.Module) -> None:
    images, pool = noise_images(6, seed=1), noise_images(30)
    given = [
        direction(layer, n, concept=concept, seed=seed) for concept in ("a", "b") for layer, n in (("0", 6), ("2", 8)) for seed in (1, 2)
    ]
    table = tcav(net, images, given, outputs={"first": 0, "last": 3}, random_images=pool, **SMALL)
    assert table[["concept", "layer", "output"]].drop_duplicates().shape[0] == len(table) == 8
    assert (table["n_directions"] == 2).all()
    assert (table["n_images"] == 6).all()
    derivatives = directional_derivatives(net, images, given, outputs={"first": 0, "last": 3}, transform=transform)
    row = table[(table["concept"] == "b") & (table["layer"] == "2") & (table["output"] == "last")].iloc[0]
    assert row["score"] == pytest.approx((derivatives[6:, 1] > 0).mean())
    assert row["derivative"] == pytest.approx(derivatives[6:, 1].mean())
    assert (table["q_value"] >= table["p_value"]).all()


def test_random_concepts_are_random_choices_of_images(net: nn.Module) -> None:
    pool, images = noise_images(30), noise_images(5, seed=1)
    table = tcav(net, images, direction("2", 8), outputs=1, random_images=pool, seed=4, **SMALL)
    rows = ActivationRecorder(net, ["2"]).record(pool, transform=transform)["2"]
    random = []
    for i in range(20):
        chosen = np.random.default_rng((4, i)).permutation(30)[:25]
        probe = LinearProbe().fit(rows[chosen], np.arange(25) < 10)
        random.append(Direction("", "", "2", "pooled", "linear", 0, probe.coef_[0], 0.0))
    derivatives = directional_derivatives(net, images, random, outputs={"1": 1}, transform=transform)[:, 0]
    assert table["random_score"][0] == pytest.approx((derivatives > 0).mean())
    assert table["random_derivative_std"][0] == pytest.approx(derivatives.mean(axis=1).std(ddof=1), rel=1e-3)


def test_spatial_directions_and_other_kinds(net: nn.Module) -> None:
    given = [direction("2", 8 * 16, features="spatial"), direction("2", 8, kind="mean_difference")]
    table = tcav(net, noise_images(5), given, outputs=0, random_images=noise_images(30), **SMALL)
    assert table["features"].tolist() == ["spatial", "pooled"]
    assert table["kind"].tolist() == ["linear", "mean_difference"]


def test_the_number_of_an_output_may_be_numpys(net: nn.Module) -> None:
    images = noise_images(30)
    tables = [tcav(net, noise_images(5), direction("2", 8), outputs=output, random_images=images, **SMALL) for output in (1, np.int64(1))]
    assert tables[0].equals(tables[1])


def test_what_cannot_be_is_refused(net: nn.Module) -> None:
    def test(given: Direction | list[Direction], **changed):
        return tcav(net, noise_images(5), given, **{"outputs": 0, "random_images": noise_images(30), **SMALL, **changed})

    with pytest.raises(InputError, match="at least 20 random concepts to test against, but got n_random=19"):
        test(direction("2", 8), n_random=19)
    with pytest.raises(InputError, match="at least 31 images for random concepts of 10 and 21, but got 30"):
        test(direction("2", 8), n_negative=21)
    with pytest.raises(InputError, match=r"at least one image a side, but got \(0, 15\)"):
        test(direction("2", 8), n_positive=0)
    with pytest.raises(InputError, match="`seed` to be a whole number of at least 0, but got -1"):
        test(direction("2", 8), seed=-1)
    with pytest.raises(InputError, match="a mapping from names to outputs, but got 'first'"):
        test(direction("2", 8), outputs="first")
    with pytest.raises(InputError, match="directions of one checkpoint, the model's, but got some of 'early' and 'model'"):
        test([direction("2", 8), dataclasses.replace(direction("2", 8), checkpoint="early")])
    with pytest.raises(UnknownNameError, match="Did you mean 'share'"):
        test(direction("2", 8), test="shares")
    with pytest.raises(InputError, match="several directions of 'red' in '2'"):
        test(direction("2", 8), test="share")
    with pytest.raises(InputError, match="'nonlinear', whose probes have no coefficients"):
        test(direction("2", 8, kind="nonlinear"))


# --- the world's target, whose outputs are known


def world_directions(rows: dict[str, np.ndarray], targets: np.ndarray, concept: str) -> list[Direction]:
    found = []
    for seed in range(5):
        generator = np.random.default_rng(seed)
        train = np.concatenate([generator.permutation(np.flatnonzero(targets == side))[:n] for side, n in ((True, 70), (False, 140))])
        for layer, values in rows.items():
            probe = make_probe("linear").fit(values[train], targets[train])
            found.append(Direction(concept, "trained", layer, "pooled", "linear", seed, probe.coef_[0], float(probe.intercept_[0])))
    return found


@pytest.mark.slow
def test_the_output_red_depends_on_red_in_late_layers_and_on_no_random_concept() -> None:
    data = WorldDataset(500, seed=5)
    images, red = Images(data), data.truth()[:, ATTRIBUTES.index("red")]
    model, layers = load_target(), ["features.14", "features.17", "features.18"]
    rows = dict(ActivationRecorder(model, layers).record(images, transform=target_transform()).arrays)
    given = world_directions(rows, red, "red")
    for i in range(8):
        chosen = np.random.default_rng(100 + i).permutation(500)[:100]
        given += world_directions(rows, np.isin(np.arange(500), chosen), f"random choice {i}")
    settings = {"outputs": {"red": ATTRIBUTES.index("red")}, "transform": target_transform(), "random_images": images, "n_random": 30}
    shown = images.subset([data.ids[i] for i in np.flatnonzero(red)[:50]])
    table = tcav(model, shown, given, **settings)
    is_red = table["concept"] == "red"
    assert (table["score"][is_red] > 0.95).all()
    assert (table["q_value"][is_red] < 0.001).all()
    assert (table["q_value"][~is_red] > 0.05).all()
    # why the paper's own test is not the default: seeds of one random concept agree, and pass for evidence
    share = tcav(model, shown, given, test="share", **settings)
    assert (share["q_value"][~is_red] < 0.05).mean() > 0.15
