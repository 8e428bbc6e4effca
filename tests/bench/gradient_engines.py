"""Speed of the fast training engines: python -m tests.bench.gradient_engines [--json]."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from runtime.engines import F16, U8, GradNeuron, GradPlan, GradWindow, KeptStage, Reset, Sgd, Window, fast
from runtime.engines.tvm_build import tvm

REPEATS = 30
STEPS, SAMPLES, SIDE, TAPS = 10, 4, 8, 9
MAPS = STEPS * SAMPLES
SAME = GradWindow(kernel_h=3, kernel_w=3, stride_h=1, stride_w=1, out_h=SIDE, out_w=SIDE, top=1, left=1)
VALID = Window(kernel_h=3, kernel_w=3, stride_h=1, stride_w=1, out_h=SIDE, out_w=SIDE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """One engine on one tile: operations as the hardware counts them, zeros and masked outputs included."""

    engine: str
    case: str
    threads: int
    time_ms: float  # of the fastest call
    giga_ops_per_s: float
    op: str


def best_ms(call: Callable[[], object]) -> float:
    """Shortest wall time of a call."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times) * 1e3


def values(shape: tuple[int, ...], density: float = 1.0) -> F16:
    """Normal values, some of them zeros."""
    rng = np.random.default_rng(0)
    return np.where(rng.random(shape) < density, rng.standard_normal(shape), 0).astype(np.float16)


def bits(shape: tuple[int, ...], density: float) -> U8:
    """Random spikes or mask."""
    return (np.random.default_rng(1).random(shape) < density).astype(np.uint8)


def gradient(threads: int, columns: int, density: float, out_density: float | None) -> Speed:
    """Input gradient of a 3 x 3 convolution from 16 rows."""
    engines, x, weights = fast(), values((MAPS, SIDE, SIDE, 16), density), values((TAPS, columns, 16))
    psum = np.zeros((MAPS, SIDE, SIDE, columns), np.float16)
    wanted = None if out_density is None else bits(psum.shape, out_density)
    elapsed = best_ms(lambda: engines.accumulate_gradient(x, None, weights, wanted, SAME, psum, True))
    hits = (3 * SIDE - 2) ** 2  # taps inside the map, over all its outputs
    case = f"{columns} columns, inputs {density:.1f}, outputs {1.0 if out_density is None else out_density:.1f}"
    return speed("accumulate_gradient", case, threads, elapsed, MAPS * hits * 16 * columns, "MAC")


def outer(threads: int) -> Speed:
    """Weight gradient of a 3 x 3 convolution on three real channels held over time."""
    engines, x, g = fast(), values((SAMPLES, SIDE + 2, SIDE + 2, 3)), values((MAPS, SIDE, SIDE, 64))
    psum = np.zeros((TAPS, 3, 64), np.float16)
    elapsed = best_ms(lambda: engines.accumulate_outer(x, g, VALID, psum, True))
    return speed("accumulate_outer", "3 rows, 64 columns", threads, elapsed, MAPS * SIDE**2 * TAPS * 3 * 64, "MAC")


def update(threads: int, channels: int, columns: int) -> Speed:
    """Weight gradient of a 3 x 3 convolution on spikes; a look-up adds in the PE and in the tree."""
    engines, g = fast(), values((STEPS, SAMPLES, SIDE, SIDE, columns))
    patterns = engines.update_patterns(bits((MAPS, SIDE + 2, SIDE + 2, channels), 0.2), VALID)
    psum = np.zeros((TAPS, channels, columns), np.float16)
    elapsed = best_ms(lambda: engines.accumulate_update(g, patterns, psum, True))
    adds = SAMPLES * SIDE * TAPS * channels * columns * 2 * STEPS
    return speed("accumulate_update", f"{channels} channels, {columns} columns", threads, elapsed, adds, "add")


def grad(threads: int) -> Speed:
    """Hard reset, all of equations 2.4 and 2.5."""
    engines, shape = fast(), (STEPS, SAMPLES, SIDE, SIDE, 64)
    neuron = GradNeuron(reset=Reset.HARD, fire=True, detach=False, has_scale=False, eta=1.0)
    plan = GradPlan(stage1=neuron, pool1=None, pool2=None, stage2=None)
    kept = KeptStage(spikes=bits(shape, 0.2), mask=bits(shape, 0.3), membrane=values(shape, 0.3))
    psum, params = values(shape), np.full((1, 9, 64), 0.5, np.float16)
    elapsed = best_ms(lambda: engines.grad(psum, plan, params, (kept,), (None,), None, SIDE, SIDE))
    return speed("grad", "64 columns", threads, elapsed, psum.size, "neuron step")


def sgd(threads: int) -> Speed:
    """Momentum and weight decay."""
    engines, size = fast(), TAPS * 256 * 128
    weight, gradient_sum, momentum = values((size,)), values((size,)), values((size,))
    rule = Sgd(learning_rate=0.1, momentum=0.9, weight_decay=5e-4, scale=1024.0)
    elapsed = best_ms(lambda: engines.sgd(weight, gradient_sum, momentum, rule))
    return speed("sgd", f"{size} weights", threads, elapsed, size, "weight")


def speed(engine: str, case: str, threads: int, elapsed_ms: float, operations: int, op: str) -> Speed:
    """Operations over time."""
    rate = operations / elapsed_ms / 1e6
    return Speed(engine=engine, case=case, threads=threads, time_ms=elapsed_ms, giga_ops_per_s=rate, op=op)


def measure(threads: int) -> list[Speed]:
    """Every case on that many threads."""
    tvm.get_global_func("runtime.config_threadpool")(1, threads)
    return [
        *(gradient(threads, 64, density, None) for density in (1.0, 0.5, 0.2)),
        gradient(threads, 64, 0.5, 0.1),
        gradient(threads, 16, 1.0, None),
        outer(threads),
        update(threads, 256, 128),
        update(threads, 64, 16),
        grad(threads),
        sgd(threads),
    ]


def main() -> None:
    """Print one line per thread count and case, or one JSON object."""
    available = tvm.get_global_func("runtime.NumThreads")()
    speeds = [row for threads in sorted({1, available}) for row in measure(threads)]
    if "--json" in sys.argv[1:]:
        print(json.dumps({"speeds": [asdict(row) for row in speeds]}))
        return
    for row in speeds:
        head = f"{row.threads} thread(s) {row.engine:20s} {row.case:39s}"
        print(f"{head} {row.time_ms:8.3f} ms = {row.giga_ops_per_s:6.2f} G {row.op}s/s")


if __name__ == "__main__":
    main()
