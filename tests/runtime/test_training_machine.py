"""A training step on the machine: golden against fast bit for bit, and each layer against the training graph in f64."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, event, given, note, settings
from hypothesis import strategies as st

from compiler.differentiate import differentiate, run_training
from compiler.evaluate import evaluate
from compiler.h2learn.compile_training import CompiledTraining, compile_training
from compiler.h2learn.emit_sgd import Descent
from compiler.ir import CompileError, Encoding, Graph, Reset, Surrogate
from compiler.ir.ops import Li, Lif
from compiler.losses import Loss
from hwmodel.config import H2LearnConfig
from hwmodel.isa import Grad, GradConvTile, GradFcTile, OuterTile, Queue, UpdateFcTile, UpdateTile
from hwmodel.program import Phase, Program
from runtime.engines import F16, U8, Engines, GradPlan, GradResult, GradWindow, KeptStage
from runtime.engines.golden_engines import GoldenEngines
from runtime.host import F32
from runtime.host_loss import Labels
from runtime.memory import Values
from runtime.session import engines_for
from runtime.training_session import TrainingSession
from tests.hwmodel.training_programs import made_if_trainable
from tests.runtime.chains import CONFIG, SPLIT, TINIEST, Chain, halves, training_program
from tests.runtime.fp16_bounds import TINY, U
from tests.runtime.trained_layers import Comparison, Reference
from tests.runtime.trained_step import Step, run_step
from tests.strategies import RandomNetwork, networks

Given, Found = TypeVar("Given"), TypeVar("Found")
SLOW_DATA = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
CONFIGS = {"preset": CONFIG, "split": SPLIT, "tiniest": TINIEST}
CODES = tuple(Encoding)
TRAINABLE = {"trainable": True, "dyadic": False, "encodings": CODES, "late_encode": True, "max_size": 10}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Case:
    """A random network with samples, labels, and how it is trained."""

    compiled: CompiledTraining
    x: F32
    labels: Labels

    def __repr__(self) -> str:
        program = self.program
        nodes = "".join(f"\n  {node.name}: {node.op}" for node in self.compiled.graph.nodes)
        sizes = f"x {self.x.shape}, sub-batch {program.batch}, backward {program.config.backward.buffers_kb}"
        training = program.training
        assert training is not None
        return f"{sizes}, machines {training.machines}, loss {training.loss} x {training.loss_scale}{nodes}"

    @property
    def program(self) -> Program:
        return self.compiled.program


@st.composite
def cases(draw: st.DrawFn, max_timesteps: int = 23) -> Case:
    network: RandomNetwork = draw(networks(**TRAINABLE, max_timesteps=max_timesteps, max_batch=7))
    descent = Descent(
        learning_rate=draw(st.sampled_from([0.1, 0.03])),
        momentum=draw(st.sampled_from([0.0, 0.9])),
        weight_decay=draw(st.sampled_from([0.0, 0.01])),
        loss_scale=draw(st.sampled_from([16.0, 1.0, 100.0])),
        batch_group=draw(st.integers(1, 3)),
        machines=draw(st.integers(1, 3)),
    )
    config = CONFIGS[draw(st.sampled_from(sorted(CONFIGS)))]
    loss, batch = draw(st.sampled_from(Loss)), draw(st.integers(1, 5))
    compiled = made_if_trainable(
        lambda: compile_training(network.graph, config, loss=loss, batch=batch, descent=descent)
    )
    return Case(compiled=compiled, x=network.example, labels=_labels(compiled.program, network.example))


def _labels(program: Program, x: F32) -> Labels:
    samples = x.shape[1 if program.host.input_has_time else 0]
    classes = int(np.prod(program.tensors[program.output_index].shape[2:]))
    return np.random.default_rng(7).integers(0, classes, samples)


def _same_bits(left: Mapping[str, Values], right: Mapping[str, Values]) -> list[str]:
    """Names of the arrays that differ in a bit."""
    assert left.keys() == right.keys()
    return [name for name in left if left[name].tobytes() != right[name].tobytes()]


# -- golden against fast ----------------------------------------------------------------------------------------------


def _check_fast_equals_golden(case: Case) -> None:
    """All maps in memory, all sums of gradients, then weights, momentum and reports of two updates."""
    golden, fast = (engines_for(case.program, use_golden=use) for use in (True, False))
    steps = _equally(lambda engines: run_step(case.program, engines, case.x, case.labels), (golden, fast))
    if not steps:
        return
    for left, right in zip(steps[0].sub_batches, steps[1].sub_batches, strict=True):
        assert _same_bits(left.maps, right.maps) == []
    assert all(torch.equal(steps[0].gradients[name], steps[1].gradients[name]) for name in steps[0].gradients)
    sessions = [TrainingSession(case.program, engines) for engines in (golden, fast)]
    for _ in range(2):
        reports = _equally(lambda session: session.step(case.x, case.labels), sessions)
        assert not reports or reports[0] == reports[1]
        assert _same_bits(sessions[0].state(), sessions[1].state()) == []


def _equally(work: Callable[[Given], Found], both: Iterable[Given]) -> list[Found]:
    """The results of both; none where both leave FP16 at the same place."""
    results, faults = [], []
    for one in both:
        try:
            results.append(work(one))
        except CompileError as fault:
            faults.append(fault.message)
    assert len(results) == 2 or (len(faults) == 2 and faults[0] == faults[1])
    event("overflow" if faults else "no overflow")
    return results


@settings(max_examples=5, deadline=None, suppress_health_check=SLOW_DATA)
@given(case=cases())
def test_fast_equals_golden_bit_for_bit(case: Case) -> None:
    _check_fast_equals_golden(case)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=SLOW_DATA)
@given(case=cases())
def test_fast_equals_golden_bit_for_bit_at_length(case: Case) -> None:
    _check_fast_equals_golden(case)


def _network(timesteps: int = 13) -> Graph:
    """All kinds of layers: real input, groups, an average, maxima of sums and of spikes, every reset, an integrator."""
    wide = {"surrogate": Surrogate(width=1.0)}
    chain = Chain((2, 13, 12), timesteps, seed=2).conv("conv1", 18).average("pool1").lif("lif1", **wide)
    chain.conv("conv2", 12, groups=3).lif("lif2", reset=Reset.SOFT, **wide).maximum("pool2")
    chain.conv("conv3", 20).maximum("pool3").lif("lif3", reset_value=0.125, **wide)
    chain.flatten().linear("fc1", 18).lif("lif4", reset=Reset.NONE, **wide).linear("fc2", 5).add("li", Li(decay=0.75))
    return chain.readout()


def _samples(count: int) -> tuple[F32, Labels]:
    rng = np.random.default_rng(11)
    return rng.random((count, 2, 13, 12), np.float32), rng.integers(0, 5, count)


def test_small_buffers_split_everything_and_change_nothing_but_sums() -> None:
    """Time, samples, tiles, rows and columns are split; the gradients of the layers keep their bits."""
    x, labels = _samples(4)
    programs = [training_program(_network(), batch=4, config=config) for config in (CONFIG, SPLIT)]
    counts = [_tiles(program) for program in programs]
    assert all(counts[1][kind] > counts[0][kind] for kind in ("grad", "update", "outer"))
    whole, split = (run_step(program, engines_for(program, use_golden=True), x, labels) for program in programs)
    for left, right in zip(whole.sub_batches, split.sub_batches, strict=True):
        wanted = {name: maps for name, maps in left.maps.items() if "state" not in name}
        assert _same_bits(wanted, {name: right.maps[name] for name in wanted}) == []


def test_the_tiniest_buffers_split_time_channels_rows_and_tiles() -> None:
    program = training_program(_network(timesteps=5), batch=2, config=TINIEST)
    stream = [i for q in (Queue.BE, Queue.WUE) for i in program.phases[Phase.BACKWARD][q]]
    grads = [i for i in stream if isinstance(i, Grad)]
    assert any(grad.state_in for grad in grads)
    assert min(grad.nt for grad in grads) < 5
    assert max(grad.cols for grad in grads) <= 4
    for kind in (GradConvTile, GradFcTile, UpdateTile, UpdateFcTile, OuterTile):
        assert any(i.accumulate for i in stream if isinstance(i, kind)), kind


def _tiles(program: Program) -> dict[str, int]:
    stream = [i for q in (Queue.BE, Queue.WUE) for i in program.phases[Phase.BACKWARD][q]]
    kinds = {"grad": Grad, "update": UpdateTile, "outer": OuterTile}
    return {name: sum(isinstance(i, kind) for i in stream) for name, kind in kinds.items()}


# -- the machine against the training graph ---------------------------------------------------------------------------


def _check_every_layer(case: Case) -> None:
    try:
        step = run_step(case.program, engines_for(case.program, use_golden=True), case.x, case.labels)
    except CompileError as fault:
        if "overflows FP16" not in fault.message:
            raise
        event("overflow")
        return
    for found in Reference(case.program, case.compiled.graph).compare(step):
        assert found.excess <= 0, f"{found.name} lies {found.excess} beyond its bound"
    differ, compared = _flips(case, step)
    note(f"{differ} of {compared} spikes differ from f32")
    event("spikes that differ from f32: " + ("none" if not differ else "< 1 %" if differ < compared / 100 else "more"))


def _flips(case: Case, step: Step) -> tuple[int, int]:
    """Spikes of neurons in front of a layer, or of the output, that differ from those of f32; and all of them."""
    graph, differ, compared = case.compiled.graph, 0, 0
    fired = {
        f"{number}.{layer.nodes[-1]}": layer.nodes[-1]
        for number, layer in enumerate(case.program.layers)
        if isinstance(graph.node(layer.nodes[-1]).op, Lif)
    }
    traces = evaluate(graph, torch.from_numpy(case.x), traces=list(fired.values())).traces
    for tensor, node in fired.items():
        joined = np.concatenate([sub_batch.maps[tensor] for sub_batch in step.sub_batches], 1)[:, : len(case.labels)]
        want = traces[node].numpy().reshape(*joined.shape[:2], joined.shape[4], *joined.shape[2:4])
        differ += int(np.count_nonzero(want.transpose(0, 1, 3, 4, 2) != joined))
        compared += joined.size
    return differ, compared


@settings(max_examples=20, deadline=None, suppress_health_check=SLOW_DATA)
@given(case=cases())
def test_every_layer_lies_within_the_rounding_bound_of_f64(case: Case) -> None:
    _check_every_layer(case)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=SLOW_DATA)
@given(case=cases())
def test_every_layer_lies_within_the_rounding_bound_of_f64_at_length(case: Case) -> None:
    _check_every_layer(case)


def _compared(engines: Engines | None = None, config: H2LearnConfig = CONFIG) -> list[Comparison]:
    graph, (x, labels) = _network(), _samples(3)
    program = training_program(graph, batch=3, config=config, loss_scale=256.0)
    step = run_step(program, engines or engines_for(program, use_golden=True), x, labels)
    return list(Reference(program, graph).compare(step))


def test_the_bound_is_narrow_and_a_gradient_beyond_it_is_found() -> None:
    """2 % of a layer's largest gradient, a third for sums of thousands of terms of both signs; one element suffices."""
    for found in _compared():
        machine, (value, error) = found.machine, (found.reference.value, found.reference.error)
        assert float(value.abs().max()) > 0
        width = 0.02 if found.name[0].isdigit() else 0.35
        assert float(error.max()) < width * float(value.abs().max())
        assert found.excess <= 0
        place = int(value.abs().argmax())
        moved = machine.flatten().clone()
        moved[place] = value.flatten()[place] + (1 + U) * error.flatten()[place] + TINY
        assert replace(found, machine=moved.reshape(machine.shape)).excess > 0


