"""Memory of a training step: what autograd keeps after the forward pass, and how far the process grows."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakSet

import torch
from torch import Tensor, nn

MB = 2**20


class Kept:
    """A tensor in autograd's keeping; gone when autograd drops it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@contextmanager
def kept_tensors() -> Iterator[WeakSet[Kept]]:
    """The tensors that autograd saves under it, as long as it holds them."""
    alive: WeakSet[Kept] = WeakSet()

    def pack(tensor: Tensor) -> Kept:
        kept = Kept(tensor)
        alive.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        yield alive


def saved_activation_mb(model: nn.Module, forward: Callable[[], Tensor]) -> float:
    """Unique storages kept for the backward pass, without parameters and buffers."""
    with kept_tensors() as alive:
        result = forward()
        storages = [kept.tensor.untyped_storage() for kept in alive]
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    for tensor in (*model.parameters(), *model.buffers()):
        sizes.pop(tensor.untyped_storage().data_ptr(), None)
    del result
    return sum(sizes.values()) / MB


def gradient_mb(model: nn.Module) -> float:
    """Gradients of all parameters."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad) / MB


def peak_rss_rise_mb(step: Callable[[], object], steps: int) -> float:
    """Peak resident memory during the steps over what is resident just before them.

    Freed memory is handed back first, so that a step before these (one compiles there) takes no part.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is resident
    before = _status_kb("VmRSS")
    for _ in range(steps):
        step()
    return (_status_kb("VmHWM") - before) / 1024


def _status_kb(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
