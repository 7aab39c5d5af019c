"""The offline world: scenes by seed and index, their pixels, their captions and the truth about them, and the target."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import pytest
import torch

from neuroprobe._core import fingerprint_model
from neuroprobe.exceptions import InputError, UnknownNameError
from neuroprobe.world import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLORS,
    LAYERS,
    PATTERNS,
    SHAPES,
    WorldDataset,
    load_target,
    target_checkpoints,
    target_transform,
    world_images,
    world_vocabulary,
)
from neuroprobe.world._captions import TEMPLATES, UNKNOWN_WORD, Caption, SceneTable, sample_caption, truth_matrix, wrap_in_unknown_words
from neuroprobe.world._images import draw
from neuroprobe.world._rendering import RGB, render
from neuroprobe.world._scenes import Scene, SceneObject, phrase, sample_scene


def sampled(n: int, *, seed: int = 0, combinations: str = "all") -> list[Scene]:
    return [sample_scene(np.random.default_rng((seed, i)), combinations=combinations) for i in range(n)]  # type: ignore[arg-type]


class TestImages:
    def test_an_image_does_not_depend_on_how_many_are_asked_for(self) -> None:
        few, many = WorldDataset(3, seed=5), WorldDataset(20, seed=5)
        many.truth()
        for i in (2, 0, 1):
            np.testing.assert_array_equal(np.asarray(few[i]), np.asarray(many[i]))
            assert few.scene(i) == many.scene(i)
        assert few.ids == many.ids[:3]
        assert world_images(3, seed=5).fingerprint == world_images(20, seed=5).subset(few.ids).fingerprint

    def test_neither_on_the_order_nor_on_the_global_random_state(
        self, same_random_states: Callable[[], AbstractContextManager[None]]
    ) -> None:
        with same_random_states():
            forwards = [np.asarray(world_images(4)[i]) for i in range(4)]
            images = world_images(4)
            backward = [np.asarray(images[i]) for i in (3, 2, 1, 0)]
        np.testing.assert_array_equal(forwards, backward[::-1])

    def test_seeds_and_indices_differ(self) -> None:
        pictures = {draw(i, seed=s)[1].tobytes() for i in range(3) for s in range(3)}
        assert len(pictures) == 9

    def test_the_dataset_is_the_drawn_scenes(self) -> None:
        dataset = WorldDataset(3, seed=4, combinations="unseen")
        for i in range(3):
            scene, pixels = draw(i, seed=4, combinations="unseen")
            assert dataset.scene(i) == scene
            np.testing.assert_array_equal(np.asarray(dataset[i]), pixels)

    def test_the_first_scenes_are_those_the_models_were_trained_on(self) -> None:
        """Training used seeds 1 and 2; another sampling or rendering would part the models from their images."""
        assert [draw(i, seed=2)[0].captions[-2] for i in range(3)] == FIRST_CAPTIONS
        means = [draw(i, seed=2)[1].mean(axis=(0, 1)) for i in range(3)]
        np.testing.assert_allclose(means, FIRST_MEANS, atol=0.05)

    @pytest.mark.parametrize(("n", "seed"), [(0, 0), (-1, 0), (3, -1)])
    def test_impossible_numbers(self, n: int, seed: int) -> None:
        with pytest.raises(InputError, match=r"to be a whole number of at least [01], but got"):
            world_images(n, seed=seed)

    def test_unknown_combinations(self) -> None:
        with pytest.raises(UnknownNameError, match=r"Expected the name of a set of combinations, but got 'unsen'. Did you mean 'unseen'"):
            world_images(3, combinations="unsen")  # type: ignore[arg-type]

    @pytest.mark.parametrize("index", [-1, 3])
    def test_no_scene_beyond_the_end(self, index: int) -> None:
        with pytest.raises(IndexError, match=f"Expected an image from 0 to 2, but got {index}"):
            WorldDataset(3).scene(index)

    def test_can_be_sent_to_another_process(self) -> None:
        dataset = WorldDataset(3, seed=6)
        other = pickle.loads(pickle.dumps(dataset))  # noqa: S301
        np.testing.assert_array_equal(np.asarray(other[1]), np.asarray(dataset[1]))


FIRST_CAPTIONS = [
    "a plain red heart on a black background",
    "a striped green circle and a plain orange square on a speckled background",
    "a checkered pink heart and a zigzagged orange star on a speckled background",
]
FIRST_MEANS = [[52.61, 18.6, 21.45], [135.15, 131.88, 109.11], [149.97, 137.6, 137.23]]


class TestTruth:
    dataset = WorldDataset(60, seed=8)

    def test_every_cell_against_the_scene(self) -> None:
        truth = self.dataset.truth()
        assert truth.shape == (60, len(ATTRIBUTES))
        for i in range(60):
            scene = self.dataset.scene(i)
            shown = [scene.background]
            for item in scene.objects:
                shown += [item.shape, item.color, item.pattern]
            assert [name for name, true in zip(ATTRIBUTES, truth[i], strict=True) if true] == [a for a in ATTRIBUTES if a in shown]

    def test_captions_name_what_is_true_and_nothing_else(self) -> None:
        for i in range(60):
            scene = self.dataset.scene(i)
            *objects, whole, background = scene.captions
            assert background == f"a {scene.background} background"
            assert len(objects) == len(scene.objects)
            for item, caption in zip(scene.objects, objects, strict=True):
                assert caption == f"a {item.pattern} {item.color} {item.shape}"
                assert caption in whole
            assert {word for word in whole.split() if word in ATTRIBUTES} == scene.attributes

    def test_an_empty_scene(self) -> None:
        assert Scene((), "black", 1.0, 0.0).captions == ("nothing on a black background", "a black background")
        assert Scene((), "black", 1.0, 0.0).attributes == {"black"}

    def test_attributes_are_unique_and_the_vocabularys_concepts(self) -> None:
        assert len(set(ATTRIBUTES)) == len(ATTRIBUTES) == 31
        assert tuple(concept.name for concept in world_vocabulary().concepts) == ATTRIBUTES
        prompts = [concept.prompts for concept in world_vocabulary().concepts]
        assert prompts[0] == ("This image has a concept: circle",)


class TestSampling:
    def test_numbers_of_objects_and_attributes_are_as_documented(self) -> None:
        scenes = sampled(3000)
        counts = Counter(len(scene.objects) for scene in scenes)
        np.testing.assert_allclose([counts[k] / 3000 for k in range(3)], [0.1, 0.5, 0.4], atol=0.04)  # 4 standard errors
        objects = [item for scene in scenes for item in scene.objects]
        for names, drawn in (
            (SHAPES, [o.shape for o in objects]),
            (COLORS, [o.color for o in objects]),
            (PATTERNS, [o.pattern for o in objects]),
            (BACKGROUNDS, [scene.background for scene in scenes]),
        ):
            shares = np.array([drawn.count(name) / len(drawn) for name in names])
            expected = 1 / len(names)
            assert abs(shares - expected).max() < 4.5 * np.sqrt(expected * (1 - expected) / len(drawn))

    def test_seen_and_unseen_part_the_combinations(self) -> None:
        combinations = {
            kind: {o.attributes for scene in sampled(4000, combinations=kind) for o in scene.objects} for kind in ("all", "seen", "unseen")
        }
        assert not combinations["seen"] & combinations["unseen"]
        assert combinations["seen"] | combinations["unseen"] == combinations["all"]
        assert (len(combinations["all"]), len(combinations["unseen"])) == (400, 40)
        for axis, names in enumerate((SHAPES, COLORS, PATTERNS)):
            counts = Counter(c[axis] for c in combinations["unseen"])
            assert set(counts.values()) == {40 // len(names)}

    def test_objects_stay_in_the_image_and_apart(self) -> None:
        for scene in sampled(500, seed=1):
            for item in scene.objects:
                for center in (item.x, item.y):
                    assert center - item.radius > -1 / 64  # less than a pixel may be cut off
                    assert center + item.radius < 1 + 1 / 64
            if len(scene.objects) == 2:
                left, right = scene.objects
                assert left.x < 0.5 < right.x

    def test_phrases(self) -> None:
        assert phrase("star", "red", "striped") == "a striped red star"
        assert phrase(color="red") == "a red object"
        assert phrase(shape="star", pattern="dotted") == "a dotted star"
        assert phrase() == "a object"


class TestRendering:
    plain = SceneObject("square", "red", "plain", 0.5, 0.5, 0.3, 0.0)

    def picture(self, *objects: SceneObject, background: str = "white", light: float = 1.0, noise: float = 0.0) -> np.ndarray:
        return render(Scene(objects, background, light, noise), np.random.default_rng(0))

    def test_an_empty_plain_background(self) -> None:
        picture = self.picture()
        assert (picture.shape, picture.dtype) == ((64, 64, 3), np.uint8)
        assert set(picture.flatten()) == {242}  # 0.95 of 255, rounded

    @pytest.mark.parametrize("color", COLORS)
    def test_colors(self, color: str) -> None:
        picture = self.picture(replace(self.plain, color=color))
        np.testing.assert_allclose(picture[32, 32] / 255, RGB[color], atol=0.045)  # 0.04 of jitter, and rounding
        assert set(picture[0].flatten()) == {242}

    def test_the_square_is_where_it_should_be(self) -> None:
        picture = self.picture(self.plain)
        red = np.argwhere(picture[..., 1] < 100)
        # half its side is 0.8 of its radius: 0.24 of the image, from 16.64 to 47.36 pixels
        np.testing.assert_allclose([red.min(axis=0), red.max(axis=0)], [[17, 17], [46, 46]], atol=1)
        moved = np.argwhere(self.picture(replace(self.plain, x=0.4, y=0.6))[..., 1] < 100)
        np.testing.assert_allclose(moved.mean(axis=0) - red.mean(axis=0), [6.4, -6.4], atol=0.6)  # y downward

    @pytest.mark.parametrize("shape", SHAPES)
    def test_no_shape_leaves_its_circle(self, shape: str) -> None:
        picture = self.picture(replace(self.plain, shape=shape, angle=0.3))
        y, x = np.argwhere((picture != 242).any(axis=2)).T
        assert len(y) > 100
        assert np.hypot((x + 0.5) / 64 - 0.5, (y + 0.5) / 64 - 0.5).max() < 0.3 * np.sqrt(2)

    def test_shapes_patterns_and_backgrounds_all_look_different(self) -> None:
        pictures = [self.picture(replace(self.plain, shape=shape, pattern=pattern)) for shape in SHAPES for pattern in PATTERNS]
        pictures += [self.picture(background=background) for background in BACKGROUNDS]
        for i, a in enumerate(pictures):
            for b in pictures[:i]:
                assert (abs(a.astype(int) - b) > 60).any(axis=2).mean() > 0.01

    @pytest.mark.parametrize("pattern", PATTERNS)
    def test_patterns_have_a_light_and_a_dark_tone(self, pattern: str) -> None:
        inside = self.picture(replace(self.plain, pattern=pattern))[20:44, 20:44, 0] / 255
        dark = (inside < 0.4).mean()
        assert dark == 0 if pattern == "plain" else 0.2 < dark < 0.7

    def test_light_and_noise(self) -> None:
        np.testing.assert_allclose(self.picture(background="grey", light=0.8).mean() / 255, 0.4, atol=0.003)
        noisy = self.picture(background="grey", noise=0.05) / 255
        np.testing.assert_allclose(noisy.std(), 0.05, atol=0.003)


def slow_truth(scene: Scene, caption: Caption) -> float:
    """Whether a caption is true of a scene, from the scene's words alone."""
    if caption.fixed_truth is not None:
        return caption.fixed_truth
    for shape, color, pattern in caption.objects:
        found = False
        for item in scene.objects:
            fits = shape < 0 or item.shape == SHAPES[shape]
            fits = fits and (color < 0 or item.color == COLORS[color])
            found = found or (fits and (pattern < 0 or item.pattern == PATTERNS[pattern]))
        if not found:
            return 0.0
    if caption.background >= 0 and scene.background != BACKGROUNDS[caption.background]:
        return 0.0
    return 0.0 if caption.empty and scene.objects else 1.0


