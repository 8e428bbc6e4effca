"""Inputs of any layout and kind: a right result or one clear refusal, and the process lives on."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import spikec
from frontends.nn import LIF
from hwmodel.errors import CompileError
from runtime.fused.module import FusedModule
from tests.golden import Golden
from tests.runtime.fused.gradients import differing, step
from tests.runtime.fused.networks import T
from tests.runtime.fused.test_exact_gradients import on_grid


def network() -> nn.Module:
    layers = [nn.Conv2d(2, 4, 3, padding=1), LIF(decay=0.5, threshold=1.0, timesteps=T), nn.Conv2d(4, 3, 2)]
    return on_grid(nn.Sequential(*layers, LIF(decay=0.5, threshold=1.0, timesteps=T)))


def batch(samples: int = 2) -> Tensor:
    return torch.randint(-1, 4, (T * samples, 2, 5, 4), generator=torch.Generator().manual_seed(samples)) / 2


def shifted(x: Tensor, elements: int = 1) -> Tensor:
    """The same values, their memory beginning some elements into a buffer."""
    buffer = torch.empty(x.numel() + elements, dtype=x.dtype)
    return buffer[elements:].view(x.shape).copy_(x)


def shifted_channels_last(x: Tensor) -> Tensor:
    last = shifted(x.permute(0, 2, 3, 1).contiguous())
    return last.permute(0, 3, 1, 2)


def strided(x: Tensor) -> Tensor:
    """Each element lies beside one that must not be read or written."""
    buffer = torch.full((*x.shape, 2), float("nan"))
    buffer[..., 0] = x
    return buffer[..., 0]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 3).contiguous().transpose(0, 3),
    "strided": strided,
    "unaligned": shifted,
    "unaligned channels last": shifted_channels_last,
    "flipped": lambda x: x.flip(3).flip(3),
    "expanded": lambda x: x[:1, :1, :1, :1].expand(x.shape),
}


@pytest.mark.parametrize("of_grad", LAYOUTS)
@pytest.mark.parametrize("of_x", LAYOUTS)
def test_layouts(of_x: str, of_grad: str) -> None:
    module = network()
    fused = spikec.fuse(copy.deepcopy(module), batch(), T)
    x, shape = batch(), (T * 2, 3, 4, 3)
    upstream = torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(1)).float()
    x, upstream = LAYOUTS[of_x](x), LAYOUTS[of_grad](upstream)
    leaf, other = x.detach().requires_grad_(), x.detach().clone().requires_grad_()
    y = fused(leaf)
    y.backward(upstream)
    want = module(other)
    want.backward(upstream)
    assert torch.equal(y, want)
    assert torch.equal(leaf.grad, other.grad)  # type: ignore[arg-type]
    for (name, first), second in zip(module.named_parameters(), fused.parameters(), strict=True):
        assert torch.equal(first.grad, second.grad), name  # type: ignore[arg-type]


@pytest.mark.parametrize("of_weight", ["transposed", "strided", "unaligned", "unaligned channels last"])
def test_layouts_of_weights(of_weight: str) -> None:
    """Weights may be replaced behind the module's back."""
    module = network()
    fused = spikec.fuse(copy.deepcopy(module), batch(), T)
    with torch.no_grad():
        for path in ("0.weight", "2.weight"):
            parameter = fused.get_parameter(path)
            parameter.data = LAYOUTS[of_weight](parameter.data)
    upstream = torch.ones(T * 2, 3, 4, 3)
    assert differing(step(module, batch(), upstream), step(fused, batch(), upstream)) == []


GRADIENT_LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda grad: grad.t().contiguous().t(),
    "strided": strided,
    "expanded": lambda grad: grad[:1, :1].expand(grad.shape),
}


@pytest.mark.parametrize("of_grad", GRADIENT_LAYOUTS)
@pytest.mark.parametrize("flatten", [True, False])
def test_layouts_of_gradients_of_features(flatten: bool, of_grad: str) -> None:
    """Spikes of one pixel, flattened, and spikes of features."""
    lif = LIF(decay=0.5, threshold=1.0, timesteps=T)
    layers = [nn.Conv2d(2, 4, (5, 4)), lif, nn.Flatten()] if flatten else [nn.Flatten(), nn.Linear(40, 4), lif]
    module = on_grid(nn.Sequential(*layers))
    fused = spikec.fuse(copy.deepcopy(module), batch(), T)
    upstream = torch.randint(-2, 3, (T * 2, 4), generator=torch.Generator().manual_seed(1)).float()
    upstream = GRADIENT_LAYOUTS[of_grad](upstream)
    assert differing(step(module, batch(), upstream), step(fused, batch(), upstream)) == []


