"""Feature visualization: the image to which a unit, or a direction, of a model responds most.

Gradient ascent on an image of noise, in a basis in which steps change images as natural ones vary, and under small random changes.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from neuroprobe._core import check_choice, fingerprint_model, write_whole
from neuroprobe.exceptions import InputError, shown
from neuroprobe.images import Transform
from neuroprobe.models import Direction, Normalize, Preprocessing, Reading, Site, check_site, device_of, evaluating, preprocessing, tapped
from neuroprobe.visualization._ascent import Ascent, Climbed, Jitter, Settings, batches, repeatable
from neuroprobe.visualization._objectives import Place, Target, check_place, check_targets, describe_place, target_values
from neuroprobe.visualization._spectrum import FourierImages, ImageSpectrum, Parametrization, PhaseImages, imagenet_colors

if TYPE_CHECKING:
    import pandas as pd

_STEPS = {"fourier": (128, 0.1), "phase": (512, 0.3)}  # steps and their size, elected where the truth is known
_MASK_QUANTILE = 0.9


@dataclass(frozen=True, eq=False)
class Visualization:
    """Images made for units or directions of a layer.

    Attributes
    ----------
    layer : str
    units : tuple of int, Direction or Target
        What each image was made for: one entry per image.
    images : ndarray, [n, 3, h, w], float32
        RGB in [0, 1], before the model's normalization.
    values : ndarray, [n], float32
        What each finished image reaches: the unit's activation, pooled as asked, the direction's log-odds, or the target's value.
    importance : ndarray, [n, h, w], float32
        How much each pixel mattered: the mean over all steps of the absolute gradient; the largest is 1.
    status : tuple of str
        "found"; or "no gradient" where the value did not depend on the image at any of eight starts, so that the image is noise.
    metadata : mapping
        The model's fingerprint and every setting.
    """

    layer: str
    units: tuple[int | Direction | Target, ...]
    images: npt.NDArray[np.float32]
    values: npt.NDArray[np.float32]
    importance: npt.NDArray[np.float32]
    status: tuple[str, ...]
    metadata: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.units)

    def __repr__(self) -> str:
        height, width = self.images.shape[2:]
        return f"Visualization({len(self)} images of {height} x {width} for {self.layer!r})"

    def to_pil(self, *, masked: bool = False) -> list[Image.Image]:
        """The images as PIL images, one each.

        Parameters
        ----------
        masked : bool, default False
            RGBA instead of RGB: what did not matter is transparent (Fel et al., 2023). Opaque from the 90 % quantile of the
            importance on.
        """
        pixels = np.rint(self.images.transpose(0, 2, 3, 1) * 255).astype(np.uint8)  # [n, h, w, 3]
        if not masked:
            return [Image.fromarray(one) for one in pixels]
        most = np.quantile(self.importance, _MASK_QUANTILE, axis=(1, 2), keepdims=True)
        alpha = np.clip(self.importance / np.maximum(most, 1e-30), 0, 1)
        return [Image.fromarray(one) for one in np.concatenate([pixels, np.rint(alpha * 255).astype(np.uint8)[..., None]], axis=-1)]

    def by_unit(self) -> dict[tuple[str, int], Image.Image]:
        """The first image of every unit by (layer, unit), as reports' pages take them; no directions, and nothing without a gradient."""
        found: dict[tuple[str, int], Image.Image] = {}
        for unit, status, image in zip(self.units, self.status, self.to_pil(), strict=True):
            if isinstance(unit, int) and status == "found":
                found.setdefault((self.layer, unit), image)
        return found

    @property
    def table(self) -> pd.DataFrame:
        """A row per image: layer, unit (missing for others), concept of a direction or name of a target, number, value, status."""
        import pandas as pd

        units = [unit if isinstance(unit, int) else None for unit in self.units]
        concepts = ["" if isinstance(u, int) else u.concept if isinstance(u, Direction) else u.name for u in self.units]
        numbers = [i % self.metadata["n_images"] for i in range(len(self))]
        columns = {"layer": self.layer, "unit": pd.array(units, dtype="Int64"), "concept": concepts, "number": numbers}
        return pd.DataFrame({**columns, "value": self.values, "status": list(self.status)})

    def save(self, folder: str | Path) -> list[Path]:
        """Write every image as PNG, visualizations.csv with a row per file, and visualizations.json with the settings.

        Returns
        -------
        list of Path
            The written files. Images are called ``<layer>-<unit>-<number>.png``; of directions, ``<layer>-direction<i>-<number>.png``.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        table = self.table
        table.insert(0, "file", self._file_names())
        for name, image in zip(table["file"], self.to_pil(), strict=True):
            buffer = io.BytesIO()
            image.save(buffer, format="PNG")
            write_whole(folder / name, buffer.getvalue())
        write_whole(folder / "visualizations.csv", table.to_csv(index=False).encode("utf-8"))
        write_whole(folder / "visualizations.json", json.dumps(dict(self.metadata), indent=1).encode("utf-8"))
        return [folder / name for name in (*table["file"], "visualizations.csv", "visualizations.json")]

    def _file_names(self) -> list[str]:
        """A name per image; the layer's name is a module's, but may hold anything."""
        layer, n = "".join(c if c.isascii() and (c.isalnum() or c in "._") else "_" for c in self.layer), self.metadata["n_images"]
        kinds = ["" if isinstance(unit, int) else "direction" if isinstance(unit, Direction) else "target" for unit in self.units]
        return [f"{layer}-{kind}{i // n if kind else self.units[i]}-{i % n}.png" for i, kind in enumerate(kinds)]


@torch.inference_mode(False)  # what is made in inference mode cannot take part in gradients
def visualize(
    model: nn.Module,
    layer: str | Site,
    unit: int | Direction | Target | Sequence[int] | Sequence[Direction] | Sequence[Target],
    *,
    transform: Transform | None = None,
    size: int | tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    normalize: Normalize | None = None,
    parametrization: Literal["fourier", "phase"] = "fourier",
    spectrum: ImageSpectrum | None = None,
    pooling: Place = "mean",
    n_images: int = 1,
    diversity: float = 0.0,
    steps: int | None = None,
    step_size: float | None = None,
    contrast: float = 1.5,
    decay: float = 1.0,
    jitter: Jitter | None = None,
    seed: int = 0,
    batch_size: int = 8,
    progress: bool | None = None,
) -> Visualization:
    """Make the images to which units, or directions, of a layer respond most.

    The model runs in evaluation mode and is left as it was found: its mode, gradients and hooks, and the global random state. An image
    depends on its unit, its number and the seed, and not on what else is asked for: on a CPU to the last bit, for one `batch_size`
    and number of threads.

    Parameters
    ----------
    model : torch.nn.Module
        On any device; that is where images are made.
    layer : str or Site
        Exact name of a module, or where units are read: of a sparse autoencoder's latents, an input, one of several calls.
    unit : int, Direction or Target, or a sequence of them
        Several are made at once, in batches. A direction, such as a probe's, is climbed by its log-odds; a
        `neuroprobe.visualization.Target` by its values.
    transform : callable, optional
        From a PIL image to the model's input, as everywhere in this library. Its size and its scaling of colors are measured.
    size : int or (int, int), optional
        In pixels, (height, width); by default the transform's, or 224.
    mean, std : three numbers each, optional
        Instead of a transform: of images in [0, 1]. By default ImageNet's.
    normalize : callable, optional
        Instead of these: any differentiable function from RGB images [n, 3, h, w] in [0, 1] to the model's input.
    parametrization : {"fourier", "phase"}, default "fourier"
        "fourier": magnitudes and phases of the image's Fourier coefficients are free (Olah et al.). "phase": MACO (Fel et al.),
        phases are free and magnitudes those of `spectrum`.
    spectrum : ImageSpectrum, optional
        Of the user's own images, as `neuroprobe.visualization.image_spectrum` makes it. With it, colors are decorrelated as they are in
        those images; otherwise as in ImageNet. "phase" needs one, of images of this size.
    pooling : default "mean"
        What of the unit is climbed: "mean" over positions, "max", "center" (the position in the middle of a map, and so a small
        picture), "class_token", ("token", i), or a function, as in `neuroprobe.ActivationRecorder`.
    n_images : int, default 1
        Images per unit, from different noise.
    diversity : float, default 0
        How strongly the images of a unit are pushed to be unlike each other in this layer: 1 is as strongly as toward the unit.
    steps : int, optional
        By default 128; of "phase", 512.
    step_size : float, optional
        The first step's length (root mean square), in the coefficients' unit: that of natural images, by default 0.1; of "phase", a
        radian, by default 0.3. It falls to 0.
    contrast : float, default 1.5
        Of "fourier": the largest contrast, in that of natural images.
    decay : float, default 1
        Of "fourier": coefficients are scaled by 1 / frequency ** decay; larger for smoother images.
    jitter : Jitter, optional
        Random shifts, scales, rotations and noise before every step; by default ``Jitter()``.
    seed : int, default 0
    batch_size : int, default 8
        Images made at once. A batch is always filled up to this number, so that fewer take no less time: take 1 for a single image.
    progress : bool, optional
        Show a progress bar; by default only on a terminal.

    Raises
    ------
    UnknownNameError
        A layer, basis, pooling or layout that there is not.
    InputError
        A unit the layer does not have, a direction that does not fit it, numbers out of their range, several ways of saying how
        images become inputs or one that fits none, "phase" without a spectrum of this size, or a model whose output has no gradient.

    References
    ----------
    Olah, Mordvintsev and Schubert, Feature visualization, Distill 2017. Fel et al., Unlocking feature visualization for deeper
    networks with MAgnitude Constrained Optimization, NeurIPS 2023, arXiv 2306.06805.

    Examples
    --------
    >>> from neuroprobe.world import load_target, target_transform
    >>> found = visualize(load_target(), "classifier", 10, transform=target_transform(), steps=2, batch_size=1)
    >>> found.images.shape, found.status
    ((1, 3, 64, 64), ('found',))
    """
    site = check_site(model, layer)
    targets = check_targets(site, unit)
    check_place(pooling)
    if spectrum is not None and not isinstance(spectrum, ImageSpectrum):
        raise InputError(f"Expected `spectrum` as neuroprobe.visualization.image_spectrum(images) makes it, but got {shown(spectrum)}.")
    check_choice("parametrization", parametrization, _STEPS)
    usual_steps, usual_size = _STEPS[parametrization]
    steps, step_size = usual_steps if steps is None else steps, usual_size if step_size is None else step_size
    settings = Settings(steps, step_size, Jitter() if jitter is None else jitter, diversity, n_images, seed, batch_size)
    prepared = preprocessing(transform, size=size, mean=mean, std=std, normalize=normalize)
    images = _parametrized(parametrization, prepared.size, spectrum, decay, contrast)
    found = _climb(model, site, prepared, targets, images, pooling, settings, progress)
    metadata = {
        "model": fingerprint_model(model), "layer": site.key, "site": site.identity,
        "pooling": describe_place(pooling), **prepared.facts,
        "parametrization": parametrization, "decay": decay, "contrast": contrast, "spectrum": None if spectrum is None else spectrum.images,
        **dataclasses.asdict(settings),
    }  # fmt: skip
    return Visualization(
        site.key,
        tuple(target.made_for for target in targets for _ in range(n_images)),
        torch.cat([part.images for part in found]).numpy(),
        torch.cat([part.values for part in found]).numpy(),
        torch.cat([part.importance for part in found]).numpy(),
        tuple("found" if moved else "no gradient" for part in found for moved in part.moved),
        metadata,
    )


def _parametrized(kind: str, size: tuple[int, int], spectrum: ImageSpectrum | None, decay: float, contrast: float) -> Parametrization:
    if kind == "fourier":
        mean, colors = imagenet_colors() if spectrum is None else (spectrum.mean, spectrum.colors)
        return FourierImages(size, mean=mean, colors=colors, decay=decay, contrast=contrast)
    if spectrum is None:
        maker = "neuroprobe.visualization.image_spectrum(images)"
        raise InputError(f"Expected a `spectrum` for parametrization='phase', but got none: {maker} makes it.")
    if spectrum.size != size:
        raise InputError(
            f"Expected a spectrum of images of {size[0]} x {size[1]} pixels, but got one of {spectrum.size[0]} x {spectrum.size[1]}."
        )
    return PhaseImages(spectrum)


def _climb(
    model: nn.Module,
    site: Site,
    prepared: Preprocessing,
    targets: Sequence[Target],
    made_of: Parametrization,
    pooling: Place,
    settings: Settings,
    progress: bool | None,
) -> list[Climbed]:
    device = device_of(model)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)

    def forward(images: torch.Tensor) -> Reading:
        # channels last is the same, and faster on a CPU
        inputs = prepared.normalize(images)
        if not isinstance(inputs, torch.Tensor) or inputs.ndim != 4:
            raise InputError(f"Expected `normalize` to give a model's input [n, channels, height, width], but got {shown(inputs)}.")
        with taps.forward():
            model(inputs.to(dtype).contiguous(memory_format=torch.channels_last))
        return cast(Reading, taps[site])

    value = partial(target_values, pooling=pooling, layer=site.layer)
    parts = list(batches(targets, settings))
    with (
        torch.enable_grad(), evaluating(model, *site.modules), repeatable(device), tapped(model, [site], gradients=True) as taps,
        tqdm(total=len(parts) * settings.steps, unit="step", desc="images", disable=None if progress is None else not progress) as bar,
    ):  # fmt: skip
        found = []
        for items in parts:
            ascent = Ascent(items, made_of=made_of, forward=forward, value=value, settings=settings, device=device)
            found.append(ascent.run(bar.update))
    return found
