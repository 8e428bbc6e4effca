"""Two thread pools in one process: OpenMP's, where torch computes, and TVM's, where the fused kernels run."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import torch
from threadpoolctl import threadpool_info

from compiler.tvm_setup import thread_count, tvm

_PAUSE_SOFT = 1  # omp_pause_soft of OpenMP 5.0
_SERIAL_BYTES = 1 << 19  # of input: below, waking a thread takes longer than the work
_BIG_CORES = 1  # TVM's affinity mode for any core


def free_cores() -> None:
    """End OpenMP's idle workers, which spin on the cores for some 10 ms after torch's last operator.

    Its next parallel region makes them anew. The call takes 0.05 to 0.1 ms. Workers that sleep instead, as the
    environment can ask for (OMP_WAIT_POLICY, GOMP_SPINCOUNT), were often woken on the core of the thread that waits for
    them when the machine had other work, so that torch's operators took as long as on one thread.
    """
    for pause in _pauses():
        pause(_PAUSE_SOFT)


def match_thread_count() -> int:
    """Let TVM deal its work out to as many threads as torch does; their number."""
    threads = torch.get_num_threads()
    if threads > 1 and threads != thread_count():
        tvm.get_global_func("runtime.config_threadpool")(_BIG_CORES, threads)
    return threads


def threads_wanted(input_bytes: int) -> bool:
    """Whether a kernel should deal out its work; the cores are then free for it."""
    wanted = input_bytes >= _SERIAL_BYTES and match_thread_count() > 1
    if wanted:
        free_cores()
    return wanted


@functools.cache
def _pauses() -> tuple[Callable[[int], int], ...]:
    """The function of each OpenMP library that torch brought into the process."""
    found = []
    for info in threadpool_info():
        if info["user_api"] == "openmp" and "torch" in info["filepath"]:
            pause = getattr(ctypes.CDLL(info["filepath"]), "omp_pause_resource_all", None)
            if pause is not None:
                found.append(pause)
    return tuple(found)
