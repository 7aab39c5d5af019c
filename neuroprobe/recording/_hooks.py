"""Hooks: what listens to a model's forward passes for one or several recorders, and may stop them.

One hook per module serves every recorder. What it does is kept short, as it runs in every forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from neuroprobe.exceptions import InputError
from neuroprobe.models import UnitAxisTracker, autocasting, evaluating
from neuroprobe.recording._tape import Tape

if TYPE_CHECKING:
    from neuroprobe.recording.recorder import ActivationRecorder


class _Stop(BaseException):
    """Nothing more is wanted of this forward pass. No `Exception`, so that no model takes it for an error of its own."""

    def __init__(self, owner: Hooks) -> None:
        self.owner = owner


class Hooks:
    """The forward passes of one model, for its recorders.

    Parameters
    ----------
    recorders : mapping from name to ActivationRecorder
        All of one model, in one precision.
    stop_early : bool, default False
        End a forward pass made in `forward` after the last module that is wanted. The first goes on to its end, to see
        how often every module runs.

    Attributes
    ----------
    tapes : mapping from name to Tape

    Raises
    ------
    InputError
        Recorders of several models, or with several precisions.
    """

    def __init__(self, recorders: Mapping[str, ActivationRecorder], *, stop_early: bool = False) -> None:
        self.model, self.autocast = _shared(recorders)
        self.stop_early = stop_early
        self.tapes = {name: Tape(recorder.layers, self.forward) for name, recorder in recorders.items()}
        self._tracker = UnitAxisTracker()
        self._takers: dict[str, list[tuple[ActivationRecorder, Tape, int | None]]] = {}
        for name, recorder in recorders.items():
            for layer in recorder.layers:
                self._takers.setdefault(layer, []).append((recorder, self.tapes[name], recorder.call.get(layer)))
        self._last = {layer: max(call or 0 for *_, call in takers) for layer, takers in self._takers.items()}
        self._functions = [f for recorder in recorders.values() for f in recorder.units.values() if isinstance(f, nn.Module)]
        self._calls = dict.fromkeys(self._takers, 0)
        self._open = False  # in a forward pass whose end will be seen
        self._said = False  # in one that `forward` surrounds
        self._stopping = False  # in one that may end early
        self._left = 0
        self._seen_whole = False

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Listen to every forward pass made in the ``with`` block; hooks are removed whatever happens."""
        modules = dict(self.model.named_modules(remove_duplicate=False))
        with ExitStack() as stack:
            stack.callback(self._close)
            stack.enter_context(self._tracker.following(self.model, *self._functions))
            stack.callback(self.model.register_forward_pre_hook(self._before).remove)
            for layer in self._takers:
                stack.callback(modules[layer].register_forward_hook(self._hook(layer, modules[layer])).remove)
            stack.callback(self.model.register_forward_hook(self._after).remove)
            yield

    @contextmanager
    def forward(self) -> Iterator[None]:
        """One forward pass, in the recorders' precision; it may end early."""
        if self._said:
            raise InputError("Expected one forward pass at a time, but one begins inside another.")
        self._said = True
        self._begin(stopping=self.stop_early and self._seen_whole)
        stopped = False
        try:
            with autocasting(self.model, self.autocast):
                yield
        except _Stop as stop:
            if stop.owner is not self:
                raise
            stopped = True
        finally:
            self._said = self._stopping = False
        self._end(whole=not stopped)

    def run(self, batch: torch.Tensor) -> dict[str, dict[str, torch.Tensor]]:
        """One forward pass in evaluation mode and without gradients: the rows by recorder and layer."""
        with torch.no_grad(), evaluating(self.model, *self._functions), self.hooked(), self.forward():
            self.model(batch)
        return {name: tape._take() for name, tape in self.tapes.items()}

    def _before(self, module: nn.Module, args: Any) -> None:
        self._check_original(module, self.model)
        if self._said:
            return
        if self.stop_early or self.autocast is not None:
            raise InputError(
                "Expected a forward pass that the recorder may surround, because it has `stop_early` or `autocast`. "
                "Write `with tape.forward(): model(batch)`."
            )
        self._begin(stopping=False)

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._open and not self._said:
            self._end(whole=True)

    def _begin(self, *, stopping: bool) -> None:
        for tape in self.tapes.values():
            tape._pending.clear()  # of a forward pass that failed
            tape._alone.clear()
        for layer in self._calls:
            self._calls[layer] = 0
        self._open, self._stopping, self._left = True, stopping, len(self._takers)

    def _end(self, *, whole: bool) -> None:
        for layer, n_calls in self._calls.items():
            self._check_calls(layer, n_calls, whole)
        self._open, self._seen_whole = False, True
        for tape in self.tapes.values():
            tape._commit()

    def _close(self) -> None:
        """At the end of the ``with`` block: no forward pass goes on, and one that failed leaves nothing."""
        for tape in self.tapes.values():
            tape._pending.clear()
            tape._alone.clear()
        self._open = self._stopping = False

    def _check_calls(self, layer: str, n_calls: int, whole: bool) -> None:
        for _, _, call in self._takers[layer]:
            if call is None and n_calls > 1:
                raise InputError(
                    f"Expected {layer!r} to run once in a forward pass, but it runs {n_calls} times. Say which call you mean, "
                    f"call={{{layer!r}: 0}} for the first to {n_calls - 1} for the last, or record the modules around it."
                )
            if call is not None and whole and 0 < n_calls <= call:
                raise InputError(
                    f"Expected a call of {layer!r} from 0 to {n_calls - 1}, but got {call}: it runs {n_calls} "
                    f"{'time' if n_calls == 1 else 'times'} in a forward pass."
                )

    def _hook(self, layer: str, original: nn.Module) -> Callable[[nn.Module, Any, Any], None]:
        calls, takers, last, tracker = self._calls, self._takers[layer], self._last[layer], self._tracker

        def record(module: nn.Module, args: Any, output: Any) -> None:
            if module is not original:
                self._check_original(module, original)
            if not self._open:
                self._check_alone(layer)
            number = calls[layer]
            calls[layer] = number + 1
            for recorder, tape, call in takers:
                if number == (call or 0):
                    tape._add(layer, recorder.rows(layer, output, tracker), pending=self._open)
            if number == last:
                self._left -= 1
                if self._stopping and not self._left:
                    raise _Stop(self)

        return record

    def _check_original(self, module: nn.Module, original: nn.Module) -> None:
        if module is not original:
            raise InputError(
                f"Expected {type(original).__name__} itself to run, but a copy of it did, as in DataParallel: the rows of its replicas "
                "would mix. Call the model in it: model.module(batch)."
            )

    def _check_alone(self, layer: str) -> None:
        """Outside of a forward pass whose bounds are known, a layer may run once: more would be of several, or of one."""
        chosen = any(call is not None for *_, call in self._takers[layer])
        if chosen or any(layer in tape._alone for _, tape, _ in self._takers[layer]):
            raise InputError(
                f"Expected to know where a forward pass begins and ends, but {layer!r} ran {'' if chosen else 'again '}outside of "
                f"{type(self.model).__name__}'s own call (in encode_image, forward_features or the like, or in a part of it). "
                "Write `with tape.forward(): ...` around each forward pass."
            )


def _shared(recorders: Mapping[str, ActivationRecorder]) -> tuple[nn.Module, torch.dtype | None]:
    """What the recorders have in common: the model and the precision."""
    first, *others = recorders.values()
    if any(other.model is not first.model or other.autocast != first.autocast for other in others):
        raise InputError("Expected recorders of one model with one `autocast`, but got several. Give each its own pass.")
    return first.model, first.autocast
