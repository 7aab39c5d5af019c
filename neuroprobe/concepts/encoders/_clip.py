"""OpenAI's CLIP as an image-text encoder."""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from neuroprobe.concepts.encoders._base import PromptTooLongError, TorchEncoder, register_encoder
from neuroprobe.exceptions import CheckpointError, InputError, UnknownNameError, suggest
from neuroprobe.models import is_torchscript, load_state_dict, resolve_device


@register_encoder("clip")
class ClipEncoder(TorchEncoder):
    """OpenAI's CLIP through clip-anytorch: one of its names, or a file of weights in its format.

    Parameters
    ----------
    name_or_path : str or Path
        A name of ``clip.available_models()`` such as "ViT-B/16" (downloaded once, its published SHA-256 checked
        by clip), or a checkpoint file holding a plain state dict, from which the architecture follows.
    device : str or torch.device, default "auto"
        "auto" takes cuda, then mps, then the CPU. Computation is in float32 on each.
    trust : bool, default False
        Also load TorchScript archives given as files. Those can run code; state dicts cannot.
    download_root : str or Path, optional
        Where named models are kept; by default clip's own ``~/.cache/clip``.

    Raises
    ------
    UnknownNameError
        Neither a name nor a file.
    CheckpointError
        A file that holds no CLIP, or that only ``trust=True`` would load.

    References
    ----------
    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021.

    Examples
    --------
    >>> from neuroprobe.world import CLIP_PATH
    >>> encoder = ClipEncoder(CLIP_PATH, device="cpu")
    >>> encoder.encode_texts(["red", "This image has a concept: red"]).shape
    torch.Size([2, 64])
    """

    def __init__(
        self,
        name_or_path: str | Path,
        *,
        device: str | torch.device = "auto",
        trust: bool = False,
        download_root: str | Path | None = None,
    ) -> None:
        device, self._clip = resolve_device(device), import_clip()
        state = _clip_state_dict(self._clip, name_or_path, trust=trust, download_root=download_root)
        model = _build_clip(self._clip, state, str(name_or_path))
        super().__init__(model, self._clip.clip._transform(model.visual.input_resolution), device=device)

    @classmethod
    def from_text(cls, text: str, *, device: str | torch.device = "auto", trust: bool = False) -> Self:
        """The encoder of a name or a file of weights."""
        return cls(text, device=device, trust=trust)

    def _image_features(self, batch: torch.Tensor) -> torch.Tensor:
        return self.model.encode_image(batch)  # type: ignore[no-any-return]

    def _text_features(self, texts: list[str]) -> torch.Tensor:
        limit = self.model.context_length
        try:
            tokens = torch.as_tensor(self._clip.tokenize(texts, context_length=limit))
        except RuntimeError as error:
            encode = self._clip.clip._tokenizer.encode
            longest = next((text for text in texts if len(encode(text)) + 2 > limit), texts[0])  # 2: start and end
            raise PromptTooLongError(longest, limit) from error
        # attention is causal and the text's vector is read at its last token, so the padding behind can go
        n_read = int(tokens.argmax(dim=1).max()) + 1
        return self.model.encode_text(tokens[:, :n_read].to(self.device))  # type: ignore[no-any-return]


_clip_lock = threading.Lock()


def import_clip() -> types.ModuleType:
    """Import clip-anytorch, also where setuptools has no `pkg_resources`, or one without the `packaging` that it asks for.

    A stand-in is in its place only while clip is imported.
    """
    with _clip_lock, _pkg_resources_stand_in():
        import clip

    if not hasattr(clip, "tokenize"):
        raise InputError(f"Expected the package clip-anytorch as `clip`, but found another one at {clip.__file__!r}. Uninstall that one.")
    return clip  # type: ignore[no-any-return]


@contextmanager
def _pkg_resources_stand_in() -> Iterator[None]:
    if "clip" in sys.modules:
        yield
        return
    import packaging.version

    real = sys.modules.get("pkg_resources")
    stand_in = types.ModuleType("pkg_resources")
    stand_in.packaging = packaging  # type: ignore[attr-defined]
    sys.modules["pkg_resources"] = stand_in
    try:
        yield
    finally:
        del sys.modules["pkg_resources"]
        if real is not None:
            sys.modules["pkg_resources"] = real


def _clip_state_dict(clip: Any, name_or_path: str | Path, *, trust: bool, download_root: str | Path | None) -> Mapping[str, torch.Tensor]:
    models = clip.clip._MODELS
    if str(name_or_path) in models:
        root = Path(download_root) if download_root else Path.home() / ".cache" / "clip"
        try:
            path = Path(clip.clip._download(models[str(name_or_path)], str(root)))
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"Expected to download CLIP {str(name_or_path)!r} into {str(root)!r}, but that failed ({error}). "
                "Without a network, give the path of a checkpoint file instead."
            ) from error
        return _torchscript_state_dict(path)  # clip has just checked its SHA-256
    path = Path(name_or_path)
    if not path.is_file():
        known = suggest(str(name_or_path), models)
        raise UnknownNameError(f"Expected a CLIP model's name or a checkpoint file, but got {str(name_or_path)!r}. {known}")
    if is_torchscript(path):
        if not trust:
            raise CheckpointError(
                f"Expected a plain state dict, but {str(path)!r} is a TorchScript archive, which can run code. "
                "If you trust where it comes from, pass trust=True (--trust)."
            )
        return _torchscript_state_dict(path)
    return load_state_dict(path)


def _torchscript_state_dict(path: Path) -> Mapping[str, torch.Tensor]:
    try:
        archive = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
        return dict(archive.state_dict())
    except RuntimeError as error:
        raise CheckpointError(f"Expected a TorchScript archive of CLIP, but {str(path)!r} cannot be read: {error}") from error


_NEEDED = ("token_embedding.weight", "positional_embedding", "ln_final.weight", "text_projection", "logit_scale")


def _build_clip(clip: Any, state: Mapping[str, torch.Tensor], name: str) -> Any:
    from clip.model import build_model

    missing = [key for key in _NEEDED if key not in state]
    if missing:
        raise CheckpointError(
            f"Expected a CLIP checkpoint in clip's own format, but {name!r} lacks {', '.join(missing)}. "
            "Other formats (transformers, open_clip) need their own encoder."
        )
    weights = {k: v for k, v in state.items() if k not in ("input_resolution", "context_length", "vocab_size")}
    try:
        with torch.random.fork_rng(devices=[]):  # first weights are drawn, though never used
            model: nn.Module = build_model(dict(weights)).float()
        model.load_state_dict(weights)  # once more in full precision: build_model rounds to float16
    except (RuntimeError, KeyError, AssertionError, IndexError, ValueError, ZeroDivisionError, AttributeError, TypeError) as error:
        raise CheckpointError(f"Expected a CLIP checkpoint in clip's own format, but {name!r} does not fit it: {error}") from error
    n_tokens, n_embedded = len(clip.clip._tokenizer.encoder), len(weights["token_embedding.weight"])
    if n_embedded < n_tokens:
        raise CheckpointError(f"Expected a CLIP checkpoint with the {n_tokens} tokens of clip's tokenizer, but {name!r} has {n_embedded}.")
    return model
