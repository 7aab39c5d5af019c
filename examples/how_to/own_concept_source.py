"""A concept source of one's own: what can be measured in the pixels, as concepts, in the same pass as the recording."""

import pandas as pd
import torch
from torchvision import transforms

from neuroprobe import ActivationRecorder, GivenLabels, dissect
from neuroprobe.images import collect
from neuroprobe.world import ATTRIBUTES, load_target, target_transform, world_images


class Measurements:
    """A consumer: it says how images are to be transformed, gets them in batches, and makes the scores of all at the end."""

    def __init__(self):
        self.transform = transforms.ToTensor()
        self.values: dict[str, list[float]] = {}  # by the image's id

    def consume(self, batch, record):
        gray = batch.mean(dim=1)  # [n, 3, h, w] -> [n, h, w]
        steps = torch.stack([gray.diff(dim=axis).abs().flatten(1).mean(dim=1) for axis in (1, 2)], dim=1).mean(dim=1)
        color = (batch.amax(dim=1) - batch.amin(dim=1)).flatten(1).mean(dim=1)
        light = gray.flatten(1).mean(dim=1)
        rows = torch.stack([light, -light, color, steps], dim=1)  # [n, n_concepts]
        self.values |= dict(zip(record.ids, rows.tolist(), strict=True))

    def finish(self, collected):
        table = pd.DataFrame.from_dict(self.values, orient="index", columns=["bright", "dark", "colorful", "busy"])
        return GivenLabels(table).consumer().finish(collected)  # a ConceptScores of these images


recorder = ActivationRecorder(load_target(), ["classifier"])
activations, scores = collect(world_images(400, seed=3), [recorder.consumer(target_transform()), Measurements()])
report = dissect(activations, scores, similarity="pearson")
for name in ("white", "black", "red", "striped", "speckled"):
    unit = ATTRIBUTES.index(name)
    row = report.table.set_index("unit").loc[unit]
    print(f"the output that was trained on {name!r} goes with {row['concept']!r} (r = {row['score']:.2f}, q = {row['q_value']:.3f})")
