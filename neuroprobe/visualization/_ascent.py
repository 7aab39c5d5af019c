"""Gradient ascent from noise to the images that units respond to most, many at once and each as if it were alone.

Before every step images are changed a little at random (`Jitter`): what stays a peak under that is no accident of a few pixels. Changes are
in shares of the image's side, never in pixels, so that small images are moved as little as large ones look moved; images are continued
periodically, as their Fourier series are.

Batches have one shape, however few images there are: with another shape, a convolution may sum in another order, and hundreds of steps
make another image of the last bits. In batches of one shape, an image has the same bits whatever stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from neuroprobe._core import check_count, check_number
from neuroprobe.exceptions import InputError, shown
from neuroprobe.models import Reading
from neuroprobe.visualization._objectives import Target, likeness
from neuroprobe.visualization._spectrum import Parametrization

_PER_STEP = 4  # random numbers: two shifts, a rotation, a scale


@dataclass(frozen=True)
class Jitter:
    """How much images are changed at random before every step.

    Attributes
    ----------
    shift : float, default 0.05
        Largest shift, as a share of the image's side.
    scale : float, default 0.05
        Images are made larger or smaller by up to this share.
    rotation : float, default 5
        Largest angle, in degrees.
    noise : float, default 0.05
        Standard deviation of noise added to each pixel, of images in [0, 1].

    Raises
    ------
    InputError
        A number below 0, or so large that little of the image would be left.
    """

    shift: float = 0.05
    scale: float = 0.05
    rotation: float = 5.0
    noise: float = 0.05

    def __post_init__(self) -> None:
        for name, most in (("shift", 0.5), ("scale", 0.5), ("rotation", 90), ("noise", 1)):
            check_number(f"jitter.{name}", getattr(self, name), low=0, high=most)

    def draws(self, generator: torch.Generator, steps: int) -> torch.Tensor:
        """The random numbers of one image, [steps, 4], in [-1, 1]: shift down, shift right, rotation, scale."""
        return 2 * torch.rand(steps, _PER_STEP, generator=generator) - 1

    def moved(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Images [n, 3, h, w], each turned, scaled and shifted by its own draws [n, 4]."""
        draws = draws.to(images)
        turned = rotate(images, draws[:, 2] * math.radians(self.rotation)) if self.rotation else images
        if not (self.shift or self.scale):
            return turned
        zoom = torch.exp(draws[:, 3] * math.log1p(self.scale))
        rows, columns = (_resampling(n, zoom, self.shift * draws[:, i]) for i, n in enumerate(images.shape[2:]))
        return torch.einsum("nij,ncjk,nlk->ncil", rows, turned, columns)


