"""Recording at sites: with the identity as basis the layer's bits, with a basis that permutes what the permuted channel gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from neuroprobe import ActivationRecorder, Activations, ActivationSummary, Images, Site, record_checkpoints
from neuroprobe._core import fingerprint_model
from neuroprobe.exceptions import InputError, UnknownNameError
from neuroprobe.models import Directions
from neuroprobe.recording import check_layers
from neuroprobe.world import load_target, target_transform

LAYER = "features.6"
ORDER = torch.tensor([5, 0, 3, 7, 1, 6, 2, 4])
SAME = Site(LAYER, basis=Directions(torch.eye(8)), name="same")
PERMUTED = Site(LAYER, basis=Directions(torch.eye(8)[ORDER]), name="permuted")
OPTIONS: dict[str, Any] = {"transform": target_transform(), "batch_size": 5}


@pytest.mark.parametrize("pooling", ["mean", "max", "none", lambda x: x.flatten(1)])
def test_a_whole_set(world: Images, target: nn.Module, pooling: Any, tmp_path: Path) -> None:
    recorder = ActivationRecorder(target, [LAYER, SAME, PERMUTED], pooling=pooling)
    found = recorder.record(world, store=tmp_path / "store", **OPTIONS)
    raw = found[LAYER]
    if callable(pooling):  # which gets the units on the last axis
        raw = raw.reshape(len(raw), 8, -1).transpose(0, 2, 1).reshape(len(raw), -1)
        np.testing.assert_array_equal(found["permuted"].reshape(len(raw), -1, 8), raw.reshape(len(raw), -1, 8)[..., ORDER])
    else:
        by_unit = raw.reshape(len(raw), 8, -1)
        np.testing.assert_array_equal(found["permuted"].reshape(by_unit.shape), by_unit[:, ORDER])
    np.testing.assert_array_equal(found["same"], raw)


def test_summaries_and_checkpoints(world: Images, target: nn.Module, tmp_path: Path) -> None:
    sites = [LAYER, SAME, PERMUTED]
    summary = ActivationRecorder(target, sites).summarize(world, k=3, **OPTIONS)
    assert summary["same"].equals(summary[LAYER])
    np.testing.assert_array_equal(summary[PERMUTED].top_values, summary[LAYER].top_values[ORDER])
    summary.save(tmp_path / "summary.npz")
    assert ActivationSummary.load(tmp_path / "summary.npz").sites == summary.sites
    other = load_target("step_01000")
    series = record_checkpoints(target, {"a": target.state_dict(), "b": other.state_dict()}, world, layers=sites, **OPTIONS)
    assert [series[name].metadata["model"] for name in "ab"] == [fingerprint_model(model) for model in (target, other)]
    np.testing.assert_array_equal(series["a"][SAME], series["a"][LAYER])
    np.testing.assert_array_equal(series["a"][PERMUTED], series["a"][LAYER][:, ORDER])


@pytest.fixture
def latents(world: Images, target: nn.Module, tmp_path: Path) -> Activations:
    """Of a store that is read again."""
    ActivationRecorder(target, [PERMUTED, Site(LAYER, call=0)]).record(world, store=tmp_path / "store", **OPTIONS)
    return Activations.open(tmp_path / "store")


def test_units_belong_to_their_site(latents: Activations) -> None:
    assert latents.sites == {"permuted": PERMUTED.identity, "features.6 (call 0)": "features.6 (call 0)"}
    assert list(latents) == list(latents.layers)
    assert "permuted" in latents
    assert LAYER not in latents
    again = Site(LAYER, basis=Directions(torch.eye(8)[ORDER]))  # by what it is, not by its name
    assert latents[again] is latents["permuted"]
    assert check_layers(latents, [again]) == ["permuted"]
    for other in (SAME, Site(LAYER), Site(LAYER, call=1)):
        with pytest.raises(InputError, match=r"Expected units of 'features.6' .*, but these activations are of 'features.6' in the basis"):
            latents[other]
    with pytest.raises(UnknownNameError, match=r"Expected a recorded layer, but got 'features.7'"):
        latents[Site("features.7")]
    with pytest.raises(UnknownNameError, match=r"Expected a recorded layer, but got 'features.6'"):
        latents[LAYER]


@pytest.mark.parametrize("layers", [[], "permuted", 3, ["permuted", "permuted"], [PERMUTED, "permuted"]])
def test_layers_that_are_no_list_of_them(latents: Activations, layers: Any) -> None:
    with pytest.raises(InputError, match="Expected `layers` to be a list that names at least one layer, each once"):
        check_layers(latents, layers)


def test_a_store_of_another_basis_is_refused(world: Images, target: nn.Module, tmp_path: Path) -> None:
    def record(site: Site) -> None:
        ActivationRecorder(target, [site]).record(world, store=tmp_path / "s", **OPTIONS)

    record(SAME)
    with pytest.raises(RuntimeError, match=r"of the same recording, but in .* sites is"):
        record(Site(LAYER, basis=Directions(2 * torch.eye(8)), name="same"))


def test_a_sites_own_layout_goes_before_that_of_all() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    recorder = ActivationRecorder(model, [Site("0", layout="nlc"), "1"], layout="lnc")
    assert [site.layout for site in recorder.sites] == ["nlc", "lnc"]


def test_arrays_of_ones_own_are_of_plain_layers() -> None:
    found = Activations({"a": np.ones((2, 3), np.float32)}, ("x", "y"), {})
    assert found[Site("a")] is found["a"]
    with pytest.raises(InputError, match="are of 'a' as its module gives them"):
        found[Site("a", side="input")]
