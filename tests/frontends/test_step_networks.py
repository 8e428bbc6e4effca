"""Networks of SpikingJelly, snnTorch and norse that do one step a call, against their import, spike for spike.

Weights and inputs are eighths, decays halves and quarters, T = 4: every sum is exact in any order, so that equal
equations give equal bits.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from compiler.evaluate import evaluate
from compiler.ir import CompileError, Graph
from compiler.ir.ops import Lif
from frontends.from_torch import from_torch
from tests.frontends.step_cells import on_grid

T = 4
EVENTS = torch.randint(-4, 9, (T, 2, 2, 6, 6), generator=torch.Generator().manual_seed(5)) / 8
Neuron = Callable[[], nn.Module]


class Residual(nn.Module):
    """lif(conv(x)) + x, for neurons that keep their state."""

    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        self.conv, self.lif = nn.Conv2d(4, 4, 3, padding=1), neuron

    def forward(self, x: Tensor) -> Tensor:
        return self.lif(self.conv(x)) + x


def two_convolutions(neuron: Neuron) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), neuron(), nn.AvgPool2d(2)),
        *(nn.Conv2d(4, 4, 3, padding=1), neuron(), nn.Flatten()),
        *(nn.Linear(36, 3), neuron()),
    )


def residual(neuron: Neuron) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), neuron(), Residual(neuron()), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(36, 3), neuron()),
    )


NETWORKS = {"two convolutions": two_convolutions, "residual": residual}


class Looped(nn.Module):
    """A network that keeps its state, over the steps of a sequence."""

    def __init__(self, net: nn.Module, reset: Callable[[nn.Module], None]) -> None:
        super().__init__()
        self.net, self.reset = net, reset

    def forward(self, x: Tensor) -> Tensor:
        self.reset(self.net)
        return torch.stack([self.net(step) for step in x])


def check(graph: Graph, want: Tensor, x: Tensor, neurons: int) -> None:
    """The graph's output and the spikes of each step are the framework's, and there are some."""
    assert sum(isinstance(node.op, Lif) for node in graph.nodes) == neurons
    assert torch.equal(evaluate(graph, x).output, want)
    assert 0.0 < want.mean() < 1.0


@pytest.mark.parametrize("form", NETWORKS)
@pytest.mark.parametrize("v_reset", [0.0, None])
def test_spikingjelly(form: str, v_reset: float | None) -> None:
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import functional, neuron

    torch.manual_seed(2)
    net = on_grid(NETWORKS[form](lambda: neuron.LIFNode(2.0, v_threshold=0.25, v_reset=v_reset)))
    looped = Looped(net, functional.reset_net)
    with torch.no_grad():
        want = looped(EVENTS)
    check(from_torch(looped, EVENTS, T), want, EVENTS, 3)
    functional.reset_net(net)
    check(from_torch(net, EVENTS[0], T), want, EVENTS, 3)
    assert all(not isinstance(part.v, Tensor) for part in net.modules() if isinstance(part, neuron.LIFNode))


@pytest.mark.parametrize("form", NETWORKS)
@pytest.mark.parametrize(("mechanism", "reset_delay"), [("zero", False), ("zero", True), ("subtract", True)])
def test_snntorch_with_hidden_state(form: str, mechanism: str, reset_delay: bool) -> None:
    snn = pytest.importorskip("snntorch")
    from snntorch import utils

    torch.manual_seed(2)
    options = {"threshold": 0.25, "reset_mechanism": mechanism, "reset_delay": reset_delay, "init_hidden": True}
    net = on_grid(NETWORKS[form](lambda: snn.Leaky(0.5, **options)))
    looped = Looped(net, utils.reset)
    with torch.no_grad():
        want = looped(EVENTS)
    states = [module.mem for module in snn.Leaky.instances]
    check(from_torch(looped, EVENTS, T), want, EVENTS, 3)
    check(from_torch(net, EVENTS[0], T), want, EVENTS, 3)
    # a reset goes to every neuron that the framework ever made; the import leaves all of them as they were
    assert all(now.mem is before for now, before in zip(snn.Leaky.instances, states, strict=True))


def test_a_reset_of_all_neurons_inside_the_loop_is_refused() -> None:
    snn = pytest.importorskip("snntorch")
    from snntorch import utils

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lif = snn.Leaky(0.5, init_hidden=True)

        def forward(self, x: Tensor) -> Tensor:
            outputs = []
            for step in x:
                utils.reset(self)
                outputs.append(self.lif(step))
            return torch.stack(outputs)

    with pytest.raises(CompileError, match="sets the neuron's state between two of its steps"):
        from_torch(Net(), EVENTS, T)


class SnnTorchLoop(nn.Module):
    """The loop of snnTorch's tutorials."""

    def __init__(self, leaky: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.conv1, self.lif1 = nn.Conv2d(2, 4, 3, padding=1), leaky()
        self.conv2, self.lif2 = nn.Conv2d(4, 4, 3, padding=1), leaky()
        self.fc, self.lif3 = nn.Linear(36, 3), leaky()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2, mem3 = self.lif1.init_leaky(), self.lif2.init_leaky(), self.lif3.init_leaky()
        spikes, membranes = [], []
        for step in range(x.size(0)):
            cur1 = nn.functional.max_pool2d(self.conv1(x[step]), 2)
            spk1, mem1 = self.lif1(cur1, mem1)
            spk2, mem2 = self.lif2(self.conv2(spk1), mem2)
            spk3, mem3 = self.lif3(self.fc((spk1 + spk2).flatten(1)), mem3)
            spikes.append(spk3)
            membranes.append(mem3)
        return torch.stack(spikes, dim=0), torch.stack(membranes, dim=0)


def test_snntorch_loop() -> None:
    snn = pytest.importorskip("snntorch")
    torch.manual_seed(2)
    net = on_grid(SnnTorchLoop(lambda: snn.Leaky(0.5, threshold=0.25)))
    with torch.no_grad():
        want, _ = net(EVENTS)
    check(from_torch(net, EVENTS, T, output=0), want, EVENTS, 3)


def test_snntorch_reads_the_membrane_of_a_last_layer_without_reset() -> None:
    snn = pytest.importorskip("snntorch")
    torch.manual_seed(2)
    net = SnnTorchLoop(lambda: snn.Leaky(0.5, threshold=0.25))
    net.lif3 = snn.Leaky(0.75, reset_mechanism="none")
    on_grid(net)
    with torch.no_grad():
        _, want = net(EVENTS)
    graph = from_torch(net, EVENTS, T, output=1)
    assert torch.equal(evaluate(graph, EVENTS).output, want)


class NorseLoop(nn.Module):
    """A network that takes and returns its states, over the steps of a sequence."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        state, outputs = None, []
        for step in x:
            y, state = self.net(step, state)
            outputs.append(y)
        return torch.stack(outputs)


class NorseResidual(nn.Module):
    """lif(conv(x)) + x with its state outside."""

    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        self.conv, self.lif = nn.Conv2d(4, 4, 3, padding=1), neuron

    def forward(self, x: Tensor, state: object = None) -> tuple[Tensor, object]:
        y, state = self.lif(self.conv(x), state)
        return y + x, state


@pytest.mark.parametrize("form", NETWORKS)
def test_norse(form: str) -> None:
    norse = pytest.importorskip("norse.torch")
    parameters = norse.LIFBoxParameters(tau_mem_inv=torch.tensor(500.0), v_th=torch.tensor(0.25))

    def neuron() -> nn.Module:
        return norse.LIFBoxCell(parameters)

    torch.manual_seed(2)
    plain = NETWORKS[form](neuron)
    layers = [NorseResidual(neuron()) if isinstance(layer, Residual) else layer for layer in plain]
    net = on_grid(norse.SequentialState(*layers))
    looped = NorseLoop(net)
    with torch.no_grad():
        want = looped(EVENTS)
    check(from_torch(looped, EVENTS, T), want, EVENTS, 3)
    check(from_torch(net, EVENTS[0], T, output=0), want, EVENTS, 3)


class Restarting(nn.Module):
    """One step that begins from the initial state: its steps do not go on from each other."""

    def __init__(self, neuron: nn.Module, form: str) -> None:
        super().__init__()
        self.fc, self.lif, self.form = nn.Linear(4, 4), neuron, form

    def forward(self, x: Tensor) -> Tensor:
        match self.form:
            case "init_leaky":
                return self.lif(self.fc(x), self.lif.init_leaky())[0]
            case "reset_mem":
                self.lif.reset_mem()
            case "utils.reset":
                from snntorch import utils

                utils.reset(self)
            case _:
                from spikingjelly.activation_based import functional

                functional.reset_net(self)
        return self.lif(self.fc(x))


@pytest.mark.parametrize("form", ["init_leaky", "reset_mem", "utils.reset", "reset_net"])
def test_one_step_that_restarts_is_refused(form: str) -> None:
    if form == "reset_net":
        neuron = pytest.importorskip("spikingjelly.activation_based.neuron").IFNode()
    else:
        neuron = pytest.importorskip("snntorch").Leaky(0.5, init_hidden=form != "init_leaky")
    with pytest.raises(CompileError, match="it would start anew each time"):
        from_torch(Restarting(neuron, form), torch.rand(2, 4), T)


@pytest.mark.parametrize("form", NETWORKS)
def test_fused_steps(form: str) -> None:
    """The fused network does all steps: of a step (N, ...) it makes (T, N, ...)."""
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import functional, neuron

    import spikec

    torch.manual_seed(2)
    net = on_grid(NETWORKS[form](lambda: neuron.LIFNode(2.0, v_threshold=0.25, v_reset=None)))
    with torch.no_grad():
        want = torch.stack([net(step) for step in EVENTS])
    functional.reset_net(net)
    for module, example in ((net, EVENTS[0]), (Looped(net, functional.reset_net), EVENTS)):
        fused = spikec.fuse(module, example, T).eval()
        assert torch.equal(fused(EVENTS), want)


def test_fused_loop_with_a_chosen_output() -> None:
    snn = pytest.importorskip("snntorch")
    import spikec

    torch.manual_seed(2)
    net = on_grid(SnnTorchLoop(lambda: snn.Leaky(0.5, threshold=0.25, reset_mechanism="zero")))
    with torch.no_grad():
        want, _ = net(EVENTS)
    assert torch.equal(spikec.fuse(net, EVENTS, T, output=0).eval()(EVENTS), want)


class Setting(nn.Module):
    """A neuron of SpikingJelly that the forward writes to."""

    def __init__(self, neuron: nn.Module, name: str, value: object, at: int) -> None:
        super().__init__()
        self.neuron, self.name, self.value, self.at = neuron, name, value, at

    def forward(self, x: Tensor) -> Tensor:
        value = torch.full_like(x[0], self.value) if self.name == "tensor" else self.value
        name = "v" if self.name == "tensor" else self.name
        if self.neuron.step_mode == "m":
            setattr(self.neuron, name, value)
            return self.neuron(x)
        spikes = []
        for at, step in enumerate(x):
            if at == self.at:
                setattr(self.neuron, name, value)
            spikes.append(self.neuron(step))
        return torch.stack(spikes)


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize(
    ("name", "value", "at", "message"),
    [
        ("v", 0.25, 0, "sets the neuron's state to 0.25, its initial state is 0"),
        ("tensor", 0.25, 0, "takes a state that is neither its initial one nor that of its last step"),
        ("v_threshold", 0.5, 0, "sets v_threshold of the neuron in its forward"),
        ("v_threshold", 0.5, 2, "sets v_threshold of the neuron in its forward"),
    ],
)
def test_what_a_forward_sets_of_its_neurons_is_no_guess(
    mode: str, name: str, value: object, at: int, message: str
) -> None:
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron").IFNode(step_mode=mode)
    if (mode, name) == ("m", "tensor"):
        pytest.skip("not told from a reset")
    with pytest.raises(CompileError, match=message):
        from_torch(Setting(neuron, name, value, at), EVENTS, T)


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("name", ["v", "tensor"])
def test_a_forward_may_start_its_neurons_from_their_initial_state(mode: str, name: str) -> None:
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron").IFNode(step_mode=mode)
    net = Setting(neuron, name, 0.0, 0)
    graph = from_torch(net, EVENTS, T)
    assert torch.equal(evaluate(graph, EVENTS).output, net(EVENTS))


class ImageLoop(nn.Module):
    """The same image at each step."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.net(x) for _ in range(T)])


@pytest.mark.parametrize("form", ["loop", "step", "image"])
def test_batch_norms_of_single_steps_are_not_fused(form: str) -> None:
    """In training each call has statistics of its own; those of all steps would be others."""
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import functional, neuron

    import spikec

    torch.manual_seed(2)
    net = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5), neuron.IFNode())
    events = torch.rand(T, 3, 4)
    module, example = {
        "loop": (Looped(net, functional.reset_net), events),
        "step": (net, events[0]),
        "image": (ImageLoop(net), events[0]),
    }[form]
    if form != "image":
        with torch.no_grad():
            want = Looped(net, functional.reset_net).eval()(events)
        assert torch.equal(evaluate(from_torch(module, example, T), events).output, want)
    with pytest.raises(CompileError, match="this batch norm does one time step a call"):
        spikec.fuse(module.train(), example, T)


def test_samples_outermost_are_not_fused() -> None:
    import spikec

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.lif = nn.Conv2d(2, 3, 3), spikec.nn.LIF()

        def forward(self, x: Tensor) -> Tensor:
            return self.lif(torch.stack([self.conv(x[:, t]) for t in range(T)])).mean(0)

    with pytest.raises(CompileError) as fault:
        spikec.fuse(Net(), torch.rand(2, T, 2, 6, 6), T)
    assert fault.value.message == "the input of the network is (N, T, ...) and fused stages take time first"
