"""Bases of sites, and directions, for the tests of several rooms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from neuroprobe.models import Direction


class Reordered:
    """A basis whose units are the channels in another order."""

    def __init__(self, order: Sequence[int]) -> None:
        self.order, self.back, self.fingerprint = list(order), np.argsort(order).tolist(), f"reordered {tuple(order)}"

    def encode(self, values: torch.Tensor) -> torch.Tensor:
        return values[..., self.order]

    def decode(self, units: torch.Tensor) -> torch.Tensor:
        return units[..., self.back]


def direction(layer: str, weights: Sequence[float] | np.ndarray, features: str = "pooled", *, bias: float = 0.0) -> Direction:
    return Direction("<b>red</b>", "model", layer, features, "linear", 0, np.asarray(weights), bias)
