"""Neurons written out in operators: imported graphs against the loops that they came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compiler.evaluate import evaluate
from compiler.ir import Compare, CompileError, Graph, Reset, Surrogate, SurrogateKind
from compiler.ir.ops import Lif
from frontends.from_torch import import_module
from frontends.torch_import.recurrence import fold_recurrences, spiking
from frontends.torch_import.recurrence.match import fit
from frontends.torch_import.trace import trace
from tests.frontends.written_loops import Fire, Layers, drives, loop, only, put, reset


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """Of one neuron; multiples of 1/8, so that every form rounds nothing away."""

    decay: float = 0.5
    threshold: float = 1.0
    reset: float = 0.25
    rest: float = 0.125


FIRING: dict[str, tuple[Compare, Callable[[Tensor, float], Tensor]]] = {
    "gt": (Compare.GT, lambda m, h: (m > h).float()),
    "ge": (Compare.GE, lambda m, h: (m >= h).to(m.dtype)),
    "difference": (Compare.GT, lambda m, h: (m - h > 0).float()),
    "difference, ge": (Compare.GE, lambda m, h: ((m - h) >= 0.0).type_as(m)),
    "negative difference": (Compare.GE, lambda m, h: (h - m <= 0).float()),
    "threshold on the left": (Compare.GT, lambda m, h: torch.lt(torch.tensor(h), m).float()),
    "not below": (Compare.GE, lambda m, h: 1 - (m < h).float()),
    "logical not": (Compare.GT, lambda m, h: torch.logical_not(m <= h).float()),
    "bitwise not": (Compare.GT, lambda m, h: (~(m <= h)).float()),
    "where": (Compare.GT, lambda m, h: torch.where(m > h, 1.0, 0.0)),
    "where of tensors": (Compare.GE, lambda m, h: torch.where(m >= h, torch.ones_like(m), torch.zeros_like(m))),
    "heaviside": (Compare.GE, lambda m, h: torch.heaviside(m - h, torch.tensor(1.0))),
    "heaviside, 0 at 0": (Compare.GT, lambda m, h: torch.heaviside(m - h, torch.tensor([0.0]))),
    "ratio": (Compare.GE, lambda m, h: (m / h >= 1).float()),
    "function": (Compare.GT, lambda m, h: Fire.apply(m - h)),
    "put": (Compare.GT, lambda m, h: put(torch.zeros_like(m), m > h, 1.0)),
    "bytes": (Compare.GE, lambda m, h: (m >= h).byte().float()),
    "integers": (Compare.GT, lambda m, h: (m > h).long().float()),
}
RESETTING: dict[str, tuple[Reset, bool, Callable[[Tensor, Tensor, Numbers], Tensor]]] = {
    "soft": (Reset.SOFT, False, lambda m, s, n: m - s * n.threshold),
    "soft, where": (Reset.SOFT, False, lambda m, s, n: torch.where(s.bool(), m - n.threshold, m)),
    "soft, in place": (Reset.SOFT, False, lambda m, s, n: m.clone().sub_(n.threshold * s)),
    "soft, put": (Reset.SOFT, False, lambda m, s, n: m - put(torch.zeros_like(m), s > 0, n.threshold)),
    "soft by another amount": (Reset.SOFT, False, lambda m, s, n: m - s * n.reset),
    "to 0": (Reset.HARD, False, lambda m, s, n: m * (1 - s)),
    "to 0, subtracted": (Reset.HARD, False, lambda m, s, n: m - m * s),
    "to a value": (Reset.HARD, True, lambda m, s, n: (1 - s) * m + s * n.reset),
    "to a value, where": (Reset.HARD, True, lambda m, s, n: torch.where(s.bool(), torch.tensor(n.reset), m)),
    "to a value, number": (Reset.HARD, True, lambda m, s, n: torch.where(s > 0, n.reset, m)),
    "to a value, masked": (Reset.HARD, True, lambda m, s, n: m.masked_fill(s.bool(), n.reset)),
    "to a value, put": (Reset.HARD, True, lambda m, s, n: put(m, s.bool(), n.reset)),
    "none": (Reset.NONE, False, lambda m, s, n: m),
}
INTEGRATION: dict[str, Callable[[Tensor | float, Tensor, Numbers], Tensor]] = {
    "decay": lambda m, x, n: n.decay * m + x,
    "decay of a tensor": lambda m, x, n: torch.tensor(n.decay) * m + x,
    "tau": lambda m, x, n: m + (x - m) / (1 / (1 - n.decay)),
    "scaled": lambda m, x, n: m * n.decay + x * (1 - n.decay),
    "rest": lambda m, x, n: m + (x - (m - n.rest)) / 2.0,
    "bias": lambda m, x, n: n.decay * m + x + n.rest,
    "lerp": lambda m, x, n: torch.lerp(torch.as_tensor(m).expand(x.shape), x, 1 - n.decay),
    "addcmul": lambda m, x, n: torch.addcmul(x, torch.as_tensor(m), torch.tensor(n.decay)),
    "in place": lambda m, x, n: torch.as_tensor(m).expand(x.shape).clone().mul_(n.decay).add_(x),
}


INITIAL: dict[str, Callable[[Tensor], Tensor | float]] = {
    "number": lambda x: 0.0,
    "zeros": lambda x: torch.zeros(x.shape[1], x.shape[2]),
    "zeros like": lambda x: torch.zeros_like(x[0]),
    "value": lambda x: torch.full((x.shape[1], x.shape[2]), 0.375),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How a loop is written."""

    firing: str = "gt"
    resetting: str = "to 0"
    integration: str = "decay"
    initial: str = "zeros"
    delayed: bool = False
    numbers: Numbers = Numbers()  # immutable


