"""One neuron of a framework against the op that its adapter reads: spikes, ties at the threshold, gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from compiler.evaluate import evaluate
from compiler.ir import CompileError, DType, Graph, Loc, Node
from compiler.ir.ops import Input, Li, Lif
from frontends.to_torch import to_torch
from frontends.torch_import.adapters import Neuron, read_neuron
from tests.golden import Golden

T, N, C = 50, 8, 64
Run = Callable[[nn.Module, Tensor], Tensor]  # (T, N, C) -> the same, by the framework itself
Build = Callable[[], nn.Module]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A neuron module with one choice of settings, and how its framework runs it over a sequence.

    gain: factor of the drive, so that the neuron fires at some steps and not at others.
    same_bits: the framework rounds as the op does, so that membranes are equal bit for bit.
    """

    build: Build
    run: Run
    gain: float = 1.0
    same_bits: bool = True
    seed: int = 0

    def random_drive(self) -> Tensor:
        """Reals on both sides of the threshold, some above twice the threshold."""
        generator = torch.Generator().manual_seed(self.seed)
        return self.gain * (0.3 + 0.9 * torch.randn(T, N, C, generator=generator))

    def grid_drive(self) -> Tensor:
        """Multiples of 1/8 times the gain, on which membranes meet the threshold."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        return self.gain * torch.randint(-4, 10, (T, N, C), generator=generator) / 8


def neuron_of(module: nn.Module) -> Neuron:
    """What the adapter reads."""
    neuron = read_neuron("net.lif", module, T)
    assert neuron is not None
    return neuron


def graph_of(neuron: Neuron, channels: int = C) -> Graph:
    """The op alone between input and output."""
    x = Node("x", Input(shape=(T, "N", channels), dtype=DType.F32, axes="TNC"), (), Loc("x"))
    node = Node("neuron", neuron.op, ("x",), Loc("neuron"))
    return Graph("neuron", (x, node), "neuron", {name: array.numpy() for name, array in neuron.arrays})


def check_spikes(setting: Setting, x: Tensor) -> Tensor:
    """The same spikes at every step; returns the op's membrane potentials.

    Raises: AssertionError, also where nothing fires or everything does.
    """
    with torch.no_grad():
        want = setting.run(setting.build(), x)
    graph = graph_of(neuron_of(setting.build()))
    got = evaluate(graph, x, traces=["neuron"])
    assert torch.equal(got.output, want), f"{int((got.output != want).sum())} of {want.numel()} spikes differ"
    if isinstance(graph.nodes[1].op, Lif):
        assert 0.02 < float(want.mean()) < 0.98
    return got.membranes["neuron"]


def check_ties(setting: Setting) -> int:
    """As check_spikes, on a drive that meets the threshold; returns how often it does."""
    membranes = check_spikes(setting, setting.grid_drive())
    graph = graph_of(neuron_of(setting.build()))
    op = graph.nodes[1].op
    assert isinstance(op, Lif)
    threshold = (
        op.threshold if isinstance(op.threshold, float) else dict(neuron_of(setting.build()).arrays)[op.threshold.name]
    )
    return int((membranes == threshold).sum())


def check_gradient(setting: Setting) -> None:
    """d (upstream . spikes) / dx by the framework's autograd and by that of the graph as a module."""
    x = setting.random_drive()[:20].requires_grad_()
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    (want,) = torch.autograd.grad((setting.run(setting.build(), x) * upstream).sum(), x)
    graph = graph_of(neuron_of(setting.build()))
    (got,) = torch.autograd.grad((to_torch(graph)(x) * upstream).sum(), x)
    assert want.abs().max() > 0
    # sums of at most 20 terms in 32 bits, in another order
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


def flipped(neuron: Neuron) -> Neuron:
    """The same neuron with the other answer to whether the reset is detached."""
    assert isinstance(neuron.op, Lif)
    return replace(neuron, op=replace(neuron.op, detach_reset=not neuron.op.detach_reset))


def first_differences(got: Tensor, want: Tensor) -> list[tuple[int, ...]]:
    """The place of each neuron's first step at which the spikes differ."""
    differ = got != want
    first = differ & (differ.cumsum(0) == 1)
    return [tuple(place) for place in first.nonzero().tolist()]


def check_rounding(setting: Setting, x: Tensor, bound: float) -> None:
    """Where a neuron first differs from its framework, its membrane is within the bound of the threshold."""
    with torch.no_grad():
        want = setting.run(setting.build(), x)
    graph = graph_of(neuron_of(setting.build()))
    got = evaluate(graph, x, traces=["neuron"])
    op = graph.nodes[1].op
    assert isinstance(op, Lif)
    assert isinstance(op.threshold, float)
    for place in first_differences(got.output, want):
        assert abs(float(got.membranes["neuron"][place]) - op.threshold) <= bound


def check_refusals(builds: dict[str, Build], golden: Golden, name: str) -> None:
    """Every module is refused; the texts are golden."""
    lines = []
    for what, build in builds.items():
        try:
            neuron = read_neuron("net.lif", build(), T)
            lines.append(f"[{what}]\nimported as {neuron}")
        except CompileError as fault:
            lines.append(f"[{what}]\n{fault}")
    golden(name, "\n".join(lines) + "\n")


def check_texts(settings: dict[str, Setting], golden: Golden, name: str) -> None:
    """What is read and assumed of every setting, other roundings included; the texts are golden."""
    lines = []
    for what, setting in settings.items():
        neuron = neuron_of(setting.build())
        assert any("may round otherwise" in text for text in neuron.assumed) is not setting.same_bits, what
        lines.append(f"[{what}]")
        lines.extend(f"read     {text}" for text in neuron.read)
        lines.extend(f"assumed  {text}" for text in neuron.assumed)
    golden(name, "\n".join(lines) + "\n")


def membranes_of(setting: Setting, x: Tensor) -> Tensor:
    """The potentials of a leaky integrator, by its op."""
    neuron = neuron_of(setting.build())
    assert isinstance(neuron.op, Li)
    return evaluate(graph_of(neuron), x).output
