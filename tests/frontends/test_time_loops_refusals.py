"""Loops over time that no graph expresses, each refused by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from compiler.ir import CompileError
from frontends.from_torch import from_torch
from frontends.nn import LIF
from tests.frontends.step_cells import Cell, Kept, cells_are_read

T = 3
Function = Callable[["Net", Tensor], object]


@pytest.fixture(autouse=True)
def _cells() -> Iterator[None]:
    with cells_are_read():
        yield


class Net(nn.Module):
    """A forward given as a function."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.fc, self.back = nn.Linear(4, 4), nn.Linear(4, 4)
        self.lif, self.other, self.kept, self.whole = Cell(), Cell(), Kept(), LIF()

    def forward(self, x: Tensor) -> object:
        return self.function(self, x)


def fault_of(function: Function, x: Tensor, **options: object) -> CompileError:
    with pytest.raises(CompileError) as fault:
        from_torch(Net(function), x, T, name="net", **options)
    return fault.value


def over_time(step: Callable[[Net, Tensor, Tensor | None, int], tuple[Tensor, Tensor | None]]) -> Function:
    """A forward that stacks what a step returns; the second result is handed to the next step."""

    def forward(self: Net, x: Tensor) -> Tensor:
        state, outputs = None, []
        for t in range(T):
            y, state = step(self, x[t], state, t)
            outputs.append(y)
        return torch.stack(outputs)

    return forward


def recurrent(self: Net, x: Tensor) -> Tensor:
    v, spikes, outputs = None, torch.zeros(2, 4), []
    for t in range(T):
        spikes, v = self.lif(self.fc(x[t]) + self.back(spikes), v)
        outputs.append(spikes)
    return torch.stack(outputs)


def feedback(self: Net, x: Tensor) -> Tensor:
    v, spikes, outputs = None, torch.zeros(2, 4), []
    for t in range(T):
        spikes, v = self.lif(self.fc(x[t]) + spikes, v)
        outputs.append(spikes)
    return torch.stack(outputs)


def shuffled(self: Net, x: Tensor) -> Tensor:
    v, outputs = None, []
    for t in (1, 2, 0):
        spikes, v = self.lif(self.fc(x[t]), v)
        outputs.append(spikes)
    return torch.stack(outputs)


def alternating(self: Net, x: Tensor) -> Tensor:
    v, outputs = None, []
    for t in range(T):
        spikes, v = self.lif((self.fc if t % 2 else self.back)(x[t]), v)
        outputs.append(spikes)
    return torch.stack(outputs)


def membranes(self: Net, x: Tensor) -> Tensor:
    v, outputs = None, []
    for t in range(T):
        _, v = self.lif(x[t], v)
        outputs.append(v)
    return torch.stack(outputs)


def too_few(self: Net, x: Tensor) -> Tensor:
    v = None
    for t in range(T - 1):
        spikes, v = self.lif(x[t], v)
    return spikes


def reset_inside(self: Net, x: Tensor) -> Tensor:
    outputs = []
    for t in range(T):
        if t == 2:
            self.kept.reset()
        outputs.append(self.kept(x[t]))
    return torch.stack(outputs)


def zeroed(self: Net, x: Tensor) -> Tensor:
    outputs = []
    for t in range(T):
        outputs.append(self.kept(x[t]))
        self.kept.v.zero_()
    return torch.stack(outputs)


def two_layers(self: Net, x: Tensor) -> Tensor:
    return torch.stack([self.kept(self.fc(self.kept(x[t]))) for t in range(T)])


def drifting(self: Net, x: Tensor, v: Tensor | None, t: int) -> tuple[Tensor, Tensor | None]:
    spikes, v = self.lif(x, v)
    return spikes, 0.5 * v


def branching(self: Net, x: Tensor) -> Tensor:
    a, v = self.lif(x[0], None)
    b, _ = self.lif(x[1], v)
    c, _ = self.lif(x[2], v)
    return torch.stack([a, b, c])


SEQUENCE = torch.rand(T, 2, 4)


def first(self: Net, x: Tensor) -> Tensor:
    outputs = [self.kept(x[t]) for t in range(T)]
    return outputs[0]


