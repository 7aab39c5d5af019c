"""Layers: what modules a model has, by exact name, and which of them can be recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torchvision.models.googlenet import InceptionAux as GoogLeNetAux
from torchvision.models.inception import InceptionAux

from neuroprobe.exceptions import InputError
from neuroprobe.models.modes import evaluating
from neuroprobe.models.outputs import describe_output
from neuroprobe.models.sites import Site, can_run, check_model
from neuroprobe.models.taps import Run, Taps

if TYPE_CHECKING:
    import pandas as pd


def all_layers(model: nn.Module) -> list[str]:
    """Every module of the model that can run, in the order of ``model.named_modules()``.

    Containers without a forward of their own (`torch.nn.ModuleList`, `torch.nn.ModuleDict`) cannot. Whether a module
    does run is not known before it has: see `list_layers`.
    """
    return [name for name, module in model.named_modules() if name and can_run(module)]


def block_layers(model: nn.Module) -> list[str]:
    """The model's blocks: what one would name to record "every layer" of it.

    The direct children; and in place of a child that alone holds all the blocks (MobileNetV2's ``features``, the
    ``encoder`` of a vision transformer) its own children, and so on. So ``conv1``, ..., ``layer1`` to ``layer4``, ...
    of a ResNet, ``features.0`` to ``features.18`` and ``classifier`` of MobileNetV2, ``conv_proj``,
    ``encoder.layers.encoder_layer_0``, ... of a vision transformer. The auxiliary heads of GoogLeNet and Inception,
    which run in training only, are left out.

    Examples
    --------
    >>> import torchvision
    >>> block_layers(torchvision.models.resnet18())[4:]
    ['layer1', 'layer2', 'layer3', 'layer4', 'avgpool', 'fc']
    """
    return [name for name, module in _blocks("", model) if not isinstance(module, (GoogLeNetAux, InceptionAux))]


def _blocks(prefix: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    children = list(_running_children(prefix, module))
    trunks = [child for _, child in children if _holds_blocks(child)]
    if not trunks:  # no deeper structure: a VGG's `features` is opened only if nothing tells blocks apart
        trunks = [child for _, child in children if type(child) is nn.Sequential]
    elif len(trunks) > 1:
        trunks = []
    found: list[tuple[str, nn.Module]] = []
    for name, child in children:
        found += _blocks(name, child) if any(child is trunk for trunk in trunks) else [(name, child)]
    return found


def _running_children(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The children of a module; in place of one that cannot run itself, its own."""
    for name, child in module.named_children():
        full = f"{prefix}.{name}" if prefix else name
        if can_run(child):
            yield full, child
        else:
            yield from _running_children(full, child)


def _holds_blocks(module: nn.Module) -> bool:
    """Whether there is a container in it (or it is one) of modules that have children themselves."""
    containers = (m for m in module.modules() if isinstance(m, (nn.Sequential, nn.ModuleList, nn.ModuleDict)))
    return any(any(True for _ in member.children()) for container in containers for member in container.children())


def list_layers(model: nn.Module, example: Any) -> pd.DataFrame:
    """A table of the model's modules, from one forward pass in evaluation mode.

    Parameters
    ----------
    model : torch.nn.Module
        Left exactly as found.
    example : Tensor, tuple or mapping
        An input for the model: a batch of one image is enough; a tuple holds several arguments, a mapping keywords.

    Returns
    -------
    pandas.DataFrame
        A row per module: ``name``; ``type``; ``shape`` of what it returned for the example, a text where that is no
        tensor; ``units``, how many it has, missing where their axis is not known (say it with ``layout``) or nothing was
        returned; ``calls``, how often it ran: with 0 it cannot be recorded in evaluation mode, with more than one the
        recorder must be told which (``call``).

    Examples
    --------
    >>> import torch, torchvision
    >>> table = list_layers(torchvision.models.mobilenet_v2(), torch.zeros(1, 3, 32, 32))
    >>> table.loc[table["name"].isin(["features.1", "features.18"]), ["name", "shape", "units", "calls"]]
                name            shape  units  calls
    5     features.1  (1, 16, 16, 16)     16      1
    205  features.18  (1, 1280, 1, 1)   1280      1
    """
    import pandas as pd

    check_model(model)
    names = {module: name for name, module in model.named_modules() if name}
    wanted = [Site(name) for module, name in names.items() if can_run(module)]
    seen: dict[str, tuple[Any, int | None]] = {}
    taps = Taps(model, wanted, stop=False, every_call=True, take=lambda site, run: seen.setdefault(site.layer, _shape_and_units(run)))
    with torch.no_grad(), evaluating(model), taps.hooked():
        _run(model, example)
    calls = {layer: n for (layer, _), n in taps.calls.items()}
    rows = [(name, type(m).__name__, *seen.get(name, (None, None)), calls.get(name, 0)) for m, name in names.items()]
    return pd.DataFrame(rows, columns=["name", "type", "shape", "units", "calls"]).astype({"units": "Int64"})


def _shape_and_units(run: Run) -> tuple[Any, int | None]:
    """What a module returned: a tensor's shape or a text, and its number of units if that is known."""
    if not isinstance(run.output, torch.Tensor):
        return describe_output(run.output), None
    try:
        return tuple(run.output.shape), int(run.output.shape[run.axes.units])
    except InputError:
        return tuple(run.output.shape), None


def _run(model: nn.Module, example: Any) -> None:
    if isinstance(example, Mapping):
        model(**example)
    elif isinstance(example, tuple):
        model(*example)
    else:
        model(example)
