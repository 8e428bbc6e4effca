"""Networks whose neurons do one step a call: what a loop over time, or one step, becomes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from compiler.evaluate import evaluate
from compiler.ir import Encoding, Reading, Reset
from compiler.ir.ops import Encode, Li, Lif, Readout
from frontends.from_torch import import_module
from frontends.torch_import.axes import Lead
from tests.frontends.step_cells import Cell, Integrator, SamplesFirst, cells_are_read
from tests.frontends.step_loops import LAYERS, Loop, T, grid, imported, names


@pytest.fixture(autouse=True)
def _cells() -> Iterator[None]:
    with cells_are_read():
        yield


STEPS = {
    "index": lambda net, x: net.steps(x[t] for t in range(T)),
    "negative index": lambda net, x: net.steps(x[t - T] for t in range(T)),
    "iteration": lambda net, x: net.steps(x),
    "unbind": lambda net, x: net.steps(x.unbind(0)),
    "split and squeeze": lambda net, x: net.steps(row.squeeze(0) for row in x.split(1)),
    "chunk and index": lambda net, x: net.steps(row[0] for row in x.chunk(T)),
    "slice and reshape": lambda net, x: net.steps(x[t : t + 1].reshape(-1, 5) for t in range(T)),
    "batch first": lambda net, x: net.steps(x.transpose(0, 1)[:, t] for t in range(T)),
    "permuted": lambda net, x: net.steps(x.permute(1, 0, 2).unbind(1)),
}


@pytest.mark.parametrize("form", STEPS)
def test_steps_of_a_sequence(form: str) -> None:
    net = Loop(lambda self, x: torch.stack(STEPS[form](self, x)))
    graph = imported(net, grid(T, 2, 5))
    assert names(graph) == ["input", *LAYERS]
    assert list(graph.parameters) == ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]


def _running(outputs: list[Tensor]) -> Tensor:
    total = torch.zeros(2, 3)
    for spikes in outputs:
        total += spikes
    return total


def _from_zeros(outputs: list[Tensor]) -> Tensor:
    total = torch.zeros_like(outputs[0])
    for spikes in outputs:
        total = total + spikes
    return total


def _table(outputs: list[Tensor]) -> Tensor:
    table = torch.zeros(T, 2, 3)
    for t, spikes in enumerate(outputs):
        table[t] = spikes
    return table


def _table_of_samples(outputs: list[Tensor]) -> Tensor:
    table = outputs[0].new_empty(2, T, 3)
    for t, spikes in enumerate(outputs):
        table[:, t, :] = spikes
    return table.mean(1)


RATE = ["readout"]
SUM = ["scale", "readout"]
ENDS = {
    "stack": (torch.stack, []),
    "concatenated": (lambda s: torch.cat([y.unsqueeze(0) for y in s]), []),
    "merged": (lambda s: torch.cat(s).unflatten(0, (T, -1)), []),
    "table": (_table, []),
    "table, last row": (lambda s: _table(s)[-1], RATE),
    "table, samples first": (_table_of_samples, RATE),
    "mean of the stack": (lambda s: torch.stack(s).mean(0), RATE),
    "mean, samples first": (lambda s: torch.stack(s, dim=1).mean(1), RATE),
    "sum of the stack": (lambda s: torch.stack(s).sum(0), SUM),
    "sum of the list": (sum, SUM),
    "sum in place from zeros": (_running, SUM),
    "sum from zeros": (_from_zeros, SUM),
    "sum by T": (lambda s: sum(s) / T, RATE),
    "sum of the stack by T": (lambda s: torch.stack(s).sum(0) / T, RATE),
    "sum, other order": (lambda s: s[3] + (s[1] + s[0]) + s[2], SUM),
    "last": (lambda s: s[-1], RATE),
    "maximum": (lambda s: torch.stack(s).amax(0), RATE),
}


@pytest.mark.parametrize("form", ENDS)
def test_ends_of_a_loop(form: str) -> None:
    end, nodes = ENDS[form]
    graph = imported(Loop(lambda self, x: end(self.steps(x))), grid(T, 2, 5))
    assert names(graph) == ["input", *LAYERS, *nodes]
    kinds = {"last": Reading.LAST, "table, last row": Reading.LAST, "maximum": Reading.MAX}
    if nodes:
        assert graph.node("readout").op == Readout(kind=kinds.get(form, Reading.RATE))


def test_an_image_at_each_step_is_encoded_before_the_first_neuron() -> None:
    graph = imported(Loop(lambda self, x: sum(self.steps([x] * T))), grid(2, 5))
    assert names(graph) == ["input", "fc1", "encode", "lif1", "fc2", "lif2", "scale", "readout"]
    assert graph.node("encode").op == Encode(kind=Encoding.DIRECT, timesteps=T)


def test_layers_over_the_sequence_may_stand_before_and_after_the_loop() -> None:
    def forward(self: Loop, x: Tensor) -> Tensor:
        drive, v1, outputs = self.fc1(x), None, []
        for t in range(T):
            spikes, v1 = self.lif1(drive[t], v1)
            outputs.append(spikes)
        return self.fc2(torch.stack(outputs))

    assert names(imported(Loop(forward), grid(T, 2, 5))) == ["input", "fc1", "lif1", "fc2"]


@pytest.mark.parametrize("start", [torch.zeros_like, lambda x: torch.zeros(2, 6), lambda x: x.new_full((2, 6), 0)])
def test_a_loop_may_hand_in_zeros_at_its_start(start: Callable[[Tensor], Tensor]) -> None:
    def forward(self: Loop, x: Tensor) -> Tensor:
        outputs, v = [], None
        for t in range(T):
            drive = self.fc1(x[t])
            spikes, v = self.lif1(drive, start(drive) if t == 0 else v)
            outputs.append(spikes)
        return torch.stack(outputs)

    assert names(imported(Loop(forward), grid(T, 2, 5))) == ["input", "fc1", "lif1"]


def test_another_initial_state_is_handed_in() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lif = Cell(initial=0.5)

        def forward(self, x: Tensor) -> Tensor:
            v, outputs = torch.full((2, 5), 0.5), []
            for t in range(T):
                spikes, v = self.lif(x[t], v=v)
                outputs.append(spikes)
            return torch.stack(outputs)

    op = imported(Net(), grid(T, 2, 5)).node("lif").op
    assert isinstance(op, Lif)
    assert op.initial == 0.5


def test_one_module_may_be_two_populations_whose_states_the_loop_carries() -> None:
    def forward(self: Loop, x: Tensor) -> Tensor:
        a = b = None
        outputs = []
        for t in range(T):
            spikes, a = self.lif1(x[t], a)
            spikes, b = self.lif1(spikes + x[t], b)
            outputs.append(spikes)
        return torch.stack(outputs)

    assert names(imported(Loop(forward), grid(T, 2, 5))) == ["input", "lif1", "add", "lif1_2"]


MEMBRANES = {
    "integrator": (Integrator(), 1, Li(decay=0.5)),
    "integrator's first result": (Integrator(), 0, Li(decay=0.5)),
    "never reset": (Cell(decay=0.75, reset=Reset.NONE), 1, Li(decay=0.75)),
}


@pytest.mark.parametrize("case", MEMBRANES)
def test_membrane_potentials_that_are_never_reset_can_be_read(case: str) -> None:
    cell, result, op = MEMBRANES[case]

    def forward(self: Loop, x: Tensor) -> Tensor:
        v, outputs = None, []
        for t in range(T):
            results = self.lif1(self.fc1(x[t]), v)
            v = results[1]
            outputs.append(results[result])
        return torch.stack(outputs)

    net = Loop(forward)
    net.lif1 = cell
    graph = imported(net, grid(T, 2, 5))
    assert [node.op for node in graph.nodes][2:] == [op]


def test_membranes_that_nothing_depends_on_are_left_out() -> None:
    def forward(self: Loop, x: Tensor) -> tuple[Tensor, Tensor]:
        v, spikes_seen, membranes = None, [], []
        for t in range(T):
            spikes, v = self.lif1(self.fc1(x[t]), v)
            spikes_seen.append(spikes)
            membranes.append(v)
        return torch.stack(spikes_seen), torch.stack(membranes)

    assert names(imported(Loop(forward), grid(T, 2, 5), output=0)) == ["input", "fc1", "lif1"]


SAMPLES_FIRST = {
    "separate": (Lead.SAMPLES_FIRST, Lead.SAMPLES_FIRST, lambda net, x: net.whole(net.fc1(x))),
    "merged": (Lead.SAMPLES_MERGED, Lead.SAMPLES_MERGED, lambda net, x: net.merged(net.fc1(x))),
    "merged on the way": (Lead.SAMPLES_FIRST, Lead.SAMPLES_MERGED, lambda net, x: net.merged(net.fc1(x.flatten(0, 1)))),
    "separated on the way": (
        Lead.SAMPLES_MERGED,
        Lead.SAMPLES_FIRST,
        lambda net, x: net.whole(net.fc1(x).reshape(-1, T, 6)),
    ),
    "exchanged": (Lead.SEPARATE, Lead.SEPARATE, lambda net, x: net.whole(net.fc1(x).transpose(0, 1)).transpose(1, 0)),
    "mean": (Lead.SAMPLES_FIRST, Lead.IMAGE, lambda net, x: net.whole(net.fc1(x)).mean(1)),
    "sum": (Lead.SAMPLES_FIRST, Lead.IMAGE, lambda net, x: net.whole(net.fc1(x)).sum(1)),
    "last": (Lead.SAMPLES_FIRST, Lead.IMAGE, lambda net, x: net.whole(net.fc1(x))[:, -1]),
}


@pytest.mark.parametrize("samples", [3, T])  # with T samples the axes cannot be told by their extents
@pytest.mark.parametrize("form", SAMPLES_FIRST)
def test_samples_outermost(form: str, samples: int) -> None:
    given, returned, function = SAMPLES_FIRST[form]
    net = Loop(function)
    net.whole, net.merged = SamplesFirst(T, merged=False), SamplesFirst(T, merged=True)
    sequence = grid(T, samples, 5)
    x = {
        Lead.SEPARATE: sequence,
        Lead.SAMPLES_FIRST: sequence.transpose(0, 1),
        Lead.SAMPLES_MERGED: sequence.transpose(0, 1).flatten(0, 1),
    }[given]
    found = import_module(net, x, T)
    assert (found.input.lead, found.output.lead) == (given, returned)
    with torch.no_grad():
        want = net(x)
    got = evaluate(found.graph, sequence).output
    match returned:
        case Lead.SAMPLES_FIRST:
            got = got.transpose(0, 1)
        case Lead.SAMPLES_MERGED:
            got = got.transpose(0, 1).flatten(0, 1)
    assert torch.equal(got, want)
    assert want.any()


def test_a_plain_loop_over_layers_folds_too() -> None:
    net = Loop(lambda self, x: torch.stack([self.fc1(x[t]) for t in range(T)]))
    assert names(imported(net, grid(T, 2, 5))) == ["input", "fc1"]
