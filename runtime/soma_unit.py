"""The Soma of the simulated machine: reads its instruction, keeps its pooling set-up, reports overflow."""

from __future__ import annotations

from collections.abc import MutableMapping
from itertools import islice, product
from typing import cast

import numpy as np

from hwmodel.checker.banks import part_of
from hwmodel.errors import CompileError, Loc
from hwmodel.isa import ENGINE_BUFFERS, NEURON_FIELDS, Buffer, Part, PoolSetup, Queue, Soma, Store
from hwmodel.isa import PoolKind as PoolKindField
from hwmodel.program import Phase, Program, Role
from runtime.engines import (
    F16,
    Engines,
    Neuron,
    Param,
    Pool,
    PoolKind,
    SomaPlan,
    SomaResult,
    StageProbe,
    golden,
)
from runtime.memory import Bank, Values
from runtime.traces import Traces


class SomaUnit:
    """Runs Soma instructions for both engines; its state is the pooling set-up of each."""

    def __init__(self, program: Program, engines: Engines) -> None:
        self._program = program
        self._engines = engines
        self.probe = False  # whether to keep every neuron's spikes and membrane potential
        self._setups: dict[tuple[Queue, int], PoolSetup] = {}
        self._done = [0] * len(program.layers)
        self._phase = Phase.RUN
        self._probes: dict[tuple[Buffer, int], tuple[tuple[StageProbe, ...], tuple[int, int]]] = {}

    def reset(self, phase: Phase) -> None:
        """Forget the last launch; what follows is that phase."""
        self._phase = phase
        self._done = [0] * len(self._program.layers)
        self._probes.clear()

    def set_pool(self, queue: Queue, setup: PoolSetup) -> None:
        """Windows for the next Soma instructions of that queue."""
        self._setups[queue, setup.slot] = setup

    def run(self, queue: Queue, soma: Soma, banks: MutableMapping[tuple[Buffer, int], Bank]) -> None:
        """Execute one instruction on the banks.

        Raises: CompileError naming layer, step and channel where a partial sum or membrane leaves FP16.
        """
        places = ENGINE_BUFFERS[queue]
        x = _over_time(banks[places.psum, soma.psum_bank].values, soma)
        plan = self._plan(queue, soma)
        stages = len(plan.neurons)
        params = np.zeros((0, NEURON_FIELDS, soma.cols), np.float16)
        if stages:
            table = banks[places.neuron, soma.neuron_bank].values
            params = table.reshape(stages, NEURON_FIELDS, soma.cols).view(np.float16)
        state: tuple[F16 | None, ...] = (None,) * stages
        if soma.state_in:
            state = tuple(_state(banks[places.state, stage]) for stage in range(stages))
        result = self._engines.soma(x, plan, params, state, self.probe or soma.keep)
        if not result.finite:
            raise self._overflow(soma, x, plan, params, state)
        self._done[soma.layer] += 1
        self._write(queue, soma, result, banks)
        if soma.keep:
            self._keep(queue, soma, result, banks)
            if plan.pool1 is not None and plan.pool1.kind is PoolKind.MAX:
                bias = params[0, Param.PRE_BIAS] if soma.pre_bias1 else None
                winners = self._engines.pool_winners(cast(F16, x), bias, plan.pool1)
                banks[part_of(places.mask, soma.out_bank, Part.WINNERS)] = Bank(winners)

    def _keep(
        self,
        queue: Queue,
        soma: Soma,
        result: SomaResult,
        banks: MutableMapping[tuple[Buffer, int], Bank],
    ) -> None:
        """What the backward pass needs of each neuron that fires."""
        places = ENGINE_BUFFERS[queue]
        for stage, (probe, membrane) in enumerate(zip(result.probes, (soma.keep_m1, soma.keep_m2), strict=False)):
            if probe.spikes is None:
                continue
            banks[part_of(places.mask, soma.out_bank, Part.FIRST + stage)] = Bank(probe.mask)
            if membrane:
                banks[part_of(places.psum, soma.psum_bank, Part.FIRST + stage)] = Bank(probe.membrane)
        if soma.keep_s1:
            assert result.probes[0].spikes is not None
            banks[part_of(places.out, soma.out_bank, Part.FIRST)] = Bank(result.probes[0].spikes)

    def _write(
        self,
        queue: Queue,
        soma: Soma,
        result: SomaResult,
        banks: MutableMapping[tuple[Buffer, int], Bank],
    ) -> None:
        places = ENGINE_BUFFERS[queue]
        out = (places.psum, soma.psum_bank) if result.spikes is None else (places.out, soma.out_bank)
        values: Values | None = result.membrane if result.spikes is None else result.spikes
        assert values is not None
        banks[out] = Bank(values)
        if soma.state_out:
            for stage, membrane in enumerate(result.state):
                banks[places.state, stage] = Bank(membrane)
        if self.probe:
            setup = self._setups.get((queue, 2)) if soma.pool2 is not PoolKindField.NONE else None
            unit = (setup.stride_h, setup.stride_w) if setup is not None else (1, 1)
            self._probes[out] = (result.probes, unit)

    def record(self, store: Store, traces: Traces) -> None:
        """Place the probes of a stored block in the traces."""
        found = self._probes.pop(part_of(store.buffer, store.bank, store.part), None)
        if found is None:
            return
        probes, unit = found
        for stage, (neuron, probe) in enumerate(zip(self._program.layers[store.layer].neurons, probes, strict=True)):
            if not neuron.node:
                continue
            scale = unit if stage == 0 else (1, 1)
            y0, x0 = store.y0 * scale[0], store.x0 * scale[1]
            height, width = probe.membrane.shape[2:4]
            place = (
                slice(store.t0, store.t0 + store.nt),
                slice(store.n0, store.n0 + store.nn),
                slice(store.c0, store.c0 + store.nc),
                slice(y0, y0 + height),
                slice(x0, x0 + width),
            )
            traces.membranes[neuron.node][place] = probe.membrane.transpose(0, 1, 4, 2, 3)
            if probe.spikes is not None:
                traces.spikes[neuron.node][place] = probe.spikes.transpose(0, 1, 4, 2, 3)

    def _plan(self, queue: Queue, soma: Soma) -> SomaPlan:
        stage1 = (
            Neuron(
                reset=soma.reset1,
                compare=soma.compare1,
                fire=soma.fire1,
                has_pre_bias=soma.pre_bias1,
                has_scale=soma.scale1,
                has_bias=soma.bias1,
            )
            if soma.present1
            else None
        )
        stage2 = (
            Neuron(
                reset=soma.reset2,
                compare=soma.compare2,
                fire=soma.fire2,
                has_pre_bias=False,
                has_scale=soma.scale2,
                has_bias=soma.bias2,
            )
            if soma.present2
            else None
        )
        return SomaPlan(
            stage1=stage1,
            pool1=self._pool(queue, 1, soma.pool1),
            pool2=self._pool(queue, 2, soma.pool2),
            stage2=stage2,
        )

    def _pool(self, queue: Queue, slot: int, kind: PoolKindField) -> Pool | None:
        return None if kind is PoolKindField.NONE else pool_from(self._setups[queue, slot], kind)

    def _overflow(
        self, soma: Soma, x: Values, plan: SomaPlan, params: F16, state: tuple[F16 | None, ...]
    ) -> CompileError:
        """Where the first value left FP16; the golden engine tells, since it keeps every step."""
        layer = self._program.layers[soma.layer]
        step, sample, channel = _first_overflow(x, plan, params, state)
        has_averages = any(pool is not None and pool.kind is PoolKind.AVG for pool in (plan.pool1, plan.pool2))
        what = "sum in the Soma (pooling or membrane potential)" if has_averages else "membrane potential"
        with np.errstate(over="ignore"):
            biased = x[step, sample, :, :, channel] + (params[0, Param.PRE_BIAS, channel] if len(params) else 0)
        if not np.isfinite(biased).all():
            what = "partial sum"
        place = self._place(soma)
        return CompileError(
            f"{layer.name}: a {what} overflows FP16 at step {place.t0 + step}, channel {place.c0 + channel}, "
            f"sample {place.n0 + sample} of the sub-batch",
            Loc(self._program.name),
            hint="scale the layer's weights, threshold and bias down together",
        )

    def _place(self, soma: Soma) -> Store:
        """Where the results of this Soma instruction go: the stores of a layer stand in the same order."""
        stores = (
            instruction
            for stream in self._program.phases[self._phase].values()
            for instruction in stream
            if isinstance(instruction, Store)
            and instruction.layer == soma.layer
            and self._program.tensors[instruction.tensor].role in (Role.ACTIVATION, Role.OUTPUT)
        )
        return next(islice(stores, self._done[soma.layer], None))


