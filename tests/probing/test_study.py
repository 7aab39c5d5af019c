from __future__ import annotations

import copy
import re
from dataclasses import replace
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score
from torch import nn
from torchvision.models import VisionTransformer

from neuroprobe.concepts import ConceptSet, ConceptSets
from neuroprobe.exceptions import CheckpointError, InputError, UnknownNameError
from neuroprobe.images import Images
from neuroprobe.models import Checkpoints, Directions, Site, as_site
from neuroprobe.probing import BLOG_PROBES, LinearProbe, NonlinearProbe, ProbingStudy, split
from neuroprobe.world import ATTRIBUTES, WorldDataset, load_target, target_checkpoints, target_transform, world_images

IMAGES = world_images(200, seed=5)
TRANSFORM = target_transform()
LINEAR = (("linear", "pooled"),)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return load_target()


def random_set(concept: str, *, n_positive: int = 40, n_negative: int = 60, seed: int = 0) -> ConceptSet:
    """Labels that have nothing to do with the images."""
    ids = np.random.default_rng(seed).permutation(IMAGES.ids).tolist()
    return ConceptSet(concept, "random", tuple(ids[:n_positive]), tuple(ids[n_positive : n_positive + n_negative]))


def true_set(concept: str, *, n: int = 40) -> ConceptSet:
    """Images that show an attribute of the world, and others."""
    shows = WorldDataset(len(IMAGES), seed=5).truth()[:, ATTRIBUTES.index(concept)]
    ids = np.array(IMAGES.ids)
    return ConceptSet(concept, "world", tuple(ids[shows][:n]), tuple(ids[~shows][:n]))


def sets(*concept_sets: ConceptSet) -> ConceptSets:
    return ConceptSets({s.concept: s for s in concept_sets}, {"made": "by hand"})


A, B = random_set("a"), random_set("b", n_positive=20, n_negative=30, seed=1)


def cells(table: pd.DataFrame) -> dict[tuple, tuple]:
    """Everything measured, by what was asked."""
    asked = ["concept", "checkpoint", "layer", "kind", "features", "seed"]
    measured = ["n_train", "n_test", "train_accuracy", "test_accuracy", "baseline"]
    return {tuple(row[c] for c in asked): tuple(row[c] for c in measured) for _, row in table.iterrows()}


# --- the split


