"""A trained network in a file: parameters and statistics by their order, since frameworks name them differently."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

FACTS = "facts"  # what the file says of itself, in JSON


@dataclass(frozen=True, slots=True)
class Batch:
    """The images on which the trained network is timed.

    Shapes: images (N, C, H, W) in [0, 1]; labels (N,).
    """

    images: Tensor
    labels: Tensor


def load_weights(model: nn.Module, path: str) -> None:
    """Fill the model's parameters and the running statistics of its batch norms."""
    stored = load_file(path)
    with torch.no_grad():
        for name, tensor in _in_order(model):
            tensor.copy_(stored.pop(name))
    left = sorted(name for name in stored if name not in ("images", "labels"))
    assert not left, f"{path} has more than the model: {left}"


def load_batch(path: str) -> Batch:
    stored = load_file(path)
    return Batch(stored["images"], stored["labels"])


def load_facts(path: Path) -> str:
    with safe_open(path, framework="pt") as file:
        facts: str = file.metadata()[FACTS]
        return facts


def save_weights(path: Path, model: nn.Module, batch: Batch, facts: str) -> None:
    """Write beside, then rename: whoever reads sees no half of a file."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in _in_order(model)}
    tensors |= {"images": batch.images.contiguous(), "labels": batch.labels}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent, suffix=".part")
    with os.fdopen(handle, "wb") as file:
        file.write(save(tensors, metadata={FACTS: facts}))
    os.replace(beside, path)


def _in_order(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for index, parameter in enumerate(model.parameters()):
        yield f"parameter.{index:03}", parameter
    norms = [part for part in model.modules() if isinstance(part, _BatchNorm)]
    for index, norm in enumerate(norms):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        yield f"mean.{index:03}", norm.running_mean
        yield f"variance.{index:03}", norm.running_var
