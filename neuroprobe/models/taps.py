"""Taps: the one way in which this library listens to a model's forward pass, replaces what modules give, and stops early.

`tapped` puts hooks on a model for as long as a ``with`` block lasts; they are removed whatever happens. Inside it,

    with tapped(model, ["layer3", Site("layer4", basis=autoencoder)]) as taps:
        with taps.forward():
            model(batch)
        taps["layer3"].values, taps["layer3"].axes

- A `Reading` holds a site's values as the layer's axes are; with a basis, the units are on the last axis. `Reading.by_unit` is
  [n_images, n_units, *positions] in either case. Values are copies: what follows in the model may write into its own.
- A site that is read runs once in a forward pass, or its `call` says which run is meant. Only the first forward pass goes on to its end,
  to see that; the others stop behind the last module that is wanted, with a `BaseException` that no model catches.
- A replacement gets a copy of what its site gives, [n_images, n_units, *positions], may change it in place, and returns what is to be
  there. It acts on every run of the module, or on the `call` that is meant; a site is read before it is replaced. With a basis,
  ``decode(edited) + (x - decode(units))`` goes back where a unit was edited, and ``x`` itself, bit for bit, elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import nn

from neuroprobe.exceptions import InputError, UnknownNameError, suggest
from neuroprobe.models.axes import Axes, UnitAxisTracker
from neuroprobe.models.modes import autocasting, device_of
from neuroprobe.models.outputs import put_back, select_output
from neuroprobe.models.pooling import tokens_of
from neuroprobe.models.sites import Site, Sites, as_site, check_sites

#: From what a site gives, [n_images, n_units, *positions], to what is to be there instead.
Replacement: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Reading:
    """What a site gave in a forward pass.

    Attributes
    ----------
    values : Tensor
        The selected part, of the tokens asked for, in the basis.
    known : Axes or InputError
        What is known of its axes.
    """

    values: torch.Tensor
    known: Axes | InputError

    @property
    def axes(self) -> Axes:
        """Where in `values` units and images are.

        Raises
        ------
        InputError
            That does not follow from the modules, and the site does not say it.
        """
        if isinstance(self.known, InputError):
            raise self.known
        return self.known

    @property
    def by_unit(self) -> torch.Tensor:
        """A view of the values, [n_images, n_units, ...], the positions last."""
        return self.values.movedim((self.axes.images, self.axes.units), (0, 1))


class Run:
    """What a site gives in one run of its module, as long as that lasts.

    Attributes
    ----------
    output : object
        What the module returned, whole; of an input, its one argument, or a dict of arguments by position and name.
    """

    def __init__(self, site: Site, output: Any, tracker: UnitAxisTracker, *, gradients: bool) -> None:
        self.site, self.output = site, output
        self._tracker, self._gradients = tracker, gradients

    @cached_property
    def whole(self) -> torch.Tensor:
        """The selected part of the output."""
        tensor = select_output(self.output, self.site.select, layer=self.site.layer, side=self.site.side)
        return tensor if self._gradients else tensor.detach()

    @cached_property
    def _axes_of_whole(self) -> Axes:
        return self._tracker.axes(self.whole, layer=self.site.layer, layout=self.site.layout)

    @cached_property
    def axes(self) -> Axes:
        """Of `values`; see `Reading.axes`."""
        _, axes = self._tokens(self.whole)
        return axes if self.site.basis is None else Axes(self.values.ndim - 1, axes.images)

    @cached_property
    def values(self) -> torch.Tensor:
        """See `Reading.values`; without a basis a view of the output."""
        if self.site.basis is not None:
            return self.encoded(self._units_last(self.whole))
        return self.whole if self.site.tokens is None else self._tokens(self.whole)[0]

    def _tokens(self, tensor: torch.Tensor) -> tuple[torch.Tensor, Axes]:
        """The tokens that are meant, in a tensor like `whole`: a view, and its axes."""
        axes = self._axes_of_whole
        if self.site.tokens is None:
            return tensor, axes
        found = tokens_of(tensor, self.site.tokens, axes, layer=self.site.layer)
        return found, axes if found.ndim == 3 else Axes(1)

    def _units_last(self, tensor: torch.Tensor) -> torch.Tensor:
        values, axes = self._tokens(tensor)
        return values.movedim(axes.units, -1)

    def encoded(self, values: torch.Tensor) -> torch.Tensor:
        """Units [..., k] of values [..., d]."""
        with nullcontext() if self._gradients else torch.no_grad():
            return self._applied(self.site.basis.encode, values)

    def _applied(self, function: Callable[[torch.Tensor], Any], values: torch.Tensor) -> torch.Tensor:
        """What a function of a basis gives, in its own precision whatever the forward's is."""
        kind = values.device.type
        values = values.float() if torch.is_autocast_enabled(kind) else values
        home = device_of(self.site.modules[0]) if self.site.modules else values.device
        with torch.autocast(kind, enabled=False), self._tracker.aside():
            found = function(values.to(home))
        if not isinstance(found, torch.Tensor) or found.shape[:-1] != values.shape[:-1]:
            what = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise InputError(
                f"Expected the basis of {self.site.layer!r} to make a tensor [{', '.join(map(str, values.shape[:-1]))}, units] of values "
                f"{tuple(values.shape)}, but got {what}."
            )
        return found.to(values.device)

    def reading(self) -> Reading:
        """What it gives, independent of what the model does next."""
        values = self.values
        if values.untyped_storage().data_ptr() == self.whole.untyped_storage().data_ptr():  # of a basis too, as of the identity
            values = values.clone()
        try:
            return Reading(values, self.axes)
        except InputError as error:
            return Reading(values, error)

    def replaced(self, function: Replacement) -> Any:
        """The whole output with what the function gives in the site's place."""
        new = self.whole.clone()
        place, axes = self._tokens(new)
        if self.site.basis is None:
            place = place.movedim((axes.images, axes.units), (0, 1))
            _write(place, function(place), self.site.layer)
            return put_back(self.output, self.site.select, new, layer=self.site.layer)
        place = place.movedim(axes.units, -1)
        values = self._units_last(self.whole)
        units = self.encoded(values)
        edited = units.clone()
        by_unit = edited.movedim((axes.images, -1), (0, 1))
        _write(by_unit, function(by_unit), self.site.layer)
        before, after = (self._applied(self.site.basis.decode, part).to(values.dtype) for part in (units, edited))
        moved = (edited != units).any(-1, keepdim=True)
        kept = values + (after - before) if after.requires_grad else values  # the same bits, and a gradient
        place.copy_(torch.where(moved, after + (values - before), kept))
        return put_back(self.output, self.site.select, new, layer=self.site.layer)