class TestCaptions:
    scenes = sampled(150, seed=3)
    table = SceneTable.of(scenes)

    def captions(self) -> list[Caption]:
        generator = np.random.default_rng(0)
        return [sample_caption(self.table.objects[i], int(self.table.backgrounds[i]), generator) for i in range(150)]

    def test_truth_matrix_against_plain_python(self) -> None:
        captions = self.captions()
        truth = truth_matrix(self.table, captions)
        assert truth.dtype == np.float32
        np.testing.assert_array_equal(truth, [[slow_truth(scene, caption) for caption in captions] for scene in self.scenes])
        assert set(truth.flatten()) == {0.0, 0.5, 1.0}

    def test_rows_of_a_table(self) -> None:
        rows = np.array([7, 3, 7])
        np.testing.assert_array_equal(truth_matrix(self.table[rows], self.captions()), truth_matrix(self.table, self.captions())[rows])

    def test_by_hand(self) -> None:
        red_star = SceneObject("star", "red", "plain", 0.5, 0.5, 0.2, 0.0)
        table = SceneTable.of([Scene((red_star,), "white", 1.0, 0.0), Scene((), "black", 1.0, 0.0)])
        star, red, blue = (SHAPES.index("star"), -1, -1), (-1, COLORS.index("red"), -1), (-1, COLORS.index("blue"), -1)
        captions = [
            Caption("a star", (star,)),
            Caption("a star and a red object", (star, red)),
            Caption("a star and a blue object", (star, blue)),
            Caption("an object", ((-1, -1, -1),)),
            Caption("nothing", empty=True),
            Caption("black", background=BACKGROUNDS.index("black")),
            Caption("none", fixed_truth=0.5),
        ]
        assert truth_matrix(table, captions).tolist() == [[1, 1, 0, 1, 0, 0, 0.5], [0, 0, 0, 0, 1, 1, 0.5]]

    def test_a_caption_is_true_of_its_own_scene(self) -> None:
        captions = self.captions()
        for i, caption in enumerate(captions):
            truth = slow_truth(self.scenes[i], caption)
            assert truth == (1.0 if caption.fixed_truth is None else caption.fixed_truth), caption

    def test_the_text_says_what_the_claims_say(self) -> None:
        for caption in self.captions():
            claimed = {
                names[a] for wanted in caption.objects for names, a in zip((SHAPES, COLORS, PATTERNS), wanted, strict=True) if a >= 0
            }
            claimed |= {BACKGROUNDS[caption.background]} if caption.background >= 0 else set()
            said = {word for word in caption.text.split() if word in ATTRIBUTES}
            assert said == claimed, caption
            assert any(caption.text.startswith(template.partition("{")[0]) for template in TEMPLATES)

    def test_every_kind_of_caption_occurs(self) -> None:
        texts = " | ".join(caption.text for caption in self.captions())
        for part in ("none", UNKNOWN_WORD, "nothing", " and ", "background", "a photo of"):
            assert part in texts

    def test_unknown_words_stay_outside_the_caption(self) -> None:
        generator = np.random.default_rng(0)
        wrapped = [wrap_in_unknown_words("a red star", generator) for _ in range(50)]
        assert {text.strip(f"{UNKNOWN_WORD} ") for text in wrapped} == {"a red star"}
        assert {text.count(UNKNOWN_WORD) for text in wrapped} == {0, 1, 2, 3, 4}


