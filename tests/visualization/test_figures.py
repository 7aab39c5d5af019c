"""Figures of examples, regions and facets: what stands in them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from helpers import activations_of, noise_images, scores_of
from matplotlib.figure import Figure
from PIL import Image

from neuroprobe import ActivationRecorder, Images
from neuroprobe.exceptions import InputError, UnknownNameError
from neuroprobe.visualization import facets, plot_examples, plot_facets, plot_regions, quantile_examples, regions, top_images
from neuroprobe.visualization.maps import Region
from neuroprobe.world import target_transform

IMAGES = Images([noise_images(40)[i] for i in range(40)], ids=[f"image {i}" for i in range(40)])
ACTIVATIONS = activations_of({"fc": np.stack([np.arange(40) % 38, np.full(40, 2.5)], axis=1)})


def drawn(figure: Figure) -> list[list[str]]:
    """Captions of the axes with a picture, in order."""
    figure.savefig(io.BytesIO())  # nothing fails when it is drawn
    return [[text.get_text() for text in ax.texts] for ax in figure.axes if ax.images]


def test_a_grid_of_the_strongest() -> None:
    figure = plot_examples(top_images(ACTIVATIONS, "fc", 0, k=5), IMAGES, columns=3)
    assert figure.get_suptitle() == "fc, unit 0"
    assert [texts[0] for texts in drawn(figure)] == ["37\nimage 37", "36\nimage 36", "35\nimage 35", "34\nimage 34", "33\nimage 33"]
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), np.asarray(IMAGES[37]))
    assert len(figure.axes) == 6
    assert not figure.axes[5].axison  # the empty place


def test_a_row_for_each_quantile_with_ties() -> None:
    figure = plot_examples(quantile_examples(ACTIVATIONS, "fc", 0, quantiles=(1, 0.995, 0.5, 0.0), k=2), IMAGES)
    texts = drawn(figure)
    assert [row[-1] for row in texts[::2]] == ["top", "99.5 %", "median", "0 %"]
    assert [row[0] for row in texts[6:]] == ["0 = 2\nimage 0", "0 = 2\nimage 38"]


def test_a_unit_that_never_varies_says_so() -> None:
    assert plot_examples(top_images(ACTIVATIONS, "fc", 1, k=2), IMAGES).get_suptitle() == "fc, unit 1: never varies, 2.5 on every image"


def test_facets_have_a_row_with_their_label() -> None:
    fires = activations_of({"fc": np.r_[np.zeros(10), 9 + np.arange(30) / 100][:, None]})
    found = facets(fires, scores_of(40, ["a$b", "<b>", "c" * 90]), "fc", 0, n_facets=2)
    figure = plot_facets(found, IMAGES, n=3)
    rows = [texts for texts in drawn(figure) if len(texts) > 1]
    assert len(rows) == 2
    for texts, facet in zip(rows, found, strict=True):
        label = facet.label or "no label"
        assert texts[1].split("\n")[1] == f"{facet.share:.0%} of the images"
        assert texts[1].split("\n")[0] == (label if len(label) < 25 else f"{'c' * 11}…{'c' * 11}")
    with pytest.raises(InputError, match="never varies"):
        plot_facets(facets(ACTIVATIONS, scores_of(40, ["a"]), "fc", 1), IMAGES)


def test_regions_are_shown_on_the_models_input(world: Images, target) -> None:
    activations = ActivationRecorder(target, ["features.3"], pooling="max").record(world, transform=target_transform())
    examples = top_images(activations, "features.3", 1, k=3)
    found = regions(target, world, examples, transform=target_transform())
    figure = plot_regions(found)
    texts = drawn(figure)
    assert len(texts) == 9
    assert [texts[i][-1] for i in (0, 3, 6)] == ["input", "fired", "receptive field"]
    width, height = found[0].crop.size
    assert texts[6][0] == f"{width} x {height} pixels"
    bright, dim = np.asarray(found[0].picture, float), figure.axes[3].images[0].get_array()
    np.testing.assert_allclose(dim[found[0].fired], bright[found[0].fired], atol=1)
    np.testing.assert_allclose(dim[~found[0].fired], 0.3 * bright[~found[0].fired], atol=1)
    marked = plot_examples(examples, world, regions=found[:2])
    assert [len(ax.patches) for ax in marked.axes] == [1, 1, 0]
    left, top, right, bottom = found[0].field.box
    box = marked.axes[0].patches[0]
    assert (box.get_x(), box.get_y(), box.get_width(), box.get_height()) == (left - 0.5, top - 0.5, right - left, bottom - top)
    without = regions(target, world, examples, transform=target_transform(), receptive_fields=False)
    assert len(drawn(plot_regions(without))) == 6


def test_hostile_ids_and_images_that_cannot_be_read(tmp_path: Path) -> None:
    for name in ("$a_b$\u0301.png", "<script>" + "x" * 80 + ".png"):
        Image.new("RGB", (30, 9), "red").save(tmp_path / name.replace("/", ""))
    images = Images(tmp_path)
    activations = activations_of({"fc": np.array([[1.0], [2.0]])})
    activations = type(activations)(activations.arrays, images.ids, {})
    (tmp_path / images.ids[0]).write_bytes(b"")
    figure = plot_examples(top_images(activations, "fc", 0, k=2), images)
    assert len(drawn(figure)) == 1
    assert any(text.get_text() == "cannot be read" for ax in figure.axes for text in ax.texts)


def test_what_cannot_be_shown_is_refused() -> None:
    examples, others = top_images(ACTIVATIONS, "fc", 0, k=2), top_images(ACTIVATIONS, "fc", 1, k=2)
    for nothing in ([], None, ["a"], examples[0]):
        with pytest.raises(InputError, match="Expected examples as top_images"):
            plot_examples(nothing, IMAGES)
    with pytest.raises(InputError, match="columns"):
        plot_examples(examples, IMAGES, columns=0)
    for given, images, match in (
        (examples + others, IMAGES, "Expected examples of one unit"),
        ({"top": examples}, IMAGES, "quantile"),
        (examples, [IMAGES[0]], "Expected the probing set"),
    ):
        with pytest.raises(InputError, match=match):
            plot_examples(given, images)
    picture, zeros = Image.new("RGB", (8, 8)), np.zeros((2, 2), np.float32)
    for regions_of, match in (([1], "Expected regions as"), ([Region(others[0], zeros, 1.0, picture, None)], "of these examples")):
        with pytest.raises(InputError, match=match):
            plot_examples(examples, IMAGES, regions=regions_of)
    with pytest.raises(InputError, match="Expected examples of one unit"):
        plot_regions([Region(one[0], zeros, 1.0, picture, None) for one in (examples, others)])
    for nothing in (None, [1], 3, []):
        with pytest.raises(InputError, match="Expected regions as"):
            plot_regions(nothing)
    with pytest.raises(InputError, match="Expected the facets of a unit"):
        plot_facets(examples, IMAGES)
    with pytest.raises(UnknownNameError, match="image 37"):
        plot_examples(top_images(ACTIVATIONS, "fc", 0, k=2), noise_images(5))
