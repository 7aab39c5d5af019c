"""The CLIPs and SigLIPs of transformers as image-text encoders."""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from neuroprobe._core import fingerprint_model, fingerprint_texts
from neuroprobe.concepts.encoders._base import PromptTooLongError, check_texts
from neuroprobe.exceptions import CheckpointError, InputError, MissingDependencyError
from neuroprobe.images import Transform
from neuroprobe.models import resolve_device

_TEXT_BATCH = 256

#: Of a configuration: what says where it comes from, not what it does.
_PROVENANCE = {
    "_commit_hash",
    "_name_or_path",
    "_processor_class",
    "architectures",
    "auto_map",
    "dtype",
    "name_or_path",
    "processor_class",
    "torch_dtype",
    "transformers_version",
}


class TransformersEncoder:
    """A CLIP or SigLIP of Hugging Face's transformers (extra ``transformers``).

    Parameters
    ----------
    model : str, Path or PreTrainedModel
        A folder or a name on the Hugging Face hub, of weights (safetensors first, else read with ``weights_only``) and processor;
        or a model in memory, which is copied. Code that comes with a model is never run.
    processor : transformers processor, optional
        For a model in memory: what prepares its images and texts.
    device : str or torch.device, default "auto"
        As in `ClipEncoder`; computation is in float32.
    revision : str, optional
        Of a model on the hub.

    Attributes
    ----------
    logit_scale : float
        The factor before similarities, already out of its logarithm.
    logit_bias : float or None
        What SigLIP adds to them; None for a CLIP.

    Raises
    ------
    MissingDependencyError
        transformers is not installed.
    InputError
        A model without a processor, or one that is no image-text encoder of one image tensor and one text.
    CheckpointError
        Files that are not there, cannot be read safely, lack weights, or need code of their own.

    Notes
    -----
    CLIP is trained with a softmax over texts. SigLIP is trained with a sigmoid of ``logit_scale * similarity + logit_bias``
    for every pair. The softmax that `ConceptScores.likelihoods` takes within a group still has a meaning there: the ratio of two of
    its probabilities is the ratio of the two pairs' odds p / (1 - p), in which the bias cancels. It is not the probability that
    SigLIP gives a pair, and sums to 1 even where none of the group is shown.

    References
    ----------
    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021. Zhai et al., "Sigmoid Loss for
    Language Image Pre-Training", ICCV 2023.
    """

    def __init__(
        self,
        model: str | Path | nn.Module,
        *,
        processor: Any = None,
        device: str | torch.device = "auto",
        revision: str | None = None,
    ) -> None:
        self.device = resolve_device(device)
        transformers = _import_transformers()
        found, processor = _model_and_processor(transformers, model, processor, revision)
        _check_kind(found, processor)
        self.model: Any = found.float().to(self.device).eval()
        self._tokenizer: Any = processor.tokenizer
        self.transform: Transform = _PixelValues(processor.image_processor)
        _check_pixels(self.transform)
        self.context_length = int(self.model.config.text_config.max_position_embeddings)
        self.logit_scale = float(self.model.logit_scale.detach().exp())
        bias = getattr(self.model, "logit_bias", None)
        self.logit_bias = None if bias is None else float(bias.detach())
        self.fingerprint = fingerprint_texts(
            [
                fingerprint_model(self.model),
                _identify_config(self.model.config.to_dict()),
                _identify_config(processor.image_processor.to_dict()),
                identify_tokenizer(self._tokenizer),
            ]
        )

    @torch.no_grad()
    def encode_images(self, batch: torch.Tensor) -> torch.Tensor:
        """Unit vectors, float32 [n, d], of transformed images [n, 3, h, w]."""
        return _unit(self.model.get_image_features(pixel_values=batch.to(self.device)))

    @torch.no_grad()
    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        """Unit vectors, float32 [n, d], of texts.

        Raises
        ------
        InputError
            No texts.
        PromptTooLongError
            One is longer than the model's context.
        """
        check_texts(texts)
        parts = (texts[start : start + _TEXT_BATCH] for start in range(0, len(texts), _TEXT_BATCH))
        return torch.cat([self._encode_part(part) for part in parts])

    def _encode_part(self, texts: Sequence[str]) -> torch.Tensor:
        self._check_lengths(texts)
        if self.model.config.model_type.startswith("siglip"):  # trained with padding to the whole context, which it reads
            tokens = self._tokenizer(list(texts), padding="max_length", max_length=self.context_length, return_tensors="pt")
            inputs = {"input_ids": tokens["input_ids"]}
        else:
            tokens = self._tokenizer(list(texts), padding=True, return_tensors="pt")
            inputs = {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}
        return _unit(self.model.get_text_features(**{name: value.to(self.device) for name, value in inputs.items()}))

    def _check_lengths(self, texts: Sequence[str]) -> None:
        for text, ids in zip(texts, self._tokenizer(list(texts), truncation=False)["input_ids"], strict=True):
            if len(ids) > self.context_length:
                raise PromptTooLongError(text, self.context_length)


