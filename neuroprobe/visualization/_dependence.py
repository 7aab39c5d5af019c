"""What depends on what: a model's forward pass in which nothing that could pass is stopped, so that gradients show it.

A gradient at one input misses what a dead ReLU, a max-pool's losers or two weights that cancel hide there. So while `Dependence`
is active, torch's own operations are replaced by the plainest ones with the same reach: a non-linearity passes what it gets, a
max-pool takes the mean of its window, and every weight that is not zero counts as one share of its output's inputs. In a
convolutional network all values are then positive and of moderate size, and the gradient of an output with respect to an input
pixel is above zero if and only if there is a way from the one to the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

#: Functions of one value that are passed by. Names, because torch has each of them as a function, a method, and with an
#: underscore in place.
_PASSED_BY = {
    *("relu", "relu6", "threshold", "hardtanh", "clamp", "clip", "clamp_min", "clamp_max", "leaky_relu", "prelu", "rrelu", "elu", "selu"),
    *("celu", "gelu", "silu", "mish", "hardswish", "softplus", "logsigmoid", "hardshrink", "softshrink", "tanhshrink"),
    *("sign", "round", "floor", "ceil", "trunc", "detach"),  # without a gradient, though what comes depends on what went in
    *("float", "half", "bfloat16"),  # weights are float64 here
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"),
}
#: Functions of one value that others are multiplied with; passed by, values would be squared in every block.
_BOUNDED = {"sigmoid", "hardsigmoid", "tanh", "softsign"}
#: Functions that choose among the values along an axis, or in all: every one of them could be chosen.
_CHOOSERS = {"max", "min", "median", "nanmedian", "mode", "kthvalue", "topk", "sort", "cummax", "cummin"}


class Dependence(TorchFunctionMode):
    """While active, torch's operations pass all that could pass through them; others run as they are.

    A weight counts if it is not exactly zero. A norm that takes its statistics over positions (group norm, instance norm, a batch
    norm without running statistics) lets all of them through, and so its field is the whole image. What the model computes under
    `torch.no_grad`, as a frozen part, counts too.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name, options = getattr(func, "__name__", ""), dict(kwargs or {})
        if name == "_set_grad_enabled":  # of a torch.no_grad in the model
            return None
        if not any(_from_image(value) for value in (*args, *options.values())):
            return func(*args, **options)  # a weight, an index or a mask that is clamped or rounded is what it is
        if name.removesuffix("_") in _PASSED_BY:
            return args[0] if name.endswith("_") or options.get("inplace") else args[0].clone()
        if name.removesuffix("_") in _BOUNDED:
            return (1 + F.softsign(args[0])) / 2  # rises everywhere, where a sigmoid's gradient is soon rounded to zero
        if name in _CHOOSERS:
            return _chosen(func, *args, **options)
        replacement = _REPLACEMENTS.get(name)
        found = NotImplemented if replacement is None else replacement(*args, **options)
        return func(*args, **options) if found is NotImplemented else found


