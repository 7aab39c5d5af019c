"""A pooling of one's own: the mean of a map's highest positions, so that a small object counts as much as a large one."""

from functools import partial

import torch

from neuroprobe import ActivationRecorder, ClipEncoder, ConceptSource, check_on_images, dissect
from neuroprobe.images import collect
from neuroprobe.world import ATTRIBUTES, CLIP_PATH, WorldDataset, load_target, target_transform, world_images, world_vocabulary

LAYER = "features.14"  # 4 x 4 positions


def highest_positions(output: torch.Tensor, *, k: int) -> torch.Tensor:
    """A module's output as it is, [n, units, h, w], to one row of units per image, [n, units]."""
    return output.flatten(2).topk(k, dim=2).values.mean(dim=2)


model, transform = load_target(), target_transform()
source = ConceptSource(ClipEncoder(CLIP_PATH, device="cpu"), world_vocabulary())
images, others = world_images(300, seed=3), world_images(300, seed=4)
shown = dict(zip(ATTRIBUTES, WorldDataset(300, seed=4).truth().T, strict=True))  # what the other images show
for pooling in ("mean", "max", partial(highest_positions, k=3)):  # bound parameters stand in the results' metadata
    recorder = ActivationRecorder(model, [LAYER], pooling=pooling)
    activations, scores = collect(images, [recorder.consumer(transform), source.consumer()])
    report = dissect(activations, scores, n_bootstrap=0)
    checked = check_on_images(report, recorder.record(others, transform=transform), shown)
    print(f"{activations.metadata['pooling']}: {report.summary()}; AUC on other images {checked.value('mean_auc'):.3f}")
