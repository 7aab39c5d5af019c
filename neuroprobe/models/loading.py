"""Models by name: torchvision's, or whatever a function of the user's returns."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.transforms._presets import ImageClassification

from neuroprobe._core import check_seed
from neuroprobe.exceptions import InputError, UnknownNameError, suggest
from neuroprobe.images import Transform
from neuroprobe.models.checkpoints import load_checkpoint


def load_model(name: str, *, weights: str | None = "DEFAULT", seed: int = 0) -> tuple[nn.Module, Transform]:
    """A model in evaluation mode, and the transform that makes its input.

    Parameters
    ----------
    name : str
        A torchvision model such as "resnet50", or ``module:function``: a function without arguments that returns
        a model, or a model and its transform. Its module is looked for in the current folder too.
    weights : str or None, default "DEFAULT"
        For torchvision: the name of pretrained weights such as "IMAGENET1K_V1" (downloaded once), a file with a
        state dict, or None for random weights. For ``module:function``: a file, or "DEFAULT" or None to leave the
        model as the function returns it.
    seed : int, default 0
        Of random weights; the global random state is left alone.

    Raises
    ------
    UnknownNameError
        No such model, weights, module or function.
    CheckpointError
        A file that does not fit the model.
    InputError
        A module or function that raises, a function that returns no model, or a download that fails.
    """
    named = None if weights is None or _is_file(weights) else weights
    if ":" in name:
        if named not in (None, "DEFAULT"):
            raise UnknownNameError(f"Expected `weights` to be a file for {name!r}, but there is no file {weights!r}.")
        model, transform = _call(name)
    else:
        model, transform = _torchvision_model(name, named, seed)
    if weights is not None and named is None:
        load_checkpoint(model, weights)
    return model.eval(), transform


def _is_file(weights: str) -> bool:
    return Path(weights).is_file() or os.sep in weights or Path(weights).suffix in (".pt", ".pth", ".ckpt", ".tar", ".bin")


def _torchvision_model(name: str, weights: str | None, seed: int) -> tuple[nn.Module, Transform]:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise UnknownNameError(f"Expected a torchvision classification model or module:function, but got {name!r}. {suggest(name, known)}")
    choices = torchvision.models.get_model_weights(name)
    if weights is None:
        check_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the accelerators' generators too
            return torchvision.models.get_model(name, weights=None), choices.DEFAULT.transforms()
    if weights not in choices.__members__:
        raise UnknownNameError(
            f"Expected the name of weights for {name}, or a file, but got {weights!r}. {suggest(weights, choices.__members__)}"
        )
    chosen: Any = choices[weights]
    try:
        return torchvision.models.get_model(name, weights=chosen), chosen.transforms()
    except OSError as error:
        raise InputError(
            f"Expected to download the weights {weights!r} of {name}, but that failed ({error}). "
            "Without a network, give a file of weights, or 'none' for random ones."
        ) from error


def _import(module_name: str) -> ModuleType:
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise UnknownNameError(f"Expected module:function, but {module_name!r} is no module's name.")
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(module_name)
    except ImportError as error:
        raise UnknownNameError(f"Expected module:function, but {module_name!r} cannot be imported: {error}.") from error
    except (Exception, SystemExit) as error:  # whatever stands in the user's file
        raise InputError(f"Expected to import {module_name!r}, but that raised {type(error).__name__}: {error}.") from error
    finally:
        sys.path.remove(folder)


def _call(name: str) -> tuple[nn.Module, Transform]:
    module_name, _, function_name = name.partition(":")
    module = _import(module_name)
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [key for key in dir(module) if callable(getattr(module, key)) and not key.startswith("_")]
        raise UnknownNameError(f"Expected a function of {module_name}, but got {function_name!r}. {suggest(function_name, known)}")
    try:
        result = function()
    except (Exception, SystemExit) as error:  # whatever the user's function does
        raise InputError(f"Expected {name!r} to return a model, but it raised {type(error).__name__}: {error}.") from error
    model, transform = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    if not isinstance(model, nn.Module):
        raise InputError(f"Expected {name!r} to return a torch.nn.Module, or one and its transform, but got {type(model).__name__}.")
    if transform is not None and not callable(transform):
        raise InputError(f"Expected {name!r} to return a model and its transform, but the transform is a {type(transform).__name__}.")
    return model, ImageClassification(crop_size=224) if transform is None else transform
