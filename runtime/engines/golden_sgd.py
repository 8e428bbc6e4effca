"""Golden SGD unit: one step of a slice of weights in NumPy, each line rounded to FP16."""

from __future__ import annotations

import numpy as np

from runtime.engines.sgd_rule import Sgd, SgdResult
from runtime.engines.soma_plan import F16


def sgd(weight: F16, gradient: F16, momentum: F16 | None, rule: Sgd) -> SgdResult:
    """Weight decay, momentum, step."""
    assert weight.ndim == 1
    assert weight.shape == gradient.shape
    b = gradient
    if rule.weight_decay != 0:
        b = gradient + (rule.decay_constant * weight.astype(np.float32)).astype(np.float16)
    if momentum is not None:
        b = rule.momentum_constant * momentum + b
    exact = rule.step_constant * b.astype(np.float32)
    new = weight - exact.astype(np.float16)
    return SgdResult(
        weight=new,
        momentum=None if momentum is None else b,
        changed=int((new != weight).sum()),
        lost=int(((exact != 0) & (new.view(np.uint16) == weight.view(np.uint16))).sum()),
        finite=bool(np.isfinite(gradient).all() and np.isfinite(b).all() and np.isfinite(new).all()),
    )
