"""An image-text model of one's own: colors by name, without any network. Four members are all that it takes."""

import torch
from PIL import ImageColor
from torchvision import transforms

from neuroprobe import ActivationRecorder, ConceptSource, Vocabulary, dissect
from neuroprobe.images import collect
from neuroprobe.world import ATTRIBUTES, load_target, target_transform, world_images

NAMES = ["red", "yellow", "blue", "green", "orange", "purple", "pink", "cyan", "white", "grey", "black"]
COLORS = torch.tensor([ImageColor.getrgb(name) for name in NAMES]) / 255  # [n_colors, 3]


class ColorEncoder:
    """An image's vector holds the shares of its pixels that are nearest to each color; a text's has a 1 for its color."""

    transform = staticmethod(transforms.ToTensor())  # from a PIL image to a tensor; of one shape for all images
    fingerprint = f"nearest of {NAMES}"  # of the weights, where there are some: results remember it

    def encode_images(self, batch: torch.Tensor) -> torch.Tensor:
        pixels = batch.flatten(2).transpose(1, 2)  # [n, 3, h, w] -> [n, h * w, 3]
        nearest = torch.cdist(pixels, COLORS.expand(len(batch), -1, -1)).argmin(dim=2)
        shares = torch.nn.functional.one_hot(nearest, len(NAMES)).float().mean(dim=1)
        return torch.nn.functional.normalize(shares, dim=1)  # unit vectors, float32 [n, d]

    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        return torch.eye(len(NAMES))[[NAMES.index(text) for text in texts]]


images = world_images(400, seed=3)
source = ConceptSource(ColorEncoder(), Vocabulary.from_words(NAMES))
recorder = ActivationRecorder(load_target(), ["classifier"])
activations, scores = collect(images, [recorder.consumer(target_transform()), source.consumer()])
report = dissect(activations, scores)
for name in NAMES:
    print(f"the output that was trained on {name!r} is named {report.label('classifier', ATTRIBUTES.index(name))!r}")
