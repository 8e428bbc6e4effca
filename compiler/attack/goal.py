"""What an attack wants, and when it has it."""

from __future__ import annotations

import torch
from torch import Tensor


def wins(scores: Tensor, classes: Tensor) -> Tensor:
    """Whether a class alone has the highest score; a tie is no win for anybody.

    Shapes: scores (N, K), classes (N,) -> (N,).
    """
    own = scores.gather(1, classes[:, None])
    others = scores.scatter(1, classes[:, None], -torch.inf)
    return own[:, 0] > others.amax(1)


def decided(scores: Tensor) -> Tensor:
    """Whether one class alone has the highest score. Shapes: (N, K) -> (N,)."""
    return wins(scores, scores.argmax(1))


def succeeds(scores: Tensor, classes: Tensor, *, targeted: bool) -> Tensor:
    """Whether scores are what the attacker wants: the target alone is highest, or some other class than the label.

    classes: targets of a targeted attack, else labels.
    Shapes: scores (N, K), classes (N,) -> (N,).
    Source: section 5.4.1; ties, on which the text is silent, are failures.
    """
    if targeted:
        return wins(scores, classes)
    return decided(scores) & (scores.argmax(1) != classes)
