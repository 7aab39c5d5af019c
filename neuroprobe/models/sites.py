"""Site: what a unit is. Where in a forward pass units are read, and in which basis they are counted.

A unit is a site and a number. A layer's name stands for the plain site: the output of that module, as the module gives it. A layer is a
module's full dotted name, exactly as in ``model.named_modules()``: looked up, never matched by prefix or pattern, never evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from neuroprobe._core import identify_function
from neuroprobe.exceptions import InputError, UnknownNameError, shown, suggest
from neuroprobe.models.axes import Layout, check_layout
from neuroprobe.models.outputs import Selection

Side: TypeAlias = Literal["output", "input"]

_SHORT = re.compile(r"#([0-9a-f]{8})[0-9a-f]+")
_TOKEN = re.compile(r"class_token|patches|token \d+")


@runtime_checkable
class Basis(Protocol):
    """What units are counted in, such as the latents of a sparse autoencoder.

    Where it can, it has ``decode(units [..., k]) -> values [..., d]`` too; without it units are read, and not set.

    """

    @property
    def fingerprint(self) -> str:
        """Another one for other weights."""
        ...

    def encode(self, values: torch.Tensor) -> torch.Tensor:
        """Units [..., k] of a layer's values [..., d], at every position by itself."""
        ...


class _Wrapped:
    """A module or a function as a basis, told apart by its code and weights."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], owner: Any, decode: Any = None) -> None:
        self._function, self.owner, self.decode = function, owner, decode
        modules = owner.modules() if isinstance(owner, nn.Module) and function is owner else ()
        self._channels_first = any(isinstance(module, nn.modules.conv._ConvNd) for module in modules)

    @property
    def fingerprint(self) -> str:
        return identify_function(self.owner)

    def encode(self, values: torch.Tensor) -> torch.Tensor:
        if not self._channels_first:
            return self._function(values)
        return self._function(values.movedim(-1, 1)).movedim(1, -1)  # as convolutions want it

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Wrapped) and bool(self.owner == other.owner)

    def __hash__(self) -> int:
        return hash(_Wrapped)


def _as_basis(basis: Any) -> Basis:
    if hasattr(basis, "encode") and not isinstance(basis, type):
        if isinstance(basis, _Wrapped) or isinstance(getattr(basis, "fingerprint", None), str):
            return basis  # type: ignore[no-any-return]
        if isinstance(basis, nn.Module):
            encode: Any = basis.encode
            return _Wrapped(encode, basis, getattr(basis, "decode", None))
        raise InputError(f"Expected a basis that has a `fingerprint`, a text that tells its weights from others, but got {shown(basis)}.")
    if not callable(basis) or isinstance(basis, type):
        raise InputError(f"Expected a basis with `encode` and `fingerprint`, or a function of values [..., d], but got {shown(basis)}.")
    return _Wrapped(basis, basis)


@dataclass(frozen=True)
class Site:
    """Where in a forward pass, and in which basis, units are read.

    Parameters
    ----------
    layer : str
        A module's exact name.
    basis : Basis, module or function, optional
        What units are counted in: an object with ``encode(values [..., d]) -> [..., k]``, a `fingerprint` and, where it can, ``decode``;
        see `neuroprobe.models.Directions`. A `torch.nn.Module` needs no `fingerprint`; one without `encode`, or any function of values
        [..., d], is itself what encodes. A module of convolutions gets the units on axis 1. By default they are what the layer gives.
    side : {"output", "input"}, default "output"
        Of the module.
    call : int, optional
        Which of several calls of the module in a forward pass, from 0.
    select : int, str or callable, optional
        Which part of an output that is a tuple or a dict: its position, its key or a field's name, or a function of the whole.
        By default its one tensor, where all else is None. Of an input, the position or name of an argument.
    layout : {"nchw", "nhwc", "nlc", "lnc"}, optional
        Where units are in tensors of more than two axes; by default it follows from the modules' types.
    tokens : {"class_token", "patches", "token <i>"}, optional
        Of tokens [n, tokens, d]: only the first, all but the first, or the i-th; by default all.
    name : str, optional
        What tables and files call the site.

    Raises
    ------
    InputError, UnknownNameError
        A value that is none of these.

    Examples
    --------
    >>> Site("features.18", call=1).key
    'features.18 (call 1)'
    >>> Site("features.18").identity == as_site("features.18").identity
    True
    """

    layer: str
    basis: Any = None
    side: Side = "output"
    call: int | None = None
    select: Selection | None = None
    layout: Layout | None = None
    tokens: str | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.layer, str) or not self.layer:
            raise InputError(f"Expected a site's layer as a module's name, but got {shown(self.layer)}.")
        if self.side not in ("output", "input"):
            raise UnknownNameError(f"Expected `side` to be 'output' or 'input', but got {self.side!r}.")
        if self.call is not None and (type(self.call) is not int or self.call < 0):
            raise InputError(f"Expected `call` to be a number from 0, but got {self.call!r} for {self.layer!r}. The first call is 0.")
        if self.select is not None and (
            isinstance(self.select, bool) or not (isinstance(self.select, (int, str)) or callable(self.select))
        ):
            raise InputError(f"Expected `select` to be a position, a key or a function, but got {shown(self.select)} for {self.layer!r}.")
        if self.layout is not None:
            check_layout(self.layout)
        if self.tokens is not None and not (isinstance(self.tokens, str) and _TOKEN.fullmatch(self.tokens)):
            raise UnknownNameError(f"Expected `tokens` to be 'class_token', 'patches' or such as 'token 3', but got {self.tokens!r}.")
        if self.name is not None and not (isinstance(self.name, str) and self.name):
            raise InputError(f"Expected `name` to be a text that is not empty, but got {self.name!r}.")
        if self.basis is not None:
            object.__setattr__(self, "basis", _as_basis(self.basis))
        if getattr(self.basis, "layer", self.layer) != self.layer:
            raise InputError(f"Expected directions of {self.layer!r}, but got some of {self.basis.layer!r}.")

    def __hash__(self) -> int:
        return hash((self.layer, self.side, self.call, self.layout, self.tokens, self.name))  # a basis may have no hash

    @cached_property
    def key(self) -> str:
        """What tables and files call it: its name, or the layer's, with what else is not as usual."""
        return self.name or _SHORT.sub(r"#\1", self._described(layout=False))

    @property
    def identity(self) -> str:
        """What tells it from other sites: all of it but the name, with the basis's fingerprint as it is now."""
        return self._described(layout=True)

    def _described(self, *, layout: bool) -> str:
        facts = {
            "at its input": self.side == "input",
            f"call {self.call}": self.call is not None,
            f"part {identify_function(self.select) if callable(self.select) else repr(self.select)}": self.select is not None,
            f"layout {self.layout}": layout and self.layout is not None,
            f"{self.tokens}": self.tokens is not None,
            f"in the basis {self._basis_name()}": self.basis is not None,
        }
        said = ", ".join(text for text, holds in facts.items() if holds)
        return f"{self.layer} ({said})" if said else self.layer

    def _basis_name(self) -> str:
        if self.basis is None:
            return ""
        fingerprint = self.basis.fingerprint
        return fingerprint if "#" in fingerprint else f"{type(self.basis).__name__}#{fingerprint}"

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The basis's module, whose mode and device count too; none if it has none."""
        owner = getattr(self.basis, "owner", self.basis)
        owner = getattr(owner, "__self__", owner)  # of a bound method
        return (owner,) if isinstance(owner, nn.Module) else ()