def pool_from(setup: PoolSetup, kind: PoolKindField) -> Pool:
    """The windows of a set-up."""
    return Pool(
        kind=PoolKind(kind.value),
        kernel_h=setup.kernel_h,
        kernel_w=setup.kernel_w,
        stride_h=setup.stride_h,
        stride_w=setup.stride_w,
        out_h=setup.out_h,
        out_w=setup.out_w,
        top=setup.top,
        left=setup.left,
        limit_h=setup.limit_h,
        limit_w=setup.limit_w,
        include_pad=setup.include_pad,
    )


def _first_overflow(x: Values, plan: SomaPlan, params: F16, state: tuple[F16 | None, ...]) -> tuple[int, int, int]:
    """Step, sample and channel of the first value that leaves FP16: channels and samples do not meet in the Soma."""
    engines = golden()

    def is_finite(steps: int, sample: int, channel: int) -> bool:
        part = cast(Values, np.ascontiguousarray(x[:steps, sample : sample + 1, :, :, channel : channel + 1]))
        before = tuple(
            None if s is None else np.ascontiguousarray(s[sample : sample + 1, :, :, channel : channel + 1])
            for s in state
        )
        table = np.ascontiguousarray(params[:, :, channel : channel + 1])
        with np.errstate(all="ignore"):
            return engines.soma(part, plan, table, before, False).finite

    steps, samples, _, _, channels = x.shape
    sample, channel = next((n, c) for n, c in product(range(samples), range(channels)) if not is_finite(steps, n, c))
    return next(t for t in range(steps) if not is_finite(t + 1, sample, channel)), sample, channel


def _over_time(values: Values, soma: Soma) -> Values:
    """The Soma's input with time and sample apart; a source that was held is the same at each step."""
    height, width, cols = values.shape[1:]
    steps = values.reshape(-1, soma.nn, height, width, cols)
    if len(steps) == soma.nt:
        return steps
    return np.ascontiguousarray(np.broadcast_to(steps, (soma.nt, *steps.shape[1:])))


def _state(bank: Bank) -> F16:
    values = bank.values
    assert values.dtype == np.float16
    return values  # type: ignore[return-value]
