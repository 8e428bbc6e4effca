"""The surrogate derivatives against the functions that they are derivatives of."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.ir import Surrogate, SurrogateKind
from compiler.surrogate import surrogate_gradient

Primitive = Callable[[float, float], float]  # of u and the width, for scale 1


def _triangle(u: float, w: float) -> float:
    inside = max(-w, min(w, u))
    return inside - math.copysign(inside * inside / (2 * w), u)


PRIMITIVES: dict[SurrogateKind, Primitive] = {
    SurrogateKind.RECTANGLE: lambda u, w: max(-w, min(w, u)),
    SurrogateKind.TRIANGLE: _triangle,
    SurrogateKind.ATAN: lambda u, w: 2 * w / math.pi * math.atan(math.pi * u / (2 * w)),
    SurrogateKind.SIGMOID: lambda u, w: 4 * w / (1 + math.exp(-u / w)),
    SurrogateKind.FAST_SIGMOID: lambda u, w: u / (1 + abs(u) / w),
    SurrogateKind.SUPERSPIKE: lambda u, w: u / (1 + abs(u) / w),
    SurrogateKind.EXPONENTIAL: lambda u, w: math.copysign(w * (1 - math.exp(-abs(u) / w)), u),
}


@given(
    st.sampled_from(SurrogateKind),
    st.floats(-3, 3),
    st.floats(0.2, 2),
    st.floats(0.1, 3),
)
@settings(max_examples=300, deadline=None)
def test_gradient_is_the_derivative_of_its_primitive(kind: SurrogateKind, u: float, width: float, scale: float) -> None:
    step = 1e-5
    if abs(abs(u) - width) < step or abs(u) < step:
        return  # a kink, where a difference quotient is no derivative
    primitive = PRIMITIVES[kind]
    quotient = scale * (primitive(u + step, width) - primitive(u - step, width)) / (2 * step)
    surrogate = Surrogate(kind=kind, width=width, scale=scale)
    got = surrogate_gradient(surrogate, torch.tensor(u, dtype=torch.float64)).item()
    # the quotient's own errors: rounding 1e-16 / step, truncation step^2 * third derivative (< 1e4 here)
    assert got == pytest.approx(quotient, abs=2e-6)


@pytest.mark.parametrize("kind", SurrogateKind)
def test_peak_is_scale(kind: SurrogateKind) -> None:
    surrogate = Surrogate(kind=kind, width=0.5, scale=0.75)
    assert surrogate_gradient(surrogate, torch.tensor(0.0)).item() == 0.75


def test_rectangle_is_open() -> None:
    edges = torch.tensor([-0.5, -0.4999, 0.4999, 0.5])
    assert surrogate_gradient(Surrogate(width=0.5), edges).tolist() == [0.0, 1.0, 1.0, 0.0]
