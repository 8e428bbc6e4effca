"""TVM set up for this process, and compilation of one TensorIR kernel for this machine's CPU."""

from __future__ import annotations

import os
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# TVM reads both when its thread pool starts; pinned workers would fight with OpenMP's.
os.environ.setdefault("TVM_BIND_THREADS", "0")
os.environ.setdefault("TVM_NUM_THREADS", str(_cores()))

import tvm  # noqa: E402
from tvm import tirx  # noqa: E402
from tvm.script import tirx as T  # noqa: E402, N812

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


def thread_count() -> int:
    """Threads over which a parallel loop is dealt out."""
    return int(tvm.get_global_func("runtime.NumThreads")())


def host_target() -> tvm.target.Target:
    """LLVM for the CPU that this process runs on."""
    cpu = tvm.get_global_func("tvm.codegen.llvm.GetHostCPUName")()
    return tvm.target.Target({"kind": "llvm", "mcpu": cpu})


def compiled(function: tirx.PrimFunc) -> Kernel:
    """Compile one kernel."""
    name = str(function.attrs["global_symbol"])
    kernel: Kernel = tvm.compile(function, target=host_target())[name]
    return kernel


def rounded(value: tirx.Expr) -> tirx.Expr:
    """Keep a product a rounded value of its own: LLVM may contract it into the addition that follows."""
    return T.call_llvm_pure_intrin("float16", "llvm.arithmetic.fence", value)
