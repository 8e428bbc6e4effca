"""Random loops over time, most of them with a twist: each is imported to the same spikes, or refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compiler.evaluate import evaluate
from compiler.ir import CompileError, Reset
from frontends.from_torch import import_module
from frontends.torch_import.axes import Lead
from tests.frontends.step_cells import Cell, Integrator, Kept, cells_are_read, on_grid, reset

FEATURES = 3


@pytest.fixture(autouse=True, scope="module")
def _cells() -> Iterator[None]:
    with cells_are_read():
        yield


@dataclass(frozen=True)
class Instruction:
    """One operation on earlier results of the step, by index (0 is the input); `back` takes one from the step before.

    module: which of the network's modules. twist: the step at which the loop does something else with it.
    """

    kind: str
    source: int
    other: int = 0
    module: int = 0
    twist: int | None = None


@dataclass(frozen=True)
class Program:
    timesteps: int
    entry: str
    body: tuple[Instruction, ...]
    end: str


class Interpreter(nn.Module):
    """Runs a program; its neurons are of each kind."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        self.layers = nn.ModuleList(nn.Linear(FEATURES, FEATURES) for _ in range(2))
        self.carried = nn.ModuleList([Cell(), Cell(decay=0.75, reset=Reset.SOFT), Cell(reset=Reset.NONE), Integrator()])
        self.kept = nn.ModuleList([Kept(threshold=0.5), Kept(reset=Reset.SOFT)])
        on_grid(self)

    def forward(self, x: Tensor) -> Tensor:
        reset(self)
        states: dict[int, Tensor | None] = {}
        before: list[Tensor] = []
        outputs = []
        for t in range(self.program.timesteps):
            values = [self._input(x, t)]
            for place, instruction in enumerate(self.program.body):
                values.append(self._run(instruction, place, t, values, before, states))
            before = values
            outputs.append(values[-1])
        return self._end(outputs)

    def _input(self, x: Tensor, t: int) -> Tensor:
        match self.program.entry:
            case "image":
                return x
            case "samples first":
                return x[:, t]
            case _:
                return x[t]

    def _run(
        self,
        do: Instruction,
        place: int,
        t: int,
        values: list[Tensor],
        before: list[Tensor],
        states: dict[int, Tensor | None],
    ) -> Tensor:
        x = values[do.source]
        twisted = t == do.twist
        match do.kind:
            case "layer":
                return self.layers[(do.module + twisted) % 2](x)
            case "add":
                return x + (values[0] if twisted else values[do.other])
            case "scale":
                return x * (0.25 if twisted else 0.5)
            case "back":
                return x + before[do.source] if before else x
            case "kept":
                if twisted:
                    self.kept[do.module % 2].reset()
                return self.kept[do.module % 2](x)
            case _:
                key = place if do.kind == "carried" else do.module  # "shared": places of one module share a state
                spikes, v = self.carried[do.module](x, None if twisted else states.get(key))
                states[key] = v
                return v if do.other else spikes

    def _end(self, outputs: list[Tensor]) -> Tensor:
        match self.program.end:
            case "stack":
                return torch.stack(outputs)
            case "reversed":
                return torch.stack(outputs[::-1])
            case "table":
                table = torch.zeros(len(outputs), *outputs[0].shape)
                for t, y in enumerate(outputs):
                    table[t] = y
                return table
            case "sum":
                return sum(outputs)
            case "mean":
                return sum(outputs) / len(outputs)
            case "partial":
                return sum(outputs[1:]) if len(outputs) > 1 else outputs[0]
            case "first":
                return outputs[0]
            case "maximum":
                return torch.stack(outputs).amax(0)
            case _:
                return outputs[-1]


@st.composite
def programs(draw: st.DrawFn) -> Program:
    timesteps = draw(st.integers(1, 4))
    body: list[Instruction] = []
    for place in range(draw(st.integers(1, 5))):
        kinds = ["layer", "layer", "kept", "carried", "carried", "add", "scale"]
        rare = ["back", "shared"] if draw(st.integers(0, 3)) == 0 else []
        body.append(
            Instruction(
                kind=draw(st.sampled_from(kinds + rare)),
                source=draw(st.integers(max(0, place - 1), place)),
                other=draw(st.integers(0, place)) if draw(st.booleans()) else 0,
                module=draw(st.integers(0, 3)),
                twist=draw(st.integers(0, timesteps - 1)) if draw(st.integers(0, 7)) == 0 else None,
            )
        )
    ends = ["stack", "table", "sum", "mean", "last", "maximum"]
    odd = ["reversed", "partial", "first"] if draw(st.integers(0, 4)) == 0 else []
    return Program(
        timesteps,
        draw(st.sampled_from(["image", "sequence", "samples first"])),
        tuple(body),
        draw(st.sampled_from(ends + odd)),
    )


SEEN: Counter[str] = Counter()


def check(program: Program, seed: int) -> None:
    torch.manual_seed(seed)
    net = Interpreter(program)
    lead = {"image": (2,), "sequence": (program.timesteps, 2), "samples first": (2, program.timesteps)}[program.entry]
    x = torch.randint(-8, 17, (*lead, FEATURES)) / 8
    with torch.no_grad():
        want = net(x)
    reset(net)
    try:
        found = import_module(net, x, program.timesteps)
    except CompileError:
        SEEN["refused"] += 1
        return
    SEEN["imported"] += 1
    if found.input.lead is Lead.SAMPLES_FIRST:
        x = x.transpose(0, 1)
    if found.input.lead is Lead.STEP:  # a program of one time step is one step itself
        x = x.reshape(1, 2, FEATURES)
    got = evaluate(found.graph, x).output
    # a factor T that is no power of two rounds the sums of membrane potentials, not those of spikes
    if program.end in ("sum", "partial") and program.timesteps == 3:
        torch.testing.assert_close(got.reshape(want.shape), want, rtol=0, atol=2.0**-14)
    else:
        assert torch.equal(got.reshape(want.shape), want)


@given(programs(), st.integers(0, 2**16))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_random_programs(program: Program, seed: int) -> None:
    check(program, seed)


@pytest.mark.slow
def test_many_random_programs() -> None:
    SEEN.clear()

    @given(programs(), st.integers(0, 2**16))
    @settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
    def every(program: Program, seed: int) -> None:
        check(program, seed)

    every()
    # neither answer is the only one
    assert min(SEEN["imported"], SEEN["refused"]) > 200, SEEN
