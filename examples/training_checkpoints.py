"""Probe a network of one's own while it trains: when does which layer learn a concept?

The loop below is anybody's: batches, a loss, a step. At some of its epochs it does two things more. It probes the layers as they are,
and prints how far above the baseline each is read; the network keeps its weights, its training mode and the random numbers to come, so
that it learns what it would have learned anyway. And it saves the weights, from which a longer study is made when the training is over:
all probes, more splits, a what-where-when picture. Whoever has only the files of an earlier training does this second part alone.

The images to train on are in one folder per class; those to probe with, another folder or the same, need no classes: CLIP ranks them.

Offline: rendered images to train on, labeled with the world's 31 attributes, others to probe with, and the world's CLIP.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from common import example_parser, load_encoder, load_images, run, save
from torch import nn

from neuroprobe import ConceptSets, ConceptSource, Images, ProbingStudy, Vocabulary
from neuroprobe.exceptions import InputError
from neuroprobe.models import resolve_device
from neuroprobe.world import WorldDataset, target_transform

LAYERS = ("block1", "block2", "block3", "block4")
TRANSFORM = target_transform()  # 64 x 64, with ImageNet's mean and deviation
EXAMPLES = """examples:
  python examples/training_checkpoints.py --train dogs_and_cats/ --images photos/ --epochs 30
  python examples/training_checkpoints.py --offline
"""


class SmallNet(nn.Module):
    """Four blocks of convolution (every second position), normalization and ReLU, and a linear head."""

    def __init__(self, n_classes: int, *, widths: Sequence[int] = (16, 32, 64, 64)) -> None:
        super().__init__()
        for i, (n_in, n_out) in enumerate(zip((3, *widths), widths, strict=False), start=1):
            block = nn.Sequential(nn.Conv2d(n_in, n_out, 3, stride=2, padding=1), nn.BatchNorm2d(n_out), nn.ReLU())
            self.add_module(f"block{i}", block)
        self.head = nn.Linear(widths[-1], n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [n, n_classes] of images [n, 3, h, w]."""
        for layer in LAYERS:
            x = self.get_submodule(layer)(x)
        return self.head(x.amax(dim=(2, 3)))  # type: ignore[no-any-return]


def training_data(arguments: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [n, 3, 64, 64] and what is true of them, 0 or 1, [n, n_classes]."""
    if arguments.offline:
        world = WorldDataset(2 * arguments.images_count, seed=4)  # no image of the probing set's seed
        return torch.stack([TRANSFORM(world[i]) for i in range(len(world))]), torch.from_numpy(world.truth()).float()
    if arguments.train is None:
        raise InputError("Expected --train, a folder with a subfolder of images per class, beside --images, the images to probe with.")
    images = Images(arguments.train)
    classes = [Path(id_).parts[0] for id_ in images.ids]
    numbers = torch.tensor([sorted(set(classes)).index(name) for name in classes])
    return torch.stack([TRANSFORM(images[i]) for i in range(len(images))]), nn.functional.one_hot(numbers).float()


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, *, probing: Probing, epochs: int, every: int) -> dict[str, Path]:
    """One's own training loop, with one line for probing; returns the files of weights by the moment's name."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    files = {}
    for epoch in range(epochs + 1):
        if epoch % every == 0 or epoch == epochs:
            files[f"epoch_{epoch:03d}"] = probing.look(model, f"epoch_{epoch:03d}")
        if epoch == epochs:
            break
        model.train()
        for rows in torch.randperm(len(x)).split(64):
            loss = nn.functional.binary_cross_entropy_with_logits(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return files


class Probing:
    """What is probed, and with what."""

    def __init__(self, images: Images, concept_sets: ConceptSets, *, folder: Path) -> None:
        self.images, self.concept_sets, self.folder = images, concept_sets, folder

    def look(self, model: nn.Module, name: str) -> Path:
        """Probe the layers as they are with the quickest probe and print their gain; save the weights, and return the file."""
        study = ProbingStudy(model, LAYERS, self.concept_sets, probes=[("linear", "pooled")], seeds=[0])
        table = study.run(self.images, transform=TRANSFORM, progress=False).table
        gains = (table["test_accuracy"] - table["baseline"]).groupby(table["layer"]).mean()
        print(f"{name}: above the baseline by " + ", ".join(f"{layer} {gains[layer]:+.3f}" for layer in LAYERS))
        torch.save(model.state_dict(), self.folder / f"{name}.pt")
        return self.folder / f"{name}.pt"


def train_and_probe(arguments: argparse.Namespace) -> None:
    """Rank the images to probe with, train with a look now and then, and make the study of the saved weights."""
    x, y = training_data(arguments)
    images, device = load_images(arguments), resolve_device(arguments.device)
    source = ConceptSource(load_encoder(arguments), Vocabulary.probing_blog())
    sets = source.rank(images, n_positive=arguments.positives, n_negative=2 * arguments.positives)
    torch.manual_seed(arguments.seed)
    model = SmallNet(y.shape[1]).to(device)
    folder = arguments.out / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    files = train(
        model, x.to(device), y.to(device), probing=Probing(images, sets, folder=folder), epochs=arguments.epochs, every=arguments.every
    )
    study = ProbingStudy(model, LAYERS, sets, checkpoints=files)
    report = study.run(images, transform=TRANSFORM, batch_size=arguments.batch_size, workers=arguments.workers, n_jobs=-1)
    save(report, arguments.out)
    picture = arguments.out / "what_where_when.png"
    report.plot_what_where_when().savefig(picture, dpi=110)
    print(f"And: {picture}, and the weights in {folder}")


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = example_parser(__doc__, out="training-probes", count=800)
    parser.add_argument("--train", type=Path, metavar="DIR", help="folder with a subfolder of images per class (offline: not needed)")
    parser.add_argument("--epochs", type=int, default=12, help="of the training (default: %(default)s)")
    parser.add_argument("--every", type=int, default=3, metavar="N", help="epochs between two looks (default: %(default)s)")
    parser.add_argument("--positives", type=int, default=100, help="images per concept, and twice as many others (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights and the batches (default: %(default)s)")
    parser.epilog = EXAMPLES
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example and return its exit code."""
    return run(train_and_probe, build_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
