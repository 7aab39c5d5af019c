"""The models of open_clip as image-text encoders."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch

from neuroprobe._core import import_extra
from neuroprobe.concepts.encoders._base import PromptTooLongError, TorchEncoder, reason, register_encoder
from neuroprobe.concepts.encoders._transformers import identify_tokenizer
from neuroprobe.exceptions import CheckpointError, InputError, UnknownNameError, suggest
from neuroprobe.models import is_torchscript, resolve_device


@register_encoder("open_clip")
class OpenClipEncoder(TorchEncoder):
    """A CLIP, CoCa or SigLIP of open_clip (extra ``openclip``): one of its names with weights, or a folder.

    Parameters
    ----------
    model_name : str or Path
        A name of ``open_clip.list_models()`` such as "ViT-B-32", "hf-hub:" and the name of a model on the Hugging Face hub, or a
        folder with ``open_clip_config.json`` and weights.
    pretrained : str or Path, optional
        For a name: the weights, one of ``open_clip.list_pretrained_tags_by_model(model_name)`` such as "laion2b_s34b_b79k"
        (downloaded once by open_clip), or a file of them: safetensors, or what ``torch.load(weights_only=True)`` reads.
    device : str or torch.device, default "auto"
        As in `ClipEncoder`; computation is in float32.
    cache_dir : str or Path, optional
        Where open_clip keeps what it downloads.

    Attributes
    ----------
    logit_scale : float
        The factor before similarities, already out of its logarithm.
    logit_bias : float or None
        What SigLIP adds to them; None for a CLIP. See `TransformersEncoder` for what a softmax means then.

    Raises
    ------
    MissingDependencyError
        open_clip is not installed.
    UnknownNameError
        No such model, or weights that are neither a tag of it nor a file.
    CheckpointError
        Files that cannot be read safely, do not fit, or ask for code of their own.

    References
    ----------
    Ilharco et al., "OpenCLIP", 2021, https://doi.org/10.5281/zenodo.5143773. Zhai et al., "Sigmoid Loss for Language Image
    Pre-Training", ICCV 2023.
    """

    def __init__(
        self,
        model_name: str | Path,
        *,
        pretrained: str | Path | None = None,
        device: str | torch.device = "auto",
        cache_dir: str | Path | None = None,
    ) -> None:
        device = resolve_device(device)
        open_clip = import_extra("open_clip", wanted_by="OpenClipEncoder", extra="openclip", distribution="open_clip_torch")
        name = _full_name(open_clip, model_name)
        _check_pretrained(open_clip, name, pretrained)
        cache = None if cache_dir is None else str(cache_dir)
        weights = None if pretrained is None else str(pretrained)
        with _reading(f"the configuration of {name!r}, but it cannot be read", OSError, ValueError, RuntimeError):
            config: Mapping[str, Any] = open_clip.get_model_config(name)
        if "trust_remote_code" in json.dumps(config):
            raise CheckpointError(
                f"Expected a model without code of its own, but the configuration of {name!r} asks for `trust_remote_code`."
            )
        where = name if weights is None else f"{name} with {weights}"
        # readers of weights raise many kinds of errors; first weights are drawn, though never used
        with _reading(f"a model of open_clip, but {where!r} cannot be loaded", Exception), torch.random.fork_rng(devices=[]):
            model, transform = open_clip.create_model_from_pretrained(name, weights, cache_dir=cache, weights_only=True)
        with _reading(f"the tokenizer of {name!r}, but it cannot be loaded", OSError, ValueError, ImportError):
            self._tokenizer: Any = open_clip.get_tokenizer(name, cache_dir=cache)
        super().__init__(model, transform, device=device, reads=_reads(model, config, self._tokenizer))

    @classmethod
    def from_text(cls, text: str, *, device: str | torch.device = "auto", trust: bool = False) -> Self:
        """The encoder of "MODEL/PRETRAINED"."""
        model, _, pretrained = text.rpartition("/")
        if not model:
            raise InputError(f"Expected MODEL/PRETRAINED for open_clip, such as open_clip:ViT-B-32/laion2b_s34b_b79k, but got {text!r}.")
        return cls(model, pretrained=pretrained, device=device)

    def _image_features(self, batch: torch.Tensor) -> torch.Tensor:
        return self.model.encode_image(batch)  # type: ignore[no-any-return]

    def _text_features(self, texts: list[str]) -> torch.Tensor:
        return self.model.encode_text(_whole_tokens(self._tokenizer, texts).to(self.device))  # type: ignore[no-any-return]


def _full_name(open_clip: Any, model_name: str | Path) -> str:
    """The name as open_clip takes it: its own, or with a schema in front."""
    name = str(model_name)
    if name.startswith(("hf-hub:", "local-dir:")):
        return name
    if Path(name).is_dir():
        return f"local-dir:{name}"
    name = name.replace("/", "-")
    known = open_clip.list_models()
    if name not in known:
        raise UnknownNameError(
            f"Expected a model of open_clip, 'hf-hub:...' or a folder, but got {str(model_name)!r}. {suggest(name, known)}"
        )
    return name


def _check_pretrained(open_clip: Any, name: str, pretrained: str | Path | None) -> None:
    """The weights must be named where there are several, and not where there is one set."""
    if name.startswith(("hf-hub:", "local-dir:")):
        if pretrained is not None:
            raise InputError(f"Expected no `pretrained` for {name!r}, which has its own weights, but got {str(pretrained)!r}.")
        return
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is None:
        raise InputError(f"Expected `pretrained` for {name!r}: a file of weights, or one of {tags}.")
    if str(pretrained) in tags:
        return
    if not Path(pretrained).is_file():
        raise UnknownNameError(f"Expected weights of {name!r} or a file, but got {str(pretrained)!r}. {suggest(str(pretrained), tags)}")
    if is_torchscript(pretrained):
        raise CheckpointError(
            f"Expected a plain state dict, but {str(pretrained)!r} is a TorchScript archive, which can run code. "
            "Save its state_dict(), or load OpenAI's files with ClipEncoder."
        )


@contextmanager
def _reading(what: str, *errors: type[Exception]) -> Iterator[None]:
    """Say in one line what could not be read; torch's own words on a file that it refuses advise to turn the safety off."""
    try:
        yield
    except errors as error:
        damaged = "it is damaged or holds more than tensors. Save model.state_dict() with torch.save."
        raise CheckpointError(f"Expected {what}: {damaged if isinstance(error, pickle.UnpicklingError) else reason(error)}") from error


