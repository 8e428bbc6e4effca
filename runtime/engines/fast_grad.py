"""The Grad unit of the fast engines: a kernel per neuron, from the last to the first."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from runtime.engines.grad_kernels import GradStage, grad_stage_kernel, pool_winners_kernel
from runtime.engines.grad_plan import GradNeuron, GradPlan, GradResult, KeptStage, is_partition
from runtime.engines.soma_kernels import NO_POOL, pool_geometry
from runtime.engines.soma_plan import F16, U8, Pool, PoolKind
from runtime.engines.tvm_build import writeable

NOTHING_KEPT = KeptStage(spikes=None, mask=None, membrane=None)

Values = TypeVar("Values", F16, U8)
Flag = np.ndarray[tuple[int], np.dtype[np.int32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backward:
    """A neuron and the pool in front of it, with what the forward pass kept for them."""

    neuron: GradNeuron | None
    params: F16  # (9, c)
    kept: KeptStage
    carry: F16 | None
    pool: Pool | None
    chosen: U8 | None  # winners of a maximum, or the spikes that it was taken over
    over_spikes: bool
    height: int  # of the map in front of the pool
    width: int
    last: bool  # in front of it lies the Soma's input

    def __call__(self, given: F16, bad: Flag) -> tuple[F16, U8, F16]:
        """Gradient of the input, where that is not 0, and gradient of the first membrane potential."""
        steps, batch, out_h, out_w, channels = given.shape
        sites, unused = batch * out_h * out_w, (1, 1, channels)
        shape = (steps, batch, self.height, self.width, channels)
        geometry, reciprocals = NO_POOL if self.pool is None else pool_geometry(self.pool)
        gradient = np.zeros(shape, np.float16)
        mask = np.zeros(shape if self.last else (1, 1, *unused), np.uint8)
        dm = np.empty((sites, channels), np.float16)
        nothing = np.empty((1, channels), np.float16)
        kept = self.kept
        grad_stage_kernel(self._stage(channels))(
            writeable(given).reshape(steps, sites, channels),
            writeable(self.params),
            np.array([0.0 if self.neuron is None else self.neuron.eta], np.float16),
            np.empty(unused, np.uint8) if kept.spikes is None else _by_site(kept.spikes),
            np.empty(unused, np.uint8) if kept.mask is None else _by_site(kept.mask),
            np.empty(unused, np.float16) if kept.membrane is None else _by_site(kept.membrane),
            nothing if self.carry is None else writeable(self.carry).reshape(sites, channels),
            int(self.carry is not None),
            geometry,
            reciprocals,
            out_h,
            out_w,
            np.empty((1, 1, *unused), np.uint8) if self.chosen is None else writeable(self.chosen),
            gradient,
            mask,
            dm,
            bad,
        )
        return gradient, mask, dm.reshape(given.shape[1:])

    def _stage(self, channels: int) -> GradStage:
        pool = self.pool
        return GradStage(
            channels=channels,
            neuron=None if self.neuron is None else replace(self.neuron, eta=0.0),
            pool=None if pool is None else pool.kind,
            include_pad=pool is not None and pool.include_pad,
            over_spikes=self.over_spikes,
            last=self.last,
        )


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
    values, mask, bad = psum, np.empty(0, np.uint8), np.zeros(1, np.int32)
    first_steps: list[F16] = []
    for step in _walk(plan, params, kept, carry, winners, height, width):
        values, mask, dm = step(values, bad)
        if step.neuron is not None:
            first_steps.insert(0, dm)
    return GradResult(gradient=values, mask=mask, carry=tuple(first_steps), finite=not bad[0])


def pool_winners(x: F16, pre_bias: F16 | None, pool: Pool) -> U8:
    """One call for all maps."""
    assert is_partition(pool)
    channels = x.shape[-1]
    winners = np.zeros(x.shape, np.uint8)
    pool_winners_kernel(channels, pre_bias is not None)(
        writeable(x).reshape(-1, *x.shape[2:]),
        np.empty(channels, np.float16) if pre_bias is None else writeable(pre_bias),
        pool_geometry(pool)[0],
        pool.out_h,
        pool.out_w,
        winners.reshape(-1, *x.shape[2:]),
    )
    return winners


def _walk(
    plan: GradPlan,
    params: F16,
    kept: tuple[KeptStage, ...],
    carry: tuple[F16 | None, ...],
    winners: U8 | None,
    height: int,
    width: int,
) -> list[Backward]:
    steps: list[Backward] = []
    unused = np.empty(params.shape[1:], np.float16)
    if plan.stage2 is not None or plan.pool2 is not None:
        over_spikes = plan.pool2 is not None and plan.pool2.kind is PoolKind.MAX
        assert not over_spikes or kept[0].spikes is not None, "a maximum over spikes was not kept"
        front = (height, width) if plan.pool1 is None else (plan.pool1.out_h, plan.pool1.out_w)
        steps.append(
            Backward(
                neuron=plan.stage2,
                params=unused if plan.stage2 is None else params[-1],
                kept=NOTHING_KEPT if plan.stage2 is None else kept[-1],
                carry=None if plan.stage2 is None else carry[-1],
                pool=plan.pool2,
                chosen=kept[0].spikes if over_spikes else None,
                over_spikes=over_spikes,
                height=front[0],
                width=front[1],
                last=plan.stage1 is None,
            )
        )
    if plan.stage1 is not None:
        steps.append(
            Backward(
                neuron=plan.stage1,
                params=params[0],
                kept=kept[0],
                carry=carry[0],
                pool=plan.pool1,
                chosen=winners,
                over_spikes=False,
                height=height,
                width=width,
                last=True,
            )
        )
    return steps


def _by_site(values: Values) -> Values:
    return writeable(values).reshape(values.shape[0], -1, values.shape[-1])
