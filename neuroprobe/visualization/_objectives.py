"""What an image is made for: what a unit or a direction of a layer says of it, and how unlike it is to the unit's other images."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import nn

from neuroprobe.exceptions import InputError
from neuroprobe.models import (
    Axes,
    Direction,
    Layout,
    Pooling,
    Selection,
    UnitAxisTracker,
    check_layers,
    check_layout,
    check_model,
    check_pooling,
    pool,
    select_output,
)

#: A unit's number, or a direction such as a probe's.
Target: TypeAlias = "int | Direction"

#: How a layer's output becomes one row of units; "center" is the position in the middle of a map.
Place: TypeAlias = "Pooling | Literal['center']"


class _Enough(BaseException):
    """The layer has run: nothing more is wanted of this forward pass. No `Exception`, so that no model catches it."""

    def __init__(self, owner: LayerOutput) -> None:
        self.owner = owner


class LayerOutput:
    """What one layer of a model gives, with gradients. All but the first forward pass end at that layer.

    Parameters
    ----------
    model, layer
    layout, select : optional
        As in `neuroprobe.ActivationRecorder`.

    Raises
    ------
    UnknownNameError
        A layer or layout that there is not.
    InputError
        A model that hooks do not work in.
    """

    def __init__(self, model: nn.Module, layer: str, *, layout: Layout | None = None, select: Selection | None = None) -> None:
        check_model(model)
        (self.layer,) = check_layers(model, [layer])
        if layout is not None:
            check_layout(layout)
        self._model, self._layout, self._select = model, layout, select
        self._tracker = UnitAxisTracker()
        self._found: tuple[torch.Tensor, Axes] | None = None
        self._stopping = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hooks on the model; removed whatever happens."""
        module = dict(self._model.named_modules(remove_duplicate=False))[self.layer]
        with ExitStack() as stack:
            stack.enter_context(self._tracker.following(self._model))
            stack.callback(module.register_forward_hook(self._note).remove)
            yield

    def of(self, batch: torch.Tensor) -> tuple[torch.Tensor, Axes]:
        """The layer's output for a batch, and the axes of its units and images.

        Raises
        ------
        InputError
            The layer does not run, or several times, or what it gives is no tensor.
        """
        self._found = None
        try:
            self._model(batch)
        except _Enough as enough:
            if enough.owner is not self:
                raise
        if self._found is None:
            raise InputError(f"Expected {self.layer!r} to run in a forward pass, but it does not.")
        self._stopping = True
        return self._found

    def _note(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._found is not None:
            raise InputError(f"Expected {self.layer!r} to run once in a forward pass, but it runs again. Take a module around it.")
        tensor = select_output(output, self._select, layer=self.layer)
        axes = self._tracker.axes(tensor, layer=self.layer, layout=self._layout if tensor.ndim > 2 else None)
        self._found = tensor.clone(), axes  # the next module may write into its input
        if self._stopping:
            raise _Enough(self)


def check_targets(layer: str, unit: Any) -> list[Target]:
    """A unit, a direction, or several of one kind, as a list.

    Raises
    ------
    InputError
        None, some twice, of both kinds, units that are no whole numbers from 0 up, or directions of another layer.
    """
    several = isinstance(unit, (Sequence, range, set, frozenset)) or (isinstance(unit, np.ndarray) and unit.ndim > 0)
    single = isinstance(unit, Direction) or not several
    targets = [_target(layer, one) for one in ([unit] if single else unit)]
    if not targets or len({isinstance(one, Direction) for one in targets}) > 1:
        raise InputError(f"Expected a unit or units, or a direction or directions, of {layer!r}, but got {unit!r:.80}.")
    if len({one.features for one in targets if isinstance(one, Direction)}) > 1:
        raise InputError(
            "Expected directions of one kind of features, but got pooled and spatial ones. Make images for each kind by itself."
        )
    keys = [id(one) if isinstance(one, Direction) else one for one in targets]
    if len(set(keys)) < len(keys):
        raise InputError("Expected each unit or direction once, but one is there twice. Take `n_images` for several images of one.")
    return targets


def _target(layer: str, one: Any) -> Target:
    if isinstance(one, Direction):
        if one.layer != layer:
            raise InputError(f"Expected directions of {layer!r}, but {one.concept!r} is one of {one.layer!r}.")
        if one.features not in ("pooled", "spatial") or not one.weights.any():
            raise InputError(f"Expected directions with features 'pooled' or 'spatial' that are not 0, but {one.concept!r} is none.")
        return one
    try:
        number = operator.index(one)
    except TypeError:
        number = -1
    if number < 0 or isinstance(one, (bool, np.bool_)):
        raise InputError(f"Expected units as whole numbers from 0 up, or Directions, but got {one!r:.80}.")
    return number


def check_place(pooling: Place) -> None:
    """Raise for what is no pooling to one value per unit."""
    if pooling == "none":
        raise InputError("Expected a pooling to one value per unit such as 'mean', 'max' or 'center', but got 'none'.")
    if pooling != "center":
        check_pooling(pooling)


def target_values(output: torch.Tensor, axes: Axes, targets: Sequence[Target], *, pooling: Place, layer: str) -> torch.Tensor:
    """What each target says of its own image, [n]: a unit's pooled activation, a direction's log-odds.

    Raises
    ------
    InputError
        A unit that the layer does not have, or a direction that does not fit it.
    """
    spatial = isinstance(targets[0], Direction) and targets[0].features == "spatial"
    rows = _rows(output, axes, "none" if spatial else pooling, layer)
    for target in targets:
        _check_fits(target, rows.shape[1], layer)
    if isinstance(targets[0], Direction):
        directions = [target for target in targets if isinstance(target, Direction)]
        weights = torch.from_numpy(np.stack([direction.weights for direction in directions])).to(rows)
        return (rows * weights).sum(1) + torch.tensor([direction.bias for direction in directions]).to(rows)
    return rows.gather(1, torch.tensor(targets, device=rows.device)[:, None])[:, 0]


def _rows(output: torch.Tensor, axes: Axes, pooling: Place, layer: str) -> torch.Tensor:
    if pooling == "center" and output.ndim > 2:
        if output.ndim != 4:
            shape = tuple(output.shape)
            raise InputError(f"Expected maps for pooling='center', but {layer!r} gives {shape}. Take 'mean' or a token: ('token', 3).")
        maps = output.movedim(axes.units, 1)  # [n, units, h, w]
        return maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2].float()
    return pool(output, "mean" if pooling == "center" else pooling, unit_axis=axes.units, image_axis=axes.images, layer=layer)


