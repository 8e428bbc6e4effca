"""Compiled kernels: independent of the number of threads, and products stay rounded on every CPU."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.engines import Neuron, SomaPlan, Window, fast
from runtime.engines.soma_plan import Compare, Reset
from runtime.engines.tvm_build import T, rounded, tvm
from tests.runtime.engines.fp16_values import Values, f16, spikes


def outputs() -> list[bytes]:
    """What every parallel kernel computes on one fixed input."""
    engines = fast()
    window = Window(kernel_h=3, kernel_w=3, stride_h=1, stride_w=1, out_h=8, out_w=8)
    patterns = engines.indices(spikes(1, (7, 10, 10, 40)), window, 0, 40)
    psum = np.zeros((7, 8, 8, 16), np.float16)
    engines.accumulate(engines.program_conv(f16(2, (40, 9, 16), Values.NORMAL)), patterns, psum, True)
    fc = np.zeros((7, 16), np.float16)
    engines.accumulate_fc(f16(3, (2, 64, 3, 16), Values.NORMAL), spikes(4, (7, 384)), fc, True)
    dense = np.zeros((7, 8, 8, 16), np.float16)
    x, weights = f16(5, (7, 10, 10, 3), Values.NORMAL), f16(6, (9, 3, 16), Values.NORMAL)
    engines.accumulate_dense(x, weights, window, 0, 3, dense, True)
    neuron = Neuron(reset=Reset.SOFT, compare=Compare.GE, fire=True, has_pre_bias=False, has_scale=True, has_bias=True)
    params = f16(7, (1, 9, 16), Values.NORMAL)
    soma = engines.soma(psum.reshape(7, 1, 8, 8, 16), SomaPlan(stage1=neuron), params, (None,), False)
    assert soma.spikes is not None
    return [a.tobytes() for a in (patterns, psum, fc, dense, soma.spikes, soma.state[0])]


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    threads = tvm.get_global_func("runtime.NumThreads")()
    configure = tvm.get_global_func("runtime.config_threadpool")
    seen = []
    for count in (1, 2, 3):
        configure(1, count)
        seen.append(outputs())
    configure(1, threads)
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("guard", [False, True])
def test_products_are_not_contracted_where_the_cpu_has_fp16(guard: bool) -> None:
    def product(value):  # type: ignore[no-untyped-def]
        return rounded(value) if guard else value

    @T.prim_func(s_tir=True)
    def axpy(x: T.handle, y: T.handle):  # type: ignore[no-untyped-def]
        X = T.match_buffer(x, (16,), "float16", align=4)
        Y = T.match_buffer(y, (16,), "float16", align=4)
        for v in T.vectorized(16):
            Y[v] = Y[v] + product(X[v] * X[v])

    target = tvm.target.Target({"kind": "llvm", "mcpu": "sapphirerapids"})
    assembly = tvm.compile(axpy, target=target).mod.inspect_source("s")
    assert ("vfmadd" in assembly) is not guard
