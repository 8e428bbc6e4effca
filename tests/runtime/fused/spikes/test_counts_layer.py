"""Layers of averages by planes, against f64 and against the dense kernels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from compiler.fused.program import Layer
from compiler.fused.spikes.costs import Pass, Way
from compiler.fused.spikes.counts import Counts, Planes
from runtime.fused.spikes.counts import pack_counts
from runtime.fused.spikes.counts_layer import CountsLayer
from runtime.fused.spikes.layer import SpikeLayer
from tests.runtime.fused.spikes.spike_maps import take

LAYERS = {
    "plain": (Layer(convolution=True, bias=True, padding=(1, 1)), (2, 3, 7, 6, 40), (24, 40, 3, 3)),
    "groups, stride": (Layer(convolution=True, bias=True, stride=(2, 2), groups=2), (1, 3, 7, 9, 128), (10, 64, 1, 1)),
    "linear": (Layer(convolution=False, bias=True), (2, 5, 1, 1, 70), (9, 70)),
}
DEALS = [None, *(Planes(looked_up, 3) for looked_up in range(4))]


class Case:
    """A layer, averages and their words; `grid`: of numbers whose sums are exact."""

    def __init__(self, name: str, *, pixels: int = 4, top: int = 4, grid: bool = False) -> None:
        layer, maps, shape = LAYERS[name]
        random = torch.Generator().manual_seed(len(name))
        self.counts, own = Counts(pixels), layer
        numbers = torch.randint(top + 1, maps, generator=random)
        self.words = torch.empty(self.counts.planes, *maps[:-1], -(-maps[-1] // 32), dtype=torch.int32)
        self.ones = pack_counts(self.counts, numbers / pixels, self.words, take)
        rows = (numbers / pixels).flatten(0, 1)
        self.x = rows.permute(0, 3, 1, 2) if layer.convolution else rows.flatten(1)
        self.weight, self.bias = (self._numbers(sizes, random, grid) for sizes in (shape, shape[:1]))
        if layer.convolution:
            self.weight = self.weight.contiguous(memory_format=torch.channels_last)
        self.layer = CountsLayer(SpikeLayer.of(own, (maps[0] * maps[1], *maps[2:]), self.weight), self.counts)
        self.grad = self._numbers(tuple(self.result(torch.float32).shape), random, grid)
        if layer.convolution:
            self.grad = self.grad.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def _numbers(shape: tuple[int, ...], random: torch.Generator, grid: bool) -> Tensor:
        values = torch.randn(shape, generator=random)
        return (values * 16).round() / 16 if grid else values

    def result(self, dtype: torch.dtype) -> Tensor:
        x, weight, bias = (tensor.to(dtype) for tensor in (self.x, self.weight, self.bias))
        return self._apply(x, weight, bias)

    def gradient(self, dtype: torch.dtype) -> Tensor:
        """Of the weight."""
        weight = self.weight.to(dtype, copy=True).requires_grad_()
        self._apply(self.x.to(dtype), weight, None).backward(self.grad.to(dtype))
        assert weight.grad is not None
        return weight.grad

    def _apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        layer = self.layer.layer
        if not layer.convolution:
            return functional.linear(x, weight, bias)
        return functional.conv2d(x, weight, bias, layer.stride, layer.padding, 1, layer.groups)


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize("planes", DEALS, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_every_deal_is_as_exact_as_the_dense_kernel(name: str, planes: Planes | None) -> None:
    case = Case(name)
    found = case.layer.forward(planes, case.words, case.weight, case.bias, take)
    assert found.shape == case.grad.shape
    exact = case.result(torch.float64)
    assert error(found, exact) <= 2 * error(case.result(torch.float32), exact) + 1e-6  # and a few ulp
    gradient, exact = (
        case.layer.grad_weight(planes, case.words, case.grad, case.weight, take),
        case.gradient(torch.float64),
    )
    assert gradient.shape == case.weight.shape
    assert error(gradient, exact) <= 2 * error(case.gradient(torch.float32), exact) + 1e-6


@pytest.mark.parametrize("pixels", [2, 4])
@pytest.mark.parametrize("name", LAYERS)
def test_of_exact_sums_bits_are_equal(name: str, pixels: int) -> None:
    case = Case(name, pixels=pixels, top=pixels, grid=True)
    for looked_up in range(case.counts.planes + 1):
        planes = Planes(looked_up, case.counts.planes)
        found = case.layer.forward(planes, case.words, case.weight, case.bias, take)
        assert torch.equal(found, case.result(torch.float32))
        gradient = case.layer.grad_weight(planes, case.words, case.grad, case.weight, take)
        assert torch.equal(gradient, case.gradient(torch.float32))


@pytest.mark.parametrize(("top", "used"), [(0, 1), (1, 1), (3, 2), (4, 3)])
def test_planes_above_the_highest_one_are_left_out(top: int, used: int) -> None:
    case = Case("plain", top=top, grid=True)
    shares = case.layer.shares(case.ones)
    assert len(shares) == used
    assert sum(share * case.counts.factor(at) for at, share in enumerate(shares)) == pytest.approx(float(case.x.mean()))
    for looked_up in range(used + 1):
        planes = Planes(looked_up, used)
        found = case.layer.forward(planes, case.words, case.weight, case.bias, take)
        assert torch.equal(found, case.result(torch.float32))
        gradient = case.layer.grad_weight(planes, case.words, case.grad, case.weight, take)
        assert torch.equal(gradient, case.gradient(torch.float32))


def test_groups_of_parts_of_words_stay_with_the_dense_kernel() -> None:
    layer = Layer(convolution=True, bias=False, groups=2)
    own = CountsLayer(SpikeLayer.of(layer, (1, 4, 4, 80), torch.empty(8, 40, 3, 3)), Counts(4))
    assert [way for way in (Way.DENSE, Way.LOOKUP, Way.EVENTS) if own.supports(Pass.FORWARD, way)] == [Way.DENSE]


def test_the_input_gradient_is_that_of_the_layer() -> None:
    case = Case("plain", grid=True)
    x = case.x.clone().requires_grad_()
    case._apply(x, case.weight, None).backward(case.grad)
    mask = torch.full(case.words.shape[1:], -1, dtype=torch.int32)
    for way in (Way.DENSE, Way.MASKED, Way.EVENTS):
        found = case.layer.grad_input(way, case.grad, mask, case.weight, take)
        assert torch.equal(found, x.grad), way
