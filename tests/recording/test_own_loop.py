"""The user's own loop: models of timm, transformers, open_clip and clip, built from a configuration."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from neuroprobe import ActivationRecorder, Site, block_layers, list_layers
from neuroprobe.concepts import import_clip
from neuroprobe.exceptions import InputError

X = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def outputs_of(model: nn.Module, layers: list[str], run: Any) -> dict[str, Any]:
    """What the layers return, by plain hooks."""
    outputs: dict[str, Any] = {}
    handles = [
        model.get_submodule(layer).register_forward_hook(lambda module, args, output, layer=layer: outputs.update({layer: output}))
        for layer in layers
    ]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return outputs


class TestTimm:
    @pytest.fixture
    def vit(self) -> nn.Module:
        timm = pytest.importorskip("timm", reason="timm is not installed")
        model = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=2, num_heads=2, num_classes=5)
        return model.eval()  # type: ignore[no-any-return]

    def test_blocks(self, vit: nn.Module) -> None:
        blocks = [layer for layer in block_layers(vit) if layer.startswith("blocks.")]
        assert blocks == ["blocks.0", "blocks.1"]
        with ActivationRecorder(vit, blocks, pooling="class_token").recording() as tape, torch.no_grad():
            vit(X)
        expected = outputs_of(vit, blocks, lambda: vit(X))
        for layer in blocks:
            torch.testing.assert_close(tape[layer], expected[layer][:, 0])

    def test_forward_features_in_several_batches(self, vit: Any) -> None:
        recorder = ActivationRecorder(vit, ["blocks.0"], pooling=("token", 2))
        with recorder.recording(stop_early=True) as tape, torch.no_grad():
            for part in X.split(1):
                with tape.forward():
                    vit.forward_features(part)
        expected = outputs_of(vit, ["blocks.0"], lambda: vit(X))["blocks.0"]
        torch.testing.assert_close(tape["blocks.0"], expected[:, 2], rtol=1e-4, atol=1e-5)
        with pytest.raises(InputError, match=r"Write `with tape.forward\(\): ...` around each"), recorder.recording():
            [vit.forward_features(part) for part in X.split(1)]

    @pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "convnext_atto"])
    def test_convolutional(self, name: str) -> None:
        timm = pytest.importorskip("timm", reason="timm is not installed")
        model = timm.create_model(name).eval()
        table = list_layers(model, X)
        layers = [
            name for name, units, calls in zip(table["name"], table["units"].notna(), table["calls"], strict=True) if units and calls == 1
        ]
        assert len(layers) > 40
        with ActivationRecorder(model, layers, pooling="none").recording() as tape, torch.no_grad():
            model(X)
        assert {layer: rows.shape[0] for layer, rows in tape.items()} == dict.fromkeys(layers, 3)


class TestTransformers:
    @pytest.fixture
    def vit(self) -> Any:
        transformers = pytest.importorskip("transformers", reason="transformers is not installed")
        config = transformers.ViTConfig(
            hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40, image_size=32, patch_size=16
        )
        return transformers.ViTForImageClassification(config).eval()

    def test_blocks(self, vit: Any) -> None:
        blocks = [layer for layer in block_layers(vit) if layer.endswith((".0", ".1"))]
        assert len(blocks) == 2
        for pooling, rows_of in (("mean_tokens", lambda x: x[:, 1:].mean(1)), ("max", lambda x: x.amax(1))):
            with ActivationRecorder(vit, blocks, pooling=pooling).recording() as tape, torch.no_grad():
                vit(pixel_values=X)
            expected = outputs_of(vit, blocks, lambda: vit(pixel_values=X))
            for layer in blocks:
                output = expected[layer][0] if isinstance(expected[layer], tuple) else expected[layer]
                torch.testing.assert_close(tape[layer], rows_of(output))

    def test_a_part_that_returns_a_model_output(self, vit: Any) -> None:
        site = Site("vit", select="last_hidden_state", layout="nlc")
        with ActivationRecorder(vit, [site]).recording() as tape, torch.no_grad():
            vit(pixel_values=X)
            torch.testing.assert_close(tape[site], vit.vit(pixel_values=X).last_hidden_state.mean(1))

    def test_the_table(self, vit: Any) -> None:
        table = list_layers(vit, {"pixel_values": X}).set_index("name")
        assert table.loc["classifier", "shape"] == (3, 2)
        assert "last_hidden_state" in table.loc["vit", "shape"]


class TestOpenClip:
    def test_blocks_of_the_visual_part(self) -> None:
        open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed")
        vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32}
        text = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
        model = open_clip.CLIP(embed_dim=8, vision_cfg=vision, text_cfg=text).eval()
        layers = [f"visual.transformer.resblocks.{i}" for i in (0, 1)]
        with ActivationRecorder(model, layers, pooling="class_token", layout="nlc").recording() as tape, torch.no_grad():
            for part in X.split([2, 1]):
                with tape.forward():
                    model.encode_image(part)
        expected = outputs_of(model, layers, lambda: model.encode_image(X))
        for layer in layers:
            torch.testing.assert_close(tape[layer], expected[layer][:, 0], rtol=1e-4, atol=1e-5)
        assert block_layers(model.visual)[:1] == ["conv1"]
        assert "transformer.resblocks.1" in block_layers(model.visual)


class TestTokensBeforeImages:
    """CLIP's own transformer works on [tokens, n, d]."""

    @pytest.fixture
    def visual(self) -> nn.Module:
        clip_model = import_clip().model
        return clip_model.VisionTransformer(  # type: ignore[no-any-return]
            input_resolution=32, patch_size=16, width=24, layers=2, heads=2, output_dim=8
        ).eval()

    def test_the_images_are_on_the_axis_that_the_layout_says(self, visual: nn.Module) -> None:
        x = X
        layers = ["conv1", "transformer.resblocks.0", "transformer.resblocks.1"]
        expected = outputs_of(visual, layers, lambda: visual(x))
        assert expected[layers[1]].shape[1] == 3
        poolings: dict[Any, Any] = {
            "class_token": lambda x: x[0],
            "mean": lambda x: x.mean(0),
            "none": lambda x: x.permute(1, 2, 0).flatten(1),
        }
        for pooling, rows_of in poolings.items():
            recorder = ActivationRecorder(visual, layers[1:], pooling=pooling, layout="lnc")
            with recorder.recording() as tape, torch.no_grad():
                visual(x)
            for layer in layers[1:]:
                torch.testing.assert_close(tape[layer], rows_of(expected[layer]))
        with (
            ActivationRecorder(visual, ["conv1", *(Site(layer, layout="lnc") for layer in layers[1:])]).recording() as tape,
            torch.no_grad(),
        ):
            visual(x)
        torch.testing.assert_close(tape["conv1"], expected["conv1"].mean(dim=(2, 3)))

    def test_it_must_be_said(self, visual: nn.Module) -> None:
        x = torch.randn(5, 3, 32, 32)  # as many images as tokens
        message = r"whose axes follow from its modules, but 'transformer.resblocks.0' gives .* 'nlc' or 'lnc'"
        with pytest.raises(InputError, match=message), ActivationRecorder(visual, ["transformer.resblocks.0"]).recording():
            visual(x)

    def test_a_pooling_function_gets_it_as_it_is(self, visual: nn.Module) -> None:
        x = X
        layer = "transformer.resblocks.0"
        with ActivationRecorder(visual, [layer], layout="lnc", pooling=lambda x: x[0]).recording() as tape, torch.no_grad():
            visual(x)
        torch.testing.assert_close(tape[layer], outputs_of(visual, [layer], lambda: visual(x))[layer][0])
