"""TVM set up for this process, and compilation of one TensorIR kernel for this machine's CPU."""

from __future__ import annotations

from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from compiler.tvm_setup import host_target, thread_count, tvm  # before anything else of TVM

from tvm import tirx  # isort: skip
from tvm.script import tirx as T  # noqa: N812  # isort: skip

__all__ = [
    "Buffer",
    "Expr",
    "Kernel",
    "T",
    "compiled",
    "rounded",
    "thread_count",
    "tirx",
    "tvm",
    "vector_lanes",
    "writeable",
]

Expr = tirx.Expr
Buffer = tirx.Buffer
Array = TypeVar("Array", bound=npt.NDArray[np.generic])


class Kernel(Protocol):
    """A compiled function over C-contiguous arrays and integers; outputs are written in place."""

    def __call__(self, *arguments: npt.NDArray[np.generic] | int) -> None: ...


def vector_lanes(extent: int) -> int:
    """Widest vector of at most 16 lanes that divides the extent."""
    return min(extent & -extent, 16)


def writeable(array: Array) -> Array:
    """DLPack hands over no read-only array, not even as an input."""
    return array if array.flags.writeable else array.copy()


def compiled(function: tirx.PrimFunc) -> Kernel:
    """Compile one kernel."""
    name = str(function.attrs["global_symbol"])
    kernel: Kernel = tvm.compile(function, target=host_target())[name]
    return kernel


def rounded(value: tirx.Expr) -> tirx.Expr:
    """Keep a product a rounded value of its own: LLVM may contract it into the addition that follows."""
    return T.call_llvm_pure_intrin("float16", "llvm.arithmetic.fence", value)
