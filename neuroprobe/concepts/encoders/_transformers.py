"""The CLIPs and SigLIPs of transformers as image-text encoders."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from neuroprobe._core import fingerprint_texts, import_extra
from neuroprobe.concepts.encoders._base import PromptTooLongError, TorchEncoder, reason, register_encoder
from neuroprobe.exceptions import CheckpointError, InputError
from neuroprobe.models import resolve_device

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


@register_encoder("transformers")
class TransformersEncoder(TorchEncoder):
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
        device = resolve_device(device)
        transformers = import_extra("transformers", wanted_by="TransformersEncoder", extra="transformers")
        found, processor = _model_and_processor(transformers, model, processor, revision)
        _check_kind(found, processor)
        self._tokenizer: Any = processor.tokenizer
        self.context_length = int(found.config.text_config.max_position_embeddings)
        transform = _PixelValues(processor.image_processor)
        transform(Image.new("RGB", (8, 8)))  # models whose images are more than one tensor show it here, not in the long run
        reads = [_identify_config(found.config.to_dict()), _identify_config(processor.image_processor.to_dict())]
        super().__init__(found, transform, device=device, reads=[*reads, identify_tokenizer(self._tokenizer)])

    def _image_features(self, batch: torch.Tensor) -> torch.Tensor:
        return _tensor(self.model.get_image_features(pixel_values=batch))

    def _text_features(self, texts: list[str]) -> torch.Tensor:
        for text, ids in zip(texts, self._tokenizer(texts, truncation=False)["input_ids"], strict=True):
            if len(ids) > self.context_length:
                raise PromptTooLongError(text, self.context_length)
        if self.model.config.model_type.startswith("siglip"):  # trained with padding to the whole context, which it reads
            tokens = self._tokenizer(texts, padding="max_length", max_length=self.context_length, return_tensors="pt")
            inputs = {"input_ids": tokens["input_ids"]}
        else:
            tokens = self._tokenizer(texts, padding=True, return_tensors="pt")
            inputs = {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}
        return _tensor(self.model.get_text_features(**{name: value.to(self.device) for name, value in inputs.items()}))


@dataclass(frozen=True)
class _PixelValues:
    """What an image processor makes of one image."""

    image_processor: Any

    def __call__(self, image: Image.Image) -> torch.Tensor:
        made = self.image_processor(images=image.convert("RGB"), return_tensors="pt")
        if set(made) != {"pixel_values"}:
            raise InputError(f"Expected an image processor that makes `pixel_values` alone, but it makes {sorted(made)}.")
        return torch.as_tensor(made["pixel_values"])[0]


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
        if "trust_remote_code" in str(error):
            wrong = f"a model of transformers' own, but {str(model)!r} needs code of its own, which is not run."
        else:
            wrong = (
                f"a folder or a name on the Hugging Face hub with a CLIP or SigLIP, but {str(model)!r} cannot be loaded: {reason(error)}"
            )
        raise CheckpointError(f"Expected {wrong}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise CheckpointError(
            f"Expected all weights of a {type(found).__name__}, but {str(model)!r} lacks {len(missing)}, such as {missing[0]!r}."
        )
    return found, processor


def _check_kind(model: Any, processor: Any) -> None:
    needed = (
        (model, ("get_image_features", "get_text_features", "logit_scale"), "an image-text model such as CLIPModel or SiglipModel"),
        (processor, ("image_processor", "tokenizer"), "a processor of images and texts"),
    )
    for given, names, what in needed:
        lacking = [name for name in names if not hasattr(given, name)]
        if lacking:
            raise InputError(f"Expected {what}, but {type(given).__name__} lacks {', '.join(lacking)}.")


def _tensor(features: Any) -> torch.Tensor:
    """The vectors themselves, which transformers 5 wraps."""
    return features if isinstance(features, torch.Tensor) else features.pooler_output


def _identify_config(config: Any) -> str:
    def known(value: Any) -> Any:
        return {str(k): known(v) for k, v in value.items() if k not in _PROVENANCE} if isinstance(value, dict) else value

    return json.dumps(known(config), sort_keys=True, default=str)


def identify_tokenizer(tokenizer: Any) -> str:
    """What tells a tokenizer of transformers from others: its kind, its vocabulary and its rules."""
    kind = [type(tokenizer).__name__, json.dumps(tokenizer.get_vocab(), sort_keys=True)]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        kind.append(json.dumps({key: value for key, value in rules.items() if key not in ("padding", "truncation")}, sort_keys=True))
    return fingerprint_texts(kind)
