"""Faults of the compiler that are known and open: a test passes once its fault is mended, and loses its mark."""

from __future__ import annotations

from dataclasses import replace

import pytest

from compiler.h2learn.compile_training import compile_training
from compiler.h2learn.emit_sgd import Descent
from compiler.ir import CompileError, DType, Graph, Param, Reading
from compiler.ir.ops import AvgPool2d, Conv2d, Flatten, Input, Lif, MaxPool2d, Readout
from compiler.losses import Loss
from hwmodel.config import H2LearnConfig, TileConfig, load_config
from tests.hwmodel.training_programs import Ops, chain

CONFIG = load_config("h2learn")
LIF = Lif(decay=0.5, threshold=0.25)


def pooled(first: tuple[int, int], second: tuple[int, int]) -> Graph:
    """conv, maximum, LIF, average, LIF over 4 x 12 maps."""
    ops: Ops = (
        ("x", Input(shape=(2, "N", 1, 4, 12), dtype=DType.SPIKE, axes="TNCHW")),
        ("conv", Conv2d(weight=Param("w"))),
        ("pool1", MaxPool2d(kernel=first, stride=first)),
        ("lif1", LIF),
        ("pool2", AvgPool2d(kernel=second, stride=second)),
        ("lif2", LIF),
        ("flatten", Flatten()),
        ("rate", Readout(kind=Reading.RATE)),
    )
    return chain(ops, {"w": (1, 1, 1, 1)})


def two_layers(*, shared: bool) -> Graph:
    ops: Ops = (
        ("x", Input(shape=(2, "N", 1, 4, 4), dtype=DType.SPIKE, axes="TNCHW")),
        ("conv1", Conv2d(weight=Param("w"), padding=(1, 1))),
        ("lif1", LIF),
        ("conv2", Conv2d(weight=Param("w" if shared else "v"), padding=(1, 1))),
        ("lif2", LIF),
        ("flatten", Flatten()),
        ("rate", Readout(kind=Reading.RATE)),
    )
    return chain(ops, {"w": (1, 1, 3, 3), "v": (1, 1, 3, 3)})


def refusal(graph: Graph, config: H2LearnConfig = CONFIG, descent: Descent | None = None) -> str:
    with pytest.raises(CompileError) as caught:
        compile_training(graph, config, loss=Loss.MSE, descent=descent, batch=1, show=lambda _: None)
    return caught.value.message


@pytest.mark.parametrize("first", [(1, 2), (2, 1)])
def test_a_pool_with_two_strides_before_another_pool(first: tuple[int, int]) -> None:
    config = replace(CONFIG, tile=TileConfig(h=4, w=4))
    compile_training(pooled(first, (2, 2)), config, loss=Loss.MSE, batch=1, show=lambda _: None)


@pytest.mark.parametrize("buffer", ["weight", "momentum"])
def test_a_bank_of_the_update_without_room_for_a_weight(buffer: str) -> None:
    update = CONFIG.weight_update
    config = replace(CONFIG, weight_update=replace(update, buffers_kb=replace(update.buffers_kb, **{buffer: 0.002})))
    assert f"exceeds wu_{buffer}" in refusal(two_layers(shared=False), config)


def with_forward_bank_of_a_byte(buffer: str) -> H2LearnConfig:
    forward = CONFIG.forward
    return replace(CONFIG, forward=replace(forward, buffers_kb=replace(forward.buffers_kb, **{buffer: 0.003})))


def test_two_parts_do_not_share_a_byte_of_masks() -> None:
    assert "exceeds mask" in refusal(pooled((1, 1), (2, 2)), with_forward_bank_of_a_byte("mask"))


def test_spikes_of_two_neurons_that_share_no_byte_are_two_layers() -> None:
    graph, config = pooled((1, 1), (2, 2)), with_forward_bank_of_a_byte("s_out")
    compiled = compile_training(graph, config, loss=Loss.MSE, batch=1, show=lambda _: None)
    assert [layer.kind for layer in compiled.program.layers].count("pool") == 2


@pytest.mark.parametrize(
    ("descent", "message"),
    [
        (Descent(learning_rate=1e39), "learning rate is 1e+39"),
        (Descent(weight_decay=1e39), "weight decay is 1e+39"),
        (Descent(loss_scale=1e-40), "loss scale is 1e-40"),
        (Descent(loss_scale=1e46), "loss scale is 1e+46"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_numbers_that_f32_does_not_hold(descent: Descent, message: str) -> None:
    assert message in refusal(two_layers(shared=False), descent=descent)


def test_weights_that_two_layers_share() -> None:
    message = refusal(two_layers(shared=True))
    assert "the program is not valid" not in message
    assert "share" in message