@dataclass(frozen=True)
class _PixelValues:
    """What an image processor makes of one image."""

    image_processor: Any

    def __call__(self, image: Image.Image) -> torch.Tensor:
        made = self.image_processor(images=image.convert("RGB"), return_tensors="pt")
        if set(made) != {"pixel_values"}:
            raise InputError(f"Expected an image processor that makes `pixel_values` alone, but it makes {sorted(made)}.")
        return torch.as_tensor(made["pixel_values"])[0]


def _import_transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise MissingDependencyError(
            "Expected the package transformers for TransformersEncoder. Install it: pip install 'neuroprobe-clip[transformers]'"
        ) from error


def _model_and_processor(transformers: Any, model: Any, processor: Any, revision: str | None) -> tuple[Any, Any]:
    if isinstance(model, nn.Module):
        if processor is None:
            raise InputError("Expected a processor for a model in memory: TransformersEncoder(model, processor=processor).")
        return copy.deepcopy(model), processor  # so that neither its place nor its training changes
    if not isinstance(model, (str, Path)):
        raise InputError(f"Expected a folder, a name on the Hugging Face hub, or a model, but got {model!r:.80}.")
    try:
        with torch.random.fork_rng(devices=[]):  # first weights are drawn, though never used
            found, info = transformers.AutoModel.from_pretrained(
                str(model), revision=revision or "main", trust_remote_code=False, output_loading_info=True
            )
        processor = processor or transformers.AutoProcessor.from_pretrained(
            str(model), revision=revision or "main", trust_remote_code=False
        )
    except Exception as error:  # readers of configurations, weights and tokenizers raise many kinds
        raise CheckpointError(_refusal(str(model), error)) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise CheckpointError(
            f"Expected all weights of a {type(found).__name__}, but {str(model)!r} lacks {len(missing)}, such as {missing[0]!r}."
        )
    return found, processor


def _refusal(name: str, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return f"Expected a model of transformers' own, but {name!r} needs code of its own, which is not run."
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"Expected a folder or a name on the Hugging Face hub with a CLIP or SigLIP, but {name!r} cannot be loaded: {reason}"


def _check_kind(model: Any, processor: Any) -> None:
    lacking = [name for name in ("get_image_features", "get_text_features", "logit_scale") if not hasattr(model, name)]
    if lacking:
        raise InputError(
            f"Expected an image-text model such as CLIPModel or SiglipModel, but {type(model).__name__} lacks {', '.join(lacking)}."
        )
    lacking = [name for name in ("image_processor", "tokenizer") if not hasattr(processor, name)]
    if lacking:
        raise InputError(f"Expected a processor of images and texts, but {type(processor).__name__} lacks {', '.join(lacking)}.")


def _check_pixels(transform: Transform) -> None:
    """Models whose images are more than one tensor show it here, not in the long run."""
    transform(Image.new("RGB", (8, 8)))


def _unit(features: Any) -> torch.Tensor:
    """Unit vectors from a tensor, or from what transformers 5 wraps it in."""
    vectors = features if isinstance(features, torch.Tensor) else features.pooler_output
    return F.normalize(vectors.float(), dim=1)


def _identify_config(config: Any) -> str:
    return json.dumps(_without_provenance(config), sort_keys=True, default=str)


def _without_provenance(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _without_provenance(part) for key, part in value.items() if key not in _PROVENANCE}
    return value


def identify_tokenizer(tokenizer: Any) -> str:
    """What tells a tokenizer of transformers from others: its kind, its vocabulary and its rules."""
    kind = [type(tokenizer).__name__, json.dumps(tokenizer.get_vocab(), sort_keys=True)]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        kind.append(json.dumps({key: value for key, value in rules.items() if key not in ("padding", "truncation")}, sort_keys=True))
    return fingerprint_texts(kind)