def _write(place: torch.Tensor, new: torch.Tensor, layer: str) -> None:
    """What a replacement gave, into the copy that it got."""
    if new is place:
        return
    if not isinstance(new, torch.Tensor) or new.shape != place.shape:
        what = tuple(new.shape) if isinstance(new, torch.Tensor) else type(new).__name__
        raise InputError(f"Expected a replacement of {layer!r} to return values {tuple(place.shape)}, but got {what}.")
    place.copy_(new)


class _Stop(BaseException):
    """Nothing more is wanted of this forward pass. No `Exception`, so that no model takes it for an error of its own."""

    def __init__(self, owner: Taps) -> None:
        self.owner = owner


class Taps(Mapping[Site, Any]):
    """The forward passes of one model, listened to at some sites; see `tapped` for the parameters.

    Attributes
    ----------
    calls : dict from (layer, side) to int
        How often each module ran in the last forward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[Site],
        *,
        replace: Mapping[Site, Replacement] | None = None,
        stop: bool = True,
        gradients: bool = False,
        every_call: bool = False,
        autocast: torch.dtype | None = None,
        take: Callable[[Site, Run], Any] | None = None,
        keep: Callable[[Mapping[Site, Any], bool], None] | None = None,
    ) -> None:
        self.model = model
        self.sites, self.replace = tuple(sites), dict(replace or {})
        self._stops, self._gradients, self._autocast, self._every_call = stop and not self.replace, gradients, autocast, every_call
        self._take = take or (lambda site, run: run.reading())
        self._keep = keep or (lambda found, whole: None)
        self._tracker = UnitAxisTracker()
        self._at: dict[tuple[str, str], list[Site]] = {}
        for site in dict.fromkeys((*self.sites, *self.replace)):
            self._at.setdefault((site.layer, site.side), []).append(site)
        self._last = {place: max(site.call or 0 for site in here) for place, here in self._at.items()}
        self.calls = dict.fromkeys(self._at, 0)
        self._found: dict[Site, Any] = {}
        self._alone: set[Site] = set()  # read outside of a forward pass since the last
        self._open = False  # in a forward pass whose end will be seen
        self._said = False  # in one that `forward` surrounds
        self._stopping = False  # in one that may end early
        self._left = 0
        self._n_forwards = 0
        self._replaced: set[Site] = set()

    def __getitem__(self, site: str | Site) -> Any:
        wanted = as_site(site)
        if wanted not in self.sites:
            keys = [site.key for site in self.sites]
            raise UnknownNameError(f"Expected a site that is read, but got {wanted.key!r}. {suggest(wanted.key, keys)}")
        if wanted not in self._found:
            raise InputError(f"Expected {wanted.layer!r} to run in a forward pass, but it does not.")
        return self._found[wanted]

    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def __contains__(self, site: object) -> bool:
        """Whether the last forward pass reached it."""
        return isinstance(site, (str, Site)) and as_site(site) in self._found

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The modules of the sites' bases."""
        return tuple(module for here in self._at.values() for site in here for module in site.modules)

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Listen to every forward pass made in the ``with`` block; hooks are removed whatever happens."""
        modules = dict(self.model.named_modules(remove_duplicate=False))
        with ExitStack() as stack:
            stack.callback(self._close)
            stack.enter_context(self._tracker.following(self.model))
            stack.callback(self.model.register_forward_pre_hook(self._before).remove)
            for layer, side in self._at:
                hook = self._hook(layer, side, modules[layer])
                if side == "input":
                    stack.callback(modules[layer].register_forward_pre_hook(_of_input(hook), with_kwargs=True).remove)
                else:
                    stack.callback(modules[layer].register_forward_hook(lambda m, args, output, hook=hook: hook(m, output)).remove)
            stack.callback(self.model.register_forward_hook(self._after).remove)
            yield
        if self._n_forwards and (missed := [site for site in self.replace if site not in self._replaced]):
            raise InputError(f"Expected {missed[0].layer!r} to run in a forward pass, but it does not, so nothing was changed.")

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Say that the ``with`` block is one forward pass; it may end early, and is left then."""
        if self._said:
            raise InputError("Expected one forward pass at a time, but one begins inside another.")
        self._said = True
        self._begin(stopping=self._stops and self._n_forwards > 0)
        stopped = False
        try:
            with autocasting(self.model, self._autocast):
                yield
        except _Stop as stop:
            if stop.owner is not self:
                raise
            stopped = True
        finally:
            self._said = self._stopping = False
        self._end(whole=not stopped)

    def _before(self, module: nn.Module, args: Any) -> None:
        _check_original(module, self.model)
        if self._said:
            return
        if self._stops or self._autocast is not None:
            raise InputError(
                "Expected a forward pass that is surrounded, because it may stop early or has `autocast`. "
                "Write `with tape.forward(): model(batch)`."
            )
        self._begin(stopping=False)

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._open and not self._said:
            self._end(whole=True)

    def _begin(self, *, stopping: bool) -> None:
        self._found.clear()  # of the last forward pass, or of one that failed
        self._alone.clear()
        for place in self.calls:
            self.calls[place] = 0
        self._open, self._stopping, self._left = True, stopping, len(self._at)

    def _end(self, *, whole: bool) -> None:
        for site in self.sites:
            self._check_calls(site, self.calls[site.layer, site.side], whole)
        self._open = False
        self._n_forwards += 1
        self._keep(self._found, True)

    def _close(self) -> None:
        """At the end of the ``with`` block no forward pass goes on."""
        self._open = self._stopping = False

    def _check_calls(self, site: Site, n_calls: int, whole: bool) -> None:
        if site.call is None and n_calls > 1 and not self._every_call:
            raise InputError(
                f"Expected {site.layer!r} to run once in a forward pass, but it runs {n_calls} times. Say which call you mean, "
                f"Site({site.layer!r}, call=0) for the first to {n_calls - 1} for the last, or take the modules around it."
            )
        if site.call is not None and whole and 0 < n_calls <= site.call:
            raise InputError(
                f"Expected a call of {site.layer!r} from 0 to {n_calls - 1}, but got {site.call}: it runs {n_calls} "
                f"{'time' if n_calls == 1 else 'times'} in a forward pass."
            )

    def _hook(self, layer: str, side: str, original: nn.Module) -> Callable[[nn.Module, Any], Any]:
        place, here, calls = (layer, side), self._at[layer, side], self.calls
        read, replaced = [site for site in here if site in self.sites], [site for site in here if site in self.replace]
        last, tracker = self._last[place], self._tracker

        def hook(module: nn.Module, output: Any) -> Any:
            if module is not original:
                _check_original(module, original)
            if not self._open:
                self._check_alone(read, layer)
            number = calls[place]
            calls[place] = number + 1
            for site in read:
                if number == (site.call or 0):
                    self._note(site, self._take(site, Run(site, output, tracker, gradients=self._gradients)))
            new = None
            for site in replaced:
                if site.call is None or number == site.call:
                    output = new = Run(site, output, tracker, gradients=True).replaced(self.replace[site])
                    self._replaced.add(site)
            if number == last:
                self._left -= 1
                if self._stopping and not self._left:
                    raise _Stop(self)
            return new

        return hook

    def _note(self, site: Site, taken: Any) -> None:
        self._found[site] = taken
        if not self._open:
            self._alone.add(site)
            self._keep({site: taken}, False)

    def _check_alone(self, read: Sequence[Site], layer: str) -> None:
        """Outside of a forward pass whose bounds are known, a layer may run once: more would be of several, or of one."""
        chosen = any(site.call is not None for site in read)
        if chosen or any(site in self._alone for site in read):
            raise InputError(
                f"Expected to know where a forward pass begins and ends, but {layer!r} ran {'' if chosen else 'again '}outside of "
                f"{type(self.model).__name__}'s own call (in encode_image, forward_features or the like, or in a part of it). "
                "Write `with tape.forward(): ...` around each forward pass."
            )


