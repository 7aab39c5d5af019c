"""The softmax over concepts of image-text similarities, of which only parts ever exist."""

from __future__ import annotations

import copy
from typing import Self

import torch

from neuroprobe.labeling.similarity._scorer import Columns

_KEPT_BYTES = 1 << 29  # of the first sweep's products, which the second need not make again
_ROWS = 2048  # images worked on at a time: so few that they are still in the cache for the next step, and few steps
_COLUMNS = 512
_LARGEST_LOGIT = 60.0  # exp of it, times any number of concepts there is memory for, is a float32


class BlockedSoftmax:
    """softmax over all concepts of `a` times the similarities of images [n_images, d] and texts [n_concepts, d], in parts of columns.

    It takes two sweeps over the embeddings: one when it is made, for the logarithms of the denominators, one per image;
    the other when parts are asked for. Of the first, as many columns as a fixed amount of memory holds are kept.
    """

    def __init__(self, images: torch.Tensor, texts: torch.Tensor, a: float) -> None:
        self._images, self._texts, self._a = images, texts, a
        self._kept = images.new_empty(len(images), min(_KEPT_BYTES // (4 * len(images)), len(texts)))
        self._log_denominators = self._sweep()

    def _sweep(self) -> torch.Tensor:
        lengths = self._images.norm(dim=1).max() * self._texts.norm(dim=1).max()
        in_range = abs(self._a) * lengths <= _LARGEST_LOGIT
        total = self._images.new_full((len(self._images),), -torch.inf)
        for first in range(0, len(self._texts), _COLUMNS):
            columns = slice(first, first + _COLUMNS)
            texts, kept = self._texts[columns].T, self._kept[:, columns]
            for start in range(0, len(self._images), _ROWS):
                rows = slice(start, start + _ROWS)
                logits = torch.addmm(total[rows, None], self._images[rows], texts, beta=0, alpha=self._a)
                kept[rows] = logits[:, : kept.shape[1]]
                logs = logits.exp_().sum(dim=1).log_() if in_range else logits.logsumexp(dim=1)
                total[rows] = torch.logaddexp(total[rows], logs)
        return total

    def of_images(self, rows: torch.Tensor) -> Self:
        """The same of some images, which may repeat, [n_rows]; concepts and denominators stay."""
        other = copy.copy(self)
        other._images, other._log_denominators = self._images[rows], self._log_denominators[rows]
        other._kept = self._kept[:, :0]
        return other

    def part(self, columns: Columns, *, log_of_sum_with: float | None = None) -> torch.Tensor:
        """Some columns, [n_images, n_columns]; or, given `log_of_sum_with`, the logarithm of their sum with that."""
        texts = self._texts[columns]
        result = self._images.new_empty(len(self._images), len(texts))
        known = isinstance(columns, slice) and max(columns.indices(len(self._texts))[:2]) <= self._kept.shape[1]
        for start in range(0, len(self._images), _ROWS):
            rows = slice(start, start + _ROWS)
            shift = self._log_denominators[rows, None]
            if known:
                part = torch.sub(self._kept[rows, columns], shift, out=result[rows])
            else:
                part = torch.addmm(-shift, self._images[rows], texts.T, alpha=self._a, out=result[rows])
            part.exp_()
            if log_of_sum_with is not None:
                part.add_(log_of_sum_with).log_()
        return result