class Loop(nn.Module):
    """One layer of neurons."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        form, numbers = self.form, self.form.numbers
        fire = FIRING[form.firing][1]
        m: Tensor | float = INITIAL[form.initial](x)
        spikes: list[Tensor] = []
        for current in x:
            before = m
            m = INTEGRATION[form.integration](m, current, numbers)
            if form.delayed and spikes:
                m = m - fire(torch.as_tensor(before), numbers.threshold).detach() * numbers.threshold
            s = fire(m, numbers.threshold)
            if not form.delayed:
                m = RESETTING[form.resetting][2](m, s, numbers)
            spikes.append(s)
        return torch.stack(spikes)


def imported(net: nn.Module, x: Tensor) -> Graph:
    return import_module(net, x, x.shape[0], name="net").graph


eighths = st.integers(1, 12).map(lambda k: k / 8)
forms = st.builds(
    Form,
    firing=st.sampled_from(sorted(FIRING)),
    resetting=st.sampled_from(sorted(RESETTING)),
    integration=st.sampled_from(sorted(INTEGRATION)),
    initial=st.sampled_from(sorted(INITIAL)),
    delayed=st.booleans(),
    numbers=st.builds(
        Numbers, decay=st.sampled_from([0.0, 0.5, 0.75, 0.875]), threshold=eighths, reset=eighths, rest=eighths
    ),
)


def check_form(form: Form, timesteps: int, seed: int) -> None:
    net, x = Loop(form), drives(timesteps, seed)
    graph = imported(net, x)
    assert torch.equal(evaluate(graph, x).output, net(x))
    (lif,) = only(graph, Lif)
    assert lif.compare is FIRING[form.firing][0]
    if timesteps > 1:
        delayed = form.delayed and form.numbers.decay < 1.0
        reset, has_value, _ = RESETTING[form.resetting]
        assert (lif.reset, lif.reset_delay) == ((Reset.SOFT, True) if delayed else (expected(form, reset), False))
        if lif.reset is Reset.HARD:
            assert lif.reset_value == (form.numbers.reset if has_value else 0.0)


def expected(form: Form, reset: Reset) -> Reset:
    """Without decay nothing is left of a membrane potential that a reset could change."""
    forgets = form.integration not in ("rest",) and form.numbers.decay == 0.0
    return Reset.NONE if forgets else reset


# Shrinking costs minutes: each example is traced anew.
_PHASES = [Phase.explicit, Phase.reuse, Phase.generate]


@settings(max_examples=30, deadline=None, phases=_PHASES)
@given(form=forms, timesteps=st.integers(1, 6), seed=st.integers(0, 2**16))
def test_spikes_are_the_loops(form: Form, timesteps: int, seed: int) -> None:
    check_form(form, timesteps, seed)


@pytest.mark.slow
@settings(max_examples=500, deadline=None, phases=_PHASES)
@given(form=forms, timesteps=st.integers(1, 8), seed=st.integers(0, 2**16))
def test_spikes_are_the_loops_in_many_forms(form: Form, timesteps: int, seed: int) -> None:
    check_form(form, timesteps, seed)


@pytest.mark.parametrize("detached", [False, True])
def test_what_is_read_and_what_is_assumed(detached: bool) -> None:
    def body(net: Layers, m: Tensor, s: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        s = s.detach() if detached else s
        m = 0.5 * (m - s) + x
        return m, (m >= 1).float()

    result = import_module(loop(body), drives(4, 0), 4)
    (lif,) = only(result.graph, Lif)
    assert lif.detach_reset is detached
    assert [(finding.place, str(finding.ground), finding.text) for finding in result.findings] == [
        (
            "lif",
            "read",
            "written out in operators: m[3] = 0.5*m[2] - 0.5*s[2] + x[3], fires at m >= 1, reset soft",
        ),
        ("lif", "assumed", "surrogate: rectangle of width 0.5; operators do not show how spikes are differentiated"),
    ]


def test_a_spike_whose_gradient_is_that_of_a_sigmoid_is_not_detached() -> None:
    def body(net: Layers, m: Tensor, s: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        m = 0.5 * (m - s) + x
        soft = torch.sigmoid(4 * (m - 1))
        return m, ((m >= 1).float() - soft).detach() + soft

    (lif,) = only(import_module(loop(body), drives(4, 0), 4).graph, Lif)
    assert (lif.reset, lif.detach_reset) == (Reset.SOFT, False)


def test_a_cut_gradient_is_told() -> None:
    result = import_module(loop(lambda net, m, s, x: reset(0.5 * m.detach() + x)), drives(4, 0), 4)
    assert [finding.text for finding in result.findings][-1] == (
        "the gradient goes through the membrane potential, which the module detaches"
    )


@pytest.mark.parametrize(
    "wrong",
    [{"compare": Compare.GE}, {"decay": np.asarray(0.5001)}, {"reset": Reset.SOFT}, {"initial": np.asarray(0.25)}],
)
def test_a_wrong_op_is_found_by_executing_both(wrong: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spiking, "fit", lambda chain: replace(fit(chain), **wrong))
    with pytest.raises(CompileError, match="spikes differ on test inputs"):
        import_module(loop(lambda net, m, s, x: reset(0.5 * m + x)), drives(4, 0), 4)


def test_the_surrogate_can_be_given() -> None:
    surrogate = Surrogate(kind=SurrogateKind.ATAN, width=0.25)
    traced = trace(loop(lambda net, m, s, x: reset(0.5 * m + x)), drives(4, 0), 4, "net")
    (neuron,) = fold_recurrences(traced, 4, surrogate).neurons
    assert neuron.op.surrogate == surrogate
    assert neuron.assumed == ()


def test_a_trace_without_loops_stays() -> None:
    traced = trace(nn.Sequential(nn.Linear(5, 4)), drives(4, 0), 4, "net")
    assert fold_recurrences(traced, 4) is traced
