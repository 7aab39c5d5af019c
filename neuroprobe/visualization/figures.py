"""Figures of dataset examples, their regions and facets, in matplotlib; nothing is shown, and nothing global changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from neuroprobe._core import Tile, check_count, check_number, picture_grid, printable, thumbnail
from neuroprobe.exceptions import InputError, UnreadableImageError, shown
from neuroprobe.images import Images, check_images
from neuroprobe.visualization._facets import UnitFacets
from neuroprobe.visualization.examples import Example, check_examples
from neuroprobe.visualization.maps import Region

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DIM = 0.3  # of the brightness, where a unit did not fire


def plot_examples(
    examples: Sequence[Example] | Mapping[float, Sequence[Example]],
    images: Images,
    *,
    regions: Sequence[Region] | None = None,
    columns: int = 9,
) -> Figure:
    """A grid of a unit's examples; with quantiles, a row for each.

    Beneath each picture stand the activation and the image's id; "= n" behind the activation says that n images have the same.

    Parameters
    ----------
    examples : sequence of Example, or mapping from quantile to them
    images : Images
        The probing set; only the pictures shown are read.
    regions : sequence of Region, optional
        Of these examples. Then the model's input is shown in place of the image, darkened where the unit did not fire, with a box around
        the receptive field of its strongest position.
    columns : int, default 9
        Pictures in a row, where there are no quantiles.

    Raises
    ------
    InputError
        No examples, or those of several units, something that is no region, or `columns` below 1.
    UnknownNameError
        An example whose image is not there.
    """
    check_count("columns", columns)
    first = check_examples(examples)[0]
    check_images(images)
    if isinstance(examples, Mapping):
        for quantile in examples:
            check_number("quantile", quantile, low=0, high=1)
        rows = [(_quantile_name(q), list(part)) for q, part in examples.items()]
    else:
        rows = [("", list(examples[start : start + columns])) for start in range(0, len(examples), columns)]
    of_example = {region.example: region for region in _checked_regions(regions)} if regions is not None else {}
    if of_example and not any(example in of_example for _, part in rows for example in part):
        raise InputError(f"Expected regions of these examples, but got those of others, such as {next(iter(of_example.values()))}.")
    title = f"{first.layer}, unit {first.unit}" + ("" if first.varies else f": never varies, {first.value:.3g} on every image")
    return _grid(rows, images, title=title, regions=of_example)


def plot_facets(unit_facets: UnitFacets, images: Images, *, n: int = 8) -> Figure:
    """A row for each facet of a unit, with its label and its strongest images.

    Parameters
    ----------
    unit_facets : UnitFacets
    images : Images
        The probing set.
    n : int, default 8
        Images per facet.

    Raises
    ------
    InputError
        A unit that never varies, or `n` below 1.
    """
    check_count("n", n)
    check_images(images)
    if not isinstance(unit_facets, UnitFacets) or not unit_facets.facets:
        raise InputError(f"Expected the facets of a unit that varies, but got {shown(unit_facets)}.")
    rows = [(f"{facet.label or 'no label'}\n{facet.share:.0%} of the images", list(facet.examples[:n])) for facet in unit_facets]
    title = f"{unit_facets.layer}, unit {unit_facets.unit}: {unit_facets.status}"
    if np.isfinite(unit_facets.p_value):
        title += f" (p = {unit_facets.p_value:.2g})"
    return _grid(rows, images, title=title, regions={})


def plot_regions(regions: Sequence[Region]) -> Figure:
    """Where a unit fired: a column per example, with the model's input, the map over it, and the part its strongest position sees.

    Parameters
    ----------
    regions : sequence of Region

    Returns
    -------
    matplotlib.figure.Figure
        The last row is there if receptive fields were measured.

    Raises
    ------
    InputError
        No regions, or those of several units.
    """
    regions = _checked_regions(regions)
    first = regions[0]
    rows = {
        "input": [Tile(region.picture, _caption(region.example)) for region in regions],
        "fired": [Tile(_dimmed(region), f"highest {region.map.max():.3g}") for region in regions],
    }
    if all(region.field is not None for region in regions):
        crops = [region.crop for region in regions]
        rows["receptive field"] = [Tile(crop, f"{crop.size[0]} x {crop.size[1]} pixels") for crop in crops]
    title = f"{first.example.layer}, unit {first.example.unit}; fires from {first.threshold:.3g} on"
    return picture_grid(list(rows.values()), title=title, names=list(rows))


def _checked_regions(regions: Any) -> list[Region]:
    if not isinstance(regions, (list, tuple)) or not regions or not all(isinstance(region, Region) for region in regions):
        raise InputError(f"Expected regions as neuroprobe.visualization.regions finds them, but got {shown(regions)}.")
    check_examples([region.example for region in regions])
    return list(regions)


def _grid(rows: list[tuple[str, list[Example]]], images: Images, *, title: str, regions: Mapping[Example, Region]) -> Figure:
    pictures = images.subset(dict.fromkeys(example.image_id for _, part in rows for example in part))
    place = {id_: i for i, id_ in enumerate(pictures.ids)}
    tiles = [[_tile(pictures, place[example.image_id], example, regions.get(example)) for example in part] for _, part in rows]
    return picture_grid(tiles, title=title, names=[name for name, _ in rows])


def _dimmed(region: Region) -> Image.Image:
    """The model's input, darkened where the unit did not fire."""
    light = np.where(region.fired, 1.0, _DIM)[..., None]
    return Image.fromarray((np.asarray(region.picture) * light).astype(np.uint8))


def _tile(images: Images, place: int, example: Example, region: Region | None) -> Tile:
    if region is not None:
        return Tile(_dimmed(region), _caption(example), None if region.field is None else region.field.box)
    try:
        return Tile(thumbnail(images[place]), _caption(example))
    except UnreadableImageError:
        return Tile(None, _caption(example))


def _caption(example: Example) -> str:
    tied = f" = {example.tied}" if example.tied is not None and example.tied > 1 else ""
    return f"{example.value:.3g}{tied}\n{printable(example.image_id, 20)}"


def _quantile_name(quantile: float) -> str:
    return "top" if quantile == 1 else ("median" if quantile == 0.5 else f"{100 * quantile:g} %")
