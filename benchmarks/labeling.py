"""How much naming a layer's units costs: ``python benchmarks/labeling.py``.

Every figure is a ratio of two things that ran in turn, each in a process of its own, from the same embeddings and
activations to every unit's best five concepts:

- ours: the function's scorer, in blocks of 1,024 concepts, as `dissect` runs it;
- plain: the papers' formulas as the published code computes them (float32, torch): the whole matrix P, then unit by unit
  the rows of its highest images. It is timed on some of the units, and that part of its time extrapolated to all.

For the functions that are matrix products, plain is the two products alone: scores of the images, [n_images, d] x
[d, n_concepts], and weights of the units with these, [n_units, n_images] x [n_images, n_concepts]; they are timed on a
tenth of the concepts and extrapolated.

The embeddings are random vectors around one common direction (cosines of about 0.2, as CLIP's), without clusters; the
activations are random too, so that nearly every image is among some unit's highest. Wall-clock ratios hold on a machine
that does nothing else; the ratios of processor time of one thread (``--threads 1``) hold on a busy one too.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional as F

from neuroprobe.labeling import find_scorer

AIMS = {"soft_wpmi": 5.0, "wpmi": 15.0, "rank_reorder": 8.0}  # times faster than plain
LINEAR_AIM = 1 / 1.2
SAMPLE = {"soft_wpmi": 16, "wpmi": 32, "rank_reorder": 2}
BLOCK = 1024
TOP = 5


def inputs(arguments: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Image vectors, text vectors and activations."""
    generator = torch.Generator().manual_seed(0)
    common = F.normalize(torch.randn(1, 512, generator=generator), dim=1)

    def vectors(n: int) -> torch.Tensor:
        own = F.normalize(torch.randn(n, 512, generator=generator), dim=1)
        return F.normalize(own.add_(common, alpha=0.5), dim=1)

    return vectors(arguments.images), vectors(arguments.concepts), torch.randn(arguments.images, arguments.units, generator=generator)


# --- plain


class Clock:
    """Wall-clock and processor seconds; parts can be extrapolated."""

    def __init__(self) -> None:
        self.wall = self.processor = 0.0
        self._last = time.perf_counter(), time.process_time()

    def lap(self, factor: float = 1.0) -> None:
        """Count what has passed since the last lap `factor` times."""
        now = time.perf_counter(), time.process_time()
        self.wall += factor * (now[0] - self._last[0])
        self.processor += factor * (now[1] - self._last[1])
        self._last = now


def plain_soft_wpmi(matrix: torch.Tensor, activations: torch.Tensor, n: int, clock: Clock) -> torch.Tensor:
    p = torch.softmax(10 * matrix, dim=1)
    top = torch.topk(activations, 100, dim=0).indices
    certainty = (0.998 - torch.arange(100) / 100 * (0.998 - 0.97))[:, None]
    clock.lap()
    rows = []
    for unit in range(n):
        of_top = p.gather(0, top[:, unit : unit + 1].expand(-1, p.shape[1]))
        rows.append(torch.log(1 + certainty * (of_top - 1) + 1e-7).sum(dim=0))
    log_p = torch.stack(rows)
    return log_p - (torch.logsumexp(log_p, dim=0) - math.log(n))


def plain_wpmi(matrix: torch.Tensor, activations: torch.Tensor, n: int, clock: Clock) -> torch.Tensor:
    p = torch.softmax(2 * matrix, dim=1)
    top = torch.topk(activations, 28, dim=0).indices
    clock.lap()
    rows = [torch.log(p.gather(0, top[:, unit : unit + 1].expand(-1, p.shape[1])) + 1e-7).sum(dim=0) for unit in range(n)]
    log_p = torch.stack(rows)
    return log_p - 0.6 * (torch.logsumexp(log_p, dim=0) - math.log(n))


def plain_rank_reorder(matrix: torch.Tensor, activations: torch.Tensor, n: int, clock: Clock) -> torch.Tensor:
    values, top = torch.topk(activations, int(0.05 * len(activations)), dim=0)
    generator = torch.Generator().manual_seed(0)
    clock.lap()
    rows = []
    for unit in range(n):
        of_top = matrix.gather(0, top[:, unit : unit + 1].expand(-1, matrix.shape[1]))
        ranks = torch.argsort(torch.argsort(of_top, dim=0), dim=0)
        own = values[:, unit : unit + 1]
        ascending = own.flip(0)
        shuffled = torch.cat([ascending[torch.randperm(len(own), generator=generator)] for _ in range(5)], dim=1)
        baseline = ((ascending - shuffled).abs() ** 3).mean()
        error = ((own - ascending.expand(-1, matrix.shape[1]).gather(0, ranks)).abs() ** 3).mean(dim=0)
        rows.append(-error / baseline / of_top.mean(dim=0) ** 0.5)
    return torch.stack(rows)