#: Names or sites, or a function that says of a name and its module whether it is wanted.
Sites: TypeAlias = "Sequence[str | Site] | Callable[[str, nn.Module], bool]"


def as_site(site: str | Site) -> Site:
    """The site that a layer's name stands for, or the site itself; `InputError` for what is neither."""
    return site if isinstance(site, Site) else Site(site)


def check_sites(model: nn.Module, sites: Sites, *, parameter: str = "layers") -> tuple[Site, ...]:
    """The sites as a tuple, if the layer of each is a module of the model that can run, and none is there twice.

    Messages call them `parameter`.

    Raises
    ------
    UnknownNameError
        A name the model does not have; the message names the nearest ones.
    InputError
        A model that hooks do not work in, no sites, one twice, or a layer that never runs itself.
    """
    check_model(model)
    if isinstance(sites, (str, Site)):
        raise InputError(f"Expected `{parameter}` to be a list of names, but got the single name {sites!r}. Write [{sites!r}].")
    if not callable(sites) and not isinstance(sites, Iterable):
        raise InputError(f"Expected `{parameter}` to be a list of names or sites, but got {shown(sites)}.")
    known = {name: module for name, module in model.named_modules(remove_duplicate=False) if name}
    wanted = [n for n, m in model.named_modules() if n and can_run(m) and sites(n, m)] if callable(sites) else list(sites)
    for site in wanted:
        name = site.layer if isinstance(site, Site) else site
        if not isinstance(name, str) or name not in known:
            raise UnknownNameError(
                f"Expected `{parameter}` to be module names of {type(model).__name__}, but got {name!r:.80}. {suggest(str(name), known)}"
            )
        _check_runs(name, known[name])
    found = tuple(map(as_site, wanted))
    keys = [site.key for site in found]
    if not keys or len(set(keys)) < len(keys):
        raise InputError(f"Expected `{parameter}` to name at least one layer, each once, but got {keys}.")
    return found


