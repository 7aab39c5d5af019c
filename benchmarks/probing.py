"""The probing blog's whole grid against a scikit-learn loop: 9 concepts x 19 layers x 3 probes x 5 seeds.

Speed: torchvision's MobileNetV2 (random weights) on rendered images at 224 px, so that a spatial map has up to 401,408 features. What is
timed begins when the activations are recorded. The loop (LogisticRegression, MLPClassifier with the same hidden size and scaling) is timed
on one cell of every distinct number of features, and extrapolated to the grid. Accuracy: the world's trained target, whose maps are small
enough for the loop to fit a cell of every layer and concept.
"""

from __future__ import annotations

import argparse
import resource
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits
from torch import nn
from torchvision import models, transforms

from neuroprobe.concepts import ConceptSet
from neuroprobe.images import collect
from neuroprobe.probing import BLOG_PROBES, Options, Sample, Split, Task, fit_layer, make_tasks, split
from neuroprobe.recording import ActivationRecorder, ForwardPass
from neuroprobe.world import ATTRIBUTES, WorldDataset, load_target, target_transform, world_images

CONCEPTS = ("red", "yellow", "blue", "green", "zigzagged", "striped", "dotted", "male", "female")
LAYERS = [f"features.{i}" for i in range(19)]
SEEDS = range(5)
TASKS = make_tasks(BLOG_PROBES, ("layer",))
UNITS = make_tasks([("linear", "pooled")], ("neuron",))
N_IMAGES = 1000

#: Seconds of the clock, or of the processor (of all threads) where others use the machine too.
CLOCK = time.perf_counter

Arrays = dict[str, npt.NDArray[np.float32]]


def concept_sets() -> dict[str, ConceptSet]:
    truth, ids = WorldDataset(N_IMAGES, seed=0).truth(), np.array(world_images(N_IMAGES, seed=0).ids)
    found = {}
    for number, concept in enumerate(CONCEPTS):
        generator, shows = np.random.default_rng(number), truth[:, ATTRIBUTES.index(concept)]
        sides = (ids[generator.permutation(np.flatnonzero(rows))[:n]] for rows, n in ((shows, 100), (~shows, 200)))
        found[concept] = ConceptSet(concept, "world", *(tuple(map(str, side)) for side in sides))
    return found


def record(model: nn.Module, ids: Sequence[str], transform: transforms.Compose) -> dict[str, Arrays]:
    recorders = {
        "pooled": ActivationRecorder(model, LAYERS),
        "spatial": ActivationRecorder(model, LAYERS, pooling="none"),
    }
    (found,) = collect(world_images(N_IMAGES, seed=0).subset(ids), [ForwardPass(recorders, transform)], batch_size=25, progress=False)
    return {features: dict(activations.arrays) for features, activations in found.items()}


def splits(concept_set: ConceptSet, seeds: Sequence[int] = SEEDS) -> dict[int, Split]:
    return {seed: split(concept_set, held_out=0.3, seed=seed) for seed in seeds}


def fit_all(
    jobs: Sequence[tuple[list[Sample], Sequence[Task]]], *, threads: int, device: str = "cpu"
) -> tuple[float, list[dict[str, object]]]:
    """Seconds, and the rows of every cell."""
    torch.set_num_threads(1)

    def fit(job: tuple[list[Sample], Sequence[Task]]) -> list[dict[str, object]]:
        samples, tasks = job
        wanted = [(task, [s.concept_set.concept for s in samples]) for task in tasks]
        results = fit_layer(samples, wanted, options=Options(), device=torch.device(device))
        return [{"concept": c, "probe": t.name, "features": t.features, **row} for (c, t), cell in results.items() for row in cell.rows]

    started = CLOCK()
    with threadpool_limits(1), ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        rows = [row for part in pool.map(fit, jobs) for row in part]
    return CLOCK() - started, rows


