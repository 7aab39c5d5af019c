"""A basis of one's own: the principal axes of a layer, recorded, named and taken away as if they were its channels."""

import hashlib

import torch

from neuroprobe import ActivationRecorder, ClipEncoder, ConceptSource, Site, ablate, dissect
from neuroprobe.images import collect
from neuroprobe.world import CLIP_PATH, load_target, target_transform, world_images, world_vocabulary


class PrincipalAxes:
    """Units are coordinates along the k strongest axes; what those leave out stays as it is when units are set."""

    def __init__(self, rows: torch.Tensor, k: int) -> None:
        self.mean = rows.mean(0)
        self.axes = torch.linalg.svd(rows - self.mean, full_matrices=False).Vh[:k]  # [k, d]
        self.fingerprint = hashlib.blake2b(self.axes.numpy().tobytes()).hexdigest()[:32]

    def encode(self, values: torch.Tensor) -> torch.Tensor:
        return (values - self.mean) @ self.axes.T  # [..., d] -> [..., k]

    def decode(self, units: torch.Tensor) -> torch.Tensor:
        return units @ self.axes + self.mean  # [..., k] -> [..., d]


model, transform, images = load_target(), target_transform(), world_images(300, seed=3)
channels = ActivationRecorder(model, ["features.14"]).record(images, transform=transform)
basis = PrincipalAxes(torch.from_numpy(channels["features.14"]), k=10)
site = Site("features.14", basis=basis, name="axes of features.14")
recorder, source = ActivationRecorder(model, [site]), ConceptSource(ClipEncoder(CLIP_PATH, device="cpu"), world_vocabulary())
activations, scores = collect(images, [recorder.consumer(transform), source.consumer()])
print(dissect(activations, scores, n_bootstrap=0).summary())
batch = torch.stack([transform(images[i]) for i in range(8)])
with recorder.recording() as tape, torch.no_grad():
    model(batch)
with ablate(model, site, 0, "zero"), recorder.recording() as without, torch.no_grad():
    model(batch)
print("the first axis:", "gone" if without[site][:, 0].abs().max() < 1e-4 else "there")
print("the others:", "as they were" if torch.allclose(without[site][:, 1:], tape[site][:, 1:], atol=1e-4) else "changed")
