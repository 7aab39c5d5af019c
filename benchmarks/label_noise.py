"""What wrong labels do to probes: ``python benchmarks/label_noise.py``, about two minutes on one core.

On the offline world the truth is known. Sets of 100 images that show a concept and 200 that do not get a share of each side
put on the other, in the training and the held-out part alike, as when an encoder made the sets. Each probe is trained on
the noisy labels and scored twice on the held-out images: against the noisy labels, which is all that one sees on real data,
and against the true ones. Means over nine concepts and five seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch

from neuroprobe import ActivationRecorder, Images, Vocabulary
from neuroprobe.concepts import ConceptSets, with_label_noise
from neuroprobe.probing import LinearProbe, NonlinearProbe
from neuroprobe.world import ATTRIBUTES, WorldDataset, load_target, target_transform

LAYERS = ["features.6", "features.18"]
PROBES: dict[str, Callable[[int], Any]] = {
    "linear, C = 1": lambda seed: LinearProbe(),
    "linear, C chosen": lambda seed: LinearProbe(C=[1e-4, 1e-3, 1e-2, 1e-1, 1.0], random_state=seed),
    "nonlinear": lambda seed: NonlinearProbe(random_state=seed),
}
RATES = [0, 0.05, 0.1, 0.2, 0.3]
SEEDS = range(5)


def main() -> None:
    """Record once, and print the table."""
    torch.set_num_threads(1)
    dataset = WorldDataset(2000, seed=3)
    images = Images(dataset)
    concepts = [name for group in Vocabulary.probing_blog().groups for name in group.concepts]
    truth = pd.DataFrame(dataset.truth(), index=dataset.ids, columns=ATTRIBUTES)[concepts]
    clean = ConceptSets.from_labels(truth, n_positive=100, n_negative=200)
    recorded = ActivationRecorder(load_target(), LAYERS).record(images, transform=target_transform(), progress=False)
    units = {layer: pd.DataFrame(np.asarray(recorded[layer]), index=list(recorded.ids)) for layer in LAYERS}
    table = pd.DataFrame(cells(clean, truth, units))
    keys = ["layer", "probe", "noise"]
    print(table.drop(columns=["concept", "seed"]).groupby(keys, sort=False).mean().round(3).to_string())


def cells(clean: ConceptSets, truth: pd.DataFrame, units: dict[str, pd.DataFrame]) -> Iterator[dict[str, object]]:
    """A row per rate, seed, concept, layer and probe."""
    for layer in LAYERS:
        for kind, make in PROBES.items():
            for rate in RATES:
                for seed in SEEDS:
                    for concept, noisy in with_label_noise(clean, rate, seed=seed).items():
                        X, true = units[layer].loc[list(noisy.ids)].to_numpy(), truth.loc[list(noisy.ids), concept].to_numpy().astype(int)
                        train, test = noisy.split(held_out=0.3, seed=seed)
                        probe = make(seed)
                        found = probe.fit(X[train], noisy.targets[train]).predict(X[test])
                        yield {
                            "layer": layer,
                            "probe": kind,
                            "noise": rate,
                            "concept": concept,
                            "seed": seed,
                            "training part, noisy labels": np.mean(probe.predict(X[train]) == noisy.targets[train]),
                            "held out, noisy labels": np.mean(found == noisy.targets[test]),
                            "held out, true labels": np.mean(found == true[test]),
                        }


if __name__ == "__main__":
    main()
