"""What training minimises over a network's scores."""

from __future__ import annotations

from enum import StrEnum

RATE_SCALE = 10.0  # a rate in [0, 1] times this is a logit; below it cross entropy could not approach 0


class Loss(StrEnum):
    """What training minimises, over the last layer's mean over time."""

    CROSS_ENTROPY = "cross_entropy"  # of RATE_SCALE * score
    MSE = "mse"  # between score and one-hot label
