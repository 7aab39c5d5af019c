"""Files of weights: nothing in them is executed, and they are loaded whole or not at all."""

from __future__ import annotations

import argparse
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from neuroprobe._core import fingerprint_model
from neuroprobe.exceptions import CheckpointError, InputError, UnknownNameError
from neuroprobe.models import Checkpoints, load_checkpoint, load_state_dict


def net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())


def assert_same_weights(a: nn.Module, b: Mapping[str, torch.Tensor]) -> None:
    torch.testing.assert_close(dict(a.state_dict()), dict(b), rtol=0, atol=0)


class Malicious:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


class TestReading:
    @pytest.mark.parametrize("key", [None, "state_dict", "model"])
    def test_alone_or_under_a_key(self, tmp_path: Path, key: str | None) -> None:
        state = net(1).state_dict()
        torch.save(state if key is None else {key: state, "epoch": 30}, tmp_path / "w.pt")
        torch.testing.assert_close(dict(load_state_dict(tmp_path / "w.pt")), dict(state))
        assert_same_weights(load_checkpoint(net(0), str(tmp_path / "w.pt")), state)

    def test_options_beside_the_weights_as_torchvisions_script_writes_them(self, tmp_path: Path) -> None:
        state = net(1).state_dict()
        torch.save({"model": state, "epoch": 29, "args": argparse.Namespace(lr=0.045, model="net")}, tmp_path / "w.pth")
        assert_same_weights(load_checkpoint(net(0), tmp_path / "w.pth"), state)
        with pytest.raises(Exception, match="Weights only load failed"):  # what is allowed here is not allowed elsewhere
            torch.load(tmp_path / "w.pth", weights_only=True)

    def test_options_that_hide_code_are_refused(self, tmp_path: Path) -> None:
        trap = Malicious(tmp_path / "executed")
        torch.save({"model": net(1).state_dict(), "args": argparse.Namespace(x=trap)}, tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match="is not: Weights only load failed"):
            load_state_dict(tmp_path / "w.pth")
        assert not trap.path.exists()

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"Expected a file of weights, but there is nothing at '.*gone.pt'"):
            load_state_dict(tmp_path / "gone.pt")

    @pytest.mark.parametrize("legacy", [False, True], ids=["zip", "pickle"])
    @pytest.mark.parametrize("wrapped", [False, True])
    def test_code_is_refused_and_not_executed(self, tmp_path: Path, wrapped: bool, legacy: bool) -> None:
        trap = Malicious(tmp_path / "executed")
        content = {**net().state_dict(), "extra": trap} if wrapped else trap
        torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
        with pytest.raises(CheckpointError, match=r"torch.load\(weights_only=True\) reads, but '.*w.pt' is not: "):
            load_state_dict(tmp_path / "w.pt")
        assert not trap.path.exists()

    def test_a_plain_pickle_is_refused_and_not_executed(self, tmp_path: Path) -> None:
        trap = Malicious(tmp_path / "executed")
        (tmp_path / "w.pt").write_bytes(pickle.dumps(trap))
        with pytest.raises(CheckpointError, match="Expected a file of weights"):
            load_checkpoint(net(), tmp_path / "w.pt")
        assert not trap.path.exists()

    def test_a_whole_pickled_model(self, tmp_path: Path) -> None:
        torch.save(net(), tmp_path / "w.pt")
        with pytest.raises(CheckpointError, match=r"'.*w.pt' is not: Weights only load failed.* Save model.state_dict\(\)") as raised:
            load_state_dict(tmp_path / "w.pt")
        assert "to `False`" not in str(raised.value)  # torch's advice: to read it unsafely

    @pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "error::UserWarning")
    def test_a_torchscript_archive(self, tmp_path: Path) -> None:
        torch.jit.trace(net().eval(), torch.rand(1, 3, 8, 8)).save(str(tmp_path / "w.pt"))
        with pytest.raises(CheckpointError, match=r"a plain state dict, but '.*w.pt' is a TorchScript archive"):
            load_state_dict(tmp_path / "w.pt")

    @pytest.mark.parametrize("content", [b"", b"some text", b"\x80\x04garbage", b"PK\x03\x04 no archive"])
    def test_no_weights_at_all(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "w.pt").write_bytes(content)
        torch.save(net().state_dict(), tmp_path / "half.pt")
        (tmp_path / "half.pt").write_bytes((tmp_path / "half.pt").read_bytes()[:2000])
        for path in (tmp_path / "w.pt", tmp_path / "half.pt", tmp_path):
            with pytest.raises(CheckpointError, match=r"Expected a file of weights that .* reads, but '.*' is not: \S"):
                load_state_dict(path)

    @pytest.mark.parametrize(("content", "kind"), [(torch.zeros(3), "Tensor"), ([1, 2], "list"), ({"epoch": 3}, "dict"), ({}, "dict")])
    def test_other_contents(self, tmp_path: Path, content: object, kind: str) -> None:
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(CheckpointError, match=f"Expected a state dict in '.*w.pt', but it holds {kind}"):
            load_state_dict(tmp_path / "w.pt")


