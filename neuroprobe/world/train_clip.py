"""Train the world's CLIP: ``python -m neuroprobe.world.train_clip``, about half an hour on one core.

The architecture and the file format are clip-anytorch's. The loss is a sigmoid loss over the batch's whole truth
matrix (which caption is true of which image; cf. SigLIP, Zhai et al. 2023), because captions here are true of many
images. Tokens that no caption uses share one trained embedding.
"""

from __future__ import annotations

import argparse
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from neuroprobe.concepts import ClipEncoder, import_clip
from neuroprobe.world._captions import (
    TEMPLATES,
    UNKNOWN_WORD,
    Caption,
    SceneTable,
    sample_caption,
    truth_matrix,
    wrap_in_unknown_words,
)
from neuroprobe.world._scenes import ATTRIBUTES
from neuroprobe.world._training import clip_figures, draw_many, write_record

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's own
CONTEXT_LENGTH, VOCABULARY_SIZE = 77, 49408


class CompactTokenizer:
    """CLIP's own tokens, renumbered: 0 for every token no caption uses, the end-of-text token last."""

    def __init__(self, texts: list[str]) -> None:
        import_clip()
        from clip.simple_tokenizer import SimpleTokenizer

        self._bpe = SimpleTokenizer()
        used = {token for text in texts for token in self._bpe.encode(text)} | set(self._special())
        self.kept = sorted(used)
        self._index = {token: i + 1 for i, token in enumerate(self.kept)}
        self._cache: dict[str, list[int]] = {}

    def _special(self) -> tuple[int, int]:
        return self._bpe.encoder["<|startoftext|>"], self._bpe.encoder["<|endoftext|>"]

    def __call__(self, texts: list[str]) -> torch.Tensor:
        rows = [self._encode(text) for text in texts]
        out = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for i, row in enumerate(rows):
            out[i, : len(row)] = torch.tensor(row)
        return out

    def _encode(self, text: str) -> list[int]:
        if text not in self._cache:
            start, end = self._special()
            tokens = [t for word in text.split() for t in ([-1] if word == UNKNOWN_WORD else self._bpe.encode(word))]
            self._cache[text] = [self._index.get(t, 0) for t in (start, *tokens, end)]
        return self._cache[text]


def train(*, steps: int, n_images: int, seed: int, processes: int, batch_size: int = 128, lr: float = 2e-3) -> dict[str, torch.Tensor]:
    """Train and return the state dict in clip's format."""
    torch.manual_seed(seed)
    import_clip()
    from clip.model import CLIP

    scenes, pixels = draw_many(n_images, seed=seed, combinations="seen", processes=processes)
    table = SceneTable.of(scenes)
    tokenizer = CompactTokenizer(_all_words())
    model = CLIP(64, 64, (1, 1, 1, 1), 8, None, CONTEXT_LENGTH, len(tokenizer.kept) + 1, 64, 1, 2)
    model.visual.to(memory_format=torch.channels_last)
    bias = torch.nn.Parameter(torch.tensor(-2.0))
    optimizer = torch.optim.AdamW([*model.parameters(), bias], lr=lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.05)
    generator = np.random.default_rng(seed)
    order = np.concatenate([generator.permutation(n_images) for _ in range(-(-steps * batch_size // n_images))])
    started = time.time()
    for step in range(steps):
        rows = order[step * batch_size : (step + 1) * batch_size]
        captions = [sample_caption(table.objects[i], int(table.backgrounds[i]), generator) for i in rows]
        truth = torch.from_numpy(truth_matrix(table[rows], captions))
        logits = _logits(model, pixels[rows], tokenizer(_texts(captions, generator)), generator) + bias
        loss = F.binary_cross_entropy_with_logits(logits, truth)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        model.logit_scale.data.clamp_(max=float(np.log(100)))
        if step % 250 == 0:
            scale = model.logit_scale.exp().item()
            print(f"step {step} of {steps}, loss {loss.item():.4f}, scale {scale:.1f}, {time.time() - started:.0f} s", flush=True)
    return _clip_state_dict(model, tokenizer)


def _logits(model: Any, pixels: torch.Tensor, tokens: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    images = (pixels.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    if generator.random() < 0.5:
        images = images.flip(3)  # every attribute is symmetric
    image_vectors = F.normalize(model.encode_image(images.contiguous(memory_format=torch.channels_last)), dim=1)
    text_vectors = F.normalize(model.encode_text(tokens), dim=1)
    return torch.as_tensor(model.logit_scale.exp() * image_vectors @ text_vectors.T)


def _texts(captions: list[Caption], generator: np.random.Generator) -> list[str]:
    return [wrap_in_unknown_words(c.text, generator) if generator.random() < 0.15 else c.text for c in captions]


def _all_words() -> list[str]:
    return [*ATTRIBUTES, *(t.format("") for t in TEMPLATES), "a object and nothing on background none"]


def _clip_state_dict(model: Any, tokenizer: CompactTokenizer) -> dict[str, torch.Tensor]:
    state = {key: value.detach().clone() for key, value in model.state_dict().items()}
    compact = state["token_embedding.weight"]
    full = compact[0].repeat(VOCABULARY_SIZE, 1)
    full[tokenizer.kept] = compact[1:]
    state["token_embedding.weight"] = full
    return {k: v.half() if v.is_floating_point() and "running_" not in k else v for k, v in state.items()}


def save_deflated(state: dict[str, torch.Tensor], path: Path) -> None:
    """`torch.save`, then the same archive with its members compressed; `torch.load` reads both."""
    plain = path.with_suffix(".tmp")
    torch.save(state, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    plain.unlink()


def main() -> None:
    """Train, save, and record what made the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "clip.pt")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--images", type=int, default=80_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    started = time.time()
    state = train(steps=args.steps, n_images=args.images, seed=args.seed, processes=args.processes)
    seconds = round(time.time() - started)
    save_deflated(state, args.out)
    facts = {"steps": args.steps, "n_images": args.images, "seed": args.seed, "seconds": seconds}
    write_record(args.out.with_suffix(".json"), files=[args.out], **facts, figures=clip_figures(ClipEncoder(args.out, device="cpu")))


if __name__ == "__main__":
    main()