def _whole_tokens(tokenizer: Any, texts: Sequence[str]) -> torch.Tensor:
    """Tokens [n, context_length] of texts that fit; open_clip's tokenizers cut the others without a word."""
    limit = int(tokenizer.context_length)
    tokens = torch.as_tensor(tokenizer(list(texts), context_length=limit))
    wider = torch.as_tensor(tokenizer(list(texts), context_length=limit + 1))  # one that fits differs in its padding alone
    compared = limit - 1 if getattr(tokenizer, "tokenizer_mode", "") == "clips" else limit  # which ends with a mark of its own
    cut = (tokens[:, :compared] != wider[:, :compared]).any(dim=1)
    if bool(cut.any()):
        raise PromptTooLongError(texts[int(cut.int().argmax())], limit)
    return tokens


def _reads(model: Any, config: Mapping[str, Any], tokenizer: Any) -> list[str]:
    """What the vectors depend on beside the weights."""
    inner = getattr(tokenizer, "tokenizer", None)
    return [
        json.dumps(config, sort_keys=True),
        json.dumps(model.visual.preprocess_cfg, sort_keys=True, default=str),
        type(tokenizer).__name__,
        str(tokenizer.context_length),
        "open_clip's own" if inner is None else identify_tokenizer(inner),
    ]
