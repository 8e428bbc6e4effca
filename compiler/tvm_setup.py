"""TVM set up for this process before its first import: threads that torch's can live beside."""

from __future__ import annotations

import os


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# TVM reads all three when its thread pool starts: pinned or spinning workers would fight with OpenMP's.
os.environ.setdefault("TVM_BIND_THREADS", "0")
os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "0")
os.environ.setdefault("TVM_NUM_THREADS", str(_cores()))

import tvm  # noqa: E402
from tvm import tirx  # noqa: E402

__all__ = ["host_target", "thread_count", "tirx", "tvm"]


def thread_count() -> int:
    """Threads over which a parallel loop is dealt out."""
    return int(tvm.get_global_func("runtime.NumThreads")())


def host_target() -> tvm.target.Target:
    """LLVM for the CPU that this process runs on."""
    cpu = tvm.get_global_func("tvm.codegen.llvm.GetHostCPUName")()
    return tvm.target.Target({"kind": "llvm", "mcpu": cpu})
