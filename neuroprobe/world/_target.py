"""The world's target: a narrow MobileNetV2 whose 31 outputs are the world's attributes, at seven moments of its training."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torchvision import transforms
from torchvision.models import MobileNetV2

from neuroprobe.exceptions import UnknownNameError, suggest
from neuroprobe.images import Transform
from neuroprobe.models import load_checkpoint
from neuroprobe.world._scenes import ATTRIBUTES

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

#: Optimizer steps after which the target was saved; 0 is the untrained one.
CHECKPOINTS = (0, 50, 150, 400, 1000, 2500, 5000)

#: Every module of ``features``, and the head, whose output unit i is attribute i.
LAYERS = (*(f"features.{i}" for i in range(19)), "classifier")

_FOLDER = Path(__file__).parent / "target_checkpoints"


def build_target() -> nn.Module:
    """torchvision's MobileNetV2 at a quarter of its width, with one output per attribute; 64 x 64 input.

    Its first weights draw on torch's global random state, as any module's do.
    """
    model: nn.Module = MobileNetV2(num_classes=len(ATTRIBUTES), width_mult=0.25)
    return model


def target_checkpoints() -> dict[str, Path]:
    """The files of all checkpoints by name, "step_00000" (untrained) to "step_05000" (trained)."""
    return {f"step_{step:05d}": _FOLDER / f"step_{step:05d}.pt" for step in CHECKPOINTS}


def load_target(checkpoint: str = "step_05000") -> nn.Module:
    """The target in evaluation mode, trained unless another checkpoint is named.

    Raises
    ------
    UnknownNameError
        No such checkpoint.
    """
    files = target_checkpoints()
    if checkpoint not in files:
        raise UnknownNameError(f"Expected a checkpoint of the world's target, but got {checkpoint!r}. {suggest(checkpoint, files)}")
    with torch.random.fork_rng(devices=[]):
        model = build_target()
    return load_checkpoint(model, files[checkpoint]).eval()


def target_transform() -> Transform:
    """From a PIL image to the target's input, float32 [3, 64, 64]."""
    transform: Transform = transforms.Compose(
        [
            transforms.Resize(64),
            transforms.CenterCrop(64),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    return transform


def target_with_transform() -> tuple[nn.Module, Transform]:
    """The trained target and its transform: ``neuroprobe dissect neuroprobe.world:target_with_transform ...``."""
    return load_target(), target_transform()
