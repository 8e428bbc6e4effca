"""Losses and their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from compiler.differentiate.steps.base import Arrays, Step
from compiler.losses import RATE_SCALE, Loss


@dataclass(frozen=True, slots=True, kw_only=True)
class LossValue(Step):
    """The mean over the batch; y is the label, k runs over the K classes.

    mse            sum over n, k of (score[n, k] - [k = y[n]])^2 / (N * K)
    cross_entropy  sum over n of (log sum over k of exp z[n, k] - z[n, y[n]]) / N,  z = RATE_SCALE * score

    Shapes: scores (N, K), labels (N,) -> ().
    """

    loss: Loss

    def run(self, inputs: Sequence[Tensor], arrays: Arrays) -> tuple[Tensor, ...]:
        scores, labels = inputs
        match self.loss:
            case Loss.MSE:
                return ((scores - _one_hot(labels, scores)).square().mean(),)
            case Loss.CROSS_ENTROPY:
                logits = RATE_SCALE * scores
                return ((logits.logsumexp(1) - logits.gather(1, labels[:, None])[:, 0]).mean(),)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossGradient(Step):
    """mse            dscore[n, k] = 2 * (score[n, k] - [k = y[n]]) / (N * K)
    cross_entropy  dscore[n, k] = RATE_SCALE * (softmax(z[n])[k] - [k = y[n]]) / N,  z = RATE_SCALE * score

    Shapes: scores (N, K), labels (N,) -> dscores (N, K).
    """

    loss: Loss

    def run(self, inputs: Sequence[Tensor], arrays: Arrays) -> tuple[Tensor, ...]:
        scores, labels = inputs
        wanted = _one_hot(labels, scores)
        match self.loss:
            case Loss.MSE:
                return (2 * (scores - wanted) / scores.numel(),)
            case Loss.CROSS_ENTROPY:
                return (RATE_SCALE * (torch.softmax(RATE_SCALE * scores, 1) - wanted) / len(scores),)


def _one_hot(labels: Tensor, scores: Tensor) -> Tensor:
    return functional.one_hot(labels, scores.shape[1]).to(scores.dtype)
