"""Functions of the user's: one identity for equal code with equal values, another for anything else."""

from __future__ import annotations

import copy
import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms import Compose, Lambda

from neuroprobe._core import identify_function

SCALE = 2.0


def scaled(x: torch.Tensor, *, by: float = 1.0) -> torch.Tensor:
    return x * SCALE * by


def times(factor: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: x * factor


def with_default(factor: float) -> Callable[..., torch.Tensor]:
    def function(x: torch.Tensor, factor: float = factor) -> torch.Tensor:
        return x * factor

    return function


def recursive(n: int) -> int:
    return recursive(n - 1) if n else 0


def linear(seed: int) -> nn.Linear:
    layer = nn.Linear(3, 2)
    nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(layer.bias)
    return layer


class Scaling:
    """An object that can be called, without a ``repr`` of its own."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


DIFFERENT: dict[str, tuple[Any, Any]] = {
    "code of a lambda": (lambda x: x[:, 0], lambda x: x[:, 1]),
    "an attribute's name in it": (lambda x: x.mean(), lambda x: x.amax()),
    "code of a function inside": (lambda x: [y + 1 for y in x], lambda x: [y + 2 for y in x]),
    "a value it encloses": (times(2), times(3)),
    "a tensor it encloses": (times(torch.tensor(2.0)), times(torch.tensor(3.0))),
    "an array it encloses": (times(np.array([2.0])), times(np.array([3.0]))),
    "a function it encloses": (times(times(2)), times(times(3))),
    "a default": (with_default(2), with_default(3)),
    "parameters of a partial": (functools.partial(scaled, by=2), functools.partial(scaled, by=3)),
    "an attribute of an object": (Scaling(2), Scaling(3)),
    "a function in torchvision's": (Compose([Lambda(lambda x: x + 1)]), Compose([Lambda(lambda x: x + 2)])),
    "a module's weights": (linear(0), linear(1)),
    "a module's settings": (nn.Sequential(nn.Softplus(1)), nn.Sequential(nn.Softplus(2))),
    "weights behind a method": (linear(0).forward, linear(1).forward),
    "weights behind a partial": (functools.partial(torch.relu, linear(0)), functools.partial(torch.relu, linear(1))),
    "weights in a closure": (times(linear(0)), times(linear(1))),
    "weights in a list": (times([linear(0)]), times([linear(1)])),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_what_differs_is_told_apart(what: str) -> None:
    first, second = DIFFERENT[what]
    assert identify_function(first) == identify_function(first)
    assert identify_function(first) != identify_function(second)
    assert "0x" not in identify_function(first)


def test_equal_ones_are_equal() -> None:
    assert identify_function(times(2)) == identify_function(times(2))
    assert identify_function(linear(0)) == identify_function(copy.deepcopy(linear(0)))
    assert identify_function(times(linear(0))) == identify_function(times(linear(0)))
    assert identify_function(recursive)


def test_a_global_value_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identify_function(scaled)
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert identify_function(scaled) != before


def test_the_name_is_readable() -> None:
    assert identify_function(scaled).startswith(f"{__name__}.scaled#")
    assert identify_function(linear(0)).startswith("Linear#")
    assert identify_function(torch.relu)


def test_the_same_in_another_process(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\nweights = torch.nn.Linear(2, 2)\ntorch.nn.init.ones_(weights.weight)\ntorch.nn.init.zeros_(weights.bias)\n"
        "def units(x):\n    return weights(x) * {'a', 'b', 'c'}.__len__() if 'x' in {'x', 'y', 'z'} else x\n"
    )
    root = Path(__file__).parents[2]
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(root)!r}]; import mine; from neuroprobe._core import identify_function;"
        "print(identify_function(mine.units))"
    )
    runs = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in range(3)}
    assert len(runs) == 1