def in_float16() -> Tensor:
    with torch.autocast("cpu", dtype=torch.float16):
        return ready()(batch())


def of_one_value() -> Tensor:
    module = nn.Sequential(nn.Conv2d(2, 4, (5, 4)), nn.BatchNorm2d(4), LIF(timesteps=1))
    return spikec.fuse(module, batch(), 1)(batch()[:1])


def ready() -> FusedModule:
    return spikec.fuse(network(), batch(), T)


CASES: dict[str, Callable[[], object]] = {
    "float64": lambda: ready()(batch().double()),
    "float16": lambda: ready()(batch().half()),
    "autocast to float16": in_float16,
    "a batch norm of one value": of_one_value,
    "int": lambda: ready()(batch().int()),
    "bool": lambda: ready()(batch() > 0),
    "complex": lambda: ready()(batch().cfloat()),
    "other channels": lambda: ready()(torch.rand(T * 2, 3, 5, 4)),
    "other size": lambda: ready()(torch.rand(T * 2, 2, 6, 4)),
    "other rank": lambda: ready()(torch.rand(T * 2, 40)),
    "separate time": lambda: ready()(torch.rand(T, 2, 2, 5, 4)),
    "no multiple of the time steps": lambda: ready()(torch.rand(T * 2 + 1, 2, 5, 4)),
    "no samples": lambda: ready()(torch.rand(0, 2, 5, 4)),
    "no time steps": lambda: spikec.fuse(network(), batch(), 0),
    "an example in float64": lambda: spikec.fuse(network().double(), batch().double(), T),
    "an example without samples": lambda: spikec.fuse(network(), torch.rand(0, 2, 5, 4), T),
    "an example of no multiple of the time steps": lambda: spikec.fuse(network(), torch.rand(T * 2 + 1, 2, 5, 4), T),
}


def test_refusals(golden: Golden) -> None:
    lines = []
    for name, call in CASES.items():
        with pytest.raises(CompileError) as fault:
            call()
        lines.append(f"{name}:\n{fault.value}\n")
    golden("bad_input.txt", "\n".join(lines))


def test_a_refused_input_leaves_the_module_as_it_was() -> None:
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), LIF(timesteps=T))
    fused = spikec.fuse(module, batch(), T)
    before = copy.deepcopy(fused.state_dict())
    for x in (batch().double(), torch.rand(T * 2, 3, 5, 4), batch()[:0]):
        with pytest.raises(CompileError):
            fused(x)
    assert all(torch.equal(value, before[name]) for name, value in fused.state_dict().items())


WILD = """
import torch
from torch import nn
import spikec
from frontends.nn import LIF
from hwmodel.errors import CompileError
from tests.runtime.fused.networks import T

def attempt(call):
    try:
        call()
    except (RuntimeError, TypeError, ValueError) as fault:  # torch's own words; never a dead process
        print(type(fault).__name__)

for value in (float("nan"), float("inf"), -float("inf"), 1e38, 1e-45):
    for norm in (nn.BatchNorm2d(4), nn.Identity()):
        fused = spikec.fuse(nn.Sequential(nn.Conv2d(2, 4, 3), norm, LIF(timesteps=T), nn.Conv2d(4, 3, 2)),
                            torch.rand(T * 2, 2, 5, 4), T)
        y = fused(torch.full((T * 2, 2, 5, 4), value).requires_grad_())
        y.backward(torch.full_like(y, value))
fused = spikec.fuse(nn.Sequential(nn.Conv2d(2, 4, 3), LIF(timesteps=T), nn.Conv2d(4, 3, 2)),
                    torch.rand(T * 2, 2, 5, 4), T)
x = torch.rand(T * 2, 2, 5, 4)
for name, weight in (("0.weight", torch.rand(4, 2, 4, 4)), ("2.weight", torch.rand(3, 4, 1, 1)),
                     ("2.weight", torch.rand(3, 7, 2, 2)), ("2.bias", torch.rand(9)), ("2.weight", torch.rand(3))):
    old = fused.get_parameter(name).data
    fused.get_parameter(name).data = weight
    attempt(lambda: fused(x).sum().backward())
    fused.get_parameter(name).data = old
attempt(lambda: fused(x).backward(torch.rand(1)))
y = fused(x)
y.sum().backward()
attempt(lambda: y.sum().backward())
attempt(lambda: torch.autograd.grad(fused(x.requires_grad_()).sum(), x, create_graph=True)[0].sum().backward())
attempt(lambda: fused.to("meta")(x.detach().to("meta")))
print("alive")
"""


def test_the_process_survives_anything() -> None:
    """Values that overflow, weights and gradients of another shape, graphs used up."""
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", WILD]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "alive"
