"""Golden Grad unit: neurons and pooling backwards in NumPy float16, one rounding per operation."""

from __future__ import annotations

import numpy as np

from runtime.engines.golden_soma import pool_window
from runtime.engines.grad_plan import GradNeuron, GradPlan, GradResult, KeptStage, is_partition
from runtime.engines.soma_plan import F16, U8, Param, Pool, PoolKind, Reset


def spike_gradient(given: F16, g: F16, membrane: F16 | None, neuron: GradNeuron, params: F16) -> F16:
    """Phase 1, equation 2.4: what the spikes of one step are worth, through the layer behind and the reset."""
    if neuron.detach:
        return given
    match neuron.reset:
        case Reset.HARD:
            assert membrane is not None
            change: F16 = params[Param.RESET_VALUE] - membrane
            through_reset = g * change
            return given + through_reset
        case Reset.SOFT:
            threshold: F16 = params[Param.THRESHOLD]
            subtracted = g * threshold
            return given - subtracted
        case Reset.NONE:
            return given


def membrane_gradient(given: F16, g: F16, kept: KeptStage, t: int, neuron: GradNeuron, params: F16) -> F16:
    """Phase 2, equation 2.5: the gradient of the membrane potential of step t."""
    if not neuron.fire:
        return given + g
    assert kept.mask is not None
    spike = spike_gradient(given, g, None if kept.membrane is None else kept.membrane[t], neuron, params)
    through_spike = np.where(kept.mask[t], spike * np.float16(neuron.eta), np.float16(0))
    if neuron.needs_spikes:
        assert kept.spikes is not None
        g = np.where(kept.spikes[t], np.float16(0), g)
    return g + through_spike


def neuron_backward(
    given: F16, neuron: GradNeuron, params: F16, kept: KeptStage, carry: F16 | None
) -> tuple[F16, F16, bool]:
    """One stage backwards: gradient of its input, of its first membrane potential, and whether all was finite."""
    dm = np.zeros(given.shape[1:], np.float16) if carry is None else carry
    result, finite = np.empty_like(given), True
    for t in reversed(range(len(given))):
        g = params[Param.DECAY] * dm
        dm = membrane_gradient(given[t], g, kept, t, neuron, params)
        result[t] = dm * params[Param.SCALE] if neuron.has_scale else dm
        finite &= bool(np.isfinite(dm).all() and np.isfinite(result[t]).all())
    return result, np.array(dm, np.float16), finite


def pool_backward(given: F16, pool: Pool, chosen: U8 | None, height: int, width: int) -> F16:
    """Hand the gradient of each window to its elements: an equal share, or all to the chosen one."""
    out = np.zeros((*given.shape[:2], height, width, given.shape[-1]), np.float16)
    reciprocals = pool.reciprocals()
    for oy, ox in np.ndindex(pool.out_h, pool.out_w):
        rows, columns, divisor = pool_window(pool, oy, ox, height, width)
        g = given[:, :, oy : oy + 1, ox : ox + 1]
        if pool.kind is PoolKind.AVG:
            out[:, :, rows, columns] = g * reciprocals[divisor]
        else:
            assert chosen is not None
            out[:, :, rows, columns] = np.where(chosen[:, :, rows, columns], g, np.float16(0))
    return out


def first_maxima(x: F16 | U8, pool: Pool) -> U8:
    """One-hot first maximum of each window in raster order. Shapes: (T, N, h, w, c) -> the same."""
    assert is_partition(pool)
    out = np.zeros(x.shape, np.uint8)
    for oy, ox in np.ndindex(pool.out_h, pool.out_w):
        rows, columns, _ = pool_window(pool, oy, ox, *x.shape[2:4])
        taken = x[:, :, rows, columns]
        places = list(np.ndindex(taken.shape[2:4]))
        best, winner = taken[:, :, 0, 0], np.zeros((*x.shape[:2], x.shape[-1]), np.intp)
        for k, (y, left) in enumerate(places):
            larger = taken[:, :, y, left] > best
            best = np.where(larger, taken[:, :, y, left], best)
            winner = np.where(larger, k, winner)
        for k, (y, left) in enumerate(places):
            out[:, :, rows, columns][:, :, y, left] = winner == k
    return out


def pool_winners(x: F16, pre_bias: F16 | None, pool: Pool) -> U8:
    """The elements that the Soma's max pooling takes."""
    return first_maxima(x if pre_bias is None else x + pre_bias, pool)


def _through_pool2(given: F16, plan: GradPlan, kept: tuple[KeptStage, ...], height: int, width: int) -> F16:
    pool = plan.pool2
    if pool is None:
        return given
    chosen = None
    if pool.kind is PoolKind.MAX:
        assert kept[0].spikes is not None
        chosen = first_maxima(kept[0].spikes, pool)
    if plan.pool1 is not None:
        height, width = plan.pool1.out_h, plan.pool1.out_w
    return pool_backward(given, pool, chosen, height, width)


def grad(
    psum: F16,
    plan: GradPlan,
    params: F16,
    kept: tuple[KeptStage, ...],
    carry: tuple[F16 | None, ...],
    winners: U8 | None,
    height: int,
    width: int,
) -> GradResult:
    """Walk the stages of a plan from the last to the first."""
    stages = kept[1:] if plan.keeps_source else kept
    assert len(params) == len(stages) == len(carry) == len(plan.neurons)
    values, finite, first_steps = psum, True, []
    if plan.stage2 is not None:
        values, dm, ok = neuron_backward(values, plan.stage2, params[-1], stages[-1], carry[-1])
        first_steps.append(dm)
        finite &= ok
    values = _through_pool2(values, plan, kept, height, width)
    if plan.stage1 is not None:
        values, dm, ok = neuron_backward(values, plan.stage1, params[0], stages[0], carry[0])
        first_steps.insert(0, dm)
        finite &= ok
    if plan.pool1 is not None:
        values = pool_backward(values, plan.pool1, winners, height, width)
    assert values.shape[2:4] == (height, width)
    return GradResult(
        gradient=values,
        mask=(values != 0).astype(np.uint8),
        carry=tuple(first_steps),
        finite=finite and bool(np.isfinite(values).all()),
    )