SAME = "a loop over time does the same at each step, and hands each neuron's state from step to step"
ENDS = "return the last step, the sum or mean over time, or all steps stacked"
STEP = "spikec.neuron_step.default"
REFUSALS: dict[str, tuple[Function, str]] = {
    "recurrent weights": (
        recurrent,
        "back: aten.linear.default: input is the constant zeros, not computed from the input\n"
        "  hint: recurrent connections, which start from zeros, are not expressed",
    ),
    "feedback of spikes": (
        feedback,
        "aten.add.Tensor: adds step 1 of fc and step 0 of lif\n"
        "  hint: recurrent connections and delays are not expressed",
    ),
    "steps in another order": (
        shuffled,
        f"lif: {STEP}: takes step 1 of fc at its own step 0\n  hint: {SAME}; delays are not expressed",
    ),
    "steps of the stack in another order": (
        lambda self, x: torch.stack([self.kept(x[t]) for t in range(T)][::-1]),
        "aten.stack.default: stacks 3 values\n"
        "  hint: only one image, or the steps of one sequence, T = 3 of them in their order",
    ),
    "other layers at other steps": (
        alternating,
        f"lif: {STEP}: takes fc at step 1, and back at the steps before\n"
        f"  hint: {SAME}; two layers need two neuron modules",
    ),
    "one stateful module for two layers": (
        two_layers,
        f"kept: {STEP}: takes fc at step 1, and input at the steps before\n"
        f"  hint: {SAME}; two layers need two neuron modules",
    ),
    "membranes": (
        membranes,
        "aten.stack.default: reads the membrane potential of lif, which is reset when it spikes\n"
        "  hint: read its spikes, or let its last layer be without reset",
    ),
    "a membrane that is changed": (
        over_time(drifting),
        "aten.mul.Tensor: reads the membrane potential of lif, which is reset when it spikes\n"
        "  hint: read its spikes, or let its last layer be without reset",
    ),
    "too few steps": (
        too_few,
        f"lif: {STEP}: the neuron does 2 steps, the network is imported with timesteps=3\n"
        "  hint: every neuron is called once, or once for each time step",
    ),
    "a reset inside the loop": (
        reset_inside,
        "kept: the network sets the neuron's state between two of its steps\n"
        "  hint: reset once, before the loop over time",
    ),
    "a state overwritten inside the loop": (
        zeroed,
        "kept: the network sets the neuron's state between two of its steps\n"
        "  hint: reset once, before the loop over time",
    ),
    "two steps from one state": (
        branching,
        f"lif: {STEP}: goes on from its state after step 0, not from its last\n  hint: {SAME}",
    ),
    "no state is handed in": (
        over_time(lambda self, x, _v, _t: (self.lif(x)[0], None)),
        f"lif: {STEP}: starts from its initial state at each step: no state is handed in\n"
        f"  hint: {SAME}: spikes, state = neuron(x, state)",
    ),
    "another initial state": (
        over_time(lambda self, x, v, _t: self.lif(x, torch.ones(2, 4) if v is None else v)),
        f"lif: {STEP}: takes a state that is neither its initial one nor that of its last step\n  hint: {SAME}",
    ),
    "spikes for a state": (
        over_time(lambda self, x, v, _t: (self.lif(x, v)[0],) * 2),
        f"lif: {STEP}: takes a state that is neither its initial one nor that of its last step\n  hint: {SAME}",
    ),
    "another neuron's state": (
        over_time(lambda self, x, v, _t: self.lif(x, v) if v is None else (self.other(x, v)[0], v)),
        f"other: {STEP}: takes a state that is neither its initial one nor that of its last step\n  hint: {SAME}",
    ),
    "a whole sequence": (
        lambda self, x: torch.stack([self.kept(self.fc(x)) for _ in range(T)]),
        f"kept: {STEP}: the neuron takes one time step a call, (N, ...), it gets (T, N, ...) of features (4,)\n"
        "  hint: call it in a loop over time",
    ),
    "a step for a whole": (
        over_time(lambda self, x, _v, _t: (self.whole(self.kept(x)), None)),
        "whole: spikec.neuron.default: the neuron takes time from its own first axis, (T, N, ...), "
        "it gets (N, ...) of one time step, step 0, of features (4,)\n"
        "  hint: separate with x.unflatten(0, (T, -1)), or, for spikec's own neurons, set timesteps=T",
    ),
    "the first step": (
        first,
        f"kept: {STEP}: the output depends on 1 of the 3 steps of this neuron\n  hint: {ENDS}",
    ),
    "a sum of some steps": (
        lambda self, x: sum([self.kept(x[t]) for t in range(T)][1:]),
        "aten.add.Tensor: uses the sum of steps [1, 2] of kept, not of all 3\n"
        "  hint: only the sum over all time steps is expressed; recurrent connections are not",
    ),
    "a list of outputs": (
        lambda self, x: [self.kept(x[t]) for t in range(T)],
        "the network has 1 inputs and 3 outputs, must have 1 of each\n"
        "  hint: output=INDEX, from 0 to 2, chooses one; torch.stack makes one of a list",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str) -> None:
    function, message = REFUSALS[case]
    assert str(fault_of(function, SEQUENCE)).partition("error: ")[2] == message


def reset_first(self: Net, x: Tensor) -> Tensor:
    self.kept.reset()
    return self.kept(self.fc(x))


def reset_last(self: Net, x: Tensor) -> Tensor:
    spikes = self.kept(self.fc(x))
    self.kept.reset()
    return spikes


RESET = (
    f"kept: {STEP}: the network does one step and sets this neuron's state itself: it would start anew each time\n"
    "  hint: reset outside the network's forward, or put the loop over time into it"
)


def table(rows: Callable[[Tensor, list[Tensor]], Tensor | None]) -> Function:
    """A forward that writes steps into a table."""

    def forward(self: Net, x: Tensor) -> Tensor:
        written = torch.zeros(T, 2, 4)
        result = rows(written, [self.kept(x[t]) for t in range(T)])
        return written if result is None else result

    return forward


def half_written(written: Tensor, steps: list[Tensor]) -> None:
    written[0] = steps[0]


def written_twice(written: Tensor, steps: list[Tensor]) -> None:
    for t in (0, 1, 2, 1):
        written[t] = steps[t]


def read_early(written: Tensor, steps: list[Tensor]) -> Tensor:
    written[0] = steps[0]
    early = written.mean(0)
    written[1], written[2] = steps[1], steps[2]
    return early


def row_read_early(written: Tensor, steps: list[Tensor]) -> Tensor:
    written[0] = steps[0]
    early = written[0] + steps[1]
    written[1], written[2] = steps[1], steps[2]
    return early


def broadcast(written: Tensor, steps: list[Tensor]) -> None:
    for t in range(T):
        written[t] = steps[t][:1]


def other_rows(written: Tensor, steps: list[Tensor]) -> None:
    for t in range(T):
        written[T - 1 - t] = steps[t]


TABLES: dict[str, tuple[Callable[[Tensor, list[Tensor]], Tensor | None], str]] = {
    "half written": (half_written, "aten.copy_.default: overwrites a value that is read later"),
    "written twice": (written_twice, "aten.copy_.default: overwrites a value that is read later"),
    "read early": (read_early, "aten.copy_.default: overwrites a value that is read later"),
    "row read early": (row_read_early, "aten.copy_.default: overwrites a value that is read later"),
    "broadcast": (
        broadcast,
        "aten.slice.Tensor: takes a part of axis 0 of (N, ...) of one time step, step 0, of features (4,)",
    ),
    "other rows": (other_rows, "aten.stack.default: stacks 3 values"),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables_that_are_no_stack(case: str) -> None:
    rows, message = TABLES[case]
    assert fault_of(table(rows), SEQUENCE).message == message


def test_a_step_that_is_overwritten_is_refused() -> None:
    def forward(self: Net, x: Tensor) -> Tensor:
        drive = self.fc(x)
        step = drive.unbind(0)[0]
        step += x[0]
        return torch.stack([self.kept(drive[t]) for t in range(T)])

    assert fault_of(forward, SEQUENCE).message == "aten.add_.Tensor: overwrites a value that is read later"


def one_step(self: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    spikes, v = self.lif(self.fc(x))
    return spikes, v


SINGLE: dict[str, tuple[Function, dict[str, int | bool], str]] = {
    "state is dropped": (
        lambda self, x: one_step(self, x)[0],
        {},
        f"lif: {STEP}: the network does one step and does not return this neuron's state: it would start anew each "
        "time\n  hint: return the state beside the output, and choose the output with output=INDEX",
    ),
    "state is set at each step, and dropped": (
        lambda self, x: self.lif(self.fc(x), torch.zeros(2, 4))[0],
        {},
        f"lif: {STEP}: the network does one step and does not return this neuron's state: it would start anew each "
        "time\n  hint: return the state beside the output, and choose the output with output=INDEX",
    ),
    "reset before the step": (reset_first, {}, RESET),
    "reset after the step": (reset_last, {}, RESET),
    "output is not chosen": (
        one_step,
        {},
        "the network has 1 inputs and 2 outputs, must have 1 of each\n"
        "  hint: output=INDEX, from 0 to 1, chooses one; torch.stack makes one of a list",
    ),
    "no such output": (one_step, {"output": 2}, "output 2 is chosen, the network has 2"),
    "membrane is chosen": (
        one_step,
        {"output": 1},
        "getitem: reads the membrane potential of lif, which is reset when it spikes\n"
        "  hint: read its spikes, or let its last layer be without reset",
    ),
    "repeated although it loops": (
        lambda self, x: torch.stack([self.kept(x) for _ in range(T)]),
        {"repeat_input": True},
        "repeat_input is for networks that do one time step a call; this one does all",
    ),
}


@pytest.mark.parametrize("case", SINGLE)
def test_refusals_of_single_steps(case: str) -> None:
    function, options, message = SINGLE[case]
    assert str(fault_of(function, torch.rand(2, 4), **options)).partition("error: ")[2] == message


def test_a_step_has_at_most_three_axes_of_features() -> None:
    fault = fault_of(lambda self, x: self.kept(x), torch.rand(T, 2, 2, 2, 4))
    assert fault.message == "the network does one time step a call, and the example has shape (3, 2, 2, 2, 4)"
