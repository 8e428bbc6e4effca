"""Ordered channels: the same function, each channel at its new place, and balanced blocks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from compiler.evaluate import evaluate
from compiler.h2learn.order_channels import ChannelDensity, OrderChannels, balanced_order, balanced_orders
from compiler.ir import Graph
from compiler.ir.ops import Conv2d
from hwmodel.config import load_config
from hwmodel.errors import CompileError
from tests.strategies import RandomNetwork, networks

BALANCED = load_config("h2learn_balanced")


def orders_of(graph: Graph, rng: np.random.Generator) -> dict[str, tuple[int, ...]]:
    """A random order for each convolution that can have one."""
    convolutions = [node for node in graph.nodes if isinstance(node.op, Conv2d)]
    densities = {
        node.name: ChannelDensity(
            inputs=rng.random(graph.types[node.name].size("C")),
            outputs=rng.random(graph.types[node.inputs[0]].size("C")),
        )
        for node in convolutions
    }
    known = balanced_orders(graph, densities, BALANCED)
    return {name: tuple(rng.permutation(len(order)).tolist()) for name, order in known.items()}


@given(network=networks(blocks=(1, 3), max_size=9, dyadic=True), seed=st.integers(0, 2**32))
@settings(max_examples=60)
def test_the_function_stays_the_same(network: RandomNetwork, seed: int) -> None:
    """Weights and images are dyadic: their sums are exact in any order, so that no spike flips."""
    orders = orders_of(network.graph, np.random.default_rng(seed))
    assume(orders)
    ordered = OrderChannels(orders)(network.graph)
    x = torch.from_numpy(network.example)
    names = [node.name for node in network.graph.nodes]
    assert [node.name for node in ordered.nodes] == names
    want, got = (evaluate(graph, x, traces=tuple(orders)) for graph in (network.graph, ordered))
    np.testing.assert_allclose(got.output, want.output, rtol=1e-5, atol=1e-5)  # a mean may round
    for name, order in orders.items():
        axis = want.traces[name].ndim - 3
        np.testing.assert_array_equal(got.traces[name], want.traces[name].index_select(axis, torch.tensor(order)))


@given(network=networks(blocks=(1, 3), max_size=9), seed=st.integers(0, 2**32))
@settings(max_examples=30)
def test_the_inverse_order_brings_back_the_graph(network: RandomNetwork, seed: int) -> None:
    orders = orders_of(network.graph, np.random.default_rng(seed))
    inverse = {name: tuple(np.argsort(order).tolist()) for name, order in orders.items()}
    assert OrderChannels(inverse)(OrderChannels(orders)(network.graph)) == network.graph


@pytest.mark.parametrize("channels", [5, 16, 64, 100, 256])
@pytest.mark.parametrize("known", ["rows", "columns", "both"])
def test_blocks_hold_like_rows(channels: int, known: str) -> None:
    """Each channel once; every block of 16 holds the densest rows that are left."""
    rng = np.random.default_rng(channels)
    rows, columns = rng.random(channels), rng.random(channels)
    order = balanced_order(rows if known != "columns" else None, columns if known != "rows" else None, BALANCED)
    assert sorted(order) == list(range(channels))
    by = columns if known == "columns" else rows
    blocks = [by[list(order[first : first + 16])] for first in range(0, channels, 16)]
    assert all(dense.min() >= sparse.max() for dense, sparse in pairwise(blocks))


def test_lists_of_shared_columns_are_even() -> None:
    """Of 64 columns from 0 to 1, four to a list: random lists differ by more than the dealt ones do."""
    rng = np.random.default_rng(0)
    columns = rng.random(64)
    order = balanced_order(rng.random(64), columns, BALANCED)
    dealt = columns[list(order)].reshape(4, 16).sum(axis=0)
    drawn = columns.reshape(4, 16).sum(axis=0)
    assert dealt.max() / dealt.mean() < 1.15
    assert drawn.max() / drawn.mean() > 1.3


def convolution_before_output(network: RandomNetwork) -> str:
    return next(node.name for node in reversed(network.graph.nodes) if isinstance(node.op, Conv2d))


@given(network=networks(blocks=(1, 1), max_size=6))
@settings(max_examples=10)
def test_what_cannot_be_ordered_is_refused(network: RandomNetwork) -> None:
    name = convolution_before_output(network)
    channels = network.graph.types[name].size("C")
    other = next(node.name for node in network.graph.nodes if not isinstance(node.op, Conv2d))
    for orders, message in (
        ({name: (0,) * (channels + 1)}, f"the order is no permutation of {channels} channels"),
        ({other: (0,)}, f"{other} is no convolution"),
    ):
        with pytest.raises(CompileError, match=message):
            OrderChannels(orders)(network.graph)
