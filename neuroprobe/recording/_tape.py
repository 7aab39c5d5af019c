"""Tape: what has been recorded so far, forward pass by forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

import torch

from neuroprobe.exceptions import InputError, UnknownNameError, suggest


class Tape(Mapping[str, torch.Tensor]):
    """What has been recorded so far: layer -> [n_images, n_units], float32, on the CPU.

    The rows of a forward pass come onto the tape together when it ends; one that fails leaves none.
    """

    def __init__(self, layers: Sequence[str], forward: Callable[[], AbstractContextManager[None]]) -> None:
        self._chunks: dict[str, list[torch.Tensor]] = {layer: [] for layer in layers}
        self._missed: dict[str, int] = dict.fromkeys(layers, 0)
        self._pending: dict[str, torch.Tensor] = {}  # of a forward pass that has not ended
        self._alone: set[str] = set()  # layers that ran outside of one since the last
        self._forward = forward

    def forward(self) -> AbstractContextManager[None]:
        """Say that the ``with`` block is one forward pass.

        Needed where that cannot be seen: where a part or another method of the model is called (``encode_image``,
        ``forward_features``) more than once, and where the recorder may stop the forward early or choose its precision.
        """
        return self._forward()

    def __getitem__(self, layer: str) -> torch.Tensor:
        if layer not in self._chunks:
            raise UnknownNameError(f"Expected a recorded layer, but got {layer!r}. {suggest(str(layer), self._chunks)}")
        chunks = self._chunks[layer]
        if not chunks:
            raise UnknownNameError(
                f"Expected a forward pass through {layer!r}, but it was never reached. Run the model inside the `with` block; "
                "if you did, this layer takes no part in its forward (an auxiliary head runs in training mode only)."
            )
        if self._missed[layer]:
            raise InputError(
                f"Expected every forward pass to reach {layer!r}, but it took no part in {self._missed[layer]} of them, so its rows "
                "would not be those of the other layers. Record it alone."
            )
        return torch.cat(chunks)

    def __iter__(self) -> Iterator[str]:
        return iter(self._chunks)

    def __len__(self) -> int:
        return len(self._chunks)

    def __contains__(self, layer: object) -> bool:
        return layer in self._chunks

    def _add(self, layer: str, rows: torch.Tensor, *, pending: bool) -> None:
        """Rows of a forward pass that goes on, or of a part of the model that was called alone."""
        if pending:
            self._pending[layer] = rows
        else:
            self._chunks[layer].append(rows.cpu())
            self._alone.add(layer)

    def _commit(self) -> None:
        """Take the rows of the forward pass over, which has ended."""
        for layer, chunks in self._chunks.items():
            if layer in self._pending:
                chunks.append(self._pending[layer].cpu())
            else:
                self._missed[layer] += 1
        self._pending.clear()

    def _take(self) -> dict[str, torch.Tensor]:
        """Everything on the tape, which is empty then."""
        rows = {layer: self[layer] for layer in self}
        for layer, chunks in self._chunks.items():
            chunks.clear()
            self._missed[layer] = 0
        return rows
