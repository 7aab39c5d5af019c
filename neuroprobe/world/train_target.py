"""Train the world's target: ``python -m neuroprobe.world.train_target``, about 20 minutes on one core.

A narrow torchvision MobileNetV2 with one output per attribute, trained with binary cross-entropy, and saved on
the way from untrained to trained.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from neuroprobe.world._scenes import ATTRIBUTES, Scene
from neuroprobe.world._target import CHECKPOINTS, MEAN, STD, build_target
from neuroprobe.world._training import draw_many, target_figures, write_record


def attribute_table(scenes: list[Scene]) -> torch.Tensor:
    """Which attribute is true of which scene, float32 [n_scenes, n_attributes]."""
    return torch.tensor([[name in scene.attributes for name in ATTRIBUTES] for scene in scenes], dtype=torch.float32)


def normalize(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 [n, 3, h, w] to the target's input."""
    scaled = (pixels.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    return scaled.contiguous(memory_format=torch.channels_last)


def train(folder: Path, *, n_images: int, seed: int, processes: int, batch_size: int = 128, lr: float = 3e-3) -> None:
    """Train, and write every one of `CHECKPOINTS` into `folder` as it is reached."""
    scenes, pixels = draw_many(n_images, seed=seed, combinations="all", processes=processes)
    truth = attribute_table(scenes)
    torch.manual_seed(seed)
    model = build_target().to(memory_format=torch.channels_last).train()
    steps = max(CHECKPOINTS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    generator = np.random.default_rng(seed)
    order = np.concatenate([generator.permutation(n_images) for _ in range(-(-steps * batch_size // n_images))])
    started = time.time()
    for step in range(steps):
        if step in CHECKPOINTS:
            save(model, folder / f"step_{step:05d}.pt")
        rows = order[step * batch_size : (step + 1) * batch_size]
        images = normalize(pixels[rows])
        if generator.random() < 0.5:
            images = images.flip(3)  # every attribute is symmetric
        loss = F.binary_cross_entropy_with_logits(model(images), truth[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step % 250 == 0:
            print(f"step {step} of {steps}, loss {loss.item():.4f}, {time.time() - started:.0f} s", flush=True)
    save(model, folder / f"step_{steps:05d}.pt")


def save(model: torch.nn.Module, path: Path) -> None:
    """Weights as float16; the running statistics of the batch norms keep their range as float32."""
    state = {k: v.half() if v.is_floating_point() and "running_" not in k else v.clone() for k, v in model.state_dict().items()}
    torch.save({k: v.contiguous() for k, v in state.items()}, path)


def main() -> None:
    """Train, save, and record what made the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "target_checkpoints")
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    started = time.time()
    train(args.out, n_images=args.images, seed=args.seed, processes=args.processes)
    files = [args.out / f"step_{step:05d}.pt" for step in CHECKPOINTS]
    facts = {"n_images": args.images, "seed": args.seed, "seconds": round(time.time() - started)}
    write_record(args.out / "record.json", files=files, **facts, figures=target_figures(files))


if __name__ == "__main__":
    main()
