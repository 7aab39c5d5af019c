"""The memory of naming at scale: ``python benchmarks/labeling_memory.py``.

`dissect` on large layers, in a process of its own for every line: peak memory beyond what the process held before the
call (embeddings, activations or summary, libraries). Both are done on a slice of the concepts, since the blocks are the
same ones whatever their number; the time is extrapolated to 20,000 concepts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

import numpy as np
import torch
from torch.nn import functional as F

from neuroprobe import Activations, ActivationSummary, ConceptScores, Vocabulary, dissect
from neuroprobe.recording import UnitStatistics

#: Function, images, units, concepts of the slice, from a summary.
CASES = {
    "peak_correlation": (50_000, 2_048, 20_000, False),
    "soft_wpmi": (50_000, 2_048, 2_000, False),
    "wpmi": (50_000, 2_048, 2_000, False),
    "soft_wpmi from a summary": (1_000_000, 100_000, 128, True),
    "peak_mean from a summary": (1_000_000, 100_000, 1_024, True),
}
WHOLE = 20_000
KEPT = 100


def concept_scores(n_images: int, n_concepts: int, *, d: int = 512) -> ConceptScores:
    """Random unit vectors."""
    generator = torch.Generator().manual_seed(0)
    images, texts = (F.normalize(torch.randn(n, d, generator=generator), dim=1) for n in (n_images, n_concepts))
    vocabulary = Vocabulary.from_words(str(i) for i in range(n_concepts))
    return ConceptScores(images, texts, vocabulary, tuple(map(str, range(n_images))), None, {"images": "random"})


def random_summary(n_images: int, n_units: int) -> ActivationSummary:
    """What a recording would have kept of units with random activations."""
    generator = np.random.default_rng(0)
    rows = generator.integers(n_images // KEPT, size=(n_units, KEPT)) + np.arange(KEPT) * (n_images // KEPT)  # no row twice
    values = -np.sort(-np.abs(generator.normal(3, 0.3, (n_units, KEPT))).astype(np.float32), axis=1)
    moments = np.zeros(n_units), np.ones(n_units), np.full(n_units, 0.5)
    ids = {int(row): str(row) for row in np.unique(rows)}
    return ActivationSummary({"layer": UnitStatistics(values, rows, -values, rows, *moments, n_images, ids)}, {"images": "random"})


def measure(case: str) -> dict[str, float]:
    """Peak memory in GB beyond the inputs, and seconds."""
    n_images, n_units, n_concepts, summarized = CASES[case]
    scores = concept_scores(n_images, n_concepts)
    if summarized:
        recorded: Activations | ActivationSummary = random_summary(n_images, n_units)
    else:
        values = np.random.default_rng(0).normal(size=(n_images, n_units)).astype(np.float32)
        recorded = Activations({"layer": values}, scores.ids, {"images": "random"})
    with open("/proc/self/clear_refs", "w") as file:  # the peak counts from here
        file.write("5")
    before, started = memory("VmRSS"), time.perf_counter()
    dissect(recorded, scores, similarity=case.split()[0], n_bootstrap=0)
    return {"gigabytes": memory("VmHWM") - before, "seconds": time.perf_counter() - started}


def memory(name: str) -> float:
    """Gigabytes, of the process's own account."""
    with open("/proc/self/status") as file:
        found = next(line for line in file if line.startswith(name))
    return int(found.split()[1]) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description="The memory of naming at scale.")
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--case", choices=list(CASES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(arguments.case)))
        return
    print("| function | images x units x concepts measured | peak beyond the inputs | seconds | for 20,000 concepts |")
    print("|---|---|---|---|---|")
    for case in arguments.cases:
        n_images, n_units, n_concepts, _ = CASES[case]
        done = subprocess.run([sys.executable, __file__, "--case", case], capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        size = f"{n_images:,} x {n_units:,} x {n_concepts:,}"
        whole = found["seconds"] * WHOLE / n_concepts
        print(f"| {case} | {size} | {found['gigabytes']:.2f} GB | {found['seconds']:.0f} | {whole:.0f} |", flush=True)


if __name__ == "__main__":
    main()
