"""What several test files share: a small encoder of its own kind, tiny CLIPs, plain arrays as images, activations and scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from neuroprobe.concepts import ConceptScores, Vocabulary, import_clip
from neuroprobe.images import Images
from neuroprobe.recording import Activations


class PixelEncoder:
    """An encoder in the sense of `ImageTextEncoder`: images by a random projection of their pixels, texts by their letters."""

    logit_scale = 20.0
    fingerprint = "pixels-7"

    def __init__(self, d: int = 16, side: int = 8) -> None:
        self.side, self.d = side, d
        self.projection = torch.randn(3 * side * side, d, generator=torch.Generator().manual_seed(7))

    def transform(self, image: Image.Image) -> torch.Tensor:
        pixels = np.asarray(image.resize((self.side, self.side)), dtype=np.float32)
        return torch.from_numpy(pixels / 255 - 0.5).permute(2, 0, 1)

    def encode_images(self, batch: torch.Tensor) -> torch.Tensor:
        return F.normalize(batch.flatten(1) @ self.projection, dim=1)

    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        rows = []
        for text in texts:
            generator = np.random.default_rng(list(text.encode()))
            rows.append(torch.from_numpy(generator.normal(size=self.d).astype(np.float32)))
        return F.normalize(torch.stack(rows), dim=1)


def noise_images(n: int, *, seed: int = 0, side: int = 8) -> Images:
    """`n` images of noise, with the ids "0", "1", ..."""
    pixels = np.random.default_rng(seed).integers(0, 256, size=(n, side, side, 3), dtype=np.uint8)
    return Images([Image.fromarray(p) for p in pixels])


def to_tensor(image: Image.Image) -> torch.Tensor:
    """Pixels from 0 to 1, [3, height, width]."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)


def tiny_clip(kind: str = "vit", *, seed: int = 0, half: bool = True) -> torch.nn.Module:
    """clip's own class, small and with random weights; `half`: weights that float16 represents exactly."""
    clip = import_clip()
    vision = (2, 64, 16) if kind == "vit" else ((1, 1, 1, 1), 2, None)  # layers, width, patch
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = clip.model.CLIP(32, 64, *vision, 77, 49408, 64, 1, 2)
        for name, parameter in model.named_parameters():
            if name.endswith("bn3.weight"):  # zero at first: the block would do nothing
                torch.nn.init.ones_(parameter)
    model.load_state_dict({k: v.half().float() if half and v.is_floating_point() else v for k, v in model.state_dict().items()})
    return model.eval()


def save_clip(path: Path, kind: str = "vit", *, seed: int = 0, half: bool = True) -> torch.nn.Module:
    """Write a tiny CLIP's state dict, and return the model."""
    model = tiny_clip(kind, seed=seed, half=half)
    torch.save(model.state_dict(), path)
    return model


def activations_of(arrays: dict[str, np.ndarray], *, images: str = "these images") -> Activations:
    n = len(next(iter(arrays.values())))
    ids = tuple(f"image {i}" for i in range(n))
    return Activations({k: np.asarray(v, dtype=np.float32) for k, v in arrays.items()}, ids, {"images": images})


def scores_of(n_images: int, words: list[str], *, d: int = 12, seed: int = 0, images: str = "these images") -> ConceptScores:
    """Scores with random unit vectors."""
    generator = torch.Generator().manual_seed(seed)
    image_vectors, text_vectors = (F.normalize(torch.randn(n, d, generator=generator), dim=1) for n in (n_images, len(words)))
    return ConceptScores(
        image_vectors=image_vectors,
        text_vectors=text_vectors,
        vocabulary=Vocabulary.from_words(words),
        ids=tuple(f"image {i}" for i in range(n_images)),
        temperature=0.05,
        metadata={"images": images},
    )
