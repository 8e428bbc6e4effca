"""Golden Soma unit: pooling, neuron update and gradient mask in NumPy float16, one rounding per operation."""

from __future__ import annotations

import numpy as np

from runtime.engines.soma_plan import (
    F16,
    U8,
    Compare,
    Neuron,
    Param,
    Pool,
    PoolKind,
    Reset,
    SomaPlan,
    SomaResult,
    StageProbe,
)


def pool_window(pool: Pool, oy: int, ox: int, height: int, width: int) -> tuple[slice, slice, int]:
    """Valid rows and columns of one output position, and the divisor of its average."""
    y0, x0 = pool.top + oy * pool.stride_h, pool.left + ox * pool.stride_w
    y1, x1 = min(y0 + pool.kernel_h, pool.limit_h), min(x0 + pool.kernel_w, pool.limit_w)
    rows, columns = slice(max(y0, 0), min(y1, height)), slice(max(x0, 0), min(x1, width))
    valid = (rows.stop - rows.start) * (columns.stop - columns.start)
    assert min(rows.stop - rows.start, columns.stop - columns.start) > 0, "a pooling window holds no data"
    return rows, columns, (y1 - y0) * (x1 - x0) if pool.include_pad else valid


def pooled(x: F16, pool: Pool) -> tuple[F16, bool]:
    """Pool the two axes before the last; also whether every element that took part was finite."""
    out = np.zeros((*x.shape[:2], pool.out_h, pool.out_w, x.shape[-1]), np.float16)
    reciprocals, finite = pool.reciprocals(), True
    for oy in range(pool.out_h):
        for ox in range(pool.out_w):
            rows, columns, divisor = pool_window(pool, oy, ox, *x.shape[2:4])
            taken = x[:, :, rows, columns].reshape(*x.shape[:2], -1, x.shape[-1])
            finite &= bool(np.isfinite(taken).all())
            if pool.kind is PoolKind.AVG:
                total = np.zeros_like(out[:, :, oy, ox])
                for k in range(taken.shape[2]):
                    total = total + taken[:, :, k]
                out[:, :, oy, ox] = total * reciprocals[divisor]
            else:
                best = taken[:, :, 0]
                for k in range(1, taken.shape[2]):
                    best = np.where(taken[:, :, k] > best, taken[:, :, k], best)
                out[:, :, oy, ox] = best
    return out, finite


def _fires(m: F16, threshold: F16, compare: Compare) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    match compare:
        case Compare.GE:
            return m >= threshold
        case Compare.GT:
            return m > threshold


def _after_spike(m: F16, params: F16, reset: Reset) -> F16:
    match reset:
        case Reset.HARD:
            reset_value: F16 = params[Param.RESET_VALUE]
            return np.broadcast_to(reset_value, m.shape)
        case Reset.SOFT:
            threshold: F16 = params[Param.THRESHOLD]
            return m - threshold
        case Reset.NONE:
            return m


def stage(x: F16, pool: Pool | None, neuron: Neuron, params: F16, state: F16 | None) -> tuple[StageProbe, F16, bool]:
    """One neuron stage over all steps: what it computed, its last state, and whether all was finite."""
    finite = True
    if neuron.has_pre_bias:
        x = x + params[Param.PRE_BIAS]
    if pool is not None:
        x, finite = pooled(x, pool)
    if neuron.has_scale:
        x = x * params[Param.SCALE]
    if neuron.has_bias:
        x = x + params[Param.BIAS]
    v = np.broadcast_to(params[Param.INITIAL], x.shape[1:]) if state is None else state
    membrane = np.zeros(x.shape, np.float16)
    spikes = np.zeros(x.shape, np.uint8)
    for t in range(x.shape[0]):
        m = params[Param.DECAY] * v + x[t]
        membrane[t] = v = m
        if neuron.fire:
            fired = _fires(m, params[Param.THRESHOLD], neuron.compare)
            spikes[t] = fired
            v = np.where(fired, _after_spike(m, params, neuron.reset), m)
    finite &= bool(np.isfinite(x).all() and np.isfinite(membrane).all())
    mask = ((params[Param.TH_L] < membrane) & (membrane < params[Param.TH_R])).astype(np.uint8)
    probe = StageProbe(spikes=spikes if neuron.fire else None, membrane=membrane, mask=mask)
    return probe, np.array(v, np.float16), finite


def soma(x: F16 | U8, plan: SomaPlan, params: F16, state: tuple[F16 | None, ...], probe: bool) -> SomaResult:
    """Run the stages of a plan one after the other."""
    assert params.shape[0] == len(state) == len(plan.neurons)
    steps = [(plan.stage1, plan.pool1), (plan.stage2, plan.pool2)]
    values, finite = x.astype(np.float16), True
    probes: list[StageProbe] = []
    states: list[F16] = []
    for neuron, pool in steps:
        if neuron is not None:
            k = len(probes)
            result, last, ok = stage(values, pool, neuron, params[k], state[k])
            probes.append(result)
            states.append(last)
            values = result.membrane if result.spikes is None else result.spikes.astype(np.float16)
        elif pool is not None:
            assert plan.stage1 is not None or x.dtype == np.uint8, "only spikes are pooled without a neuron"
            values, ok = pooled(values, pool)
        else:
            continue
        finite &= ok
    return SomaResult(
        spikes=values.astype(np.uint8) if plan.spiking else None,
        membrane=None if plan.spiking else values,
        state=tuple(states),
        finite=finite,
        probes=tuple(probes) if probe else (),
    )
