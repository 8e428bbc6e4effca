"""Kernels of a population, compiled for this CPU and kept for the next test that wants them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from tvm.ir import IRModule

from compiler.fused.cpu import cpu_kernel, vector_lanes
from compiler.fused.finish import finish_kernels
from compiler.fused.population import Norm, Population
from compiler.tvm_setup import host_target, tvm
from tests.compiler.fused.reference import Case

Kernels = dict[str, Callable[..., None]]
GROUPS = 5  # of partial sums: more than one, and no divisor of most sizes


@lru_cache(maxsize=64)
def compiled(population: Population, *, tail: bool) -> Kernels:
    """The population's kernels and its finishing kernels by name."""
    functions = {
        str(name): cpu_kernel(population, name, lanes=vector_lanes(), tail=tail) for name in population.kernels
    }
    functions |= {str(name): function for name, function in finish_kernels(population).items()}
    executable = tvm.compile(IRModule(functions), target=host_target())
    return {name: executable[name] for name in functions}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What the kernels of a training step wrote; `again` is the result that the backward pass writes."""

    y: Tensor
    again: Tensor
    grad_x: Tensor
    grad_weight: Tensor
    grad_bias: Tensor


def run(case: Case, *, shift: int = 0) -> Run:
    """The kernels on the case's data; `shift`: elements by which arrays stand off their buffers' starts."""
    population = case.population
    kernels = compiled(population, tail=True)
    dtype = getattr(torch, str(population.activation))
    channels, steps = case.x.shape[-1], 1 if population.repeated else population.timesteps
    count = case.x.numel() / channels / steps * population.timesteps  # a repeated value counts at each step
    flat = population.window is None

    def array(values: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        buffer = torch.zeros(values.numel() + shift, dtype=dtype)[shift:].view(values.shape)
        return buffer.copy_(values)

    def pixels(values: Tensor) -> Tensor:
        return array(values.flatten(-4, -2) if flat else values, dtype)

    x, grad_y = pixels(case.x), pixels(case.grad_y)
    y, again = torch.full_like(grad_y, torch.nan), torch.full_like(grad_y, torch.nan)
    table = array(torch.full((len(population.rows), channels), torch.nan))
    for name in set(population.rows) & set(case.rows):
        table[population.rows.index(name)] = case.rows[name]
    tables = [table] if population.rows else []
    sums = torch.full((GROUPS, 2, channels), torch.nan, dtype=torch.float64)
    reciprocal, grad_weight, grad_bias = torch.zeros(channels, dtype=torch.float64), *torch.zeros(2, channels)
    scale, leak = (case.number(name, torch.float32).contiguous() for name in ("input_scale", "leak_bias"))
    moments = torch.stack([case.mean, case.var]).double()
    if population.norm is Norm.BATCH:
        flat_x = x.view(*x.shape[: 0 if population.repeated else 1], -1, channels)
        kernels["statistics"](flat_x, sums)
        kernels["moments"](flat_x, sums, moments)
    if population.norm is not Norm.NONE:
        kernels["table"](moments, case.weight, case.bias, scale, leak, table, reciprocal, case.eps)
    kernels["forward"](x, *tables, y)
    grad_x = grad_y if population.in_place else torch.full_like(x, torch.nan)
    grads = [grad_y] if population.in_place else [grad_y, grad_x]
    totals = torch.zeros(2, channels, dtype=torch.float64)

    def finish() -> None:
        kernels["totals"](sums, totals)
        kernels["gradients"](totals, totals, reciprocal, scale, table, grad_weight, grad_bias, count)

    if population.norm is Norm.BATCH:
        kernels["gradient_sums"](x, table, grad_y, sums, again)
        finish()
        kernels["gradient_input"](x, table, *grads)
    else:
        running = population.norm is Norm.RUNNING
        kernels["gradient"](x, *tables, *grads, *([sums] if running else []), again)
        if running:
            finish()
    return Run(
        y=y.view(case.grad_y.shape),
        again=again.view(case.grad_y.shape),
        grad_x=grad_x.view(case.x.shape),
        grad_weight=grad_weight,
        grad_bias=grad_bias,
    )
