"""Training programs as a whole: instructions counted by hand, every option, and the networks of table 3.4."""

from __future__ import annotations

from collections import Counter

import pytest

from compiler.h2learn.compile_training import compile_training
from compiler.h2learn.emit_sgd import Descent
from compiler.ir import DType, Encoding, Graph, Param, Reading, Reset
from compiler.ir.ops import AvgPool2d, Conv2d, Encode, Flatten, Input, Li, Lif, Linear, MaxPool2d, Op, Readout
from compiler.losses import Loss
from frontends.zoo import entry
from hwmodel.checker import check
from hwmodel.config import H2LearnConfig, load_config
from hwmodel.isa import Buffer, Load, Queue, Signal, Store, Wait
from hwmodel.program import Format, Phase, Program, Role
from spikec.models import load_model
from tests.compiler.h2learn.training_plans import configs
from tests.hwmodel.training_programs import Ops, chain

CONFIG = load_config("h2learn")
LIF = Lif(decay=0.5, threshold=0.25)


def trained(graph: Graph, *, config: H2LearnConfig = CONFIG, batch: int = 1, descent: Descent | None = None) -> Program:
    return compile_training(
        graph, config, loss=Loss.CROSS_ENTROPY, descent=descent, batch=batch, show=lambda _: None
    ).program


def counted(program: Program, phase: Phase) -> dict[str, int]:
    """Instructions by class, loads and stores by what they move; without synchronisation."""
    names: Counter[str] = Counter()
    for stream in program.phases[phase].values():
        for instruction in stream:
            match instruction:
                case Signal() | Wait():
                    continue
                case Load() | Store():
                    names[f"{type(instruction).__name__} {instruction.buffer}"] += 1
                case _:
                    names[type(instruction).__name__] += 1
    names.pop("Halt")
    return dict(names)


def conv_and_linear() -> Graph:
    """Spikes (2, N, 1, 4, 4); a 3 x 3 convolution with bias, hard-reset neurons, 2 classes: one tile, one block."""
    ops: Ops = (
        ("x", Input(shape=(2, "N", 1, 4, 4), dtype=DType.SPIKE, axes="TNCHW")),
        ("conv", Conv2d(weight=Param("w"), bias=Param("b"), padding=(1, 1))),
        ("lif1", LIF),
        ("flatten", Flatten()),
        ("linear", Linear(weight=Param("v"))),
        ("lif2", LIF),
        ("rate", Readout(kind=Reading.RATE)),
    )
    return chain(ops, {"w": (1, 1, 3, 3), "b": (1,), "v": (2, 16)})


def test_instructions_of_a_small_network() -> None:
    """Two layers; each neuron has spikes, mask and membranes to keep."""
    program = trained(conv_and_linear(), descent=Descent(momentum=0.5))
    assert counted(program, Phase.FORWARD) == {
        **{"Load s_in": 2, "Load w": 2, "Load neuron": 2, "LutProgram": 2, "ConvTile": 1, "FcTile": 1, "Soma": 2},
        **{"Store s_out": 2, "Store mask": 2, "Store psum": 2},
    }
    # The loss goes straight to the neurons of the linear layer; the convolution's take it through the weights.
    # One weight gradient for each layer, one bias gradient for the convolution.
    backward = {
        **{"HostLoss": 1, "Load be_psum": 1, "Load be_in": 1, "Load be_w": 1, "GradFcTile": 1, "Grad": 2},
        **{"Load be_neuron": 2, "Load be_mask": 2, "Load be_m": 2, "Load be_out": 2},
        **{
            "Store be_psum": 2,
            "Store be_mask": 2,
            "Load wu_in": 2,
            "Load wu_gm": 2,
            "UpdateFcTile": 1,
            "UpdateTile": 1,
        },
        **{"AddGradient": 3, "Load wu_grad": 3, "Store wu_grad": 3},
    }
    assert counted(program, Phase.BACKWARD) == backward
    forward = counted(program, Phase.FORWARD)
    assert counted(program, Phase.OVERLAP) == forward | backward
    # One slice for each kernel position, for the linear weights and for the bias: 9 + 1 + 1; weights to both memories.
    assert counted(program, Phase.UPDATE) == {
        **{"SgdStep": 11, "Load wu_grad": 11, "Load wu_weight": 11, "Load wu_momentum": 11},
        **{"Store wu_weight": 22, "Store wu_grad": 11, "Store wu_momentum": 11},
    }


def test_master_weights_are_updated_by_the_host_alone() -> None:
    program = trained(conv_and_linear(), descent=Descent(momentum=0.5, master_weights=True))
    assert counted(program, Phase.UPDATE) == {"HostUpdate": 3}
    assert not any(tensor.role is Role.MOMENTUM for tensor in program.tensors)


def test_a_convolution_between_convolutions_skips_zeros_both_ways() -> None:
    """Its gradient takes the mask of the zeros that arrive and the mask of the outputs that are wanted."""
    ops: Ops = (
        ("x", Input(shape=(2, "N", 1, 4, 4), dtype=DType.SPIKE, axes="TNCHW")),
        ("conv1", Conv2d(weight=Param("w"), padding=(1, 1))),
        ("lif1", LIF),
        ("conv2", Conv2d(weight=Param("v"), padding=(1, 1))),
        ("lif2", LIF),
        ("flatten", Flatten()),
        ("rate", Readout(kind=Reading.RATE)),
    )
    counts = counted(trained(chain(ops, {"w": (1, 1, 3, 3), "v": (1, 1, 3, 3)})), Phase.BACKWARD)
    assert counts["GradConvTile"] == 1
    assert counts["Load be_in"] == 2
    assert counts["Load be_mask"] == 2  # that of the first layer serves the tile and Grad


