"""A probe of one's own in a study: nearest neighbors, and a classifier written here, beside the library's linear probe."""

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.neighbors import KNeighborsClassifier

from neuroprobe import ClipEncoder, ConceptSource, ProbingStudy, Vocabulary
from neuroprobe.world import CLIP_PATH, load_target, target_transform, world_images


class Ball(ClassifierMixin, BaseEstimator):
    """The concept is where the positives are: within a distance of their mean."""

    kind = "ball"  # what the report calls it

    def __init__(self, quantile=0.8):
        self.quantile = quantile

    def fit(self, X, y):
        self.center_ = X[y == 1].mean(axis=0)
        self.radius_ = np.quantile(self._distances(X[y == 1]), self.quantile)
        return self

    def _distances(self, X):
        return np.linalg.norm(X - self.center_, axis=1)

    def decision_function(self, X):
        return self.radius_ - self._distances(X)


images = world_images(500, seed=3)
source = ConceptSource(ClipEncoder(CLIP_PATH, device="cpu"), Vocabulary.probing_blog())
sets = source.rank(images, n_positive=50, n_negative=100)
probes = [("linear", "pooled"), (KNeighborsClassifier(5, metric="cosine"), "pooled"), (Ball(), "pooled")]
study = ProbingStudy(load_target(), ["features.6", "features.14", "features.18"], sets, probes=probes, seeds=range(3))
report = study.run(images, transform=target_transform())
means = report.summary_table().pivot_table(index="layer", columns="kind", values="test_accuracy", sort=False)
print(means.round(3).to_string())