class TestLoading:
    def test_into_the_model_itself(self) -> None:
        model, state = net(0), net(1).state_dict()
        assert load_checkpoint(model, state) is model
        assert_same_weights(model, state)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda s: {k: v for k, v in s.items() if k != "0.bias"}, r"keys are 1 missing \(such as '0.bias'\)"),
            (lambda s: {**s, "head.weight": torch.zeros(2)}, r"keys are 1 left over \(such as 'head.weight'\)"),
            (lambda s: {**s, "0.bias": torch.zeros(5)}, r"keys are 1 of another shape \(such as '0.bias'\)"),
            (lambda s: {**s, "0.bias": torch.zeros(4, 1)}, r"keys are 1 of another shape \(such as '0.bias'\)"),
            (lambda s: {**s, "0.bias": [0, 0, 0, 0]}, r"keys are 1 of another shape \(such as '0.bias'\)"),
            (
                lambda s: {f"net.{k}": v for k, v in s.items()},
                r"6 missing \(such as '0.weight'\), 7 left over \(such as 'net.0.weight'\)",
            ),
        ],
        ids=["missing", "left over", "size", "axes", "no tensor", "prefix"],
    )
    def test_what_does_not_fit_leaves_the_model_unchanged(self, change: object, message: str) -> None:
        model = net(0)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        with pytest.raises(CheckpointError, match=rf"Expected the weights of Sequential, but in 'epoch 30' .*{message}"):
            load_checkpoint(model, change(net(1).state_dict()), name="epoch 30")  # type: ignore[operator]
        assert_same_weights(model, before)

    def test_the_file_is_named(self, tmp_path: Path) -> None:
        torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pt")
        with pytest.raises(CheckpointError, match=r"Expected the weights of Sequential, but in '.*other.pt' keys are 6 missing"):
            load_checkpoint(net(), tmp_path / "other.pt")

    def test_a_state_that_is_no_tensor(self) -> None:
        class Counting(nn.Linear):
            steps = 0

            def get_extra_state(self) -> dict[str, int]:
                return {"steps": self.steps}

            def set_extra_state(self, state: dict[str, int]) -> None:
                self.steps = state["steps"]

        trained = Counting(2, 2)
        trained.steps = 7
        assert load_checkpoint(Counting(2, 2), trained.state_dict()).steps == 7

    def test_half_precision_weights_keep_the_models_own_type(self) -> None:
        state = {k: v.half() if v.is_floating_point() else v for k, v in net(1).state_dict().items()}
        weight = load_checkpoint(net(0), state).get_parameter("0.weight")
        assert weight.dtype == torch.float32
        torch.testing.assert_close(weight.detach(), state["0.weight"].float())

    def test_later_changes_of_the_model_do_not_reach_the_state_dict(self) -> None:
        model, state = net(0), net(1).state_dict()
        before = state["0.bias"].clone()
        with torch.no_grad():
            load_checkpoint(model, state).get_parameter("0.bias").add_(1)
        torch.testing.assert_close(state["0.bias"], before)