def rotate(images: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Images [n, c, h, w] turned about their middle by angles [n], in radians, clockwise if positive.

    By three shears, each exact for band-limited images (Paeth 1986; Unser, Thevenaz and Yaroslavsky 1995). No pixel is averaged with
    its neighbors, and gradients are sums in one order on every device.
    """
    along = -torch.tan(angles / 2)
    return _shear(_shear(_shear(images, along, axis=3), torch.sin(angles), axis=2), along, axis=3)


def _shear(images: torch.Tensor, amounts: torch.Tensor, *, axis: int) -> torch.Tensor:
    """Each row (axis 3) or column (axis 2) shifted by its distance from the middle times the image's amount."""
    n, others = images.shape[axis], images.shape[5 - axis]
    frequencies = torch.fft.rfftfreq(n, device=images.device, dtype=images.dtype)
    distances = torch.arange(others, device=images.device, dtype=images.dtype) - (others - 1) / 2
    angles = -2 * math.pi * amounts[:, None, None] * distances[:, None] * frequencies  # [images, others, frequencies]
    factors = torch.polar(torch.ones_like(angles), angles)[:, None]
    factors = factors if axis == 3 else factors.transpose(2, 3)
    sheared: torch.Tensor = torch.fft.irfft(torch.fft.rfft(images, dim=axis) * factors, n=n, dim=axis)
    return sheared


def _resampling(n: int, zoom: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Matrices [images, n, n] that scale n pixels about their middle and shift them, by linear interpolation, periodically."""
    positions = torch.arange(n, device=zoom.device, dtype=zoom.dtype)
    middle = (n - 1) / 2
    sources = middle + (positions - middle - shift[:, None] * n) / zoom[:, None]  # [images, n]
    distances = sources[:, :, None] - positions
    return (1 - (distances - n * torch.round(distances / n)).abs()).clamp(min=0)


_MOMENTUM = 0.9
_ATTEMPTS = 8  # starts, until one has a gradient

#: From images in [0, 1] to what the site gives for them.
Forward = Callable[[torch.Tensor], Reading]
#: From that and the targets to the value of each for its image, [n].
Value = Callable[[Reading, Sequence[Target]], torch.Tensor]


@dataclass(frozen=True)
class Settings:
    """How to climb; as the arguments of `neuroprobe.visualize` of these names."""

    steps: int
    step_size: float
    jitter: Jitter
    diversity: float
    n_images: int
    seed: int
    batch_size: int

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("n_images", 1), ("seed", 0), ("batch_size", 1)):
            check_count(name, getattr(self, name), low=least)
            object.__setattr__(self, name, int(getattr(self, name)))  # numpy's are none of JSON's
        check_number("step_size", self.step_size, low=0, above=True)  # of 0, nothing would change
        check_number("diversity", self.diversity, low=0)
        if not isinstance(self.jitter, Jitter):
            raise InputError(f"Expected `jitter` as a neuroprobe.visualization.Jitter, but got {shown(self.jitter)}.")
        if self.diversity and not 2 <= self.n_images <= self.batch_size:
            raise InputError(
                f"Expected `n_images` from 2 to `batch_size` ({self.batch_size}) with `diversity`, but got {self.n_images}: the images of "
                "a unit are made unlike each other in one batch."
            )


@dataclass(frozen=True)
class Climbed:
    """Finished images of one batch, on the CPU.

    Attributes
    ----------
    images : Tensor, [n, 3, h, w], float32
    values : Tensor, [n], float32
    importance : Tensor, [n, h, w], float32
        Mean over the steps of the absolute gradient of the value, summed over colors; the largest is 1.
    moved : list of bool
        Whether there was a gradient to climb.
    """

    images: torch.Tensor
    values: torch.Tensor
    importance: torch.Tensor
    moved: list[bool]


@dataclass(frozen=True)
class _Item:
    target: Target
    number: int  # of this target's images

    def generator(self, seed: int, purpose: int) -> torch.Generator:
        """Random numbers of this image alone, so that no other has a part in it."""
        state = np.random.SeedSequence([seed, *self.target.entropy, self.number, purpose]).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(state) >> 1)


def batches(targets: Sequence[Target], settings: Settings) -> Iterator[list[_Item]]:
    """The images to make, in batches; with diversity, those of one target stay together."""
    items = [_Item(target, number) for target in targets for number in range(settings.n_images)]
    size = settings.batch_size
    if settings.diversity:
        size -= size % settings.n_images
    for start in range(0, len(items), size):
        yield items[start : start + size]


class Ascent:
    """The climb of one batch.

    Parameters
    ----------
    items : list
        Of `batches`; the batch is filled up with copies of the last.
    made_of, forward, value, settings
    device : torch.device
        Of the model.
    """

    def __init__(
        self, items: list[_Item], *, made_of: Parametrization, forward: Forward, value: Value, settings: Settings, device: torch.device
    ) -> None:
        self._made_of, self._forward, self._settings, self._device = made_of, forward, settings, device
        self._n = len(items)
        self._items = items + [items[-1]] * (settings.batch_size - len(items))
        self._targets = [item.target for item in self._items]
        self._value = value
        step = settings.n_images if settings.diversity else 0
        self._groups = [slice(i, i + step) for i in range(0, self._n, step)] if step else []
        self._generators = [item.generator(settings.seed, 0) for item in self._items]
        self._draws = torch.stack([settings.jitter.draws(g, settings.steps) for g in self._generators], dim=1)  # [steps, n, 4]
        self._importance: torch.Tensor | float = 0.0

    def run(self, tick: Callable[[], object]) -> Climbed:
        """All steps; `tick` is called after each."""
        parameters, moved = self._start()
        velocity = torch.zeros_like(parameters)
        for step in range(self._settings.steps):
            velocity = _MOMENTUM * velocity + (1 - _MOMENTUM) * self._direction(parameters, step)
            size = self._settings.step_size * (1 + math.cos(math.pi * step / self._settings.steps)) / 2
            parameters = self._made_of.allowed(parameters + size * velocity)
            tick()
        return self._finished(parameters, moved)

    def _start(self) -> tuple[torch.Tensor, list[bool]]:
        """Noise that the targets' gradients are not zero at; those for which none is found keep the last."""
        parameters = self._noise(range(len(self._items)), 0)
        for attempt in range(1, _ATTEMPTS + 1):
            images = self._made_of.images(parameters).requires_grad_()
            flat = (self._gradient(self._value(self._forward(images), self._targets), images) == 0).flatten(1).all(1).tolist()
            still = [i for i, none in enumerate(flat) if none]
            if not still or attempt == _ATTEMPTS:
                break
            parameters[still] = self._noise(still, attempt)
        return parameters, [not none for none in flat]

    def _noise(self, which: Sequence[int], attempt: int) -> torch.Tensor:
        seed = self._settings.seed
        starts = [self._made_of.start(self._items[i].generator(seed, 1 + attempt), attempt=attempt) for i in which]
        return torch.stack(starts).to(self._device)

    def _direction(self, parameters: torch.Tensor, step: int) -> torch.Tensor:
        """Where to go: the gradient of each image's value, at length 1 (root mean square), away from what makes images alike."""
        parameters = parameters.detach().requires_grad_()
        images = self._made_of.images(parameters)
        reading = self._forward(self._jittered(images, step))
        by_pixel = self._gradient(self._value(reading, self._targets), images, again=bool(self._groups))
        self._importance = self._importance + by_pixel.abs().sum(1)
        found = _at_length_one(self._gradient((images * by_pixel).sum(), parameters, again=bool(self._groups)))
        if self._groups:
            alike = likeness(reading.by_unit, self._groups)
            away = _at_length_one(self._gradient(alike, parameters))[: len(alike)]
            found[: len(alike)] -= self._settings.diversity * alike.detach().reshape(-1, *[1] * (away.ndim - 1)) * away
        return found

    def _jittered(self, images: torch.Tensor, step: int) -> torch.Tensor:
        moved = self._settings.jitter.moved(images, self._draws[step])
        if not self._settings.jitter.noise:
            return moved
        noise = torch.stack([torch.randn(images.shape[1:], generator=g) for g in self._generators])
        return moved + self._settings.jitter.noise * noise.to(moved)

    def _gradient(self, values: torch.Tensor, of: torch.Tensor, *, again: bool = False) -> torch.Tensor:
        """The gradient of the values' sum; never into the model's own gradients."""
        found = None
        if values.requires_grad:
            (found,) = torch.autograd.grad(values.sum(), of, retain_graph=again, allow_unused=True)
        if found is None:
            raise InputError("Expected a layer that depends on the image differentiably, but its output has no gradient.")
        if not found.isfinite().all():
            raise InputError("Expected finite gradients, but the model gives others. In half precision, try the model in float32.")
        return found

    def _finished(self, parameters: torch.Tensor, moved: list[bool]) -> Climbed:
        with torch.no_grad():
            images = self._made_of.images(parameters)
            values = self._value(self._forward(images), self._targets)
        if not values[: self._n].isfinite().all():
            raise InputError("Expected finite values of the finished images, but the model gives others. Check its weights.")
        importance = torch.as_tensor(self._importance)[: self._n]
        importance = importance / importance.amax((1, 2), keepdim=True).clamp(min=1e-30)
        n = self._n
        return Climbed(images[:n].float().cpu(), values[:n].float().cpu(), importance.float().cpu(), moved[:n])


def _at_length_one(gradient: torch.Tensor) -> torch.Tensor:
    """Each item at root mean square 1; zeros stay."""
    length = gradient.double().square().mean(tuple(range(1, gradient.ndim)), keepdim=True).sqrt()
    return torch.where(length > 0, gradient / length, 0.0).to(gradient)


def repeatable(device: torch.device) -> AbstractContextManager[object]:
    """cuDNN's repeatable algorithms for a while, on a GPU; elsewhere sums have one order anyway."""
    if device.type != "cuda":
        return nullcontext()
    cudnn = torch.backends.cudnn
    flags: AbstractContextManager[object] = cudnn.flags(
        enabled=cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=cudnn.allow_tf32
    )
    return flags