@pytest.mark.parametrize("held_out", [0.1, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("seed", [0, 1, 77])
def test_the_parts_are_disjoint_complete_and_stratified(held_out: float, seed: int) -> None:
    concept_set = random_set("a", n_positive=40, n_negative=80)
    parts = split(concept_set, held_out=held_out, seed=seed)
    assert sorted([*parts.train, *parts.test]) == list(range(120))
    assert len(parts.test) == round(120 * held_out)
    for part in (parts.train, parts.test):
        assert concept_set.targets[part].mean() == pytest.approx(1 / 3, abs=1 / len(part))


def test_the_split_follows_the_seed_alone() -> None:
    first, again, other = (split(A, held_out=0.3, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.test, again.test)
    assert set(first.test) != set(other.test)
    renamed = ConceptSet("renamed", "g", tuple(f"x{i}" for i in A.positives), A.negatives)
    np.testing.assert_array_equal(split(renamed, held_out=0.3, seed=3).test, first.test)


@pytest.mark.parametrize("held_out", [0, 1, -0.3, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(held_out: float) -> None:
    with pytest.raises(InputError, match=rf"`held_out` to be a number, above 0 and below 1, but got {held_out}"):
        split(A, held_out=held_out, seed=0)


@pytest.mark.parametrize(
    ("n_positive", "n_negative", "held_out"), [(1, 30, 0.3), (2, 30, 0.05), (30, 2, 0.97), (1, 1, 0.5), (3, 100, 0.1), (100, 3, 0.9)]
)
def test_a_part_with_one_class_is_refused(model, n_positive: int, n_negative: int, held_out: float) -> None:
    few = random_set("few", n_positive=n_positive, n_negative=n_negative)
    with pytest.raises(
        InputError, match=f"both classes of 'few' .* {n_positive} positives and {n_negative} negatives with .* held out .* Give more images"
    ):
        ProbingStudy(model, ["features.1"], sets(A, few), held_out=held_out)


# --- what is measured


@pytest.mark.parametrize("kind", ["linear", "nonlinear"])
def test_random_labels_are_learned_by_heart_and_not_predicted(model, kind: str) -> None:
    """A held-out accuracy that were measured on images the probe has seen would be 1 here."""
    concept_sets = sets(*(random_set(f"random {i}", n_positive=50, n_negative=50, seed=i) for i in range(4)))
    study = ProbingStudy(model, ["features.2"], concept_sets, probes=[(kind, "spatial")], seeds=(0, 1))
    table = study.run(IMAGES, transform=TRANSFORM).table
    assert len(table) == 8
    assert table["train_accuracy"].min() > 0.97
    assert table["test_accuracy"].max() < 0.8
    assert table["test_accuracy"].mean() == pytest.approx(0.5, abs=0.12)
    assert (table["baseline"] == 0.5).all()


def test_a_concept_the_layer_knows_is_read_from_images_not_seen(model) -> None:
    table = (
        ProbingStudy(model, ["classifier"], sets(true_set("striped")), probes=LINEAR, seeds=range(3)).run(IMAGES, transform=TRANSFORM).table
    )
    assert table["test_accuracy"].min() > 0.8


def recorded_by_hand(model: nn.Module, layer: str, ids: tuple[str, ...], features: str) -> np.ndarray:
    """The outputs of the module of exactly this name."""
    taken: list[torch.Tensor] = []
    handle = dict(model.named_modules())[layer].register_forward_hook(lambda module, args, output: taken.append(output))
    part = IMAGES.subset(ids)
    with torch.no_grad():
        model(torch.stack([TRANSFORM(part[i]) for i in range(len(part))]))
    handle.remove()
    (maps,) = taken
    return (maps.flatten(2).mean(dim=2) if features == "pooled" else maps.flatten(1)).numpy()


@pytest.mark.parametrize("layer", ["features.1", "features.10"])
def test_every_number_is_measured_as_it_says(model, layer: str) -> None:
    study = ProbingStudy(model, ["features.1", "features.10"], sets(A), seeds=(2,), held_out=0.4)
    table = study.run(IMAGES, transform=TRANSFORM).table.set_index(["layer", "kind", "features"])
    parts = split(A, held_out=0.4, seed=2)
    held_out = A.targets[parts.test]
    for kind, features in BLOG_PROBES:
        X = recorded_by_hand(model, layer, A.ids, features)
        scaling = "unit" if features == "pooled" else "layer"
        probe = LinearProbe(scaling=scaling) if kind == "linear" else NonlinearProbe(scaling=scaling, random_state=2)
        probe.fit(X[parts.train], A.targets[parts.train])
        row = table.loc[(layer, kind, features)]
        assert (row["n_train"], row["n_test"]) == (60, 40)
        # of a linear probe an image on the edge may fall either way; a nonlinear one starts from other weights of the same law
        near = 0.026 if kind == "linear" else 0.16
        assert row["test_accuracy"] == pytest.approx(probe.score(X[parts.test], held_out), abs=near)
        assert row["train_accuracy"] == pytest.approx(probe.score(X[parts.train], A.targets[parts.train]), abs=near)
        if kind == "linear":
            decision = probe.decision_function(X[parts.test])
            assert row["auroc"] == pytest.approx(roc_auc_score(held_out, decision), abs=0.006)
            assert row["average_precision"] == pytest.approx(average_precision_score(held_out, decision), abs=0.01)
            assert row["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(held_out, decision > 0), abs=0.026)
        assert row["baseline"] == max(np.mean(held_out == 0), np.mean(held_out == 1))
        assert row["probe"] == f"prob-layer-{kind}"


def test_a_layer_is_exactly_the_module_of_that_name(model) -> None:
    """Not everything whose name begins so: the blog's row module:1 was the maximum over modules 10 to 18."""
    layers = ["features.1", *(f"features.{i}" for i in range(10, 19))]
    whole = cells(ProbingStudy(model, layers, sets(A), probes=LINEAR, seeds=(0, 1)).run(IMAGES, transform=TRANSFORM).table)
    alone = cells(ProbingStudy(model, ["features.1"], sets(A), probes=LINEAR, seeds=(0, 1)).run(IMAGES, transform=TRANSFORM).table)
    assert alone == {key: value for key, value in whole.items() if key[2] == "features.1"}
    # changing the later modules changes nothing that features.1 says
    changed = copy.deepcopy(model)
    for i in range(10, 19):
        for parameter in changed.features[i].parameters():
            nn.init.zeros_(parameter)
    assert (
        cells(ProbingStudy(changed, ["features.1"], sets(A), probes=LINEAR, seeds=(0, 1)).run(IMAGES, transform=TRANSFORM).table) == alone
    )


def test_a_result_does_not_depend_on_what_else_is_asked(model) -> None:
    files = target_checkpoints()
    states = {name: torch.load(files[name], weights_only=True) for name in ("step_00000", "step_05000")}
    options = {"checkpoints": states, "seeds": (0, 3), "probes": BLOG_PROBES}
    layers = ["features.18", "features.1"]
    whole = cells(ProbingStudy(model, layers, sets(A, B), **options).run(IMAGES, transform=TRANSFORM).table)
    assert len(whole) == 2 * 2 * 2 * 2 * 3

    def check(layers=layers, concept_sets=None, **changed) -> None:
        part = cells(
            ProbingStudy(model, layers, concept_sets or sets(A, B), **{**options, **changed}).run(IMAGES, transform=TRANSFORM).table
        )
        assert part
        assert part == {key: whole[key] for key in part}

    check(layers=["features.1"])
    check(concept_sets=sets(B))
    check(concept_sets=sets(B, A))
    check(seeds=(3,))
    check(probes=[("nonlinear", "spatial")])
    check(probes=[("nonlinear", "pooled"), ("linear", "pooled")])
    check(checkpoints={"step_05000": states["step_05000"]})


def test_the_number_of_jobs_changes_nothing(model) -> None:
    study = ProbingStudy(model, ["features.1", "features.18"], sets(A, B), seeds=(0, 3), checkpoints={"as it is": model.state_dict()})
    one, two = (study.run(IMAGES, transform=TRANSFORM, n_jobs=n).table for n in (1, 2))
    pd.testing.assert_frame_equal(one, two, check_exact=True)


def test_global_random_states_neither_matter_nor_change(model) -> None:
    def run(seed: int) -> dict:
        np.random.seed(seed)
        torch.manual_seed(seed)
        before = np.random.get_state()[1].tolist(), torch.get_rng_state()
        found = cells(ProbingStudy(model, ["features.18"], sets(B)).run(IMAGES, transform=TRANSFORM).table)
        assert np.random.get_state()[1].tolist() == before[0]
        assert torch.equal(torch.get_rng_state(), before[1])
        return found

    assert run(0) == run(1)


# --- sites


def of_site(model: nn.Module, site: str | Site, **options):
    """A report on one site, which is called "site" in it."""
    given = replace(as_site(site), name="site")
    return ProbingStudy(model, [given], sets(A), seeds=(0, 1), **options).run(IMAGES, transform=TRANSFORM)


def test_an_identity_basis_gives_the_layers_own_bits(model) -> None:
    options = {"probes": [("linear", "pooled"), ("linear", "spatial")], "scopes": ("neuron", "layer", "full")}
    whole = of_site(model, "features.4", **options)
    site = Site("features.4", basis=nn.Identity())
    again = of_site(model, site, **options)
    pd.testing.assert_frame_equal(again.table, whole.table, check_exact=True)
    pd.testing.assert_frame_equal(again.units, whole.units, check_exact=True)
    assert again.metadata["sites"] == {"site": site.identity} != whole.metadata["sites"]


def test_a_basis_that_permutes_channels_gives_what_the_permuted_channels_give(model) -> None:
    order = np.random.default_rng(0).permutation(8)
    whole = of_site(model, "features.4", probes=LINEAR, scopes=("neuron",)).units
    turned = of_site(model, Site("features.4", basis=Directions(np.eye(8)[order])), probes=LINEAR, scopes=("neuron",)).units
    columns = ["test_accuracy", "auroc", "p_value", "q_value"]
    np.testing.assert_allclose(turned[columns], whole[columns].iloc[order])


def test_a_transformers_class_token_by_pooling_and_by_site() -> None:
    torch.manual_seed(0)
    vit = VisionTransformer(image_size=64, patch_size=32, num_layers=2, num_heads=2, hidden_dim=12, mlp_dim=16)
    layer = "encoder.layers.encoder_layer_1"
    by_pooling = of_site(vit, layer, probes=LINEAR, pooling="class_token")
    by_site = of_site(vit, Site(layer, tokens="class_token"), probes=LINEAR)
    pd.testing.assert_frame_equal(by_pooling.table, by_site.table)
    assert not by_pooling.table.equals(of_site(vit, layer, probes=LINEAR).table)
    assert by_pooling.metadata["pooling"] == "class_token"


# --- checkpoints


def test_every_checkpoint_is_read_once_and_one_series_is_not_read_again(model) -> None:
    files = dict(list(target_checkpoints().items())[:3])
    with mock.patch("torch.load", wraps=torch.load) as load:
        series = Checkpoints(model, files)
        for checkpoints in (files, series):
            ProbingStudy(model, ["classifier"], sets(B), probes=LINEAR, checkpoints=checkpoints, seeds=(0,)).run(
                IMAGES, transform=TRANSFORM
            )
    assert load.call_count == 2 * 3


def test_every_checkpoint_is_measured_with_its_own_weights(model) -> None:
    files = target_checkpoints()
    concept_sets, chosen = sets(true_set("striped")), ("step_00000", "step_05000")
    together = ProbingStudy(model, ["classifier"], concept_sets, probes=LINEAR, checkpoints={n: files[n] for n in chosen}, seeds=range(3))
    report = together.run(IMAGES, transform=TRANSFORM)
    for name in chosen:
        alone = ProbingStudy(load_target(name), ["classifier"], concept_sets, probes=LINEAR, seeds=range(3)).run(
            IMAGES, transform=TRANSFORM
        )
        part = report.table[report.table["checkpoint"] == name].reset_index(drop=True)
        pd.testing.assert_frame_equal(part.drop(columns="checkpoint"), alone.table.drop(columns="checkpoint"), check_exact=True)
        assert report.metadata["checkpoints"][name] == alone.metadata["checkpoints"]["model"]
    means = report.table.groupby("checkpoint")["test_accuracy"].mean()
    assert means["step_05000"] > means["step_00000"]


class Unread:
    """A transform that must not be called."""

    def __call__(self, image):
        raise AssertionError("an image was read")


def test_checkpoints_of_equal_weights_are_refused_naming_both(model) -> None:
    state = model.state_dict()
    checkpoints = {
        "epoch 30": state,
        "epoch 60": torch.load(target_checkpoints()["step_00000"], weights_only=True),
        "epoch 90": dict(state),
    }
    with pytest.raises(CheckpointError, match=r"checkpoints that differ, but 'epoch 30' and 'epoch 90' have the same weights\. Remove one"):
        ProbingStudy(model, ["features.1"], sets(A), checkpoints=checkpoints).run(IMAGES, transform=Unread())


def test_checkpoints_that_do_not_fit_are_refused_before_any_recording(model) -> None:
    state = model.state_dict()
    last = "classifier.1.bias"
    wrong = {
        "lacking": ({k: v for k, v in state.items() if k != last}, rf"'lacking' keys are 1 missing \(such as '{re.escape(last)}'\)"),
        "with more": ({**state, "head.weight": torch.zeros(2)}, r"'with more' keys are 1 left over \(such as 'head\.weight'\)"),
        "narrow": ({**state, last: torch.zeros(3)}, rf"'narrow' keys are 1 of another shape \(such as '{re.escape(last)}'\)"),
    }
    good = torch.load(target_checkpoints()["step_00000"], weights_only=True)
    for name, (bad, message) in wrong.items():
        with pytest.raises(CheckpointError, match=message):
            ProbingStudy(model, ["features.1"], sets(A), checkpoints={"good": good, name: bad}).run(IMAGES, transform=Unread())


@pytest.mark.parametrize("checkpoints", [None, "two"])
def test_the_given_model_is_untouched(checkpoints) -> None:
    model = load_target("step_00150")
    model.train()
    model.features[3].eval()
    state, flags = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    given = {n: target_checkpoints()[n] for n in ("step_00000", "step_05000")} if checkpoints else None
    ProbingStudy(model, ["features.1"], sets(B), probes=LINEAR, checkpoints=given).run(IMAGES, transform=TRANSFORM)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == flags
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# --- the report, and what is refused


def test_the_report_says_how_it_was_made(model) -> None:
    metadata = (
        ProbingStudy(model, ["features.1"], sets(A), probes=LINEAR, seeds=(4, 2), held_out=0.25).run(IMAGES, transform=TRANSFORM).metadata
    )
    assert (metadata["seeds"], metadata["held_out"], metadata["concept_sets"]) == ([4, 2], 0.25, {"made": "by hand"})
    assert set(metadata["checkpoints"]) == {"model"}
    assert "CenterCrop" in metadata["transform"]


def test_an_image_that_cannot_be_read_is_told_by_its_concept(model, tmp_path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(20)]
    for i, path in enumerate(paths):
        IMAGES[i].save(path)
    paths[3].write_bytes(b"no image")
    images = Images(paths, on_error="skip")
    concept_set = ConceptSet("a", "g", tuple(images.ids[:10]), tuple(images.ids[10:]))
    with pytest.raises(InputError, match=r"every image of 'a' to be readable, but '.*/3\.png' is not"):
        ProbingStudy(model, ["features.1"], sets(concept_set), probes=LINEAR).run(images, transform=TRANSFORM)


def test_images_that_are_not_in_the_probing_set_are_refused(model) -> None:
    with pytest.raises(UnknownNameError, match="ids of this probing set, but got 'world-5-"):
        ProbingStudy(model, ["features.1"], sets(A)).run(world_images(30, seed=6), transform=Unread())
