"""A similarity function of one's own, twice: as a plain function of two whole matrices, and as a scorer that works in blocks."""

import torch

from neuroprobe import ActivationRecorder, ClipEncoder, ConceptSource, dissect
from neuroprobe.images import collect
from neuroprobe.labeling import Scorer
from neuroprobe.world import ATTRIBUTES, CLIP_PATH, load_target, target_transform, world_images, world_vocabulary


def top_images_mean(activations: torch.Tensor, concept_scores: torch.Tensor, *, k: int = 20) -> torch.Tensor:
    """Mean score of the k images with the highest activations, in standard deviations: [n_units, n_concepts]."""
    standard = (concept_scores - concept_scores.mean(dim=0)) / concept_scores.std(dim=0)
    return standard[activations.topk(k, dim=0).indices].mean(dim=0)  # [k, n_units, n_concepts] -> [n_units, n_concepts]


class TopImagesMean(Scorer):
    """The same from the embeddings, some concepts at a time; with it labels have p-values and stability."""

    def __init__(self, scores, *, k: int = 20):
        super().__init__(scores)
        self.k = k

    def units(self, activations):
        return (activations.topk(self.k, dim=0).indices.T,)  # what is kept of units; the units come first: [n_units, k]

    def block(self, units, columns):
        matrix = self.matrix(columns)  # [n_images, n_columns]
        return ((matrix - matrix.mean(dim=0)) / matrix.std(dim=0))[units[0]].mean(dim=1)


source = ConceptSource(ClipEncoder(CLIP_PATH, device="cpu"), world_vocabulary())
recorder = ActivationRecorder(load_target(), ["classifier"])
activations, scores = collect(world_images(400, seed=3), [recorder.consumer(target_transform()), source.consumer()])
for function in (top_images_mean, TopImagesMean):
    table = dissect(activations, scores, similarity=function, parameters={"k": 30}).table
    right = (table["candidate"] == list(ATTRIBUTES)).sum()
    print(f"{function.__name__}: {right} of {len(table)} outputs get their own name; p-values: {table['p_value'].notna().all()}")