def plain(function: str, images: torch.Tensor, texts: torch.Tensor, activations: torch.Tensor) -> Clock:
    clock = Clock()
    if function not in SAMPLE:
        some = texts[: max(1, len(texts) // 10)]
        _ = activations.T @ (images @ some.T)
        clock.lap(len(texts) / len(some))
        return clock
    n = min(SAMPLE[function], activations.shape[1])
    matrix = images @ texts.T
    scores = globals()[f"plain_{function}"](matrix, activations, n, clock)
    torch.topk(scores, TOP, dim=1)
    clock.lap(activations.shape[1] / n)
    return clock


# --- ours


def ours(function: str, images: torch.Tensor, texts: torch.Tensor, activations: torch.Tensor) -> Clock:
    clock = Clock()
    make: Any = find_scorer(function)[1]
    scorer = make(SimpleNamespace(image_vectors=images, text_vectors=texts))
    units = scorer.units(activations)
    best = torch.full((activations.shape[1], TOP), -torch.inf)
    concepts = torch.zeros_like(best, dtype=torch.long)
    for start in range(0, len(texts), BLOCK):
        scores = scorer.block(units, slice(start, min(start + BLOCK, len(texts))))
        if scorer.prior_weight:
            scores -= scorer.prior(scores)
        values, columns = torch.topk(scores, min(TOP, scores.shape[1]), dim=1)
        best, places = torch.topk(torch.cat([best, values], dim=1), TOP, dim=1)
        concepts = torch.cat([concepts, columns + start], dim=1).gather(1, places)
    clock.lap()
    return clock


# --- one run of either, in a process of its own


def measure(side: str, function: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds, and the peak of the memory above what holds the inputs, in bytes."""
    torch.set_num_threads(arguments.threads)
    given = inputs(arguments)
    warm_up()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = memory("VmRSS")
    clock = (ours if side == "ours" else plain)(function, *given)
    return {"wall": clock.wall, "processor": clock.processor, "peak": memory("VmHWM") - before}


def warm_up() -> None:
    """What a process does once: libraries are loaded, and numba compiles."""
    few = torch.ones(512, 512)
    _ = few @ few
    ours("soft_wpmi", few, few, torch.rand(512, 1000))


def memory(name: str) -> float:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, "needs Linux"
    return 1024.0 * int(found[1])


def in_process(side: str, function: str, arguments: argparse.Namespace) -> dict[str, float]:
    sizes = [f"--{name}={getattr(arguments, name)}" for name in ("images", "units", "concepts", "threads")]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    command = [sys.executable, __file__, *sizes, "--functions", function, "--side", side]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def row(function: str, arguments: argparse.Namespace) -> str:
    runs = [(in_process("plain", function, arguments), in_process("ours", function, arguments)) for _ in range(arguments.rounds)]

    def median_ratio(what: str) -> float:
        return statistics.median(first[what] / second[what] for first, second in runs)

    first, second = ({what: statistics.median(run[i][what] for run in runs) for what in runs[0][0]} for i in (0, 1))
    memory_share = f"{second['peak'] / first['peak']:.2f} ({second['peak'] / 1e6:.0f} / {first['peak'] / 1e6:.0f} MB)"
    aim = AIMS.get(function, LINEAR_AIM)
    return (
        f"| {function} | {median_ratio('wall'):.2f} | {median_ratio('processor'):.2f} | {aim:.2g} | "
        f"{first['wall']:.1f} / {second['wall']:.1f} s | {memory_share if function in AIMS else '-'} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--units", type=int, default=2_048)
    parser.add_argument("--concepts", type=int, default=20_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--functions", nargs="+", default=["soft_wpmi", "wpmi", "rank_reorder", "cos_similarity", "peak_correlation"])
    parser.add_argument("--side", choices=["plain", "ours"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(arguments.side, arguments.functions[0], arguments)))
        return
    print(f"{platform.machine()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}; {arguments.threads} threads; ", end="")
    print(f"Python {platform.python_version()}, torch {torch.__version__}")
    print(f"{arguments.images} images, {arguments.units} units, {arguments.concepts} concepts\n")
    print("| function | times faster than plain | in processor time | aim | plain / ours | peak memory, ours / plain |")
    print("|---|---|---|---|---|---|")
    for function in arguments.functions:
        print(row(function, arguments), flush=True)


if __name__ == "__main__":
    main()