def _of_input(hook: Callable[[nn.Module, Any], Any]) -> Callable[[nn.Module, Any, dict[str, Any]], Any]:
    """A hook of what a module is given, which it knows as its one argument, or as a dict by position and name."""

    def before(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        if len(args) == 1 and not kwargs:
            new = hook(module, args[0])
            return None if new is None else ((new,), {})
        new = hook(module, {**dict(enumerate(args)), **kwargs})
        return None if new is None else (tuple(new[i] for i in range(len(args))), {name: new[name] for name in kwargs})

    return before


def _check_original(module: nn.Module, original: nn.Module) -> None:
    if module is not original:
        raise InputError(
            f"Expected {type(original).__name__} itself to run, but a copy of it did, as in DataParallel: the rows of its replicas "
            "would mix. Call the model in it: model.module(batch)."
        )


@contextmanager
def tapped(
    model: nn.Module,
    sites: Sites = (),
    *,
    replace: Mapping[str | Site, Replacement] | None = None,
    stop: bool = True,
    gradients: bool = False,
    every_call: bool = False,
    autocast: torch.dtype | None = None,
    take: Callable[[Site, Run], Any] | None = None,
) -> Iterator[Taps]:
    """Hooks on a model, which read and replace what its sites give, for as long as the ``with`` block lasts.

    Parameters
    ----------
    model : torch.nn.Module
    sites : sequence of str or Site, or callable
        What is read; ``taps[site]`` is then what the last forward pass gave there.
    replace : mapping from str or Site to function, optional
        What is replaced, and by what: see this file's docstring.
    stop : bool, default True
        End forward passes behind the last module that is wanted. Each must then be in a block ``with taps.forward():``. Nothing stops
        where something is replaced.
    gradients : bool, default False
        Keep the graph of what is read.
    every_call : bool, default False
        Take the first run of a module without a `call`, however often it runs.
    autocast : torch.dtype, optional
        Mixed precision of the forward passes.
    take : callable, optional
        From a site and its `Run` to what is kept of it; by default its `Reading`. What it keeps must be no view of the output.

    Raises
    ------
    UnknownNameError, InputError
        On entering, as `check_sites`, or a basis without `decode` where something is replaced. In a forward pass: what a site asks for
        is not there, or its module runs several times. On leaving: a site that is to be replaced took no part.
    """
    changes = {as_site(site): function for site, function in (replace or {}).items()}
    checked = check_sites(model, sites) if callable(sites) or len(sites) or not changes else ()
    for site in check_sites(model, list(changes)) if changes else ():
        if site.basis is not None and getattr(site.basis, "decode", None) is None:
            raise InputError(
                f"Expected a basis with `decode` to set units of {site.layer!r} in, but {site.key!r} can only be read: nothing says what "
                "the layer would give for other units."
            )
        if callable(site.select):
            raise InputError(f"Expected `select` as a position or key where {site.layer!r} is changed, but got a function.")
    options: dict[str, Any] = {"gradients": gradients, "every_call": every_call, "autocast": autocast, "take": take}
    taps = Taps(model, checked, replace=changes, stop=stop and bool(checked), **options)
    with taps.hooked():
        yield taps
