"""Networks that PyTorch exported to ONNX: the framework's spikes, or a refusal where the state is gone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compiler.evaluate import evaluate
from compiler.ir import CompileError
from frontends.from_onnx import load_onnx
from tests.frontends.onnx_models import exported

T = 4
Reset = Callable[[nn.Module], None]


def layers() -> tuple[nn.Module, nn.Module]:
    """A convolution and a linear layer on a dyadic grid."""
    conv, linear = nn.Conv2d(1, 3, 3), nn.Linear(3 * 4 * 4, 4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (*conv.parameters(), *linear.parameters()):
            parameter.copy_(torch.randint(-8, 13, parameter.shape, generator=generator) / 16)
    return conv, linear


class Plain(nn.Module):
    """Neurons written out in a loop over time."""

    def __init__(self, soft: bool) -> None:
        super().__init__()
        self.conv, self.linear = layers()
        self.soft = soft

    def forward(self, x: Tensor) -> Tensor:
        first, second, spikes = 0.0, 0.0, []
        for t in range(T):
            current = self.conv(x[t])
            first = 0.5 * first + current
            fired = (first >= 1.0).float()
            first = first - fired if self.soft else first * (1 - fired)
            current = self.linear(fired.flatten(1))
            second = 0.75 * second + current
            out = (second >= 1.0).float()
            second = second - out if self.soft else second * (1 - out)
            spikes.append(out)
        return torch.stack(spikes)


class Stepped(nn.Module):
    """A loop over modules that do one step and keep their state."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.conv, self.linear = layers()
        self.first, self.second = first, second

    def step(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(self.linear(self.first(self.conv(x)).flatten(1)))
        return result

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.step(x[t]) for t in range(T)])


class OneStep(Stepped):
    """The same, called once for each step: an exporter sees no state."""

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x)


class Carried(Stepped):
    """A loop over modules whose state the caller carries."""

    def forward(self, x: Tensor) -> Tensor:
        first = second = None
        spikes = []
        for t in range(T):
            fired, first = self.first(self.conv(x[t]), first)
            out, second = self.second(self.linear(fired.flatten(1)), second)
            spikes.append(out)
        return torch.stack(spikes)


class CarriedOut(Stepped):
    """One step, whose states are returned but not taken."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]  # with states
        fired, first = self.first(self.conv(x), None)
        out, second = self.second(self.linear(fired.flatten(1)), None)
        return out, first, second


class Chained(nn.Module):
    """norse's container of layers and cells, in a loop."""

    def __init__(self, chain: nn.Module) -> None:
        super().__init__()
        self.chain = chain

    def forward(self, x: Tensor) -> Tensor:
        state, spikes = None, []
        for t in range(T):
            out, state = self.chain(x[t], state)
            spikes.append(out)
        return torch.stack(spikes)


class Sequences(Stepped):
    """Modules that take the whole sequence."""

    def forward(self, x: Tensor) -> Tensor:
        maps = self.first(self.conv(x.flatten(0, 1)).unflatten(0, (T, -1)))
        result: Tensor = self.second(self.linear(maps.flatten(2)))
        return result


def spikingjelly(kind: type[Stepped], mode: str, v_reset: float | None = 0.0) -> tuple[nn.Module, Reset]:
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import functional, neuron

    first, second = (
        neuron.LIFNode(tau=2.0, decay_input=decay_input, v_reset=v_reset, step_mode=mode)
        for decay_input in (False, True)
    )
    return kind(first, second), functional.reset_net


def snntorch(kind: type[Stepped], reset: str = "zero", *, hidden: bool = False) -> tuple[nn.Module, Reset]:
    snn = pytest.importorskip("snntorch")

    def start(net: nn.Module) -> None:
        for child in net.modules():
            if isinstance(child, snn.Leaky):
                child.reset_mem()

    first, second = (snn.Leaky(beta=beta, reset_mechanism=reset, init_hidden=hidden) for beta in (0.5, 0.75))
    return kind(first, second), start