class TestTarget:
    def test_checkpoints_differ_and_get_better(self) -> None:
        dataset = WorldDataset(120, seed=3)  # seed 2 is what it was trained on
        truth = torch.from_numpy(dataset.truth())
        x = torch.stack([target_transform()(dataset[i]) for i in range(len(dataset))])
        losses, accuracies, fingerprints = [], [], set()
        for name in target_checkpoints():
            model = load_target(name)
            with torch.no_grad():
                outputs = model(x)
            losses.append(torch.nn.functional.binary_cross_entropy_with_logits(outputs, truth.float()).item())
            accuracies.append(((outputs > 0) == truth).float().mean().item())
            fingerprints.add(fingerprint_model(model))
        assert len(fingerprints) == len(target_checkpoints()) == 7
        assert losses == sorted(losses, reverse=True)
        assert losses[0] == pytest.approx(np.log(2), abs=0.01)  # an untrained one knows nothing
        assert accuracies[-1] > 0.99
        assert accuracies[-1] > accuracies[-2] > accuracies[-3] > accuracies[-4]

    def test_trained_and_in_evaluation_mode_unless_told_otherwise(
        self, same_random_states: Callable[[], AbstractContextManager[None]]
    ) -> None:
        with same_random_states():
            model = load_target()
        assert not any(module.training for module in model.modules())
        assert fingerprint_model(model) == fingerprint_model(load_target("step_05000"))

    def test_every_load_is_a_copy_of_its_own(self) -> None:
        first, second = load_target(), load_target()
        with torch.no_grad():
            next(first.parameters()).zero_()
        assert fingerprint_model(second) == fingerprint_model(load_target())

    def test_layers_are_its_modules(self) -> None:
        names = [name for name, _ in load_target().named_modules()]
        assert set(LAYERS) <= set(names)
        assert [name for name in names if name.count(".") == 1 and name.startswith("features")] == list(LAYERS[:-1])

    def test_unknown_checkpoint(self) -> None:
        with pytest.raises(
            UnknownNameError, match=r"Expected a checkpoint of the world's target, but got 'step_5000'. Did you mean 'step_0?5000'"
        ):
            load_target("step_5000")
