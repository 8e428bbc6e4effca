"""Speed of the Forward Engine's fast kernels: python -m tests.bench.lut_accumulate."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from runtime.engines import Window, fast
from runtime.engines.tvm_build import tvm

REPEATS = 100
TILE = Window(kernel_h=3, kernel_w=3, stride_h=1, stride_w=1, out_h=8, out_w=8)


def best_us(call: Callable[[], object]) -> float:
    """Shortest wall time of a call."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times) * 1e6


def report(batch: int, rows: int, cols: int, rate: float) -> str:
    """One grid iteration: time, and adds of the hardware (per row two in a PE and one in the tree)."""
    rng = np.random.default_rng(0)
    engines = fast()
    weights = rng.standard_normal((rows, 9, cols)).astype(np.float16)
    spikes = (rng.random((batch, 10, 10, rows)) < rate).astype(np.uint8)
    psum = np.zeros((batch, 8, 8, cols), np.float16)
    lut = engines.program_conv(weights)
    patterns = engines.indices(spikes, TILE, 0, rows)
    adds = batch * 64 * cols * rows * 3
    program = best_us(lambda: engines.program_conv(weights))
    index = best_us(lambda: engines.indices(spikes, TILE, 0, rows))
    accumulate = best_us(lambda: engines.accumulate(lut, patterns, psum, True))
    return (
        f"B={batch:3d} rows={rows:2d} cols={cols:2d} rate={rate:.2f}: program {program:5.1f} us, "
        f"indices {index:6.1f} us, accumulate {accumulate:6.1f} us = {adds / accumulate / 1e3:5.1f} Gadds/s"
    )


def main() -> None:
    """Print one line per thread count and case."""
    threads = tvm.get_global_func("runtime.NumThreads")()
    for count in sorted({1, threads}):
        tvm.get_global_func("runtime.config_threadpool")(1, count)
        print(f"{count} thread(s)")
        for batch, rows, cols, rate in (
            (40, 64, 16, 0.15),
            (40, 64, 16, 0.5),
            (40, 64, 10, 0.15),
            (40, 3, 16, 0.15),
            (10, 64, 16, 0.15),
            (1, 64, 16, 0.15),
        ):
            print("  " + report(batch, rows, cols, rate))


if __name__ == "__main__":
    main()