def check_site(model: nn.Module, site: str | Site) -> Site:
    """The one site; see `check_sites`."""
    return check_sites(model, [site], parameter="layer")[0]


def check_same_site(site: str | Site, identity: str, *, what: str = "these activations") -> None:
    """Raise `InputError` unless the site that is read has the `Site.identity` of which the units of `what` (in the plural) are."""
    expected = as_site(site).identity
    if expected != identity:
        raise InputError(f"Expected units of {_in_words(expected)}, but {what} are of {_in_words(identity)}. Hand in the same Site.")


def find_site(site: str | Site, identities: Mapping[str, str]) -> str:
    """The key under which a site's units are kept: a text as it stands; a `Site` is looked for by its identity, among `identities` by key.

    Raises
    ------
    UnknownNameError
        There is none of its layer.
    InputError
        There is another site of its layer.
    """
    if not isinstance(site, Site):
        if site not in identities:
            raise UnknownNameError(f"Expected a recorded layer, but got {site!r}. {suggest(str(site), identities)}")
        return site
    wanted = site.identity
    for key, identity in identities.items():
        if identity == wanted:
            return key
    for identity in identities.values():
        if identity.partition(" (")[0] == site.layer:
            check_same_site(site, identity)
    raise UnknownNameError(f"Expected a recorded layer, but got {site.key!r}. {suggest(site.layer, identities)}")


def _in_words(identity: str) -> str:
    layer, _, said = _SHORT.sub(r"#\1", identity).partition(" (")
    return f"{layer!r} {said[:-1]}" if said else f"{layer!r} as its module gives them"


def can_run(module: nn.Module) -> bool:
    """Whether it has a forward of its own; containers such as `torch.nn.ModuleList` have none."""
    return type(module).forward is not nn.Module.forward or "forward" in vars(module)


def _check_runs(name: str, module: nn.Module) -> None:
    if not can_run(module):
        members = [f"{name}.{key}" for key, _ in module.named_children()]
        raise InputError(
            f"Expected modules that run, but {name!r} is a {type(module).__name__}, which has no forward of its own. "
            f"Record its members: {', '.join(repr(m) for m in members[:3])}{', ...' if len(members) > 3 else ''}."
        )


def check_model(model: nn.Module) -> None:
    """Raise `InputError` for what hooks do not work in (models spread over devices, compiled, or scripted), with what to record instead."""
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