def _from_image(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


def _shares(weight: torch.Tensor) -> torch.Tensor:
    """Between 0.5 and 1.5 inputs' shares where a weight is not zero, [outputs, ...]; unequal, so that no difference of two is zero."""
    sizes = weight.abs()
    unequal = 0.5 + sizes / sizes.amax().clamp_min(torch.finfo(weight.dtype).tiny)
    return torch.where(weight != 0, unequal, 0) / max(weight[0].numel(), 1)


def _convolution(name: str) -> Callable[..., Any]:
    function = getattr(F, name)

    def convolve(input: torch.Tensor, weight: torch.Tensor, bias: Any = None, *args: Any, **options: Any) -> torch.Tensor:
        result: torch.Tensor = function(input, _shares(weight), None, *args, **options)
        return result

    return convolve


def _linear(input: torch.Tensor, weight: torch.Tensor, bias: Any = None) -> torch.Tensor:
    return F.linear(input, _shares(weight))


def _batch_norm(
    input: torch.Tensor,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    *_: Any,
    **__: Any,
) -> torch.Tensor:
    own = training or running_mean is None  # statistics of this batch, over all positions
    return _kept(input, weight) + (_kept(input.mean((0, *range(2, input.ndim)), keepdim=True).expand_as(input), weight) if own else 0)


def _group_norm(input: torch.Tensor, num_groups: int, weight: Any = None, *_: Any, **__: Any) -> torch.Tensor:
    groups = input.reshape(len(input), num_groups, -1)
    return _kept(input + groups.mean(-1, keepdim=True).expand_as(groups).reshape(input.shape), weight)


def _instance_norm(input: torch.Tensor, *_: Any, weight: Any = None, use_input_stats: bool = True, **__: Any) -> torch.Tensor:
    return _kept(input + (input.mean(tuple(range(2, input.ndim)), keepdim=True) if use_input_stats else 0), weight)


def _layer_norm(input: torch.Tensor, normalized_shape: Sequence[int], weight: Any = None, *_: Any, **__: Any) -> torch.Tensor:
    mixed = input + input.mean(tuple(range(-len(normalized_shape), 0)), keepdim=True)
    return mixed if weight is None else mixed * (weight != 0)


def _kept(input: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """Without the channels, on axis 1, whose weight is zero."""
    return input if weight is None else input * (weight != 0).view(1, -1, *[1] * (input.ndim - 2))


def _max_pool(n_axes: int) -> Callable[..., Any]:
    pool, convolve = getattr(F, f"max_pool{n_axes}d"), getattr(F, f"conv{n_axes}d")

    def mean(
        input: torch.Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Any:
        size = pool(input, kernel_size, stride or None, padding, dilation, ceil_mode).shape[-n_axes:]
        kernel, before, apart = (_each(value, n_axes) for value in (kernel_size, padding, dilation))
        step = _each(stride, n_axes) if stride else kernel
        padded: list[int] = []
        for axis in reversed(range(n_axes)):  # as F.pad counts them: the last axis first
            reach = (size[axis] - 1) * step[axis] + apart[axis] * (kernel[axis] - 1) + 1
            padded += [before[axis], reach - input.shape[axis - n_axes] - before[axis]]
        window = torch.full((input.shape[-n_axes - 1], 1, *kernel), 1 / math.prod(kernel), dtype=input.dtype)
        means = convolve(F.pad(input, padded), window, stride=tuple(step), dilation=tuple(apart), groups=len(window))
        chosen = (kernel_size, stride or None, padding, dilation, ceil_mode, True)
        return (means, pool(input, *chosen)[1]) if return_indices else means

    return mean


def _adaptive(n_axes: int) -> Callable[..., Any]:
    average = getattr(F, f"adaptive_avg_pool{n_axes}d")

    def mean(input: torch.Tensor, output_size: Any, return_indices: bool = False) -> Any:
        return NotImplemented if return_indices else average(input, output_size)

    return mean


def _softmax(input: torch.Tensor, dim: int | None = None, *args: Any, **options: Any) -> torch.Tensor:
    """As it is, but zero where float32 has no share left: a mask of -100 separates windows as one of -inf does."""
    dim = options.pop("dim", dim)
    nothing = F.softmax(input.detach(), dim=dim) < torch.finfo(torch.float32).tiny
    return F.softmax(input.masked_fill(nothing, -torch.inf), dim=dim)


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Plainly, so that masks separate as in `_softmax`."""
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    logits = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(logits.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None:
        logits = logits.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else logits + attn_mask
    return _softmax(logits, dim=-1) @ value


def _chosen(func: Callable[..., Any], input: torch.Tensor, *args: Any, **options: Any) -> Any:
    """What is chosen, and a share of all that it is chosen from."""
    other = args[0] if args else options.get("other")
    if isinstance(other, torch.Tensor):
        return _maximum(input, other)
    found = func(input, *args, **options)
    if isinstance(found, torch.Tensor):  # of all values
        return input.mean()
    before = 1 if func.__name__ in ("kthvalue", "topk") else 0  # of the arguments: how many, and only then the axis
    dim = options.get("dim", args[before] if len(args) > before else -1)
    if func.__name__ in ("cummax", "cummin"):
        return type(found)((input.cumsum(dim) / input.shape[dim], found[1]))
    keep = found[0].ndim == input.ndim
    return type(found)((found[0] + input.mean(dim, keepdim=keep), found[1]))


def _amax(input: torch.Tensor, dim: Any = (), keepdim: bool = False, **options: Any) -> torch.Tensor:
    return input.mean(dim, keepdim=keepdim) if dim != () else input.mean()


def _maximum(input: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (input + other) / 2


def _each(value: Any, n: int) -> list[int]:
    return [int(value)] * n if isinstance(value, int) else [int(v) for v in value] * (n if len(value) == 1 else 1)


_REPLACEMENTS: dict[str, Callable[..., Any]] = {
    **{name: _convolution(name) for name in ("conv1d", "conv2d", "conv3d")},
    **{f"max_pool{n}d": _max_pool(n) for n in (1, 2, 3)},
    **{f"max_pool{n}d_with_indices": partial(_max_pool(n), return_indices=True) for n in (1, 2, 3)},
    **{f"adaptive_max_pool{n}d": _adaptive(n) for n in (1, 2, 3)},
    "linear": _linear,
    "batch_norm": _batch_norm,
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _layer_norm,
    "softmax": _softmax,
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(("amax", "amin"), _amax),
    **dict.fromkeys(("maximum", "minimum", "fmax", "fmin"), _maximum),
}