class _Faulty(GoldenEngines):
    """Engines with one fault."""

    def __init__(self, fault: str) -> None:
        super().__init__(array_rows=64, dense_rows=16, update_rows=10)
        object.__setattr__(self, "fault", fault)

    def grad(
        self,
        psum: F16,
        plan: GradPlan,
        params: F16,
        kept: tuple[KeptStage, ...],
        carry: tuple[F16 | None, ...],
        winners: U8 | None,
        height: int,
        width: int,
    ) -> GradResult:
        stage = plan.stage1
        if self.fault == "reset left out" and stage is not None and stage.fire and stage.reset != 2:
            plan = replace(plan, stage1=replace(stage, detach=True))
        if self.fault == "carry lost":
            carry = (None,) * len(carry)
        return super().grad(psum, plan, params, kept, carry, winners, height, width)

    def accumulate_gradient(
        self, x: F16, x_mask: U8 | None, weights: F16, out_mask: U8 | None, window: GradWindow, psum: F16, init: bool
    ) -> None:
        turned = weights[::-1].copy() if self.fault == "kernel not rotated" else weights
        super().accumulate_gradient(x, x_mask, turned, out_mask, window, psum, init)

    def accumulate_update(self, g: F16, patterns: U8, psum: F16, init: bool) -> None:
        seen = g.copy()
        if self.fault == "a step left out":
            seen[-1] = 0
        super().accumulate_update(seen, patterns, psum, init)


