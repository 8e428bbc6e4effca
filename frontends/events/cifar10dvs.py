"""CIFAR10-DVS as it is handed out: a folder a class with AEDAT 2.0 files, one sample a file, no split."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from frontends.datasets import Split
from frontends.events.aedat import SENSOR, decode_version_2
from frontends.events.folders import class_folders, files_of, numbered
from frontends.events.recording import Recording, Window
from hwmodel.errors import Loc

__all__ = ["CLASSES", "SENSOR", "WINDOW", "decode", "recordings"]

WINDOW = Window(timesteps=10, bin_us=5000, size=42)  # table 5.6
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

decode = decode_version_2

_TEST_SHARE = 10  # one sample in ten of each class is held out
_SPLIT_SEED = 0


def recordings(folder: Path, split: Split) -> list[Recording]:
    """The split's files in the order of their numbers: one file in ten of each class, drawn by a fixed seed, is held
    out, and the rest is for training.

    Raises: CompileError for a folder that is not laid out so.
    """
    found = class_folders(folder, CLASSES, hint="CIFAR10-DVS has a folder a class: airplane, automobile, ...")
    chosen: list[Recording] = []
    for label, place in found.items():
        every = [Recording(path=file, label=label, loc=Loc(str(file))) for file in files_of(place, ".aedat")]
        every.sort(key=numbered)
        order = np.random.default_rng((_SPLIT_SEED, label)).permutation(len(every))
        held_out = set(order[: -(-len(every) // _TEST_SHARE)].tolist())
        chosen += [one for at, one in enumerate(every) if (at in held_out) is (split is Split.TEST)]
    return sorted(chosen, key=numbered)