def norse(kind: type[nn.Module]) -> tuple[nn.Module, Reset]:
    module = pytest.importorskip("norse.torch")
    parameters = module.LIFBoxParameters(tau_mem_inv=torch.tensor(500.0))
    cells = [module.LIFBoxCell(parameters, dt=0.001) for _ in range(2)]
    if kind is Chained:
        conv, linear = layers()
        chain = module.SequentialState(conv, cells[0], nn.Flatten(), linear, cells[1])
        return Chained(chain), lambda net: None
    return kind(*cells), lambda net: None


def plain(soft: bool) -> tuple[nn.Module, Reset]:
    return Plain(soft), lambda net: None


@dataclass(frozen=True, slots=True)
class Case:
    """A network, and whether an export of it keeps what is needed."""

    name: str
    build: Callable[[], tuple[nn.Module, Reset]]
    keeps_state: bool = True
    as_script: bool = True  # TorchScript's exporter has no form for spikingjelly's own operators
    quick: bool = False  # the tracing exporter takes seconds; all cases run with the slow tests


CASES = (
    Case("plain, hard reset", lambda: plain(False), quick=True),
    Case("plain, soft reset", lambda: plain(True)),
    Case("spikingjelly, sequences", lambda: spikingjelly(Sequences, "m"), as_script=False, quick=True),
    Case("spikingjelly, sequences, soft", lambda: spikingjelly(Sequences, "m", None), as_script=False),
    Case("spikingjelly, steps in a loop", lambda: spikingjelly(Stepped, "s"), as_script=False),
    Case("spikingjelly, one step", lambda: spikingjelly(OneStep, "s"), keeps_state=False, as_script=False, quick=True),
    Case("snntorch, state carried, zero", lambda: snntorch(Carried, "zero")),
    Case("snntorch, state carried, subtract", lambda: snntorch(Carried, "subtract")),
    Case("snntorch, hidden state in a loop", lambda: snntorch(Stepped, "zero", hidden=True)),
    Case("snntorch, one step", lambda: snntorch(OneStep, "zero", hidden=True), keeps_state=False),
    Case("snntorch, one step with states out", lambda: snntorch(CarriedOut, "zero"), keeps_state=False),
    Case("norse, state carried", lambda: norse(Carried)),
    Case("norse, layers and cells chained", lambda: norse(Chained)),
    Case("norse, one step with states out", lambda: norse(CarriedOut), keeps_state=False),
)


def drives(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(-4, 9, (T, 3, 1, 6, 6), generator=generator) / 8 for _ in range(count)]


RUNS = [
    pytest.param(
        case,
        dynamo,
        id=f"{case.name}, {'dynamo' if dynamo else 'torchscript'}",
        marks=[pytest.mark.slow] if dynamo and not case.quick else [],
    )
    for case in CASES
    for dynamo in (True, False)
    if dynamo or case.as_script
]


@pytest.mark.parametrize(("case", "dynamo"), RUNS)
def test_spikes_of_three_calls(case: Case, dynamo: bool, tmp_path: Path) -> None:
    """Each call starts from the reset state; the imported graph knows no other."""
    net, reset = case.build()
    net.eval()
    x = drives(1)[0]
    example = x if case.keeps_state else x[0]
    reset(net)
    exported(net, example, tmp_path / "net.onnx", dynamo=dynamo)
    if not case.keeps_state:
        with pytest.raises(CompileError, match="the exporter kept no state"):
            load_onnx(tmp_path / "net.onnx")
        with pytest.raises(CompileError, match="the exporter kept no state"):
            load_onnx(tmp_path / "net.onnx", timesteps=T)
        return
    graph = load_onnx(tmp_path / "net.onnx", timesteps=T).graph
    for x in drives(3):
        reset(net)
        with torch.no_grad():
            want = net(x)
        assert 0 < int(want.sum()) < want.numel()
        assert torch.equal(evaluate(graph, x).output, want)
