"""`spikec.fuse` on the networks it is for: other frameworks', residual ones, and the zoo."""

from __future__ import annotations

import copy
from collections import defaultdict

import pytest
import torch
from torch import Tensor, nn

import spikec
from compiler.ir import Reset
from frontends.nn import LIF
from frontends.resnet import ResidualBlock
from frontends.zoo import Neuron, build, entry, names
from tests.runtime.fused.gradients import Step, double, margin, step, upstream_like

T = 2
ULP = torch.finfo(torch.float32).eps
# zoo networks whose weights or maps take seconds a step
LARGE = ("imagenet", "alexnet", "resnet34")
QUICK = ("digits-fc", "certify-fc")
INPUTS = 4  # of which one flips no spike
NEAR = 1e-4  # of the largest of a layer; 8e-5 was seen where no spike flips, and 0.5 where one does


class ResidualChain(nn.Module):
    """An image through a stem, an identity block and one with its own shortcut."""

    def __init__(self, neuron: Neuron) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.blocks = nn.Sequential(
            ResidualBlock(6, 6, 1, neuron=neuron, timesteps=T), ResidualBlock(6, 8, 2, neuron=neuron, timesteps=T)
        )
        self.lif = LIF(decay=neuron.decay, threshold=neuron.threshold, timesteps=T)
        self.head = nn.Linear(8 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks(self.norm(self.stem(x.unsqueeze(0).repeat(T, 1, 1, 1, 1).flatten(0, 1))))
        scores: Tensor = self.head(self.lif(y).unflatten(0, (T, -1)).mean(0).flatten(1))
        return scores


def images(seed: int) -> Tensor:
    return 2 * torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_residual_blocks(training: bool) -> None:
    """Wherever no membrane of f64 is near a jump, the gradients are no further from f64 than twice torch's."""
    torch.manual_seed(0)
    module = ResidualChain(Neuron()).train(training)
    for name, parameter in module.named_parameters():
        if "norm" in name:  # else maps without spikes put membranes right on the surrogate's edge
            nn.init.uniform_(parameter, 0.1, 0.6)
    fused = spikec.fuse(copy.deepcopy(module), images(0), T)
    upstream, compared = upstream_like(module, images(0)), 0
    for seed in range(20):
        with margin() as seen:
            exact = step(double(module), images(seed).double(), upstream)
        if seen.nearest < 3e-5:  # a dozen roundings in each of seven layers of values below 4
            continue
        compared += 1
        theirs = step(copy.deepcopy(module), images(seed), upstream)
        ours = step(copy.deepcopy(fused), images(seed), upstream)
        torch.testing.assert_close(ours.y, theirs.y, rtol=1e-5, atol=1e-5)
        for name, want in exact.grads.items():
            got, torchs = ours.grads[name], theirs.grads[name]
            assert want is not None
            assert got is not None
            assert torchs is not None
            limit = 2 * float((torchs - want).abs().max()) + 32 * ULP * float(want.abs().max())
            assert float((got - want).abs().max()) <= limit, (seed, name)
    assert compared >= 3


def undropped(name: str) -> nn.Module:
    """A network of the zoo in training without dropout."""
    module = build(name, timesteps=T).train()
    for child in module.modules():
        if isinstance(child, nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d):
            child.p = 0.0
    return module


def two_samples(name: str, seed: int) -> Tensor:
    x = torch.rand(entry(name).example_shape(2, T), generator=torch.Generator().manual_seed(seed))
    return x if entry(name).input_kind == "image" else (x < 0.3).float()


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in names() if name not in LARGE],
)
def test_zoo(name: str) -> None:
    """Trains: the original's scores and gradients up to a flipped spike."""
    check_zoo(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_large_zoo(name: str) -> None:
    check_zoo(name)


def check_zoo(name: str) -> None:
    """A fault shows with every input; a membrane that roundings put across its threshold or surrogate's edge does not.

    Such a spike changes all gradients before it by tenths while the scores may stay the same.
    """
    module, fuse_with = undropped(name), two_samples(name, 0)
    fused = spikec.fuse(copy.deepcopy(module), fuse_with, T)
    turned = copy.deepcopy(module).to(memory_format=torch.channels_last) if name in LARGE else None
    upstream, distances = upstream_like(module, fuse_with), []
    for seed in range(INPUTS):
        x = two_samples(name, seed)
        want = step(module, x, upstream)
        ours, itself = distance(want, step(fused, x, upstream)), 0.0
        if ours > NEAR and turned is not None:
            itself = distance(want, step(turned, x, upstream))
        if ours <= max(NEAR, 1.5 * itself):
            return
        distances.append((ours, itself))
    raise AssertionError(distances)


def distance(want: Step, got: Step) -> float:
    """The largest difference of scores, or of gradients."""
    assert got.y.shape == want.y.shape
    return max(float((got.y - want.y).abs().max()), gradient_error(want, got))


def gradient_error(want: Step, got: Step) -> float:
    """The largest difference over the largest gradient of the same layer: a bias's may cancel to roundings alone."""
    errors: dict[str, float] = defaultdict(float)
    largest: dict[str, float] = defaultdict(float)
    for key, grad in want.grads.items():
        found, layer = got.grads[key], key.rpartition(".")[0]
        assert (found is None) == (grad is None), key
        if found is not None and grad is not None:
            assert found.shape == grad.shape, key
            assert bool(torch.isfinite(found).all()), key
            errors[layer] = max(errors[layer], float((found - grad).abs().max()))
            largest[layer] = max(largest[layer], float(grad.abs().max()))
    assert max(largest.values()) > 0
    return max(error / max(largest[layer], torch.finfo().tiny) for layer, error in errors.items())


class Spiking(nn.Module):
    """A multi-step network of SpikingJelly, mean over time."""

    def __init__(self) -> None:
        from spikingjelly.activation_based import layer, neuron, surrogate

        super().__init__()
        options = {"step_mode": "m", "v_threshold": 0.5, "surrogate_function": surrogate.ATan(2.0)}
        self.layers = nn.Sequential(
            layer.Conv2d(2, 4, 3, padding=1, bias=False, step_mode="m"),
            layer.BatchNorm2d(4, step_mode="m"),
            neuron.LIFNode(tau=2.0, detach_reset=True, **options),
            layer.AvgPool2d((1, 2), step_mode="m"),
            layer.Conv2d(4, 4, 3, padding=1, step_mode="m"),
            neuron.IFNode(v_reset=None, **options),
            layer.Flatten(step_mode="m"),
            layer.Linear(4 * 8 * 4, 3, step_mode="m"),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y.mean(0)


def test_spikingjelly() -> None:
    """Three steps of training against itself; its neurons are reset before each pass, as its users must."""
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import functional

    torch.manual_seed(0)
    module = Spiking()
    x = 2 * torch.rand(T, 4, 2, 8, 8)
    fused = spikec.fuse(copy.deepcopy(module), x, T)
    functional.reset_net(module)
    descents = [(net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)) for net in (module, fused)]
    target = torch.arange(4) % 3
    for seed in range(3):
        x = 2 * torch.rand(T, 4, 2, 8, 8, generator=torch.Generator().manual_seed(seed))
        outputs = []
        for net, descent in descents:
            functional.reset_net(module)
            descent.zero_grad()
            y = net(x)
            outputs.append(y.detach())
            nn.functional.cross_entropy(y, target).backward()
            descent.step()
        # a flipped spike would change a score by 0.01 and more; rounding changes it by some 1e-7
        torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)
    for (name, want), got in zip(module.state_dict().items(), fused.state_dict().values(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5, msg=name)


def test_original_and_fused_take_turns() -> None:
    """A soft reset in evaluation mode: one set of parameters and statistics under two forward passes."""
    torch.manual_seed(0)
    lif = LIF(decay=0.5, threshold=1.0, reset=Reset.SOFT, timesteps=T)
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), lif, nn.Flatten(), nn.Linear(3 * 6 * 6, 4))
    x = 2 * torch.rand(T * 3, 2, 8, 8)
    fused = spikec.fuse(module, x, T)
    fused(x)
    module(x)
    assert int(module[1].num_batches_tracked) == 2  # type: ignore[arg-type]
    module.eval()
    assert not fused.get_submodule("1").training
    torch.testing.assert_close(fused(x), module(x), rtol=1e-5, atol=1e-5)
    text = repr(fused)
    assert "fused stages" in text
    assert "Conv2d(2, 3" in text
