"""The adder tree of a column of PEs as a TensorIR expression."""

from __future__ import annotations

from collections.abc import Callable

from runtime.engines.tvm_build import Expr


def pairwise(leaf: Callable[[int], Expr], leaves: int) -> Expr:
    """Adder tree over neighbours; a node without a right child passes its left one on, as +0 would."""
    level = [leaf(i) for i in range(leaves)]
    while len(level) > 1:
        pairs = [left + right for left, right in zip(level[0::2], level[1::2], strict=False)]
        level = pairs + level[len(pairs) * 2 :]
    return level[0]
