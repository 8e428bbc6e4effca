"""What the tests of training share: a few digits in a file, and options of a run of seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from frontends.datasets import Split, load

NETWORK = ("train", "zoo:digits-fc", "--data", "few.npz", "--timesteps", "2")


def few_digits(path: Path, samples: int = 60) -> Path:
    """The first digits of the training set; one in five of them is held out by the command."""
    digits = load("digits", split=Split.TRAIN)
    np.savez(path, x=digits.x[:samples], y=digits.y[:samples])
    return path
