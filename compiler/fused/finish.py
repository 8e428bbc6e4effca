"""Small kernels between the large ones: partial sums become moments, moments become rows of the table."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from functools import partial

from compiler.fused.cpu_cell import SUMS, stack
from compiler.fused.emit import Buffer, Expr, T, argument, f32, kernel, put, tirx
from compiler.fused.population import Norm, Population


class FinishName(StrEnum):
    """The finishing kernels of a batch norm and their arguments; sums and moments are f64, C channels.

    moments    X, P, M: mean and biased variance (2, C) from the partial sums of `statistics`
    table      M, weight, bias, scale, leak, table, R, eps: rows shift, gain and offset; R (C,) = 1 / sqrt(var + eps)
    totals     P, S: partial sums (groups, 2, C) added up to (2, C)
    gradients  S, S_all, R, scale, table, grad_weight, grad_bias, count: the parameters' gradients from this process's
               sums; rows mean_grad and mean_grad_x from the sums of all processes over `count` values

    weight, bias (C,) as in the batch norm, scale and leak (C,) the neurons' input_scale and leak_bias.
    Source: equations 4.2, 4.3, 4.5 and 4.6.
    """

    MOMENTS = "moments"
    TABLE = "table"
    TOTALS = "totals"
    GRADIENTS = "gradients"


def finish_kernels(population: Population) -> dict[FinishName, tirx.PrimFunc]:
    """The finishing kernels that the population's batch norm needs; none without one."""
    if population.norm is Norm.NONE:
        return {}
    writers: dict[FinishName, Callable[[Population], None]] = {
        FinishName.TABLE: _table,
        FinishName.TOTALS: _totals,
        FinishName.GRADIENTS: _gradients,
    }
    if population.norm is Norm.BATCH:
        writers[FinishName.MOMENTS] = _moments
    return {name: kernel(name, partial(write, population)) for name, write in writers.items()}


def _moments(population: Population) -> None:
    n, groups, channels = T.int64(), T.int64(), T.int64()
    lead = [] if population.repeated else [population.timesteps]
    x = argument("x", [*lead, n, channels], str(population.activation))
    sums = argument("sums", [groups, 2, channels], SUMS)
    moments = argument("moments", [2, channels], SUMS)
    count = T.cast(n * (1 if population.repeated else population.timesteps), SUMS)
    with T.serial(channels) as channel:
        first, second = _total(sums, 0, channel), _total(sums, 1, channel)
        pivot = x[0, channel] if population.repeated else x[0, 0, channel]
        mean = first[0] / count
        put(moments, T.cast(f32(pivot), SUMS) + mean, 0, channel)
        put(moments, T.max(second[0] / count - mean * mean, T.float64(0)), 1, channel)


def _table(population: Population) -> None:
    channels = T.int64()
    moments = argument("moments", [2, channels], SUMS)
    weight, bias, scale, leak = (argument(name, [channels]) for name in ("weight", "bias", "scale", "leak"))
    table = argument("table", [len(population.rows), channels])
    reciprocal = argument("reciprocal", [channels], SUMS)
    eps = T.arg("eps", T.float64())
    shift, gain, offset = (population.rows.index(name) for name in ("shift", "gain", "offset"))
    with T.serial(channels) as channel:
        put(reciprocal, T.float64(1) / T.sqrt(moments[1, channel] + eps), channel)
        factor = _wide(scale[channel])
        put(table, f32(moments[0, channel]), shift, channel)
        put(table, f32(_wide(weight[channel]) * reciprocal[channel] * factor), gain, channel)
        put(table, f32(_wide(bias[channel]) * factor + _wide(leak[channel])), offset, channel)


def _totals(population: Population) -> None:
    groups, channels = T.int64(), T.int64()
    sums = argument("sums", [groups, 2, channels], SUMS)
    totals = argument("totals", [2, channels], SUMS)
    with T.serial(2) as at, T.serial(channels) as channel:
        put(totals, _total(sums, at, channel)[0], at, channel)


def _gradients(population: Population) -> None:
    channels = T.int64()
    own, everywhere = (argument(name, [2, channels], SUMS) for name in ("own", "everywhere"))
    reciprocal = argument("reciprocal", [channels], SUMS)
    scale = argument("scale", [channels])
    table = argument("table", [len(population.rows), channels])
    grad_weight, grad_bias = (argument(name, [channels]) for name in ("grad_weight", "grad_bias"))
    count = T.arg("count", T.float64())
    with T.serial(channels) as channel:
        factor = _wide(scale[channel])
        put(grad_bias, f32(factor * own[0, channel]), channel)
        put(grad_weight, f32(factor * reciprocal[channel] * own[1, channel]), channel)
        if population.norm is Norm.BATCH:
            mean_grad, mean_grad_x = (population.rows.index(name) for name in ("mean_grad", "mean_grad_x"))
            put(table, f32(everywhere[0, channel] / count), mean_grad, channel)
            squared = reciprocal[channel] * reciprocal[channel]
            put(table, f32(squared * everywhere[1, channel] / count), mean_grad_x, channel)


def _total(sums: Buffer, at: Expr | int, channel: Expr) -> Buffer:
    """One sum of a channel over all groups, in a register."""
    total = stack(1, dtype=SUMS)
    put(total, T.float64(0), 0)
    with T.serial(sums.shape[0]) as group:
        put(total, total[0] + sums[group, at, channel], 0)
    return total


def _wide(value: Expr) -> Expr:
    return T.cast(value, SUMS)