@pytest.mark.parametrize("fault", ["reset left out", "kernel not rotated", "a step left out", "carry lost"])
def test_a_fault_of_the_engines_is_found(fault: str) -> None:
    assert max(found.excess for found in _compared(_Faulty(fault), SPLIT)) > 0


# -- where FP16 is exact ----------------------------------------------------------------------------------------------


def _exact_network(**numbers: object) -> Graph:
    """Weights and inputs are halves; with decay 0 or 1 no gradient needs more than 11 bits."""
    chain = Chain((2, 8, 8), 4, draw=halves).conv("conv1", 4).lif("lif1", threshold=1.0, **numbers)
    chain.average("pool1").lif("lif2", **numbers).conv("conv2", 6, stride=2).lif("lif3", threshold=1.0, **numbers)
    return chain.maximum("pool2").flatten().linear("fc", 8).lif("lif4", threshold=1.0, **numbers).readout()


def _exact_samples(count: int) -> tuple[F32, Labels]:
    rng = np.random.default_rng(3)
    return (rng.integers(0, 3, (count, 2, 8, 8)) / 2).astype(np.float32), rng.integers(0, 8, count)


EXACT = [
    {"reset": Reset.HARD, "decay": 0.0, "reset_value": 0.5},
    {"reset": Reset.HARD, "decay": 1.0, "detach_reset": True},
    {"reset": Reset.SOFT, "decay": 1.0},
    {"reset": Reset.NONE, "decay": 1.0},
    {"reset": Reset.NONE, "decay": 0.5},
]


@pytest.mark.parametrize("numbers", EXACT, ids=str)
def test_gradients_equal_f64_where_fp16_is_exact(numbers: dict[str, object]) -> None:
    """From the image to the last bit: nothing of the machine is handed to the training graph."""
    graph, (x, labels) = _exact_network(**numbers), _exact_samples(12)
    program = training_program(graph, batch=4, loss=Loss.MSE, loss_scale=64.0)
    step = run_step(program, engines_for(program, use_golden=True), x, labels)
    training = differentiate(graph, Loss.MSE)
    run = run_training(training, torch.from_numpy(x), torch.from_numpy(labels), dtype=torch.float64)
    assert run.loss == pytest.approx(step.loss, rel=1e-6)  # f32 on the host
    for name, gradient in run.gradients.items():
        scaled = gradient * 64 * 12
        assert torch.allclose(step.gradients[name], scaled, rtol=1e-12, atol=1e-12)  # f64 divides by 12
        assert float(scaled.abs().max()) > 0
