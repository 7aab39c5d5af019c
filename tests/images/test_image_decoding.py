"""Photographs as they are: whatever a file holds, an RGB image comes out, or a reason why not."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import noise
from PIL import Image, ImageChops

from neuroprobe import Images
from neuroprobe._core import fingerprint_bytes
from neuroprobe.exceptions import UnreadableImageError
from neuroprobe.images._decoding import Item


def pixels(image: Image.Image) -> npt.NDArray[np.uint8]:
    return np.asarray(image)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def decoded(data: bytes) -> npt.NDArray[np.uint8]:
    image, digest = Item(data, "it").load()
    assert image.mode == "RGB"
    assert digest == Item(data, "it").digest() == fingerprint_bytes(data)
    return pixels(image)


def deep_png(values: npt.NDArray[np.uint16]) -> bytes:
    """A 16-bit PNG [h, w, 1 to 4], written from the standard (PIL writes only gray ones)."""
    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    packed = (struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


class TestModes:
    """Whatever a file holds, an RGB image comes out."""

    def read(self, path: Path) -> np.ndarray:
        image = Images([path])[0]
        assert image.mode == "RGB"
        return pixels(image)

    @pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
    def test_plain_modes(self, tmp_path: Path, mode: str) -> None:
        image = noise(1).quantize(16) if mode == "P" else noise(1).convert(mode)
        if mode == "RGBA":
            image.putalpha(77)  # which is lost, and nothing else
        image.save(tmp_path / "x.png")
        gray = pixels(image).astype(np.uint8) * (255 if mode == "1" else 1)
        expected = np.stack([gray] * 3, axis=2) if mode in ("L", "1") else pixels(noise(1) if mode == "RGBA" else image.convert("RGB"))
        np.testing.assert_array_equal(self.read(tmp_path / "x.png"), expected)

    def test_cmyk(self, tmp_path: Path) -> None:
        ink = np.zeros((16, 16, 4), dtype=np.uint8)
        ink[..., 1:3] = 255  # magenta and yellow: red
        Image.fromarray(ink, mode="CMYK").save(tmp_path / "x.tif")
        Image.fromarray(ink, mode="CMYK").save(tmp_path / "x.jpg", quality=100)
        np.testing.assert_array_equal(self.read(tmp_path / "x.tif")[8, 8], [255, 0, 0])
        np.testing.assert_allclose(self.read(tmp_path / "x.jpg")[8, 8].astype(int), [255, 0, 0], atol=4)

    @pytest.mark.parametrize("suffix", ["jpg", "png"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation(self, tmp_path: Path, orientation: int, suffix: str) -> None:
        shown = np.zeros((32, 48, 3), dtype=np.uint8)  # what a viewer shows: red at the top left, blue at the top right
        shown[:16, :24], shown[:16, 24:] = (250, 0, 0), (0, 0, 250)
        stored = _as_stored(Image.fromarray(shown), orientation)
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored.save(tmp_path / f"x.{suffix}", exif=exif)
        read = self.read(tmp_path / f"x.{suffix}").astype(int)
        assert read.shape == (32, 48, 3)
        np.testing.assert_allclose(read[4::24, 6::36], shown[4::24, 6::36], atol=8)

    def test_image_is_a_copy_each_time(self, tmp_path: Path) -> None:
        noise(1).save(tmp_path / "x.png")
        images = Images([tmp_path / "x.png"])
        images[0].paste((0, 0, 0), (0, 0, 48, 40))
        np.testing.assert_array_equal(pixels(images[0]), pixels(noise(1)))


def _as_stored(shown: Image.Image, orientation: int) -> Image.Image:
    """Undo what EXIF (CIPA DC-008, tag 274) tells a viewer to do."""
    undo = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],  # a viewer turns it clockwise
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    for step in undo.get(orientation, []):
        shown = shown.transpose(step)
    return shown


PICTURE = noise(1)


def assert_alike(read: npt.NDArray[np.uint8], shown: Image.Image, *, lossy: bool) -> None:
    if not lossy:
        np.testing.assert_array_equal(read, pixels(shown))
    assert read.shape == pixels(shown).shape
    assert np.abs(read.astype(int) - pixels(shown)).mean() < 8  # of noise; another picture differs by some 80


class TestMoreModes:
    @pytest.mark.parametrize("alpha", [3, bytes([0, 128, *[255] * 14])], ids=["one color", "every color"])
    def test_palette_with_transparency(self, alpha: int | bytes) -> None:
        palette = PICTURE.quantize(16)
        np.testing.assert_array_equal(decoded(encoded(palette, "PNG", transparency=alpha)), pixels(palette.convert("RGB")))

    def test_gray_with_alpha(self) -> None:
        gray = PICTURE.convert("L")
        with_alpha = Image.merge("LA", (gray, gray))
        np.testing.assert_array_equal(decoded(encoded(with_alpha, "PNG")), np.stack([pixels(gray)] * 3, axis=2))

    @pytest.mark.parametrize("channels", [1, 2, 3, 4])
    def test_16_bit_png(self, channels: int) -> None:
        shallow = np.random.default_rng(0).integers(0, 256, (6, 7, channels), dtype=np.uint8)
        read = decoded(deep_png(shallow.astype(np.uint16) * 257))
        colors = shallow[..., :3] if channels > 2 else np.repeat(shallow[..., :1], 3, axis=2)
        np.testing.assert_array_equal(read, colors)

    @pytest.mark.parametrize("order", ["<", ">"])
    def test_16_bit_tiff(self, order: str) -> None:
        deep = np.linspace(0, 65535, 256).reshape(16, 16)
        image = Image.frombytes("I;16" if order == "<" else "I;16B", (16, 16), deep.astype(f"{order}u2").tobytes())
        np.testing.assert_allclose(decoded(encoded(image, "TIFF"))[..., 0], deep / 257, atol=1)

    def test_floating_tiff_in_0_to_1(self) -> None:
        gray = np.arange(256, dtype=np.uint8).reshape(16, 16)
        as_float = Image.fromarray((gray / 255).astype(np.float32))
        np.testing.assert_array_equal(decoded(encoded(as_float, "TIFF"))[..., 1], gray)
        with pytest.raises(UnreadableImageError, match=r"Expected it to hold values in \[0, 1\], but got 0 to 255"):
            decoded(encoded(Image.fromarray(gray.astype(np.float32)), "TIFF"))

    def test_cmyk_jpeg_is_inverted_if_adobe_wrote_it(self) -> None:
        cmyk = PICTURE.convert("CMYK")
        adobe = encoded(cmyk, "JPEG", quality=100)  # PIL writes as Adobe does
        assert_alike(decoded(adobe), PICTURE, lossy=True)
        inverted = encoded(ImageChops.invert(cmyk), "JPEG", quality=100)
        start = inverted.index(b"\xff\xee\x00\x0eAdobe")
        plain = inverted[:start] + inverted[start + 16 :]  # ink as it is, and no word of Adobe
        np.testing.assert_allclose(decoded(plain).astype(int), decoded(adobe), atol=1)

    def test_progressive_jpeg(self) -> None:
        data = encoded(PICTURE, "JPEG", quality=95, progressive=True)
        assert Image.open(io.BytesIO(data)).info["progressive"]
        np.testing.assert_array_equal(decoded(data), decoded(encoded(PICTURE, "JPEG", quality=95)))

    @pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
    def test_first_of_several_frames(self, format: str) -> None:
        others = [Image.new("RGB", PICTURE.size, color) for color in ("black", "white")]
        options = {"WEBP": {"lossless": True}, "MPO": {"quality": 95}}.get(format, {})
        data = encoded(PICTURE, format, save_all=True, append_images=others, **options)
        assert Image.open(io.BytesIO(data)).n_frames >= 3
        assert_alike(decoded(data), PICTURE, lossy=format in ("GIF", "MPO"))

    @pytest.mark.parametrize("mode", ["La", "RGBa", "PA", "RGBX", "HSV", "YCbCr", "LAB"])
    def test_whatever_a_dataset_may_hand_out(self, mode: str) -> None:
        image = Image.new("LAB", (4, 3)) if mode == "LAB" else PICTURE.convert({"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode, mode))
        assert Item(image.convert(mode), "it").load()[0].mode == "RGB"

    @pytest.mark.parametrize("format", ["TIFF", "WEBP", "MPO"])
    def test_orientation_in_other_formats(self, format: str) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        options = {"WEBP": {"lossless": True}, "MPO": {"quality": 95, "save_all": True}}.get(format, {})
        read = decoded(encoded(PICTURE, format, exif=exif, **options))
        assert_alike(read, PICTURE.transpose(Image.Transpose.ROTATE_270), lossy=format == "MPO")

    @pytest.mark.parametrize("exif", [b"garbage", b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff", b"MM\0*\0\0\0\x08\0\x01\x01\x12"])
    @pytest.mark.parametrize("filter_", ["error", "ignore"])
    def test_damaged_exif_around_a_good_picture(self, exif: bytes, filter_: Any) -> None:
        warnings.simplefilter(filter_)  # for this test: pytest puts the filters back
        data = encoded(PICTURE, "JPEG", quality=95, exif=b"Exif\0\0" + exif)
        np.testing.assert_array_equal(decoded(data), decoded(encoded(PICTURE, "JPEG", quality=95)))

    def test_orientation_where_warnings_are_errors(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 3
        path = tmp_path / "x.png"
        path.write_bytes(encoded(PICTURE.quantize(16), "PNG", transparency=bytes([0, 128, *[255] * 14]), exif=exif))
        warnings.simplefilter("error")
        turned = pixels(PICTURE.quantize(16).convert("RGB"))[::-1, ::-1]
        np.testing.assert_array_equal(pixels(Images([path])[0]), turned)

    def test_warnings_of_others_are_shown_as_often_as_before(self) -> None:
        with warnings.catch_warnings(record=True) as shown:
            warnings.simplefilter("default")
            for _ in range(3):
                decoded(encoded(PICTURE, "PNG"))
                warnings.warn("a transform's", stacklevel=1)
        assert len(shown) == 1


class TestRefused:
    def test_decompression_bomb(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)
        with pytest.raises(UnreadableImageError, match=r"exceeds limit of 1800 pixels, could be .* raise PIL.Image.MAX_IMAGE_PIXELS"):
            decoded(encoded(PICTURE, "PNG"))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # PIL warns of what is between once and twice
        warnings.simplefilter("error")
        np.testing.assert_array_equal(decoded(encoded(PICTURE, "PNG")), pixels(PICTURE))

    @pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
    def test_cut_in_half(self, format: str) -> None:
        data = encoded(noise(2, size=(200, 150)), format)
        with pytest.raises(UnreadableImageError, match="Expected an image, but it cannot be read"):
            decoded(data[: len(data) // 2])

    @pytest.mark.parametrize("data", [b"", b"\0", b"not an image", b"<html></html>", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"])
    def test_no_image(self, data: bytes) -> None:
        with pytest.raises(UnreadableImageError, match="it cannot be read"):
            decoded(data)
        assert Item(data, "it").digest() == fingerprint_bytes(data)  # what has bytes has a content

    @pytest.mark.parametrize("data", [b"", b"not an image", encoded(PICTURE, "PNG")[:100], encoded(PICTURE, "JPEG")[:400]])
    def test_the_reason_is_the_same_each_time(self, data: bytes) -> None:
        reasons, kept = set(), []
        for _ in range(3):
            with pytest.raises(UnreadableImageError) as caught:
                Item(data, "it").load()
            reasons.add(str(caught.value))
            kept.append(caught)  # so that no memory is used again
        assert len(reasons) == 1

    def test_an_image_of_no_pixels(self) -> None:
        with pytest.raises(UnreadableImageError):
            Item(np.zeros((0, 4, 3), dtype=np.float32), "it").load()


class TestItems:
    PNG = encoded(PICTURE, "PNG")

    @pytest.mark.parametrize(
        "item",
        [
            PNG,
            bytearray(PNG),
            memoryview(PNG),
            (PNG, 3),
            {"image": PNG},
            {"img": {"bytes": PNG, "path": "gone.png"}},
            {"__key__": "a", "__url__": "b.tar", "png": PNG, "cls": b"3"},
            {"__key__": "a", "left.PNG": PNG, "json": b"{}"},
            {"image": PNG, "jpg": b"another"},
        ],
        ids=["bytes", "bytearray", "memoryview", "tuple", "dict", "undecoded", "sample", "named sample", "image goes first"],
    )
    def test_encoded_wherever_it_is(self, item: Any) -> None:
        image, digest = Item(item, "it").load()
        np.testing.assert_array_equal(pixels(image), pixels(PICTURE))
        assert digest == Item(item, "it").digest() == fingerprint_bytes(self.PNG)

    def test_a_path(self, tmp_path: Path) -> None:
        path = tmp_path / "x.png"
        path.write_bytes(self.PNG)
        for item in (path, str(path), {"bytes": None, "path": str(path)}, path.as_uri()):
            assert Item(item, "it").load()[1] == fingerprint_bytes(self.PNG)

    def test_two_images_in_a_sample(self) -> None:
        with pytest.raises(UnreadableImageError, match=r"Expected it to hold one image, but got 'left.png', 'right.png'. Name the one"):
            Item({"left.png": self.PNG, "right.png": self.PNG}, "it").load()

    def test_an_item_within_itself(self) -> None:
        loop: list[Any] = []
        loop.append(loop)
        with pytest.raises(UnreadableImageError, match="recursion"):
            Item(loop, "it").load()
