"""Small networks of each framework, as their users write them: a chain with two convolutions, and a residual one.

Weights and inputs are multiples of 1/8 or binary, so that sums are exact in any order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

T, N = 4, 3
CHANNELS, SIZE, CLASSES = 4, 6, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A network, and how its framework runs it over (T, N, ...).

    example: what the network itself takes. run: from a fresh state, time first.
    spikes_of: of a neuron's collected outputs, the spikes (T, N, ...).
    time_first: so that fused stages take it.
    """

    module: nn.Module
    example: Tensor
    run: Callable[[nn.Module, Tensor], Tensor]
    spikes_of: Callable[[list[Tensor]], Tensor]
    neurons: tuple[type[nn.Module], ...]
    time_first: bool = True

    def spikes(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The output, and every neuron's spikes by its path."""
        found: dict[str, list[Tensor]] = {}
        handles = []
        for path, child in self.module.named_modules():
            if isinstance(child, self.neurons):
                found[path] = []
                handles.append(child.register_forward_hook(_collector(found[path])))
        with torch.no_grad():
            output = self.run(self.module, x)
        for handle in handles:
            handle.remove()
        return output, {path: self.spikes_of(results) for path, results in found.items()}


def _collector(into: list[Tensor]) -> Callable[[nn.Module, object, object], None]:
    def hook(_module: nn.Module, _inputs: object, result: object) -> None:
        spikes = result[0] if isinstance(result, tuple) else result
        assert isinstance(spikes, Tensor)
        into.append(spikes)

    return hook


def spike_input(seed: int = 0) -> Tensor:
    """(T, N, 2, SIZE, SIZE) of 0 and 1."""
    return (torch.rand(T, N, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) < 0.5).float()


def on_grid(module: nn.Module, seed: int = 3) -> nn.Module:
    """Weights and biases of layers drawn from multiples of 1/8, positive ones a little more often."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for child in module.modules():
            if isinstance(child, nn.Conv2d | nn.Linear):
                for weight in child.parameters(recurse=False):
                    weight.copy_(torch.randint(-3, 5, weight.shape, generator=generator) / 8)
    return module.eval()


def stacked(results: list[Tensor]) -> Tensor:
    """Steps collected one by one; a whole sequence stands alone."""
    return torch.stack(results)


def whole(results: list[Tensor]) -> Tensor:
    """A neuron called once with the sequence."""
    (sequence,) = results
    return sequence


class Steps(nn.Module):
    """A network that does one step a call, over a sequence."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.net(x[t]) for t in range(T)])


class Residual(nn.Module):
    """A stem, a block with a skip connection, a head; its neurons keep their state to themselves."""

    def __init__(self, neuron: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(2, CHANNELS, 3, padding=1), neuron()
        self.conv, self.second = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), neuron()
        self.head = nn.Linear(CHANNELS * SIZE * SIZE, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(self.stem(x))
        y = self.second(self.conv(y) + y)
        scores: Tensor = self.head(y.flatten(1))
        return scores


def spikingjelly_chain(mode: str) -> Case:
    """LIF, IF and parametric LIF with hard and soft resets."""
    from spikingjelly.activation_based import functional, layer, neuron

    net = nn.Sequential(
        layer.Conv2d(2, CHANNELS, 3, padding=1),
        neuron.LIFNode(2.0, decay_input=False),
        layer.MaxPool2d(2),
        layer.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
        neuron.IFNode(v_reset=None),
        layer.Flatten(),
        layer.Linear(CHANNELS * SIZE * SIZE // 4, CLASSES),
        neuron.ParametricLIFNode(2.0, decay_input=False, v_threshold=0.5),
    )
    functional.set_step_mode(net, mode)
    module = net if mode == "m" else Steps(net)

    def run(module: nn.Module, x: Tensor) -> Tensor:
        functional.reset_net(module)
        y: Tensor = module(x)
        functional.reset_net(module)
        return y

    return Case(
        module=on_grid(module),
        example=spike_input(),
        run=run,
        spikes_of=whole if mode == "m" else stacked,
        neurons=(neuron.LIFNode, neuron.IFNode, neuron.ParametricLIFNode),
    )


def spikingjelly_residual() -> Case:
    """Step by step, in a loop."""
    from spikingjelly.activation_based import neuron

    case = spikingjelly_chain("s")
    module = on_grid(Steps(Residual(lambda: neuron.LIFNode(2.0, decay_input=False, v_reset=None))))
    return Case(module=module, example=case.example, run=case.run, spikes_of=case.spikes_of, neurons=case.neurons)


class SnnTorchLoop(nn.Module):
    """The loop of snnTorch's tutorials: membranes start from reset_mem and go from step to step."""

    def __init__(self, mechanism: str, residual: bool) -> None:
        import snntorch as snn

        super().__init__()
        self.residual = residual
        self.conv1, self.lif1 = nn.Conv2d(2, CHANNELS, 3, padding=1), snn.Leaky(0.9, reset_mechanism=mechanism)
        self.conv2 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.lif2 = snn.Leaky(torch.linspace(0.2, 0.9, CHANNELS).reshape(-1, 1, 1), reset_mechanism=mechanism)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(CHANNELS * SIZE * SIZE // 4, CLASSES)
        self.lif3 = snn.Leaky(0.5, threshold=torch.linspace(0.5, 1.0, CLASSES), reset_mechanism=mechanism)

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2, mem3 = self.lif1.reset_mem(), self.lif2.reset_mem(), self.lif3.reset_mem()
        record = []
        for step in range(x.size(0)):
            spk1, mem1 = self.lif1(self.conv1(x[step]), mem1)
            cur2 = self.conv2(spk1)
            spk2, mem2 = self.lif2(cur2 + spk1 if self.residual else cur2, mem2)
            spk3, mem3 = self.lif3(self.fc(self.pool(spk2).flatten(1)), mem3)
            record.append(spk3)
        return torch.stack(record)


def snntorch_loop(mechanism: str, residual: bool) -> Case:
    """Membranes carried by the user."""
    import snntorch as snn

    return Case(
        module=on_grid(SnnTorchLoop(mechanism, residual)),
        example=spike_input(),
        run=lambda module, x: module(x),
        spikes_of=stacked,
        neurons=(snn.Leaky,),
    )


def snntorch_hidden() -> Case:
    """init_hidden in a Sequential: the network is one step."""
    import snntorch as snn

    module = nn.Sequential(
        nn.Conv2d(2, CHANNELS, 3, padding=1),
        snn.Leaky(0.9, init_hidden=True),
        nn.MaxPool2d(2),
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
        snn.Leaky(0.5, init_hidden=True, reset_mechanism="zero"),
        nn.Flatten(),
        nn.Linear(CHANNELS * SIZE * SIZE // 4, CLASSES),
        snn.Leaky(0.75, init_hidden=True),
    )

    def run(module: nn.Module, x: Tensor) -> Tensor:
        for child in module.modules():
            if isinstance(child, snn.Leaky):
                child.reset_mem()
        return torch.stack([module(step) for step in x])

    return Case(
        module=on_grid(module),
        example=spike_input()[0],
        run=run,
        spikes_of=stacked,
        neurons=(snn.Leaky,),
    )


class NorseLoop(nn.Module):
    """norse's SequentialState in a loop, its states handed from step to step."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        state, outputs = None, []
        for t in range(T):
            out, state = self.net(x[t], state)
            outputs.append(out)
        return torch.stack(outputs)


def norse_chain() -> Case:
    """Boxes that keep a half from step to step, with both resets, and a leaky integrator at the end."""
    import norse.torch as norse
    from norse.torch.functional.reset import reset_subtract

    half = torch.tensor(0.5)
    parameters = norse.LIFBoxParameters(tau_mem_inv=half, v_th=half)
    net = norse.SequentialState(
        nn.Conv2d(2, CHANNELS, 3, padding=1),
        norse.LIFBoxCell(parameters, dt=1.0),
        nn.MaxPool2d(2),
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
        norse.LIFBoxCell(parameters._replace(reset_method=reset_subtract), dt=1.0),
        nn.Flatten(),
        nn.Linear(CHANNELS * SIZE * SIZE // 4, CLASSES),
        norse.LIBoxCell(norse.LIBoxParameters(tau_mem_inv=half), dt=1.0),
    )
    return Case(
        module=on_grid(NorseLoop(net)),
        example=spike_input(),
        run=lambda module, x: module(x),
        spikes_of=stacked,
        neurons=(norse.LIFBoxCell, norse.LIBoxCell),
    )


class NorseResidual(nn.Module):
    """States by name, as norse's tutorials write them."""

    def __init__(self) -> None:
        import norse.torch as norse

        super().__init__()
        half = torch.tensor(0.5)
        parameters = norse.LIFBoxParameters(tau_mem_inv=half, v_th=half)
        self.stem, self.first = nn.Conv2d(2, CHANNELS, 3, padding=1), norse.LIFBoxCell(parameters, dt=1.0)
        self.conv, self.second = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), norse.IAFCell()
        self.head = nn.Linear(CHANNELS * SIZE * SIZE, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        s1 = s2 = None
        outputs = []
        for t in range(T):
            y, s1 = self.first(self.stem(x[t]), s1)
            y, s2 = self.second(self.conv(y) + y, s2)
            outputs.append(self.head(y.flatten(1)))
        return torch.stack(outputs)


def norse_residual() -> Case:
    """A skip connection around a convolution."""
    import norse.torch as norse

    return Case(
        module=on_grid(NorseResidual()),
        example=spike_input(),
        run=lambda module, x: module(x),
        spikes_of=stacked,
        neurons=(norse.LIFBoxCell, norse.IAFCell),
    )


def _samples_first(results: list[Tensor]) -> Tensor:
    return whole(results).unflatten(0, (N, T)).transpose(0, 1)


def _run_sinabs(module: nn.Module, x: Tensor) -> Tensor:
    import sinabs

    sinabs.reset_states(module)
    return _samples_first([module(x.transpose(0, 1).flatten(0, 1))])


def sinabs_chain(sums: bool = False) -> Case:
    """Samples outermost, time and samples merged.

    sums: with sinabs' own pooling.
    """
    from sinabs.activation import MembraneReset, SingleSpike
    from sinabs.layers import IAFSqueeze, LIFSqueeze, SumPool2d

    module = nn.Sequential(
        nn.Conv2d(2, CHANNELS, 3, padding=1),
        IAFSqueeze(batch_size=N, spike_fn=SingleSpike),
        SumPool2d(2) if sums else nn.MaxPool2d(2),
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
        LIFSqueeze(tau_mem=1 / math.log(2), num_timesteps=T, spike_fn=SingleSpike, norm_input=False),
        nn.Flatten(),
        nn.Linear(CHANNELS * SIZE * SIZE // 4, CLASSES),
        IAFSqueeze(num_timesteps=T, spike_fn=SingleSpike, reset_fn=MembraneReset()),
    )
    return Case(
        module=on_grid(module),
        example=spike_input().transpose(0, 1).flatten(0, 1),
        run=_run_sinabs,
        spikes_of=_samples_first,
        neurons=(IAFSqueeze, LIFSqueeze),
        time_first=False,
    )


def sinabs_residual() -> Case:
    """A skip connection around a convolution."""
    from sinabs.activation import SingleSpike
    from sinabs.layers import IAFSqueeze, LIFSqueeze

    case = sinabs_chain()
    module = Residual(lambda: LIFSqueeze(tau_mem=3.0, batch_size=N, spike_fn=SingleSpike, norm_input=False))
    return Case(
        module=on_grid(module),
        example=case.example,
        run=case.run,
        spikes_of=case.spikes_of,
        neurons=(IAFSqueeze, LIFSqueeze),
        time_first=False,
    )


CASES: dict[str, tuple[str, Callable[[], Case]]] = {
    "SpikingJelly, sequences": ("spikingjelly", lambda: spikingjelly_chain("m")),
    "SpikingJelly, steps": ("spikingjelly", lambda: spikingjelly_chain("s")),
    "SpikingJelly, residual": ("spikingjelly", spikingjelly_residual),
    "snnTorch, loop": ("snntorch", lambda: snntorch_loop("subtract", residual=False)),
    "snnTorch, loop to zero": ("snntorch", lambda: snntorch_loop("zero", residual=False)),
    "snnTorch, hidden": ("snntorch", snntorch_hidden),
    "snnTorch, residual": ("snntorch", lambda: snntorch_loop("subtract", residual=True)),
    "norse, SequentialState": ("norse", norse_chain),
    "norse, residual": ("norse", norse_residual),
    "sinabs, squeezed": ("sinabs", sinabs_chain),
    "sinabs, sums": ("sinabs", lambda: sinabs_chain(sums=True)),
    "sinabs, residual": ("sinabs", sinabs_residual),
}
