"""Tiny models of open_clip and transformers with random weights, on disk in the format of real ones."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers import save_clip, tiny_clip
from torch import nn

from neuroprobe.concepts import import_clip

#: open_clip's description of `helpers.tiny_clip("vit")`.
OPEN_CLIP_CONFIG = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}
OPEN_CLIP_SIGLIP_CONFIG = {
    "embed_dim": 32,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {
        "context_length": 40,
        "vocab_size": 300,
        "hf_tokenizer_name": "not looked at in a folder",
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "width": 32,
        "heads": 2,
        "layers": 1,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
    },
}


# --- open_clip


def open_clip_folder(folder: Path, *, seed: int = 0) -> Path:
    """The tiny CLIP as a folder of open_clip's."""
    safetensors = pytest.importorskip("safetensors.torch")
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic", "resize_mode": "shortest"}
    _write_config(folder, OPEN_CLIP_CONFIG, preprocess)
    state = {name: value.contiguous().clone() for name, value in tiny_clip(seed=seed).state_dict().items()}
    safetensors.save_file(state, folder / "open_clip_model.safetensors")
    return folder


def open_clip_siglip_folder(folder: Path, *, seed: int = 0) -> Path:
    """A tiny SigLIP as a folder of open_clip's, with a tokenizer of transformers."""
    open_clip = pytest.importorskip("open_clip")
    _write_config(folder, OPEN_CLIP_SIGLIP_CONFIG, {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"})
    write_sentence_tokenizer(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.create_model(f"local-dir:{folder}")
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder


def _write_config(folder: Path, model: object, preprocess: object) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": preprocess}))


# --- transformers


def transformers_clip_folder(folder: Path, *, seed: int = 0, safe: bool = True) -> Path:
    """The tiny CLIP in transformers' format, with clip's own tokens."""
    transformers = pytest.importorskip("transformers")
    towers = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 1}
    config = transformers.CLIPConfig(
        text_config={**towers, "vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 49406, "eos_token_id": 49407},
        vision_config={**towers, "image_size": 64, "patch_size": 16},
        projection_dim=32,
    )
    model = transformers.CLIPModel(config)
    model.load_state_dict(_as_transformers(tiny_clip(seed=seed)), strict=False)
    _save_model(model, folder, safe=safe)
    write_clip_tokenizer(folder)
    transformers.CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def transformers_siglip_folder(folder: Path, *, seed: int = 0, bias: float = -3.5) -> Path:
    """A tiny SigLIP of random weights in transformers' format."""
    transformers = pytest.importorskip("transformers")
    towers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.SiglipConfig(
        text_config={**towers, "vocab_size": 300, "max_position_embeddings": 40, "pad_token_id": 1, "eos_token_id": 1},
        vision_config={**towers, "image_size": 32, "patch_size": 16},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.SiglipModel(config)
    model.logit_scale.data.fill_(2.0)
    model.logit_bias.data.fill_(bias)
    _save_model(model, folder)
    write_sentence_tokenizer(folder)
    transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def _save_model(model: nn.Module, folder: Path, *, safe: bool = True) -> None:
    if safe:
        model.save_pretrained(folder)  # type: ignore[operator]
        return
    model.config.save_pretrained(folder)  # type: ignore[union-attr, operator]
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def _as_transformers(clip: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of clip's class under transformers' names."""
    state = clip.state_dict()
    made = {
        "logit_scale": state["logit_scale"],
        "text_projection.weight": state["text_projection"].T,
        "visual_projection.weight": state["visual.proj"].T,
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": state["visual.positional_embedding"],
    }
    norms = {"text_model.final_layer_norm": "ln_final", "vision_model.pre_layrnorm": "visual.ln_pre"}
    norms["vision_model.post_layernorm"] = "visual.ln_post"
    for tower, prefix in (("text_model", "transformer"), ("vision_model", "visual.transformer")):
        for layer in range(2):
            old, new = f"{prefix}.resblocks.{layer}", f"{tower}.encoder.layers.{layer}"
            for part in ("weight", "bias"):
                pieces = state[f"{old}.attn.in_proj_{part}"].chunk(3)
                made |= {f"{new}.self_attn.{name}_proj.{part}": piece for name, piece in zip("qkv", pieces, strict=True)}
            norms |= {f"{new}.layer_norm1": f"{old}.ln_1", f"{new}.layer_norm2": f"{old}.ln_2"}
            norms |= {f"{new}.mlp.fc1": f"{old}.mlp.c_fc", f"{new}.mlp.fc2": f"{old}.mlp.c_proj"}
            norms |= {f"{new}.self_attn.out_proj": f"{old}.attn.out_proj"}
    return made | {f"{new}.{part}": state[f"{old}.{part}"] for new, old in norms.items() for part in ("weight", "bias")}


# --- tokenizers


def write_clip_tokenizer(folder: Path) -> None:
    """clip's own tokens as transformers keeps them: vocab.json and merges.txt."""
    own = import_clip().clip._tokenizer
    (folder / "vocab.json").write_text(json.dumps(own.encoder))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in own.bpe_ranks))
    names = {"tokenizer_class": "CLIPTokenizer", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "model_max_length": 77}
    names |= {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))


def write_sentence_tokenizer(folder: Path) -> None:
    """A small tokenizer.json in SigLIP's manner: lower case, an end, and padding with the end."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        ["red blue striped this image has a concept"] * 5,
        trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "</s>"], initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**names, "model_max_length": 40}))


#: What makes a folder, or file, of each kind of tiny encoder, of a seed.
WRITERS = {
    "clip vit": lambda path, seed: _clip_file(path, "vit", seed),
    "clip resnet": lambda path, seed: _clip_file(path, "resnet", seed),
    "open_clip": lambda path, seed: open_clip_folder(path, seed=seed),
    "open_clip siglip": lambda path, seed: open_clip_siglip_folder(path, seed=seed),
    "transformers clip": lambda path, seed: transformers_clip_folder(path, seed=seed),
    "transformers siglip": lambda path, seed: transformers_siglip_folder(path, seed=seed),
}


def is_installed(kind: str) -> bool:
    """Whether the package of this kind is there."""
    return find_spec(kind.split()[0]) is not None


def _clip_file(path: Path, kind: str, seed: int) -> Path:
    save_clip(path.with_suffix(".pt"), kind, seed=seed)
    return path.with_suffix(".pt")
