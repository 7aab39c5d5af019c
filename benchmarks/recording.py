"""How much recording costs: ``python benchmarks/recording.py``. Every figure is a ratio of two things timed in turn."""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.models.feature_extraction import create_feature_extractor

from neuroprobe import ActivationRecorder, ClipEncoder, ConceptSource, Images, Vocabulary
from neuroprobe.images import collect
from neuroprobe.world import CLIP_PATH

MODULES = [f"features.{i}" for i in range(19)]
BATCH = 32


class Noise:
    """Images for which nothing is decoded, so that the forward pass is what is timed."""

    def __init__(self, n: int, side: int) -> None:
        self.ids = [str(i) for i in range(n)]
        generator = np.random.default_rng(0)
        self.pictures = [Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(16)]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Image.Image:
        return self.pictures[index % len(self.pictures)]


class Transformed(Dataset[torch.Tensor]):
    """The same images for the loops that are compared with."""

    def __init__(self, images: Images, transform: Any) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(self.images.load(index))


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def paired(first: Callable[[], object], second: Callable[[], object], *, rounds: int = 5) -> tuple[float, float, float]:
    """Median seconds of both, and the median of the ratio first / second over runs in turn, after one of each."""
    first()
    second()
    times = [(seconds(first), seconds(second)) for _ in range(rounds)]
    return (
        statistics.median(a for a, _ in times),
        statistics.median(b for _, b in times),
        statistics.median(a / b for a, b in times),
    )


def show(what: str, first: float, second: float, ratio: float, aim: str = "") -> None:
    print(f"{what:54} {ratio:5.2f}   {aim:24} {first:.2f} s / {second:.2f} s", flush=True)


def bare_loop(model: torch.nn.Module, data: Transformed, *, channels_last: bool = False) -> None:
    with torch.no_grad():
        for batch in DataLoader(data, batch_size=BATCH):
            model(batch.to(memory_format=torch.channels_last) if channels_last else batch)


def feature_extractor(extractor: torch.nn.Module, data: Transformed) -> None:
    """torchvision's own way to the pooled outputs of the same modules."""
    kept: dict[str, list[torch.Tensor]] = {name: [] for name in MODULES}
    with torch.no_grad():
        for batch in DataLoader(data, batch_size=BATCH):
            for name, output in extractor(batch).items():
                kept[name].append(output.mean(dim=(2, 3)))


def semanticlens(model: torch.nn.Module, data: Transformed) -> None:
    """semanticlens' cache of the highest images of every unit, as its documentation uses it."""
    from semanticlens.component_visualization import aggregators
    from semanticlens.component_visualization.activation_caching import ActMaxCache

    cache = ActMaxCache(layer_names=MODULES, aggregation_fn=aggregators.aggregate_conv_mean, n_collect=20)
    with cache.hook_context(model), torch.no_grad():
        for batch in DataLoader(data, batch_size=BATCH):
            model(batch)


def recording_figures(n: int) -> None:
    transform = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V2.transforms()
    model = torchvision.models.mobilenet_v2().eval()
    images = Images(Noise(n, 256))
    data = Transformed(images, transform)
    recorder, early = ActivationRecorder(model, MODULES), ActivationRecorder(model, MODULES[:7])
    extractor = create_feature_extractor(model, {name: name for name in MODULES})

    def record() -> object:
        return recorder.record(images, transform=transform, batch_size=BATCH)

    def record_early() -> object:
        return early.record(images, transform=transform, batch_size=BATCH)

    def summarize() -> object:
        return recorder.summarize(images, transform=transform, batch_size=BATCH, k=20)

    show("record 19 modules / bare forward loop", *paired(record, lambda: bare_loop(model, data)), "aim: at most 1.03")
    show("the same / bare loop that is fed channels last too", *paired(record, lambda: bare_loop(model, data, channels_last=True)))
    share = share_of_forward(model, 7)
    show("record features.0 to 6 / all 19 (stops early)", *paired(record_early, record), f"{share:.2f} of the forward pass")
    show("torchvision's feature extractor / record", *paired(lambda: feature_extractor(extractor, data), record), "aim: at least 1")
    if importlib.util.find_spec("semanticlens"):
        show("semanticlens' cache / summarize", *paired(lambda: semanticlens(model, data), summarize), "aim: at least 1.5")
    else:
        print("semanticlens is not installed: no figure")


