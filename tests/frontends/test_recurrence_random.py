"""Random loops: what is imported gives the module's values, and all else is refused."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from compiler.evaluate import evaluate
from compiler.ir import CompileError
from frontends.from_torch import import_module
from tests.frontends.written_loops import Layers, drives

NUMBERS = ("0.5", "0.25", "1.0", "0.75", "-0.5", "2.0", "0.125")
COMPARISONS = ("(m > {c})", "(m >= {c})", "(m - {c} > 0)", "((m * {d} - {c}) >= 0)", "~(m < {c})", "(m < {c})")
RESETS = ("m", "m*(1-s)", "m-s", "m-s*0.5", "torch.where(fired, 0.5, m)", "m-s*x", "m*0.5", "m+0.25")
READOUTS = ("o*0.5+s", "o+s", "o*0.75+s*0.5+0.25", "(o+s)*0.5", "o*0.5+m", "o*0.5+x")
PROGRAM = """
def forward(net, sequence):
    m, s, o, out = torch.zeros(16, 4), torch.zeros(16, 4), {start}, []
    fired = s > 0
    for step in sequence:
        x = net.fc(step)
        m = {update}
        fired = {compare}
        s = fired.float()
        m = {reset}
        o = {readout}
        out.append({output})
    return torch.stack(out)
"""


def expression(draw: random.Random, names: tuple[str, ...], depth: int) -> str:
    if depth == 0 or draw.random() < 0.15:
        return draw.choice(names)
    a, b = (expression(draw, names, depth - 1) for _ in range(2))
    c = draw.choice(NUMBERS)
    forms = (
        *(f"({a}+{b})", f"({a}-{b})", f"({a}*{c})", f"({a}+{c})", f"({a}-{c})", f"({c}-{a})", f"({a}/{c})"),
        *(f"({a}*s)", f"({a}*(1-s))", f"torch.where(fired, {a}, {b})", f"({a}).masked_fill(fired, {c})"),
    )
    return draw.choice(forms)


def update(draw: random.Random) -> str:
    left = draw.choice(("m", "m*(1-s)", "(m-s)", "torch.where(fired, 0.25, m)"))
    return draw.choice(
        (
            expression(draw, ("m", "x", "x", "s"), 2),
            f"({left}*{draw.choice(('0.5', '0.75', '0.25', '1.0'))}+{expression(draw, ('x', 'x', 's'), 1)})",
            f"({left}*{draw.choice(('0.5', '0.75'))}+x*{draw.choice(NUMBERS)})",
        )
    )


def program(seed: int) -> tuple[int, str]:
    draw = random.Random(seed)
    source = PROGRAM.format(
        start=draw.choice(("0.0", "torch.zeros(16, 4)", "torch.full((16, 4), 0.5)")),
        update=update(draw),
        compare=draw.choice(COMPARISONS).format(c=draw.choice(NUMBERS), d=draw.choice(NUMBERS)),
        reset=draw.choice((*RESETS, expression(draw, ("m", "m", "s"), 2))),
        readout=draw.choice(READOUTS),
        output=draw.choice(("s", "s", "s", "m", "o", "s+o")),
    )
    return draw.randint(1, 5), source


def imports_exactly(seed: int) -> bool:
    """Whether the program is imported; fails if it is, and computes something else."""
    timesteps, source = program(seed)
    scope: dict[str, Callable[[Layers, Tensor], Tensor]] = {}
    exec(source, {"torch": torch}, scope)
    net, x = Layers(scope["forward"], fc=nn.Linear(5, 4)), drives(timesteps, seed)
    try:
        graph = import_module(net, x, timesteps).graph
    except CompileError:
        return False
    assert torch.equal(evaluate(graph, x).output, net(x)), (seed, timesteps, source)
    return True


def test_random_loops() -> None:
    imported = [imports_exactly(seed) for seed in range(60)]
    assert 10 <= sum(imported) <= 50  # both happen


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
def test_many_random_loops(block: int) -> None:
    imported = [imports_exactly(seed) for seed in range(1000 + 200 * block, 1200 + 200 * block)]
    assert any(imported)
