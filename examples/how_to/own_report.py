"""A report of one's own: a table and how it came about, saved as CSV, Markdown, figure, page and metadata, and read back."""

import tempfile

import pandas as pd

from neuroprobe import ActivationRecorder, Report
from neuroprobe.world import LAYERS, load_target, target_transform, world_images


class SparsityReport(Report):
    """On which share of the images a unit is active; a row per unit."""

    name = "sparsity"  # of the files that `save` writes
    title = "How often units are active"
    required = ("layer", "unit", "active")  # a table without them is refused
    text_columns = ("layer",)  # stay text when a file is read: a layer may be called "1"

    def summary(self) -> str:
        return f"{len(self.table)} units, active on {self.table['active'].mean():.0%} of the images"

    def plot(self, ax=None):
        if ax is None:
            from matplotlib.figure import Figure

            ax = Figure(figsize=(9, 3)).subplots()
        self.table.groupby("layer", sort=False)["active"].mean().plot.bar(ax=ax, ylabel="share of images")
        return ax


layers = list(LAYERS[:-1])
activations = ActivationRecorder(load_target(), layers).record(world_images(200, seed=3), transform=target_transform())
shares = {layer: (activations[layer] > 0).mean(axis=0) for layer in layers}
rows = [(layer, unit, share) for layer in layers for unit, share in enumerate(shares[layer])]
report = SparsityReport(pd.DataFrame(rows, columns=list(SparsityReport.required)), dict(activations.metadata))
with tempfile.TemporaryDirectory() as folder:
    print([path.name for path in report.save(folder)])
    print(SparsityReport.load(folder).summary())
