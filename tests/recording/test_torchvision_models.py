"""Every module of every one of torchvision's classification models, by exact name, against plain forward hooks."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import pandas as pd
import pytest
import torch
import torchvision
from torch import nn

from neuroprobe import ActivationRecorder, Site, all_layers, block_layers, list_layers
from neuroprobe.exceptions import UnknownNameError

NAMES = torchvision.models.list_models(module=torchvision.models)
SAMPLE = ["resnet18", "mobilenet_v2", "googlenet", "swin_v2_t"]  # maxvit_t takes 31 s

#: Smaller than the default where the model allows it; 64 px elsewhere.
SIDES = {"inception_v3": 96, "maxvit_t": 224, "vit_h_14": 28}
OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
    **{name: {"image_size": SIDES.get(name, 64)} for name in NAMES if name.startswith("vit")},
}


@contextmanager
def no_initialization() -> Iterator[None]:
    """Weights are left as they come, since they are filled afterward: the large models would take minutes."""
    with ExitStack() as stack:
        for name in ("normal_", "trunc_normal_", "kaiming_normal_", "kaiming_uniform_", "xavier_uniform_", "uniform_"):
            stack.enter_context(mock.patch.object(nn.init, name, lambda tensor, *args, **kwargs: tensor))
        yield


def small_weights(model: nn.Module) -> None:
    """One stretch of noise over and over, scaled to each parameter's inputs; batch norms as they begin."""
    noise = torch.randn(100_003, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            flat = parameter.view(-1)
            fan_in = max(parameter[0].numel(), 1) if parameter.ndim > 1 else 10
            for start in range(0, len(flat), len(noise)):
                part = flat[start : start + len(noise)]
                torch.mul(noise[: len(part)], (2 / fan_in) ** 0.5, out=part)


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The model with random weights, in evaluation mode, and two images."""
    with no_initialization():
        model = torchvision.models.get_model(name, weights=None, **OPTIONS.get(name, {}))
    small_weights(model)
    side = SIDES.get(name, 64)
    return model.eval(), torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def outputs_by_plain_hooks(model: nn.Module, x: torch.Tensor) -> dict[str, list[torch.Tensor]]:
    """What every module returned at each of its calls; of a tuple the first part."""
    outputs: dict[str, list[torch.Tensor]] = {}

    def hook(name: str) -> Any:
        def save(module: nn.Module, args: Any, output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output
            outputs.setdefault(name, []).append(output.clone())

        return save

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules() if name]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return outputs


def recorded(model: nn.Module, x: torch.Tensor, layers: list[Any], **options: Any) -> dict[str, torch.Tensor]:
    with ActivationRecorder(model, layers, **options).recording() as tape, torch.no_grad():
        model(x)
    return dict(tape)


def walk(name: str) -> None:
    """Every module that runs: at its last call, every value; and which axis holds its units is known."""
    model, x = build(name)
    expected = outputs_by_plain_hooks(model, x)
    assert set(expected) <= set(all_layers(model)), "a module that runs is missing"
    last = {
        layer: Site(
            layer,
            call=len(outputs) - 1 if len(outputs) > 1 else None,
            select=0 if isinstance(model.get_submodule(layer), nn.MultiheadAttention) else None,
        )
        for layer, outputs in expected.items()
    }
    whole = recorded(model, x, list(last.values()), pooling="none")
    table = list_layers(model, x).set_index("name")
    for layer, outputs in expected.items():
        assert outputs[-1].isfinite().all(), layer
        # the first call's axis has as many units as the table says, where it knows; one of such axes must fit, value by value
        units, sizes = table.loc[layer, "units"], outputs[0].shape
        axes = [axis for axis in range(1, len(sizes)) if pd.isna(units) or sizes[axis] == units]
        by_axis = [outputs[-1].movedim(axis, 1).flatten(1) for axis in axes]
        assert any(torch.allclose(whole[last[layer].key], values, rtol=1e-4, atol=1e-5) for values in by_axis), layer
    check_the_others(name, model, x, set(expected))


def check_the_others(name: str, model: nn.Module, x: torch.Tensor, reached: set[str]) -> None:
    """The table agrees; a module that does not run is told; the blocks can all be recorded."""
    table = list_layers(model, x).set_index("name")
    assert set(table.index[table["calls"] > 0]) == reached
    never = [layer for layer in all_layers(model) if layer not in reached]
    if never:
        with pytest.raises(UnknownNameError, match=r"but it was never reached.*an auxiliary head runs in training mode only"):
            recorded(model, x, never[:1])
    blocks = block_layers(model)
    assert all(table.loc[layer, "calls"] == 1 for layer in blocks), f"blocks of {name} that do not run once"
    pooled = recorded(model, x, blocks)
    assert {layer: rows.shape[1] for layer, rows in pooled.items()} == table.loc[blocks, "units"].to_dict()


@pytest.mark.parametrize("name", SAMPLE)
def test_every_module_of_a_sample(name: str) -> None:
    walk(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in SAMPLE])
def test_every_module_of_every_other_model(name: str) -> None:
    walk(name)
    gc.collect()


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_run_in_training_mode(name: str) -> None:
    model, _ = build(name)
    x = torch.randn(2, 3, 299, 299, generator=torch.Generator().manual_seed(1))  # Inception's head needs its full size
    heads = [layer for layer in ("aux1", "aux2", "AuxLogits") if layer in dict(model.named_modules())]
    with torch.no_grad(), ActivationRecorder(model.train(), [*heads, "fc"]).recording() as tape:
        returned = model(x)
    assert type(returned).__name__ in ("GoogLeNetOutputs", "InceptionOutputs")
    torch.testing.assert_close(tape["fc"], returned.logits)
    auxiliary = [part for part in returned[1:] if part is not None]
    assert len(auxiliary) == len(heads) > 0
    for rows in (tape[head] for head in heads):
        assert any(torch.equal(rows, part) for part in auxiliary)
    assert not set(heads) & set(block_layers(model))
