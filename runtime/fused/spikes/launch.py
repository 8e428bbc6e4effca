"""What the callers of compiled spike kernels share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from runtime.fused.threads import free_cores, match_thread_count

Take = Callable[[str, tuple[int, ...], torch.dtype], Tensor]
"""Hands out memory of undefined contents for a role, by shape and element type."""

_SERIAL_BYTES = 1 << 19  # of input: below, waking a thread takes longer than the work


def threads_wanted(input_bytes: int) -> bool:
    """Whether a kernel should deal out its work; the cores are then free for it."""
    wanted = input_bytes >= _SERIAL_BYTES and match_thread_count() > 1
    if wanted:
        free_cores()
    return wanted
