"""Loops that are no neurons, each refused with the equation found."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor, nn

from compiler.ir import CompileError
from frontends.from_torch import import_module
from tests.frontends.written_loops import drives, loop, reset


class Adaptive(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        m, a, spikes = torch.zeros(16, 5), torch.zeros(16, 5), []
        for step in x:
            m = 0.5 * m + step
            s = (m - (1.0 + 0.25 * a) > 0).float()
            m, a = m - s, 0.75 * a + s
            spikes.append(s)
        return torch.stack(spikes)


class Refractory(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        m, wait, spikes = torch.zeros(16, 5), torch.zeros(16, 5), []
        for step in x:
            m = 0.5 * m + step * (wait <= 0).float()
            s = (m > 1).float()
            m, wait = m * (1 - s), torch.clamp(wait - 1, min=0) + 2 * s
            spikes.append(s)
        return torch.stack(spikes)


class Changing(nn.Module):
    def __init__(self, threshold: float = 0.0, decay: float = 0.0, steps: int = 4) -> None:
        super().__init__()
        self.threshold, self.decay, self.steps = threshold, decay, steps

    def forward(self, x: Tensor) -> Tensor:
        m, spikes = torch.zeros(16, 5), []
        for t in range(self.steps):
            m = (0.5 + self.decay * t) * m + x[t]
            s = (m > 1 + self.threshold * t).float()
            m = m - m * s
            spikes.append(s)
        return torch.stack(spikes)


FORM = "a LIF is m[t] = decay * m[t-1] + scale * x[t] + leak, reset after a spike to a value or by the threshold"
GOLDEN: dict[str, tuple[nn.Module, str, str]] = {
    "recurrent weights": (
        loop(lambda net, m, s, x: reset(0.5 * m + x + net.fc(s))),
        "the input of step 1 depends on the neurons' own step 0, through fc: aten.linear.default",
        "recurrent connections, and what is not linear in m[t-1] or not in float32, are not expressed",
    ),
    "not linear": (
        loop(lambda net, m, s, x: reset(m + 0.5 * m * m + x)),
        "the input of step 1 depends on the neurons' own step 0, through aten.mul.Tensor",
        "recurrent connections, and what is not linear in m[t-1] or not in float32, are not expressed",
    ),
    "adaptive threshold": (
        Adaptive(),
        "the threshold of step 1 is 0.25*s[0] + 1, not a constant",
        "adaptive thresholds are not expressed; a Lif compares with one number, or one per channel",
    ),
    "threshold of another layer": (
        loop(lambda net, m, s, x: reset(0.5 * m + x, net.fc(x))),
        "the threshold of step 0 is linear, not a constant",
        "adaptive thresholds are not expressed; a Lif compares with one number, or one per channel",
    ),
    "joined potentials": (
        loop(lambda net, m, s, x: reset(0.5 * m + reset(x + 0.25 * m)[0])),
        "the recurrence m[0] = 0.5*add_1 - 0.5*add_1*[add_1 > 1] + add_2 - add_2*[add_2 > 1] is no LIF: "
        "2 membrane potentials are joined",
        FORM,
    ),
    "refractory counter": (
        Refractory(),
        "the recurrence m[1] = 0.5*m[0] - 0.5*m[0]*s[0] - [add_1 > 0]*getitem_1 + getitem_1 is no LIF: "
        "[add_1 > 0]*getitem_1 is not a value of another layer",
        FORM,
    ),
    "thresholds of steps": (
        Changing(threshold=0.25),
        "a neuron fires at m > 1 at step 0 and at m > 1.25 at step 1",
        "a Lif has one threshold for all steps",
    ),
    "decays of steps": (
        Changing(decay=0.125),
        "the recurrence m[2] = 0.75*m[1] - 0.75*m[1]*s[1] + x[2] is no LIF: "
        "step 1 is m[1] = 0.625*m[0] - 0.625*m[0]*s[0] + x[1]",
        "every step has the same equation",
    ),
    "fewer steps": (
        Changing(steps=3),
        "a neuron that is written out does 3 steps, the network has timesteps=4",
        "the loop over time does one step for each time step",
    ),
    "two thresholds": (
        loop(lambda net, m, s, x: (0.5 * m + x - s, (0.5 * m + x > 1).float() - (0.5 * m + x < -1).float())),
        "a membrane potential is compared with 1 and with -1",
        "a neuron has one threshold, and fires above it",
    ),
    "half a reset": (
        loop(lambda net, m, s, x: ((0.5 * m + x) * (1 - 0.5 * reset(0.5 * m + x)[1]), reset(0.5 * m + x)[1])),
        "the recurrence m[1] = 0.5*m[0] - 0.25*m[0]*s[0] + x[1] is no LIF: "
        "a spike changes the membrane potential in another way",
        FORM,
    ),
    "input lost by a reset": (
        loop(lambda net, m, s, x: ((0.5 * m + x) * (1 - s), reset((0.5 * m + x) * (1 - s))[1])),
        "the recurrence m[1] = 0.5*m[0] - 0.5*m[0]*s[0] - s[0]*x[1] + x[1] is no LIF: "
        "s[0]*x[1] is not of the step before alone",
        FORM,
    ),
    "growing": (
        loop(lambda net, m, s, x: reset(1.25 * m + x)),
        "the recurrence m[3] = 1.25*m[2] - 1.25*m[2]*s[2] + x[3] is no LIF: decay is 1.25, not inside [0, 1]",
        FORM,
    ),
    "thresholds of samples": (
        loop(lambda net, m, s, x: reset(0.5 * m + x, torch.arange(16.0)[:, None])),
        "the recurrence m[3] = 0.5*m[2] - 0.5*m[2]*s[2] + x[3] is no LIF: threshold differs within a channel",
        FORM,
    ),
    "fires below": (
        loop(lambda net, m, s, x: ((0.5 * m + x) * (0.5 * m + x >= 0), (0.5 * m + x < 0).float())),
        "the recurrence m[3] = 0.5*m[2]*s[2] + x[3] is no LIF: "
        "the network uses where the neuron does not fire, and not its spikes",
        FORM,
    ),
    "potentials read": (
        loop(lambda net, m, s, x: reset(0.5 * m + x), returns="potentials"),
        "aten.stack.default: reads the membrane potential of a neuron that fires",
        "only its spikes go to other layers",
    ),
    "double precision": (
        loop(lambda net, m, s, x: reset((0.5 * m.double() + x).float())),
        "the input of step 1 depends on the neurons' own step 0, through aten.add.Tensor",
        "recurrent connections, and what is not linear in m[t-1] or not in float32, are not expressed",
    ),
    "rounding": (
        loop(lambda net, m, s, x: reset(m + (x - m) / 1.5)),
        "m[3] = 0.333333*m[2] - 0.333333*m[2]*s[2] + 0.666667*x[3] rounds in another order than a Lif: "
        "3 of 12480 spikes differ on test inputs",
        "write m = decay * m + scale * x, or use numbers whose products f32 holds exactly",
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_refusals(case: str) -> None:
    net, message, hint = GOLDEN[case]
    with pytest.raises(CompileError) as fault:
        import_module(net, drives(4, 0), 4)
    assert (fault.value.message, fault.value.hint) == (message, hint)


def test_the_line_is_named() -> None:
    lines, first = inspect.getsourcelines(Adaptive.forward)
    line = first + next(index for index, text in enumerate(lines) if " > 0)" in text)
    with pytest.raises(CompileError) as fault:
        import_module(Adaptive(), drives(4, 0), 4)
    assert str(fault.value.loc) == f"{__file__}:{line}"