def share_of_forward(model: Any, n_modules: int) -> float:
    """What share of the forward pass the first modules take, timed by themselves."""
    batch = torch.rand(BATCH, 3, 224, 224).to(memory_format=torch.channels_last)
    with torch.no_grad():
        return paired(lambda: model.features[:n_modules](batch), lambda: model(batch))[2]


def decoding_figures() -> None:
    model = torchvision.models.mobilenet_v2().eval()
    transform = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V2.transforms()
    recorder = ActivationRecorder(model, MODULES)
    source = ConceptSource(ClipEncoder(CLIP_PATH, device="cpu"), Vocabulary.from_words(["red"]))
    with tempfile.TemporaryDirectory() as folder:
        make_photographs(Path(folder))
        images = Images(folder)
        decoding = seconds(lambda: [images.load(i) for i in range(len(images))])

        def together() -> None:
            collect(images, [recorder.consumer(transform), source.consumer()], batch_size=BATCH)

        def apart() -> None:
            recorder.record(images, transform=transform, batch_size=BATCH)
            source.score(images, batch_size=BATCH)

        both = paired(together, apart, rounds=3)
        share = f"{2 * decoding / both[1]:.0%} of two passes decode"
        show(f"one pass / two, {len(images)} progressive JPEGs, 12 megapixels", *both, f"aim: at most 0.6; {share}")


def make_photographs(folder: Path, n: int = 24) -> None:
    generator = np.random.default_rng(0)
    for i in range(n):
        coarse = Image.fromarray(generator.integers(0, 256, (60, 80, 3), dtype=np.uint8)).resize((4000, 3000))
        noise = generator.normal(0, 12, (3000, 4000, 1)).astype(np.int16)  # as a sensor's, which is what a decoder has to work on
        picture = np.clip(np.asarray(coarse).astype(np.int16) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{i}.jpg", quality=95, progressive=True)


def memory_figures() -> None:
    few, many = (float(run_self("summarize", str(n))) / 1e6 for n in (1_000, 100_000))
    print(
        f"{'peak memory of summaries, 100,000 / 1,000 images':54} {many / few:5.2f}   {'aim: at most 1.10':24} {many:.0f} MB / {few:.0f} MB"
    )


def summarize_small(n: int) -> None:
    """Summaries of a small network on `n` images; prints this process's peak memory."""
    import resource

    torch.set_num_threads(1)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 256, 4, stride=4), torch.nn.ReLU()).eval()
    transform = torchvision.transforms.ToTensor()
    ActivationRecorder(model, ["0", "1"]).summarize(Images(Noise(n, 8)), transform=transform, batch_size=256, k=50)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def process_figures(n: int) -> None:
    one = float(run_self("shared", str(n)))
    two = float(run_self("shared", str(n), launcher=["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]))
    show("one process / two, one thread each", one, two, one / two, "aim: at least 1.8")


def share_work(n: int) -> None:
    """Record with as many processes as torchrun started; prints the seconds."""
    from neuroprobe.images import process_group, rank_and_size

    torch.set_num_threads(1)
    model = torchvision.models.mobilenet_v2().eval()
    transform = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V2.transforms()
    recorder = ActivationRecorder(model, MODULES)
    with process_group() as several:
        recorder.record(Images(Noise(2 * BATCH, 256)), transform=transform, batch_size=BATCH, distributed=several)
        images = Images(Noise(n, 256))
        spent = seconds(lambda: recorder.record(images, transform=transform, batch_size=BATCH, distributed=several))
        if rank_and_size(several)[0] == 0:
            print(spent)


def run_self(*arguments: str, launcher: list[str] | None = None) -> str:
    command = [sys.executable, *(launcher or []), __file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return done.stdout.strip().splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=128, help="per timed run (default: %(default)s)")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} processors\n")
    recording_figures(arguments.images)
    decoding_figures()
    process_figures(4 * arguments.images)
    memory_figures()


if __name__ == "__main__":
    if sys.argv[1:2] == ["summarize"]:
        summarize_small(int(sys.argv[2]))
    elif sys.argv[1:2] == ["shared"]:
        share_work(int(sys.argv[2]))
    else:
        main()
