"""Layers: what modules a model has, by exact name, and which of them can be recorded.

A layer is a module's full dotted name, exactly as in ``model.named_modules()``. Names are looked up, never matched by
prefix or pattern and never evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torchvision.models.googlenet import InceptionAux as GoogLeNetAux
from torchvision.models.inception import InceptionAux

from neuroprobe.exceptions import InputError, UnknownNameError, suggest
from neuroprobe.models.axes import UnitAxisTracker
from neuroprobe.models.modes import evaluating
from neuroprobe.models.outputs import describe_output

if TYPE_CHECKING:
    import pandas as pd

#: Exact names, or a function that says of a name and its module whether it is wanted.
Layers: TypeAlias = "Sequence[str] | Callable[[str, nn.Module], bool]"


def all_layers(model: nn.Module) -> list[str]:
    """Every module of the model that can run, in the order of ``model.named_modules()``.

    Containers without a forward of their own (`torch.nn.ModuleList`, `torch.nn.ModuleDict`) cannot. Whether a module
    does run is not known before it has: see `list_layers`.
    """
    return [name for name, module in model.named_modules() if name and _can_run(module)]


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
        if _can_run(child):
            yield full, child
        else:
            yield from _running_children(full, child)


def _holds_blocks(module: nn.Module) -> bool:
    """Whether there is a container in it (or it is one) of modules that have children themselves."""
    containers = (m for m in module.modules() if isinstance(m, (nn.Sequential, nn.ModuleList, nn.ModuleDict)))
    return any(any(True for _ in member.children()) for container in containers for member in container.children())


def _can_run(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward or "forward" in vars(module)


def check_layers(model: nn.Module, layers: Layers) -> tuple[str, ...]:
    """The layers as a tuple, if every one is a module of the model that can run, and none is there twice.

    Parameters
    ----------
    model : torch.nn.Module
    layers : sequence of str, or callable
        Exact names, or a function of (name, module).

    Raises
    ------
    UnknownNameError
        A name the model does not have; the message names the nearest ones.
    InputError
        No layers, one twice, or one that never runs itself.
    """
    if isinstance(layers, str):
        raise InputError(f"Expected `layers` to be a list of names, but got the single name {layers!r}. Write [{layers!r}].")
    known = {name: module for name, module in model.named_modules(remove_duplicate=False) if name}
    names = _chosen(model, layers) if callable(layers) else tuple(layers)
    for name in names:
        if not isinstance(name, str) or name not in known:
            raise UnknownNameError(
                f"Expected `layers` to be module names of {type(model).__name__}, but got {name!r}. {suggest(str(name), known)}"
            )
        _check_runs(name, known[name])
    if not names or len(set(names)) < len(names):
        raise InputError(f"Expected `layers` to name at least one layer, each once, but got {list(names)}.")
    return names


def _chosen(model: nn.Module, wanted: Callable[[str, nn.Module], bool]) -> tuple[str, ...]:
    modules = dict(model.named_modules())
    return tuple(name for name in all_layers(model) if wanted(name, modules[name]))


def _check_runs(name: str, module: nn.Module) -> None:
    if not _can_run(module):
        members = [f"{name}.{key}" for key, _ in module.named_children()]
        raise InputError(
            f"Expected modules that run, but {name!r} is a {type(module).__name__}, which has no forward of its own. "
            f"Record its members: {', '.join(repr(m) for m in members[:3])}{', ...' if len(members) > 3 else ''}."
        )


def check_model(model: nn.Module) -> None:
    """Refuse what hooks do not work in: models spread over devices, compiled, or scripted.

    Raises
    ------
    InputError
        With what to record instead.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"Expected a torch.nn.Module, but got {type(model).__name__}.")
    for name, module in model.named_modules():
        found = _obstacle(module)
        if found:
            inside = f" (at {name!r})" if name else ""
            raise InputError(f"Expected a plain model, but got {type(module).__name__}{inside}: {found}")


def _obstacle(module: nn.Module) -> str | None:
    if isinstance(module, (DataParallel, DistributedDataParallel)):
        return "its replicas run beside each other and their rows would mix. Record the model in it: model.module."
    if isinstance(module, torch.jit.ScriptModule):
        return "hooks inside it never run. Record the model it was made from, before torch.jit.script or torch.jit.trace."
    if hasattr(module, "_orig_mod"):
        return "hooks added after torch.compile never run. Record the model in it: model._orig_mod."
    if getattr(module, "_compiled_call_impl", None) is not None:
        return "hooks added after model.compile() never run. Record a copy, which is not compiled: copy.deepcopy(model)."
    return None


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
    seen = _Seen()
    seen.watch(model, example)
    rows = [(name, type(module).__name__, *seen.row(module)) for name, module in model.named_modules() if name]
    return pd.DataFrame(rows, columns=["name", "type", "shape", "units", "calls"]).astype({"units": "Int64"})


class _Seen:
    """What the modules did in one forward pass: the shape and number of units of their first outputs, and calls."""

    def __init__(self) -> None:
        self._tracker = UnitAxisTracker()
        self._first: dict[nn.Module, tuple[Any, int | None]] = {}
        self._calls: dict[nn.Module, int] = {}

    def watch(self, model: nn.Module, example: Any) -> None:
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(evaluating(model))
            stack.enter_context(self._tracker.following(model))
            for module in model.modules():
                stack.callback(module.register_forward_hook(self._note).remove)
            _run(model, example)

    def _note(self, module: nn.Module, args: Any, output: Any) -> None:
        self._calls[module] = self._calls.get(module, 0) + 1
        if module not in self._first:
            shape = tuple(output.shape) if isinstance(output, torch.Tensor) else describe_output(output)
            self._first[module] = (shape, self._n_units(output))

    def _n_units(self, output: Any) -> int | None:
        try:
            return int(output.shape[self._tracker.axes(output, layer="").units]) if isinstance(output, torch.Tensor) else None
        except InputError:
            return None

    def row(self, module: nn.Module) -> tuple[Any, int | None, int]:
        return (*self._first.get(module, (None, None)), self._calls.get(module, 0))


def _run(model: nn.Module, example: Any) -> None:
    if isinstance(example, Mapping):
        model(**example)
    elif isinstance(example, tuple):
        model(*example)
    else:
        model(example)
