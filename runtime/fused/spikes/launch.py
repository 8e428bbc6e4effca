"""Scratch memory, as kernels ask for it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Take = Callable[[str, tuple[int, ...], torch.dtype], Tensor]
"""Hands out memory of undefined contents for a role, by shape and element type."""
