"""A probe of one's own: any scikit-learn classifier, on the same splits as a study, in the same report."""

import pandas as pd
from sklearn.neighbors import KNeighborsClassifier

from neuroprobe import ActivationRecorder, ClipEncoder, ConceptSource, LinearProbe, ProbeReport, Vocabulary
from neuroprobe.concept_sets import split_set
from neuroprobe.world import CLIP_PATH, load_target, target_transform, world_images

LAYERS = ["features.6", "features.14", "features.18"]
images = world_images(500, seed=3)
source = ConceptSource(ClipEncoder(CLIP_PATH, device="cpu"), Vocabulary.probing_blog())
sets = source.rank(images, n_positive=50, n_negative=100)
activations = ActivationRecorder(load_target(), LAYERS).record(images, transform=target_transform())
row = {id_: i for i, id_ in enumerate(activations.ids)}


def cell(concept: str, layer: str, seed: int, kind: str, probe) -> dict:
    """Fit on the training part, score on the held-out part: one row of the report."""
    X, y = activations[layer][[row[id_] for id_ in sets[concept].ids]], sets[concept].targets
    train, test = split_set(sets[concept], held_out=0.3, seed=seed)
    probe.fit(X[train], y[train])
    scores = {"train_accuracy": probe.score(X[train], y[train]), "test_accuracy": probe.score(X[test], y[test])}
    scores["baseline"] = max(y[test].mean(), 1 - y[test].mean())
    names = {"concept": concept, "checkpoint": "model", "layer": layer, "probe": f"prob-layer-{kind}", "scope": "layer", "kind": kind}
    return {**names, "features": "pooled", "seed": seed, "n_train": len(train), "n_test": len(test), **scores}


probes = {"linear": LinearProbe, "neighbours": lambda: KNeighborsClassifier(5, metric="cosine")}
cells = [(concept, layer, seed, kind) for concept in sets for layer in LAYERS for seed in range(3) for kind in probes]
report = ProbeReport(pd.DataFrame([cell(*names, probes[names[3]]()) for names in cells]), {"sets": dict(sets.metadata)})
means = report.summary_table().pivot_table(index="layer", columns="kind", values="test_accuracy", sort=False)
print(means.round(3).to_string())
