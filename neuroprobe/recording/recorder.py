"""ActivationRecorder: hooks on, hooks off; one pass over images.

The model is left exactly as found: hooks removed, training flags restored, the random state untouched, also after
an exception.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from neuroprobe._core import check_count, identify_function
from neuroprobe.images import Images, Transform, collect
from neuroprobe.models import Layout, Pooling, Precision, Sites, check_pooling, check_precision, check_sites, describe_pooling, placed
from neuroprobe.recording._forward import ForwardPass, Listening, Tape
from neuroprobe.recording._record import SummaryKeeper, record_beside
from neuroprobe.recording.activations import Activations, ValueType
from neuroprobe.recording.summaries import ActivationSummary


class ActivationRecorder:
    """Records the outputs of a model's modules.

    Parameters
    ----------
    model : torch.nn.Module
        Itself, not a DataParallel, compiled or scripted version of it.
    layers : sequence of str or Site, or callable
        Exact names, as in ``model.named_modules()``, never a prefix or a pattern; `neuroprobe.Site` for what is no layer's plain output,
        several of one layer if need be; or a function that says of a name and its module whether it is wanted. See
        `neuroprobe.block_layers` and `neuroprobe.all_layers`.
    pooling : {"mean", "max", "class_token", "mean_tokens", "none"}, ("token", i) or callable, default "mean"
        How a module's output becomes one row per image; see `neuroprobe.models.pool`. "none" keeps every position ("spatial" features).
    layout : {"nchw", "nhwc", "nlc", "lnc"}, optional
        Of all sites that do not say their own.
    autocast : {"bfloat16", "float16"} or torch.dtype, optional
        Mixed precision of the forward pass. Pooling and a site's basis work in float32 all the same.

    Attributes
    ----------
    sites : tuple of Site
    layers : tuple of str
        The sites' keys, under which their activations are found; a layer's name for a plain site.
    metadata : dict
        What tells this way of recording from others, apart from the model: all of the above by name, functions and bases with a
        fingerprint of their code and weights.

    Raises
    ------
    UnknownNameError
        A layer the model does not have; the message names the nearest ones.
    InputError
        No layers, or one twice, or a model that hooks do not work in.

    Examples
    --------
    >>> import torch, torchvision
    >>> model = torchvision.models.resnet18().eval()
    >>> recorder = ActivationRecorder(model, ["layer1", "layer4"])
    >>> with recorder.recording() as tape, torch.no_grad():
    ...     _ = model(torch.rand(2, 3, 64, 64))
    >>> tape["layer4"].shape
    torch.Size([2, 512])
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sites,
        *,
        pooling: Pooling = "mean",
        layout: Layout | None = None,
        autocast: Precision | None = None,
    ) -> None:
        check_pooling(pooling)
        self.model = model
        self.sites = tuple(replace(site, layout=layout) if layout and not site.layout else site for site in check_sites(model, layers))
        self.pooling: Pooling = pooling
        self.autocast = check_precision(autocast)

    @property
    def layers(self) -> tuple[str, ...]:
        """The sites' keys."""
        return tuple(site.key for site in self.sites)

    @property
    def metadata(self) -> dict[str, Any]:
        """What tells this way of recording from others."""
        return {
            "pooling": identify_function(self.pooling) if callable(self.pooling) else describe_pooling(self.pooling),
            "sites": {site.key: site.identity for site in self.sites},
            "autocast": None if self.autocast is None else str(self.autocast).removeprefix("torch."),
        }

    @contextmanager
    def recording(self, *, stop_early: bool = False) -> Iterator[Tape]:
        """Record every forward pass made inside the ``with`` block, whoever makes it.

        Rows of several forward passes follow each other. Gradients are not recorded.

        Parameters
        ----------
        stop_early : bool, default False
            End every forward pass but the first after the last module that is wanted. Each must then be in a block
            ``with tape.forward():``, which is left at that point.
        """
        listening = Listening({"": self}, stop_early=stop_early)
        with listening.taps.hooked():
            yield listening.tapes[""]

    def record(
        self,
        images: Images,
        *,
        transform: Transform,
        store: str | Path | None = None,
        dtype: ValueType = "float32",
        device: str | torch.device = "auto",
        batch_size: int = 64,
        workers: int = 0,
        distributed: bool = False,
        progress: bool | None = None,
    ) -> Activations:
        """Record a whole probing set, in evaluation mode and without gradients.

        Parameters
        ----------
        images : Images
        transform : callable
            From a PIL image to the model's input, without the batch axis; for torchvision's pretrained models,
            ``weights.transforms()``.
        store : path, optional
            A folder that keeps the activations, so that nothing has to fit in memory (see `neuroprobe.recording.Activations.open`). A
            recording that was cut off goes on from there; one that is complete is opened, not made again. By default
            everything stays in memory.
        dtype : {"float32", "float16"}, default "float32"
            Of the kept values.
        device : str or torch.device, default "auto"
            Where to run; the model goes there and comes back afterward. "auto" is where the model is, unless that is the CPU and there
            is an accelerator.
        batch_size, workers, distributed, progress
            As in `neuroprobe.images.collect`.

        Returns
        -------
        Activations

        Raises
        ------
        StoreError
            The store is of another recording (the message says what differs), in use, or cannot be written.
        """
        with placed(self.model, device):
            (activations,) = record_beside(
                self, images, [], transform=transform, store=store, dtype=dtype,
                batch_size=batch_size, workers=workers, distributed=distributed, progress=progress,
            )  # fmt: skip
        return activations  # type: ignore[no-any-return]

    def summarize(
        self,
        images: Images,
        *,
        transform: Transform,
        k: int = 100,
        device: str | torch.device = "auto",
        batch_size: int = 64,
        workers: int = 0,
        distributed: bool = False,
        progress: bool | None = None,
    ) -> ActivationSummary:
        """Keep only what is worth knowing of every unit, in memory that does not grow with the number of images.

        Parameters
        ----------
        images, transform
            As in `record`.
        k : int, default 100
            How many of the highest, and of the lowest, images of every unit are kept.
        device
            As in `record`.
        batch_size, workers, distributed, progress
            As in `neuroprobe.images.collect`.

        Returns
        -------
        ActivationSummary
            Highest and lowest images with their values, count, mean, variance and fraction active of every unit.
        """
        check_count("k", k)
        keeper = SummaryKeeper(self.layers, k=k)
        settings: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "distributed": distributed, "progress": progress}
        with placed(self.model, device):
            consumer = ForwardPass({"": self}, transform, keepers={"": keeper}, unwrap=True)
            (summary,) = collect(images, [consumer], description="summarize", **settings)
        return summary  # type: ignore[no-any-return]

    def consumer(self, transform: Transform, *, fingerprint: str | None = None) -> ForwardPass:
        """This recorder as a consumer of `neuroprobe.images.collect`, whose result is the `Activations`.

        So that images are decoded once for it and for whatever else wants them. `fingerprint` is the model's, where it is known.
        """
        return ForwardPass({"": self}, transform, unwrap=True, fingerprint=fingerprint)
