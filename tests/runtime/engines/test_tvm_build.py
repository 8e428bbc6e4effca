"""Compiled kernels: independent of the number of threads, and products stay rounded on every CPU."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.engines import (
    GradNeuron,
    GradPlan,
    GradWindow,
    KeptStage,
    Neuron,
    Sgd,
    SomaPlan,
    Window,
    fast,
)
from runtime.engines.fp16_expressions import f16 as rounded_f16
from runtime.engines.fp16_expressions import f32
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
    return [a.tobytes() for a in (patterns, psum, fc, dense, soma.spikes, soma.state[0], *training_outputs())]


def training_outputs() -> list[np.ndarray]:
    """The same of the engines that training adds; so many channels that their parts depend on the threads."""
    engines = fast()
    g = f16(8, (4, 2, 5, 8, 16), Values.NORMAL)
    maps = g.reshape(8, 5, 8, 16)
    window = GradWindow(kernel_h=3, kernel_w=3, stride_h=1, stride_w=1, out_h=5, out_w=8, top=1, left=1)
    gradient = np.zeros((8, 5, 8, 20), np.float16)
    weights = f16(9, (9, 20, 16), Values.NORMAL)
    engines.accumulate_gradient(maps, None, weights, spikes(10, gradient.shape), window, gradient, True)
    fc = np.zeros((4, 9, 20), np.float16)
    engines.accumulate_fc_gradient(f16(11, (4, 16), Values.NORMAL), weights, fc, True)
    one = Window(kernel_h=1, kernel_w=1, stride_h=1, stride_w=1, out_h=5, out_w=8)
    outer, update = np.zeros((1, 7, 16), np.float16), np.zeros((1, 200, 16), np.float16)
    engines.accumulate_outer(f16(12, (8, 5, 8, 7), Values.NORMAL), maps, one, outer, True)
    patterns = engines.update_patterns(spikes(13, (8, 5, 8, 200)), one)
    engines.accumulate_update(g, patterns, update, True)
    fc_update = np.zeros((200, 16), np.float16)
    engines.accumulate_update_fc(f16(22, (4, 2, 16), Values.NORMAL), spikes(14, (4, 2, 200)), fc_update, True)
    neuron = GradNeuron(reset=Reset.HARD, fire=True, detach=False, has_scale=True, eta=1.0)
    kept = KeptStage(spikes=spikes(15, g.shape), mask=spikes(16, g.shape), membrane=f16(17, g.shape, Values.NORMAL))
    plan = GradPlan(stage1=neuron, pool1=None, pool2=None, stage2=None)
    grad = engines.grad(g, plan, f16(18, (1, 9, 16), Values.NORMAL), (kept,), (None,), None, 5, 8)
    assert grad.finite
    many = [f16(seed, (9000,), Values.NORMAL) for seed in (19, 20, 21)]
    sgd = engines.sgd(many[0], many[1], many[2], Sgd(learning_rate=0.1, momentum=0.9, weight_decay=0.1, scale=32.0))
    assert sgd.momentum is not None
    counts = np.array([sgd.changed, sgd.lost])
    arrays = [gradient, fc, outer, patterns, update, fc_update]
    return [*arrays, grad.gradient, grad.mask, grad.carry[0], sgd.weight, sgd.momentum, counts]


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


def test_arithmetic_in_f32_is_not_contracted_where_the_cpu_has_fp16() -> None:
    @T.prim_func(s_tir=True)
    def axpy(x: T.handle, y: T.handle):  # type: ignore[no-untyped-def]
        X = T.match_buffer(x, (16,), "float16", align=4)
        Y = T.match_buffer(y, (16,), "float16", align=4)
        for v in T.vectorized(16):
            Y[v] = rounded_f16(f32(Y[v]) + f32(rounded_f16(f32(X[v]) * f32(X[v]))))

    for cpu in ("sapphirerapids", "x86-64-v4", "x86-64-v3"):
        target = tvm.target.Target({"kind": "llvm", "mcpu": cpu})
        assert "vfmadd" not in tvm.compile(axpy, target=target).mod.inspect_source("s")