def _check_fits(target: Target, n: int, layer: str) -> None:
    if isinstance(target, Direction):
        if len(target.weights) != n:
            raise InputError(
                f"Expected directions of {layer!r} with {n} {target.features} features, but {target.concept!r} has {len(target.weights)}: "
                "it is of another model or another size of image."
            )
    elif target >= n:
        raise InputError(f"Expected units of {layer!r} from 0 to {n - 1}, but got {target}.")


def likeness(output: torch.Tensor, axes: Axes, groups: Sequence[slice]) -> torch.Tensor:
    """How alike each image is to the others of its group, [n]: the mean cosine of their Gram matrices of units, from 0 to 1.

    The Gram matrix of an image holds the products of every two units, summed over positions: what is seen together, wherever it is.

    References
    ----------
    Olah, Mordvintsev and Schubert, Feature visualization, Distill 2017 (diversity).
    """
    features = output.transpose(0, axes.images) if axes.images else output
    features = features.movedim(axes.units, 1).flatten(2) if features.ndim > 2 else features[:, :, None]
    product = _gram_products if features.shape[1] <= features.shape[2] else _position_products
    return torch.cat([_mean_cosine(product(features[group].float())) for group in groups])


def _gram_products(features: torch.Tensor) -> torch.Tensor:
    """Inner products [n, n] of the Gram matrices of features [n, units, positions]."""
    grams = (features @ features.transpose(1, 2)).flatten(1)
    return grams @ grams.T


def _position_products(features: torch.Tensor) -> torch.Tensor:
    """The same, quicker for many units and few positions."""
    n, _, positions = features.shape
    flat = features.transpose(1, 2).flatten(0, 1)  # [n * positions, units]
    return (flat @ flat.T).square().reshape(n, positions, n, positions).sum((1, 3))


def _mean_cosine(products: torch.Tensor) -> torch.Tensor:
    n, lengths = len(products), products.diagonal().clamp(min=1e-30).sqrt()
    cosines = products / (lengths[:, None] * lengths)
    return (cosines.sum(1) - cosines.diagonal()) / max(n - 1, 1)