class TestASeries:
    def test_every_model_is_known_and_the_given_one_unchanged(self, tmp_path: Path) -> None:
        model = net(0)
        before = fingerprint_model(model)
        torch.save(net(2).state_dict(), tmp_path / "late.pt")
        series = Checkpoints(model, {"late": tmp_path / "late.pt", "early": net(1).state_dict()})
        assert series.fingerprints == {"late": fingerprint_model(net(2)), "early": fingerprint_model(net(1))}
        assert fingerprint_model(model) == before
        assert fingerprint_model(series.load("late", model)) == series.fingerprints["late"]
        assert list(series) == ["late", "early"]

    def test_a_file_is_read_once_and_a_model_hashed_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for i in range(3):
            torch.save(net(i).state_dict(), tmp_path / f"{i}.pt")
        counts = {"read": 0, "hashed": 0}

        def counting(name: str, function: Any) -> Any:
            def counted(*args: Any, **options: Any) -> Any:
                counts[name] += 1
                return function(*args, **options)

            return counted

        monkeypatch.setattr("torch.load", counting("read", torch.load))
        monkeypatch.setattr("neuroprobe.models.checkpoints.fingerprint_model", counting("hashed", fingerprint_model))
        series = Checkpoints(net(0), {str(i): tmp_path / f"{i}.pt" for i in range(3)})
        series.check_distinct()
        for name in series:
            series.load(name, net(5))
        assert Checkpoints.of(net(7), series) is series
        assert counts == {"read": 3, "hashed": 3}
        assert Checkpoints.of(nn.Linear(2, 2), {"a": nn.Linear(2, 2).state_dict()}) is not series

    def test_of_another_model(self) -> None:
        series = Checkpoints(net(0), {"a": net(1).state_dict()})
        with pytest.raises(CheckpointError, match="keys are"):
            Checkpoints.of(nn.Linear(2, 2), series)

    def test_the_same_weights_twice(self, tmp_path: Path) -> None:
        torch.save({"state_dict": net(1).state_dict()}, tmp_path / "w.pt")
        series = Checkpoints(net(0), {"a": net(1).state_dict(), "b": net(2).state_dict(), "c": tmp_path / "w.pt"})
        assert series.firsts == {"a": "a", "b": "b", "c": "a"}
        with pytest.raises(CheckpointError, match="Expected checkpoints that differ, but 'a' and 'c' have the same weights"):
            series.check_distinct()

    def test_the_same_weights_but_for_the_count_of_batches_or_the_type(self) -> None:
        state = net(1).state_dict()
        counted = state | {"1.num_batches_tracked": state["1.num_batches_tracked"] + 1}
        wide = {"module." + key: value.double() for key, value in state.items()}
        for other in (counted, wide):
            with pytest.raises(CheckpointError, match="'a' and 'b' have the same weights"):
                Checkpoints(net(0), {"a": state, "b": other}).check_distinct()
        moved = Checkpoints(net(0), {"a": state, "b": state | {"1.running_mean": state["1.running_mean"] + 1}})
        moved.check_distinct()
        assert len(set(moved.fingerprints.values())) == 2

    @pytest.mark.parametrize("given", [None, [net().state_dict()], "weights.pt", {0: net().state_dict()}])
    def test_what_is_no_series(self, given: Any) -> None:
        with pytest.raises(InputError, match="Expected `checkpoints` as a mapping from names"):
            Checkpoints(net(), given)
        with pytest.raises(CheckpointError, match="Expected at least one checkpoint, but got none"):
            Checkpoints(net(), {})

    def test_one_that_does_not_fit_is_named(self) -> None:
        with pytest.raises(CheckpointError, match="in 'early' keys are 6 missing"):
            Checkpoints(net(), {"late": net(1).state_dict(), "early": nn.Linear(2, 2).state_dict()})
        with pytest.raises(UnknownNameError, match=r"Expected a checkpoint.s name, but got .erly.\. Did you mean .early."):
            Checkpoints(net(), {"early": net().state_dict()}).load("erly", net())


def test_safetensors_files_are_read_and_damaged_ones_refused(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch", reason="the package safetensors is not installed")
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    safetensors.save_file(model.state_dict(), tmp_path / "weights.safetensors")
    load_checkpoint(other, tmp_path / "weights.safetensors")
    assert torch.equal(other.weight, model.weight)
    (tmp_path / "damaged.safetensors").write_bytes((tmp_path / "weights.safetensors").read_bytes()[:-3])
    for name in ("damaged.safetensors", "missing.safetensors"):
        with pytest.raises(CheckpointError, match="Expected a safetensors file"):
            load_checkpoint(other, tmp_path / name)


class TestOtherWriters:
    def test_keys_of_a_parallel_model_and_no_counts_of_batches(self) -> None:
        state = {f"module.{key}": value for key, value in net(1).state_dict().items() if not key.endswith("num_batches_tracked")}
        assert_same_weights(load_checkpoint(net(0), state), net(1).state_dict())

    def test_a_parallel_models_own_keys_are_its_own(self) -> None:
        model = nn.Sequential()
        model.add_module("module", net(0))
        state = {f"module.{key}": value for key, value in net(1).state_dict().items()}
        assert_same_weights(load_checkpoint(model, state).module, net(1).state_dict())
        with pytest.raises(CheckpointError, match="missing"):
            load_checkpoint(model, net(1).state_dict())

    def test_some_keys_with_the_prefix_are_left_over(self) -> None:
        state = dict(net(1).state_dict())
        with pytest.raises(CheckpointError, match="left over"):
            load_checkpoint(net(0), {**state, "module.extra": torch.zeros(1)})