def test_an_encoding_layer_is_updated_by_the_backward_engine() -> None:
    """Its gradients pass the membranes' buffer, and its input is loaded once for all steps."""
    ops: Ops = (
        ("x", Input(shape=("N", 1, 4, 4), dtype=DType.F32, axes="NCHW")),
        ("encode", Encode(kind=Encoding.DIRECT, timesteps=3)),
        ("conv", Conv2d(weight=Param("w"), padding=(1, 1))),
        ("lif", Lif(decay=0.5, threshold=0.25, reset=Reset.SOFT)),
        ("flatten", Flatten()),
        ("rate", Readout(kind=Reading.RATE)),
    )
    program = trained(chain(ops, {"w": (1, 1, 3, 3)}))
    counts = counted(program, Phase.BACKWARD)
    assert (counts["OuterTile"], counts["Load be_m"], counts["Load be_in"], counts["AddGradient"]) == (1, 1, 1, 1)
    assert Queue.WUE not in program.phases[Phase.BACKWARD]
    sources = [i for i in program.phases[Phase.BACKWARD][Queue.DMA1] if isinstance(i, Load)]
    assert [load.nt for load in sources if load.buffer in (Buffer.BE_IN, Buffer.BE_M)] == [1, 3]


def network(
    *middle: tuple[str, Op], steps: int, last: Op, readout: Reading, shapes: dict[str, tuple[int, ...]]
) -> Graph:
    start: Ops = (("x", Input(shape=(steps, "N", 4, 11, 9), dtype=DType.SPIKE, axes="TNCHW")), *middle)
    end: Ops = (("flatten", Flatten()), ("linear", Linear(weight=Param("v"))), ("end", last))
    return chain((*start, *end, ("read", Readout(kind=readout))), shapes)


@pytest.mark.parametrize(("batch", "config"), list(zip(range(1, 6), (*configs(), *configs()[:2]), strict=True)))
def test_every_size_of_a_sub_batch_compiles(batch: int, config: H2LearnConfig) -> None:
    """23 steps, groups, 5 x 5 kernels, stride 2, ceil_mode, soft reset, an integrator."""
    graph = network(
        ("conv1", Conv2d(weight=Param("w1"), bias=Param("b1"), padding=(2, 2), stride=(2, 1), groups=2)),
        ("lif1", Lif(decay=0.5, threshold=0.25, reset=Reset.SOFT)),
        ("pool1", AvgPool2d(kernel=(2, 2), stride=(2, 2), ceil_mode=True, count_include_pad=False)),
        ("lif2", Lif(decay=0.5, threshold=0.25, detach_reset=True)),
        ("conv2", Conv2d(weight=Param("w2"), padding=(1, 1), groups=3)),
        ("pool2", MaxPool2d(kernel=(2, 2), stride=(2, 2), ceil_mode=True)),
        ("lif3", Lif(decay=0.5, threshold=0.25, reset=Reset.NONE)),
        steps=23,
        last=Li(decay=0.75),
        readout=Reading.MAX,
        shapes={"w1": (6, 2, 5, 5), "b1": (6,), "w2": (6, 2, 3, 3), "v": (3, 6 * 2 * 3)},
    )  # fmt: skip
    program = trained(graph, config=config, batch=batch)
    check(program)
    assert (program.batch, program.timesteps) == (batch, 23)


@pytest.mark.parametrize("reset", Reset)
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("pool", [MaxPool2d, AvgPool2d])
@pytest.mark.parametrize("is_first", [True, False], ids=["before", "behind"])
def test_every_neuron_and_pool_compiles(
    reset: Reset, detach: bool, pool: type[MaxPool2d] | type[AvgPool2d], is_first: bool
) -> None:
    neuron = Lif(decay=0.5, threshold=0.25, reset=reset, detach_reset=detach, input_scale=0.5, leak_bias=0.125)
    window = pool(kernel=(3, 2), stride=(3, 2), ceil_mode=True)
    parts: Ops = (
        (("pool", window), ("lif1", neuron)) if is_first else (("lif1", neuron), ("pool", window), ("lif2", neuron))
    )
    graph = network(
        ("conv", Conv2d(weight=Param("w"), padding=(1, 1))), *parts,
        steps=3, last=LIF, readout=Reading.LAST, shapes={"w": (2, 4, 3, 3), "v": (3, 2 * 4 * 5)},
    )  # fmt: skip
    for config in configs()[:2]:
        program = trained(graph, config=config, batch=2)
        kept = {tensor.name for tensor in program.tensors if tensor.role is Role.KEPT and not tensor.view_of}
        has_membranes = reset is Reset.HARD and not detach
        assert any("membrane" in name and name.startswith("0.") for name in kept) == has_membranes
        compressed = [tensor for tensor in program.tensors if tensor.format is Format.MCOMP]
        assert bool(compressed) == has_membranes


@pytest.mark.parametrize(
    "name",
    ["mnist", *(pytest.param(n, marks=pytest.mark.slow) for n in ("cifar10", "nmnist", "cifar10dvs", "imagenet"))],
)
def test_networks_of_table_3_4_compile(name: str) -> None:
    """The checker runs inside the compiler: a program that comes out is proved valid."""
    model = load_model(f"zoo:{name}", timesteps=entry(name).timesteps)
    program = compile_training(model.graph, CONFIG, loss=Loss.CROSS_ENTROPY).program
    assert (program.batch, program.timesteps) == (CONFIG.sub_batch, 10)
    assert program.training is not None
    weighted = [word for word in entry(name).notation.split("-") if not word.startswith("AP")]
    assert len([p for p in program.training.parameters if not p.is_bias]) == len(weighted)
    assert {p.parameter for p in program.training.parameters} == set(model.graph.parameters)