def loop_cell(
    kind: str, X: npt.NDArray[np.float32], targets: npt.NDArray[np.int64], part: Split, *, pooled: bool, seed: int
) -> tuple[float, float]:
    """Seconds and held-out accuracy of one cell of the scikit-learn loop."""
    started = CLOCK()
    train = X[part.train]
    mean = train.mean(axis=0)
    scale = train.std(axis=0) if pooled else np.sqrt(np.square(train - mean).mean(dtype=np.float64)).astype(np.float32)
    scale = np.where(scale > 1e-12, scale, 1)
    model = LogisticRegression(max_iter=1000) if kind == "linear" else MLPClassifier((32,), random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLPClassifier stops after 200 epochs, as everybody's does
        model.fit((train - mean) / scale, targets[part.train])
    accuracy = model.score((X[part.test] - mean) / scale, targets[part.test])
    return CLOCK() - started, float(accuracy)


def speed(threads: int, *, quick: bool) -> None:
    torch.manual_seed(0)
    model = models.mobilenet_v2(weights=None).eval()
    transform = transforms.Compose([transforms.Resize(224), target_transform().transforms[2], target_transform().transforms[3]])
    sets = concept_sets()
    concepts = list(sets)[: 1 if quick else None]
    ours = {"spatial": 0.0}
    pooled: dict[str, list[Sample]] = {layer: [] for layer in LAYERS}
    loop: dict[tuple[str, str, int], float] = {}
    for number, concept in enumerate(concepts):
        recorded, set_ = record(model, sets[concept].ids, transform), sets[concept]
        rows = np.arange(len(set_.ids))
        samples = {layer: Sample(set_, splits(set_), recorded["spatial"][layer], rows) for layer in LAYERS}
        seconds, _ = fit_all([([samples[layer]], TASKS[2:]) for layer in LAYERS], threads=threads)
        ours["spatial"] += seconds
        for layer in LAYERS:
            pooled[layer].append(Sample(set_, splits(set_), recorded["pooled"][layer], rows))
        if number == 0:
            loop = loop_seconds(recorded, set_, threads)
    ours["pooled"], _ = fit_all([(pooled[layer], TASKS[:2]) for layer in LAYERS], threads=threads)
    scale = len(CONCEPTS) / len(concepts)
    ours = {name: seconds * scale for name, seconds in ours.items()}
    n = len(CONCEPTS) * len(SEEDS)
    theirs = {
        "spatial": n * sum(loop["nonlinear", "spatial", samples[layer].activations.shape[1]] for layer in LAYERS),
        "pooled": n * sum(loop[kind, "pooled", pooled[at][0].activations.shape[1]] for at in LAYERS for kind in ("linear", "nonlinear")),
    }
    for name in ("pooled", "spatial"):
        print(f"{name}: loop {theirs[name]:.0f} s (extrapolated), neuroprobe {ours[name]:.1f} s, ratio {theirs[name] / ours[name]:.0f}")
    whole, took = sum(theirs.values()), sum(ours.values())
    print(f"whole grid: loop {whole:.0f} s, neuroprobe {took:.1f} s (aim 60), ratio {whole / took:.0f} (aim 100; spatial 300)")
    seconds, _ = fit_all([(pooled[layer], UNITS) for layer in LAYERS], threads=threads)
    n_units = sum(pooled[layer][0].activations.shape[1] for layer in LAYERS)
    print(f"scope neuron, linear, {n_units} units x {len(concepts)} concepts x {len(SEEDS)} seeds: {seconds:.2f} s (aim 5)")
    if torch.cuda.is_available():
        on_cuda([(pooled[layer], TASKS[:2]) for layer in LAYERS], [([samples[layer]], TASKS[2:]) for layer in LAYERS])


def loop_seconds(recorded: dict[str, Arrays], set_: ConceptSet, threads: int) -> dict[tuple[str, str, int], float]:
    """One cell of every kind for every distinct number of features."""
    torch.set_num_threads(threads)
    part, found = splits(set_, [0])[0], {}
    for kind, features in BLOG_PROBES:
        for layer in LAYERS:
            X = recorded[features][layer]
            if (kind, features, X.shape[1]) not in found:
                found[str(kind), str(features), X.shape[1]], _ = loop_cell(kind, X, set_.targets, part, pooled=features == "pooled", seed=0)
                print(f"  loop: {kind}, {features}, {X.shape[1]} features: {found[kind, features, X.shape[1]]:.2f} s", flush=True)
    return found


def on_cuda(*grids: Sequence[tuple[list[Sample], Sequence[Task]]]) -> None:
    for grid in grids:
        (cpu, rows), (_, _), (cuda, same) = (fit_all(grid, threads=t, device=d) for t, d in ((2, "cpu"), (1, "cuda"), (1, "cuda")))
        apart = np.abs(np.mean([r["test_accuracy"] for r in rows]) - np.mean([r["test_accuracy"] for r in same]))
        print(f"cuda: {cuda:.2f} s, cpu {cpu:.2f} s; mean test accuracies {apart:.4f} apart")


def accuracy(threads: int, *, quick: bool) -> None:
    sets, seeds = concept_sets(), [0]
    for name in ("step_00000", "step_05000"):
        recorded = record(load_target(name), world_images(N_IMAGES, seed=0).ids, target_transform())
        places = {id_: i for i, id_ in enumerate(world_images(N_IMAGES, seed=0).ids)}
        layers = LAYERS[:: 6 if quick else 1]
        for kind, features in BLOG_PROBES:
            task = next(t for t in TASKS if t.probe.kind == kind and t.features == features)
            found, theirs, seconds = [], [], 0.0
            for layer in layers:
                samples = [
                    Sample(s, splits(s, seeds), recorded[features][layer], np.array([places[i] for i in s.ids])) for s in sets.values()
                ]
                took, rows = fit_all([(samples, [task])], threads=1)
                found += [row["test_accuracy"] for row in rows]
                seconds += took
                theirs += list(_loop_accuracies(kind, features, samples))
            gap = 100 * (np.mean(found) - np.mean(theirs))
            error = 100 * np.std(np.subtract(found, theirs)) / len(found) ** 0.5
            print(
                f"{name}, {kind}, {features}, {len(found)} cells: mean test accuracy {np.mean(found):.4f}, loop {np.mean(theirs):.4f}, "
                f"difference {gap:+.2f} points (standard error {error:.2f}, aim 0.5 at most)",
                flush=True,
            )


def _loop_accuracies(kind: str, features: str, samples: Sequence[Sample]) -> Iterator[float]:
    for sample in samples:
        for seed, part in sample.splits.items():
            yield loop_cell(kind, sample.X, sample.concept_set.targets, part, pooled=features == "pooled", seed=seed)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="one concept, few layers")
    parser.add_argument("--only", choices=("speed", "accuracy"))
    parser.add_argument("--cpu-time", action="store_true", help="count seconds of the processor, not of the clock")
    arguments = parser.parse_args()
    if arguments.cpu_time:
        global CLOCK
        CLOCK = time.process_time
    if arguments.only != "accuracy":
        speed(arguments.threads, quick=arguments.quick)
    if arguments.only != "speed":
        accuracy(arguments.threads, quick=arguments.quick)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


if __name__ == "__main__":
    main()
